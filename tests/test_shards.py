from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_fixture import chain, sample

from data_pipeline import shards
from data_pipeline.errors import InputError
from data_pipeline.shards import Manifest


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Two shards, five samples, one manifest."""
    written = (
        shards.write_shard(
            tmp_path / "train-00000.parquet", [sample(0), sample(1, chain("glc__D_c", "pyr_c")), sample(2)]
        ),
        shards.write_shard(tmp_path / "test-00000.parquet", [sample(3, split="test"), sample(4, split="test")]),
    )
    manifest = Manifest(
        planets=5, seed=7, sources={"clero": "0.1.4"}, vocabulary=("glc__D_c",), shards=written, facts={}
    )
    shards.save_manifest(tmp_path, manifest)
    (tmp_path / "chemistry.json").write_text('{"metabolites": ["glc__D_c"]}')
    return tmp_path


def test_a_sample_comes_back_from_its_shard_as_it_was_written(tmp_path: Path) -> None:
    before = sample(3, chain("glc__D_c", "g6p_c", "pyr_c"))
    shards.write_shard(tmp_path / "a.parquet", [sample(1), before])
    after = shards.to_samples(shards.read_shard(tmp_path / "a.parquet"))[1]
    assert after.sample_id == "planet-0000003" and after.habitable and after.facts == {"liquid_water_share": 0.5}
    assert after.graph.metabolites == ("glc__D_c", "g6p_c", "pyr_c") and after.graph.nutrients == ("o2_e",)
    assert after.graph.edge_index.tolist() == [[0, 1], [1, 2]] and after.graph.edge_type.tolist() == [2, 2]
    for name in shards.SAMPLE_TENSORS:
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_an_absent_network_comes_back_without_nodes_or_edges(tmp_path: Path) -> None:
    shards.write_shard(tmp_path / "a.parquet", [sample(1)])
    (after,) = shards.to_samples(shards.read_shard(tmp_path / "a.parquet"))
    assert after.graph.features.shape == (0, 10) and after.graph.edge_index.shape == (2, 0)


def test_a_shard_is_one_row_group_of_434_kilobytes_a_sample(tmp_path: Path) -> None:
    shard = shards.write_shard(tmp_path / "a.parquet", [sample(n) for n in range(4)])
    assert pq.read_metadata(tmp_path / "a.parquet").num_row_groups == 1
    assert shard.rows == 4 and 4 * 53 * 32 * 64 * 4 < shard.bytes < 4 * shards.SAMPLE_BYTES
    assert shard.bytes == (tmp_path / "a.parquet").stat().st_size
    assert shard.sha256 == shards.sha256_of(tmp_path / "a.parquet")


def test_a_tensor_of_another_shape_is_not_written() -> None:
    with pytest.raises(ValueError, match=r"planet-0000001: planet has shape \(3,\), the schema says \(8,\)"):
        shards.to_table([replace(sample(1), planet=np.zeros(3, np.float32))])


def test_a_number_that_is_not_finite_is_not_written() -> None:
    with pytest.raises(ValueError, match="planet-0000001: environment holds values that are not finite"):
        shards.to_table([replace(sample(1), environment=np.full(20, np.nan, np.float32))])


def test_the_splits_take_seventy_fifteen_and_fifteen_percent_of_keys() -> None:
    found = [shards.split_of(f"system-{n}") for n in range(10_000)]
    assert found.count("train") / 1e4 == pytest.approx(0.70, abs=0.02)
    assert found.count("held_out") / 1e4 == pytest.approx(0.15, abs=0.02)
    assert shards.split_of("TRAPPIST-1") == shards.split_of("TRAPPIST-1")


def test_the_manifest_comes_back_as_it_was_saved(data_dir: Path) -> None:
    manifest = shards.load_manifest(data_dir)
    assert (manifest.planets, manifest.seed, manifest.vocabulary) == (5, 7, ("glc__D_c",))
    assert [s.rows for s in manifest.of_split("train")] == [3] and [s.rows for s in manifest.of_split("test")] == [2]
    assert shards.verify(data_dir) == manifest
    assert shards.load_chemistry(data_dir) == {"metabolites": ["glc__D_c"]}


def test_an_unknown_split_is_named_with_those_that_exist(data_dir: Path) -> None:
    with pytest.raises(InputError, match="split='valid': choose from train, held_out, test"):
        shards.load_manifest(data_dir).of_split("valid")


def test_a_folder_that_does_not_exist_is_named_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none: no such folder; build it with: ./launch.sh build-data"):
        shards.load_manifest(tmp_path / "none")


def test_a_folder_without_manifest_is_told_from_a_build_that_did_not_finish(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no manifest.json in it; build it with"):
        shards.load_manifest(tmp_path)
    (tmp_path / ".build").mkdir()
    with pytest.raises(InputError, match="did not finish, run the same build-data command again"):
        shards.load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not JSON"),
        ("[]", "not a manifest of an Exobiome data set"),
        ('{"kind": "package-lock"}', "not a manifest of an Exobiome data set"),
        (
            '{"kind": "exobiome-dataset", "schema_version": 99}',
            "schema_version=99, this version reads 1; build the data",
        ),
        ('{"kind": "exobiome-dataset", "schema_version": 1}', "a field is missing or unknown"),
        ('{"kind": "exobiome-dataset", "schema_version": 1, "shards": [{"x": 1}]}', "a field is missing or unknown"),
    ],
)
def test_a_foreign_or_broken_manifest_is_refused(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=complaint):
        shards.load_manifest(tmp_path)


def test_a_missing_chemistry_is_named(data_dir: Path) -> None:
    (data_dir / "chemistry.json").unlink()
    with pytest.raises(InputError, match=r"chemistry.json: cannot be read .* run the same build-data again"):
        shards.load_chemistry(data_dir)


def test_a_missing_shard_is_named_with_the_way_out(data_dir: Path) -> None:
    (data_dir / "test-00000.parquet").unlink()
    with pytest.raises(
        InputError, match=r"test-00000.parquet: missing; run the same build-data again \(--planets 5 --seed 7\)"
    ):
        shards.verify(data_dir, checksums=False)


def test_a_truncated_shard_is_named_without_reading_it(data_dir: Path) -> None:
    path = data_dir / "train-00000.parquet"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"train-00000.parquet: 1000 bytes, the manifest says \d+ \(truncated\?\)"):
        shards.verify(data_dir, checksums=False)
    assert shards.whole_rows(path) == 0


def test_one_changed_byte_is_a_wrong_checksum(data_dir: Path) -> None:
    path = data_dir / "train-00000.parquet"
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    shards.verify(data_dir, checksums=False)
    with pytest.raises(InputError, match="train-00000.parquet: wrong checksum"):
        shards.verify(data_dir)


def test_a_full_disk_leaves_no_file_and_says_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"no space left on the disk: 11 bytes needed for a.json, \d+ free"):
        shards.write_bytes(tmp_path / "a.json", b"hello world")
    assert list(tmp_path.iterdir()) == []


def test_another_error_while_writing_comes_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        shards.write_bytes(tmp_path / "none" / "a.json", b"")


def test_the_manifest_file_is_plain_sorted_json(data_dir: Path) -> None:
    content = json.loads((data_dir / "manifest.json").read_text())
    assert content["kind"] == "exobiome-dataset" and list(content) == sorted(content)
