"""Keep the parameters of a small network in one flat tensor a kind, so that ZeRO-3 handles two and not two hundred.

DeepSpeed's hooks, gathers and reductions cost host time for every parameter, which is most of the step of a network of
many small ones (CHANGELOG.md has the figures). In a flattened module each parameter is a view that autograd knows of,
made at the start of the module's forward and gone at its end. Names and shapes outside the engine stay what they were.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Slot(NamedTuple):
    """Where one parameter lies in a flat one."""

    name: str  # in the objective
    owner: nn.Module
    attribute: str
    shape: torch.Size
    begin: int
    end: int


class Flat(NamedTuple):
    """A flat parameter and what lies in it."""

    name: str  # in the objective
    parameter: nn.Parameter
    slots: tuple[Slot, ...]


def flatten(module: nn.Module, name: str) -> list[Flat]:
    """Move the trained parameters of a module into flat ones: matrices into one of 1 x n, vectors into one of n.

    The two kinds keep the number of axes by which weight decay tells them apart. Frozen parameters stay.

    Args:
        name: Of the module in its objective.
    """
    kinds: dict[tuple[torch.dtype, bool], list[tuple[str, nn.Module, str, nn.Parameter]]] = {}
    for owner_name, owner in module.named_modules(prefix=name):
        for attribute, parameter in owner.named_parameters(recurse=False):
            if parameter.requires_grad:
                kind = (parameter.dtype, parameter.dim() > 1)
                kinds.setdefault(kind, []).append((f"{owner_name}.{attribute}", owner, attribute, parameter))
    flats = [_merge(module, name, dtype, is_matrix, held) for (dtype, is_matrix), held in kinds.items()]
    inner = module.forward

    def anchored(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        anchor = torch.zeros((), device=flats[0].parameter.device, requires_grad=torch.is_grad_enabled())
        return (anchor, *inputs)

    # DeepSpeed puts a Python function in the place of F.linear, so that autograd holds no gathered weight. Here all are
    # gathered and held anyway, and the function costs more than the product.
    @functools.wraps(inner)
    def forward(anchor: Tensor, *inputs: Any, **named: Any) -> Any:
        values = _Anchored.apply(anchor, *(flat.parameter for flat in flats))
        for flat, value in zip(flats, values, strict=True):
            _show(flat, value)
        linear, F.linear = F.linear, torch._C._nn.linear
        try:
            return inner(*inputs, **named)
        finally:
            F.linear = linear
            for slot in (slot for flat in flats for slot in flat.slots):
                slot.owner.__dict__.pop(slot.attribute, None)

    module.register_forward_pre_hook(anchored)
    module.forward = forward  # type: ignore[method-assign]
    return flats


class _Anchored(torch.autograd.Function):
    """Flat parameters as one-dimensional views, whose gradients are complete before the anchor's is.

    DeepSpeed reduces the gradients of a leaf module in a full backward hook, which torch calls when the gradient of the
    module's inputs is there, and at once when no input wants one. The anchor is an input that always wants one, at no
    cost: letting the climate cube want a gradient instead made a CNN step 40 % longer (CHANGELOG.md).
    """

    @staticmethod
    def forward(context: Any, anchor: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        context.shapes = [p.shape for p in parameters]
        return tuple(p.detach().view(-1) for p in parameters)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        anchor = gradients[0].new_zeros(())
        return (anchor, *(g.view(shape) for g, shape in zip(gradients, context.shapes, strict=True)))


def _merge(
    module: nn.Module, name: str, dtype: torch.dtype, is_matrix: bool, held: list[tuple[str, nn.Module, str, Any]]
) -> Flat:
    slots, begin = [], 0
    for full_name, owner, attribute, parameter in held:
        end = begin + parameter.numel()
        slots.append(Slot(full_name, owner, attribute, parameter.shape, begin, end))
        begin = end
    together = torch.cat([parameter.detach().flatten() for *_, parameter in held])
    flat = nn.Parameter(together[None] if is_matrix else together)
    for slot in slots:
        slot.owner._parameters[slot.attribute] = None  # known but absent, as nn.Linear(bias=False) has it
    attribute = f"flat_{'matrices' if is_matrix else 'vectors'}_{str(dtype).removeprefix('torch.')}"
    module.register_parameter(attribute, flat)
    return Flat(f"{name}.{attribute}", flat, tuple(slots))


def _show(flat: Flat, values: Tensor) -> None:
    """Put views where the modules look for their parameters; nn.Module reads __dict__ first."""
    pieces = values.split([slot.end - slot.begin for slot in flat.slots])
    for slot, piece in zip(flat.slots, pieces, strict=True):
        slot.owner.__dict__[slot.attribute] = piece.view(slot.shape)


def take_apart(flat: Flat, values: Tensor) -> dict[str, Tensor]:
    """Return what a full flat tensor (values, moments, gradients) holds of each parameter, by name."""
    whole = values.reshape(-1)
    return {slot.name: whole[slot.begin : slot.end].view(slot.shape) for slot in flat.slots}
