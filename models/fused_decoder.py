"""A frozen Llama-shaped decoder with trainable adapters in few large modules, each one gather under ZeRO-3.

DeepSpeed frees a module's parameters after its forward and gathers them anew for its backward, so nothing here saves a
weight or a view of one: the backward of a projection reads it again from the layer. What autograd keeps of a layer are
its input, queries, keys, values, what attention read, the residual stream and gate and up; norms and the gated product
are computed once more. The adapters of a layer lie in one matrix (rank, columns): A and the transposed B of each
projection side by side. Frozen weights in four or eight bits become numbers one layer at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from models import decoder_kernels as kernels, few_bits
from models.decoder_kernels import Rotary
from models.packed_attention import Packing, causal_attention

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_GROUPS = (PROJECTIONS[:3], PROJECTIONS[3:4], PROJECTIONS[4:6], PROJECTIONS[6:])  # of one fused weight each
_HEAD_TOKENS = 1024  # whose logits exist at once
_GIB = 2**30
_OUTSIDE = 2 * _GIB  # what "auto" leaves free on a card: fragments, other libraries


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


class Weights(NamedTuple):
    """The frozen matrices of a layer."""

    qkv: Tensor
    output: Tensor
    gate_up: Tensor
    down: Tensor

    @staticmethod
    def sizes(shape: DecoderShape) -> list[tuple[int, int]]:
        """Return rows and columns of each."""
        q, kv = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
        return [(q + 2 * kv, shape.width), (shape.width, q), (2 * shape.inner, shape.width), (shape.width, shape.inner)]

    @staticmethod
    def numbers(shape: DecoderShape) -> int:
        """Return how many numbers they hold together."""
        return sum(rows * columns for rows, columns in Weights.sizes(shape))


class Room:
    """Memory for the frozen matrices of one layer: a quantised layer writes them here just before it uses them."""

    def __init__(self) -> None:
        self._numbers: Tensor | None = None
        self._holds: DecoderLayer | None = None

    def of(self, layer: DecoderLayer) -> Weights:
        """Return the matrices of a layer; they last until those of another one are asked for."""
        numbers = self._for(layer)
        if self._holds is not layer:
            few_bits.dequantise(layer.kind, layer.codes, layer.scales, numbers)
            self._holds = layer
        return self._views(layer)

    def take(self, layer: DecoderLayer, weights: Weights) -> None:
        """Quantise matrices (these here may be filled and given) into the layer."""
        self._holds = None
        numbers = self._for(layer)
        for view, given in zip(self._views(layer), weights, strict=True):
            view.copy_(given)
        few_bits.quantise(layer.kind, numbers, layer.codes.data, layer.scales.data)

    def _for(self, layer: DecoderLayer) -> Tensor:
        device = layer.codes.device
        if self._numbers is None or self._numbers.device != device:
            size = Weights.numbers(layer.shape)
            self._numbers = torch.empty(size, dtype=layer.norms.dtype, device=device)
            self._holds = None
        return self._numbers

    def _views(self, layer: DecoderLayer) -> Weights:
        sizes = Weights.sizes(layer.shape)
        assert self._numbers is not None
        parts = self._numbers.split([rows * columns for rows, columns in sizes])
        return Weights(*(part.view(size) for part, size in zip(parts, sizes, strict=True)))


class DecoderLayer(nn.Module):
    """Attention and gated product with their norms, adapters and residual sums."""

    def __init__(
        self, shape: DecoderShape, rank: int, alpha: float, targets: Sequence[str], dtype: torch.dtype, device: Any,
        kind: str, room: Room,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shape, self.scale, self.kind, self.room = shape, alpha / rank, kind, room
        self.slots = slots_of(shape, targets)
        options: dict[str, Any] = {"dtype": dtype, "device": device}
        self.norms = _frozen(2, shape.width, **options)
        if kind == "none":
            for name, size in zip(Weights._fields, Weights.sizes(shape), strict=True):
                self.register_parameter(name, _frozen(*size, **options))
        else:
            numbers = Weights.numbers(shape)
            self.codes = _frozen(few_bits.code_bytes(kind, numbers), dtype=torch.uint8, device=device)
            self.scales = _frozen(numbers // few_bits.BLOCK, dtype=torch.bfloat16, device=device)
        self.columns = sum(sum(shape.sizes(s.projection)) for group in self.slots for s in group)
        self.adapter = nn.Parameter(torch.empty(rank, self.columns, device=device))

    def weights(self) -> Weights:
        """Return the frozen matrices; of a quantised layer until another one asks for its own."""
        if self.kind != "none":
            return self.room.of(self)
        return Weights(*(getattr(self, name) for name in Weights._fields))

    @torch.no_grad()
    def load(self, weights: Weights) -> None:
        """Take over the frozen matrices, quantised where the layer holds them so."""
        if self.kind != "none":
            self.room.take(self, weights)
            return
        for own, given in zip(self.weights(), weights, strict=True):
            own.copy_(given)

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
        again: bool = False,
    ) -> Float[Tensor, "N h"]:
        """Run the layer over packed sequences.

        Args:
            x: The tokens of all sequences, one after another.
            rotary: Angle of each token's place in its sequence.
            packing: Where the sequences begin.
            cache: Keys and values of the places before (empty at first), for one sequence without gradients.
            again: Keep the input alone; the backward runs the layer forward once more.
        """
        if cache is None and again and torch.is_grad_enabled():
            out: Tensor = _Again.apply(x, self.adapter, self, rotary, packing)
            return out
        return self.run(x, self.adapter, rotary, packing, cache)

    def run(
        self, x: Tensor, adapter: Tensor, rotary: Rotary, packing: Packing, cache: list[Tensor] | None = None,
        lows: list[Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """Run the layer; `adapter` is who receives the gradient, its numbers are read from the layer.

        A list `lows` that is empty is filled with what the adapters' A makes of the inputs of the four fused weights.
        With a full one the layer runs for the sake of the gradients alone, which need neither these products nor the
        last one: what comes out has the shape of the output, no more.
        """
        first, rest = (lows[:1], lows[1:]) if lows else ([], [])
        x, q, k, v = _ReadIn.apply(x, adapter, self, rotary, first)
        if cache is not None:
            k, v = (torch.cat([old, new]) for old, new in zip(cache, (k, v), strict=True)) if cache else (k, v)
            cache[:] = [k, v]
        attended = causal_attention(q, k, v, packing).flatten(1)
        out: Tensor = _WriteBack.apply(x, attended, adapter, self, rest)
        if lows is not None:
            lows[:] = [*first, *rest]
        return out

    def project(
        self, x: Tensor, weight: Tensor, slots: tuple[Slot, ...], residual: Tensor | None = None,
        low: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return x W^T + scale (x A^T) B^T + residual, and scale x A^T of the adapted projections side by side.

        The adapters write first and the large product adds to that: one pass over the output less. The residual comes
        last: in bfloat16 a small step of an adapter, added to the large residual alone, would be rounded away.
        `low` is the second of these where it is known.
        """
        low = self.low(x, slots) if low is None else low
        if not slots:
            return (x @ weight.t() if residual is None else torch.addmm(residual, x, weight.t())), low
        small = self.small(x.dtype)
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

    def low(self, x: Tensor, slots: tuple[Slot, ...]) -> Tensor:
        """Return scale x A^T of the projections that read x, side by side."""
        if not slots:
            return x.new_empty(len(x), 0)
        return (x @ _side_by_side(self.small(x.dtype), [s.a for s in slots]).t()).mul_(self.scale)

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
        ctx: Any, x: Tensor, adapter: Tensor, layer: DecoderLayer, rotary: Rotary, lows: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        shape = layer.shape
        normed = kernels.rms_norm(x, layer.norms[0], shape.norm_eps)
        qkv, low = layer.project(normed, layer.weights().qkv, layer.slots[0], low=lows[0] if lows else None)
        lows[:] = [low]
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
        normed_grad, low_grad = layer.project_backward(grad, layer.weights().qkv, slots, low, adapter_grad)
        x_grad, normed = kernels.rms_norm_backward(normed_grad, x, layer.norms[0], layer.shape.norm_eps, grad_x)
        layer.a_backward(low_grad, normed, slots, adapter_grad)
        return x_grad, adapter_grad, None, None, None


