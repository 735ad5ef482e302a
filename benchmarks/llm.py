"""Measure training steps of a language model with adapters through our engine: shapes, words, weights and rows."""

from __future__ import annotations

import functools
import math
import os
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from data_pipeline.batch import MODALITIES, Batch, GraphBatch, SpectrumBatch, TextBatch
from models import adapters
from models.configs import LoRAConfig
from models.fused_decoder import PROJECTIONS, DecoderLayer, DecoderShape, FusedDecoder
from models.losses import Term
from models.objectives import ObjectiveOutput
from models.packed_attention import Packing
from trainers.config import DataConfig, OptimConfig, RunConfig, TrainConfig

ROOT = Path(__file__).resolve().parent.parent
LORA = LoRAConfig(rank=16, alpha=32.0, targets=PROJECTIONS)
LR = 1e-4  # at 3e-4, from random weights and without warm-up, curves that differ by rounding part after 33 steps
BETAS, WEIGHT_DECAY, CLIP_NORM = (0.9, 0.95), 0.01, 1.0
ROPE_BASE = 1e4
SHAPES = {
    "13b": DecoderShape(
        width=5120, inner=13824, layers=40, heads=40, kv_heads=40, head_width=128, vocabulary=32000, norm_eps=1e-5
    ),
    "8b": DecoderShape(
        width=4096, inner=14336, layers=32, heads=32, kv_heads=8, head_width=128, vocabulary=128256, norm_eps=1e-5
    ),
    "34b": DecoderShape(
        width=8192, inner=22016, layers=48, heads=64, kv_heads=8, head_width=128, vocabulary=32000, norm_eps=1e-5
    ),
    "70b": DecoderShape(
        width=8192, inner=28672, layers=80, heads=64, kv_heads=8, head_width=128, vocabulary=32000, norm_eps=1e-5
    ),
    "120b": DecoderShape(  # as many of those layers as one card trains in four bits
        width=8192, inner=28672, layers=140, heads=64, kv_heads=8, head_width=128, vocabulary=32000, norm_eps=1e-5
    ),
    "13b-wide": DecoderShape(  # six of its layers: fits in float32
        width=5120, inner=13824, layers=6, heads=40, kv_heads=40, head_width=128, vocabulary=32000, norm_eps=1e-5
    ),
    "tiny": DecoderShape(
        width=256, inner=704, layers=3, heads=4, kv_heads=2, head_width=64, vocabulary=512, norm_eps=1e-5
    ),
}


class Load(NamedTuple):
    """What a row trains on; rows * micro_batches sequences make a step."""

    shape: str
    rows: int  # of a micro-batch
    micro_batches: int
    length: int = 2048
    warmup: int = 3
    steps: int = 6
    lr: float = LR

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.rows * self.micro_batches * self.length


def device() -> torch.device:
    """Return where the rows run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@functools.cache
def _text() -> bytes:
    return b"".join(p.read_bytes() for p in sorted(ROOT.glob("*/*.py")) + sorted(ROOT.glob("data_pipeline/*.csv")))


def words(load: Load, step: int, micro_batch: int) -> Tensor:
    """Return the token ids (rows, length) of a micro-batch: bytes of this repository's tables and sources."""
    text = _text()
    start = step * load.tokens % max(len(text) - load.tokens, 1)  # the same words whatever the micro-batches
    ids = torch.frombuffer(bytearray(text[start : start + load.tokens]), dtype=torch.uint8).long()
    first = micro_batch * load.rows
    return ids.view(-1, load.length)[first : first + load.rows]


@torch.no_grad()
def fill(name: str, target: Tensor) -> None:
    """Fill a tensor by its name in a checkpoint, so that our model and its peers are the same."""
    if "norm" in name:
        target.fill_(1.0)
    elif "lora_B" in name:
        target.zero_()
    else:
        generator = torch.Generator(target.device).manual_seed(zlib.crc32(name.encode()))
        if target.dtype == torch.float32 and "lora_A" not in name:  # the base has numbers of bfloat16 in any type
            rounded = torch.empty_like(target, dtype=torch.bfloat16)
            target.copy_(rounded.normal_(0.0, 0.02, generator=generator))
        elif "lora_A" in name:
            bound = target.shape[1] ** -0.5
            drawn = torch.rand(target.shape, generator=generator, device=target.device)
            target.copy_((2 * drawn - 1) * bound)
        else:
            target.normal_(0.0, 0.02, generator=generator)


