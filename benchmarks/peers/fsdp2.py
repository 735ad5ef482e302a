"""The same networks under FSDP2 (torch.distributed.fsdp.fully_shard): each decoder layer a unit, bfloat16, prefetch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.batch import Batch
from models.fused_decoder import FusedDecoder
from trainers import optim
from trainers.config import RunConfig
from trainers.engine import Coming, here, seed_step
from trainers.ranks import start


def stepper(
    root: nn.Module, decoder: FusedDecoder, config: RunConfig, device: torch.device
) -> Callable[[Batch], float]:
    """Share the networks out over the ranks and return a training step.

    Args:
        root: Takes a batch and returns the weighted loss.
        decoder: The language model inside it. Its layers, table and head are units of their own, the rest is the root
            unit: many small modules, which one gather brings.
        config: Learning rates and clipping.
        device: Of this rank.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    start(600.0)
    root.to(device).train()
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    # Inputs stay as they are: angles and gradients of the decoder's kernels are in float32 where they have to be.
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": half}
    layers = list(decoder.layers)
    for unit in [*layers, decoder.embedding, decoder.head]:
        fully_shard(unit, **options)
    for layer, following in zip(layers, layers[1:], strict=False):
        cast(FSDPModule, layer).set_modules_to_forward_prefetch([cast(FSDPModule, following)])
        cast(FSDPModule, following).set_modules_to_backward_prefetch([cast(FSDPModule, layer)])
    whole = MixedPrecisionPolicy(cast_forward_inputs=False)
    fully_shard(root, mesh=mesh, mp_policy=whole)
    groups = optim.parameter_groups(root.objective, config.optim)  # type: ignore[arg-type]
    optimizer = optim.adamw(groups, config.optim, device.type == "cuda")
    trained = [p for group in groups for p in group["params"]]
    done = [0]

    def step(batch: Batch) -> float:
        seed_step(config, done[0], dist.get_rank())
        optim.set_lr(optimizer, done[0], config.train.steps, config.optim)
        loss: Tensor = root(here(batch, device))
        coming = Coming({"loss": loss})
        loss.backward()
        nn.utils.clip_grad_norm_(trained, config.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done[0] += 1
        return coming.read()["loss"]

    return step
