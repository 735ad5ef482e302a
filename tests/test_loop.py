"""The loop: what it does when, and what stops it."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from rank_job import STEPS, batches, engine_of

from trainers.cnn import CNNTrainer
from trainers.engine import StepReport
from trainers.loop import Fitted, evaluate, fit


@dataclass
class Diary:
    """A log that remembers."""

    steps: list[int] = field(default_factory=list)
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)

    def step(self, report: StepReport, seconds: float) -> None:
        self.steps.append(report.step)

    def evaluation(self, step: int, means: Mapping[str, float], scores: Mapping[str, float]) -> None:
        self.evaluations[step] = {**means, **scores}

    def figures(self, step: int, figures: Mapping[str, Figure]) -> None:
        self.pictures += sorted(figures)


def run(folder: Path, diary: Diary, saves: list[int], start: Any = None, **train: Any) -> tuple[Fitted, CNNTrainer]:
    trainer = CNNTrainer(start or engine_of("cnn", 1, "local", **train))
    engine = trainer.engine
    fitted = fit(
        trainer,
        batches(0, 1, engine.step),
        lambda: list(batches(0, 1))[:2],
        lambda: saves.append(engine.step),
        diary,
        folder,
    )
    return fitted, trainer


def test_it_evaluates_and_saves_when_asked_and_at_the_end(tmp_path: Path) -> None:
    diary, saves = Diary(), []
    fitted, _ = run(tmp_path, diary, saves, eval_every_steps=3, save_every_steps=2)
    assert diary.steps == [1, 2, 3, 4] and fitted.reason == "finished"
    assert sorted(diary.evaluations) == [3, 4] and saves == [2, 4]
    assert diary.pictures == ["climate", "spectrum"] * 2
    assert fitted.means["climate/recon"] == diary.evaluations[4]["climate/recon"]


def test_a_deadline_saves_and_stops(tmp_path: Path) -> None:
    saves: list[int] = []
    fitted, _ = run(tmp_path, Diary(), saves, deadline_s=1e-6)
    assert (fitted.step, fitted.reason, saves) == (1, "deadline", [1])


def test_a_stop_file_of_this_run_stops_it_and_one_of_an_earlier_run_does_not(tmp_path: Path) -> None:
    (tmp_path / "stop").touch()
    diary, saves = Diary(), []
    diary.step = lambda report, seconds: (tmp_path / "stop").touch() if report.step == 2 else None  # type: ignore[method-assign]
    fitted, _ = run(tmp_path, diary, saves)
    assert (fitted.step, fitted.reason, saves) == (2, "stop file", [2])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_stops_without_evaluating(name: str, tmp_path: Path) -> None:
    diary, saves = Diary(), []
    number = getattr(signal, name)
    diary.step = lambda report, seconds: os.kill(os.getpid(), number)  # type: ignore[method-assign]
    before = signal.getsignal(number)
    fitted, _ = run(tmp_path, diary, saves)
    assert (fitted.step, fitted.reason, saves, diary.evaluations) == (1, name, [1], {})
    assert signal.getsignal(number) == before


def test_where_the_host_runs_ahead_a_step_is_logged_when_the_next_one_is_queued(tmp_path: Path) -> None:
    engine, diary, saves = engine_of("cnn", 1, "local"), Diary(), []
    engine.steps_ahead = 1
    logged_after: list[tuple[int, int]] = []
    diary.step = lambda report, seconds: logged_after.append((report.step, engine.step))  # type: ignore[method-assign]
    run(tmp_path, diary, saves, engine)
    assert logged_after == [(1, 2), (2, 3), (3, 4), (4, 4)] and saves == [4]


def test_where_the_host_runs_ahead_all_is_logged_before_it_evaluates_and_it_stops_a_step_later(tmp_path: Path) -> None:
    engine, saves = engine_of("cnn", 1, "local", eval_every_steps=1, deadline_s=1e-6), []
    engine.steps_ahead = 1
    diary = Diary()
    fitted, _ = run(tmp_path, diary, saves, engine)
    assert (fitted.step, fitted.reason, saves) == (2, "deadline", [2])
    assert diary.steps == [1, 2] and sorted(diary.evaluations) == [1, 2]


def test_a_run_with_no_steps_left_only_evaluates(tmp_path: Path) -> None:
    diary, saves = Diary(), []
    _, trainer = run(tmp_path, diary, saves)
    fitted, _ = run(tmp_path, Diary(), saves, trainer.engine)
    assert fitted.step == STEPS and saves == [4]


def test_accumulation_takes_that_many_batches_a_step(tmp_path: Path) -> None:
    engine = engine_of("cnn", 1, "local", accumulation=2)
    engine.config = replace(engine.config, train=replace(engine.config.train, steps=2))
    fitted, _ = run(tmp_path, Diary(), [], engine)
    assert fitted.step == 2  # 4 batches


def test_held_out_means_weigh_samples_not_batches() -> None:
    trainer = CNNTrainer(engine_of("cnn", 1, "local"))
    whole = list(batches(0, 1))[:1]
    halves = [next(batches(0, 2)), next(batches(1, 2))]
    together, _ = evaluate(trainer, whole, Diary())
    apart, _ = evaluate(trainer, [*halves], Diary())
    assert apart == pytest.approx(together, rel=1e-5)
    limited = replace(trainer.engine.config.train, eval_batches=1)
    trainer.engine.config = replace(trainer.engine.config, train=limited)
    first, _ = evaluate(trainer, halves, Diary())
    assert first != pytest.approx(together, rel=1e-5)
    assert np.isfinite(list(first.values())).all()
