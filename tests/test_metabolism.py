"""Metabolism: nutrients, viability, flux balance, graphs, the reaction database and the oracle, on the real models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline import feasibility, flux_balance, habitat, metabolic_graph, reaction_db, reaction_tables
from data_pipeline.environment import parse_environment
from data_pipeline.errors import InputError
from data_pipeline.variables import EDGE_TYPES, MAX_METABOLITES, NODE_FEATURES

ECOLI = "Escherichia coli K-12 MG1655"
METHANOSARCINA = "Methanosarcina barkeri Fusaro"
LJUNGDAHLII = "Clostridium ljungdahlii DSM 13528"
GEOBACTER = "Geobacter metallireducens GS-15"


def edges_of(organism: str, *nutrients: str) -> set[tuple[str, str]]:
    active = flux_balance.solve(organism, tuple(sorted(nutrients)))
    assert active is not None
    graph = metabolic_graph.network_graph(active)
    return {(graph.metabolites[s], graph.metabolites[p]) for s, p in graph.edge_index.T}


def test_no_organism_makes_atp_from_salts_alone() -> None:
    assert len(flux_balance.load_organisms()) == 19  # of 20: one model makes ATP from nothing and is left out
    assert all(flux_balance.solve(name, ()) is None for name in flux_balance.load_organisms())


def test_respiration_of_glucose_makes_about_ten_times_the_atp_of_fermentation() -> None:
    with_o2 = flux_balance.solve(ECOLI, ("glc__D_e", "o2_e"))
    without = flux_balance.solve(ECOLI, ("glc__D_e",))
    assert with_o2 is not None and without is not None
    assert with_o2.atp == pytest.approx(235.0, rel=0.01)  # 10 mmol glucose, 23.5 ATP each in iML1515
    assert without.atp == pytest.approx(25.0, rel=0.02)


@pytest.mark.parametrize(
    ("organism", "nutrients"),
    [
        (METHANOSARCINA, ("co2_e", "h2_e")),
        (METHANOSARCINA, ("meoh_e",)),
        (LJUNGDAHLII, ("co2_e", "h2_e")),
        (LJUNGDAHLII, ("co_e",)),
        (GEOBACTER, ("ac_e", "fe3_e")),
    ],
)
def test_anaerobes_live_on_what_they_are_known_for(organism: str, nutrients: tuple[str, ...]) -> None:
    assert flux_balance.solve(organism, nutrients) is not None


def test_methanogenesis_secretes_methane() -> None:
    active = flux_balance.solve(METHANOSARCINA, ("co2_e", "h2_e"))
    assert active is not None
    assert "ch4_e" in active.secreted


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


def test_nutrients_follow_the_thresholds_of_an_environment() -> None:
    oxic = habitat.nutrients(parse_environment("o2=0.2,redox=0.6,ph=7,glucose=0.001,co2=0.001"))
    assert {"o2_e", "no3_e", "glc__D_e", "co2_e"} <= set(oxic)
    anoxic = habitat.nutrients(parse_environment("o2=0,redox=-0.2,ph=7,acetate=0.001,h2=0.01"))
    assert {"ac_e", "h2_e"} <= set(anoxic)
    assert not {"o2_e", "no3_e", "fe3_e"} & set(anoxic)


def test_only_the_most_concentrated_organics_are_offered() -> None:
    text = "glucose=0.004,acetate=0.003,glycine=0.002,formate=0.001,ethanol=0.0005"
    offered = set(habitat.nutrients(parse_environment(text)))
    assert {"glc__D_e", "ac_e"} <= offered
    assert "etoh_e" not in offered


def test_without_oxygen_nitrate_and_ferric_iron_go_too() -> None:
    assert habitat.anoxic(("ac_e", "fe3_e", "no3_e", "o2_e")) == ("ac_e",)


def test_growth_ranges_decide_who_lives_where() -> None:
    hot = habitat.viable_organisms(parse_environment("temperature_k=350,ph=6.5,o2=0,redox=-0.3"))
    assert hot == ["Thermotoga maritima MSB8"]
    mild = habitat.viable_organisms(parse_environment("temperature_k=310,ph=7,o2=0,redox=-0.3"))
    assert METHANOSARCINA in mild
    assert "Pseudomonas putida KT2440" not in mild  # aerobic
    assert METHANOSARCINA not in habitat.viable_organisms(parse_environment("temperature_k=310,ph=7,o2=0.2"))


def test_real_networks_are_feasible_and_their_edges_known() -> None:
    database = reaction_db.load_reaction_db()
    for organism, nutrients in (
        (ECOLI, ("glc__D_e", "o2_e")),
        (METHANOSARCINA, ("meoh_e",)),
        (GEOBACTER, ("ac_e", "fe3_e")),
    ):
        edges = edges_of(organism, *nutrients)
        assert feasibility.atp_feasible(edges, nutrients)
        assert all(database.has_edge(*edge) for edge in edges)


def test_a_network_is_not_feasible_without_its_food_nor_backwards_nor_empty() -> None:
    edges = edges_of(METHANOSARCINA, "meoh_e")
    assert not feasibility.atp_feasible(edges, ("glc__D_e",))
    assert not feasibility.atp_feasible({(p, s) for s, p in edges}, ("meoh_e",))
    assert not feasibility.atp_feasible(set(), ("glc__D_e", "o2_e"))


def test_the_database_masks_what_no_reaction_makes() -> None:
    database = reaction_db.load_reaction_db()
    mask = database.mask(["g6p_c", "f6p_c", "ch4_e"])
    assert mask[0, 1] and mask[1, 0]
    assert not mask[0, 2] and not mask[2, 0]
    assert database.edge_type("g6p_c", "f6p_c") == EDGE_TYPES.index("reversible")
    assert database.edge_type("g6p_c", "ch4_e") == 0


def test_the_chemistry_table_is_json_and_counts_atoms() -> None:
    table = json.loads(json.dumps(reaction_db.chemistry_table(["f6p_c", "g6p_c"])))
    assert table["metabolites"] == ["f6p_c", "g6p_c"]
    assert table["composition"][0][:6] == [6.0, 11.0, 0.0, 9.0, 1.0, 0.0]
    assert {(s, p) for s, p, _ in table["allowed_edges"]} == {(0, 1), (1, 0)}
    assert table["max_in"] == [1, 1]


def test_growth_ranges_are_cited_row_by_row() -> None:
    rows = reaction_tables.growth_ranges()
    assert len(rows) == 20
    assert all(row["citation"] and float(row["min_ph"]) < float(row["max_ph"]) for row in rows)


def test_formulas_are_counted() -> None:
    assert reaction_tables.parse_formula("C6H12O6") == {"C": 6.0, "H": 12.0, "O": 6.0}
    assert reaction_tables.base_of("glc__D_e") == "glc__D"


def test_missing_tables_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install --no-deps carveme"):
        reaction_tables.carveme_data()


def test_a_cache_folder_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EXOBIOME_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="EXOBIOME_CACHE"):
        reaction_tables.cache_dir()
    with pytest.raises(InputError, match="cannot write"):
        reaction_tables.write_atomically(tmp_path / "file" / "x.npz", b"")


def test_organisms_keep_their_flux_limits_in_order() -> None:
    for organism in flux_balance.load_organisms().values():
        assert np.all(organism.lower <= organism.upper)
        assert organism.stoichiometry.shape == (len(organism.metabolites), len(organism.reactions))
