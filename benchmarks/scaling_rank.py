"""Do one rank's part of a scaling job: `python -m benchmarks.scaling_rank --job JOB --result FILE`, one per rank."""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, schedule

from benchmarks import small_networks, unified
from benchmarks.llm import fused_decoder, parameters_of
from benchmarks.scaling_engines import WAYS, Training, build, sharing_of
from benchmarks.scaling_time import FETCH
from benchmarks.small_networks import data_folder
from benchmarks.unified import SIZES, mark, settings, wait
from data_pipeline.batch import Batch
from data_pipeline.stream import BatchStream, open_stream
from models.biochemistry import Chemistry
from models.language import load_tokenizer
from models.objectives import UnifiedObjective
from trainers import checkpoint, frozen
from trainers.communication import Ledger, Walk, counted, gathered_bytes_at_most, of_micro_batch
from trainers.config import RunConfig
from trainers.engine import DeepSpeedEngine, tokens_of
from trainers.frozen import Division, FrozenShares
from trainers.inputs import OnDevice
from trainers.ranks import finish, start
from trainers.tracing import idle_ms

PROFILED = 2
PRODUCT = 8192  # rows and columns of the products that a fetch is timed beside
GIB = 2**30
PARITY_SAMPLES, PARITY_STEPS, SAVED_AFTER = 8, 6, 2  # of all ranks together


def options() -> argparse.ArgumentParser:
    """Return the options of a rank; those of the unified model among them."""
    p = argparse.ArgumentParser(add_help=False, parents=[unified.options(), small_networks.options()])
    p.add_argument("--job", default="")
    p.add_argument("--result", type=Path, default=None)
    p.add_argument("--ds-config", default="", metavar="JSON", help="of our ZeRO-3 engine (ds_configs/)")
    p.add_argument("--brief", action="store_true", help="weak scaling, counters and profile alone")
    p.add_argument("--no-strong", action="store_true", help="no strong scaling")
    p.add_argument(
        "--frozen", default="auto", choices=("auto", "copies", "gathers", "deepspeed"), help="see the engine"
    )
    p.add_argument("--folder", type=Path, default=None, help="of the run that a parity job saves or goes on with")
    p.add_argument("--first", type=int, default=0)
    p.add_argument("--last", type=int, default=PARITY_STEPS)
    return p


def configured(asked: argparse.Namespace) -> RunConfig:
    """Return the configuration of the unified rows, with the DeepSpeed JSON that was asked for."""
    config = settings()
    return replace(config, train=replace(config.train, ds_config=asked.ds_config)) if asked.ds_config else config


def stream_of(config: RunConfig, per_rank: int) -> BatchStream:
    """Return this rank's part of the training stream."""
    return open_stream(
        data_folder(),
        "train",
        per_rank,
        rank=dist.get_rank(),
        world=dist.get_world_size(),
        tokenizer=load_tokenizer(config.model.language),
        max_tokens=config.data.max_tokens,
        workers=2,
        pin_memory=torch.cuda.is_available(),
        tokens_beside=config.model.fusion.tokens_per_modality,
    )


