"""Keep samples in parquet shards under one manifest.

A shard is one parquet file with one row group of at most SHARD_ROWS samples; a tensor is one column of raw
little-endian bytes (no array features: measured ten times slower to read, FACTS 8). `manifest.json` is written last:
a folder without it is not a data set.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline import folders
from data_pipeline.batch import MODALITIES, GraphSample, Sample
from data_pipeline.errors import InputError
from data_pipeline.variables import (
    CLIMATE_FIELDS,
    ENVIRONMENT,
    LATITUDES,
    LONGITUDES,
    NODE_FEATURES,
    OBSERVABLES,
    PLANET,
    SPECTRAL_BINS,
)

KIND = "exobiome-dataset"
SCHEMA_VERSION = 1
SHARD_ROWS = 64  # 29 MB a shard: large enough to read at disk speed, small enough to hold a few in memory
MANIFEST = "manifest.json"
CHEMISTRY = "chemistry.json"
SPLITS = {"train": 0.70, "held_out": 0.15, "test": 0.15}
BUILD_HINT = "build it with: ./launch.sh build-data --planets 2400 --out DIR"

# column -> (dtype, shape); -1 is the number of nodes or edges of the sample
SAMPLE_TENSORS: dict[str, tuple[str, tuple[int, ...]]] = {
    "climate": ("<f4", (len(CLIMATE_FIELDS), LATITUDES, LONGITUDES)),
    "spectrum_ppm": ("<f4", (len(OBSERVABLES), SPECTRAL_BINS)),
    "spectrum_error_ppm": ("<f4", (len(OBSERVABLES), SPECTRAL_BINS)),
    "spectrum_clean_ppm": ("<f4", (len(OBSERVABLES), SPECTRAL_BINS)),
    "planet": ("<f4", (len(PLANET),)),
    "environment": ("<f4", (len(ENVIRONMENT),)),
    "present": ("|b1", (len(MODALITIES),)),
}
GRAPH_TENSORS: dict[str, tuple[str, tuple[int, ...]]] = {
    "metabolite_index": ("<i8", (-1,)),
    "features": ("<f4", (-1, len(NODE_FEATURES))),
    "edge_index": ("<i8", (2, -1)),
    "edge_type": ("<i8", (-1,)),
}
NAMES = ("sample_id", "system_id", "name", "split")
SCHEMA = pa.schema(
    [(name, pa.string()) for name in NAMES]
    + [("habitable", pa.bool_())]
    + [(name, pa.binary()) for name in (*SAMPLE_TENSORS, *GRAPH_TENSORS)]
    + [("organism", pa.string()), ("metabolites", pa.string()), ("nutrients", pa.string()), ("facts", pa.string())]
)
# graph and facts together stay under 16 kB
SAMPLE_BYTES = 4 * sum(int(np.prod(shape)) for _, shape in SAMPLE_TENSORS.values()) + 16_384


@dataclass(frozen=True)
class Shard:
    """One parquet file of one split."""

    file: str
    split: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a data set holds and where it came from."""

    planets: int
    seed: int
    sources: dict[str, str]  # package -> version
    vocabulary: tuple[str, ...]  # metabolites; a node's metabolite_index is a row of this
    shards: tuple[Shard, ...]
    facts: dict[str, Any]  # counts, shares and distances of the whole data set
    # What samples name in facts["sources"]: key -> name, version, licence, cite. Data of older versions have none.
    provenance: dict[str, dict[str, str]] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def of_split(self, split: str) -> tuple[Shard, ...]:
        """Return the shards of one split, in order.

        Raises:
            InputError: There is no such split.
        """
        if split not in SPLITS:
            raise InputError(f"split={split!r}: choose from {', '.join(SPLITS)}")
        return tuple(s for s in self.shards if s.split == split)


def split_of(key: str) -> str:
    """Return the split that a planet system, or an organism with its nutrients, belongs to, whatever the seed."""
    position = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") / 2**64
    for split, share in SPLITS.items():
        position -= share
        if position < 0:
            return split
    return "test"  # the shares add up to 1 but for rounding


def absent_graph() -> GraphSample:
    """Return a network without nodes."""
    empty: dict[str, Any] = {
        name: np.zeros([max(n, 0) for n in shape], dtype) for name, (dtype, shape) in GRAPH_TENSORS.items()
    }
    return GraphSample(metabolites=(), **empty)


