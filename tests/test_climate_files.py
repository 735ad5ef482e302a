"""NetCDF files of other models: real small files with values that are known by hand."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline import climate, climate_files, planet_table
from data_pipeline.errors import InputError
from data_pipeline.planets import Planet
from data_pipeline.spectra import level_pressures_pa
from data_pipeline.variables import LEVELS, climate_field

xarray = pytest.importorskip("xarray")
pytest.importorskip("netCDF4")
ROWS, COLUMNS = 46, 72  # of ROCKE-3D
LATITUDE = np.linspace(-90, 90, ROWS)
LONGITUDE = np.arange(COLUMNS) * 5.0 - 177.5
PRESSURE_HPA = np.array([1000.0, 850, 700, 500, 300, 200, 100, 50, 10])
TABLE = Path(__file__).parent.parent / "docs" / "five_planets.csv"


@pytest.fixture
def planet() -> Planet:
    return next(row.planet for row in planet_table.read_planets(TABLE) if row.planet.name == "TRAPPIST-1 e")


def light(noon: float) -> np.ndarray:
    zenith = np.cos(np.radians(LATITUDE))[:, None] * np.cos(np.radians(LONGITUDE - noon))
    return 700.0 * np.maximum(zenith, 0.0)


def cmip(noon: float = 0.0) -> Any:
    """A planet of 280 K ground and an air that cools by 40 K a decade of pressure, in the names of CMIP."""
    flat, high = np.ones((2, ROWS, COLUMNS)), np.ones((2, len(PRESSURE_HPA), ROWS, COLUMNS))
    temperature = (280.0 - 40.0 * np.log10(1000.0 / PRESSURE_HPA))[:, None, None] * high
    month = np.array([-5.0, 5.0])  # two times whose mean is the value
    fields = {
        "ts": (280.0 + month[:, None, None] * flat, "K", "surface_temperature"),
        "asr": (light(noon) * flat, "W m-2", "toa_net_downward_shortwave_flux"),
        "rlut": (231.0 * flat, "W m-2", "toa_outgoing_longwave_flux"),
        "ta": (temperature, "K", "air_temperature"),
        "hus": (2.0 * high, "g kg-1", "specific_humidity"),
        "cl": (25.0 * high, "%", "cloud_area_fraction_in_atmosphere_layer"),
        "ua": (12.0 * high, "m s-1", "eastward_wind"),
        "va": (-3.0 * high, "m/s", "northward_wind"),
    }
    return xarray.Dataset(
        {
            name: (
                ("time", "plev", "lat", "lon")[: 4 if values.ndim == 4 else 0] or ("time", "lat", "lon"),
                values,
                {"units": units, "standard_name": standard},
            )
            for name, (values, units, standard) in fields.items()
        },
        coords={
            "time": ("time", [15.0, 45.0], {"units": "days since 0001-01-01"}),
            "plev": ("plev", PRESSURE_HPA, {"units": "hPa", "standard_name": "air_pressure"}),
            "lat": ("lat", LATITUDE, {"units": "degrees_north"}),
            "lon": ("lon", LONGITUDE, {"units": "degrees_east"}),
        },
    )


def written(folder: Path, data: Any) -> Path:
    path = folder / "planet.nc"
    data.to_netcdf(path)
    return path


def profile(cube: np.ndarray, name: str) -> np.ndarray:
    return cube[climate_field(name) : climate_field(name) + LEVELS, 16, 30]


def test_units_times_and_levels_come_out_as_ours(tmp_path: Path, planet: Planet) -> None:
    cube = climate_files.read_cube(written(tmp_path, cmip()), planet)
    np.testing.assert_allclose(cube[climate_field("surface_temperature_k")], 280.0)
    np.testing.assert_allclose(cube[climate_field("outgoing_longwave_w_m2")], 231.0)
    expected = 280.0 - 40.0 * np.log10(1e5 / level_pressures_pa(1.0))
    np.testing.assert_allclose(profile(cube, "temperature_k"), expected, atol=0.5)  # held above 10 hPa
    np.testing.assert_allclose(profile(cube, "specific_humidity"), 0.002, rtol=1e-6)
    np.testing.assert_allclose(profile(cube, "cloud_fraction"), 0.25, rtol=1e-6)
    np.testing.assert_allclose(profile(cube, "eastward_wind_m_s"), 12.0)
    np.testing.assert_allclose(profile(cube, "northward_wind_m_s"), -3.0)
    mean = (cube[climate_field("absorbed_shortwave_w_m2")] * climate.area_weights()).sum()
    assert mean == pytest.approx(700.0 / 4, rel=0.01)  # a quarter of the sphere's light, whatever the grid


def test_a_substellar_point_elsewhere_is_turned_to_longitude_0(tmp_path: Path, planet: Planet) -> None:
    path = written(tmp_path, cmip(noon=120.0))
    absorbed = climate_files.read_cube(path, planet, 120.0)[climate_field("absorbed_shortwave_w_m2")].sum(0)
    assert np.average(climate.substellar_longitudes(), weights=absorbed) == pytest.approx(0.0, abs=0.1)
    with pytest.raises(InputError, match=r"light is centred at longitude 12., not at 0; put the substellar_longitude"):
        climate_files.read_cube(path, planet)


def test_light_on_every_side_is_no_locked_planet(tmp_path: Path, planet: Planet) -> None:
    data = cmip()
    data["asr"] = data["asr"] * 0 + 200.0
    with pytest.raises(InputError, match="on every side.*locked=no"):
        climate_files.read_cube(written(tmp_path, data), planet)


def as_cam(data: Any) -> Any:
    """The same planet in the names and hybrid levels of CAM (ExoCAM), top to bottom, on an even sphere of 1 bar."""
    share = PRESSURE_HPA[::-1] / 1000.0
    data = data.isel(plev=slice(None, None, -1)).rename(
        ts="TS", asr="FSNTOA", rlut="FLNT", ta="T", hus="Q", cl="CLOUD", ua="U", va="V", plev="lev"
    )
    for name in data.data_vars:
        data[name].attrs.pop("standard_name")
    data["Q"], data["CLOUD"] = data["Q"] / 1000.0, data["CLOUD"] / 100.0
    data["Q"].attrs["units"], data["CLOUD"].attrs["units"] = "kg/kg", "fraction"
    data = data.assign_coords(lev=("lev", share * 1000.0, {"units": "level", "long_name": "hybrid level"}))
    data["hyam"], data["hybm"] = ("lev", 0.3 * share), ("lev", 0.7 * share)
    data["P0"], data["PS"] = ((), 1e5, {"units": "Pa"}), (("time", "lat", "lon"), np.full((2, ROWS, COLUMNS), 1e5))
    return data


def as_rocke(data: Any) -> Any:
    """The same planet in the names of ROCKE-3D: Celsius, percent, a nominal pressure a layer, heat counted downward."""
    data = data.mean("time", keep_attrs=True).rename(
        ts="tsurf", asr="srnf_toa", rlut="trnf_toa", ta="temp", hus="q", cl="cldfrac", ua="ub", va="vb", plev="plm"
    )
    for name in data.data_vars:
        data[name].attrs.pop("standard_name")
    data["tsurf"], data["temp"] = data["tsurf"] - 273.15, data["temp"] - 273.15
    data["tsurf"].attrs["units"] = data["temp"].attrs["units"] = "C"
    data["q"].attrs["units"], data["cldfrac"].attrs["units"] = "g kg-1", "%"
    data["trnf_toa"] = -data["trnf_toa"]
    return data.assign_coords(plm=("plm", PRESSURE_HPA, {"units": "mb"}))


def as_sigma(data: Any) -> Any:
    """The same planet on sigma levels with incoming and reflected light, as ExoPlaSim's own files have it."""
    data = data.assign_coords(plev=("plev", PRESSURE_HPA / 1000.0, {"units": "1"})).rename(plev="lev")
    data["rsdt"], data["rsut"] = data["asr"] * 1.25, data["asr"] * 0.25
    data["rsdt"].attrs = {"standard_name": "toa_incoming_shortwave_flux", "units": "W m-2"}
    data["rsut"].attrs = {"standard_name": "toa_outgoing_shortwave_flux", "units": "W m-2"}
    data["ps"] = (("time", "lat", "lon"), np.full((2, ROWS, COLUMNS), 1000.0), {"units": "hPa"})
    return data.drop_vars("asr")


