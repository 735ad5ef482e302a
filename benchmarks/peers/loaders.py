"""The same samples through other loaders: each writes its own format once, then gives out batches of ours.

Every one stores the tensors of the data folder with the same dtypes, uncompressed and in the same order, and is read
without a shuffle, which is to its advantage. So is that small tensors are packed into one piece, as ours are in memory
(a file or field each would cost WebDataset and MosaicML streaming several times more); `hf_default` keeps one feature a
tensor, as its documentation does. Decoded samples go through the collation that the project uses.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch

from data_pipeline import shards
from data_pipeline.batch import Batch, GraphSample
from data_pipeline.collate import Memory, collate_rows
from data_pipeline.errors import InputError
from data_pipeline.reaction_tables import cache_dir
from data_pipeline.shard_rows import CUBE, CUBE_DTYPE, CUBE_SHAPE, FIXED
from data_pipeline.shards import GRAPH_TENSORS, NAMES, SAMPLE_TENSORS

PACKAGES = (
    "mosaicml-streaming==0.13.0", "webdataset==1.0.2", "braceexpand", "brotli", "python-snappy", "cramjam", "zstd",
    "xxhash", "catalogue",
)  # fmt: skip
STRINGS = (*NAMES, "organism", "metabolites", "nutrients", "facts")
WDS_SHARD_BYTES = 2**26

Record = dict[str, Any]  # climate (array), fixed (bytes of FIXED), graph (bytes of GRAPH_TENSORS), strings (JSON)


class Loader(NamedTuple):
    """How a peer keeps the samples of a folder and reads them."""

    package: str
    write: Callable[[Iterable[Record], Path], None]
    open: Callable[[Path], Any]  # an iterable data set of records, for torch's DataLoader


def peers_dir() -> Path:
    """Return the folder that the peers are installed in; nothing of the project looks there."""
    return Path(cache_dir()) / "peers" / "loaders"


def use_peers() -> None:
    """Make the peers importable.

    Raises:
        InputError: They are not installed; the message holds the command.
    """
    sys.path.append(str(peers_dir()))
    for package in PACKAGES:
        try:
            importlib.metadata.version(package.split("==")[0])
        except importlib.metadata.PackageNotFoundError:
            raise InputError(
                f"{package}: not installed; run: pip install --no-deps --target {peers_dir()} {' '.join(PACKAGES)}"
            ) from None


# --- records ----------------------------------------------------------------------------------------------------------
def records(data_dir: str | Path, split: str) -> Iterator[Record]:
    """Yield the samples of a data folder in the order of its shards."""
    manifest = shards.load_manifest(data_dir)
    for shard in manifest.of_split(split):
        table = shards.read_shard(Path(data_dir) / shard.file)
        for row in range(table.num_rows):

            def raw(name: str, table: Any = table, row: int = row) -> bytes:
                return table.column(name)[row].as_py()

            yield {
                "climate": np.frombuffer(raw(CUBE), CUBE_DTYPE).reshape(CUBE_SHAPE),
                "fixed": b"".join(raw(name) for name in SAMPLE_TENSORS if name != CUBE)
                + bytes([table.column("habitable")[row].as_py()]),
                "graph": b"".join(raw(name) for name in GRAPH_TENSORS),
                "strings": json.dumps({name: table.column(name)[row].as_py() for name in STRINGS}),
            }


class RecordRow(NamedTuple):
    """A decoded record, as the collation reads it."""

    record: Record
    strings: dict[str, str]

    @property
    def sample_id(self) -> str:
        """Key of the sample."""
        return self.strings["sample_id"]

    def fixed(self) -> np.ndarray:
        """Return the packed small tensors; Hugging Face's come apart."""
        if "fixed" not in self.record:
            found = np.empty(1, FIXED)
            for name in FIXED.names or ():
                found[name] = self.record[name]
            return found.view(np.uint8)
        value = self.record["fixed"]
        return np.frombuffer(value, np.uint8) if isinstance(value, bytes) else value

    @property
    def file(self) -> None:
        """It is in memory."""

    def cube(self, out: np.ndarray) -> None:
        """Copy the climate."""
        out[...] = self.record[CUBE]

    def graph(self) -> GraphSample:
        """Return the network."""
        names = tuple(json.loads(self.strings["metabolites"]))
        if not names:
            return _ABSENT
        content, place, tensors = self.record["graph"], 0, {}
        node_bytes = sum(4 * s[1] if d == "<f4" else 8 for d, s in list(GRAPH_TENSORS.values())[:3])
        edges = (len(content) - len(names) * node_bytes) // 24
        for name, (dtype, shape) in GRAPH_TENSORS.items():
            sizes = [n if n > 0 else edges if name.startswith("edge") else len(names) for n in shape]
            tensors[name] = np.frombuffer(content, dtype, int(np.prod(sizes)), place).reshape(sizes)
            place += tensors[name].nbytes
        nutrients = tuple(json.loads(self.strings["nutrients"]))
        return GraphSample(metabolites=names, organism=self.strings["organism"], nutrients=nutrients, **tensors)


_ABSENT = shards.absent_graph()


