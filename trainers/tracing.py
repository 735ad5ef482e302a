"""Record some steps of a run for TensorBoard, and say how busy the GPU was and what the speed is worth.

The trace lies in RUN/tensorboard/plugins/profile/DATE/rank0.pt.trace.json: TensorBoard shows it with its PyTorch
profiler plugin (pip install torch-tb-profiler), https://ui.perfetto.dev without one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from trainers.engine import StepReport

SKIPPED, WARM_UP, RECORDED = 5, 2, 3  # steps: caches fill, the profiler starts, what is kept
WAIT_FOR_DATA = "exobiome/wait_for_data"
_TOKEN_TABLES = ("embedding.weight", "embed_tokens.weight", "wte.weight")
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
_ON_HOST = ("cpu_op", "cuda_runtime", "cuda_driver", "user_annotation")
_GAP_US = 20.0  # shorter ones lie between any two kernels
# Dense bf16 products, FLOP/s, from NVIDIA's data sheets; found by a part of the device's name.
PEAK_FLOP_S = {"H100": 989e12, "H200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}


class Shares(NamedTuple):
    """What the recorded steps were spent on."""

    steps: int
    step_s: float
    gpu_busy: float  # share of the step in which a kernel or copy runs on the GPU; 0 without one
    data_wait: float  # share of the step in which the loop waits for the next batch


class Tracer:
    """Profiles a few steps after warm-up while the `with` block runs; only on the rank that writes."""

    def __init__(self, run: Path, objective: nn.Module) -> None:
        self._folder = run / "tensorboard" / "plugins" / "profile" / time.strftime("%Y-%m-%d_%H-%M-%S")
        self._parameters = language_parameters(objective)
        self._reports: list[tuple[StepReport, float]] = []
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=SKIPPED, warmup=WARM_UP, active=RECORDED, repeat=1),
            on_trace_ready=self._write,
        )

    def __enter__(self) -> Tracer:
        """Start."""
        self._profile.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop; a run that ends before the steps to record leaves no trace."""
        self._profile.stop()
        if not self._folder.exists():
            say(f"no trace: it takes {SKIPPED + WARM_UP + RECORDED} steps")

    def step(self, report: StepReport, seconds: float) -> None:
        """Take note of the end of a step."""
        self._reports.append((report, seconds))
        self._profile.step()

    def _write(self, done: Any) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "rank0.pt.trace.json"
        done.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
        found = shares(events)
        say(
            f"steps {self._reports[-1][0].step - found.steps + 1} to {self._reports[-1][0].step}: "
            f"{1e3 * found.step_s:.1f} ms each, GPU busy {found.gpu_busy:.1%}, waiting for data {found.data_wait:.1%}"
        )
        if found.gpu_busy:
            idle = ", ".join(f"{name} {ms:.1f} ms" for name, ms in idle_ms(events).items())
            say(f"the GPU has nothing to do, in a step, during: {idle}")
        unrecorded = self._reports[WARM_UP : SKIPPED + WARM_UP]  # the profiler slows the others down
        tokens_per_s = sum(r.tokens for r, _ in unrecorded) / sum(s for _, s in unrecorded)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        say(utilisation(tokens_per_s / world, *self._parameters, device))
        say(f"trace: {path}; tensorboard --logdir {self._folder.parents[2]} (pip install torch-tb-profiler)")


def waiting_for_data() -> record_function:
    """Mark the time in which the loop waits for batches."""
    return record_function(WAIT_FOR_DATA)


def shares(events: Iterable[dict[str, Any]]) -> Shares:
    """Return the shares from the events of a trace (Chrome's format, microseconds)."""
    spans: dict[str, list[tuple[float, float]]] = {"step": [], "data": [], "gpu": []}
    for event in events:
        if event.get("ph") != "X":
            continue
        span = (float(event["ts"]), float(event["ts"]) + float(event["dur"]))
        if event.get("cat") in _ON_GPU:
            spans["gpu"].append(span)
        elif event.get("cat") == "user_annotation" and event["name"].startswith("ProfilerStep#"):
            spans["step"].append(span)
        elif event.get("cat") == "user_annotation" and event["name"] == WAIT_FOR_DATA:
            spans["data"].append(span)
    begin, end = min(b for b, _ in spans["step"]), max(e for _, e in spans["step"])
    busy, wait = (_covered(spans[kind], begin, end) / (end - begin) for kind in ("gpu", "data"))
    return Shares(len(spans["step"]), (end - begin) / len(spans["step"]) / 1e6, busy, wait)


