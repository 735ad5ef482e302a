"""Read single rows of shards, each tensor copied once: from the file, or from Arrow's buffers, to where it belongs."""

from __future__ import annotations

import json
import mmap
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from data_pipeline.batch import MODALITIES, GraphSample, Sample
from data_pipeline.errors import InputError
from data_pipeline.plain_pages import PREFIX, value_offsets
from data_pipeline.shards import GRAPH_TENSORS, NAMES, SAMPLE_TENSORS, absent_graph

CUBE = "climate"  # stays in the file until its row is asked for; all else is 3 % of the bytes
CUBE_DTYPE, CUBE_SHAPE = SAMPLE_TENSORS[CUBE]
# Everything else of one size, packed: a row is copied in one piece, and a batch of rows is an array of it.
FIXED = np.dtype([*((n, d, s) for n, (d, s) in SAMPLE_TENSORS.items() if n != CUBE), ("habitable", "|b1")])
_OFFSETS = {name: field[1] for name, field in (FIXED.fields or {}).items()}
PRESENT = slice(_OFFSETS["present"], _OFFSETS["present"] + len(MODALITIES))  # its bytes
MAPPED_BYTES = 2 * 2**30  # of all files together; 5,000 samples
KEPT_BYTES = 256 * 2**20  # of opened shards: 20,000 samples without their cubes


class BadSampleError(InputError):
    """One sample cannot be used; a stream may go on without it (data.max_bad_samples)."""

    def __init__(self, sample_id: str, reason: str) -> None:
        super().__init__(f"sample={sample_id}: {reason}")
        self.sample_id, self.reason = sample_id, reason


@runtime_checkable
class Row(Protocol):
    """One sample that is still where it is stored."""

    @property
    def sample_id(self) -> str:
        """Key of the sample."""
        ...

    def fixed(self) -> np.ndarray:
        """Return the bytes of its FIXED, as a view where it can."""
        ...

    @property
    def file(self) -> PlainFile | None:
        """The file that must be whole before `cube` is called."""
        ...

    def cube(self, out: np.ndarray) -> Tensor | None:
        """Return a view of the bytes of the climate, or None after they were copied into `out` (C H W).

        A view lasts as long as the row. All those of a batch are copied in one call, which holds no lock.
        """
        ...

    def graph(self) -> GraphSample:
        """Return the network, as views where it can."""
        ...


class ToldRow(Row, Protocol):
    """A row that a text can be written from."""

    def sample(self) -> Sample:
        """Return what the text is written from: everything but the cube, which may be zeros."""
        ...


class SampleRow(NamedTuple):
    """A sample in memory, read like one in a shard."""

    held: Sample

    @property
    def sample_id(self) -> str:
        """Key of the sample."""
        return self.held.sample_id

    def fixed(self) -> np.ndarray:
        """Return its FIXED."""
        found = np.empty(1, FIXED)
        for name in FIXED.names or ():
            found[name] = getattr(self.held, name)
        return found.view(np.uint8)

    @property
    def file(self) -> PlainFile | None:
        """It is in memory."""
        return None

    def cube(self, out: np.ndarray) -> Tensor | None:
        """Copy the climate."""
        out[...] = self.held.climate
        return None

    def graph(self) -> GraphSample:
        """Return the network."""
        return self.held.graph

    def sample(self) -> Sample:
        """Return the sample."""
        return self.held


class PlainFile:
    """A parquet file whose cubes lie in it as they are in memory.

    The first MAPPED_BYTES of files are mapped: 10 GB/s from the page cache against 5 with reads. The others are read:
    mapped pages count as memory of every rank, and to map and unmap costs more than it saves. A mapped file that is cut
    in place during a copy ends the process (SIGBUS), as for every loader that maps; a file that is replaced does not.
    """

    _mapped_bytes = 0

    def __init__(self, path: Path, descriptor: int, offsets: list[int]) -> None:
        self.path, self._descriptor, self._offsets = path, descriptor, offsets
        self._size = os.fstat(descriptor).st_size
        self._content: np.ndarray | None = None
        if PlainFile._mapped_bytes + self._size <= MAPPED_BYTES:
            # A private mapping counts as writable, which torch wants; nothing writes to it.
            self._content = np.frombuffer(mmap.mmap(descriptor, self._size, access=mmap.ACCESS_COPY), np.uint8)
            PlainFile._mapped_bytes += self._size
        weakref.finalize(self, PlainFile._close, descriptor, 0 if self._content is None else self._size)

    @classmethod
    def _close(cls, descriptor: int, mapped_bytes: int) -> None:
        os.close(descriptor)
        cls._mapped_bytes -= mapped_bytes

    def whole(self) -> bool:
        """Is the file as long as it was? To touch mapped memory that is gone would end the process."""
        return os.fstat(self._descriptor).st_size >= self._size

    def cube(self, row: int, out: np.ndarray) -> Tensor | None:
        """Return a view of the bytes of a row's cube, or None after they were read into `out`.

        Raises:
            ValueError: The file ends before it or holds something else there.
        """
        start = self._offsets[row]
        if self._content is not None:
            prefix, found = self._content[start : start + PREFIX.size], out.nbytes
        else:
            prefix = np.empty(PREFIX.size, np.uint8)
            found = os.preadv(self._descriptor, [prefix.data, out.data], start) - PREFIX.size
        if found != out.nbytes or PREFIX.unpack_from(prefix.data)[0] != out.nbytes:
            raise ValueError
        if self._content is None:
            return None
        return torch.from_numpy(self._content[start + PREFIX.size : start + PREFIX.size + out.nbytes])


