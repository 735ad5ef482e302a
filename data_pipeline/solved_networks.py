"""Keep the networks that a build has solved on disk, some dozens a file, so that a build that was killed has them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from data_pipeline import assemble, shards
from data_pipeline.assemble import Pair
from data_pipeline.batch import GraphSample
from data_pipeline.shards import GRAPH_TENSORS

CHUNK_PAIRS = 32  # 1-3 s of flux balances: what a kill can cost a process

_TEXTS = ("asked", "key", "metabolites", "nutrients", "organism")
_SCHEMA = pa.schema([(name, pa.string()) for name in _TEXTS] + [(name, pa.binary()) for name in GRAPH_TENSORS])


class Solved(NamedTuple):
    """Where a feasible network lies."""

    key: str  # equal for equal edges (assemble.network_keys); "" when it is not one that a planet can show
    file: Path
    row: int


def file_of(folder: Path, pairs: Sequence[Pair]) -> Path:
    """Return the name of the file of these pairs; other pairs have another one."""
    digest = hashlib.blake2b(json.dumps(pairs).encode(), digest_size=10).hexdigest()
    return folder / f"networks-{digest}.parquet"


def solve(folder: Path, pairs: Sequence[Pair]) -> None:
    """Solve these pairs and write those that are feasible."""
    columns: dict[str, list[Any]] = {name: [] for name in _SCHEMA.names}
    for pair in pairs:
        graph = assemble.solve(pair)
        if graph is None:
            continue
        columns["asked"].append(json.dumps(pair))
        columns["key"].append(assemble.network_keys({pair: graph}).get(pair, ""))
        columns["metabolites"].append(json.dumps(graph.metabolites))
        columns["nutrients"].append(json.dumps(graph.nutrients))
        columns["organism"].append(graph.organism)
        for name, (dtype, _) in GRAPH_TENSORS.items():
            columns[name].append(np.ascontiguousarray(getattr(graph, name), dtype).tobytes())
    shards.write_table(file_of(folder, pairs), pa.table(columns, schema=_SCHEMA))


def whole(file: Path) -> bool:
    """Is the file there and whole? What is left of a broken one (a lost disk cache) is removed."""
    try:
        shards.read_shard(file, ("key",))
    except (OSError, pa.ArrowInvalid):
        file.unlink(missing_ok=True)
        return False
    return True


def feasible(file: Path) -> dict[Pair, Solved]:
    """Return where each feasible pair of a file lies."""
    table = shards.read_shard(file, ("asked", "key"))
    found = {}
    for row, (asked, key) in enumerate(zip(table["asked"].to_pylist(), table["key"].to_pylist(), strict=True)):
        organism, nutrients = json.loads(asked)
        found[organism, tuple(nutrients)] = Solved(key, file, row)
    return found


def read(places: dict[Pair, Solved]) -> dict[Pair, GraphSample]:
    """Read networks; each file once."""
    found = {}
    for file in sorted({place.file for place in places.values()}):
        table = shards.read_shard(file)
        for pair, place in places.items():
            if place.file == file:
                found[pair] = _graph(table, place.row)
    return found


def _graph(table: pa.Table, row: int) -> GraphSample:
    tensors: dict[str, Any] = {
        name: np.frombuffer(table[name][row].as_py(), dtype).reshape(shape)
        for name, (dtype, shape) in GRAPH_TENSORS.items()
    }
    return GraphSample(
        metabolites=tuple(json.loads(table["metabolites"][row].as_py())),
        nutrients=tuple(json.loads(table["nutrients"][row].as_py())),
        organism=table["organism"][row].as_py(),
        **tensors,
    )
