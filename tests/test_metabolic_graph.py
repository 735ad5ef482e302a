"""The graph of an active network: edges in the direction of the flux, features of the nodes."""

from __future__ import annotations

import pytest
from known_organisms import ECOLI, METHANOSARCINA, edges_of

from data_pipeline import flux_balance, metabolic_graph
from data_pipeline.variables import EDGE_TYPES, MAX_METABOLITES, NODE_FEATURES


def test_edges_run_from_substrate_to_product_in_the_direction_of_the_flux() -> None:
    edges = edges_of(ECOLI, "glc__D_e", "o2_e")
    assert ("g6p_c", "f6p_c") in edges
    assert ("f6p_c", "g6p_c") not in edges
    assert ("o2_e", "o2_p") in edges or ("o2_e", "o2_c") in edges


def test_features_say_what_is_supplied_and_what_is_secreted() -> None:
    active = flux_balance.solve(ECOLI, ("glc__D_e",))
    assert active is not None
    graph = metabolic_graph.network_graph(active)
    feature = dict(zip(graph.metabolites, graph.features, strict=True))
    glucose = feature["glc__D_e"]
    assert glucose[:3].tolist() == [6.0, 12.0, 0.0]
    assert glucose[NODE_FEATURES.index("mass_da")] == pytest.approx(180.16, abs=0.01)
    assert glucose[NODE_FEATURES.index("supplied")] == 1
    assert {m for m, f in feature.items() if f[NODE_FEATURES.index("end_product")]} & {"ac_e", "etoh_e", "for_e"}
    assert len(graph.metabolites) <= MAX_METABOLITES
    assert set(graph.edge_type.tolist()) <= set(range(1, len(EDGE_TYPES)))


def test_a_vocabulary_numbers_the_metabolites() -> None:
    active = flux_balance.solve(METHANOSARCINA, ("meoh_e",))
    assert active is not None
    graph = metabolic_graph.network_graph(active)
    rows = {m: 7 + i for i, m in enumerate(graph.metabolites)}
    assert metabolic_graph.with_vocabulary(graph, rows).metabolite_index.tolist() == list(rows.values())
