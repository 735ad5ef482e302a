"""Repeat the training step: log, evaluate, save, stop."""

from __future__ import annotations

import itertools
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from data_pipeline.batch import Batch
from trainers.engine import Engine, StepReport
from trainers.tracing import Tracer, waiting_for_data

STOP_FILE = "stop"


@runtime_checkable
class Trainer(Protocol):
    """Knows one part: what its held-out outputs are worth and what they look like."""

    engine: Engine

    def judge(self, batch: Batch, outputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return numbers of each sample (first axis) that `scores` needs."""
        ...

    def scores(self, means: Mapping[str, float], judged: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return held-out scores from the means of the terms and from what `judge` said of all samples."""
        ...

    def figures(self, batch: Batch, outputs: Mapping[str, Tensor]) -> dict[str, Figure]:
        """Return pictures of a held-out batch on rank 0; called by all ranks together."""
        ...


@runtime_checkable
class Log(Protocol):
    """Where a run is watched; rank 0 alone holds one that does something."""

    def step(self, report: StepReport, seconds: float) -> None:
        """Take note of a step and of how long it took."""
        ...

    def evaluation(self, step: int, means: Mapping[str, float], scores: Mapping[str, float]) -> None:
        """Take note of held-out means and scores."""
        ...

    def figures(self, step: int, figures: Mapping[str, Figure]) -> None:
        """Keep pictures."""
        ...


class Fitted(NamedTuple):
    """How a training ended."""

    step: int
    reason: str  # "finished", "deadline", "stop file" or the name of a signal
    means: dict[str, float]  # of the last evaluation, held out
    scores: dict[str, float]
    seconds: float


class StopSignals:
    """Notes SIGTERM, SIGINT and SIGUSR1 instead of dying, while the `with` block runs."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.name = ""

    def __enter__(self) -> StopSignals:
        """Take the signals over."""
        self._before = {s: signal.signal(s, self._note) for s in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: object) -> None:
        self.name = signal.Signals(number).name


def fit(
    trainer: Trainer,
    stream: Iterable[Batch],
    held_out: Callable[[], Iterable[Batch]],
    save: Callable[[], None],
    log: Log,
    run: Path,
    tracer: Tracer | None = None,
) -> Fitted:
    """Train until train.steps are done, or until a deadline, RUN/stop or a signal to any rank ends it; then save.

    Args:
        trainer: Of the part; its engine may have steps behind it.
        stream: Training batches, from where the engine's next step begins.
        held_out: Opens the evaluation batches anew.
        save: Writes a checkpoint; called between steps.
        log: Where the run is watched.
        run: Folder of the run.
        tracer: Records some steps; None for none.

    Raises:
        NonFiniteLossError: A loss is NaN or infinite. The checkpoint before it stays.
    """
    engine, train = trainer.engine, trainer.engine.config.train
    began = time.monotonic()
    (run / STOP_FILE).unlink(missing_ok=True)
    batches: Iterator[Batch] = iter(stream)
    means: dict[str, float] = {}
    scores: dict[str, float] = {}
    saved = evaluated = engine.step if engine.step else -1
    reason = ""
    made: deque[tuple[StepReport, float]] = deque()
    asked: deque[tuple[str, Callable[[], bool]]] = deque()
    with StopSignals() as signals, tracer or nullcontext():
        while engine.step < train.steps and not reason:
            step_began = time.monotonic()
            with waiting_for_data():
                micro_batches = tuple(itertools.islice(batches, train.accumulation))
            report = engine.train_step(*micro_batches)
            made.append((report, time.monotonic() - step_began))
            evaluates, saves = (engine.step % n == 0 for n in (train.eval_every_steps, train.save_every_steps))
            # Where the host runs ahead, a step is logged when the next one is queued: it is done by then.
            _log(made, 0 if evaluates or saves else engine.steps_ahead, log, tracer)
            why = _reason_to_stop(signals, run, train.deadline_s, began)
            asked.append((why, engine.any(bool(why))))
            if len(asked) > engine.steps_ahead:
                reason = _stop_together(engine, *asked.popleft())
            if evaluates:
                means, scores = evaluate(trainer, held_out(), log)
                evaluated = engine.step
            if saves:
                save()
                saved = engine.step
        _log(made, 0, log, tracer)
        if evaluated != engine.step and not reason.startswith("SIG"):  # after a signal there may be seconds left
            means, scores = evaluate(trainer, held_out(), log)
        if saved != engine.step:
            save()
    return Fitted(engine.step, reason or "finished", means, scores, time.monotonic() - began)


def _reason_to_stop(signals: StopSignals, run: Path, deadline_s: float, began: float) -> str:
    if signals.name:
        return signals.name
    if deadline_s and time.monotonic() - began > deadline_s:
        return "deadline"
    return "stop file" if (run / STOP_FILE).exists() else ""


def _log(made: deque[tuple[StepReport, float]], kept: int, log: Log, tracer: Tracer | None) -> None:
    """Log the steps and their seconds but the last ones."""
    while len(made) > kept:
        report, seconds = made.popleft()
        log.step(report, seconds)
        if tracer:
            tracer.step(report, seconds)


def _stop_together(engine: Engine, reason: str, on_any: Callable[[], bool]) -> str:
    """Return the reason of the first rank that has one, on all ranks: a rank that stops alone hangs the others."""
    return next(r for r in engine.gather(reason) if r) if on_any() else ""


def evaluate(trainer: Trainer, batches: Iterable[Batch], log: Log) -> tuple[dict[str, float], dict[str, float]]:
    """Return the held-out mean of every term over all ranks, and the trainer's scores; draw the first batch."""
    engine, config = trainer.engine, trainer.engine.config
    limit = config.train.eval_batches or None
    totals: dict[str, list[float]] = {}
    judged: list[dict[str, np.ndarray]] = []
    for number, batch in enumerate(itertools.islice(batches, limit)):
        terms, outputs = engine.evaluate(batch)
        for name, term in terms.items():
            total = totals.setdefault(name, [0.0, 0.0])
            total[0] += float(term.total)
            total[1] += float(term.items)
        judged.append(trainer.judge(batch, outputs))
        if number == 0 and config.log.figures:
            log.figures(engine.step, trainer.figures(batch, outputs))
    means = {n: total / items if items else float("nan") for n, (total, items) in totals.items()}
    everything: list[dict[str, np.ndarray]] = [part for rank in engine.gather(judged) for part in rank]
    keys: Any = everything[0] if everything else ()
    scores = trainer.scores(means, {k: np.concatenate([part[k] for part in everything]) for k in keys})
    log.evaluation(engine.step, means, scores)
    return means, scores
