"""Draw random numbers per sample, so that they depend on neither batch size, padding, rank nor device."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_A = 0xBF58476D1CE4E5B9
_MIX_B = 0x94D049BB133111EB


def uniform(
    seed: Int[Tensor, " B"], stream: int | Int[Tensor, " B"], place: Int[Tensor, "#B *places"]
) -> Float[Tensor, "#B *places"]:
    """Return numbers in (0, 1), one for each (seed, stream, place); equal arguments give equal numbers anywhere.

    Args:
        stream: What the numbers are for, so that two uses of a seed are independent.
        place: Position of each number in the sample, with a leading axis of 1 or B.

    Source:
        SplitMix64 (Steele, Lea and Flood 2014) used as a counter-based generator.
    """
    jump = (stream + 1) * _signed(_GOLDEN) if isinstance(stream, Tensor) else _signed(_GOLDEN * (stream + 1))
    key = _mix(seed.long() + jump)
    bits = _mix(key.view(-1, *[1] * (place.dim() - 1)) + place.long() * _signed(_GOLDEN))
    return (_shift(bits, 41).float() + 0.5) / 2**23


def normal(seed: Int[Tensor, " B"], stream: int, place: Int[Tensor, "#B *places"]) -> Float[Tensor, "#B *places"]:
    """Return standard normal numbers, one for each (seed, stream, place). Source: Box and Muller 1958."""
    radius = torch.sqrt(-2.0 * torch.log(uniform(seed, 2 * stream + 1_000_000, place)))
    return radius * torch.cos(2.0 * math.pi * uniform(seed, 2 * stream + 1_000_001, place))


def _mix(x: Tensor) -> Tensor:
    x = x + _signed(_GOLDEN)
    x = (x ^ _shift(x, 30)) * _signed(_MIX_A)
    x = (x ^ _shift(x, 27)) * _signed(_MIX_B)
    return x ^ _shift(x, 31)


def _shift(x: Tensor, places: int) -> Tensor:
    """Shift right without copying the sign bit."""
    return (x >> places) & ((1 << (64 - places)) - 1)


def _signed(number: int) -> int:
    """Return the number modulo 2^64 as a signed 64-bit integer."""
    return (number + 2**63) % 2**64 - 2**63
