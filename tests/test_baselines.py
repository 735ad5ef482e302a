"""Baselines do what their names say."""

from __future__ import annotations

import numpy as np

from data_pipeline.variables import ENVIRONMENT, ENVIRONMENT_NAMES, OBSERVABLES, PLANET, SPECTRAL_BINS
from trainers import baselines
from trainers.metrics import auroc
from trainers.records import Edges, Record


def record(environment: dict[str, float], edges: Edges, habitable: bool = True, planet: float = 0.0) -> Record:
    values = np.array([environment.get(v.name, v.low) for v in ENVIRONMENT], np.float32)
    return Record(
        sample_id="planet-0",
        system_id="system-0",
        split="train",
        habitable=habitable,
        planet=np.full(len(PLANET), planet, np.float32),
        spectrum_ppm=np.zeros((len(OBSERVABLES), SPECTRAL_BINS), np.float32),
        read_off=np.arange(8, dtype=np.float32),
        environment=values,
        organism="",
        nutrients=(),
        edges=edges,
    )


AEROBIC, ANAEROBIC = frozenset({("nadh_c", "o2_c")}), frozenset({("pyr_c", "lac__L_c")})


def test_the_nearest_environment_is_nearest_on_the_scale_that_networks_see() -> None:
    """O2 of 1e-6 bar is nearer to none than to 0.2 bar in bar, and half way to it on the logarithmic scale."""
    known = [record({"o2": 0.2}, AEROBIC), record({"o2": 0.0}, ANAEROBIC)]
    asked = np.tile(known[1].environment, (3, 1))
    asked[:, ENVIRONMENT_NAMES.index("o2")] = [0.0, 0.1, 1e-3]
    assert baselines.nearest_networks(known, asked) == [ANAEROBIC, AEROBIC, AEROBIC]


def test_a_planet_without_a_network_is_no_neighbour() -> None:
    known = [record({"o2": 0.0}, frozenset()), record({"o2": 0.2}, AEROBIC)]
    assert baselines.nearest_networks(known, known[0].environment[None]) == [AEROBIC]


def test_boosted_trees_find_a_threshold_in_a_planet_parameter() -> None:
    rng = np.random.default_rng(0)
    known, asked = rng.random((400, 3)), rng.random((200, 3))
    (answer,) = baselines.gradient_boosting(known, known[:, 1] > 0.6, asked)
    assert auroc(asked[:, 1] > 0.6, answer) > 0.99
    assert 0.0 <= answer.min() and answer.max() <= 1.0


def test_the_stronger_baseline_reads_every_bin_of_the_spectrum_too() -> None:
    records = [record({}, frozenset(), planet=2.0)]
    assert baselines.planet_parameters(records).shape == (1, len(PLANET))
    both = baselines.parameters_with_spectrum(records)
    assert both.shape == (1, len(PLANET) + len(OBSERVABLES) * SPECTRAL_BINS)
    assert (both[0, : len(PLANET)] == 2.0).all()


def test_features_are_what_is_read_off_beside_the_planet_parameters() -> None:
    row = baselines.parameters_with_features([record({}, frozenset(), planet=3.0)])[0]
    assert row.tolist() == [3.0] * len(PLANET) + list(range(8))
