from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data_pipeline import climate, planets, spectra
from data_pipeline.planets import Atmosphere, Planet
from data_pipeline.variables import WAVELENGTH_UM


@pytest.fixture(scope="module")
def scene() -> tuple[Planet, np.ndarray]:
    """A small planet of a small star under one bar of nitrogen with 1 % CO2."""
    planet = replace(
        next(p for p in planets.known_planets() if not planets.out_of_range(p)),
        atmosphere=Atmosphere(surface_pressure_bar=1.0, co2=0.01),
    )
    return planet, climate.simulate([planet], 0)[0]


def bin_at(wavelength_um: float) -> int:
    return int(np.searchsorted(WAVELENGTH_UM, wavelength_um)) - 1


def test_a_black_body_at_300_k_radiates_9_92_w_per_m2_sr_um_at_10_um() -> None:
    assert spectra.planck(np.array(10e-6), 300.0) * 1e-6 == pytest.approx(9.924, rel=1e-3)


def test_transit_is_a_little_more_than_the_bare_disc(scene: tuple[Planet, np.ndarray]) -> None:
    planet, cube = scene
    clean = spectra.observe(planet, cube, 0).clean_ppm[0]
    bare = 1e6 * (planet.radius_earth * 6.371e6 / (planet.star_radius_sun * 6.957e8)) ** 2
    assert (clean > bare).all() and clean.max() < 1.05 * bare


def test_carbon_dioxide_shows_at_4_3_um_and_only_when_there_is_some(scene: tuple[Planet, np.ndarray]) -> None:
    planet, cube = scene
    none = replace(planet, atmosphere=Atmosphere(surface_pressure_bar=1.0, co2=0.0))
    difference = spectra.observe(planet, cube, 0).clean_ppm[0] - spectra.observe(none, cube, 0).clean_ppm[0]
    assert difference[bin_at(4.3)] > 10 * abs(difference[bin_at(3.6)])
    assert difference[bin_at(15.0)] > 10 * abs(difference[bin_at(10.9)])


def test_ozone_shows_at_9_6_um(scene: tuple[Planet, np.ndarray]) -> None:
    planet, cube = scene
    ozone = replace(planet, atmosphere=Atmosphere(surface_pressure_bar=1.0, co2=0.01, o3=1e-6))
    difference = spectra.observe(ozone, cube, 0).clean_ppm - spectra.observe(planet, cube, 0).clean_ppm
    assert difference[0].argmax() in range(bin_at(9.3), bin_at(10.0) + 1)
    assert difference[1, bin_at(9.6)] < 0  # a cold absorber above a warm surface


def test_the_noise_has_the_stated_error_and_its_own_seed(scene: tuple[Planet, np.ndarray]) -> None:
    planet, cube = scene
    first, again, other = (spectra.observe(planet, cube, seed) for seed in (1, 1, 2))
    pull = (first.observed_ppm - first.clean_ppm) / first.error_ppm
    assert pull.std() == pytest.approx(1.0, abs=0.15) and abs(pull.mean()) < 0.2
    assert np.array_equal(first.observed_ppm, again.observed_ppm)
    assert np.array_equal(first.clean_ppm, other.clean_ppm) and not np.array_equal(
        first.observed_ppm, other.observed_ppm
    )


def test_the_levels_are_those_of_the_emulator() -> None:
    from clero.climate_analysis import pressure_levels

    assert spectra.level_pressures_pa(2.0) == pytest.approx(pressure_levels(2.0), rel=1e-6)
