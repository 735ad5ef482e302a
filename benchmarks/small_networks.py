"""Time a step of the small networks: plain torch, torch-geometric, ZeRO-3 as it is and kernel by kernel."""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.peers.graph_layers import GeometricTransformer
from benchmarks.rows import Row, main
from data_pipeline.batch import Batch
from data_pipeline.stream import open_stream
from models.biochemistry import Chemistry
from models.graph_layers import GraphTransformer
from models.objectives import build_objective
from trainers import engine as engines, flat, optim, presets
from trainers.config import RunConfig
from trainers.engine import DeepSpeedEngine, weigh

SAMPLES = 64
_FLATTEN = flat.flatten
WARM_UP, STEPS, REPEATS = (6, 15, 5) if torch.cuda.is_available() else (1, 2, 1)


def options() -> argparse.ArgumentParser:
    """Return the options of these rows."""
    p = argparse.ArgumentParser(add_help=False)
    p.add_argument(
        "--data", type=Path, metavar="DIR", help="data folder; by default one of 96 planets is built and kept"
    )
    return p


def data_folder() -> Path:
    """Return the folder that --data names, or build a small one in the cache (two minutes, once)."""
    given: Path | None = options().parse_known_args(sys.argv[1:])[0].data
    if given is not None:
        return given
    from data_pipeline import build
    from data_pipeline.reaction_tables import cache_dir

    kept = Path(cache_dir()) / "benchmark-data" / f"96-{build.source_versions()['data_pipeline']}"
    if not (kept / "manifest.json").is_file():
        build.build(kept, 96, 0, workers=2)
    return kept


def load(samples: int) -> tuple[Batch, Chemistry]:
    """Return the first training batch of the data without text."""
    stream = open_stream(data_folder(), "train", samples)
    return next(iter(stream)), Chemistry.from_dict(stream.chemistry)


def settings(part: str, samples: int) -> RunConfig:
    """Return the preset for one GPU; the learning rate stays where losses of two engines can be compared."""
    config = presets.one_gpu(part)
    return replace(config, data=replace(config.data, samples_per_rank=samples))


def plain(config: RunConfig, objective: nn.Module, batch: Batch) -> Callable[..., torch.Tensor]:
    """Return a step as a plain torch loop makes it: no wait for the device, fused AdamW, clipping.

    It trains on the batch, or on another one on the device that it is given.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    objective.to(device).train()
    groups = optim.parameter_groups(objective, config.optim)
    optimizer = optim.adamw(groups, config.optim, device.type == "cuda")
    trained = [p for group in groups for p in group["params"]]
    on_device, done = batch.to(device), [0]

    def step(given: Batch = on_device) -> torch.Tensor:
        optim.set_lr(optimizer, done[0], config.train.steps, config.optim)
        optimizer.zero_grad(set_to_none=True)
        total = weigh(objective(given).terms, config, None)
        total.loss.backward()
        nn.utils.clip_grad_norm_(trained, config.optim.clip_norm)
        optimizer.step()
        done[0] += 1
        return total.loss.detach()

    return step


def zero3(
    config: RunConfig, objective: nn.Module, batch: Batch, flatten: Callable[..., list[Any]] = flat.flatten
) -> Callable[[], float]:
    """Return a step of our engine, with everything that training does in it.

    Args:
        flatten: What the engine does to the parameters of its leaf modules.
    """
    engines.flat.flatten = flatten
    try:
        engine = DeepSpeedEngine(objective, config)
    finally:
        engines.flat.flatten = _FLATTEN
    on_device = batch.to(engine.device)
    return lambda: engine.train_step(on_device).loss


def _kernel_by_kernel(module: nn.Module, name: str, graphed: bool) -> list[Any]:
    """Stand in for flat.flatten: nothing is replayed as a CUDA graph."""
    return _FLATTEN(module, name, graphed=False)


def graphed(objective: nn.Module) -> nn.Module:
    """Replay the networks of an objective as CUDA graphs, without an engine."""
    names = {id(module): name for name, module in objective.named_modules()}
    objective.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for module in objective.leaf_modules():  # type: ignore[operator]
        _FLATTEN(module, names[id(module)], graphed=True)
    return objective


def geometric(objective: nn.Module, batch: Batch) -> nn.Module:
    """Put message passing in the place of every dense graph transformer."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for module in list(objective.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, GraphTransformer):
                setattr(module, name, GeometricTransformer(child))
                getattr(module, name).prepare(batch.graph.mask.to(device))
    return objective