@pytest.mark.parametrize("other", [as_cam, as_rocke, as_sigma])
def test_the_dialects_of_models_say_the_same(tmp_path: Path, planet: Planet, other: Callable[[Any], Any]) -> None:
    (tmp_path / "a").mkdir()
    expected = climate_files.read_cube(written(tmp_path / "a", cmip()), planet)
    found = climate_files.read_cube(written(tmp_path, other(cmip())), planet)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def drop(name: str) -> Callable[[Any], Any]:
    return lambda data: data.drop_vars(name)


def units(name: str, text: str) -> Callable[[Any], Any]:
    def change(data: Any) -> Any:
        data[name].attrs["units"] = text
        return data

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (drop("hus"), "no specific_humidity: no variable has the standard_name specific_humidity or is called hus, q"),
        (lambda d: d.assign(ts=d["ts"].where(d["lat"] > 0)), "temperature_k has no value on 50 % of the sphere"),
        (drop("asr"), "no absorbed_shortwave_w_m2: .*set its standard_name"),
        (units("ts", "furlong"), "ts .surface_temperature_k. has units 'furlong'; known are k, kelvin, degc"),
        (units("cl", "1"), r"cloud_fraction runs from 25 to 25, outside \[0, 1\] 1; set its units attribute right"),
        (units("plev", "km"), "levels plev have units 'km' and run from 10 to 1000: neither pressures nor sigma"),
        (lambda d: d.rename(lat="j").drop_vars("j"), "no 1-D latitude: set a coordinate's units to degrees_north"),
        (lambda d: d.isel(lat=0), "no 1-D latitude"),
        (lambda d: d.drop_vars("plev"), "the levels plev have no coordinate"),
        (lambda d: d.assign(ts=d["ts"].isel(lon=0)), "ts .surface_temperature_k. has no dimension lon"),
        (lambda d: d.assign(ua=d["ua"].expand_dims(run=3)), "ua .eastward_wind_m_s. has the dimension run beside"),
        (lambda d: d.assign(ta=d["ta"].expand_dims(run=3)), "ta has the dimensions .*needed are level, latitude"),
        (lambda d: d.assign(ua=d["ua"].isel(plev=slice(2, 5)).rename(plev="p2")), "ua .*has no dimension plev"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_the_way_out(
    tmp_path: Path, planet: Planet, change: Callable[[Any], Any], complaint: str
) -> None:
    path = written(tmp_path, change(cmip()))
    with pytest.raises(InputError, match=complaint) as caught:
        climate_files.read_cube(path, planet)
    assert str(caught.value).startswith(f"climate={path}: ") and "\n" not in str(caught.value)


def test_a_file_that_is_no_netcdf_is_refused(tmp_path: Path, planet: Planet) -> None:
    (tmp_path / "planet.nc").write_text("not a climate")
    with pytest.raises(InputError, match="cannot be read as NetCDF"):
        climate_files.read_cube(tmp_path / "planet.nc", planet)


def test_without_xarray_the_command_is_named(planet: Planet, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name == "xarray":
            raise ImportError(name)
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="run `pip install xarray netCDF4`"):
        climate_files.read_cube("planet.nc", planet)
