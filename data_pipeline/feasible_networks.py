"""Find the network of every organism that lives in each of many environments, in several processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from data_pipeline import assemble, habitat
from data_pipeline.assemble import Pair
from data_pipeline.metabolic_graph import Edge


class FeasibleNetwork(NamedTuple):
    """How one organism makes the most ATP in one environment."""

    organism: str
    edges: frozenset[Edge]  # (substrate, product) by name
    nodes: tuple[str, ...]  # in order of name
    nutrients: tuple[str, ...]  # all that the environment offers: what `feasibility.atp_feasible` is asked with


def feasible_networks(
    environments: Float[np.ndarray, "n V"], processes: int | None = None
) -> list[tuple[FeasibleNetwork, ...]]:
    """Return for each environment the network of every organism that stands its conditions and makes ATP there.

    Each (organism, nutrients that it knows) is solved once, and kept in the cache folder (flux_balance.solve). An
    environment that nobody stands, or that feeds nobody, has none.
    """
    pairs = [assemble.inhabitants(row) for row in environments]
    distinct = sorted({pair for asked in pairs for pair in asked}, key=lambda pair: (pair[1], pair[0]))
    solved = dict(zip(distinct, _solve_all(distinct, processes), strict=True))
    found = []
    for row, asked in zip(environments, pairs, strict=True):
        offered = habitat.nutrients(row)
        here = [solved[pair] for pair in asked]
        found.append(tuple(network._replace(nutrients=offered) for network in here if network is not None))
    return found


def _solve_all(pairs: Sequence[Pair], processes: int | None) -> list[FeasibleNetwork | None]:
    processes = processes or min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2, 8)
    if processes == 1:
        return [_solve(pair) for pair in pairs]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_solve, pairs, chunksize=8))


def _solve(pair: Pair) -> FeasibleNetwork | None:
    graph = assemble.solve(pair)
    if graph is None or not graph.metabolites:
        return None
    return FeasibleNetwork(pair[0], assemble.edge_names(graph), graph.metabolites, pair[1])
