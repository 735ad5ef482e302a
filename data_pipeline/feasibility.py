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


def atp_feasible(edges: Iterable[Edge], nutrients: Iterable[str]) -> bool:
    """Can ONE organism, restricted to these edges, make ATP from these nutrients and the salts?"""
    return feasible([Question(frozenset(edges), tuple(nutrients))])[0]


def organisms_that_run(edges: Iterable[Edge], nutrients: Iterable[str]) -> tuple[str, ...]:
    """Return each organism that makes ATP when it is restricted to these edges, as `atp_feasible` asks."""
    return runners([Question(frozenset(edges), tuple(nutrients))])[0]


def runners(questions: Sequence[Question]) -> list[tuple[str, ...]]:
    """Return for each question every organism that makes ATP, in the order of `load_organisms`."""
    names = tuple(load_organisms())
    found: list[set[int]] = [set() for _ in questions]
    for number, block in _running((n, b) for n, q in enumerate(questions) for b in restricted(q.edges, q.nutrients)):
        found[number].add(block.organism)
    return [tuple(names[i] for i in sorted(each)) for each in found]


def feasible(questions: Sequence[Question]) -> list[bool]:
    """Return for each question whether some organism makes ATP; who can use most of the edges is asked first."""
    blocks = {
        n: sorted(restricted(q.edges, q.nutrients), key=lambda block: -block.gated) for n, q in enumerate(questions)
    }
    found = {n for n, _ in _running((n, own[0]) for n, own in blocks.items() if own)}
    found |= {n for n, _ in _running((n, b) for n, own in blocks.items() if n not in found for b in own[1:])}
    return [n in found for n in range(len(questions))]


def _running(blocks: Iterable[tuple[int, Block]]) -> Iterator[tuple[int, Block]]:
    """Yield those that make ATP."""
    waiting = list(blocks)
    for first in range(0, len(waiting), BATCH_BLOCKS):
        some = waiting[first : first + BATCH_BLOCKS]
        for pair, atp in zip(some, _most_atp([block for _, block in some]), strict=True):
            if atp >= MIN_ATP:
                yield pair


def _most_atp(blocks: Sequence[Block]) -> np.ndarray:
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
    return np.concatenate([_most_atp([block]) for block in blocks]) if len(blocks) > 1 else np.zeros(1)