class Timed:
    """A form of a step and how long it takes."""

    def __init__(self, make: Callable[[], Callable[[], Any]]) -> None:
        """Make the step and warm it up; plain forms must come first.

        DeepSpeed changes torch.nn.functional.linear of the whole process: each form keeps the one that it met.
        """
        self.step = make()
        self.linear = F.linear
        self.first_loss = float(self.step())
        for _ in range(WARM_UP - 1):
            self.step()
        self.times: list[float] = []
        self.last_loss = math.nan

    def run(self) -> None:
        """Time some steps."""
        F.linear, kept = self.linear, F.linear
        try:
            self.step()
            _wait()
            began = time.perf_counter()
            for _ in range(STEPS):
                loss = self.step()
            _wait()
            self.times.append(1e3 * (time.perf_counter() - began) / STEPS)
        finally:
            F.linear = kept
        self.last_loss = float(loss)

    def found(self) -> dict[str, float]:
        """Return milliseconds a step (median of the rounds, and the least) and the first and last losses."""
        times = {"ms": statistics.median(self.times), "least_ms": min(self.times)}
        return times | {"first_loss": self.first_loss, "last_loss": self.last_loss}


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(part: str, samples: int = SAMPLES) -> dict[str, Any]:
    """Time forms of a part's step on the same batch and weights."""
    batch, chemistry = load(samples)
    config = settings(part, samples)

    def objective() -> nn.Module:
        gc.collect()
        torch.manual_seed(0)
        return build_objective(part, config.model, chemistry)

    forms: dict[str, Callable[[], Callable[[], Any]]] = {"plain": lambda: plain(config, objective(), batch)}
    if part == "graph_vae":
        forms["geometric"] = lambda: plain(config, geometric(objective(), batch), batch)
    forms["plain_graphed"] = lambda: plain(config, graphed(objective()), batch)
    forms["zero3_kernel_by_kernel"] = lambda: zero3(config, objective(), batch, _kernel_by_kernel)
    forms["zero3"] = lambda: zero3(config, objective(), batch)
    made: dict[str, Timed] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, make in forms.items():
        try:
            made[name] = Timed(make)
        except RuntimeError as error:  # of one form: the others are still worth their time
            found[name] = {"error": str(error).splitlines()[0]}
    for _ in range(REPEATS):  # in rounds, so that what else the machine does meets all forms alike
        for form in made.values():
            form.run()
    found |= {name: form.found() for name, form in made.items()}
    for name, values in found.items():
        print(f"{part} {name}: {values}", file=sys.stderr, flush=True)
    return of_forms(found) | {
        "samples": samples, "nodes": batch.graph.mask.shape[1], "steps": WARM_UP + (STEPS + 1) * REPEATS
    }  # fmt: skip


def of_forms(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what was measured of each form, and how long each takes for every one of plain torch."""
    result: dict[str, Any] = {f"{name}_{k}": v for name, values in found.items() for k, v in values.items()}
    timed = {name: values["ms"] for name, values in found.items() if "ms" in values}
    for other in ("plain", "plain_graphed", "geometric"):
        result |= {f"{name}_over_{other}": ms / timed[other] for name, ms in timed.items() if other in timed}
    return result


ROWS = [Row("graph_vae_step", lambda: compare("graph_vae")), Row("cnn_step", lambda: compare("cnn"))]

if __name__ == "__main__":
    sys.exit(main("benchmarks.small_networks", ROWS, options()))
