"""Build the unified model under each way to share it over GPUs: our ZeRO-3 engine, ZeRO-2 with a whole base, FSDP2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.batch import Batch
from models.biochemistry import Chemistry
from models.fused_decoder import FusedDecoder
from models.objectives import UnifiedObjective
from trainers import ds_config, flat, optim
from trainers.communication import (
    Piece,
    Sharing,
    of_contrast,
    of_exemplars,
    of_frozen_step,
    of_metrics,
    of_step,
    of_zero2_step,
    walk,
)
from trainers.config import RunConfig
from trainers.engine import Coming, DeepSpeedEngine, here, seed_step, weigh
from trainers.frozen import FrozenShares
from trainers.ranks import start

WAYS = ("ours-zero3", "ours-zero2", "fsdp2")


class Training(NamedTuple):
    """One way of training: a step on this rank's batch, and what is known of its collectives."""

    step: Callable[[Batch], float]  # returns the loss
    root: nn.Module
    decoder: FusedDecoder
    walk: Callable[[Batch, Callable[[], None] | None], Any] | None  # trainers.communication.walk of a step
    expected: Callable[[Any, Batch], dict[str, int]] | None  # bytes of a step by the model, from such a walk
    frozen: FrozenShares | None = None


class Loss(nn.Module):
    """An objective that returns its weighted loss."""

    def __init__(self, objective: nn.Module, config: RunConfig) -> None:
        super().__init__()
        self.objective = objective
        self._config = config
        self.terms = 0

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss; its gradients, averaged over ranks, are those of one process with the whole batch."""
        terms = self.objective.forward(batch).terms
        self.terms = len(terms)
        loss: Tensor = weigh(terms, self._config, _sum).loss
        return loss


def _sum(values: Tensor) -> Tensor:
    dist.all_reduce(values)
    return values


def build(
    way: str, config: RunConfig, chemistry: Chemistry, decoder: FusedDecoder, device: torch.device, frozen: str = "auto"
) -> Training:
    """Return the training of a unified model with this decoder; `frozen` is the engine's frozen_weights."""
    torch.manual_seed(0)
    objective = UnifiedObjective(config.model, chemistry, decoder)
    if way == "ours-zero3":
        return _ours(objective, config, decoder, frozen)
    root = Loss(objective, config)
    if way == "ours-zero2":
        return _zero2(root, objective, config, decoder, device)
    from benchmarks.peers.fsdp2 import stepper

    return Training(stepper(root, decoder, config, device), root, decoder, None, None)


def _ours(objective: UnifiedObjective, config: RunConfig, decoder: FusedDecoder, frozen: str) -> Training:
    engine = DeepSpeedEngine(objective, config, frozen)
    units: list[list[nn.Module]] = getattr(decoder, "frozen_units", [])
    shares: FrozenShares | None = getattr(decoder, "frozen", None)
    terms = [0]

    def step(batch: Batch) -> float:
        report = engine.train_step(batch)
        terms[0] = len(report.means)
        return report.loss

    def walked(batch: Batch, mark: Callable[[], None] | None) -> Any:
        return walk(engine._root, engine.leaves, lambda: step(batch), mark, units)

    def expected(found: Any, batch: Batch) -> dict[str, int]:
        sharing = sharing_of(config, engine.world)
        total = of_step(found, sharing)
        fetched = {} if shares is None else {shares.operation: of_frozen_step(shares.unit_bytes())}
        met = _among_ranks(objective, config, batch, engine.world)
        return _added(total, of_metrics(terms[0]), met, fetched)

    return Training(step, engine._root, decoder, walked, expected, shares)


def sharing_of(config: RunConfig, world: int) -> Sharing:
    """Return how our engine shares parameters out on this kind of machine."""
    table = ds_config.read(ds_config.path_of(config, torch.cuda.is_available()))
    return Sharing.of(table["zero_optimization"], world)


def _zero2(
    root: Loss, objective: UnifiedObjective, config: RunConfig, decoder: FusedDecoder, device: torch.device
) -> Training:
    """Keep the frozen base whole on every GPU; gradients and Adam's state of what is trained are shared out."""
    deepspeed = start(config.train.process_group_timeout_s)
    names = {id(module): name for name, module in objective.named_modules()}
    recorded = flat.graphed(objective) if device.type == "cuda" else []
    for module in objective.leaf_modules():
        name = names[id(module)]
        flat.flatten(module, name, name in recorded)
    groups = optim.parameter_groups(objective, config.optim)
    pieces = [[Piece.of(p) for p in group["params"]] for group in groups]
    world = dist.get_world_size()
    table = {
        "train_micro_batch_size_per_gpu": config.data.samples_per_rank,
        "train_batch_size": config.data.samples_per_rank * world,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optim.clip_norm,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "steps_per_print": 10**9,
        "timers": {"throughput": {"enabled": False}},
        "zero_optimization": {
            "stage": 2,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "overlap_comm": device.type == "cuda",
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
        },
    }
    engine, *_ = deepspeed.initialize(
        model=root.to(device),
        optimizer=optim.adamw(groups, config.optim, device.type == "cuda"),
        config=table,
        dist_init_required=False,
    )
    engine.train()
    done = [0]

    def step(batch: Batch) -> float:
        seed_step(config, done[0], dist.get_rank())
        optim.set_lr(engine.optimizer.optimizer, done[0], config.train.steps, config.optim)
        loss = engine(here(batch, device))
        coming = Coming({"loss": loss})
        engine.backward(loss)
        engine.step()
        done[0] += 1
        return coming.read()["loss"]

    def expected(_: Any, batch: Batch) -> dict[str, int]:
        own = {"all_reduce": 4 * (2 * root.terms + 1)}
        return _added(of_zero2_step(pieces, world), own, _among_ranks(objective, config, batch, world))

    return Training(step, root, decoder, None, expected)


def _among_ranks(objective: UnifiedObjective, config: RunConfig, batch: Batch, world: int) -> dict[str, int]:
    """Return the bytes with which samples of all ranks meet: codes to tell apart, networks to remember."""
    samples, modalities = batch.present.shape
    if world == 1:
        return {}
    codes = of_contrast(samples * world, modalities, config.model.fusion.contrast_dim)
    return _added(codes, of_exemplars(samples * world, objective.graph_vae.exemplars.edges.shape[1]))


def _added(*tables: dict[str, int]) -> dict[str, int]:
    names = sorted({name for table in tables for name in table})
    return {name: sum(table.get(name, 0) for table in tables) for name in names}
