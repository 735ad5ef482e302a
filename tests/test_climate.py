"""Climate: the embedded emulator's cubes and their summary."""

from __future__ import annotations

import builtins
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from data_pipeline import climate, planets
from data_pipeline.errors import InputError
from data_pipeline.variables import CLIMATE_FIELDS, LATITUDES, LONGITUDES, climate_field


@pytest.fixture(scope="module")
def cubes() -> np.ndarray:
    return climate.simulate(list(planets.sample_systems(6, 0)), seed=1)


def test_cubes_are_finite_and_inside_the_ranges_of_their_fields(cubes: np.ndarray) -> None:
    assert cubes.shape == (6, len(CLIMATE_FIELDS), LATITUDES, LONGITUDES)
    assert cubes.dtype == np.float32
    assert np.isfinite(cubes).all()
    low, high = (np.array([getattr(v, end) for v in CLIMATE_FIELDS], np.float32) for end in ("low", "high"))
    assert (cubes.min((0, 2, 3)) >= low).all()
    assert (cubes.max((0, 2, 3)) <= high).all()


def test_a_seed_gives_the_same_climate_and_another_seed_another(cubes: np.ndarray) -> None:
    some = list(planets.sample_systems(6, 0))
    np.testing.assert_array_equal(cubes, climate.simulate(some, seed=1))
    assert np.abs(cubes - climate.simulate(some, seed=2)).max() > 0.1


def test_a_planets_climate_does_not_depend_on_its_company(cubes: np.ndarray) -> None:
    some = list(planets.sample_systems(6, 0))
    np.testing.assert_array_equal(climate.simulate(some[3:4], seed=1)[0], cubes[3])


def test_the_night_side_absorbs_nothing_and_the_substellar_columns_most(cubes: np.ndarray) -> None:
    absorbed = cubes[:, climate_field("absorbed_shortwave_w_m2")].mean((0, 1))
    night = np.abs(climate.substellar_longitudes()) > 90
    assert absorbed[night].max() == 0
    assert np.abs(climate.substellar_longitudes()[absorbed.argmax()]) < 45


def test_area_weights_sum_to_one_and_favour_the_equator() -> None:
    weights = climate.area_weights()
    assert weights.sum() == pytest.approx(1.0)
    assert weights[0, 0] < weights[LATITUDES // 2, 0]


def test_a_half_warm_planet_has_half_its_surface_under_liquid_water() -> None:
    cube = np.zeros((len(CLIMATE_FIELDS), LATITUDES, LONGITUDES), np.float32)
    cube[0] = 250.0
    cube[0, :, : LONGITUDES // 2] = 300.0
    found = climate.diagnostics(cube, irradiance_w_m2=1000.0)
    assert found["liquid_water_share"] == pytest.approx(0.5)
    assert found["ice_share"] == pytest.approx(0.5)
    assert found["mean_surface_temperature_k"] == pytest.approx(275.0)
    assert found["bond_albedo"] == pytest.approx(1.0)  # absorbs nothing
    assert found["climate_state"] == "eyeball"


@pytest.mark.parametrize(("surface_k", "state"), [(250.0, "snowball"), (290.0, "globally temperate"), (350.0, "hot")])
def test_uniform_surfaces_have_the_state_of_their_temperature(surface_k: float, state: str) -> None:
    cube = np.full((len(CLIMATE_FIELDS), LATITUDES, LONGITUDES), surface_k, np.float32)
    assert climate.diagnostics(cube, 1000.0)["climate_state"] == state


def test_boiling_water_is_not_liquid() -> None:
    cube = np.full((len(CLIMATE_FIELDS), LATITUDES, LONGITUDES), 380.0, np.float32)
    assert not climate.liquid_water(cube).any()


def test_the_emulator_does_not_extrapolate() -> None:
    planet = replace(next(iter(planets.sample_systems(1, 0))), irradiance_w_m2=2000.0)
    with pytest.raises(InputError, match=r"irradiance_w_m2=2000 outside \[500, 1500\].*does not extrapolate"):
        climate.simulate([planet], 0)


def test_a_missing_emulator_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_clero(name: str, *rest: Any, **options: Any) -> Any:
        if name == "clero":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without_clero)
    climate._emulator.cache_clear()
    with pytest.raises(InputError, match=r"pip install clero"):
        climate.simulate(list(planets.sample_systems(1, 0)), 0)
    climate._emulator.cache_clear()