# --- rows ------------------------------------------------------------------------------------------------------------
def to_table(samples: Sequence[Sample]) -> pa.Table:
    """Return one row a sample.

    Raises:
        ValueError: A tensor has another shape than the schema says, or holds values that are not finite.
    """
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for sample in samples:
        graph = sample.graph
        for name in NAMES:
            columns[name].append(getattr(sample, name))
        columns["habitable"].append(bool(sample.habitable))
        for owner, tensors in ((sample, SAMPLE_TENSORS), (graph, GRAPH_TENSORS)):
            for name, (dtype, shape) in tensors.items():
                columns[name].append(_to_bytes(sample.sample_id, name, getattr(owner, name), dtype, shape))
        columns["organism"].append(graph.organism)
        columns["metabolites"].append(json.dumps(graph.metabolites))
        columns["nutrients"].append(json.dumps(graph.nutrients))
        columns["facts"].append(json.dumps(sample.facts, sort_keys=True, allow_nan=False))
    return pa.table(columns, schema=SCHEMA)


def to_samples(table: pa.Table) -> list[Sample]:
    """Return the samples of a table; their arrays are read-only views of its buffers, without a copy."""
    columns = {name: table.column(name) for name in SCHEMA.names}
    return [_sample(columns, row) for row in range(table.num_rows)]


def _sample(columns: dict[str, pa.ChunkedArray], row: int) -> Sample:
    def tensors(kinds: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, Any]:
        return {
            name: np.frombuffer(columns[name][row].as_buffer(), dtype).reshape(shape)
            for name, (dtype, shape) in kinds.items()
        }

    def value(name: str) -> Any:
        return columns[name][row].as_py()

    graph = GraphSample(
        metabolites=tuple(json.loads(value("metabolites"))),
        organism=value("organism"),
        nutrients=tuple(json.loads(value("nutrients"))),
        **tensors(GRAPH_TENSORS),
    )
    return Sample(
        **{name: value(name) for name in NAMES},
        habitable=value("habitable"),
        facts=json.loads(value("facts")),
        graph=graph,
        **tensors(SAMPLE_TENSORS),
    )


def _to_bytes(sample_id: str, name: str, value: np.ndarray, dtype: str, shape: tuple[int, ...]) -> bytes:
    if value.ndim != len(shape) or any(n not in (-1, m) for n, m in zip(shape, value.shape, strict=True)):
        raise ValueError(f"{sample_id}: {name} has shape {value.shape}, the schema says {shape}")
    if not np.isfinite(value).all():
        raise ValueError(f"{sample_id}: {name} holds values that are not finite")
    return np.ascontiguousarray(value, dtype=dtype).tobytes()


# --- files -----------------------------------------------------------------------------------------------------------
def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file under a temporary name, then rename it: at `path` there is all of it or none.

    Raises:
        InputError: There is no space left on the disk.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            raise InputError(
                f"out={path.parent}: no space left on the disk: {len(content)} bytes needed for {path.name}, {free} "
                "free; free some and run the same command again, it continues where it stopped"
            ) from error
        raise


def write_table(path: Path, table: pa.Table) -> memoryview:
    """Write a table as one row group, neither compressed nor encoded: cubes can be read in place. Return the bytes.

    Raises:
        InputError: There is no space left on the disk.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, row_group_size=max(table.num_rows, 1), compression=None, use_dictionary=False,
        write_statistics=False,
    )  # fmt: skip
    content = memoryview(sink.getvalue())
    write_bytes(path, content)
    return content


def write_shard(path: Path, samples: Sequence[Sample]) -> Shard:
    """Write samples of one split as one row group.

    Raises:
        InputError: There is no space left on the disk.
    """
    content = write_table(path, to_table(samples))
    return Shard(path.name, samples[0].split, len(samples), len(content), hashlib.sha256(content).hexdigest())


def read_shard(path: Path, columns: Iterable[str] | None = None) -> pa.Table:
    """Return the rows of one shard, or some of its columns."""
    return pq.read_table(path, columns=None if columns is None else list(columns))


def read_part(data_dir: str | Path, file: str, columns: Iterable[str] | None = None) -> pa.Table:
    """Return the rows of a shard of a data set, or some of its columns, wherever it is; of a remote one only these.

    Raises:
        InputError: It cannot be read.
    """
    url = folders.remote_url(data_dir)
    try:
        if url is None:
            return read_shard(Path(data_dir) / file, columns)
        with folders.open_file(url, file) as content:
            return pq.read_table(content, columns=None if columns is None else list(columns))
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"shard={folders.path_of(data_dir, file)}: cannot be read ({reason})") from error


def whole_rows(path: Path) -> int:
    """Return the number of rows of a parquet file; 0 when it is missing or cut short."""
    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowInvalid, OSError):
        return 0


def describe_shard(path: Path, split: str) -> Shard:
    """Return the manifest entry of a whole file on disk."""
    return Shard(path.name, split, whole_rows(path), path.stat().st_size, sha256_of(path))


def sha256_of(path: Path) -> str:
    """Return the checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- manifest --------------------------------------------------------------------------------------------------------