def train(asked: argparse.Namespace) -> dict[str, Any]:
    """Train one way: weak and strong scaling, counters against the model, a profile, the links."""
    start(600.0)
    world = dist.get_world_size()
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    config = configured(asked)
    stream = stream_of(config, asked.samples)
    began = time.monotonic()
    decoder = fused_decoder(SIZES[asked.size], within_gib=asked.within_gib)
    training = build(asked.job, config, Chemistry.from_dict(stream.chemistry), decoder, device, asked.frozen)
    gc.collect()
    result: dict[str, Any] = {"built_s": round(time.monotonic() - began, 1)}
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        result["allocated_after_build_gib"] = torch.cuda.memory_allocated() / GIB
    batches = iter(OnDevice(stream, device))
    result["weak"] = timed(training, batches, device, asked.samples, asked.warm_up, asked.steps)
    result["frozen_base"] = frozen_base(decoder)
    ledger, most = count_step(training, next(batches))
    result["frozen_base"]["gathered_bytes"] = most
    if training.frozen is not None:
        result["frozen_base"]["gathered_bytes"] += training.frozen.buffer_bytes
        result["fetched_by"] = training.frozen.operation
    if training.expected is not None:  # FSDP2 goes past the functions that are watched
        result["counted"] = {s: ledger.bytes(s) for s in ("zero", "torch", "frozen")}
        result["calls"] = {s: ledger.numbers(s) for s in ("zero", "torch", "frozen")}
    if training.walk is not None:
        result |= walked(training, config, next(batches), world, device)
        result["model"] = training.expected(result.pop("_walk"), next(batches)) if training.expected else {}
    elif training.expected is not None:
        result["model"] = training.expected(None, next(batches))
    result["profile"] = profiled(training.step, batches)
    if asked.brief:
        return result
    if world > 1:
        result["links"] = links(ledger, device) + fetches(training.frozen, device)
        if training.frozen is not None and device.type == "cuda":
            result["slowed_by_fetches"] = slowed_by_fetches(training.frozen, device)
        if asked.no_strong:
            return result
        few = asked.samples // world
        fewer = iter(OnDevice(stream_of(config, few), device))
        result["strong"] = timed(training, fewer, device, few, asked.warm_up, asked.steps)
    return result


def timed(
    training: Training, batches: Iterator[Batch], device: torch.device, samples: int, warm_up: int, steps: int
) -> dict[str, Any]:
    """Make the steps, one after another; the median of those after warm-up, with tokens of all ranks.

    A step lasts from its first kernel to that of the next one, as the clock of this rank's GPU has it: the host need
    not wait for the end of a step.
    """
    marks: list[Any] = []
    tokens, losses = [], []
    wait(device)
    for _ in range(warm_up + steps):
        batch = next(batches)
        marks.append(mark(device) or time.perf_counter())
        losses.append(training.step(batch))
        tokens.append(tokens_of((batch,)))
    marks.append(mark(device) or time.perf_counter())
    wait(device)
    on_gpu = device.type == "cuda"
    seconds = [a.elapsed_time(b) / 1e3 if on_gpu else b - a for a, b in itertools.pairwise(marks)]
    tokens = [int(t) for t in tokens]
    of_ranks: list[Any] = [None] * dist.get_world_size()
    mapped = training.frozen.kept_bytes if training.frozen and training.frozen.operation == "copies" else 0
    dist.all_gather_object(of_ranks, (tokens[warm_up:], peaks(mapped)))
    step_s = statistics.median(seconds[warm_up:])
    per_rank = [ranks for ranks, _ in of_ranks]
    mean = statistics.mean(t for ranks in per_rank for t in ranks)
    slowest = statistics.mean(max(at) for at in zip(*per_rank, strict=True)) / mean
    return {
        "samples": samples, "step_s": step_s, "steps_s": [round(s, 4) for s in seconds],
        "samples_per_s_a_gpu": samples / step_s, "tokens_per_s_a_gpu": mean / step_s, "tokens_a_gpu": mean,
        "slowest_rank_over_mean": slowest,
        "token_spread": statistics.pstdev(t for ranks in per_rank for t in ranks) / mean,
        "peak_allocated_gib": max(p["allocated"] for _, p in of_ranks),
        "peak_reserved_gib": max(p["reserved"] for _, p in of_ranks),
        "losses": [round(x, 4) for x in losses[:12]],
        "layers_run_again": training.decoder.last_again,
        "memory_retries": sum(p["retries"] for _, p in of_ranks),
    }  # fmt: skip


def peaks(mapped: int = 0) -> dict[str, float]:
    """Return the peaks of this rank's GPU in GiB, with bytes that torch's allocator does not know of.

    And how often it gave all that it kept back to the card, since nothing that was free was large enough.
    """
    if not torch.cuda.is_available():
        return {"allocated": 0.0, "reserved": 0.0, "retries": 0}
    return {
        "retries": torch.cuda.memory_stats()["num_alloc_retries"],
        "allocated": (torch.cuda.max_memory_allocated() + mapped) / GIB,
        "reserved": (torch.cuda.max_memory_reserved() + mapped) / GIB,
    }


