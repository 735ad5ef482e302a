"""The quickstart: goes on where it stopped, keeps its hands off other folders, and runs the whole project."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_launch import launch

from data_pipeline.errors import InputError
from trainers import quickstart


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("do not lose me")
    assert quickstart.main(["--out", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_finished_quickstart_is_not_run_again(tmp_path: Path) -> None:
    finished = {"planets": 48, "settings": [], "finished": list(quickstart.stages(tmp_path, 48))}
    (tmp_path / "quickstart.json").write_text(json.dumps(finished))
    with pytest.raises(InputError, match="finished"):
        quickstart.open_folder(tmp_path, 48)


def test_a_quickstart_with_other_planets_or_settings_does_not_go_on(tmp_path: Path) -> None:
    (tmp_path / "quickstart.json").write_text(json.dumps({"planets": 48, "settings": [], "finished": ["data"]}))
    assert quickstart.open_folder(tmp_path, 48)["finished"] == ["data"]
    with pytest.raises(InputError, match="planets 48, not 96"):
        quickstart.open_folder(tmp_path, 96)
    with pytest.raises(InputError, match="settings"):
        quickstart.open_folder(tmp_path, 48, ["train.steps=5"])


@pytest.mark.parametrize("state", ["[]", "{}", '{"planets": 48, "settings": []}', '{"finished": 3}', "\x00"])
def test_a_damaged_state_is_no_quickstart_of_ours(state: str, tmp_path: Path) -> None:
    (tmp_path / "quickstart.json").write_text(state)
    with pytest.raises(InputError, match="no quickstart of ours"):
        quickstart.open_folder(tmp_path, 48)


def test_a_wrong_number_or_setting_is_refused_before_any_data_are_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "new")
    for wrong, told in ((["--planets", "0"], "--planets 0"), (["--set", "train.stps=3"], "did you mean steps?")):
        assert quickstart.main(["--out", out, *wrong]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line
    assert not (tmp_path / "new").exists()


def test_a_training_goes_on_and_a_generation_starts_over(tmp_path: Path) -> None:
    stages = quickstart.stages(tmp_path, 48)
    for name in stages:
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    assert quickstart.prepare("cnn", stages["cnn"], tmp_path) == [*stages["cnn"], "--resume"]
    assert quickstart.prepare("generated", stages["generated"], tmp_path) == stages["generated"]
    assert sorted(p.parent.name for p in tmp_path.glob("*/half")) == sorted(set(stages) - {"generated"})


def test_stages_are_words_of_launch_sh(tmp_path: Path) -> None:
    words = [arguments[0] for arguments in quickstart.stages(tmp_path, 2400).values()]
    assert words == ["build-data", "train", "train", "train", "evaluate", "generate"]
    trained = quickstart.stages(tmp_path, 48, ["train.steps=2"])["unified"]
    assert trained[-2:] == ["--set", "train.steps=2"]


def test_a_stage_hears_of_sigterm_and_may_end_by_itself(tmp_path: Path) -> None:
    script = f"""
import sys; sys.path.insert(0, {str(Path(quickstart.__file__).parent.parent)!r})
from trainers.quickstart import run_stage
sys.exit(run_stage(["bash", "-c", "trap 'sleep 0.2; exit 130' TERM; touch {tmp_path}/up; sleep 30 & wait $!"]))
"""
    child = subprocess.Popen([sys.executable, "-c", script])
    for _ in range(400):
        if (tmp_path / "up").exists():
            break
        time.sleep(0.05)
    child.terminate()
    assert child.wait(timeout=20) == 130


@pytest.mark.ranks
@pytest.mark.slow
def test_the_whole_project_runs_small_and_writes_every_promised_number(tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ("train.steps=2", "train.save_every_steps=1", "train.eval_batches=1", "data.samples_per_rank=4")
    small = ("--planets", "64", "--out", str(out), *(part for setting in settings for part in ("--set", setting)))
    result = launch("quickstart", *small, timeout_s=900)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    metrics = json.loads((out / "metrics.json").read_text())
    for row in (
        "unified", "unified_observable", "hz_rule", "gradient_boosting", "climate", "spectrum", "graph", "text",
    ):  # fmt: skip
        assert {"auroc", "brier", "ece"} <= set(metrics["habitability"][row]), row
    for row in ("unified", "nearest_neighbour", "untrained"):
        assert {"edge_precision", "atp_feasible", "unique", "novel"} <= set(metrics["generation"][row]), row
    assert "atp_feasible_shuffled_environment" in metrics["generation"]["unified"]
    assert metrics["data"]["planets"] == 64 and metrics["data"]["systems_shared_between_splits"] == 0
    assert {"distinct_networks", "o2_edge_distance"} <= set(metrics["data"])
    assert metrics["world_size"] == 2 and metrics["zero_stage"] == 3
    assert 0 < metrics["seconds"] < 900 and 0.1 < metrics["peak_memory_gib"] < 10
    assert len(list((out / "generated").glob("*.npz"))) == 16
    assert any((out / "unified" / "tensorboard").glob("events*"))
    again = launch("quickstart", *small)
    assert again.returncode == 2 and "finished" in again.stderr