class OpenShard:
    """Rows of one shard; what is small is in memory, the cubes are in `plain` or, without it, in the table.

    Columns that are not there (a part of a join has few) are zeros.
    """

    def __init__(self, table: pa.Table, plain: PlainFile | None = None) -> None:
        self.bytes = table.nbytes
        self.rows = table.num_rows
        self.sample_ids: list[str] = table.column("sample_id").to_pylist()
        self._table, self.plain = table, plain
        there = set(table.column_names)
        self._cubes = _values(table.column(CUBE)) if CUBE in there else []
        self._graphs: list[GraphSample | None] = [None] * self.rows
        self._wrong: dict[int, str] = {}  # row -> reason
        packed = np.zeros(self.rows, FIXED)
        for name in SAMPLE_TENSORS:
            if name != CUBE and name in there:
                self._pack(name, _values(table.column(name)), packed)
        if "habitable" in there:
            packed["habitable"] = table.column("habitable").to_numpy()
        self._fixed = packed.view(np.uint8).reshape(self.rows, FIXED.itemsize)

    def _pack(self, name: str, values: list[np.ndarray], packed: np.ndarray) -> None:
        size = packed[name][:1].nbytes
        for row, value in enumerate(values):
            if value.nbytes == size:
                packed[name][row] = value.view(packed[name].dtype).reshape(packed[name].shape[1:])
            else:
                self._wrong[row] = f"{name} has {value.nbytes} bytes, expected {size}"

    def row(self, row: int) -> ShardRow:
        """Return one row.

        Raises:
            BadSampleError: One of its tensors has another size.
        """
        if row in self._wrong:
            raise BadSampleError(self.sample_ids[row], self._wrong[row])
        return ShardRow(self, row)

    def fixed(self, row: int) -> np.ndarray:
        """Return a view of the FIXED of a row."""
        return self._fixed[row]

    def cube(self, row: int, out: np.ndarray) -> Tensor | None:
        """Return a view of the climate of a row, or None after it was copied into `out`.

        Raises:
            BadSampleError: It has another size, or the file was cut or changed since it was opened.
        """
        if self.plain is not None:
            try:
                return self.plain.cube(row, out)
            except (OSError, ValueError) as error:
                raise changed(self.plain, self.sample_ids[row]) from error
        value = self._cubes[row]
        if value.nbytes != out.nbytes:
            raise BadSampleError(self.sample_ids[row], f"{CUBE} has {value.nbytes} bytes, expected {out.nbytes}")
        out.reshape(-1).view(np.uint8)[:] = value
        return None

    def graph(self, row: int) -> GraphSample:
        """Return the network of a row, its arrays as views.

        Raises:
            BadSampleError: Its arrays do not fit together.
        """
        found = self._graphs[row]
        if found is None:
            found = self._graphs[row] = self._read_graph(row)
        return found

    def _read_graph(self, row: int) -> GraphSample:
        names = json.loads(self.text("metabolites", row))
        if not names:
            return _ABSENT
        tensors: dict[str, Any] = {}
        for name, (dtype, shape) in GRAPH_TENSORS.items():
            try:
                tensors[name] = np.frombuffer(self._table.column(name)[row].as_buffer(), dtype).reshape(shape)
            except ValueError as error:
                raise BadSampleError(self.sample_ids[row], f"{name} does not have the shape {shape}") from error
        nodes, edges = tensors["metabolite_index"].size, tensors["edge_index"]
        if nodes != len(names) or edges.shape[1] != tensors["edge_type"].size or edges.max(initial=0) >= nodes:
            reason = f"a network of {len(names)} metabolites, {nodes} nodes and an edge to node {edges.max(initial=0)}"
            raise BadSampleError(self.sample_ids[row], reason)
        nutrients = tuple(json.loads(self.text("nutrients", row)))
        organism = self.text("organism", row)
        return GraphSample(metabolites=tuple(names), organism=organism, nutrients=nutrients, **tensors)

    def text(self, name: str, row: int) -> str:
        """Return a string column of a row."""
        return self._table.column(name)[row].as_py()


