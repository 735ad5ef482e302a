"""Let people watch a run: TensorBoard, a progress bar with rate and time left, and a line an evaluation."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from trainers.config import RunConfig
from trainers.engine import StepReport


def memory_gib() -> dict[str, float]:
    """Return the highest memory that this rank has used so far: of the machine and, where there is one, of its GPU."""
    scale = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss: bytes there, kilobytes on Linux
    memory = {"memory/rank_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale}
    if torch.cuda.is_available():
        memory["memory/gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return memory


class Silence:
    """The log of ranks that do not write."""

    def step(self, report: StepReport, seconds: float) -> None:
        """Write nothing."""

    def evaluation(self, step: int, means: Mapping[str, float], scores: Mapping[str, float]) -> None:
        """Write nothing."""

    def figures(self, step: int, figures: Mapping[str, Figure]) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Do nothing."""


class Monitor:
    """Writes RUN/tensorboard and a progress bar on stderr. Tags: train/TERM, held_out/TERM, lr/PART, rate/, memory/."""

    def __init__(self, run: Path, config: RunConfig, done: int) -> None:
        self._every = config.log.scalars_every_steps
        # purge_step: a resumed run draws over what the stopped one logged after its checkpoint.
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=done + 1) if config.log.tensorboard else None
        self._bar = tqdm(
            total=config.train.steps, initial=done, desc=config.train.part, unit="step", disable=not config.log.progress
        )

    def step(self, report: StepReport, seconds: float) -> None:
        """Log a step."""
        self._bar.update(1)
        self._bar.set_postfix(loss=f"{report.loss:.4g}", refresh=False)
        if report.step % self._every:
            return
        self._scalars(
            report.step,
            {
                "train/loss": report.loss,
                **{f"train/{n}": v for n, v in report.means.items()},
                "train/grad_norm": report.grad_norm,
                **{f"lr/{n}": v for n, v in report.lr.items()},
                "rate/samples_per_s": report.samples / seconds,
                "rate/tokens_per_s": report.tokens / seconds,
                "rate/s_per_step": seconds,
                **memory_gib(),
            },
        )

    def evaluation(self, step: int, means: Mapping[str, float], scores: Mapping[str, float]) -> None:
        """Log an evaluation and print its scores."""
        self._scalars(step, {f"held_out/{n}": v for n, v in {**means, **scores}.items()})
        shown = scores or means
        self._bar.write(f"step {step}: " + ", ".join(f"{n} {v:.4g}" for n, v in shown.items()), file=sys.stderr)

    def figures(self, step: int, figures: Mapping[str, Figure]) -> None:
        """Keep pictures."""
        if self._board:
            for name, figure in figures.items():
                self._board.add_figure(f"held_out/{name}", figure, step)

    def close(self) -> None:
        """Write what is still in memory."""
        self._bar.close()
        if self._board:
            self._board.close()

    def _scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self._board:
            for name, value in values.items():
                if math.isfinite(value):
                    self._board.add_scalar(name, value, step)
