"""Compute the light of a planet at full resolution, 0.2-30 um: reflected, thermal (day and night) and through its limb.

The spectra of data sets come from `spectra`, which is quick and coarse. Here columns of the day, the night and the limb
are solved with a two-stream model. Against model spectra of Earth by the Virtual Planetary Laboratory, heat agrees
within 5 K in windows and in bands of water, 8 K in those of CO2 and 11 K in those of O3 and CH4; heights in transit
within 4 km, 6 in bands of O3 and CH4; geometric albedo within 0.02 up to 1.3 um and 0.06 beyond (tests/test_light.py
has each band).
Not included: N2O, CO, H2, collision-induced absorption, hazes, glint, stellar lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from data_pipeline.air_column import Air, Cloud, bolometric_w_m2, depths, heat, limb_radius, sphere_albedo
from data_pipeline.climate import FREEZING_K, diagnostics
from data_pipeline.opacities import Opacities, wide_opacities
from data_pipeline.planets import Planet
from data_pipeline.spectra import (
    AU,
    EARTH_RADIUS,
    SUN_RADIUS,
    TOP_PA,
    day_weights,
    dry_mass_da,
    level_pressures_pa,
    limb_weights,
    planck,
)
from data_pipeline.variables import LEVELS, climate_field

OCEAN, ICE_UM, ICE = (
    0.06,
    (1.0, 1.5),
    (0.65, 0.05),
)  # albedo; ice falls between these wavelengths (Joshi & Haberle 2012)
CLOUD_DEPTHS, THICK = (0.05, 500.0), 10.0  # visible extinction: range of the fit; opaque to heat


class Light(NamedTuple):
    """What a planet sends in all directions of its day and night, and how large it looks before its star."""

    wavelength_um: Float[np.ndarray, " W"]
    albedo: Float[np.ndarray, " W"]  # spherical
    day_w_m2_um: Float[np.ndarray, " W"]  # thermal, from the top of the atmosphere, mean of the hemisphere
    night_w_m2_um: Float[np.ndarray, " W"]
    transit_radius_m: Float[np.ndarray, " W"]
    cloud_depth: float  # of the day side, where its clouds are
    ground_albedo: float  # of the day side


# --- a planet with a climate -----------------------------------------------------------------------------------------
def light_of(planet: Planet, cube: np.ndarray, tables: Opacities | None = None) -> Light:
    """Return the light of a planet whose climate is `cube` (C H W).

    What the cube does not say of its clouds follows from its fluxes: their height, on each side, from the heat that
    leaves there, and their optical depth from the share of starlight that the whole planet reflects. Where no cloud can
    do the latter, the ground is made darker or brighter.
    """
    tables = tables or wide_opacities()
    every = slice(None, None, 12)
    coarse = Opacities(tables.wavelength_um[every], *tables[1:3], tables.log10_m2[..., every])
    day, limb = day_weights(), limb_weights()
    night = np.roll(day, day.shape[1] // 2, axis=1)
    bright, dark = (_clouded(planet, cube, side, coarse) for side in (day, night))
    ice = float((day * (cube[climate_field("surface_temperature_k")] < FREEZING_K)).sum())
    bond_albedo = diagnostics(cube, planet.irradiance_w_m2)["bond_albedo"]
    cloud, brightness = _fitted(planet, *bright, ice, bond_albedo, coarse)
    ground = _ground(tables.wavelength_um, ice, brightness)
    edge, its_cloud = _column(planet, cube, limb)
    return Light(
        wavelength_um=tables.wavelength_um,
        albedo=sphere_albedo(bright[0], cloud, ground, tables),
        day_w_m2_um=heat(bright[0], cloud, tables),
        night_w_m2_um=heat(dark[0], replace(dark[1], depth=cloud.depth), tables),
        transit_radius_m=limb_radius(
            edge,
            replace(its_cloud, depth=cloud.depth),
            tables,
            planet.radius_earth * EARTH_RADIUS,
            planet.star_radius_sun * SUN_RADIUS / (planet.semi_major_axis_au * AU),
        ),
        cloud_depth=cloud.depth,
        ground_albedo=float(np.interp(0.7, tables.wavelength_um, ground)),
    )


def reflected_ppm(light: Light, planet: Planet, phase_deg: float = 0.0) -> Float[np.ndarray, " W"]:
    """Return reflected light over the star's: geometric albedo of a Lambertian sphere (2/3) times its phase function.

    Args:
        light: Of the planet.
        planet: Whose.
        phase_deg: Angle star - planet - observer, 0 full, 180 new.
    """
    a = np.radians(phase_deg)
    phase = (np.sin(a) + (np.pi - a) * np.cos(a)) / np.pi
    return 1e6 * 2.0 / 3.0 * light.albedo * phase * (planet.radius_earth * EARTH_RADIUS) ** 2 / (
        planet.semi_major_axis_au * AU
    ) ** 2  # fmt: skip


def thermal_ppm(light: Light, planet: Planet, phase_deg: float = 0.0) -> Float[np.ndarray, " W"]:
    """Return the planet's heat over the star's light: day and night by the share of the disc that each has."""
    day = (1.0 + np.cos(np.radians(phase_deg))) / 2.0
    flux = day * light.day_w_m2_um + (1.0 - day) * light.night_w_m2_um
    star = np.pi * 1e-6 * planck(light.wavelength_um * 1e-6, planet.star_temperature_k)
    return 1e6 * flux / star * (planet.radius_earth * EARTH_RADIUS / (planet.star_radius_sun * SUN_RADIUS)) ** 2


def transit_ppm(light: Light, planet: Planet) -> Float[np.ndarray, " W"]:
    """Return the share of the star's disc that planet and limb hide."""
    return 1e6 * (light.transit_radius_m / (planet.star_radius_sun * SUN_RADIUS)) ** 2


