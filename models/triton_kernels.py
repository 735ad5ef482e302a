"""The Triton kernels behind models/decoder_kernels.py; imported on a GPU only."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 1024  # of one program of the gated product
_WORDS = 4096  # of the vocabulary that a program of the cross-entropy reads at a time
_SCALES = 64  # of the blocks of weights that one program dequantises


@triton.jit
def _rms_norm(x_ptr, w_ptr, out_ptr, width, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(x_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + column, mask=inside, other=0.0)
    scale = tl.rsqrt(tl.sum(x * x) / width + eps)
    out = (x * scale).to(w.dtype) * w
    tl.store(out_ptr + row * width + column, out, mask=inside)


@triton.jit
def _rms_norm_backward(g_ptr, x_ptr, w_ptr, r_ptr, dx_ptr, out_ptr, width, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(x_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(g_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    r = tl.load(r_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    w = tl.load(w_ptr + column, mask=inside, other=0.0)
    scale = tl.rsqrt(tl.sum(x * x) / width + eps)
    unit = x * scale
    g = g * w.to(tl.float32)
    inner = tl.sum(g * unit) / width
    tl.store(dx_ptr + row * width + column, r + scale * (g - unit * inner), mask=inside)
    tl.store(out_ptr + row * width + column, unit.to(w.dtype) * w, mask=inside)


@triton.jit
def _swiglu(gu_ptr, out_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gu_ptr + row * 2 * width + column, mask=inside, other=0.0)
    up = tl.load(gu_ptr + row * 2 * width + width + column, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide * tl.sigmoid(wide)).to(gate.dtype)
    tl.store(out_ptr + row * width + column, silu * up, mask=inside)


@triton.jit
def _swiglu_backward(g_ptr, gu_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gu_ptr + row * 2 * width + column, mask=inside, other=0.0)
    up = tl.load(gu_ptr + row * 2 * width + width + column, mask=inside, other=0.0)
    g = tl.load(g_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    wide = gate.to(tl.float32)
    sigmoid = tl.sigmoid(wide)
    silu = (wide * sigmoid).to(gate.dtype)
    slope = sigmoid * (1 + wide * (1 - sigmoid))
    tl.store(gu_ptr + row * 2 * width + column, g * up.to(tl.float32) * slope, mask=inside)
    tl.store(gu_ptr + row * 2 * width + width + column, g * silu.to(tl.float32), mask=inside)
    tl.store(g_ptr + row * width + column, silu * up, mask=inside)


@triton.jit
def _rotate(
    in_ptr, in_row, in_head, out_ptr, out_row, cos_ptr, sin_ptr, sign, heads,
    HALF: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    place = tl.arange(0, WIDTH)[None, :]
    inside = (head < heads) & (place < HALF)
    cos = tl.load(cos_ptr + row * HALF + place, mask=place < HALF, other=0.0)
    sin = sign * tl.load(sin_ptr + row * HALF + place, mask=place < HALF, other=0.0)
    source = in_ptr + row * in_row + head * in_head + place
    target = out_ptr + row * out_row + head * (2 * HALF) + place
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(target, first * cos - second * sin, mask=inside)
    tl.store(target + HALF, second * cos + first * sin, mask=inside)


@triton.jit
def _cross_entropy(x_ptr, label_ptr, nats_ptr, columns, SLOPE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * columns
    label = tl.load(label_ptr + row)
    own = tl.load(x_ptr + label).to(tl.float32)
    top = tl.full((BLOCK,), -1e30, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + column, mask=column < columns, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(top, x)
        total = total * tl.exp(top - higher) + tl.exp(x - higher)
        top = higher
    highest = tl.max(top)
    log_sum = highest + tl.log(tl.sum(total * tl.exp(top - highest)))
    tl.store(nats_ptr + row, log_sum - own)
    if SLOPE:
        for first in range(0, columns, BLOCK):
            column = first + tl.arange(0, BLOCK)
            x = tl.load(x_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
            slope = tl.exp(x - log_sum) - tl.where(column == label, 1.0, 0.0)
            tl.store(x_ptr + column, slope, mask=column < columns)


@triton.jit
def _dequantise(
    codes_ptr, scales_ptr, levels_ptr, out_ptr, blocks,
    TWO: tl.constexpr, SCALES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block = (tl.program_id(0) * SCALES + tl.arange(0, SCALES)).to(tl.int64)[:, None]
    place = block * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = block < blocks
    code = tl.load(codes_ptr + place, mask=inside, other=0).to(tl.int32)
    scale = tl.load(scales_ptr + block, mask=inside, other=0.0).to(tl.float32)
    first = tl.load(levels_ptr + (code & 15 if TWO else code))
    tl.store(out_ptr + place, first * scale, mask=inside)
    if TWO:
        scale = tl.load(scales_ptr + blocks + block, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(levels_ptr + (code >> 4))
        tl.store(out_ptr + blocks * BLOCK + place, second * scale, mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See decoder_kernels."""
    x = x.contiguous()
    out = torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[1])
    _rms_norm[(x.shape[0],)](x, weight, out, x.shape[1], eps, BLOCK=block, num_warps=_warps(block))
    return out


