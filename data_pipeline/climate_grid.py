"""Bring fields of any rectilinear grid to the grid and the levels of the climate cube."""

from __future__ import annotations

from functools import cache

import numpy as np

from data_pipeline.climate import substellar_longitudes
from data_pipeline.spectra import level_pressures_pa
from data_pipeline.variables import CLIMATE_FIELDS, LATITUDES, PROFILE_VARIABLES, SURFACE_VARIABLES


def to_cube(
    surface: dict[str, np.ndarray],
    profiles: dict[str, np.ndarray],
    pressure_pa: np.ndarray,
    latitude: np.ndarray,
    longitude: np.ndarray,
    surface_pressure_bar: float,
) -> np.ndarray:
    """Return the cube, C H W float32 in the order of variables.CLIMATE_FIELDS, clipped to the ranges of its fields.

    Means over cells are kept (first-order conservative); levels are interpolated in log pressure and held constant
    outside the levels of the source.

    Args:
        surface: Name of variables.SURFACE_VARIABLES -> h w, in its unit.
        profiles: Name of variables.PROFILE_VARIABLES -> p h w, in its unit; NaN where a level is below ground.
        pressure_pa: Of the levels, in any order: p, or p h w where levels are no isobars.
        latitude: Degrees, h, in either order.
        longitude: Degrees east of the substellar point, w, in any range.
        surface_pressure_bar: Of the whole planet; the levels of the cube are isobars relative to it.
    """
    target = np.log(level_pressures_pa(surface_pressure_bar))
    wanted = [regrid(surface[v.name], latitude, longitude)[None] for v in SURFACE_VARIABLES]
    for variable in PROFILE_VARIABLES:
        wanted.append(regrid(_at_levels(profiles[variable.name], pressure_pa, target), latitude, longitude))
    low, high = (np.array([getattr(v, end) for v in CLIMATE_FIELDS])[:, None, None] for end in ("low", "high"))
    return np.clip(np.concatenate(wanted), low, high).astype(np.float32)


def _at_levels(field: np.ndarray, pressure_pa: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Interpolate p h w to the target log pressures; a level without a value counts as absent in its column."""
    columns = field.reshape(len(field), -1)
    pressure = np.broadcast_to(pressure_pa.reshape(len(field), -1), columns.shape)
    out = np.full((len(target), columns.shape[1]), np.nan)
    for i in range(columns.shape[1]):
        there = np.isfinite(columns[:, i])
        if there.any():
            logged = np.log(pressure[there, i])
            order = np.argsort(logged)
            out[:, i] = np.interp(target, logged[order], columns[there, i][order])
    return out.reshape(len(target), *field.shape[1:])


def regrid(field: np.ndarray, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Return ... h w on our H W by area overlap; the area-weighted mean is kept, cells without a value are left out."""
    rows = _overlap(np.sin(np.radians(_latitude_edges(latitude))), np.sin(np.radians(_our_latitude_edges())))
    columns = _turned_overlap(longitude)
    there = np.isfinite(field)
    weight = np.einsum("Hh,...hw,Ww->...HW", rows, there.astype(float), columns)
    total = np.einsum("Hh,...hw,Ww->...HW", rows, np.where(there, field, 0.0), columns)
    return total / np.where(weight > 0, weight, np.nan)


def _overlap(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the length that each target cell shares with each source cell; edges may run either way."""
    low, high = np.minimum(source[:-1], source[1:]), np.maximum(source[:-1], source[1:])
    shared = np.minimum(target[1:, None], high) - np.maximum(target[:-1, None], low)
    return np.clip(shared, 0.0, None)


def _turned_overlap(longitude: np.ndarray) -> np.ndarray:
    order = np.argsort(longitude % 360.0)
    centres = (longitude % 360.0)[order]
    ours = substellar_longitudes()
    half = 180.0 / len(ours)
    target = np.append(ours - half, ours[-1] + half)
    if len(centres) == 1:  # a mean over longitudes
        return np.ones((len(ours), 1))
    turn = np.concatenate([[centres[-1] - 360.0], centres, [centres[0] + 360.0]])
    edges = (turn[1:] + turn[:-1]) / 2
    found = sum(_overlap(edges + shift, target) for shift in (-720.0, -360.0, 0.0, 360.0))
    weights = np.empty_like(found)
    weights[:, order] = found
    return weights


@cache
def _our_latitude_edges() -> np.ndarray:
    return _gaussian_edges(LATITUDES)


def _gaussian_edges(rows: int) -> np.ndarray:
    _, weights = np.polynomial.legendre.leggauss(rows)
    return np.degrees(np.arcsin(np.clip(np.concatenate([[0.0], np.cumsum(weights)]) - 1.0, -1.0, 1.0)))


def _latitude_edges(latitude: np.ndarray) -> np.ndarray:
    """Return the edges of cells, in their order: of a Gaussian grid by its weights, otherwise halfway, to the poles."""
    if len(latitude) == 1:
        return np.array([-90.0, 90.0])
    gaussian = np.degrees(np.arcsin(np.polynomial.legendre.leggauss(len(latitude))[0]))
    if np.allclose(np.sort(latitude), gaussian, atol=0.01):
        edges = _gaussian_edges(len(latitude))
        return edges if latitude[0] < latitude[-1] else edges[::-1]
    pole = 90.0 if latitude[-1] > latitude[0] else -90.0
    return np.concatenate([[-pole], (latitude[1:] + latitude[:-1]) / 2, [pole]])
