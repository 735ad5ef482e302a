"""Simulate the climate of planets with the embedded emulator of general circulation models, and sum a cube up."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from data_pipeline.errors import InputError
from data_pipeline.planets import Planet, out_of_range
from data_pipeline.variables import CLIMATE_FIELDS, LATITUDES, LEVELS, LONGITUDES, climate_field

FREEZING_K, BOILING_K = 273.15, 373.15
_SURFACE = ("surface_temperature", "asr", "olr")
_PROFILES = ("temperature", "specific_humidity", "cloud_fraction", "u", "v")
_NAMES = _SURFACE + tuple(f"{name}_{level}" for name in _PROFILES for level in range(LEVELS))


@cache
def _emulator() -> Any:
    try:
        from clero import Emulator
    except ImportError:
        raise InputError("the climate emulator is not installed; pip install clero==0.1.4") from None
    return Emulator()


def simulate(planets: Sequence[Planet], seed: int) -> np.ndarray:
    """Draw one steady-state climate a planet, n C H W float32 in the units and order of variables.CLIMATE_FIELDS.

    One coherent draw from the emulator's distribution over climates: what a general circulation model would say is
    uncertain, and the draw carries that. It follows from (seed, planet) alone, whatever else is simulated with it. Rows
    go south to north; longitude 0, the substellar point, lies between the columns 31 and 32.

    Raises:
        InputError: The emulator is missing, or a planet lies outside the ranges that it was trained on.

    Source:
        clero 0.1.4 (MIT), trained on ThousandWorlds: tidally locked, ocean-covered rocky planets.
    """
    for planet in planets:
        outside = out_of_range(planet)
        if outside:
            raise InputError(f"planet={planet.name}: {outside[0]}; the climate emulator does not extrapolate")
    rows = [
        {
            "T_star": p.star_temperature_k,
            "F_star": p.irradiance_w_m2,
            "radius": p.radius_earth,
            "gravity": p.gravity_m_s2,
            "P_rot": p.rotation_period_d,
            "P0": p.atmosphere.surface_pressure_bar,
            "CO2": p.atmosphere.co2,
            "CH4": p.atmosphere.ch4,
            "GCM": p.climate_model,
        }
        for p in planets
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the ranges were checked above
        draws = [
            _emulator().sample(row, n_samples=1, seed=_draw_seed(planet, seed))
            for row, planet in zip(rows, planets, strict=True)
        ]
    cubes = np.stack([np.stack([draw[name][0] for name in _NAMES]) for draw in draws]).astype(np.float32)
    low = np.array([v.low for v in CLIMATE_FIELDS], np.float32)[:, None, None]
    high = np.array([v.high for v in CLIMATE_FIELDS], np.float32)[:, None, None]
    return np.clip(cubes, low, high)


def _draw_seed(planet: Planet, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed} {planet!r}".encode(), digest_size=4).digest(), "big")


@cache
def area_weights() -> np.ndarray:
    """Return the share of the surface that each cell covers, H W, summing to 1 (Gaussian latitudes)."""
    _, weights = np.polynomial.legendre.leggauss(LATITUDES)
    return np.repeat(weights[:, None] / weights.sum() / LONGITUDES, LONGITUDES, axis=1)


def substellar_longitudes() -> np.ndarray:
    """Return the longitude of each column in degrees, 0 at the substellar point."""
    return np.linspace(-180.0 + 180.0 / LONGITUDES, 180.0 - 180.0 / LONGITUDES, LONGITUDES)


def liquid_water(cube: np.ndarray) -> np.ndarray:
    """Return where surface water is liquid, H W bool: 273.15 to 373.15 K (Spiegel et al. 2008)."""
    surface = cube[climate_field("surface_temperature_k")]
    return (surface >= FREEZING_K) & (surface <= BOILING_K)


def diagnostics(cube: np.ndarray, irradiance_w_m2: float) -> dict[str, Any]:
    """Return area-weighted numbers of one cube (C H W) and the name of its climate state.

    States after Stevenson et al. (clero), cold to hot: snowball (all frozen), eyeball, waterbelt (a whole latitude row
    ice-free), globally temperate (no ice), hot (mean surface above 340 K: moist or runaway greenhouse).
    """
    weights = area_weights()

    def mean(field: np.ndarray) -> float:
        return float((field * weights).sum())

    surface = cube[climate_field("surface_temperature_k")]
    absorbed = mean(cube[climate_field("absorbed_shortwave_w_m2")])
    warm = surface > FREEZING_K
    low_cloud = cube[climate_field("cloud_fraction") : climate_field("cloud_fraction") + LEVELS].max(0)
    return {
        "mean_surface_temperature_k": mean(surface),
        "min_surface_temperature_k": float(surface.min()),
        "max_surface_temperature_k": float(surface.max()),
        "liquid_water_share": mean(liquid_water(cube)),
        "ice_share": mean(~warm),
        "cloud_share": mean(low_cloud),
        "absorbed_shortwave_w_m2": absorbed,
        "outgoing_longwave_w_m2": mean(cube[climate_field("outgoing_longwave_w_m2")]),
        "bond_albedo": float(np.clip(1.0 - 4.0 * absorbed / irradiance_w_m2, 0.0, 1.0)),
        "climate_state": _state(surface, warm, mean(surface)),
    }


def _state(surface: np.ndarray, warm: np.ndarray, mean_k: float) -> str:
    if mean_k > 340.0:
        return "hot"
    if not warm.any():
        return "snowball"
    if warm.all():
        return "globally temperate"
    return "waterbelt" if warm.all(axis=1).any() else "eyeball"
