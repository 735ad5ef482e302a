"""Read the planets of a data set without their cubes, for baselines and for judging what was generated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from data_pipeline import assemble, shards, text
from data_pipeline.batch import Sample
from data_pipeline.shard_rows import CUBE, OpenShard

Edges = frozenset[tuple[str, str]]  # (substrate, product) by name


@dataclass(frozen=True, kw_only=True)
class Record:
    """One planet: what a telescope sees, what its surface offers, the network that lives there (no edges: none)."""

    sample_id: str
    system_id: str
    split: str
    habitable: bool
    planet: Float[np.ndarray, " K"]
    spectrum_ppm: Float[np.ndarray, "O S"]
    read_off: Float[np.ndarray, " features"]  # what a person reads off the spectrum, see `read_off`
    environment: Float[np.ndarray, " V"]
    organism: str
    nutrients: tuple[str, ...]
    edges: Edges


def read_records(data_dir: str | Path, split: str) -> list[Record]:
    """Return every planet of a split, in the order of the shards.

    Args:
        data_dir: Folder, URL or hub name.
        split: train, held_out or test.

    Raises:
        InputError: There is no data set, or a shard of it cannot be read.
    """
    return [
        Record(
            sample_id=sample.sample_id,
            system_id=sample.system_id,
            split=sample.split,
            habitable=sample.habitable,
            planet=sample.planet.copy(),  # copies, so that the shard can be freed
            spectrum_ppm=sample.spectrum_ppm.copy(),
            read_off=read_off(sample),
            environment=sample.environment.copy(),
            organism=sample.graph.organism,
            nutrients=sample.graph.nutrients,
            edges=assemble.edge_names(sample.graph),
        )
        for sample in without_cubes(data_dir, split)
    ]


def without_cubes(data_dir: str | Path, split: str) -> Iterator[Sample]:
    """Yield the planets of a split with zeros for their climate cubes, which are 97 % of the bytes."""
    columns = [name for name in shards.SCHEMA.names if name != CUBE]
    for shard in shards.load_manifest(data_dir).of_split(split):
        opened = OpenShard(shards.read_part(data_dir, shard.file, columns))
        yield from (opened.row(row).sample() for row in range(opened.rows))


def read_off(sample: Sample) -> Float[np.ndarray, " features"]:
    """Return the numbers that the description states: brightness temperature and band depths, each with its error."""
    depths = [number for _, *numbers in text.band_depths_ppm(sample) for number in numbers]
    return np.array([*text.brightness_temperature(sample), *depths], np.float32)
