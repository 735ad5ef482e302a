"""Measure the unified step with a large language model: through our engine, and its parts apart in plain torch."""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, schedule

from benchmarks import small_networks
from benchmarks.llm import LORA, SHAPES, fused_decoder, parameters_of
from benchmarks.rows import Row, main
from benchmarks.small_networks import data_folder, plain
from data_pipeline.batch import TEXT, Batch
from data_pipeline.stream import BatchStream, open_stream
from models.biochemistry import Chemistry
from models.configs import LanguageConfig
from models.fused_decoder import DecoderShape
from models.language import LanguageModel, load_tokenizer
from models.losses import Term
from models.objectives import ObjectiveOutput, UnifiedObjective, build_objective
from trainers import presets
from trainers.config import RunConfig
from trainers.engine import DeepSpeedEngine, tokens_of
from trainers.inputs import OnDevice
from trainers.tracing import idle_ms, shares

WORDS = 49152  # of the packaged tokenizer, which writes the texts
SIZES = {
    "13b": replace(SHAPES["13b"], vocabulary=WORDS),
    "1b": DecoderShape(
        width=2048, inner=5632, layers=22, heads=32, kv_heads=4, head_width=64, vocabulary=WORDS, norm_eps=1e-5
    ),
    "tiny": replace(SHAPES["tiny"], vocabulary=WORDS),
}
PROFILED = 2


def options() -> argparse.ArgumentParser:
    """Return the options of these rows."""
    p = argparse.ArgumentParser(add_help=False)
    p.add_argument("--size", choices=tuple(SIZES), default="13b", help="of the language model (13b, random weights)")
    p.add_argument("--samples", type=int, default=64, help="planets a step (64)")
    p.add_argument("--tokenizer", default="packaged", metavar="DIR", help="folder of a tokenizer (the packaged one)")
    p.add_argument("--steps", type=int, default=8, help="steps that are timed (8)")
    p.add_argument("--within-gib", type=float, default=0.0, help="memory that activations may fill (all of the card)")
    p.add_argument("--warm-up", type=int, default=4, help="steps before them (4)")
    return p


def given() -> argparse.Namespace:
    """Return the options of the command line."""
    return options().parse_known_args(sys.argv[1:])[0]


def settings() -> RunConfig:
    """Return the preset for one GPU with adapters on every projection; all texts are read and answered."""
    asked, config = given(), presets.one_gpu("unified")
    language = LanguageConfig(checkpoint=asked.tokenizer, dtype="bfloat16", lora=LORA)
    return replace(
        config,
        model=replace(config.model, language=language),
        data=replace(config.data, samples_per_rank=asked.samples),
    )


def open_data(config: RunConfig) -> BatchStream:
    """Return the training stream that every row reads from its beginning."""
    return open_stream(
        data_folder(),
        "train",
        config.data.samples_per_rank,
        tokenizer=load_tokenizer(config.model.language),
        max_tokens=config.data.max_tokens,
        workers=2,
        pin_memory=torch.cuda.is_available(),
    )


def ours() -> dict[str, Any]:
    """Train all together under ZeRO-3 from the stream; then profile some steps more."""
    config = settings()
    stream = open_data(config)
    decoder = fused_decoder(SIZES[given().size], within_gib=given().within_gib)
    torch.manual_seed(0)
    objective = UnifiedObjective(config.model, Chemistry.from_dict(stream.chemistry), decoder)
    engine = DeepSpeedEngine(objective, config)
    losses: list[float] = []

    def step(batch: Batch) -> None:
        losses.append(engine.train_step(batch).loss)

    inputs = OnDevice(stream, engine.device)
    batches = iter(inputs)
    result = measure(step, batches, engine.device) | {"layers_run_again": decoder.last_again}
    return result | profiled(step, batches) | facts(losses)


def measure(step: Callable[[Batch], None], batches: Iterator[Batch], device: torch.device) -> dict[str, Any]:
    """Make the steps; return their time and how long each waited for its batch.

    The wait is from the moment at which the device has nothing left to do until the next batch lies on it. A step ends
    when the host has read its loss and gradient norm, so the clock of the host sees all of it but the end of the copy,
    for which the device's own is read.
    """
    asked = given()
    seconds, waits, tokens = [], [], []
    for _ in range(asked.warm_up + asked.steps):
        wait(device)
        began = time.perf_counter()
        before = mark(device)
        batch = next(batches)
        after = mark(device)
        waited = time.perf_counter() - began
        step(batch)
        wait(device)
        seconds.append(time.perf_counter() - began)
        waits.append(waited if before is None else before.elapsed_time(after) / 1e3)
        tokens.append(int(tokens_of((batch,))))
    timed = slice(asked.warm_up, None)
    step_s = statistics.mean(seconds[timed])
    on_gpu = device.type == "cuda"
    return {
        "step_s": step_s,
        "steps_s": [round(s, 4) for s in seconds],
        "samples_per_s": asked.samples / step_s,
        "tokens": statistics.mean(tokens[timed]),
        "tokens_per_s": statistics.mean(tokens[timed]) / step_s,
        "data_wait_share": sum(waits[timed]) / sum(seconds[timed]),
        "longest_data_wait_ms": 1e3 * max(waits[timed]),
        "peak_allocated_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0,
        "peak_reserved_gib": torch.cuda.max_memory_reserved() / 2**30 if on_gpu else 0.0,
        "memory_retries": torch.cuda.memory_stats()["num_alloc_retries"] if on_gpu else 0,
    }