@torch.no_grad()
def fused_decoder(shape: DecoderShape, dtype: torch.dtype = torch.bfloat16, **options: Any) -> FusedDecoder:
    """Return our decoder with the weights that `fill` names; options as FusedDecoder has them."""
    on = device()
    half = shape.head_width // 2
    decoder = FusedDecoder(
        shape,
        rank=LORA.rank,
        alpha=LORA.alpha,
        targets=LORA.targets,
        frequencies=ROPE_BASE ** (-torch.arange(half) / half),
        dtype=dtype,
        device=on,
        **options,
    )
    fill("model.embed_tokens", decoder.embedding.weight)
    fill("lm_head", decoder.head.weight)
    decoder.norm.weight.fill_(1.0)
    blocks = {p: "self_attn" if p[0] in "qkvo" else "mlp" for p in PROJECTIONS}
    for i, layer in enumerate(cast(list[DecoderLayer], decoder.layers)):
        layer.norms.fill_(1.0)
        weights = layer.weights()  # of a quantised layer the room that all share: no second copy of a large model
        for weight, names in zip(
            weights, (PROJECTIONS[:3], ("o_proj",), PROJECTIONS[4:6], ("down_proj",)), strict=True
        ):
            parts = weight.split([shape.sizes(n)[1] for n in names])
            for name, part in zip(names, parts, strict=True):
                fill(f"model.layers.{i}.{blocks[name]}.{name}", part)
        layer.load(weights)
    own = dict(decoder.named_parameters())
    for piece in adapters.pieces(decoder):
        part = own[piece.parameter][:, piece.columns]
        fill(piece.name, part.t() if piece.transposed else part)
    return decoder


class Objective(nn.Module):
    """The decoder alone, every token foreseen by those before it."""

    def __init__(self, decoder: FusedDecoder) -> None:
        super().__init__()
        self.language = decoder

    def forward(self, batch: Batch) -> ObjectiveOutput:
        """Return text/ce."""
        ids = batch.text.token_ids
        rows, length = ids.shape
        places = torch.arange(length, device=ids.device).repeat(rows)
        packing = Packing.of((length,) * rows, ids.device)
        hidden = self.language(self.language.embed(ids.flatten()), places, packing)
        foreseen = hidden.unflatten(0, (rows, length))[:, :-1].flatten(0, 1)
        nats = self.language.nats(foreseen, ids[:, 1:].flatten())
        return ObjectiveOutput({"text/ce": Term(nats.sum(), nats.new_tensor(float(len(nats))))}, {})

    def leaf_modules(self) -> list[nn.Module]:
        """Return none: each layer owns its parameters."""
        return []


def batch(load: Load, step: int, micro_batch: int) -> Batch:
    """Return a batch of text alone on the device."""
    ids, on = words(load, step, micro_batch), device()
    rows, length = ids.shape
    place = torch.arange(length).expand(rows, -1)
    nothing, absent = torch.zeros(rows, 0), torch.zeros(rows, len(MODALITIES), dtype=torch.bool)
    table, kinds = torch.zeros(rows, 0, dtype=torch.long), torch.zeros(rows, 0, 0, dtype=torch.long)
    return Batch(
        graph=GraphBatch(
            mask=table.bool(), metabolite_index=table, features=nothing[..., None],
            adjacency=kinds.bool(), edge_type=kinds,
        ),
        climate=nothing.view(rows, 0, 1, 1),
        spectrum=SpectrumBatch(
            ppm=nothing[..., None],
            error_ppm=nothing[..., None],
            clean_ppm=nothing[..., None],
            star_temperature_k=torch.zeros(rows),
        ),
        text=TextBatch(
            token_ids=ids,
            attention_mask=place >= 0,
            description_mask=place < 1,
            label_ids=torch.where(place > 0, ids, -100),
        ),
        planet=nothing,
        environment=nothing,
        habitable=torch.zeros(rows),
        present=absent,
        visible=absent,
        sample_ids=tuple(str(i) for i in range(rows)),
    ).to(on)  # fmt: skip


def ours(load: Load, engine: str = "deepspeed", dtype: torch.dtype = torch.bfloat16, **options: Any) -> dict[str, Any]:
    """Train through our engine; options as FusedDecoder has them. Return what was measured."""
    from trainers.engine import build_engine

    torch.manual_seed(0)
    started = time.monotonic()
    objective = Objective(fused_decoder(SHAPES[load.shape], dtype, **options))
    config = RunConfig(
        loss_weights={"text/ce": 1.0},
        data=DataConfig(samples_per_rank=load.rows),
        optim=OptimConfig(
            lr=load.lr, lr_warmup_steps=0, final_lr_share=1.0, weight_decay=WEIGHT_DECAY, beta1=BETAS[0],
            beta2=BETAS[1], clip_norm=CLIP_NORM,
        ),
        train=TrainConfig(part="llm", engine=engine, accumulation=load.micro_batches),  # type: ignore[arg-type]
    )  # fmt: skip
    made = build_engine(objective, config)

    norms = []

    def step(i: int) -> float:
        report = made.train_step(*(batch(load, i, m) for m in range(load.micro_batches)))
        norms.append(report.grad_norm)
        return report.loss

    decoder = objective.language
    facts = {
        "zero_stage": made.zero_stage,
        "dtype": str(dtype).removeprefix("torch."),
        "recompute": decoder.recompute,
        "within_gib": decoder.within_gib,
        "quantise": decoder.quantise,
        "offload_activations": decoder.offload,
    }
    result = measure(load, step, started) | facts | {"grad_norms": [float(f"{n:.4g}") for n in norms]}
    return result | {"layers": decoder.depth, "layers_run_again": decoder.last_again}


