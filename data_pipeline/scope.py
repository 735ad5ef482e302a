"""Expand the scope of nutrients: which of a network's metabolites its reactions can make from them, step by step."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from data_pipeline.flux_balance import SALTS, load_organisms
from data_pipeline.metabolic_graph import Edge, reaction_sides


def scope(edges: Iterable[Edge], nutrients: Iterable[str]) -> float:
    """Return the share of the network's metabolites that can be made from these nutrients and the salts.

    A reaction of any organism may run in a direction when all its edges in that direction are there; it makes its
    products once all its substrates are there, carriers (metabolic_graph.CURRENCY) left out on both sides. Cycles that
    need a first molecule of their own, such as the citrate cycle, stay out: real networks do not all score 1. An edge
    that no reaction makes adds metabolites that cannot be reached. A network without edges scores 0.

    Source: Ebenhoeh, Handorf & Heinrich 2004, Genome Informatics 15:35.
    """
    given = set(edges)
    if not given:
        return 0.0
    table = _table()
    names = sorted({m for edge in given for m in edge})
    known = np.array([table.row[m] for m in names if m in table.row], np.int64)
    needed = [table.directions[edge] for edge in given if edge in table.directions]
    direction, there = np.unique(np.concatenate([*needed, np.zeros(0, np.int64)]), return_counts=True)
    runs = direction[there == table.needs[direction]]
    reached = np.zeros(len(table.row) + 1, bool)
    reached[[table.row[m] for m in SALTS | set(nutrients) if m in table.row]] = True
    reached[-1] = True  # what pads the sides
    while len(runs):
        fires = reached[table.left[runs]].all(1)
        if not fires.any():
            break
        reached[table.right[runs[fires]]] = True
        runs = runs[~fires]
    return float(reached[known].sum() / len(names))


class _Table(NamedTuple):
    """The distinct reaction directions of all organisms."""

    row: dict[str, int]  # of each metabolite
    left: np.ndarray  # rows of the substrates of each direction, padded with -1
    right: np.ndarray  # rows of the products
    needs: np.ndarray  # edges of each direction
    directions: dict[Edge, np.ndarray]  # that need this edge


@functools.cache
def _table() -> _Table:
    sides: dict[tuple[tuple[str, ...], tuple[str, ...]], frozenset[Edge]] = {}
    for name, organism in load_organisms().items():
        for (left, right, edges), low, high in zip(reaction_sides(name), organism.lower, organism.upper, strict=True):
            if edges and high > 0:
                sides[left, right] = frozenset(edges)
            if edges and low < 0:
                sides[right, left] = frozenset((p, s) for s, p in edges)
    row = {m: i for i, m in enumerate(sorted({m for pair in sides for side in pair for m in side}))}
    directions: dict[Edge, list[int]] = {}
    for number, needed in enumerate(sides.values()):
        for edge in needed:
            directions.setdefault(edge, []).append(number)
    return _Table(
        row,
        _padded([[row[m] for m in left] for left, _ in sides]),
        _padded([[row[m] for m in right] for _, right in sides]),
        np.array([len(edges) for edges in sides.values()]),
        {edge: np.array(found) for edge, found in directions.items()},
    )


def _padded(lists: list[list[int]]) -> np.ndarray:
    table = np.full((len(lists), max(map(len, lists))), -1)
    for line, values in zip(table, lists, strict=True):
        line[: len(values)] = values
    return table
