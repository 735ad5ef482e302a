"""Judge networks: which organism, restricted to a network's edges, makes ATP from given nutrients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from data_pipeline.flux_balance import MIN_ATP, limits_of, load_organisms, most_atp, program_of
from data_pipeline.metabolic_graph import Edge, reaction_edges


def atp_feasible(edges: Iterable[Edge], nutrients: Iterable[str]) -> bool:
    """Can ONE organism, restricted to these edges, make ATP from these nutrients and the salts?

    A reaction may run in a direction when all its edges in that direction are there; reactions that make no edge
    (currency metabolites only) are free. Never the union of organisms: that invents metabolisms.
    """
    return next(organisms_that_run(edges, nutrients), None) is not None


def organisms_that_run(edges: Iterable[Edge], nutrients: Iterable[str]) -> Iterator[str]:
    """Yield each organism that makes ATP when it is restricted to these edges, as `atp_feasible` asks."""
    given, offered = set(edges), tuple(nutrients)
    return (name for name in load_organisms() if given and _feasible(name, given, offered))


def _feasible(name: str, given: set[Edge], offered: tuple[str, ...]) -> bool:
    program = program_of(name)
    lower, upper = limits_of(program, offered)
    used = False
    for j, edges in enumerate(reaction_edges(name)):
        if edges:
            upper[j] *= all(edge in given for edge in edges)
            lower[j] *= all((p, s) in given for s, p in edges)
            used = used or bool(upper[j] or lower[j])
    keep = np.flatnonzero((upper > 0) | (lower < 0))
    rows = np.unique(program.matrix[:, keep].indices)
    return used and most_atp(program.matrix[rows][:, keep], lower[keep], upper[keep]) >= MIN_ATP
