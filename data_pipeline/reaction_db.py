"""Know every edge that a reaction of some organism makes: what a generated network may hold."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool

from data_pipeline.batch import GraphSample
from data_pipeline.flux_balance import load_organisms
from data_pipeline.metabolic_graph import FORWARD_ONLY, Edge, composition, edge_kind, graph_of_kinds, reaction_edges


@dataclass(frozen=True)
class ReactionDB:
    """Every edge that some reaction of some organism makes in a direction that it may run in."""

    kinds: dict[Edge, int]  # row of variables.EDGE_TYPES

    def has_edge(self, substrate: str, product: str) -> bool:
        """Does a known reaction make this product from this substrate?"""
        return (substrate, product) in self.kinds

    def edge_type(self, substrate: str, product: str) -> int:
        """Return the row of variables.EDGE_TYPES; 0 when there is no such reaction."""
        return self.kinds.get((substrate, product), 0)

    def mask(self, metabolites: Sequence[str]) -> Bool[np.ndarray, "N N"]:
        """Return [substrate, product]: is there such a reaction?"""
        return np.array([[(s, p) in self.kinds for p in metabolites] for s in metabolites], bool).reshape(
            len(metabolites), len(metabolites)
        )


@functools.cache
def load_reaction_db() -> ReactionDB:
    """Return the edges of all organisms."""
    kinds: dict[Edge, int] = {}
    for name, organism in load_organisms().items():
        for edges, low, high in zip(reaction_edges(name), organism.lower, organism.upper, strict=True):
            for s, p in edges:
                for edge, runs in (((s, p), high > 0), ((p, s), low < 0)):
                    if runs and edge[0] != edge[1]:
                        kinds[edge] = max(kinds.get(edge, 0), edge_kind(edge, bool(low < 0 < high)))
    return ReactionDB(kinds)


def graph_of_edges(edges: Iterable[Edge], nutrients: Sequence[str]) -> GraphSample:
    """Return a graph of no organism, such as a generated one; edge types are the reaction DB's, else forward only.

    A metabolite outside the cell that nothing consumes counts as secreted.
    """
    database = load_reaction_db()
    kinds = {edge: database.edge_type(*edge) or FORWARD_ONLY for edge in edges}
    consumed = {s for s, _ in kinds}
    secreted = {p for _, p in kinds if p.endswith("_e") and p not in consumed}
    return graph_of_kinds(kinds, "", tuple(nutrients), secreted)


def chemistry_table(vocabulary: Sequence[str]) -> dict[str, Any]:
    """Return what models.biochemistry.Chemistry.from_dict reads: composition and possible edges."""
    row = {m: i for i, m in enumerate(vocabulary)}
    edges = sorted((row[s], row[p], kind) for (s, p), kind in load_reaction_db().kinds.items() if s in row and p in row)
    return {
        "metabolites": list(vocabulary),
        "composition": [list(composition(m)) for m in vocabulary],
        "allowed_edges": [list(edge) for edge in edges],
    }
