"""Judge networks: which organisms, restricted to a network's edges, make ATP from given nutrients.

A reaction may run in a direction when all its edges in that direction are there; reactions that make no edge (currency
metabolites only) are free. Each organism on its own: the union of organisms invents metabolisms. What can run in a
steady state (joint_program.py) is one linear program for many organisms and networks, of independent blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from data_pipeline.flux_balance import MIN_ATP, load_organisms
from data_pipeline.joint_program import Block, restricted
from data_pipeline.metabolic_graph import Edge

BATCH_BLOCKS = 24  # organisms' programs in one solve


class Question(NamedTuple):
    """Does this network make ATP from these nutrients?"""

    edges: frozenset[Edge]
    nutrients: tuple[str, ...]
    organisms: frozenset[str] | None = None  # in one of these; in any that is known


def atp_feasible(edges: Iterable[Edge], nutrients: Iterable[str]) -> bool:
    """Can ONE organism, restricted to these edges, make ATP from these nutrients and the salts?"""
    return feasible([Question(frozenset(edges), tuple(nutrients))])[0]


def most_atp(questions: Sequence[Question]) -> list[dict[str, float]]:
    """Return for each question the organisms that make ATP, and how much at most, in mmol per gram and hour.

    In the order of `load_organisms`.
    """
    names = tuple(load_organisms())
    found: list[dict[int, float]] = [{} for _ in questions]
    for number, block, atp in _running((n, b) for n, q in enumerate(questions) for b in _asked(q)):
        found[number][block.organism] = atp
    return [{names[i]: each[i] for i in sorted(each)} for each in found]


def feasible(questions: Sequence[Question]) -> list[bool]:
    """Return for each question whether some organism makes ATP; who can use most of the edges is asked first."""
    blocks = {n: sorted(_asked(q), key=lambda block: -block.gated) for n, q in enumerate(questions)}
    found = {n for n, *_ in _running((n, own[0]) for n, own in blocks.items() if own)}
    found |= {n for n, *_ in _running((n, b) for n, own in blocks.items() if n not in found for b in own[1:])}
    return [n in found for n in range(len(questions))]


def _asked(question: Question) -> list[Block]:
    """Return the programs of the organisms that a question is about."""
    blocks = restricted(question.edges, question.nutrients)
    if question.organisms is None:
        return blocks
    names = tuple(load_organisms())
    return [block for block in blocks if names[block.organism] in question.organisms]


def _running(blocks: Iterable[tuple[int, Block]]) -> Iterator[tuple[int, Block, float]]:
    """Yield those that make ATP, and how much."""
    waiting = list(blocks)
    for first in range(0, len(waiting), BATCH_BLOCKS):
        some = waiting[first : first + BATCH_BLOCKS]
        for (number, block), atp in zip(some, _solved([block for _, block in some]).tolist(), strict=True):
            if atp >= MIN_ATP:
                yield number, block, atp


def _solved(blocks: Sequence[Block]) -> np.ndarray:
    """Return the most ATP of each block; 0 where its program has no solution."""
    rows = np.cumsum([0, *(block.row.max() + 1 for block in blocks)])
    columns = np.cumsum([0, *(len(block.lower) for block in blocks)])
    row = np.concatenate([block.row + start for block, start in zip(blocks, rows, strict=False)])
    column = np.concatenate([block.column + start for block, start in zip(blocks, columns, strict=False)])
    goal = np.zeros(columns[-1])
    goal[columns[1:] - 1] = -1.0
    found = linprog(
        goal,
        A_eq=sparse.csc_matrix((np.concatenate([block.value for block in blocks]), (row, column))),
        b_eq=np.zeros(rows[-1]),
        bounds=np.stack([np.concatenate([b.lower for b in blocks]), np.concatenate([b.upper for b in blocks])], 1),
        method="highs",
    )
    if found.status == 0:
        return np.asarray(found.x[columns[1:] - 1])
    return np.concatenate([_solved([block]) for block in blocks]) if len(blocks) > 1 else np.zeros(1)
