"""A frozen Llama-shaped decoder with trainable adapters in few large modules, each one gather under ZeRO-3.

DeepSpeed frees a module's parameters after its forward and gathers them anew for its backward, so nothing here saves a
weight or a view of one: the backward of a projection reads it again from the layer. What autograd keeps of a layer are
its input, queries, keys, values, what attention read, the residual stream and gate and up; norms and the gated product
are computed once more. The adapters of a layer lie in one matrix (rank, columns): A and the transposed B of each
projection side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models import decoder_kernels as kernels
from models.decoder_kernels import Rotary
from models.packed_attention import Packing, causal_attention

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_GROUPS = (PROJECTIONS[:3], PROJECTIONS[3:4], PROJECTIONS[4:6], PROJECTIONS[6:])  # of one fused weight each
_HEAD_TOKENS = 2048  # whose logits exist at once
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """Sizes of a Llama-shaped decoder."""

    width: int
    inner: int  # of the gated product
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    norm_eps: float = 1e-5
    tied: bool = False  # the head is the embedding

    def sizes(self, projection: str) -> tuple[int, int]:
        """Return how many numbers a projection reads and writes."""
        q, kv = self.heads * self.head_width, self.kv_heads * self.head_width
        return {
            "q_proj": (self.width, q),
            "k_proj": (self.width, kv),
            "v_proj": (self.width, kv),
            "o_proj": (q, self.width),
            "gate_proj": (self.width, self.inner),
            "up_proj": (self.width, self.inner),
            "down_proj": (self.inner, self.width),
        }[projection]


class Slot(NamedTuple):
    """Where the adapter of one projection lies in the adapter matrix of its layer."""

    projection: str
    a: slice  # columns of A
    b: slice  # columns of the transposed B
    rows: slice  # of the fused weight that this projection writes


def slots_of(shape: DecoderShape, targets: Sequence[str]) -> tuple[tuple[Slot, ...], ...]:
    """Return the slots of each of the four fused weights: query-key-value, output, gate-up, down."""
    groups, column = [], 0
    for names in _GROUPS:
        slots, row = [], 0
        for name in names:
            reads, writes = shape.sizes(name)
            if name in targets:
                b = column + reads
                slots.append(Slot(name, slice(column, b), slice(b, b + writes), slice(row, row + writes)))
                column = b + writes
            row += writes
        groups.append(tuple(slots))
    return tuple(groups)


class Keep(NamedTuple):
    """What a layer keeps for its backward, from all that is dear to compute to its input alone."""

    gate_up: bool = True
    inside: bool = True  # False: the input alone; the layer runs forward once more


KEEP_ALL = Keep()


class DecoderLayer(nn.Module):
    """Attention and gated product with their norms, adapters and residual sums."""

    def __init__(
        self, shape: DecoderShape, rank: int, alpha: float, targets: Sequence[str], dtype: torch.dtype, device: Any
    ) -> None:
        super().__init__()
        self.shape, self.scale = shape, alpha / rank
        self.slots = slots_of(shape, targets)
        q, kv = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
        options: dict[str, Any] = {"dtype": dtype, "device": device}
        self.norms = _frozen(2, shape.width, **options)
        self.qkv = _frozen(q + 2 * kv, shape.width, **options)
        self.output = _frozen(shape.width, q, **options)
        self.gate_up = _frozen(2 * shape.inner, shape.width, **options)
        self.down = _frozen(shape.width, shape.inner, **options)
        self.columns = sum(sum(shape.sizes(s.projection)) for group in self.slots for s in group)
        self.adapter = nn.Parameter(torch.empty(rank, self.columns, device=device))

    @torch.no_grad()
    def reset_adapter(self) -> None:
        """Draw A as peft does (Kaiming uniform) and set B to zero."""
        self.adapter.zero_()
        for slot in (s for group in self.slots for s in group):
            part = torch.empty_like(self.adapter[:, slot.a])
            self.adapter[:, slot.a] = nn.init.kaiming_uniform_(part, a=math.sqrt(5))

    def forward(
        self,
        x: Float[Tensor, "N h"],
        *,
        rotary: Rotary,
        packing: Packing,
        cache: list[Tensor] | None = None,
        keep: Keep = KEEP_ALL,
    ) -> Float[Tensor, "N h"]:
        """Run the layer over packed sequences.

        Args:
            x: The tokens of all sequences, one after another.
            rotary: Angle of each token's place in its sequence.
            packing: Where the sequences begin.
            cache: Keys and values of the places before (empty at first), for one sequence without gradients.
            keep: What the backward finds ready.
        """
        if cache is None and not keep.inside and torch.is_grad_enabled():
            out: Tensor = _Again.apply(x, self.adapter, self, rotary, packing)
            return out
        return self.run(x, self.adapter, rotary, packing, cache, keep)

    def run(
        self, x: Tensor, adapter: Tensor, rotary: Rotary, packing: Packing, cache: list[Tensor] | None,
        keep: Keep,
    ) -> Tensor:  # fmt: skip
        """Run the layer; `adapter` is who receives the gradient, its numbers are read from the layer."""
        x, q, k, v = _ReadIn.apply(x, adapter, self, rotary)
        if cache is not None:
            k, v = (torch.cat([old, new]) for old, new in zip(cache, (k, v), strict=True)) if cache else (k, v)
            cache[:] = [k, v]
        attended = causal_attention(q, k, v, packing).flatten(1)
        out: Tensor = _WriteBack.apply(x, attended, adapter, self, keep.gate_up)
        return out

    def project(
        self, x: Tensor, weight: Tensor, slots: tuple[Slot, ...], residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return x W^T + scale (x A^T) B^T + residual, and scale x A^T of the adapted projections side by side.

        The adapters write first and the large product adds to that: one pass over the output less. The residual comes
        last: in bfloat16 a small step of an adapter, added to the large residual alone, would be rounded away.
        """
        if not slots:
            low = x.new_empty(len(x), 0)
            return (x @ weight.t() if residual is None else torch.addmm(residual, x, weight.t())), low
        small = self.small(x.dtype)
        low = (x @ _side_by_side(small, [s.a for s in slots]).t()).mul_(self.scale)
        parts = low.split(len(small), dim=1)
        if residual is not None:
            (slot,) = slots
            return (low @ small[:, slot.b]).addmm_(x, weight.t()).add_(residual), low
        whole = sum(s.rows.stop - s.rows.start for s in slots) == len(weight)
        out = x.new_empty(len(x), len(weight)) if whole else x @ weight.t()
        for slot, part in zip(slots, parts, strict=True):
            target = out[:, slot.rows]
            if whole:
                torch.mm(part, small[:, slot.b], out=target)
            else:
                target.addmm_(part, small[:, slot.b])
        return (out.addmm_(x, weight.t()) if whole else out), low

    def project_backward(
        self, grad: Tensor, weight: Tensor, slots: tuple[Slot, ...], low: Tensor, adapter_grad: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of x and of x A^T; write the gradient of B."""
        if adapter_grad is None or not slots:
            return grad @ weight, low
        small = self.small(grad.dtype)
        rank = len(small)
        low_grad = grad.new_empty(len(grad), rank * len(slots))
        for i, slot in enumerate(slots):
            part, of_part = grad[:, slot.rows], slice(i * rank, (i + 1) * rank)
            torch.mm(part, small[:, slot.b].t(), out=low_grad[:, of_part])
            adapter_grad[:, slot.b] = low[:, of_part].t() @ part
        low_grad.mul_(self.scale)
        out = low_grad @ _side_by_side(small, [s.a for s in slots])
        return out.addmm_(grad, weight), low_grad

    def a_backward(self, low_grad: Tensor, x: Tensor, slots: tuple[Slot, ...], adapter_grad: Tensor | None) -> None:
        """Write the gradient of A of the projections that read x."""
        if adapter_grad is None or not slots:
            return
        for slot, part in zip(slots, (low_grad.t() @ x).split(len(adapter_grad)), strict=True):
            adapter_grad[:, slot.a] = part

    def small(self, dtype: torch.dtype) -> Tensor:
        """Return the adapters in the type of the base."""
        return self.adapter.detach().to(dtype)


class _ReadIn(Function):
    """Norm, queries, keys and values, rotary turn. The input passes through: its gradients meet in one kernel."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, adapter: Tensor, layer: DecoderLayer, rotary: Rotary
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        shape = layer.shape
        normed = kernels.rms_norm(x, layer.norms[0], shape.norm_eps)
        qkv, low = layer.project(normed, layer.qkv, layer.slots[0])
        kernels.rotate_(qkv, rotary, shape.heads + shape.kv_heads)
        ctx.layer, ctx.rotary = layer, rotary
        ctx.save_for_backward(x, low)
        q, k, v = qkv.unflatten(1, (-1, shape.head_width)).split([shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
        return x, q, k, v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_x: Tensor, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor) -> tuple[Tensor | None, ...]:
        layer: DecoderLayer = ctx.layer
        x, low = ctx.saved_tensors
        slots = layer.slots[0]
        adapter_grad = _adapter_grad(ctx, 1, layer, slots)
        grad = kernels.rotate_backward(grad_q, grad_k, grad_v, ctx.rotary)
        normed_grad, low_grad = layer.project_backward(grad, layer.qkv, slots, low, adapter_grad)
        x_grad, normed = kernels.rms_norm_backward(normed_grad, x, layer.norms[0], layer.shape.norm_eps, grad_x)
        layer.a_backward(low_grad, normed, slots, adapter_grad)
        return x_grad, adapter_grad, None, None


class _WriteBack(Function):
    """Output projection and residual sum, then norm, gate and up, their product, down and residual sum."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, attended: Tensor, adapter: Tensor, layer: DecoderLayer, keep_gate_up: bool
    ) -> Tensor:
        _, of_output, of_gate_up, of_down = layer.slots
        middle, low_output = layer.project(attended, layer.output, of_output, residual=x)
        normed = kernels.rms_norm(middle, layer.norms[1], layer.shape.norm_eps)
        gate_up, low_gate_up = layer.project(normed, layer.gate_up, of_gate_up)
        out, low_down = layer.project(kernels.swiglu(gate_up), layer.down, of_down, residual=middle)
        ctx.layer = layer
        ctx.save_for_backward(
            attended, middle, low_output, low_gate_up, low_down, *([gate_up] if keep_gate_up else [])
        )  # fmt: skip
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layer: DecoderLayer = ctx.layer
        attended, middle, low_output, low_gate_up, low_down, *kept = ctx.saved_tensors
        _, of_output, of_gate_up, of_down = layer.slots
        eps = layer.shape.norm_eps
        adapter_grad = _adapter_grad(ctx, 2, layer, of_output + of_gate_up + of_down)
        if kept:
            (gate_up,) = kept
        else:
            gate_up, _ = layer.project(kernels.rms_norm(middle, layer.norms[1], eps), layer.gate_up, of_gate_up)
        product_grad, low_grad = layer.project_backward(grad, layer.down, of_down, low_down, adapter_grad)
        gate_up_grad, product = kernels.swiglu_backward(product_grad, gate_up)
        layer.a_backward(low_grad, product, of_down, adapter_grad)
        del gate_up, kept, product, product_grad
        normed_grad, low_grad = layer.project_backward(
            gate_up_grad, layer.gate_up, of_gate_up, low_gate_up, adapter_grad
        )
        del gate_up_grad
        middle_grad, normed = kernels.rms_norm_backward(normed_grad, middle, layer.norms[1], eps, grad)
        layer.a_backward(low_grad, normed, of_gate_up, adapter_grad)
        attended_grad, low_grad = layer.project_backward(middle_grad, layer.output, of_output, low_output, adapter_grad)
        layer.a_backward(low_grad, attended, of_output, adapter_grad)
        return middle_grad, attended_grad, adapter_grad, None, None


class _Again(Function):
    """Keep the input of a layer alone and run it forward once more in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, adapter: Tensor, layer: DecoderLayer, rotary: Rotary, packing: Packing) -> Tensor:
        ctx.layer, ctx.rotary, ctx.packing = layer, rotary, packing
        ctx.save_for_backward(x)
        return layer.run(x, adapter, rotary, packing, None, KEEP_ALL)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        adapter = ctx.layer.adapter.detach().requires_grad_()  # gradients of the parameter itself belong to the caller
        with torch.enable_grad():
            out = ctx.layer.run(x, adapter, ctx.rotary, ctx.packing, None, KEEP_ALL)
        x_grad, adapter_grad = torch.autograd.grad(out, (x, adapter), grad)
        return x_grad, adapter_grad, None, None, None


class FinalNorm(nn.Module):
    """The norm after the last layer."""

    def __init__(self, shape: DecoderShape, dtype: torch.dtype, device: Any) -> None:
        super().__init__()
        self.eps = shape.norm_eps
        self.weight = _frozen(shape.width, dtype=dtype, device=device)

    def forward(self, x: Float[Tensor, "N h"]) -> Float[Tensor, "N h"]:
        """Normalise each token."""
        out: Tensor = _Norm.apply(x, self)
        return out


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, module: FinalNorm) -> Tensor:
        ctx.module = module
        ctx.save_for_backward(x)
        return kernels.rms_norm(x, module.weight, module.eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return kernels.rms_norm_backward(grad, x, ctx.module.weight, ctx.module.eps, torch.zeros_like(x))[0], None


class Head(nn.Module):
    """From hidden states to words: the cost of foreseen words without ever holding all logits, or the logits."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False) if not isinstance(weight, nn.Parameter) else weight

    def forward(
        self, hidden: Float[Tensor, "n h"], labels: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, " n"] | Float[Tensor, "n V"]:
        """Return the negative log-likelihood of each label in nats; without labels the logits."""
        if labels is None:
            return hidden @ self.weight.t()
        out: Tensor = _Nats.apply(hidden, labels, self)
        return out


class _Nats(Function):
    """Linear map and cross-entropy of some tokens at a time; the gradient of the states is ready after the forward."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, labels: Tensor, head: Head) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        nats, slopes = [], []
        for states, label in zip(hidden.split(_HEAD_TOKENS), labels.split(_HEAD_TOKENS), strict=True):
            logs = F.log_softmax(states @ head.weight.t(), dim=1, dtype=torch.float32)
            nats.append(-logs.gather(1, label[:, None])[:, 0])
            if wanted:
                slope = logs.exp_().scatter_add_(1, label[:, None], -logs.new_ones(len(label), 1))
                slopes.append(slope.to(states.dtype) @ head.weight)
        ctx.save_for_backward(torch.cat(slopes) if slopes else hidden.new_empty(0))
        return torch.cat(nats) if nats else hidden.new_zeros(0, dtype=torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return (slope * grad[:, None]).to(slope.dtype), None, None


class FusedDecoder(nn.Module):
    """Embedding, layers, norm and head of a Llama-shaped model over packed sequences."""

    def __init__(
        self,
        shape: DecoderShape,
        *,
        rank: int,
        alpha: float,
        targets: Sequence[str],
        frequencies: Float[Tensor, " d"],
        turn_scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
        device: Any = None,
        recompute: str = "auto",
        offload: bool = False,
    ) -> None:
        """Make a decoder whose weights are still to be filled in.

        Args:
            shape: Sizes.
            rank: Of the adapters.
            alpha: The adapters' output is scaled by alpha / rank.
            targets: Projections that have an adapter, of PROJECTIONS.
            frequencies: Of the rotary position embedding, in radians a place.
            turn_scale: Factor of its sine and cosine.
            dtype: Of the frozen weights and of the computation; adapters are float32.
            device: Where the weights lie.
            recompute: "none" keeps everything dear, "mlp" computes gate and up again, "layer" keeps the inputs of the
                layers alone, "auto" takes the least of it that the free memory of the GPU asks for.
            offload: Keep what the layers keep in the memory of the host.
        """
        super().__init__()
        self.shape, self.targets, self.recompute, self.offload = shape, tuple(targets), recompute, offload
        self.rank, self.turn_scale = rank, turn_scale
        self.last_keeps: list[Keep] = []  # what the layers kept of the last forward
        options: dict[str, Any] = {"dtype": dtype, "device": device}
        self.embedding = nn.Embedding(shape.vocabulary, shape.width, **options).requires_grad_(False)
        self.layers = nn.ModuleList(
            DecoderLayer(shape, rank, alpha, targets, dtype, device) for _ in range(shape.layers)
        )
        self.norm = FinalNorm(shape, dtype, device)
        self.head = Head(self.embedding.weight if shape.tied else _frozen(shape.vocabulary, shape.width, **options))
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies.float().to(device), persistent=False)

    @property
    def width(self) -> int:
        """Numbers in a hidden state."""
        return self.shape.width

    @property
    def depth(self) -> int:
        """Number of layers."""
        return self.shape.layers

    def forward(
        self,
        embedded: Float[Tensor, "N h"],
        places: Int[Tensor, " N"],
        packing: Packing,
        cache: list[list[Tensor]] | None = None,
        taps: dict[int, Tensor] | None = None,
        layers: int | None = None,
    ) -> Float[Tensor, "N h"]:
        """Return the last hidden states, normalised; with `layers` those after so many of them, as they are.

        Args:
            embedded: The tokens of all sequences, one after another, without padding.
            places: Of each token in its sequence, from 0.
            packing: Where the sequences begin.
            cache: Keys and values of the places before, filled by this call; for one sequence without gradients.
            taps: Filled by this call: for each key the hidden states after so many layers.
            layers: How many to run; all by default.
        """
        if torch.is_grad_enabled() and not embedded.requires_grad:
            # ZeRO-3 frees a layer once the gradient of its input is there.
            embedded = embedded.detach().requires_grad_()
        rotary = self._rotary(places)
        keeps = self._keeps(len(embedded)) if torch.is_grad_enabled() else [KEEP_ALL] * len(self.layers)
        self.last_keeps = keeps
        if cache is not None and not cache:
            cache.extend([] for _ in self.layers)
        hidden = embedded
        for i, (layer, keep) in enumerate(zip(self.layers[:layers], keeps[:layers], strict=True)):
            with _saved_on_host(self.offload, pinned=hidden.is_cuda):
                hidden = layer(
                    hidden, rotary=rotary, packing=packing, cache=None if cache is None else cache[i], keep=keep
                )
            if taps is not None and i + 1 in taps:
                taps[i + 1] = hidden
        if layers is not None:
            return hidden
        out: Tensor = self.norm(hidden)
        return out

    def embed(self, token_ids: Int[Tensor, "*s"]) -> Float[Tensor, "*s h"]:
        """Return the embeddings of words."""
        out: Tensor = self.embedding(token_ids)
        return out

    def nats(self, hidden: Float[Tensor, "n h"], labels: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return what each label costs that these states foresee."""
        out: Tensor = self.head(hidden, labels)
        return out

    def logits(self, hidden: Float[Tensor, "n h"]) -> Float[Tensor, "n V"]:
        """Return a score for each word of the vocabulary."""
        out: Tensor = self.head(hidden)
        return out

    def _rotary(self, places: Tensor) -> Rotary:
        angles = places[:, None].float() * self.frequencies
        return Rotary(angles.cos() * self.turn_scale, angles.sin() * self.turn_scale)

    def _keeps(self, tokens: int) -> list[Keep]:
        """Return what each layer keeps."""
        if self.recompute == "layer":
            return [Keep(inside=False)] * len(self.layers)
        if self.recompute == "mlp":
            return [Keep(gate_up=False)] * len(self.layers)
        if self.recompute == "none" or not self.frequencies.is_cuda:
            return [KEEP_ALL] * len(self.layers)
        kept = self.kept_bytes(tokens)
        free, _ = torch.cuda.mem_get_info()
        free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return plan(len(self.layers), kept, free - self.working_bytes(tokens))

    def kept_bytes(self, tokens: int) -> tuple[int, int, int]:
        """Return what a layer keeps of so many tokens: everything, without gate and up, its input alone."""
        s = self.shape
        size = self.head.weight.element_size() * tokens
        attended = s.heads * s.head_width
        few = size * (2 * s.width + 2 * attended + 2 * s.kv_heads * s.head_width) + 4 * tokens * s.heads
        return few + size * 2 * s.inner, few, size * s.width

    def working_bytes(self, tokens: int) -> int:
        """Return what one layer's backward, the head and the gathers of ZeRO-3 take beside what is kept."""
        s = self.shape
        size = self.head.weight.element_size()
        layer = size * tokens * (6 * s.inner + 4 * s.width)
        head = _HEAD_TOKENS * s.vocabulary * 10
        numbers = [getattr(p, "ds_numel", p.numel()) for p in (*self.layers[0].parameters(), self.head.weight)]
        gathered = 3 * size * sum(numbers) if self.head.weight.numel() == 0 else 0
        return max(layer, head) + gathered + 2 * _GIB


def plan(layers: int, kept: tuple[int, int, int], free: int) -> list[Keep]:
    """Return what each layer keeps so that all fits into the free bytes: gate and up go first, they cost least.

    Args:
        layers: How many.
        kept: Bytes of a layer that keeps everything, all but gate and up, its input alone.
        free: Bytes.
    """
    whole, few, least = kept
    without = math.ceil(max(0, layers * whole - free) / (whole - few))
    if without <= layers:
        return [Keep(gate_up=False)] * without + [KEEP_ALL] * (layers - without)
    again = min(layers, math.ceil(max(0, layers * few - free) / (few - least)))
    return [Keep(inside=False)] * again + [Keep(gate_up=False)] * (layers - again)


def _frozen(*shape: int, **options: Any) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape, **options), requires_grad=False)


def _adapter_grad(ctx: Any, place: int, layer: DecoderLayer, slots: tuple[Slot, ...]) -> Tensor | None:
    """Return zeros for the gradient of the adapters, or None where nobody wants it or nothing would be written."""
    return torch.zeros_like(layer.adapter) if ctx.needs_input_grad[place] and slots else None


def _side_by_side(small: Tensor, columns: list[slice]) -> Tensor:
    """Return the A of several projections, one below the other."""
    return small[:, columns[0]] if len(columns) == 1 else torch.cat([small[:, c] for c in columns])


def _saved_on_host(wanted: bool, pinned: bool) -> AbstractContextManager[Any]:
    return torch.autograd.graph.save_on_cpu(pin_memory=pinned) if wanted else nullcontext()
