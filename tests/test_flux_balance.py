"""Flux balance of the real models: who makes how much ATP from what."""

from __future__ import annotations

import numpy as np
import pytest
from known_organisms import ECOLI, GEOBACTER, LJUNGDAHLII, METHANOSARCINA

from data_pipeline import flux_balance


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


def test_organisms_keep_their_flux_limits_in_order() -> None:
    for organism in flux_balance.load_organisms().values():
        assert np.all(organism.lower <= organism.upper)
        assert organism.stoichiometry.shape == (len(organism.metabolites), len(organism.reactions))