def idle_ms(events: Iterable[dict[str, Any]], most: int = 8) -> dict[str, float]:
    """Return in which calls of the host the GPU has nothing to do, in milliseconds a step, the dearest first.

    A gap between kernels counts for the shortest call that covers its middle: a wait (cudaStreamSynchronize), an
    allocation (cudaMalloc), an operator that is launched too slowly; "Python" where no call does.
    """
    known = [e for e in events if e.get("ph") == "X"]
    steps = [e for e in known if e["name"].startswith("ProfilerStep#") and e.get("cat") == "user_annotation"]
    begin, end = min(e["ts"] for e in steps), max(e["ts"] + e["dur"] for e in steps)
    host = [e for e in known if e.get("cat") in _ON_HOST and not e["name"].startswith("ProfilerStep#")]
    starts, lengths = (np.array([e[key] for e in host], float) for key in ("ts", "dur"))
    found: dict[str, float] = {}
    reached = begin
    busy = sorted((e["ts"], e["ts"] + e["dur"]) for e in known if e.get("cat") in _ON_GPU)
    for left, right in [*(span for span in busy if span[1] > begin and span[0] < end), (end, end)]:
        if left - reached > _GAP_US:
            middle = (left + reached) / 2
            over = np.flatnonzero((starts <= middle) & (starts + lengths >= middle))
            name = host[over[lengths[over].argmin()]]["name"] if len(over) else "Python"
            found[name] = found.get(name, 0.0) + (left - reached) / 1e3 / len(steps)
        reached = max(reached, right)
    return dict(sorted(found.items(), key=lambda item: -item[1])[:most])


def _covered(spans: list[tuple[float, float]], begin: float, end: float) -> float:
    """Return how much of [begin, end] lies in at least one span."""
    total, reached = 0.0, begin
    for left, right in sorted(spans):
        left, right = max(left, reached), min(right, end)
        if right > left:
            total, reached = total + right - left, right
    return total


def language_parameters(objective: nn.Module) -> tuple[int, int]:
    """Return how many frozen and trained parameters each token passes: the language model without its token table.

    A table that is the head at the same time does multiply, and counts.
    """
    language = getattr(objective, "language", None)
    if language is None:
        return 0, 0
    names: dict[int, list[str]] = {}
    for name, parameter in language.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    counts = [0, 0]
    for parameter in language.parameters():
        if not all(name.endswith(_TOKEN_TABLES) for name in names[id(parameter)]):
            counts[parameter.requires_grad] += getattr(parameter, "ds_numel", parameter.numel())
    for module in language.modules():  # whose frozen weights are no parameters any more (trainers/frozen.py)
        taken = getattr(module, "frozen_numbers", {})
        counts[0] += sum(size for name, size in taken.items() if not name.endswith(_TOKEN_TABLES))
    return counts[0], counts[1]


def utilisation(tokens_per_s: float, frozen: int, trained: int, device: str) -> str:
    """Return the model FLOP utilisation of one GPU with its formula.

    A frozen weight costs 4 operations a token: 2 forward and 2 for the gradient of what came in; a trained one 2 more.
    Recomputation does not count, nor do attention scores and the networks beside the language model.
    """
    if not tokens_per_s or not frozen + trained:
        return "MFU: no tokens, so the rule of 4 N and 6 N operations a token says nothing"
    flop_s = tokens_per_s * (4 * frozen + 6 * trained)
    formula = f"{tokens_per_s:,.0f} tokens/s x (4 x {frozen:,} frozen + 6 x {trained:,} trained) FLOP"
    peak = next((value for name, value in PEAK_FLOP_S.items() if name in device), None)
    if peak is None:
        return f"{flop_s / 1e12:.3g} TFLOP/s = {formula}; no MFU: the peak of {device} is not in PEAK_FLOP_S"
    return f"MFU {flop_s / peak:.1%} = {formula} / {peak:.3g} FLOP/s of {device}"


def say(line: str) -> None:
    """Tell people something on stderr."""
    print(f"[profile] {line}", file=sys.stderr, flush=True)
