from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from data_fixture import PLANETS, built_dataset

from data_pipeline import assemble, build, habitat, shards
from data_pipeline.batch import ENVIRONMENT_VECTOR, GRAPH, Sample
from data_pipeline.errors import InputError
from data_pipeline.shards import Manifest

FEW = 6  # planets of the builds that are stopped, damaged and repeated


class DataSet(NamedTuple):
    folder: Path
    manifest: Manifest
    samples: list[Sample]


@pytest.fixture(scope="module")
def data() -> DataSet:
    folder = built_dataset()
    manifest = shards.verify(folder)
    return DataSet(
        folder,
        manifest,
        [s for shard in manifest.shards for s in shards.to_samples(shards.read_shard(folder / shard.file))],
    )


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("few") / "data"
    build.build(folder, FEW, seed=3, workers=1)
    yield folder
    shutil.rmtree(folder)


# --- what is in a data set -------------------------------------------------------------------------------------------
def test_every_planet_is_there_once_and_no_system_is_in_two_splits(data: DataSet) -> None:
    assert len({s.sample_id for s in data.samples}) == len(data.samples) == PLANETS == data.manifest.planets
    splits: dict[str, set[str]] = {}
    for sample in data.samples:
        splits.setdefault(sample.system_id, set()).add(sample.split)
        assert sample.split == shards.split_of(sample.system_id)
    assert all(len(found) == 1 for found in splits.values())
    assert data.manifest.facts["systems_shared_between_splits"] == 0


def test_habitable_is_enough_water_and_one_organism_that_can_live_there(data: DataSet) -> None:
    for sample in data.samples:
        facts = sample.facts
        assert sample.habitable == (
            facts["liquid_water_share"] >= assemble.HABITABLE_WATER_SHARE and facts["feasible_organisms"] >= 1
        )
        assert sample.habitable == facts["habitable"]
    assert 0.1 < np.mean([s.habitable for s in data.samples]) < 0.9


def test_without_liquid_water_there_is_no_environment_and_no_life(data: DataSet) -> None:
    for sample in data.samples:
        wet = sample.facts["liquid_water_share"] > 0
        assert bool(sample.present[ENVIRONMENT_VECTOR]) == wet == bool(sample.environment.any())
        assert wet or (sample.facts["feasible_organisms"] == 0 and not sample.present[GRAPH])


def test_the_network_of_a_planet_belongs_to_its_split_and_runs_on_its_nutrients(data: DataSet) -> None:
    shown = [s for s in data.samples if s.present[GRAPH]]
    assert len(shown) >= 5
    for sample in shown:
        graph = sample.graph
        (key,) = assemble.network_keys({(graph.organism, graph.nutrients): graph}).values()
        assert shards.split_of(key) == sample.split
        assert graph.organism in habitat.viable_organisms(sample.environment)
        assert tuple(habitat.nutrients(sample.environment)) == graph.nutrients
        assert 0 < len(graph.metabolites) <= 64 and graph.edge_type.min() >= 1
        assert [data.manifest.vocabulary[i] for i in graph.metabolite_index] == list(graph.metabolites)


def test_an_absent_network_is_empty(data: DataSet) -> None:
    assert all(len(s.graph.metabolites) == 0 and s.graph.organism == "" for s in data.samples if not s.present[GRAPH])


def test_the_counts_of_the_manifest_are_those_of_the_samples(data: DataSet) -> None:
    facts = data.manifest.facts
    assert facts["planets"] == PLANETS and sum(facts["rows"].values()) == PLANETS
    for split in shards.SPLITS:
        mine = [s for s in data.samples if s.split == split]
        assert facts["networks"][split] == sum(bool(s.present[GRAPH]) for s in mine)
        assert facts["habitable_share"][split] == pytest.approx(np.mean([s.habitable for s in mine]), abs=1e-3)
    assert facts["distinct_networks"] == len({assemble.edge_names(s.graph) for s in data.samples if s.present[GRAPH]})
    assert facts["organism_nutrient_pairs_shared_between_splits"] == facts["networks_shared_between_splits"] == 0


