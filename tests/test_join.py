from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_fixture import chain, sample

from data_pipeline import shards
from data_pipeline.batch import CLIMATE, GRAPH, Batch
from data_pipeline.errors import InputError
from data_pipeline.join import JoinedSource, parse_parts, write_part
from data_pipeline.shards import Manifest
from data_pipeline.stream import BatchStream, ShardSource

SAMPLES = range(12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve samples in three shards whose cubes are their numbers; odd ones have a network."""
    folder, files = tmp_path_factory.mktemp("base"), []
    for shard, rows in enumerate(np.split(np.array(SAMPLES), 3)):
        samples = [sample(int(n), chain("a", "b") if n % 2 else None) for n in rows]
        files.append(shards.write_shard(folder / f"train-{shard:05d}.parquet", samples))
    (folder / "chemistry.json").write_text('{"metabolites": ["a", "b", "c"]}')
    shards.save_manifest(
        folder, Manifest(planets=12, seed=0, sources={}, vocabulary=("a", "b", "c"), shards=tuple(files), facts={})
    )
    return folder


def other_cubes(folder: Path, numbers: Any) -> str:
    """Cubes of 100 + n for these samples, in two files and another order."""
    samples = [replace(sample(n), climate=np.full((53, 32, 64), 100 + n, np.float32)) for n in reversed(list(numbers))]
    folder.mkdir(exist_ok=True)
    for number in range(2):
        write_part(folder / f"{number}.parquet", samples[number::2], "climate")
    return str(folder)


def batch(folder: Path, parts: dict[str, str], missing: Any = "error", **options: Any) -> Batch:
    source = JoinedSource(ShardSource(folder, "train", check=False), parts, missing)
    return next(iter(BatchStream(source, "train", sum(source.shard_rows), **options)))


def number_of(sample_id: str) -> int:
    return int(sample_id.removeprefix("planet-"))


def test_a_modality_that_is_stored_apart_is_found_by_sample_id(folder: Path, tmp_path: Path) -> None:
    joined = batch(folder, {"climate": other_cubes(tmp_path / "cubes", SAMPLES)})
    for b, key in enumerate(joined.sample_ids):
        assert joined.climate[b].unique().tolist() == [100 + number_of(key)]
        assert joined.planet[b, 0] == number_of(key)  # all else is of the data folder
    assert joined.present[:, CLIMATE].all()


def test_a_missing_part_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    cubes = other_cubes(tmp_path / "cubes", range(8))
    with pytest.raises(InputError, match="data.parts=climate=.*: sample planet-0000008 is not in it .one of 4 of its"):
        batch(folder, {"climate": cubes})


def test_a_sample_with_a_missing_part_is_skipped_as_asked(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    joined = batch(folder, {"climate": other_cubes(tmp_path / "cubes", (0, 5, 11))}, "skip")
    assert sorted(map(number_of, joined.sample_ids)) == [0, 5, 11]
    assert "9 samples lack a part, skipped: planet-0000001, planet-0000002" in capsys.readouterr().err


def test_a_missing_part_is_masked_as_asked(folder: Path, tmp_path: Path) -> None:
    joined = batch(folder, {"climate": other_cubes(tmp_path / "cubes", range(8))}, "mask")
    for b, key in enumerate(joined.sample_ids):
        there = number_of(key) < 8
        assert bool(joined.present[b, CLIMATE]) == there == bool(joined.climate[b].any())


def test_the_order_of_a_join_is_the_same_on_two_ranks(folder: Path, tmp_path: Path) -> None:
    parts = {"climate": other_cubes(tmp_path / "cubes", range(1, 12))}
    source = JoinedSource(ShardSource(folder, "train", check=False), parts, "skip")  # 3 + 4 + 4 samples
    whole = [b.sample_ids for b in islice(BatchStream(source, "train", 4), 6)]
    halves = [[b.sample_ids for b in islice(BatchStream(source, "train", 2, r, 2), 6)] for r in range(2)]
    assert whole == [left + right for left, right in zip(*halves, strict=True)]


def test_networks_are_joined_by_the_names_of_their_metabolites(folder: Path, tmp_path: Path) -> None:
    graphs = [sample(n, chain("c", "b")) for n in SAMPLES]
    write_part(tmp_path / "graphs.parquet", graphs, "graph")
    joined = batch(folder, {"graph": str(tmp_path)})
    assert joined.present[:, GRAPH].all() and joined.graph.metabolite_index[:, :2].tolist() == [[2, 1]] * 12
    write_part(tmp_path / "graphs.parquet", [*graphs[1:], sample(0, chain("c", "x"))], "graph")
    with pytest.raises(InputError, match="planet-0000000: x is not in the vocabulary of the data"):
        batch(folder, {"graph": str(tmp_path)})
    assert len(batch(folder, {"graph": str(tmp_path)}, max_bad_samples=1).sample_ids) == 11


def test_numbers_that_are_not_finite_are_bad_samples(folder: Path, tmp_path: Path) -> None:
    cubes = Path(other_cubes(tmp_path / "cubes", SAMPLES))
    content = bytearray((cubes / "0.parquet").read_bytes())
    place = content.find(np.float32(111).tobytes() * 100)
    content[place + 400 : place + 404] = np.float32(np.nan).tobytes()
    (cubes / "0.parquet").write_bytes(content)
    with pytest.raises(InputError, match="planet-0000011: climate holds values that are not finite"):
        batch(folder, {"climate": str(cubes)})


def test_parts_that_are_empty_foreign_cut_or_double_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data.parts=climate=.*: no .parquet file there"):
        batch(folder, {"climate": str(tmp_path)})
    write_part(tmp_path / "a.parquet", [sample(1)], "planet")
    with pytest.raises(InputError, match="a.parquet: no column climate; a part of it has sample_id, climate"):
        batch(folder, {"climate": str(tmp_path)})
    write_part(tmp_path / "b.parquet", [sample(1)], "planet")
    with pytest.raises(InputError, match="planet-0000001 is in it twice, the second time in .*b.parquet"):
        batch(folder, {"planet": str(tmp_path)})
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="b.parquet: cannot be read .* write it again or take it away"):
        batch(folder, {"planet": str(tmp_path)})


def test_a_part_that_goes_away_is_named(folder: Path, tmp_path: Path) -> None:
    cubes = Path(other_cubes(tmp_path / "cubes", SAMPLES))
    source = JoinedSource(ShardSource(folder, "train", check=False), {"climate": str(cubes)}, "error")
    (cubes / "1.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="1.parquet cannot be read any more"):
        next(iter(BatchStream(source, "train", 12)))


def test_a_part_may_be_compressed(folder: Path, tmp_path: Path) -> None:
    cubes = Path(other_cubes(tmp_path / "cubes", SAMPLES))
    for path in cubes.iterdir():
        pq.write_table(pq.read_table(path), path, compression="zstd")
    joined = batch(folder, {"climate": str(cubes)})
    assert [c.unique().item() - 100 for c in joined.climate] == [number_of(key) for key in joined.sample_ids]


def test_what_is_asked_for_is_read_as_modality_and_folder() -> None:
    assert parse_parts(["climate=/a=b", "graph=s3://x"]) == {"climate": "/a=b", "graph": "s3://x"}
    for wrong in (["climate"], ["climate="], ["clouds=/a"], ["text=/a"]):
        with pytest.raises(InputError, match=f"data.parts={wrong[0]}: expected modality=folder"):
            parse_parts(wrong)
    with pytest.raises(InputError, match="data.parts=climate=/b: climate is given twice"):
        parse_parts(["climate=/a", "climate=/b"])
