"""Spare the host what DeepSpeed 0.19.8 has it do for each group of parameters, and waits for the GPU.

CHANGELOG.md has the figures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def clip_at_once(zero: Any) -> None:
    """Let DeepSpeed 0.19.8 find the norm of all gradients in one collective, and what clips them once for all."""
    _take_whole_norms()
    factor: list[Tensor] = []

    def norm() -> Tensor:
        import deepspeed.comm

        gradients = [g for i in range(len(zero.fp16_groups)) for g in zero.averaged_gradients[i]]
        square = torch.stack(torch._foreach_norm(gradients, 2, torch.float64)).square().sum()
        deepspeed.comm.all_reduce(square)  # every rank holds a part of each gradient
        total = square.sqrt()
        factor[:] = [1.0 / ((total + 1e-6) / zero.clip_grad).clamp(min=1.0)] if zero.clip_grad > 0.0 else []
        return total

    def clip(group: int, _: Tensor) -> None:
        for times in factor:
            zero.fp32_partitioned_groups_flat[group].grad.mul_(times)

    zero._get_norm_groups, zero.unscale_and_clip_grads = norm, clip


@functools.cache
def _take_whole_norms() -> None:
    """Let DeepSpeed take one norm for what it is; it combines a list of them, one a group."""
    from deepspeed.runtime.zero import stage3

    combine = stage3.combine_grad_norm_groups
    stage3.combine_grad_norm_groups = lambda found: found if isinstance(found, Tensor) else combine(found)


def run_ahead(zero: Any, world: int) -> Callable[[], None]:
    """Let the GPU wait for itself where DeepSpeed 0.19.8 lets the host wait for it, so that no step begins late.

    Return what must be called after each update: from there on gathers wait for it.
    """
    from deepspeed.runtime.zero import stage3

    class Joined(torch.cuda.Stream):
        """A stream that the present one waits for where the host would have."""

        def synchronize(self) -> None:
            torch.cuda.current_stream().wait_stream(self)

    if zero.reduce_and_partition_stream != torch.cuda.default_stream():  # the reductions overlap with the backward
        zero.reduce_and_partition_stream = Joined()
    # An infinite norm makes the update useless; the engine reads it when it comes and stops the run.
    stage3.is_invalid_grad_norm = lambda norm: False
    offload = zero.parameter_offload
    coordinator = offload.get_param_coordinator()
    coordinator._PartitionedParameterCoordinator__max_ongoing_fetch_events = 10**9
    gathers = offload._DeepSpeedZeRoOffload__allgather_stream
    return lambda: gathers.wait_stream(torch.cuda.current_stream()) if world > 1 else None
