"""Measure training steps of a language model with adapters through our engine: shapes, words, weights and rows."""

from __future__ import annotations

import math
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from data_pipeline.batch import MODALITIES, Batch, GraphBatch, SpectrumBatch, TextBatch
from models import adapters
from models.configs import LoRAConfig
from models.fused_decoder import PROJECTIONS, DecoderShape, FusedDecoder
from models.losses import Term
from models.objectives import ObjectiveOutput
from models.packed_attention import Packing
from trainers.config import DataConfig, OptimConfig, RunConfig, TrainConfig

ROOT = Path(__file__).resolve().parent.parent
LORA = LoRAConfig(rank=16, alpha=32.0, targets=PROJECTIONS)
LR, BETAS, WEIGHT_DECAY, CLIP_NORM = 3e-4, (0.9, 0.95), 0.01, 1.0
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

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.rows * self.micro_batches * self.length


def device() -> torch.device:
    """Return where the rows run."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def words(load: Load, step: int, micro_batch: int) -> Tensor:
    """Return the token ids (rows, length) of a micro-batch: bytes of this repository's tables and sources."""
    text = b"".join(p.read_bytes() for p in sorted(ROOT.glob("*/*.py")) + sorted(ROOT.glob("data_pipeline/*.csv")))
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
def fused_decoder(
    shape: DecoderShape, recompute: str, offload: bool = False, dtype: torch.dtype = torch.bfloat16
) -> FusedDecoder:
    """Return our decoder with the weights that `fill` names."""
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
        recompute=recompute,
        offload=offload,
    )
    fill("model.embed_tokens", decoder.embedding.weight)
    fill("lm_head", decoder.head.weight)
    decoder.norm.weight.fill_(1.0)
    blocks = {p: "self_attn" if p[0] in "qkvo" else "mlp" for p in PROJECTIONS}
    for i, layer in enumerate(decoder.layers):
        layer.norms.fill_(1.0)
        for weight, names in (
            (layer.qkv, PROJECTIONS[:3]),
            (layer.output, PROJECTIONS[3:4]),
            (layer.gate_up, PROJECTIONS[4:6]),
            (layer.down, PROJECTIONS[6:]),
        ):
            parts = weight.split([shape.sizes(n)[1] for n in names])
            for name, part in zip(names, parts, strict=True):
                fill(f"model.layers.{i}.{blocks[name]}.{name}", part)
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
            mask=table.bool(), metabolite_index=table, features=nothing[..., None], positional=nothing[..., None],
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


def ours(
    load: Load,
    recompute: str = "auto",
    offload: bool = False,
    engine: str = "deepspeed",
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Any]:
    """Train through our engine; return what was measured."""
    from trainers.engine import build_engine

    torch.manual_seed(0)
    started = time.monotonic()
    objective = Objective(fused_decoder(SHAPES[load.shape], recompute, offload, dtype))
    config = RunConfig(
        loss_weights={"text/ce": 1.0},
        data=DataConfig(samples_per_rank=load.rows),
        optim=OptimConfig(
            lr=LR, lr_warmup_steps=0, final_lr_share=1.0, weight_decay=WEIGHT_DECAY, beta1=BETAS[0], beta2=BETAS[1],
            clip_norm=CLIP_NORM,
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
        "recompute": recompute,
        "offload_activations": offload,
    }
    result = measure(load, step, started) | facts | {"grad_norms": [float(f"{n:.4g}") for n in norms]}
    if decoder.frequencies.is_cuda and recompute == "auto":
        keeps = decoder.last_keeps
        result |= {"layers_keep_all": sum(k.inside and k.gate_up for k in keeps), "layers": len(keeps)}
    return result


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