def wait(device: torch.device) -> None:
    """Wait until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def mark(device: torch.device) -> Any:
    """Record an event on a GPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def profiled(step: Callable[[Batch], None], batches: Iterator[Batch]) -> dict[str, Any]:
    """Return how busy the GPU is in some steps under the profiler, which slows the host down, and with what.

    EXOBIOME_BENCH_PROFILE names a file in which the trace is kept, compressed.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        with profile(
            activities=activities,
            schedule=schedule(wait=0, warmup=1, active=PROFILED, repeat=1),
            on_trace_ready=lambda done: done.export_chrome_trace(str(path)),
        ) as profiler:
            for _ in range(1 + PROFILED):
                step(next(batches))
                profiler.step()
        text = path.read_text()
    if kept := os.environ.get("EXOBIOME_BENCH_PROFILE"):
        Path(kept).write_bytes(gzip.compress(text.encode(), 3))
    events = json.loads(text)["traceEvents"]
    found = shares(events)
    return {
        "gpu_busy": found.gpu_busy, "profiled_step_s": found.step_s,
        "gpu_idle_ms_a_step": {name: round(ms, 2) for name, ms in idle_ms(events, most=16).items() if found.gpu_busy},
        "kernels_ms_a_step": kernel_ms(events, found.steps),
    }  # fmt: skip


def kernel_ms(events: Sequence[Mapping[str, Any]], steps: int, most: int = 16) -> dict[str, float]:
    """Return how long the dearest kernels and copies of a trace run, in milliseconds a step, by name."""
    sums: Counter[str] = Counter()
    for event in events:
        if event.get("ph") == "X" and event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            sums[event["name"][:90]] += event["dur"] / 1e3 / steps
    return {name: round(ms, 2) for name, ms in sums.most_common(most)}


def facts(losses: list[float]) -> dict[str, Any]:
    """Return what the row trained."""
    asked = given()
    parameters = parameters_of(SIZES[asked.size])
    return {
        "language_parameters": parameters, "samples": asked.samples, "losses": [round(x, 4) for x in losses[:12]]
    }  # fmt: skip


class Answers(nn.Module):
    """The language model alone, on the places that it reads in the unified step."""

    def __init__(self, config: RunConfig, causal: Any) -> None:
        super().__init__()
        fusion = config.model.fusion
        self.language = LanguageModel(config.model.language, causal, fusion.width)
        self.shape = (fusion.tokens_per_modality, fusion.width)

    def forward(self, batch: Batch) -> ObjectiveOutput:
        """Return text/ce; prefix tokens are zeros where the unified model has those of the other modalities."""
        beside = torch.cat([batch.visible[:, :TEXT], batch.visible[:, TEXT + 1 :]], dim=1)
        shown = beside.repeat_interleave(self.shape[0], dim=1)
        output = self.language(batch.text, torch.zeros(*shown.shape, self.shape[1], device=shown.device), shown)
        return ObjectiveOutput({"text/ce": Term(output.answer_nats.sum(), output.answer_tokens.sum())}, {})


def parts() -> dict[str, Any]:
    """Time graph VAE, CNN with spectrum, and language model apart in plain torch on the batches of `ours`.

    Tokenisers, fusion, heads and consistency are not among the parts: what they take counts against the whole. The
    profile is that of the language model.
    """
    config, asked = settings(), given()
    stream = open_data(config)
    chemistry = Chemistry.from_dict(stream.chemistry)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    coming = iter(stream)
    batches = [next(coming).to(device) for _ in range(asked.warm_up + asked.steps)]

    def alone(step: Callable[..., Any]) -> float:
        for batch in batches[: asked.warm_up]:
            step(batch)
        wait(device)
        began = time.perf_counter()
        for batch in batches[asked.warm_up :]:
            step(batch)
        wait(device)
        return (time.perf_counter() - began) / asked.steps

    torch.manual_seed(0)
    seconds = {}
    for part in ("graph_vae", "cnn"):
        seconds[part] = alone(plain(config, build_objective(part, config.model, chemistry), batches[0]))
        gc.collect()
    decoder = fused_decoder(SIZES[asked.size], within_gib=asked.within_gib)
    step = plain(config, Answers(config, decoder), batches[0])
    seconds["language"] = alone(step)
    result = {f"{part}_s": s for part, s in seconds.items()} | {"sum_s": sum(seconds.values())}
    result |= {"layers_run_again": decoder.last_again} | profiled(step, iter(batches[-1 - PROFILED :]))
    return result | facts([])


def trainer_of_transformers() -> dict[str, Any]:
    """Train the same networks with the Trainer of transformers."""
    from benchmarks.peers.unified import train

    return train()


ROWS = [
    Row("unified/ours-zero3", ours, timeout_s=300.0),
    Row("unified/parts-plain-torch", parts, timeout_s=300.0),
    Row("unified/transformers-trainer-zero3", trainer_of_transformers, timeout_s=300.0),
]

if __name__ == "__main__":
    both = argparse.ArgumentParser(add_help=False, parents=[options(), small_networks.options()])
    sys.exit(main("benchmarks.unified", ROWS, both))
