"""What an environment offers and who stands it."""

from __future__ import annotations

from known_organisms import METHANOSARCINA

from data_pipeline import habitat
from data_pipeline.environment import parse_environment


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