def measure(load: Load, step: Callable[[int], float], started: float) -> dict[str, Any]:
    """Make the steps; return tokens a second (median step), peak memory, losses and how busy the arithmetic was."""
    on_gpu = torch.cuda.is_available()
    losses, seconds = [], []
    for i in range(load.warmup + load.steps):
        if on_gpu:
            torch.cuda.synchronize()
            if i == 0:
                built_s = time.monotonic() - started
        else:
            built_s = time.monotonic() - started
        begin = time.perf_counter()
        losses.append(step(i))
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
        print(f"step {i} loss {losses[-1]:.5f} in {seconds[-1]:.3f} s", file=sys.stderr, flush=True)
        if not math.isfinite(losses[-1]):
            raise ArithmeticError(f"step {i}: loss {losses[-1]}")
    if profile := os.environ.get("EXOBIOME_BENCH_PROFILE"):
        _profile(step, load.warmup + load.steps, profile)
    median = sorted(seconds[load.warmup :])[load.steps // 2]
    parameters = parameters_of(SHAPES[load.shape])
    gib = 2**30
    return {
        "tokens_per_s": load.tokens / median,
        "step_s": median,
        "slowest_step_s": max(seconds[load.warmup :]),
        "tokens": load.tokens,
        "micro_batches": load.micro_batches,
        "parameters": parameters,
        "tflops_4n": 4 * parameters * load.tokens / median / 1e12,
        "peak_allocated_gib": torch.cuda.max_memory_allocated() / gib if on_gpu else 0.0,
        "peak_reserved_gib": torch.cuda.max_memory_reserved() / gib if on_gpu else 0.0,
        "losses": [round(x, 5) for x in losses],
        "words_crc32": zlib.crc32(_text()),
        "lr": load.lr,
        "built_s": round(built_s, 1),
    }


def _profile(step: Callable[[int], float], i: int, path: str) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step(i)
        torch.cuda.synchronize()
    table = profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=90)
    Path(path).write_text(table)


def parameters_of(shape: DecoderShape) -> int:
    """Return how many parameters a model has, adapters included."""
    projections = sum(a * b for a, b in map(shape.sizes, PROJECTIONS))
    small = sum(LORA.rank * (a + b) for a, b in map(shape.sizes, PROJECTIONS))
    layer = projections + small + 2 * shape.width
    return shape.layers * layer + shape.width * (shape.vocabulary * (1 if shape.tied else 2) + 1)


def shrink(load: Load, tiny: bool) -> Load:
    """Return the load of a trial run: same steps, a tiny model and short rows."""
    return load._replace(shape="tiny", length=64) if tiny else load


def loss_gap(rows: Sequence[Mapping[str, Any]], row: str, other: str) -> dict[str, Any]:
    """Return the largest relative difference between the losses of two rows, and after how many steps it is there.

    Args:
        rows: Of a results file; the last one of each name counts.
        row: Name of the one.
        other: Name of the other, whose losses are the measure.

    Raises:
        ValueError: They trained on other words (the sources that these come from changed) or with another rate.
    """
    one, against = ([r for r in rows if r["row"] == name and "losses" in r][-1] for name in (row, other))
    for fact in ("words_crc32", "lr"):
        if one.get(fact) != against.get(fact):
            raise ValueError(f"{fact} of {row} and {other} differ: run both in the same way on the same sources")
    mine, theirs = one["losses"], against["losses"]
    gaps = [abs(a / b - 1) for a, b in zip(mine, theirs, strict=False)]
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    return {
        "row": f"{row} against {other}", "steps": len(gaps), "largest_loss_gap": float(f"{gaps[worst]:.3g}"),
        "after_steps": worst, "mean_loss_gap": float(f"{sum(gaps) / len(gaps):.3g}"),
        "losses_there": [mine[worst], theirs[worst]], "steps_above_1e-2": [i for i, g in enumerate(gaps) if g > 1e-2],
    }  # fmt: skip