def frozen_base(decoder: Any) -> dict[str, Any]:
    """Return how many frozen numbers the language model has and the bytes of them that this rank keeps."""
    if taken := getattr(decoder, "frozen_numbers", None):  # trainers/frozen.py
        whole = [t for m in decoder.modules() for t in vars(m).values() if isinstance(t, Tensor) and t.numel()]
        shares = decoder.frozen
        size = shares.kept_bytes if shares else 0
        seen = {id(t) for unit in shares.views() for t in unit} if shares else set()
        size += sum(t.numel() * t.element_size() for t in whole if id(t) not in seen)
        return {"parameters": sum(taken.values()), "kept_bytes": size}
    frozen = [p for p in decoder.parameters() if not p.requires_grad]
    kept = [getattr(p, "ds_tensor", None) for p in frozen]
    own = [t if t is not None else _local(p) for t, p in zip(kept, frozen, strict=True)]
    numbers = sum(getattr(p, "ds_numel", p.numel()) for p in frozen)
    return {"parameters": numbers, "kept_bytes": sum(t.numel() * t.element_size() for t in own)}


def _local(parameter: Tensor) -> Tensor:
    local: Tensor = parameter.to_local() if hasattr(parameter, "to_local") else parameter  # type: ignore[operator]
    return local


def count_step(training: Training, batch: Batch) -> tuple[Ledger, int]:
    """Make a step; return its collectives and the most bytes of frozen parameters that were whole at one of them."""
    frozen = [p for p in training.decoder.parameters() if not p.requires_grad and hasattr(p, "ds_status")]
    most = [0]

    def look() -> None:
        whole = (p for p in frozen if p.ds_status.name != "NOT_AVAILABLE")  # type: ignore[attr-defined]
        most[0] = max(most[0], sum(p.ds_numel * p.element_size() for p in whole))  # type: ignore[attr-defined]

    with counted(look) as ledger:
        training.step(batch)
    return ledger, most[0]


def walked(training: Training, config: RunConfig, batch: Batch, world: int, device: torch.device) -> dict[str, Any]:
    """Follow a step through its modules; return the timeline and what the model says of it."""
    assert training.walk is not None
    marks: list[Any] = []

    def now() -> None:
        marks.append(mark(device) or time.perf_counter())

    wait(device)
    now()
    found: Walk = training.walk(batch, now)
    now()
    wait(device)
    on_gpu = device.type == "cuda"
    gaps = [a.elapsed_time(b) / 1e3 if on_gpu else b - a for a, b in zip(marks, marks[1:], strict=False)]
    sharing = sharing_of(config, world)
    gathers = [t for t in of_micro_batch(found, sharing) if t.operation == "all_gather"]
    division: Division | None = getattr(training.decoder, "frozen_division", None)
    return {
        "_walk": found,
        "timeline": {
            "pieces": found.pieces, "events": found.events, "gaps_s": [round(g, 7) for g in gaps],
        },
        "gaps_s": [round(g, 5) for g in gaps],
        "sharing": sharing._asdict(),
        "gathers": len(gathers),
        "unit_bytes": division.bytes if division else [],
        "units_that_stay": division.stay if division else [],
        "gathered_bytes_at_most_by_model": gathered_bytes_at_most(found, sharing),
    }  # fmt: skip


def profiled(step: Callable[[Batch], float], batches: Iterator[Batch]) -> dict[str, Any]:
    """Return the share of the step in which NCCL's kernels run, and in which nothing but them does."""
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
        events = json.loads(path.read_text())["traceEvents"]
    found = communication_share(events)
    if found["idle"] is not None:
        found["idle_ms_a_step"] = {name: round(ms, 1) for name, ms in idle_ms(events, most=12).items()}
    return found


