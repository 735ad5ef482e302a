"""Keep frozen weights in four or eight bits a number: each block of 64 numbers shares a scale."""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import BFloat16, Float, UInt8
from torch import Tensor

BLOCK = 64  # numbers that share a scale
_CHUNK = 2**24  # numbers that are quantised at one time

# The 16 levels of 4-bit NormalFloat: quantiles of a normal distribution, zero among them.
# Source: Dettmers et al. 2023, QLoRA, appendix E.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# Of eight bits the last level is above 1 and never the nearest; with it every byte is a code.
_LEVELS = {"nf4": _NF4, "int8": tuple(i / 127 for i in range(-127, 129))}
KINDS = tuple(_LEVELS)


@cache
def levels(kind: str, device: torch.device) -> Float[Tensor, " K"]:
    """Return what the codes of a kind stand for, in units of the scale of their block."""
    return torch.tensor(_LEVELS[kind], dtype=torch.float32, device=device)


def code_bytes(kind: str, numbers: int) -> int:
    """Return how many bytes hold the codes of so many numbers; `numbers` is a multiple of 2 * BLOCK."""
    return numbers // 2 if kind == "nf4" else numbers


@torch.no_grad()
def quantise(
    kind: str, numbers: Float[Tensor, " n"], codes: UInt8[Tensor, " c"], scales: BFloat16[Tensor, " s"]
) -> None:
    """Write the nearest level of each number and the largest magnitude of each block.

    Of "nf4" a byte holds number k of the first half in its low bits and number k of the second half in its high bits,
    so that both halves are read and written in order.
    """
    if numbers.is_meta:  # sizes alone
        return
    table = levels(kind, numbers.device)
    between = (table[1:] + table[:-1]) / 2
    halves = numbers.view(2 if kind == "nf4" else 1, -1)
    of_halves = scales.view(len(halves), -1)
    for i, (half, of_half) in enumerate(zip(halves, of_halves, strict=True)):
        for start in range(0, len(half), _CHUNK):
            part = half[start : start + _CHUNK].float().view(-1, BLOCK)
            scale = of_half[start // BLOCK : start // BLOCK + len(part)]
            scale.copy_(part.abs().amax(1))
            unit = part / scale.float().clamp(min=torch.finfo(torch.float32).tiny)[:, None]
            code = torch.bucketize(unit, between, out_int32=True).to(torch.uint8).flatten()
            target = codes[start : start + len(code)]
            if i == 0:
                target.copy_(code)
            else:
                target.bitwise_or_(code << 4)


@torch.no_grad()
def dequantise(
    kind: str, codes: UInt8[Tensor, " c"], scales: BFloat16[Tensor, " s"], numbers: Float[Tensor, " n"]
) -> None:
    """Write level times scale, multiplied in float32, into `numbers`: the same bits from either implementation."""
    if numbers.is_meta:  # sizes alone
        return
    table = levels(kind, numbers.device)
    if numbers.is_cuda:
        from models import triton_kernels

        triton_kernels.dequantise(codes, scales, table, numbers, two_in_a_byte=kind == "nf4")
        return
    parts = (codes & 15, codes >> 4) if kind == "nf4" else (codes,)
    for part, scale, target in zip(parts, scales.chunk(len(parts)), numbers.chunk(len(parts)), strict=True):
        unit = table.index_select(0, part.int()).view(-1, BLOCK)
        target.view(-1, BLOCK).copy_(unit.mul_(scale.float()[:, None]))