def rms_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> tuple[Tensor, Tensor]:
    """See decoder_kernels."""
    grad, x, residual = grad.contiguous(), x.contiguous(), residual.contiguous()
    dx, out = torch.empty_like(x), torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[1])
    _rms_norm_backward[(x.shape[0],)](
        grad, x, weight, residual, dx, out, x.shape[1], eps, BLOCK=block, num_warps=_warps(block)
    )
    return dx, out


def swiglu(gate_up: Tensor) -> Tensor:
    """See decoder_kernels."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    _swiglu[(rows, triton.cdiv(width, _COLUMNS))](gate_up.contiguous(), out, width, BLOCK=_COLUMNS)
    return out


def swiglu_backward_(grad: Tensor, gate_up: Tensor) -> None:
    """See decoder_kernels."""
    rows, width = grad.shape
    assert grad.is_contiguous() and gate_up.is_contiguous()
    _swiglu_backward[(rows, triton.cdiv(width, _COLUMNS))](grad, gate_up, width, BLOCK=_COLUMNS)
    torch.autograd.graph.increment_version([grad, gate_up])  # autograd refuses a second backward


def rotate_(qkv: Tensor, cos: Tensor, sin: Tensor, heads: int) -> None:
    """See decoder_kernels."""
    _launch(qkv, qkv.stride(0), 2 * cos.shape[1], qkv, qkv.stride(0), cos, sin, 1.0, heads)


def rotate_backward(grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See decoder_kernels."""
    tokens, heads, width = grad_q.shape
    shared = grad_k.shape[1]
    out = grad_q.new_empty(tokens, (heads + 2 * shared) * width)
    start = 0
    for grad in (grad_q, grad_k):
        grad = grad if grad.stride(2) == 1 else grad.contiguous()
        target = out[:, start * width :]
        _launch(grad, grad.stride(0), grad.stride(1), target, out.stride(0), cos, sin, -1.0, grad.shape[1])
        start += grad.shape[1]
    out[:, start * width :].view(tokens, shared, width).copy_(grad_v)
    return out


def _launch(
    source: Tensor, row: int, head: int, target: Tensor, target_row: int, cos: Tensor, sin: Tensor, sign: float,
    heads: int,
) -> None:  # fmt: skip
    half = cos.shape[1]
    _rotate[(cos.shape[0],)](
        source, row, head, target, target_row, cos, sin, sign, heads,
        HALF=half, WIDTH=triton.next_power_of_2(half), HEADS=triton.next_power_of_2(heads), num_warps=8,
    )  # fmt: skip


def cross_entropy_(logits: Tensor, labels: Tensor, slope: bool) -> Tensor:
    """See decoder_kernels."""
    assert logits.is_contiguous()
    nats = torch.empty(len(labels), dtype=torch.float32, device=logits.device)
    if len(labels):
        _cross_entropy[(len(labels),)](
            logits, labels, nats, logits.shape[1], SLOPE=slope, BLOCK=_WORDS, num_warps=_warps(_WORDS)
        )
    return nats


def dequantise(codes: Tensor, scales: Tensor, levels: Tensor, numbers: Tensor, two_in_a_byte: bool) -> None:
    """See models/few_bits.py."""
    size = numbers.numel() // scales.numel()
    blocks = codes.numel() // size
    _dequantise[(triton.cdiv(blocks, _SCALES),)](
        codes, scales, levels, numbers, blocks, TWO=two_in_a_byte, SCALES=_SCALES, BLOCK=size, num_warps=8
    )


def _warps(block: int) -> int:
    return max(1, min(16, block // 512))
