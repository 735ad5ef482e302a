from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from data_fixture import chain, sample

from data_pipeline import check_data, describe, shards
from data_pipeline.batch import Sample
from data_pipeline.errors import InputError
from data_pipeline.shards import Manifest
from trainers.records import read_records

SURFACE = {f"{which}_surface_temperature_k": 280.0 for which in ("mean", "min", "max")}


def told(number: int, split: str) -> Sample:
    made = sample(number, chain("a", "b", "c"), split)
    return replace(made, facts={**made.facts, **SURFACE})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four planets to train with, two to judge by."""
    written = [
        shards.write_shard(tmp_path / "train-00000.parquet", [told(n, "train") for n in range(1, 5)]),
        shards.write_shard(tmp_path / "test-00000.parquet", [told(n, "test") for n in (7, 8)]),
    ]
    (tmp_path / "chemistry.json").write_text('{"metabolites": ["a", "b", "c"]}')
    shards.save_manifest(
        tmp_path,
        Manifest(planets=6, seed=0, sources={}, vocabulary=("a", "b", "c"), shards=tuple(written), facts={}),
    )
    return tmp_path


def upload(folder: Path, name: str) -> str:
    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/{name}/{path.name}", path.read_bytes())
    return f"memory://{name}"


def test_records_keep_what_a_judge_needs_and_no_cube(folder: Path) -> None:
    first, second = read_records(folder, "test")
    assert (first.sample_id, first.split, first.organism) == ("planet-0000007", "test", "iML1515")
    assert first.edges == {("a", "b"), ("b", "c")} and second.planet.tolist() == [8.0] * 8
    assert first.spectrum_ppm.base is None  # its own memory, so that the shard can be freed


def test_records_at_a_url_are_those_on_the_disk(folder: Path) -> None:
    url = upload(folder, "records")
    for split in ("train", "test"):
        for here, there in zip(read_records(folder, split), read_records(url, split), strict=True):
            assert (here.sample_id, here.habitable, here.edges) == (there.sample_id, there.habitable, there.edges)
            for name in ("planet", "spectrum_ppm", "read_off", "environment"):
                assert np.array_equal(getattr(here, name), getattr(there, name))


def test_a_shard_that_cannot_be_read_is_one_line(folder: Path) -> None:
    url = upload(folder, "torn")
    fsspec.filesystem("memory").pipe_file("/torn/test-00000.parquet", b"PAR1")
    with pytest.raises(InputError, match="shard=memory://torn/test-00000.parquet: cannot be read"):
        read_records(url, "test")
    (folder / "test-00000.parquet").unlink()
    with pytest.raises(InputError, match="test-00000.parquet: cannot be read"):
        read_records(folder, "test")


def test_data_at_a_url_can_be_checked_and_its_page_is_refused(folder: Path) -> None:
    url = upload(folder, "checked")
    assert check_data.complaints(url) == []
    fsspec.filesystem("memory").pipe_file("/checked/train-00000.parquet", b"cut")
    (found,) = check_data.complaints(url)
    assert found.startswith("shard=memory://checked/train-00000.parquet: 3 bytes, the manifest says")
    with pytest.raises(InputError, match="data=memory://checked: the page is written into the data folder"):
        describe.describe(url)
