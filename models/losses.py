"""Count, weight and add loss terms, so that two ranks give what one process gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.errors import InputError


class Term(NamedTuple):
    """One loss term of one rank: a float32 sum and the number of items in it (never `count`: tuples have that)."""

    total: Tensor
    items: Tensor


class WeightedTotal(NamedTuple):
    """The loss to differentiate on this rank, and what to log (equal on all ranks, without gradient)."""

    loss: Tensor
    means: dict[str, Tensor]  # term name -> mean over all ranks, 0 when there was no item; "loss" is their weighted sum


def masked(values: Tensor, *masks: Tensor | None) -> Term:
    """Sum the values where every mask is True; masks cover the leading axes of `values` (B, B N, ...), None covers all.

    An absent sample adds 0 to the sum and 0 to the items, whatever its values are.
    """
    keep = torch.ones_like(values, dtype=torch.bool)
    for mask in (m for m in masks if m is not None):
        keep = keep & mask.bool().reshape(mask.shape + (1,) * (values.dim() - mask.dim()))
    return Term(torch.where(keep, values.float(), 0.0).sum(), keep.sum().float())


def weighted_total(
    terms: Mapping[str, Term], weights: Mapping[str, float], reduce_items: Callable[[Tensor], Tensor] | None = None
) -> WeightedTotal:
    """Weight and add the terms: the only place that does.

    A term contributes weight * total of this rank * world / items of all ranks. The engine averages gradients over
    ranks, so the gradient is that of weight * (sum over all samples) / (items of all samples): exactly what one process
    with the whole batch computes. A term without items anywhere gives 0.

    Args:
        weights: One weight for each term, no more and no less.
        reduce_items: Sums a float32 vector over ranks and returns it; None for a single process.

    Raises:
        InputError: `weights` and `terms` do not name the same terms.
    """
    unknown, missing = sorted(set(weights) - set(terms)), sorted(set(terms) - set(weights))
    if unknown or missing:
        raise InputError(
            f"loss_weights: no such term {unknown}, no weight for {missing}; this objective has {sorted(terms)}"
        )
    names = list(terms)
    totals = torch.stack([terms[n].total.float() for n in names])
    items = torch.stack([terms[n].items.float() for n in names])
    # One reduction carries the items, the totals (to log) and a 1 a rank, which adds up to the world.
    packed = torch.cat([items, totals.detach(), _on_device((1.0,), items.device)])
    reduced = packed if reduce_items is None else reduce_items(packed)
    global_items, global_totals, world = reduced[: len(names)], reduced[len(names) : -1], reduced[-1]
    share = torch.where(global_items > 0, 1.0 / global_items, 0.0)
    weight = _on_device(tuple(weights[n] for n in names), totals.device)
    means = global_totals * share
    loss = totals @ (weight * share * world)
    return WeightedTotal(loss, dict(zip(names, means, strict=True)) | {"loss": weight @ means})


@lru_cache(maxsize=8)
def _on_device(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Return float32 numbers that are copied once: each copy would wait for the device."""
    return torch.tensor(numbers, dtype=torch.float32, device=device)


class _GatherWithGrad(torch.autograd.Function):
    """All ranks' rows; backward sums the gradient of every rank with respect to this rank's rows."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        return _all_gather(rows)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def _all_gather(rows: Tensor) -> Tensor:
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gather_with_grad(rows: Tensor) -> Tensor:
    """Concatenate the rows (first axis, equally many on each rank) of all ranks, in the order of ranks.

    Gradients flow back to the rank that a row came from, summed over the ranks that used it. Every rank must call it.
    In a single process it returns its argument.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return rows
    return _GatherWithGrad.apply(rows) if rows.is_floating_point() else _all_gather(rows)


def first_row(rows: int) -> int:
    """Return where this rank's rows begin in what `gather_with_grad` returns, for `rows` rows a rank."""
    return dist.get_rank() * rows if dist.is_available() and dist.is_initialized() else 0


def kl_to_normal(mean: Tensor, log_var: Tensor, prior_mean: Tensor, prior_log_var: Tensor) -> Tensor:
    """Return the divergence of diagonal normals in nats, summed over the last axis."""
    ratio = (log_var - prior_log_var).exp() + (mean - prior_mean).square() * (-prior_log_var).exp()
    return 0.5 * (ratio - 1.0 + prior_log_var - log_var).sum(-1)
