"""Norm, gated product, rotary turn and cross-entropy of a decoder, with gradients: Triton on a GPU, torch elsewhere.

No gradient of a norm's weight is computed: the base is frozen. Over meta tensors (trainers/dry_run.py) nothing is made
but what the kernels make.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


class Rotary(NamedTuple):
    """Angles of the rotary position embedding; d is half a head's width."""

    cos: Float[Tensor, "N d"]
    sin: Float[Tensor, "N d"]


def rms_norm(x: Float[Tensor, "N h"], weight: Float[Tensor, " h"], eps: float) -> Float[Tensor, "N h"]:
    """Return the root-mean-square norm, computed in float32 and rounded where transformers rounds."""
    if x.is_cuda:
        from models import triton_kernels

        return triton_kernels.rms_norm(x, weight, eps)
    if x.is_meta:
        return torch.empty_like(x)
    return _normalised(x, eps)[0].to(x.dtype) * weight


def rms_norm_backward(
    grad: Float[Tensor, "N h"],
    x: Float[Tensor, "N h"],
    weight: Float[Tensor, " h"],
    eps: float,
    residual: Float[Tensor, "N h"],
) -> tuple[Float[Tensor, "N h"], Float[Tensor, "N h"]]:
    """Return the gradient of x, with that of the residual stream added, and the norm itself once more."""
    if x.is_cuda:
        from models import triton_kernels

        return triton_kernels.rms_norm_backward(grad, x, weight, eps, residual)
    if x.is_meta:
        return torch.empty_like(x), torch.empty_like(x)
    unit, scale = _normalised(x, eps)
    weighted = grad.float() * weight.float()
    inner = (weighted * unit).mean(1, keepdim=True)
    return (residual.float() + scale * (weighted - unit * inner)).to(x.dtype), unit.to(x.dtype) * weight


def _normalised(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.float()
    scale = torch.rsqrt(wide.pow(2).mean(1, keepdim=True) + eps)
    return wide * scale, scale


def swiglu(gate_up: Float[Tensor, "N two_i"]) -> Float[Tensor, "N i"]:
    """Return silu(gate) * up of [gate, up]."""
    if gate_up.is_cuda:
        from models import triton_kernels

        return triton_kernels.swiglu(gate_up)
    if gate_up.is_meta:
        return gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
    gate, up = gate_up.chunk(2, dim=1)
    return F.silu(gate) * up


def swiglu_backward_(grad: Float[Tensor, "N i"], gate_up: Float[Tensor, "N two_i"]) -> None:
    """Write the gradient of [gate, up] in their place, and the product itself once more in the place of its gradient.

    These are the largest tensors of a layer: new ones would add a third to what its backward takes.
    """
    if gate_up.is_meta:
        return
    if gate_up.is_cuda:
        from models import triton_kernels

        triton_kernels.swiglu_backward_(grad, gate_up)
        return
    gate, up = gate_up.chunk(2, dim=1)
    silu = F.silu(gate)
    product = silu * up
    gate.copy_(torch.ops.aten.silu_backward(grad * up, gate))
    up.copy_(grad * silu)
    grad.copy_(product)


def rotate_(qkv: Float[Tensor, "N w"], rotary: Rotary, heads: int) -> None:
    """Turn the first heads (queries and keys) of each token in place by its angles."""
    if qkv.is_cuda:
        from models import triton_kernels

        triton_kernels.rotate_(qkv, rotary.cos, rotary.sin, heads)
        return
    if qkv.is_meta:
        return
    half = rotary.cos.shape[1]
    turned = qkv[:, : heads * 2 * half].unflatten(1, (heads, 2, half))
    _turn(turned, turned, rotary.cos, rotary.sin)


def rotate_backward(
    grad_q: Float[Tensor, "N H w"], grad_k: Float[Tensor, "N K w"], grad_v: Float[Tensor, "N K w"], rotary: Rotary
) -> Float[Tensor, "N W"]:
    """Return the gradient of [queries, keys, values] before the turn as one tensor."""
    if grad_q.is_cuda:
        from models import triton_kernels

        return triton_kernels.rotate_backward(grad_q, grad_k, grad_v, rotary.cos, rotary.sin)
    tokens, heads, width = grad_q.shape
    shared = grad_k.shape[1]
    out = grad_q.new_empty(tokens, (heads + 2 * shared) * width)
    if out.is_meta:
        return out
    of_q, of_k, of_v = out.unflatten(1, (-1, width)).split([heads, shared, shared], dim=1)
    for source, target in ((grad_q, of_q), (grad_k, of_k)):
        _turn(source.unflatten(2, (2, -1)), target.unflatten(2, (2, -1)), rotary.cos, -rotary.sin)
    of_v.copy_(grad_v)
    return out


def cross_entropy_(logits: Float[Tensor, "n V"], labels: Int[Tensor, " n"], slope: bool) -> Float[Tensor, " n"]:
    """Return what each label costs in nats (float32); with `slope` write the gradient in the place of the logits."""
    if logits.is_cuda:
        from models import triton_kernels

        return triton_kernels.cross_entropy_(logits, labels, slope)
    if logits.is_meta:
        return logits.new_empty(len(labels), dtype=torch.float32)
    logs = F.log_softmax(logits, dim=1, dtype=torch.float32)
    nats = -logs.gather(1, labels[:, None])[:, 0]
    if slope:
        logits.copy_(logs.exp_().scatter_add_(1, labels[:, None], -logs.new_ones(len(labels), 1)))
    return nats


def _turn(source: Tensor, target: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Turn pairs (N heads 2 d) by angles (N d)."""
    cos, sin = cos[:, None], sin[:, None]
    first, second = source[:, :, 0].float(), source[:, :, 1].float()
    turned = first * cos - second * sin, second * cos + first * sin
    target[:, :, 0].copy_(turned[0])
    target[:, :, 1].copy_(turned[1])
