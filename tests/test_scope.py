"""Scope expansion on reactions that a person can follow."""

from __future__ import annotations

from data_pipeline.scope import scope

INTO_THE_CELL = [("glc__D_e", "glc__D_p"), ("glc__D_p", "glc__D_c"), ("glc__D_c", "g6p_c")]  # hexokinase: ATP is free
CITRATE_SYNTHASE = [("accoa_c", "cit_c"), ("oaa_c", "cit_c")]


def test_what_follows_from_a_nutrient_step_by_step_is_reached() -> None:
    assert scope(INTO_THE_CELL, ("glc__D_e",)) == 1.0
    assert scope(INTO_THE_CELL, ("ac_e",)) == 0.0
    assert scope(INTO_THE_CELL, ("glc__D_p",)) == 3 / 4  # nothing flows back out


def test_a_reaction_waits_for_all_its_substrates() -> None:
    assert scope(CITRATE_SYNTHASE, ("accoa_c",)) == 1 / 3
    assert scope(CITRATE_SYNTHASE, ("accoa_c", "oaa_c")) == 1.0


def test_a_reaction_needs_all_its_edges() -> None:
    assert scope(CITRATE_SYNTHASE[:1], ("accoa_c", "oaa_c")) == 1 / 2


def test_an_invented_edge_reaches_nothing() -> None:
    assert scope([*INTO_THE_CELL, ("g6p_c", "ch4_e")], ("glc__D_e",)) == 4 / 5
    assert scope([("nowhere", "g6p_c")], ("glc__D_e",)) == 0.0


def test_a_network_without_edges_covers_nothing() -> None:
    assert scope([], ("glc__D_e",)) == 0.0
