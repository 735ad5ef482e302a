"""Compute what one column of air does to light: what it reflects of its star, the heat it sends out, its limb."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from data_pipeline.opacities import LINE_GASES, Opacities, water_continuum_m2
from data_pipeline.spectra import BOLTZMANN, DALTON, GAS_CONSTANT, LIGHT, PLANCK, planck
from data_pipeline.two_stream import SUN_ANGLES, emission, gauss, reflectance

# Imaginary refractive index of liquid water, um and 1 (Hale & Querry 1973, Appl. Opt. 12, 555).
WATER_INDEX = (
    (0.2, 0.4, 0.7, 0.86, 1.0, 1.2, 1.3, 1.45, 1.6, 1.8, 1.94, 2.0, 2.2, 2.4, 2.6, 2.7, 2.8, 2.95, 3.2, 3.4, 3.6, 3.8,
     4.0, 4.5, 5.0, 6.0, 6.5, 7.5, 10.0, 11.0, 12.0, 15.0, 20.0, 30.0),
    (1e-7, 2e-9, 3.4e-8, 3.2e-7, 2.9e-6, 9.9e-6, 1.1e-5, 3.3e-4, 8.6e-5, 1.15e-4, 1.5e-3, 1.1e-3, 2.9e-4, 9.6e-4,
     3.2e-3, 1.9e-2, 0.115, 0.29, 0.092, 0.0195, 5.2e-3, 3.4e-3, 4.6e-3, 0.0134, 0.0124, 0.107, 0.039, 0.033, 0.051,
     0.097, 0.199, 0.402, 0.393, 0.328),
)  # fmt: skip
DROPLET_UM, DROPLET_ASYMMETRY = 10.0, 0.85  # effective radius of water clouds (Han et al. 1994)


@dataclass(frozen=True, kw_only=True)
class Air:
    """A column of air in layers, from the ground up, and the ground."""

    edge_pa: Float[np.ndarray, " edges"]
    edge_k: Float[np.ndarray, " edges"]
    ground_k: float
    shares: dict[str, Float[np.ndarray, " L"]]  # volume fraction of each of LINE_GASES
    dry_mass_da: float  # of what is not water
    rayleigh: float  # what a molecule scatters, N2 = 1
    gravity_m_s2: float


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """Water droplets in one layer over a share of the column."""

    share: float = 0.0
    layer: int = 0
    depth: float = 0.0  # extinction in visible light


class Depths(NamedTuple):
    """Vertical optical depth of each layer, and where its edges are."""

    absorbed: Float[np.ndarray, "L W"]
    scattered: Float[np.ndarray, "L W"]
    height_m: Float[np.ndarray, " edges"]


def depths(air: Air, tables: Opacities) -> Depths:
    """Return what the gases of a column absorb and scatter.

    Source:
        Rayleigh scattering of air: Hansen & Travis 1974, Space Sci. Rev. 16, 527.
    """
    low, high = air.edge_pa[:-1], air.edge_pa[1:]
    pressure, temperature = np.sqrt(low * high), (air.edge_k[:-1] + air.edge_k[1:]) / 2.0
    water = air.shares["H2O"]
    mass = air.dry_mass_da * (1.0 - water) + 18.015 * water
    molecules = (low - high) / (mass * DALTON * air.gravity_m_s2)  # per m2
    sections = tables.sections_m2(pressure, temperature)
    absorbed = sum(air.shares[gas][:, None] * section for gas, section in zip(LINE_GASES, sections, strict=True))
    absorbed = absorbed + water[:, None] * water_continuum_m2(tables.wavelength_um, temperature, water * pressure)
    wave = tables.wavelength_um
    rayleigh = 3.99e-32 * air.rayleigh * wave**-4.0 * (1.0 + 0.0113 * wave**-2.0 + 0.00013 * wave**-4.0)
    step = GAS_CONSTANT * temperature / (mass * 1e-3 * air.gravity_m_s2) * np.log(low / high)
    return Depths(
        molecules[:, None] * absorbed, molecules[:, None] * rayleigh, np.concatenate([[0.0], np.cumsum(step)])
    )


def sphere_albedo(
    air: Air, cloud: Cloud, ground: Float[np.ndarray, " W"], tables: Opacities, found: Depths | None = None
) -> Float[np.ndarray, " W"]:
    """Return the share of starlight that a planet covered with this column reflects in all directions together."""
    cosines, weights = gauss(SUN_ANGLES)
    plane = [plane_albedo(air, cloud, ground, tables, cosine, found) for cosine in cosines]
    return sum(2.0 * w * c * a for w, c, a in zip(weights, cosines, plane, strict=True)) / sum(
        2.0 * weights * cosines
    )  # fmt: skip


def plane_albedo(
    air: Air,
    cloud: Cloud,
    ground: Float[np.ndarray, " W"],
    tables: Opacities,
    cosine: float,
    found: Depths | None = None,
) -> Float[np.ndarray, " W"]:
    """Return the share that goes back up of starlight from one zenith angle."""
    found = found or depths(air, tables)
    total = np.maximum(found.absorbed + found.scattered, 1e-12)
    clear = reflectance(total, found.scattered / total, np.zeros_like(total), ground, cosine)
    if cloud.share * cloud.depth == 0.0:
        return clear
    thick, scattered, forward = total.copy(), found.scattered.copy(), np.zeros_like(total)
    droplets = cloud.depth * (1.0 - _droplet_absorption(tables.wavelength_um) / 2.0)
    thick[cloud.layer] += cloud.depth
    scattered[cloud.layer] += droplets
    forward[cloud.layer] = DROPLET_ASYMMETRY * droplets / scattered[cloud.layer]
    cloudy = reflectance(thick, scattered / thick, forward, ground, cosine)
    return cloud.share * cloudy + (1.0 - cloud.share) * clear


def heat(air: Air, cloud: Cloud, tables: Opacities, found: Depths | None = None) -> Float[np.ndarray, " W"]:
    """Return the thermal flux at the top, W m-2 um-1; droplets absorb and emit, and do not scatter."""
    absorbed = (found or depths(air, tables)).absorbed
    wavelength_m = tables.wavelength_um * 1e-6
    source = 1e-6 * np.asarray(planck(wavelength_m, air.edge_k[:, None]))
    ground = 1e-6 * np.asarray(planck(wavelength_m, air.ground_k))
    clear = emission(absorbed, source, ground)
    if cloud.share * cloud.depth == 0.0:
        return clear
    absorbed = absorbed.copy()
    absorbed[cloud.layer] += cloud.depth * _droplet_absorption(tables.wavelength_um) / 2.0
    return cloud.share * emission(absorbed, source, ground) + (1.0 - cloud.share) * clear


def limb_radius(
    air: Air, cloud: Cloud, tables: Opacities, radius_m: float, star_angle: float, found: Depths | None = None
) -> Float[np.ndarray, " W"]:
    """Return the radius of the opaque disc that hides as much light as planet and limb.

    Rays are straight; below where they would be bent by more than the star is wide, nothing of it is seen.

    Args:
        air: At the limb.
        cloud: Opaque where it is.
        tables: Cross sections.
        radius_m: Of the ground.
        star_angle: Radius of the star over the planet's distance from it, in radian.
        found: `depths` of the air, when they are known.
    """
    found = found or depths(air, tables)
    edge = radius_m + found.height_m
    per_metre = (found.absorbed + found.scattered) / np.diff(edge)[:, None]
    middle = (edge[1:] + edge[:-1]) / 2.0
    half = np.sqrt(np.maximum(edge[None] ** 2 - middle[:, None] ** 2, 0.0))
    seen = np.exp(-2.0 * np.diff(half, axis=1) @ per_metre)
    if cloud.depth > 0.0:
        seen[: cloud.layer + 1] *= 1.0 - cloud.share
    above = np.clip((edge[1:] - _bent_away_m(air, edge, star_angle)) / np.diff(edge), 0.0, 1.0)
    return np.sqrt(radius_m**2 + (2.0 * middle * np.diff(edge)) @ (1.0 - seen * above[:, None]))


def _bent_away_m(air: Air, edge_m: np.ndarray, star_angle: float) -> float:
    """Return the radius below which a ray is bent by more than the star's angle.

    Source:
        Bending of refractivity times sqrt(2 pi radius / scale height): Betremieux & Kaltenegger 2014, ApJ 791, 7.
        Refractivity of air 2.93e-4 at 273 K and 1 atm; of others as the root of what their molecules scatter.
    """
    density = air.edge_pa / (BOLTZMANN * air.edge_k)
    scale_m = BOLTZMANN * air.edge_k / (air.dry_mass_da * DALTON * air.gravity_m_s2)
    bending = 2.93e-4 * np.sqrt(air.rayleigh) * density / 2.687e25 * np.sqrt(2.0 * np.pi * edge_m / scale_m)
    return float(np.interp(-np.log(star_angle), -np.log(bending), edge_m))


def _droplet_absorption(wavelength_um: np.ndarray) -> np.ndarray:
    """Return the absorption efficiency of droplets (their extinction efficiency is 2).

    Source:
        Anomalous diffraction, van de Hulst 1957, chapter 11.
    """
    thickness = 8.0 * np.pi * DROPLET_UM / wavelength_um * np.interp(wavelength_um, *WATER_INDEX)
    series = 2.0 / 3.0 * thickness - thickness**2 / 4.0
    safe = np.maximum(thickness, 1e-3)
    return np.where(
        thickness < 1e-3, series, 1.0 + 2.0 * np.exp(-safe) / safe + 2.0 * (np.exp(-safe) - 1.0) / safe**2
    )  # fmt: skip


def bolometric_w_m2(wavelength_um: Float[np.ndarray, " W"], flux_w_m2_um: Float[np.ndarray, " W"]) -> float:
    """Return the thermal flux over 3 um; past the last wavelength a black body as bright as the last tenth of them."""
    last_m = wavelength_um[-1] * 1e-6
    tail = wavelength_um > 0.9 * wavelength_um[-1]
    wave_m, radiance = wavelength_um[tail] * 1e-6, 1e6 / np.pi * np.maximum(flux_w_m2_um[tail], 1e-12)
    kelvin = PLANCK * LIGHT / (wave_m * BOLTZMANN) / np.log1p(2.0 * PLANCK * LIGHT**2 / wave_m**5 / radiance)
    beyond_m = np.geomspace(last_m, 50.0 * last_m, 400)
    seen = wavelength_um > 3.0
    return float(
        np.trapezoid(flux_w_m2_um[seen], wavelength_um[seen])
        + np.pi * np.trapezoid(planck(beyond_m, kelvin.mean()), beyond_m)
    )
