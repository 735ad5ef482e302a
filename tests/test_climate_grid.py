"""Fields of any grid on ours: means over cells stay, levels are where they should be."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline import climate, climate_grid
from data_pipeline.spectra import level_pressures_pa
from data_pipeline.variables import LATITUDES, LEVELS, LONGITUDES, climate_field


def test_a_field_of_one_value_stays_it_on_any_grid() -> None:
    for rows, columns in ((19, 36), (46, 72), (96, 144), (32, 1)):
        field = np.full((3, rows, columns), 7.0)
        found = climate_grid.regrid(field, np.linspace(-90, 90, rows), np.arange(columns) * 360.0 / columns)
        np.testing.assert_allclose(found, 7.0)


@pytest.mark.parametrize(("rows", "columns"), [(36, 72), (90, 144), (18, 36)])
def test_the_mean_over_the_sphere_is_kept(rows: int, columns: int) -> None:
    edges = np.linspace(-90, 90, rows + 1)
    area = np.diff(np.sin(np.radians(edges)))[:, None] / 2 / columns
    field = np.random.default_rng(0).random((rows, columns))
    found = climate_grid.regrid(field, (edges[1:] + edges[:-1]) / 2, (np.arange(columns) + 0.5) * 360.0 / columns)
    assert (found * climate.area_weights()).sum() == pytest.approx((field * area).sum(), rel=1e-9)


def test_our_own_grid_comes_back_whatever_the_order_of_its_axes() -> None:
    latitude = np.degrees(np.arcsin(np.polynomial.legendre.leggauss(LATITUDES)[0]))
    field = np.random.default_rng(1).random((LATITUDES, LONGITUDES))
    longitude = climate.substellar_longitudes()
    np.testing.assert_allclose(climate_grid.regrid(field, latitude, longitude), field, atol=1e-9)
    found = climate_grid.regrid(field[::-1], latitude[::-1], longitude % 360)
    np.testing.assert_allclose(found, field, atol=1e-9)


def test_a_cell_without_a_value_takes_no_part() -> None:
    latitude, longitude = np.linspace(-88, 88, 45), np.arange(72) * 5.0
    field = np.full((45, 72), 3.0)
    field[10, 20] = np.nan
    np.testing.assert_allclose(climate_grid.regrid(field, latitude, longitude), 3.0)


def test_levels_are_interpolated_in_log_pressure_and_held_outside() -> None:
    pressure = np.array([1000e2, 100e2])  # one decade: 250 K at the bottom, 200 K at its top
    one = {name: np.zeros((2, 1, 1)) for name in ("specific_humidity", "cloud_fraction")}
    one |= {name: np.zeros((2, 1, 1)) for name in ("eastward_wind_m_s", "northward_wind_m_s")}
    one["temperature_k"] = np.array([250.0, 200.0]).reshape(2, 1, 1)
    surface = {
        "surface_temperature_k": np.full((1, 1), 280.0),
        "absorbed_shortwave_w_m2": np.full((1, 1), 240.0),
        "outgoing_longwave_w_m2": np.full((1, 1), 900.0),  # beyond the range of the field
    }
    cube = climate_grid.to_cube(surface, one, pressure, np.zeros(1), np.zeros(1), 1.0)
    assert cube.shape[1:] == (LATITUDES, LONGITUDES) and cube.dtype == np.float32
    level = level_pressures_pa(1.0)
    expected = 250.0 - 50.0 * np.clip(np.log10(1e5 / level), 0.0, 1.0)
    start = climate_field("temperature_k")
    np.testing.assert_allclose(cube[start : start + LEVELS, 0, 0], expected, rtol=1e-6)
    assert cube[climate_field("outgoing_longwave_w_m2")].max() == 500.0


def test_a_level_below_ground_counts_as_absent_in_its_column() -> None:
    pressure = np.array([950e2, 500e2])
    field = np.array([[[np.nan, 290.0]], [[250.0, 250.0]]])
    found = climate_grid._at_levels(field, pressure, np.log(np.array([950e2])))
    np.testing.assert_allclose(found[0, 0], [250.0, 290.0])
