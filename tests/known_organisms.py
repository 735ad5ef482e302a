"""Organisms of the packaged models that tests name, and what they do in an environment."""

from __future__ import annotations

from data_pipeline import flux_balance, metabolic_graph

ECOLI = "Escherichia coli K-12 MG1655"
METHANOSARCINA = "Methanosarcina barkeri Fusaro"
LJUNGDAHLII = "Clostridium ljungdahlii DSM 13528"
GEOBACTER = "Geobacter metallireducens GS-15"


def edges_of(organism: str, *nutrients: str) -> set[tuple[str, str]]:
    """Return the edges, by name, of the network that makes the most ATP from these nutrients."""
    active = flux_balance.solve(organism, tuple(sorted(nutrients)))
    assert active is not None
    graph = metabolic_graph.network_graph(active)
    return {(graph.metabolites[s], graph.metabolites[p]) for s, p in graph.edge_index.T}