# --- from the cube ---------------------------------------------------------------------------------------------------
def _column(planet: Planet, cube: np.ndarray, weights: np.ndarray) -> tuple[Air, Cloud]:
    """Return the mean column under `weights` (H W), in the layers of spectra, and its clouds of unknown depth."""

    def profile(name: str) -> np.ndarray:
        first = climate_field(name)
        return np.tensordot(cube[first : first + LEVELS], weights, 2).astype(np.float64)

    gas = planet.atmosphere
    level = level_pressures_pa(gas.surface_pressure_bar)
    edge_pa = np.concatenate([[gas.surface_pressure_bar * 1e5], level, np.geomspace(level[-1], TOP_PA, 9)[1:]])
    at = np.clip(
        np.arange(len(edge_pa)) - 1, 0, LEVELS - 1
    )  # the ground is as the lowest level, the top as the highest
    humidity, covered = profile("specific_humidity")[at], profile("cloud_fraction")
    water = humidity / (humidity + 18.015 / dry_mass_da(planet) * (1.0 - humidity))
    water = np.maximum((water[1:] + water[:-1]) / 2.0, 1e-9)
    dry = 1.0 - water
    ground_k = np.tensordot(cube[climate_field("surface_temperature_k")].astype(np.float64) ** 4, weights, 2) ** 0.25
    share = float(np.clip(covered.max(), 0.0, 1.0))
    top = int(np.flatnonzero(covered >= 0.5 * covered.max())[-1]) if share > 0.01 else 0
    air = Air(
        edge_pa=edge_pa,
        edge_k=profile("temperature_k")[at],
        ground_k=float(ground_k),
        shares={"H2O": water, "CO2": gas.co2 * dry, "CH4": gas.ch4 * dry, "O2": gas.o2 * dry, "O3": gas.o3 * dry},
        dry_mass_da=dry_mass_da(planet),
        rayleigh=1.0 + 1.5 * gas.co2 - 0.8 * gas.h2,
        gravity_m_s2=planet.gravity_m_s2,
    )
    return air, Cloud(share=share if share > 0.01 else 0.0, layer=top)


def _clouded(planet: Planet, cube: np.ndarray, weights: np.ndarray, coarse: Opacities) -> tuple[Air, Cloud]:
    """Return the column under `weights` and its clouds, in the layer where opaque ones let out the cube's heat."""
    air, cloud = _column(planet, cube, weights)
    found = depths(air, coarse)
    outgoing = float((cube[climate_field("outgoing_longwave_w_m2")] * weights).sum())

    def error(layer: int) -> float:
        flux = heat(air, Cloud(share=cloud.share, layer=layer, depth=THICK), coarse, found)
        return abs(bolometric_w_m2(coarse.wavelength_um, flux) - outgoing)

    return air, replace(cloud, layer=min(range(LEVELS), key=error)) if cloud.share > 0.0 else cloud


def _ground(wavelength_um: np.ndarray, ice_share: float, brightness: float) -> np.ndarray:
    natural = (1.0 - ice_share) * OCEAN + ice_share * np.interp(wavelength_um, ICE_UM, ICE)
    return np.clip(brightness * natural, 0.0, 1.0)


def _fitted(
    planet: Planet, air: Air, cloud: Cloud, ice_share: float, bond_albedo: float, coarse: Opacities
) -> tuple[Cloud, float]:
    """Return the cloud, and the brightness of the ground, that reflect `bond_albedo` of the star's light."""
    found = depths(air, coarse)
    light = planck(coarse.wavelength_um * 1e-6, planet.star_temperature_k) * np.gradient(coarse.wavelength_um)

    def bond(depth: float, brightness: float) -> float:
        ground = _ground(coarse.wavelength_um, ice_share, brightness)
        return float(np.average(sphere_albedo(air, replace(cloud, depth=depth), ground, coarse, found), weights=light))

    depth, brightness = 0.0, 1.0
    if cloud.share > 0.0:
        depth = float(np.exp(_root(lambda x: bond(float(np.exp(x)), 1.0) - bond_albedo, *np.log(CLOUD_DEPTHS))))
    if abs(bond(depth, 1.0) - bond_albedo) > 2e-3:
        brightness = _root(lambda x: bond(depth, x) - bond_albedo, 0.0, 1.0 / OCEAN)
    return replace(cloud, depth=depth), brightness


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Return where a rising function crosses zero, or the end that is nearer to it."""
    for _ in range(14):
        middle = (low + high) / 2.0
        low, high = (middle, high) if rising(middle) < 0.0 else (low, middle)
    return (low + high) / 2.0
