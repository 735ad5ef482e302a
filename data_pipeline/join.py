"""Join modalities that are stored apart to the samples of a data folder, by sample id."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from data_pipeline.batch import MODALITIES, GraphSample, Sample
from data_pipeline.errors import InputError
from data_pipeline.folders import remote_url
from data_pipeline.shard_rows import (
    CUBE,
    FIXED,
    BadSampleError,
    Opened,
    OpenShard,
    PlainFile,
    ShardRow,
    ToldRow,
    open_plain,
)
from data_pipeline.shards import GRAPH_TENSORS, SAMPLE_TENSORS, absent_graph, to_table, write_table

Missing = Literal["error", "skip", "mask"]
COLUMNS: dict[str, tuple[str, ...]] = {
    "climate": ("climate",),
    "spectrum": ("spectrum_ppm", "spectrum_error_ppm", "spectrum_clean_ppm"),
    "graph": (*GRAPH_TENSORS, "organism", "metabolites", "nutrients"),
    "planet": ("planet",),
    "environment": ("environment",),
}  # the text is written from the facts of the data folder, so it has no part of its own
KEPT_SHARDS = 8


def write_part(path: Path, samples: Sequence[Sample], modality: str) -> None:
    """Write one modality of samples as a parquet file of a part: `sample_id` and the columns of COLUMNS."""
    write_table(path, to_table(samples).select(["sample_id", *COLUMNS[modality]]))


def parse_parts(parts: Sequence[str]) -> dict[str, str]:
    """Read data.parts, each "modality=folder".

    Raises:
        InputError: One has no "=", or names a modality that cannot be stored apart, or one is named twice.
    """
    found: dict[str, str] = {}
    for part in parts:
        modality, equals, folder = part.partition("=")
        if not equals or not folder or modality not in COLUMNS:
            raise InputError(f"data.parts={part}: expected modality=folder, with a modality of {', '.join(COLUMNS)}")
        if modality in found:
            raise InputError(f"data.parts={part}: {modality} is given twice")
        found[modality] = folder
    return found


class Part:
    """Parquet files of one modality, in a folder or at an fsspec URL, found by sample id."""

    def __init__(self, modality: str, folder: str) -> None:
        self.modality, self._remote = modality, remote_url(folder)
        self._system, root = fsspec.core.url_to_fs(self._remote or folder)
        try:
            self._files = sorted(self._system.glob(f"{root.rstrip('/')}/*.parquet"))
        except Exception as error:  # each file system raises its own
            raise InputError(f"data.parts={modality}={folder}: cannot be listed ({error})") from error
        if not self._files:
            raise InputError(f"data.parts={modality}={folder}: no .parquet file there")
        self._places: dict[str, tuple[int, int]] = {}
        self._opened = Opened(self._open, KEPT_SHARDS)
        for number, file in enumerate(self._files):
            for row, key in enumerate(self._keys(file)):
                if key in self._places:
                    raise InputError(f"data.parts={modality}={folder}: {key} is in it twice, the second time in {file}")
                self._places[key] = (number, row)

    def find(self, sample_id: str) -> ShardRow | None:
        """Return the row of a sample; None when it is missing.

        Raises:
            BadSampleError: Its file went away or was damaged.
        """
        if sample_id not in self._places:
            return None
        number, row = self._places[sample_id]
        try:
            return self._opened[number].row(row)
        except (OSError, pa.ArrowInvalid) as error:
            raise BadSampleError(sample_id, f"{self._files[number]} cannot be read any more ({error})") from error

    def __contains__(self, sample_id: str) -> bool:
        return sample_id in self._places

    def _keys(self, file: str) -> list[str]:
        needed = ("sample_id", *COLUMNS[self.modality])
        try:
            with self._system.open(file) as opened, pq.ParquetFile(opened) as parquet:
                missing = [name for name in needed if name not in parquet.schema_arrow.names]
                if missing:
                    raise InputError(f"{file}: no column {missing[0]}; a part of it has {', '.join(needed)}")
                return parquet.read(["sample_id"]).column("sample_id").to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"{file}: cannot be read ({error}); write it again or take it away") from error

    def _open(self, number: int) -> OpenShard:
        if self._remote is None:
            opened = open_plain(Path(self._files[number])) if self.modality == CUBE else None
            return opened or OpenShard(pq.read_table(self._files[number]))
        with self._system.open(self._files[number]) as file:
            return OpenShard(pq.read_table(file))


class JoinedSource:
    """Samples of a source, with some modalities taken from parts.

    Args:
        source: Where the samples, their split and label are.
        parts: Where the modalities are that are stored apart.
        missing: About a sample that a part does not hold: `error` refuses it, `skip` leaves the sample out of the
            stream, `mask` marks the modality as absent.

    Raises:
        InputError: A part cannot be read, or a sample is missing in it.
    """

    def __init__(self, source: Any, parts: Mapping[str, str], missing: Missing) -> None:
        self._source = source
        self._parts = {modality: Part(modality, folder) for modality, folder in parts.items()}
        self.left_out: tuple[str, ...] = source.left_out
        self.chemistry: dict[str, Any] = source.chemistry
        self._vocabulary = {name: row for row, name in enumerate(source.chemistry.get("metabolites", ()))}
        self._kept: list[np.ndarray] = []
        self.skipped: list[str] = []
        for shard, rows in enumerate(source.shard_rows):
            lost = self._lacking(shard, rows)
            if lost and missing == "error":
                key, modality = next(iter(lost.values()))
                raise InputError(
                    f"data.parts={modality}={parts[modality]}: sample {key} is not in it (one of {len(lost)} of its "
                    "shard); bring it, or choose data.missing=skip or mask"
                )
            if missing == "skip":
                self.skipped += [key for key, _ in lost.values()]
            rows_kept = [row for row in range(rows) if missing != "skip" or row not in lost]
            self._kept.append(np.array(rows_kept, np.int64))
        if self.skipped:
            some = ", ".join(self.skipped[:10]) + (" ..." if len(self.skipped) > 10 else "")
            print(f"[stream] {len(self.skipped)} samples lack a part, skipped: {some}", file=sys.stderr, flush=True)
        self.shard_rows: Sequence[int] = [len(kept) for kept in self._kept]

    def _lacking(self, shard: int, rows: int) -> dict[int, tuple[str, str]]:
        """Return row -> (sample id, a modality that it lacks)."""
        lost = {}
        for row in range(rows):
            key = self._source.row(shard, row).sample_id
            for modality, part in self._parts.items():
                if key not in part:
                    lost[row] = (key, modality)
        return lost

    def row(self, shard: int, row: int) -> ToldRow:
        """Return one sample with its parts."""
        base = self._source.row(shard, int(self._kept[shard][row]))
        return JoinedRow(base, {m: part.find(base.sample_id) for m, part in self._parts.items()}, self._vocabulary)


class JoinedRow(NamedTuple):
    """One sample, and its rows in the parts (None: masked)."""

    base: ToldRow
    parts: dict[str, ShardRow | None]
    vocabulary: dict[str, int]

    @property
    def sample_id(self) -> str:
        """Key of the sample."""
        return self.base.sample_id

    def fixed(self) -> np.ndarray:
        """Return its FIXED; a part of anybody's is checked for what is not finite."""
        found = self.base.fixed().copy().view(FIXED)
        for modality, row in self.parts.items():
            found["present"][0, MODALITIES.index(modality)] = row is not None
            theirs = None if row is None else row.fixed().view(FIXED)
            for name in COLUMNS[modality]:
                if name in (FIXED.names or ()):
                    found[name] = 0 if theirs is None else theirs[name]
                    self._check(name, found[name])
        return found.view(np.uint8)

    @property
    def file(self) -> PlainFile | None:
        """The file that its cube lies in."""
        if CUBE not in self.parts:
            return self.base.file
        row = self.parts[CUBE]
        return None if row is None else row.file

    def cube(self, out: np.ndarray) -> Tensor | None:
        """Return a view of the climate of the data folder, or None after that of a part was copied."""
        if CUBE not in self.parts:
            return self.base.cube(out)
        row = self.parts[CUBE]
        if row is None:
            out[...] = 0
            return None
        if (view := row.cube(out)) is not None:
            out.reshape(-1).view(np.uint8)[:] = view.numpy()
        self._check(CUBE, out)
        return None

    def _check(self, name: str, values: np.ndarray) -> None:
        if not np.isfinite(values).all():
            raise BadSampleError(self.sample_id, f"{name} holds values that are not finite")

    def graph(self) -> GraphSample:
        """Return the network; the vocabulary is that of the data folder."""
        if "graph" not in self.parts:
            return self.base.graph()
        row = self.parts["graph"]
        if row is None:
            return absent_graph()
        graph = row.graph()
        unknown = [name for name in graph.metabolites if name not in self.vocabulary]
        if unknown:
            raise BadSampleError(self.sample_id, f"{unknown[0]} is not in the vocabulary of the data")
        return replace(graph, metabolite_index=np.array([self.vocabulary[n] for n in graph.metabolites], np.int64))

    def sample(self) -> Sample:
        """Return what the text is written from."""
        fixed = self.fixed().view(FIXED)[0]
        tensors: dict[str, Any] = {name: fixed[name] for name in SAMPLE_TENSORS if name != CUBE}
        return replace(self.base.sample(), graph=self.graph(), **tensors)