def test_the_chemistry_is_that_of_the_vocabulary(data: DataSet) -> None:
    chemistry = shards.load_chemistry(data.folder)
    assert tuple(chemistry["metabolites"]) == data.manifest.vocabulary == tuple(sorted(data.manifest.vocabulary))
    assert len(chemistry["composition"]) == len(data.manifest.vocabulary)


def test_the_network_that_the_fewest_planets_show_is_taken() -> None:
    keys = {("a", ()): "x>y", ("b", ()): "x>y", ("c", ()): "x>z"}
    split = {shards.split_of(k) for k in keys.values()}
    assert split == {"train"}
    shown = Counter({"x>y": 3})
    assert assemble.choose("planet-1", "train", keys, keys, 0, shown) == ("c", ())
    assert shown == {"x>y": 3, "x>z": 1}
    assert assemble.choose("planet-1", "test", keys, keys, 0, shown) is None


# --- stopping, repeating, damage -------------------------------------------------------------------------------------
def checksums(folder: Path) -> list[tuple[str, str]]:
    return [(s.file, s.sha256) for s in shards.load_manifest(folder).shards]


@pytest.mark.parametrize("phase", [".build/[a-z]*-0*.parquet", ".build/networks-*.parquet"])
def test_a_build_that_was_killed_goes_on_and_ends_with_the_same_bytes(few: Path, tmp_path: Path, phase: str) -> None:
    command = [sys.executable, "-m", "data_pipeline.build", "--planets", str(FEW), "--seed", "3", "--workers", "2"]
    command += ["--out", str(tmp_path / "data")]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "data").glob(phase)):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    while workers_of(running.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with pytest.raises(InputError, match="did not finish"):
        shards.load_manifest(tmp_path / "data")
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "chunks are there" in again.stdout
    assert checksums(tmp_path / "data") == checksums(few)  # by one process, never stopped
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == sorted(p.name for p in few.iterdir())


def workers_of(session: int) -> list[int]:
    """Processes of a session that are still alive."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


def test_a_finished_build_is_not_done_again(few: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = time.monotonic()
    assert build.main(["--planets", str(FEW), "--seed", "3", "--out", str(few)]) == 0
    assert time.monotonic() - before < 3 and "already complete" in capsys.readouterr().out


def test_a_truncated_shard_is_replaced_by_the_same_bytes(few: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(few, tmp_path / "data")
    first = copy / checksums(few)[0][0]
    first.write_bytes(first.read_bytes()[:100])
    with pytest.raises(InputError, match="truncated"):
        shards.verify(copy)
    build.build(copy, FEW, seed=3, workers=1)
    assert checksums(copy) == checksums(few)


def test_a_folder_with_other_data_is_refused(few: Path) -> None:
    with pytest.raises(InputError, match="holds data of seed=3, asked for 4; give an empty folder"):
        build.build(few, FEW, seed=4)
    with pytest.raises(InputError, match=f"holds data of planets={FEW}, asked for 7"):
        build.build(few, 7, seed=3)


@pytest.mark.parametrize(
    ("name", "complaint"), [("full", "not empty, and not a data set"), ("full/notes.txt", "is a file")]
)
def test_a_foreign_folder_is_left_alone_with_one_line_and_exit_code_2(
    tmp_path: Path, name: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert build.main(["--planets", "2", "--out", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: out=") and complaint in error and error.count("\n") == 1
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be created \(Not a directory\)"):
        build.build(tmp_path / "file" / "data", 2)


@pytest.mark.parametrize(
    ("planets", "seed", "workers", "name"), [(0, 0, 1, "planets"), (1, -1, 1, "seed"), (1, 0, 0, "workers")]
)
def test_numbers_out_of_range_are_named(tmp_path: Path, planets: int, seed: int, workers: int, name: str) -> None:
    with pytest.raises(InputError, match=f"{name}=.*: must be at least"):
        build.build(tmp_path / "data", planets, seed, workers)


def test_a_disk_that_is_too_small_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(InputError, match=r"out=.*: \d+ bytes needed \(0.4. GiB\), 1000 free; free some space"):
        build.build(tmp_path / "data", 900)
    assert not (tmp_path / "data").exists()
