"""Causal attention over sequences that lie one after another without padding."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# On Hopper cuDNN's kernel is the fastest; torch alone would take its own flash kernel.
_ON_GPU = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
_SHORT = 512  # places of a sequence whose scores may all exist at once


class Packing(NamedTuple):
    """Where each sequence lies."""

    lengths: tuple[int, ...]  # on the host
    starts: Int[Tensor, " R_plus_1"]  # int32 sums of them, from 0

    @classmethod
    def of(cls, lengths: tuple[int, ...], device: torch.device) -> Packing:
        """Pack sequences of these lengths."""
        starts = torch.tensor((0, *lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return cls(lengths, starts.to(device, non_blocking=True))


def causal_attention(
    q: Float[Tensor, "N H w"], k: Float[Tensor, "P K w"], v: Float[Tensor, "P K w"], packing: Packing
) -> Float[Tensor, "N H w"]:
    """Let each token read those before it in its sequence, and itself.

    Args:
        q: Queries; H is a multiple of K.
        k: Keys; more than queries only when there is one sequence, whose last N places ask.
        v: Values.
        packing: Of the queries.
    """
    lengths = packing.lengths
    if len(k) > len(q):
        return _rows(q, k, v, 1, _sees(len(q), len(k), q.device))
    if len(set(lengths)) == 1:
        return _rows(q, k, v, len(lengths))
    if q.is_cuda and q.dtype in (torch.bfloat16, torch.float16):
        longest, starts = max(lengths), packing.starts
        # torch.nn.attention.varlen wraps this, with arguments that differ between torch 2.11 and 2.13.
        out: Tensor = torch.ops.aten._flash_attention_forward(
            q, k, v, starts, starts, longest, longest, 0.0, True, False
        )[0]
        return out
    parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    return torch.cat([_rows(*part, rows=1) for part in parts])


def _rows(q: Tensor, k: Tensor, v: Tensor, rows: int, sees: Tensor | None = None) -> Tensor:
    """Attend in sequences of one length each, (rows * length, heads, width)."""
    grouped = q.shape[1] != k.shape[1]
    q, k, v = (x.unflatten(0, (rows, -1)).transpose(1, 2) for x in (q, k, v))
    if sees is None and q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= _SHORT:
        return _by_products(q, k, v).transpose(1, 2).flatten(0, 1)
    with sdpa_kernel(_ON_GPU, set_priority=True):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=sees, is_causal=sees is None, enable_gqa=grouped)
    return out.transpose(1, 2).flatten(0, 1)


def _by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend with all scores at once: on a CPU in bfloat16 half the time of torch's flash kernel (8 x 200 places)."""
    rows, heads, length, width = q.shape
    shared = k.shape[1]
    scores = q.reshape(rows, shared, -1, width) @ k.transpose(2, 3)
    later = torch.full((length, length), float("-inf"), dtype=q.dtype).triu(1)
    share = torch.softmax(scores.view(rows, heads, length, length) * width**-0.5 + later, dim=-1)
    return (share.view(rows, shared, -1, length) @ v).view(rows, heads, length, width)


def _sees(asking: int, places: int, device: torch.device) -> Tensor:
    """Return which places the last `asking` of them may read."""
    place = torch.arange(places, device=device)
    return place <= place[places - asking :, None]