def save_manifest(data_dir: Path, manifest: Manifest) -> None:
    """Publish a data set: everything else must be in its place."""
    content = {"kind": KIND, **asdict(manifest)}
    write_bytes(data_dir / MANIFEST, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def _read_manifest(data_dir: str | Path) -> bytes:
    if (url := folders.remote_url(data_dir)) is not None:
        return folders.read_bytes(url, MANIFEST)
    folder = Path(data_dir)
    if not folder.is_dir():
        raise InputError(f"data={folder}: no such folder; {BUILD_HINT}")
    if not (folder / MANIFEST).is_file():
        unfinished = (folder / ".build").is_dir()
        way_out = "the build did not finish, run the same build-data command again" if unfinished else BUILD_HINT
        raise InputError(f"data={folder}: no {MANIFEST} in it; {way_out}")
    return (folder / MANIFEST).read_bytes()


def load_manifest(data_dir: str | Path) -> Manifest:
    """Read the manifest of a data set.

    Raises:
        InputError: The folder or its manifest is missing, unfinished, of another program or of another version.
    """
    path, found = folders.path_of(data_dir, MANIFEST), _read_manifest(data_dir)
    try:
        content = json.loads(found)
    except ValueError as error:
        raise InputError(f"data={path}: not JSON ({error}); delete it and run the same build-data again") from error
    if not isinstance(content, dict) or content.pop("kind", None) != KIND:
        raise InputError(f"data={path}: not a manifest of an Exobiome data set; {BUILD_HINT}")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"data={path}: schema_version={content.get('schema_version')!r}, this version reads {SCHEMA_VERSION}; "
            "build the data again into an empty folder"
        )
    try:
        content["shards"] = tuple(Shard(**shard) for shard in content["shards"])
        content["vocabulary"] = tuple(content["vocabulary"])
        return Manifest(**content)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"data={path}: a field is missing or unknown ({error}); run the same build-data again"
        ) from error


def load_chemistry(data_dir: str | Path) -> dict[str, Any]:
    """Read the chemistry of the data set's vocabulary (reaction_db.chemistry_table).

    Raises:
        InputError: The file is missing or no JSON.
    """
    path, url = folders.path_of(data_dir, CHEMISTRY), folders.remote_url(data_dir)
    try:
        return json.loads(folders.read_bytes(url, CHEMISTRY) if url else Path(path).read_bytes())
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"data={path}: cannot be read ({error}); run the same build-data again") from error


def verify(data_dir: str | Path, manifest: Manifest | None = None, *, checksums: bool = True) -> Manifest:
    """Check that every shard is there and whole; `checksums` reads all bytes (0.5-1.5 GB/s a core).

    Raises:
        InputError: A shard is missing, truncated or has another checksum; the message names the first one.
    """
    manifest = manifest or load_manifest(data_dir)
    for shard in manifest.shards:
        if reason := damage(data_dir, shard, checksums=checksums):
            raise InputError(f"shard={folders.path_of(data_dir, shard.file)}: {reason}; {repair(manifest)}")
    return manifest


def repair(manifest: Manifest) -> str:
    """Return the way out for a damaged shard."""
    return f"run the same build-data again (--planets {manifest.planets} --seed {manifest.seed}), it replaces it"


def damage(data_dir: str | Path, shard: Shard, *, checksums: bool) -> str:
    """Return what is wrong with a shard, "" when nothing is. Of a remote one only the size is asked."""
    if (url := folders.remote_url(data_dir)) is not None:
        try:
            size = folders.size_of(url, shard.file)
        except InputError as error:
            return str(error)
        checksums = False
    else:
        path = Path(data_dir) / shard.file
        if not path.is_file():
            return "missing"
        size = path.stat().st_size
    if size is not None and size != shard.bytes:
        return f"{size} bytes, the manifest says {shard.bytes} (truncated?)"
    return "wrong checksum, its content changed" if checksums and sha256_of(path) != shard.sha256 else ""