class ShardRow(NamedTuple):
    """One row of an opened shard."""

    shard: OpenShard
    row: int

    @property
    def sample_id(self) -> str:
        """Key of the sample."""
        return self.shard.sample_ids[self.row]

    def fixed(self) -> np.ndarray:
        """Return a view of its FIXED."""
        return self.shard.fixed(self.row)

    @property
    def file(self) -> PlainFile | None:
        """The file that its cube lies in."""
        return self.shard.plain

    def cube(self, out: np.ndarray) -> Tensor | None:
        """Return a view of the climate, or None after it was copied."""
        return self.shard.cube(self.row, out)

    def graph(self) -> GraphSample:
        """Return the network."""
        return self.shard.graph(self.row)

    def sample(self) -> Sample:
        """Return everything of the row, with zeros for the cube."""
        fixed = self.fixed().view(FIXED)[0]
        values: dict[str, Any] = {name: fixed[name] for name in SAMPLE_TENSORS if name != CUBE}
        values |= {name: self.shard.text(name, self.row) for name in NAMES}
        return Sample(
            facts=json.loads(self.shard.text("facts", self.row)),
            habitable=bool(fixed["habitable"]),
            climate=_NO_CUBE,
            graph=self.graph(),
            **values,
        )


def changed(file: PlainFile, sample_id: str) -> BadSampleError:
    """Return the error about a file that is no longer what it was."""
    return BadSampleError(sample_id, f"shard={file.path} is cut short or was changed; run the same build-data again")


_ABSENT = absent_graph()
_NO_CUBE = np.broadcast_to(np.float32(0), CUBE_SHAPE)


def _values(column: pa.ChunkedArray) -> list[np.ndarray]:
    """Return a view of the bytes of each row of a binary column."""
    views: list[np.ndarray] = []
    for chunk in column.chunks:
        wide = pa.types.is_large_binary(chunk.type)
        _, offsets, data = chunk.buffers()
        places = np.frombuffer(offsets, np.int64 if wide else np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        content = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
        ends = places.tolist()
        views += [content[a:b] for a, b in zip(ends, ends[1:], strict=False)]
    return views


def open_plain(path: Path) -> OpenShard | None:
    """Open a shard whose cubes can be read straight from the file; None when it is laid out in another way.

    Raises:
        OSError, pyarrow.ArrowInvalid: It cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with pq.ParquetFile(path) as file:
            size = np.dtype(CUBE_DTYPE).itemsize * int(np.prod(CUBE_SHAPE))
            offsets = value_offsets(descriptor, file.metadata, CUBE, size)
            if offsets is None:
                os.close(descriptor)
                return None
            table = file.read([name for name in file.schema_arrow.names if name != CUBE], use_threads=False)
    except BaseException:
        os.close(descriptor)
        raise
    return OpenShard(table, PlainFile(path, descriptor, offsets))


class Opened:
    """The shards that were opened last; each is opened once however many threads ask."""

    def __init__(self, open_shard: Callable[[int], OpenShard], at_least: int, kept_bytes: int = KEPT_BYTES) -> None:
        self._open, self._at_least, self._limit = open_shard, at_least, kept_bytes
        self._ready: dict[int, OpenShard] = {}  # in the order of opening
        self._opening: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()

    def __getitem__(self, number: int) -> OpenShard:
        """Return a shard; an error of opening it comes out, and it is tried again next time."""
        found = self._ready.get(number)
        return found if found is not None else self._open_once(number)

    def _open_once(self, number: int) -> OpenShard:
        with self._lock:
            mine = self._opening.setdefault(number, threading.Lock())
        with mine:
            if (found := self._ready.get(number)) is not None:
                return found
            opened = self._open(number)
            with self._lock:
                self._ready[number] = opened
                held = sum(shard.bytes for shard in self._ready.values())
                while held > self._limit and len(self._ready) > self._at_least:
                    held -= self._ready.pop(next(iter(self._ready))).bytes
            return opened
