"""Measure how far the climates agree that two data sets give the same planets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipeline import shards
from data_pipeline.batch import Sample
from data_pipeline.climate import area_weights
from data_pipeline.errors import InputError
from data_pipeline.variables import LEVELS, PROFILE_VARIABLES, SURFACE_VARIABLES, Variable, climate_field

MOST = 400  # planets that are compared; the first ones of the first data set
_AIR = ("surface_pressure_bar", "co2", "ch4")


class Pair(NamedTuple):
    """One planet in both data sets."""

    first: Sample
    second: Sample


class Agreement(NamedTuple):
    """How far two climates agree in one variable, over planets and cells; differences are second minus first."""

    variable: Variable
    place: str  # "surface", or which levels
    difference: float  # mean over planets and surface, in the variable's unit
    rms: float  # of the differences of cells
    correlation: float  # of the two maps of a planet, area weighted, mean over planets; NaN where a map is flat


def matched(first_dir: str | Path, second_dir: str | Path) -> list[Pair]:
    """Return the planets that are in both, by name, parameters and air, in the order of the first.

    Raises:
        InputError: A folder holds no data set, or no planet is in both.
    """
    first: dict[tuple[Any, ...], Sample] = {}
    for sample in _samples(first_dir):
        if len(first) == MOST:
            break
        first.setdefault(_key(sample), sample)
    second: dict[tuple[Any, ...], Sample] = {}
    for sample in _samples(second_dir):
        if _key(sample) in first:
            second.setdefault(_key(sample), sample)
    pairs = [Pair(sample, second[key]) for key, sample in first.items() if key in second]
    if not pairs:
        raise InputError(
            f"compare={first_dir}, {second_dir}: no planet is in both; build both with the same --planets-from FILE.csv"
        )
    return pairs


def _samples(folder: str | Path) -> Iterator[Sample]:
    for shard in shards.verify(folder, checksums=False).shards:
        yield from shards.to_samples(shards.read_shard(Path(folder) / shard.file))


def _key(sample: Sample) -> tuple[Any, ...]:
    return (sample.name, sample.planet.tobytes(), *(sample.facts.get(name) for name in _AIR))


def agreements(pairs: Sequence[Pair]) -> list[Agreement]:
    """Return a row for each surface variable, and for each profile variable near the ground, midway and at the top."""
    rows = [agreement(v, "surface", [climate_field(v.name)], pairs) for v in SURFACE_VARIABLES]
    for variable in PROFILE_VARIABLES:
        for place, level in (("lowest level", 0), ("middle", LEVELS // 2), ("top", LEVELS - 1)):
            rows.append(agreement(variable, place, [climate_field(variable.name, level)], pairs))
    return rows


def agreement(variable: Variable, place: str, fields: list[int], pairs: Sequence[Pair]) -> Agreement:
    """Return the row of some fields (numbers of variables.CLIMATE_FIELDS) of one variable."""
    weights = area_weights()
    differences = [(p.second.climate[fields] - p.first.climate[fields]).astype(np.float64) for p in pairs]
    mean = float(np.mean([(d * weights).sum() / len(fields) for d in differences]))
    rms = float(np.sqrt(np.mean([(d**2 * weights).sum() / len(fields) for d in differences])))
    maps = [correlation(p.first.climate[f], p.second.climate[f]) for p in pairs for f in fields]
    finite = [r for r in maps if np.isfinite(r)]
    return Agreement(variable, place, mean, rms, float(np.mean(finite)) if finite else float("nan"))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return the area-weighted correlation of two maps (H W); NaN where one is flat."""
    if any(np.ptp(x) <= 1e-6 * np.abs(x).max() for x in (a, b)):
        return float("nan")
    weights = area_weights()
    a, b = (x.astype(np.float64) - (x * weights).sum() for x in (a, b))
    return float((a * b * weights).sum() / np.sqrt((a**2 * weights).sum() * (b**2 * weights).sum()))