def communication_share(events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return shares of the steps in a trace: collectives, those that no other kernel hides, an idle GPU."""
    known = [e for e in events if e.get("ph") == "X"]
    steps = [e for e in known if e.get("cat") == "user_annotation" and e["name"].startswith("ProfilerStep#")]
    begin, end = min(e["ts"] for e in steps), max(e["ts"] + e["dur"] for e in steps)
    kernels = [e for e in known if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    if not kernels:
        return {"collectives": None, "not_hidden": None, "idle": None, "step_s": (end - begin) / len(steps) / 1e6}
    copying = _copying_streams(kernels)

    def moves(e: Mapping[str, Any]) -> bool:
        return e["name"].startswith("nccl") or e.get("args", {}).get("stream") in copying

    nccl = [(e["ts"], e["ts"] + e["dur"]) for e in kernels if moves(e)]
    rest = [(e["ts"], e["ts"] + e["dur"]) for e in kernels if not moves(e)]
    any_of, compute, collectives = (_covered(s, begin, end) for s in (nccl + rest, rest, nccl))
    by_name: dict[str, float] = {}
    for e in kernels:
        if moves(e):
            by_name[e["name"][:40]] = by_name.get(e["name"][:40], 0.0) + e["dur"] / 1e3 / len(steps)
    return {
        "collectives": collectives / (end - begin),
        "not_hidden": (any_of - compute) / (end - begin),
        "idle": 1 - any_of / (end - begin),
        "step_s": (end - begin) / len(steps) / 1e6,
        "compute_s": compute / len(steps) / 1e6,
        "ms_a_step": {n: round(ms, 2) for n, ms in sorted(by_name.items(), key=lambda kv: -kv[1])[:5]},
    }


def _copying_streams(kernels: Sequence[Mapping[str, Any]]) -> set[Any]:
    """Return the streams on which nothing but copies between GPUs runs: those of trainers/frozen.py."""
    between = {"PtoP", "DtoD"}
    names: dict[Any, set[bool]] = {}
    for e in kernels:
        stream = e.get("args", {}).get("stream")
        is_copy = e.get("cat") == "gpu_memcpy" and any(kind in e["name"] for kind in between)
        names.setdefault(stream, set()).add(is_copy)
    return {stream for stream, kinds in names.items() if stream is not None and kinds == {True}}


def _covered(spans: list[tuple[float, float]], begin: float, end: float) -> float:
    total, reached = 0.0, begin
    for left, right in sorted(spans):
        left, right = max(left, reached), min(right, end)
        if right > left:
            total, reached = total + right - left, right
    return total


def links(ledger: Ledger, device: torch.device) -> list[tuple[str, int, float]]:
    """Time collectives of the sizes that a step used; return (operation, bytes, seconds)."""
    world, found = dist.get_world_size(), []
    for operation in ("all_gather", "reduce_scatter", "all_reduce"):
        sizes = sorted({c.bytes for c in ledger.calls if c.operation == operation})
        chosen = sorted({sizes[round(i * (len(sizes) - 1) / 5)] for i in range(6)}) if sizes else [4096]
        for size in {*chosen, 2**16, 2**22, *((2**26, 2**29) if device.type == "cuda" else ())}:
            found.append((operation, *_time_one(operation, size, world, device)))
    return found


def fetches(shares: FrozenShares | None, device: torch.device) -> list[tuple[str, int, float]]:
    """Time fetches of frozen units, by all ranks at once; return (operation, bytes, seconds)."""
    if shares is None:
        return []
    found = []
    target = torch.empty(max(shares.unit_bytes()), dtype=torch.uint8, device=device)
    for size in sorted(set(shares.unit_bytes())):
        unit = shares.units[shares.unit_bytes().index(size)]
        seconds = []
        for _ in range(5):
            dist.barrier()
            wait(device)
            began = time.perf_counter()
            for _ in range(5):
                frozen.fetch(shares.source, unit, target[:size], shares.rank, shares.world)
            wait(device)
            seconds.append((time.perf_counter() - began) / 5)
        found.append((FETCH, size, statistics.median(seconds)))
    return found


def slowed_by_fetches(shares: FrozenShares, device: torch.device) -> float:
    """Return what products lose beside a fetch on another stream, over the time of the fetch alone; mean of all ranks.

    Large bfloat16 products, some six times as long as the fetch, as a layer is.
    """
    unit = shares.units[1]
    target = torch.empty(unit.part * shares.world, dtype=torch.uint8, device=device)
    matrix = torch.randn(PRODUCT, PRODUCT, dtype=torch.bfloat16, device=device)
    side = torch.cuda.Stream(device)

    def products() -> None:
        for _ in range(6):
            matrix @ matrix

    def fetch() -> None:
        with torch.cuda.stream(side):
            frozen.fetch(shares.source, unit, target, shares.rank, shares.world)

    def both() -> None:
        fetch()
        products()

    def seconds(run: Callable[[], None]) -> float:
        run()
        dist.barrier()
        wait(device)
        began = time.perf_counter()
        for _ in range(20):
            run()
        wait(device)
        return (time.perf_counter() - began) / 20

    share = torch.tensor((seconds(both) - seconds(products)) / seconds(fetch), device=device)
    dist.all_reduce(share)
    return float(share) / dist.get_world_size()


def _time_one(operation: str, size: int, world: int, device: torch.device) -> tuple[int, float]:
    part = max(size // world // 4 * 4, 4)
    whole = torch.zeros(part * world, dtype=torch.uint8, device=device).view(torch.float32)
    own = torch.zeros(part, dtype=torch.uint8, device=device).view(torch.float32)
    calls: dict[str, Callable[[], Any]] = {
        "all_gather": lambda: dist.all_gather_into_tensor(whole, own),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(own, whole),
        "all_reduce": lambda: dist.all_reduce(whole),
    }
    repeats, seconds = (10 if device.type == "cuda" else 3), []
    for _ in range(5):
        dist.barrier()
        wait(device)
        began = time.perf_counter()
        for _ in range(repeats):
            calls[operation]()
        wait(device)
        seconds.append((time.perf_counter() - began) / repeats)
    return part * world, statistics.median(seconds)


def parity(asked: argparse.Namespace) -> dict[str, Any]:
    """Train from one step to another on the streaming loader; go on from what the folder holds, and save there."""
    start(600.0)
    world = dist.get_world_size()
    config = configured(asked)
    config = replace(config, data=replace(config.data, samples_per_rank=PARITY_SAMPLES // world))
    stream = stream_of(config, PARITY_SAMPLES // world)
    chemistry = Chemistry.from_dict(stream.chemistry)
    torch.manual_seed(0)
    decoder = fused_decoder(SIZES[asked.size], torch.float32)  # bfloat16 would round apart what is packed otherwise
    engine = DeepSpeedEngine(UnifiedObjective(config.model, chemistry, decoder), config, asked.frozen)
    if asked.first:
        stream.load_state_dict(checkpoint.load_newest(engine, asked.folder, chemistry).cursor)
    inputs = OnDevice(stream, engine.device)
    losses, ids = [], []
    for step, batch in enumerate(inputs, asked.first):
        losses.append(engine.train_step(batch).loss)
        ids.append(sorted(i for of_rank in engine.gather(batch.sample_ids) for i in of_rank))
        if step + 1 == (SAVED_AFTER if asked.first == 0 else asked.last):
            checkpoint.save(engine, asked.folder, chemistry, inputs.state_dict())
        if step + 1 == asked.last:
            break
    return {"losses": losses, "sample_ids": ids}


def peer(asked: argparse.Namespace) -> dict[str, Any]:
    """Train with transformers, peft and DeepSpeed as they ship."""
    from benchmarks.peers.unified import train as train_with_transformers

    found = train_with_transformers()
    keep = ("step_s", "steps_s", "tokens_per_s", "peak_allocated_gib", "losses")
    weak = {k: found[k] for k in keep} | {
        "samples": asked.samples,
        "samples_per_s_a_gpu": found["samples_per_s"],
        "tokens_per_s_a_gpu": found["tokens_per_s"],
    }
    return {"weak": weak}


def main() -> None:
    """Do the job; rank 0 writes the result."""
    asked = options().parse_known_args(sys.argv[1:])[0]
    job = train if asked.job in WAYS else {"parity": parity, "transformers-zero3": peer}[asked.job]
    result = job(asked) | {"parameters": parameters_of(SIZES[asked.size])}
    if dist.get_rank() == 0:
        temporary = asked.result.with_suffix(".part")
        temporary.write_text(json.dumps(result))
        os.replace(temporary, asked.result)
    finish(0)


if __name__ == "__main__":
    main()