class _WriteBack(Function):
    """Output projection and residual sum, then norm, gate and up, their product, down and residual sum."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, attended: Tensor, adapter: Tensor, layer: DecoderLayer, lows: list[Tensor]
    ) -> Tensor:
        _, of_output, of_gate_up, of_down = layer.slots
        weights = layer.weights()
        again = bool(lows)
        low_output, low_gate_up, low_down = lows if again else (None, None, None)
        middle, low_output = layer.project(attended, weights.output, of_output, residual=x, low=low_output)
        normed = kernels.rms_norm(middle, layer.norms[1], layer.shape.norm_eps)
        gate_up, low_gate_up = layer.project(normed, weights.gate_up, of_gate_up, low=low_gate_up)
        out = middle  # the gradient needs all but the last product, a fifth of the work
        if not again:
            out, low_down = layer.project(kernels.swiglu(gate_up), weights.down, of_down, residual=middle)
            lows[:] = [low_output, low_gate_up, low_down]
        ctx.layer = layer
        ctx.save_for_backward(attended, middle, low_output, low_gate_up, low_down, gate_up)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        layer: DecoderLayer = ctx.layer
        attended, middle, low_output, low_gate_up, low_down, gate_up = ctx.saved_tensors
        _, of_output, of_gate_up, of_down = layer.slots
        weights, eps = layer.weights(), layer.shape.norm_eps
        adapter_grad = _adapter_grad(ctx, 2, layer, of_output + of_gate_up + of_down)
        product, low_grad = layer.project_backward(grad, weights.down, of_down, low_down, adapter_grad)
        kernels.swiglu_backward_(product, gate_up)  # now the product and the gradient of gate and up
        layer.a_backward(low_grad, product, of_down, adapter_grad)
        del product
        normed_grad, low_grad = layer.project_backward(gate_up, weights.gate_up, of_gate_up, low_gate_up, adapter_grad)
        middle_grad, normed = kernels.rms_norm_backward(normed_grad, middle, layer.norms[1], eps, grad)
        layer.a_backward(low_grad, normed, of_gate_up, adapter_grad)
        del normed_grad, normed
        attended_grad, low_grad = layer.project_backward(
            middle_grad, weights.output, of_output, low_output, adapter_grad
        )
        layer.a_backward(low_grad, attended, of_output, adapter_grad)
        return middle_grad, attended_grad, adapter_grad, None, None


class _Again(Function):
    """Keep little more than the input of a layer and run it forward once more in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, adapter: Tensor, layer: DecoderLayer, rotary: Rotary, packing: Packing) -> Tensor:
        ctx.layer, ctx.rotary, ctx.packing = layer, rotary, packing
        lows: list[Tensor] = []  # 224 bytes a token at rank 16, beside 10,240 of the input at 13 B
        out = layer.run(x, adapter, rotary, packing, lows=lows)
        ctx.save_for_backward(x, *lows)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *lows = ctx.saved_tensors
        x = x.detach().requires_grad_()
        adapter = ctx.layer.adapter.detach().requires_grad_()  # gradients of the parameter itself belong to the caller
        with torch.enable_grad():
            out = ctx.layer.run(x, adapter, ctx.rotary, ctx.packing, lows=lows)
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
            logits = states @ head.weight.t()
            nats.append(kernels.cross_entropy_(logits, label, slope=wanted))
            if wanted:
                slopes.append(logits @ head.weight)
            del logits  # or it would live until the next ones are there
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
        within_gib: float = 0.0,
        offload: bool = False,
        quantise: str = "none",
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
            recompute: "none" keeps everything dear, "layer" keeps the inputs of the layers alone and runs them forward
                once more, "auto" does so with as few layers as the free memory of the GPU asks for.
            within_gib: Memory in GiB that "auto" fills at most; 0 stands for all that the card has.
            offload: Keep what the layers keep in the memory of the host.
            quantise: How the matrices of the layers are held: "none" in dtype, "nf4", "int8".
        """
        super().__init__()
        self.shape, self.targets, self.recompute, self.offload = shape, tuple(targets), recompute, offload
        self.rank, self.turn_scale, self.within_gib, self.quantise = rank, turn_scale, within_gib, quantise
        self.last_again = 0  # how many layers kept their input alone in the last forward
        self._held_and_free = -1, 0  # bytes that torch held when the card was last asked, and those that it had left
        room = Room()
        options: dict[str, Any] = {"dtype": dtype, "device": device}
        self.embedding = nn.Embedding(shape.vocabulary, shape.width, **options).requires_grad_(False)
        self.layers = nn.ModuleList(
            DecoderLayer(shape, rank, alpha, targets, dtype, device, quantise, room) for _ in range(shape.layers)
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
        again = self._again(len(embedded)) if torch.is_grad_enabled() else 0
        self.last_again = again
        if cache is not None and not cache:
            cache.extend([] for _ in self.layers)
        hidden = embedded
        for i, layer in enumerate(self.layers[:layers]):
            with _saved_on_host(self.offload, pinned=hidden.is_cuda):
                hidden = layer(
                    hidden, rotary=rotary, packing=packing, cache=None if cache is None else cache[i], again=i < again
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

    def _again(self, tokens: int) -> int:
        """Return how many layers, the first ones, keep their input alone.

        The backward meets them last, when what the others kept is gone and there is room for a whole layer.
        """
        if self.recompute == "layer":
            return len(self.layers)
        if self.recompute == "none" or not self.frequencies.is_cuda:
            return 0
        taken, held = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        if held != self._held_and_free[0]:  # the driver answers late while another thread pins memory: ask it seldom
            self._held_and_free = held, torch.cuda.mem_get_info()[0]
        free = spare(taken, *self._held_and_free, self.within_gib)
        return plan(len(self.layers), self.kept_bytes(tokens), free - self.working_bytes(tokens))

    def kept_bytes(self, tokens: int) -> tuple[int, int]:
        """Return what a layer keeps of so many tokens: everything, its input alone."""
        s = self.shape
        size = self.head.weight.element_size() * tokens
        heads = s.heads * s.head_width
        small = self.rank * sum(len(group) for group in slots_of(s, self.targets))
        whole = size * (2 * s.width + 2 * heads + 2 * s.kv_heads * s.head_width + 2 * s.inner + small)
        return whole + 4 * tokens * s.heads, size * (s.width + small)

    def working_bytes(self, tokens: int) -> int:
        """Return what the last layer's backward, the head and the gathers of ZeRO-3 take beside what is kept."""
        s = self.shape
        size = self.head.weight.element_size()
        layer = size * tokens * (s.inner + 5 * s.width)
        head = size * tokens * 4 * s.width + _HEAD_TOKENS * s.vocabulary * size
        gathered = 0
        if self.head.weight.numel() == 0:  # ZeRO-3 shares it out: this layer, the next one and the head are gathered
            whole = [*self.layers[0].parameters(), *self.layers[0].parameters(), self.head.weight]
            gathered = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in whole)
        return max(layer, head) + gathered + _GIB // 16


def spare(taken: int, held: int, free: int, within_gib: float) -> int:
    """Return how many bytes may be filled.

    Args:
        taken: Bytes of tensors.
        held: Bytes that torch holds, tensors included.
        free: Bytes of the card that nobody holds.
        within_gib: Limit of the tensors in GiB; 0 for none.
    """
    room = free + held - taken - _OUTSIDE
    return min(room, int(within_gib * _GIB) - taken) if within_gib else room


def plan(layers: int, kept: tuple[int, int], free: int) -> int:
    """Return how many layers must keep their input alone so that all fits into the free bytes.

    Products that read states of one width cost the same arithmetic for each byte that they need not keep, so nothing is
    gained from keeping a part of a layer.

    Args:
        layers: How many there are.
        kept: Bytes of a layer that keeps everything, of one that keeps its input alone.
        free: Bytes.
    """
    whole, least = kept
    return min(layers, math.ceil(max(0, layers * whole - free) / (whole - least)))


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