class Collate:
    """Records to a batch, with the memory of ours (a worker process must give fresh memory away)."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._memory: Memory | None = None

    def __call__(self, found: list[Record]) -> Batch:
        """Return one batch."""
        if self._memory is None:
            self._memory = Memory(4 if self._workers == 0 else 0)
        rows = [RecordRow(record, json.loads(record["strings"])) for record in found]
        return collate_rows(rows, [None] * len(rows), self._memory)


def batches(loader: Loader, folder: Path, batch_size: int, workers: int) -> Iterator[Batch]:
    """Yield batches for ever, made in this process (0 workers) or in others."""
    data = loader.open(folder)
    while True:
        yield from torch.utils.data.DataLoader(
            data, batch_size, num_workers=workers, collate_fn=Collate(workers), drop_last=True
        )


# --- Hugging Face datasets, as its documentation does it --------------------------------------------------------------
def _write_hf(found: Iterable[Record], folder: Path) -> None:
    import datasets
    from datasets import Array2D, Array3D, Features, Sequence, Value

    kinds: dict[str, Any] = {"strings": Value("string"), "graph": Value("binary"), "habitable": Value("bool")}
    for name, (dtype, shape) in SAMPLE_TENSORS.items():
        kind = "bool" if dtype == "|b1" else "float32"
        kinds[name] = {1: lambda s, k: Sequence(Value(k)), 2: Array2D, 3: Array3D}[len(shape)](shape, kind)
    rows = list(found)
    for number, first in enumerate(range(0, len(rows), shards.SHARD_ROWS)):
        some = []
        for row in rows[first : first + shards.SHARD_ROWS]:
            fixed = np.frombuffer(row["fixed"], FIXED)[0]
            tensors = {name: fixed[name] for name in kinds if name in (FIXED.names or ())}
            graph = row["graph"] + b"\x01"  # zeros at the end of bytes are lost in its torch format
            some.append({"climate": row[CUBE], "strings": row["strings"], "graph": graph, **tensors})
        data = datasets.Dataset.from_list(some, features=Features(kinds))
        pq.write_table(data.data.table, folder / f"train-{number:05d}.parquet", compression=None)


def _open_hf(folder: Path) -> Any:
    import datasets

    files = sorted(map(str, folder.glob("*.parquet")))
    return datasets.load_dataset("parquet", data_files={"train": files}, split="train", streaming=True).with_format(
        "torch"
    )


def write_ids(data: str, split: str, folder: Path) -> list[str]:
    """Write shards that hold the sample ids alone, the rows of each as in the data folder; return their names."""
    files = []
    for shard in shards.load_manifest(data).of_split(split):
        files.append(str(folder / shard.file))
        pq.write_table(shards.read_shard(Path(data) / shard.file, ("sample_id",)), files[-1])
    return files


def open_ids(files: list[str]) -> Any:
    """Open such shards as a streaming data set (seconds)."""
    import datasets

    return datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)


def hf_resumed(ids: Any, stop: int) -> list[str]:
    """Return the ids that a shuffled data set gives before a stop, and after another one goes on from its state."""
    before, after = (ids.shuffle(seed=0, buffer_size=100) for _ in range(2))
    first = [row["sample_id"] for row in islice(before, stop)]
    after.load_state_dict(before.state_dict())
    return first + [row["sample_id"] for row in after]


# --- WebDataset -------------------------------------------------------------------------------------------------------
def _write_webdataset(found: Iterable[Record], folder: Path) -> None:
    import webdataset

    with webdataset.ShardWriter(str(folder / "train-%05d.tar"), maxsize=WDS_SHARD_BYTES, verbose=0) as writer:
        for record in found:
            cube = io.BytesIO()
            np.save(cube, record[CUBE])
            names = {"climate.npy": cube.getvalue(), "fixed.bin": record["fixed"], "graph.bin": record["graph"]}
            key = json.loads(record["strings"])["sample_id"]
            writer.write({"__key__": key, **names, "strings.bin": record["strings"].encode()})


def _open_webdataset(folder: Path) -> Any:
    import webdataset

    files = sorted(map(str, folder.glob("*.tar")))
    return webdataset.WebDataset(files, shardshuffle=False, empty_check=False).decode().map(_from_webdataset)


def _from_webdataset(content: Record) -> Record:
    return {name.split(".")[0]: value for name, value in content.items()}


# --- MosaicML streaming -----------------------------------------------------------------------------------------------
def _write_mosaic(found: Iterable[Record], folder: Path) -> None:
    _without_torchvision()
    from streaming import MDSWriter

    cube = f"ndarray:float32:{','.join(map(str, CUBE_SHAPE))}"
    with MDSWriter(
        out=str(folder), columns={"climate": cube, "fixed": "bytes", "graph": "bytes", "strings": "str"}
    ) as writer:
        for record in found:
            writer.write(record)


def _without_torchvision() -> None:
    """Import `streaming` without its data sets of pictures, which would need torchvision."""
    sys.modules.setdefault("streaming.vision", types.ModuleType("streaming.vision"))


def _open_mosaic(folder: Path) -> Any:
    _without_torchvision()
    from streaming import StreamingDataset

    return StreamingDataset(local=str(folder), shuffle=False, batch_size=16)


LOADERS = {
    "hf_default": Loader("datasets", _write_hf, _open_hf),
    "webdataset": Loader("webdataset", _write_webdataset, _open_webdataset),
    "mosaic": Loader("mosaicml-streaming", _write_mosaic, _open_mosaic),
}
