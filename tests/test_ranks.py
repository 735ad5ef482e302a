"""Ranks agree with one process: two ZeRO-3 ranks on the CPU against plain torch, saving, going on with other ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rank_job import engine_of, train
from safetensors.torch import load_file
from start_ranks import start_ranks

pytestmark = pytest.mark.ranks
JOB = Path(__file__).with_name("rank_job.py")


def run_ranks(name: str, folder: Path, world: int) -> None:
    """Run a job of rank_job.py on some ranks."""
    folder.mkdir(exist_ok=True)
    start_ranks(JOB, [name, str(folder)], world, folder / "curve.json")


def results(folder: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    return json.loads((folder / "curve.json").read_text()), load_file(folder / "weights.safetensors")


def assert_same_curve(a: list[dict[str, float]], b: list[dict[str, float]], rel: float = 5e-5) -> None:
    for step, (left, right) in enumerate(zip(a, b, strict=True)):
        assert left == pytest.approx(right, rel=rel, abs=1e-6), f"step {step}"


@pytest.mark.parametrize("part", ["cnn", "graph_vae", "unified"])
def test_two_zero3_ranks_equal_one_plain_process(part: str, tmp_path: Path) -> None:
    run_ranks(part, tmp_path, 2)
    curve, weights = results(tmp_path)
    engine = engine_of(part, 1, "local")
    assert_same_curve(curve[:-1], train(engine))
    for name, value in engine.weights().items():
        torch.testing.assert_close(weights[name], value, rtol=2e-5, atol=2e-5, msg=name)


def test_a_rank_whose_samples_lack_modalities_does_not_hang(tmp_path: Path) -> None:
    run_ranks("cnn:missing", tmp_path, 2)
    engine = engine_of("cnn", 1, "local")
    curve = train(engine, without=("climate", "graph", "spectrum"))
    assert_same_curve(results(tmp_path)[0][:-1], curve)


def test_a_run_goes_on_as_if_it_had_never_stopped_also_with_another_number_of_ranks(tmp_path: Path) -> None:
    run_ranks("graph_vae", tmp_path / "whole", 2)
    run_ranks("graph_vae:save", tmp_path / "parts", 2)
    whole_curve, whole = results(tmp_path / "whole")
    run_ranks("graph_vae:resume", tmp_path / "parts", 2)
    curve, weights = results(tmp_path / "parts")
    assert curve == whole_curve[2:]  # to the last bit
    assert all(torch.equal(weights[name], value) for name, value in whole.items())
    run_ranks("graph_vae:resume", tmp_path / "parts", 1)
    curve, weights = results(tmp_path / "parts")
    assert_same_curve(curve, whole_curve[2:])
    for name, value in whole.items():
        torch.testing.assert_close(weights[name], value, rtol=2e-5, atol=2e-5, msg=name)
