"""Read the climate of a planet from a CF NetCDF file of any general circulation model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.climate import substellar_longitudes
from data_pipeline.climate_grid import to_cube
from data_pipeline.errors import InputError
from data_pipeline.planets import Planet
from data_pipeline.variables import CLIMATE_FIELDS, PROFILE_VARIABLES, SURFACE_VARIABLES, climate_field

INSTALL = "pip install xarray netCDF4"
CENTRE_TOLERANCE_DEG = 25.0  # of the lit half from the substellar point that the table states


class Names(NamedTuple):
    """How files call a quantity: the CF standard name, and names in use (CMIP, CAM and ExoCAM, ROCKE-3D, ExoPlaSim)."""

    standard: tuple[str, ...]
    common: tuple[str, ...]  # compared without case


VARIABLES: dict[str, Names] = {
    "surface_temperature_k": Names(("surface_temperature",), ("ts", "tsurf", "tskin", "skt", "surface_temperature")),
    "absorbed_shortwave_w_m2": Names(
        ("toa_net_downward_shortwave_flux",), ("asr", "rst", "fsntoa", "fsnt", "srnf_toa", "swnet_toa")
    ),
    "outgoing_longwave_w_m2": Names(
        ("toa_outgoing_longwave_flux", "toa_net_upward_longwave_flux", "toa_net_downward_longwave_flux"),
        ("olr", "rlut", "flut", "flnt", "trnf_toa", "ttr"),
    ),
    "temperature_k": Names(("air_temperature",), ("ta", "t", "temp", "temperature", "air_temperature")),
    "specific_humidity": Names(("specific_humidity",), ("hus", "q", "shum", "qv", "specific_humidity")),
    "cloud_fraction": Names(
        ("cloud_area_fraction_in_atmosphere_layer",), ("cl", "cloud", "cld", "clc", "cldfrac", "cloud_fraction")
    ),
    "eastward_wind_m_s": Names(("eastward_wind",), ("ua", "u", "ub", "uwnd", "eastward_wind")),
    "northward_wind_m_s": Names(("northward_wind",), ("va", "v", "vb", "vwnd", "northward_wind")),
}
INCOMING = Names(("toa_incoming_shortwave_flux",), ("rsdt", "solin", "fsdt", "incsw_toa"))
REFLECTED = Names(("toa_outgoing_shortwave_flux",), ("rsut", "fsutoa", "swup_toa"))
SURFACE_PRESSURE = Names(("surface_air_pressure",), ("ps", "psurf", "sp", "prsurf"))
PRESSURE = Names(("air_pressure",), ("pfull", "p_3d", "pmid", "plm_3d", "pressure"))
# Unit -> factor to ours; compared in lower case without blanks, ** and ^.
UNITS: dict[str, dict[str, float]] = {
    "K": {"k": 1.0, "kelvin": 1.0, "degc": 1.0, "c": 1.0, "celsius": 1.0},
    "W m-2": {"wm-2": 1.0, "w/m2": 1.0, "kgs-3": 1.0},
    "kg kg-1": {"kgkg-1": 1.0, "kg/kg": 1.0, "1": 1.0, "gkg-1": 1e-3, "g/kg": 1e-3},
    "1": {"1": 1.0, "fraction": 1.0, "0-1": 1.0, "%": 0.01, "percent": 0.01},
    "m s-1": {"ms-1": 1.0, "m/s": 1.0, "kmh-1": 1 / 3.6},
    "Pa": {"pa": 1.0, "hpa": 100.0, "mb": 100.0, "mbar": 100.0, "millibars": 100.0, "kpa": 1e3, "bar": 1e5},
}
CELSIUS = {"degc": 273.15, "c": 273.15, "celsius": 273.15}  # added to K


def read_cube(path: str | Path, planet: Planet, substellar_longitude: float = 0.0) -> np.ndarray:
    """Return the climate cube (C H W) of a file: the mean over its times, on our grid and levels.

    Variables are found by CF standard name, else by a name in use. Levels are isobars, sigma or hybrid coordinates, or
    a pressure field. Absorbed light may be given as incoming and reflected.

    Args:
        path: One planet's file.
        planet: Whose surface pressure the levels are relative to.
        substellar_longitude: Of the file's grid, degrees; matters when the planet is locked.

    Raises:
        InputError: The file or the library is missing, it has no such variable, coordinate or unit, a value is outside
            the range of its variable, or the light of a locked planet is not centred where it should be.
    """
    try:
        import xarray
    except ImportError:
        raise InputError(f"climate={path}: reading NetCDF needs xarray; run `{INSTALL}`") from None
    try:
        with xarray.open_dataset(path, decode_times=False) as data:
            reader = _Reader(Path(path), data)
            cube, longitude = reader.cube(planet, substellar_longitude)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"climate={path}: cannot be read as NetCDF ({reason})") from None
    for variable, field in zip(CLIMATE_FIELDS, cube, strict=True):
        if not np.isfinite(field).all():
            share = 100.0 * (1.0 - np.isfinite(field).mean())
            raise InputError(f"climate={path}: {variable.name} has no value on {share:.0f} % of the sphere; fill it in")
    if planet.locked:
        _require_noon(path, cube, longitude, substellar_longitude)
    return cube


class _Reader:
    """One open file."""

    def __init__(self, path: Path, data: Any) -> None:
        self.path, self.data = path, data
        self.latitude = self._axis("latitude", ("degrees_north", "degree_north"), ("lat", "latitude", "nav_lat"))
        self.longitude = self._axis("longitude", ("degrees_east", "degree_east"), ("lon", "longitude", "nav_lon"))

    def cube(self, planet: Planet, substellar_longitude: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the cube and the longitudes of the file, east of the substellar point."""
        longitude = np.asarray(self.data[self.longitude].values, float) - substellar_longitude
        surface = {v.name: self._surface(v.name, v.unit) for v in SURFACE_VARIABLES}
        found = {v.name: self._need(v.name) for v in PROFILE_VARIABLES}
        level = self._level(found.values())
        profiles = {v.name: self._field(found[v.name], v.name, v.unit, level) for v in PROFILE_VARIABLES}
        pressure_pa = self._pressure(level, planet)
        grid = profiles["temperature_k"].shape
        for name, values in profiles.items():
            if values.shape != grid:
                raise self._error(
                    f"{found[name]} has {values.shape} levels, latitudes and longitudes, "
                    f"{found['temperature_k']} has {grid}; bring them to one grid"
                )
        if pressure_pa.ndim == 1 and len(pressure_pa) != grid[0]:
            raise self._error(f"{len(pressure_pa)} pressures for {grid[0]} levels")
        for variable in (*SURFACE_VARIABLES, *PROFILE_VARIABLES):
            self._require_range(variable, (surface | profiles)[variable.name])
        latitude = np.asarray(self.data[self.latitude].values, float)
        return to_cube(
            surface, profiles, pressure_pa, latitude, longitude, planet.atmosphere.surface_pressure_bar
        ), longitude

    # --- what is where ---
    def _find(self, names: Names) -> str | None:
        for standard in names.standard:
            for name, variable in self.data.variables.items():
                if variable.attrs.get("standard_name") == standard:
                    return str(name)
        lower = {str(name).lower(): str(name) for name in self.data.variables}
        return next((lower[name] for name in names.common if name in lower), None)

    def _need(self, quantity: str) -> str:
        names = VARIABLES[quantity]
        found = self._find(names)
        if found is None:
            raise self._error(
                f"no {quantity}: no variable has the standard_name {' or '.join(names.standard)} or is called "
                f"{', '.join(names.common)}; rename one (ncrename) or set its standard_name (ncatted)"
            )
        return found

    def _axis(self, standard: str, units: Sequence[str], common: Sequence[str]) -> str:
        for name, variable in self.data.variables.items():
            if variable.ndim == 1 and (
                variable.attrs.get("standard_name") == standard or variable.attrs.get("units") in units
            ):
                return str(name)
        lower = {str(n).lower(): str(n) for n, v in self.data.variables.items() if v.ndim == 1}
        for name in common:
            if name in lower:
                return lower[name]
        raise self._error(f"no 1-D {standard}: set a coordinate's units to {units[0]}, or regrid to latitudes (cdo)")

    def _level(self, names: Iterable[str]) -> str:
        """Return the dimension of the levels: what the profiles have beside latitude, longitude and time."""
        for name in names:
            variable = self.data[name]
            flat = {*self.data[self.latitude].dims, *self.data[self.longitude].dims, *self._times(variable)}
            left = [str(d) for d in variable.dims if d not in flat]
            if len(left) == 1:
                return left[0]
            raise self._error(f"{name} has the dimensions {variable.dims}; needed are level, latitude and longitude")
        raise AssertionError

    def _times(self, variable: Any) -> list[str]:
        found = []
        for name in map(str, variable.dims):
            attributes = self.data[name].attrs if name in self.data.variables else {}
            since = " since " in str(attributes.get("units", ""))
            if since or attributes.get("standard_name") == "time" or name.lower() in ("time", "month", "record"):
                found.append(name)
        return found

    # --- values ---
    def _surface(self, quantity: str, unit: str) -> np.ndarray:
        if quantity == "absorbed_shortwave_w_m2" and self._find(VARIABLES[quantity]) is None:
            incoming, reflected = self._find(INCOMING), self._find(REFLECTED)
            if incoming and reflected:
                return self._field(incoming, quantity, unit) - np.abs(self._field(reflected, quantity, unit))
        values = self._field(self._need(quantity), quantity, unit)
        if quantity == "outgoing_longwave_w_m2" and np.nanmean(values) < 0:
            values = -values  # counted downward
        return values

    def _field(self, name: str, quantity: str, unit: str, level: str | None = None) -> np.ndarray:
        """Return h w, or p h w with `level`, in our unit, the mean over time."""
        variable = self.data[name]
        order = [d for d in (level, *self.data[self.latitude].dims, *self.data[self.longitude].dims) if d is not None]
        for dimension in order:
            if dimension not in variable.dims:
                raise self._error(f"{name} ({quantity}) has no dimension {dimension}, only {variable.dims}")
        variable = variable.mean([d for d in self._times(variable) if d not in order])
        extra = [d for d in variable.dims if d not in order]
        if any(variable.sizes[d] > 1 for d in extra):
            raise self._error(f"{name} ({quantity}) has the dimension {extra[0]} beside {order}; select one of it")
        values = variable.squeeze([d for d in extra]).transpose(*order).values.astype(float)
        factor, offset = self._unit(name, quantity, unit)
        return values * factor + offset

    def _unit(self, name: str, quantity: str, unit: str) -> tuple[float, float]:
        theirs = self.data[name].attrs.get("units")
        if theirs is None:
            return 1.0, 0.0  # taken as ours; the range is checked
        key = str(theirs).lower().replace(" ", "").replace("**", "").replace("^", "")
        if key not in UNITS[unit]:
            raise self._error(
                f"{name} ({quantity}) has units {theirs!r}; known are {', '.join(UNITS[unit])}: convert it to {unit}"
            )
        return UNITS[unit][key], CELSIUS.get(key, 0.0)

    def _require_range(self, variable: Any, values: np.ndarray) -> None:
        slack = 0.02 * (variable.high - variable.low) if variable.unit != "kg kg-1" else 1e-3
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        if not (variable.low - slack <= low and high <= variable.high + slack):
            raise self._error(
                f"{variable.name} runs from {low:.4g} to {high:.4g}, outside [{variable.low:g}, {variable.high:g}] "
                f"{variable.unit}; set its units attribute right, or mask what is no value"
            )

    # --- levels ---
    def _pressure(self, level: str, planet: Planet) -> np.ndarray:
        """Return the pressure of the levels in Pa: p, or p h w."""
        field = self._find(PRESSURE)
        if field and level in self.data[field].dims and self.data[field].ndim >= 3:
            return self._field(field, "pressure", "Pa", level)
        surface_name = self._find(SURFACE_PRESSURE)
        surface = (
            self._field(surface_name, "surface pressure", "Pa")
            if surface_name
            else np.full((1, 1), planet.atmosphere.surface_pressure_bar * 1e5)
        )
        a, b = self._hybrid(level)
        if b is not None:
            return a[:, None, None] + b[:, None, None] * surface
        if level not in self.data.variables:
            raise self._error(f"the levels {level} have no coordinate; give pressures, sigma, or hyam and hybm")
        values = np.asarray(self.data[level].values, float)
        units = str(self.data[level].attrs.get("units", "")).strip().lower()
        if units in UNITS["Pa"]:
            return values * UNITS["Pa"][units]
        if values.min() > 0 and values.max() <= 1.0:  # sigma
            return values[:, None, None] * surface
        raise self._error(
            f"the levels {level} have units {units!r} and run from {values.min():g} to {values.max():g}: neither "
            "pressures nor sigma; set the units to Pa, hPa or bar, or add a variable with standard_name air_pressure"
        )

    def _hybrid(self, level: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the pressure part in Pa and the share of the surface pressure of hybrid levels."""
        lower = {str(n).lower(): str(n) for n, v in self.data.variables.items() if v.dims == (level,)}
        if "hybm" in lower and "hyam" in lower:
            reference = {str(n).lower(): str(n) for n in self.data.variables}.get("p0")
            p0 = float(self.data[reference].values) if reference else 1e5
            return np.asarray(self.data[lower["hyam"]].values, float) * p0, np.asarray(
                self.data[lower["hybm"]].values, float
            )
        if "ap" in lower and "b" in lower:
            return np.asarray(self.data[lower["ap"]].values, float), np.asarray(self.data[lower["b"]].values, float)
        return np.zeros(0), None

    def _error(self, words: str) -> InputError:
        return InputError(f"climate={self.path}: {words}")


def _require_noon(path: str | Path, cube: np.ndarray, longitude: np.ndarray, stated: float) -> None:
    """Refuse a locked planet whose light is centred elsewhere than at our longitude 0."""
    light = cube[climate_field("absorbed_shortwave_w_m2")].sum(0)
    lit = light > 0.01 * light.max()  # a half, whatever the clouds do
    angle = np.degrees(np.angle((lit * np.exp(1j * np.radians(substellar_longitudes()))).sum()))
    if light.max() <= 0 or abs(angle) > CENTRE_TOLERANCE_DEG or lit.mean() > 0.75:
        noon = (angle + stated) % 360.0
        where = f"centred at longitude {noon:.0f}" if lit.mean() <= 0.75 else "on every side"
        raise InputError(
            f"climate={path}: the absorbed light is {where}, not at {stated:g}; put the substellar_longitude of the "
            "file into the table of planets, or locked=no"
        )
