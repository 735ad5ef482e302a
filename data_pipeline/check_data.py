"""Say everything that is wrong with a data set: `./launch.sh build-data --check DIR`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_pipeline import folders, shards, sources
from data_pipeline.batch import CLIMATE
from data_pipeline.shards import GRAPH_TENSORS, SAMPLE_TENSORS, Manifest, Shard


def complaints(data_dir: str | Path) -> list[str]:
    """Return one line for each thing that is wrong, with the shard's name and the way out; none for a good data set.

    Reads every byte once: checksums (not of remote files), then what the manifest promises about the rows.

    Raises:
        InputError: There is no data set, or its manifest or chemistry cannot be read.
    """
    manifest = shards.load_manifest(data_dir)
    shards.load_chemistry(data_dir)
    found: list[str] = []
    seen: Counter[str] = Counter()
    systems: dict[str, str] = {}
    for shard in manifest.shards:
        path = folders.path_of(data_dir, shard.file)
        wrong = shards.damage(data_dir, shard, checksums=True)
        reasons = (
            [wrong] if wrong else list(_of_rows(shards.read_part(data_dir, shard.file), shard, manifest, seen, systems))
        )
        found += [f"shard={path}: {reason}; {shards.repair(manifest)}" for reason in reasons]
    if not found and sum(seen.values()) != manifest.planets:
        found.append(f"data={data_dir}: {sum(seen.values())} samples, the manifest says {manifest.planets} planets")
    return found


def _of_rows(
    table: pa.Table, shard: Shard, manifest: Manifest, seen: Counter[str], systems: dict[str, str]
) -> Iterator[str]:
    """Yield what is wrong with the rows of a whole shard; add its ids to `seen`, its systems to `systems`."""
    if table.schema.names != shards.SCHEMA.names:
        yield f"has the columns {', '.join(table.schema.names)}, not those of version {manifest.schema_version}"
        return
    if table.num_rows != shard.rows:
        yield f"{table.num_rows} rows, the manifest says {shard.rows}"
    ids = table.column("sample_id").to_pylist()
    seen.update(ids)
    if double := next((i for i in ids if seen[i] > 1), None):
        yield f"{double} is in the data twice"
    if set(table.column("split").to_pylist()) != {shard.split}:
        yield f"holds samples that are not of the split {shard.split}"
    for system in table.column("system_id").to_pylist():
        if systems.setdefault(system, shard.split) != shard.split:
            yield f"the system {system} is in {systems[system]} too"
            break
    wrong = list(_of_tensors(table, len(manifest.vocabulary)))
    yield from wrong or _of_sources(table, manifest.provenance)


def _of_sources(table: pa.Table, known: dict[str, dict[str, str]]) -> Iterator[str]:
    """Yield the first sample that does not say where it is from; data of older versions say nothing."""
    for row in range(table.num_rows if known else 0):
        present = np.frombuffer(table["present"][row].as_buffer(), bool)
        if reason := sources.complaint(json.loads(table["facts"][row].as_py()), present.tolist(), known):
            yield f"{table['sample_id'][row].as_py()} {reason}"
            return


def _of_tensors(table: pa.Table, vocabulary: int) -> Iterator[str]:
    for name, (dtype, shape) in {**SAMPLE_TENSORS, **GRAPH_TENSORS}.items():
        for row, value in enumerate(table.column(name)):
            try:
                array = np.frombuffer(value.as_buffer(), dtype).reshape(shape)
            except (ValueError, AttributeError, TypeError):
                yield f"row {row}: {name} does not have the shape {shape}"
                break
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                yield f"row {row}: {name} holds values that are not finite"
                break
            if name == "metabolite_index" and array.max(initial=-1) >= vocabulary:
                yield f"row {row}: a metabolite is not in the vocabulary"
                break
            if name == "present" and not array[CLIMATE]:
                yield f"row {row}: no climate"
                break
