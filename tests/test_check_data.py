from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from data_fixture import chain, sample

from data_pipeline import build, shards
from data_pipeline.check_data import complaints
from data_pipeline.shards import Manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six samples, four to train with."""
    train = [sample(n, chain("a", "b")) for n in range(4)]
    return save(
        tmp_path, {"train-00000.parquet": shards.to_table(train[:2]), "train-00001.parquet": shards.to_table(train[2:])}
    )


def save(folder: Path, tables: dict[str, pa.Table], planets: int = 4) -> Path:
    for name, table in tables.items():
        shards.write_table(folder / name, table)
    written = tuple(shards.describe_shard(folder / name, name.split("-")[0]) for name in tables)
    manifest = Manifest(planets=planets, seed=0, sources={}, vocabulary=("a", "b"), shards=written, facts={})
    shards.save_manifest(folder, manifest)
    (folder / "chemistry.json").write_text('{"metabolites": ["a", "b"]}')
    return folder


def test_a_whole_data_set_is_said_to_be_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert complaints(folder) == []
    assert build.main(["--check", str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}: whole\n"


def test_every_bad_shard_is_named_with_exit_code_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray((folder / "train-00000.parquet").read_bytes())
    content[3000] ^= 1
    (folder / "train-00000.parquet").write_bytes(content)
    (folder / "train-00001.parquet").write_bytes(content[:1000])
    assert build.main(["--check", str(folder)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: shard={folder}/train-00000.parquet: wrong checksum")
    assert "train-00001.parquet: 1000 bytes, the manifest says" in second
    assert second.endswith("run the same build-data again (--planets 4 --seed 0), it replaces it")


def test_a_folder_without_data_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--check", "--describe"):
        assert build.main([option, str(tmp_path)]) == 2
        assert "no manifest.json in it" in capsys.readouterr().err


def test_what_is_to_be_built_must_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build.main(["--planets", "3"])
    assert "--planets and --out say what to build" in capsys.readouterr().err


def changed(table: pa.Table, column: str, row: int, value: object) -> pa.Table:
    values = table.column(column).to_pylist()
    values[row] = value
    place = table.column_names.index(column)
    return table.set_column(place, column, pa.array(values, table.schema.field(column).type))


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        ("sample_id", "planet-0000000", "planet-0000000 is in the data twice"),
        ("split", "test", "holds samples that are not of the split train"),
        ("planet", b"123", r"row 1: planet does not have the shape (8,)"),
        (
            "environment",
            np.full(20, np.nan, np.float32).tobytes(),
            "row 1: environment holds values that are not finite",
        ),
        ("metabolite_index", np.array([0, 2]).tobytes(), "row 1: a metabolite is not in the vocabulary"),
        ("present", bytes(6), "row 1: no climate"),
        ("climate", None, "row 1: climate does not have the shape"),
    ],
)
def test_what_a_row_must_not_hold_is_told(folder: Path, column: str, value: object, complaint: str) -> None:
    tables = {f"train-0000{n}.parquet": shards.read_shard(folder / f"train-0000{n}.parquet") for n in range(2)}
    tables["train-00001.parquet"] = changed(tables["train-00001.parquet"], column, 1, value)
    (found,) = complaints(save(folder, tables))
    assert complaint in found and "train-00001.parquet" in found


def test_systems_in_two_splits_and_numbers_that_do_not_add_up_are_told(folder: Path, tmp_path: Path) -> None:
    table = shards.read_shard(folder / "train-00000.parquet")
    other = tmp_path / "other"
    other.mkdir()
    twin = shards.to_table([replace(sample(9, split="test"), system_id="system-1")])
    found = complaints(save(other, {"train-00000.parquet": table, "test-00000.parquet": twin}))
    assert len(found) == 1 and "the system system-1 is in train too" in found[0]
    assert complaints(save(folder, {"train-00000.parquet": table}, planets=5))[0].endswith(
        "the manifest says 5 planets"
    )
    shutil.rmtree(other)


def test_another_schema_and_another_number_of_rows_are_told(folder: Path) -> None:
    table = shards.read_shard(folder / "train-00000.parquet")
    assert "has the columns" in complaints(save(folder, {"train-00000.parquet": table.drop_columns(["facts"])}))[0]
    save(folder, {"train-00000.parquet": table}, planets=2)
    manifest = shards.load_manifest(folder)
    shards.save_manifest(folder, replace(manifest, shards=(replace(manifest.shards[0], rows=3),)))
    assert "2 rows, the manifest says 3" in complaints(folder)[0]
