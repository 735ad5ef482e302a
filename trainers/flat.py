"""Keep the parameters of a small network in one flat tensor a kind, so that ZeRO-3 handles two and not two hundred.

DeepSpeed's hooks, gathers and reductions cost host time for every parameter, module and output, which is most of the
step of a network of many small ones (CHANGELOG.md has the figures). Of a flattened network it sees a module that holds
the flat parameters and gives them out; the network takes views of them that autograd knows of, made at the start of its
forward and gone at its end. Names and shapes outside the engine stay what they were.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.graphed import Graphed


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


class Holder(nn.Module):
    """All that DeepSpeed sees of a flattened network: its flat parameters, which it gives out one-dimensional."""

    def forward(self, anchor: Tensor) -> tuple[Tensor, ...]:
        """Return the values; they outlive what DeepSpeed releases after this."""
        values: tuple[Tensor, ...] = _Anchored.apply(anchor, *self._parameters.values())
        return values


def flatten(module: nn.Module, name: str, graphed: bool = False) -> list[Flat]:
    """Move the trained parameters of a module into flat ones: matrices into one of 1 x n, vectors into one of n.

    The two kinds keep the number of axes by which weight decay tells them apart. Frozen parameters stay. The flat ones
    lie in the module's new child `flat`.

    Args:
        name: Of the module in its objective.
        graphed: On a GPU replay training passes as CUDA graphs (trainers/graphed.py); of those that `graphed` names.
    """
    kinds: dict[tuple[torch.dtype, bool], list[tuple[str, nn.Module, str, nn.Parameter]]] = {}
    for owner_name, owner in module.named_modules(prefix=name):
        for attribute, parameter in owner.named_parameters(recurse=False):
            if parameter.requires_grad:
                kind = (parameter.dtype, parameter.dim() > 1)
                kinds.setdefault(kind, []).append((f"{owner_name}.{attribute}", owner, attribute, parameter))
    holder = Holder()
    flats = [_merge(holder, f"{name}.flat", dtype, is_matrix, held) for (dtype, is_matrix), held in kinds.items()]
    module.add_module("flat", holder)
    remember(holder)
    inner = module.forward

    # DeepSpeed puts a Python function in the place of F.linear, so that autograd holds no gathered weight. Here all are
    # gathered and held anyway, and the function costs more than the product.
    def run(values: Sequence[Tensor], inputs: Sequence[Any], named: Mapping[str, Any]) -> Any:
        for flat, value in zip(flats, values, strict=True):
            _show(flat, value)
        linear, F.linear = F.linear, torch._C._nn.linear
        try:
            return inner(*inputs, **named)
        finally:
            F.linear = linear
            for slot in (slot for flat in flats for slot in flat.slots):
                slot.owner.__dict__.pop(slot.attribute, None)

    replay = Graphed(run) if graphed else run

    @functools.wraps(inner)
    def forward(*inputs: Any, **named: Any) -> Any:
        learns = torch.is_grad_enabled()
        values = holder(torch.zeros((), device=flats[0].parameter.device, requires_grad=learns))
        return (replay if learns and module.training and values[0].is_cuda else run)(values, inputs, named)

    module.forward = forward  # type: ignore[method-assign]
    return flats


@contextmanager
def only_holders(root: nn.Module) -> Iterator[None]:
    """Put the holders in the place of their networks meanwhile; DeepSpeed hooks every module that it finds."""
    networks = [
        (owner, attribute, child)
        for owner in root.modules()
        for attribute, child in owner._modules.items()
        if child is not None and isinstance(child._modules.get("flat"), Holder)
    ]
    for owner, attribute, child in networks:
        owner._modules[attribute] = child._modules["flat"]
    try:
        yield
    finally:
        for owner, attribute, child in networks:
            owner._modules[attribute] = child


def remember(module: nn.Module) -> None:
    """Let a module name its parameters and submodules, which stay the same from now on, without a walk through them.

    DeepSpeed asks for the parameters some forty times a step, for the submodules twice: a fifth of the host's time in a
    graph VAE step.
    """
    held, below = dict(module.named_parameters()), tuple(module.modules())

    def named_parameters(
        prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        begin = f"{prefix}." if prefix else ""
        return ((begin + name, parameter) for name, parameter in held.items() if recurse or "." not in name)

    def modules(remove_duplicate: bool = True) -> Iterator[nn.Module]:
        return iter(below)

    module.named_parameters = named_parameters  # type: ignore[method-assign]
    module.modules = modules  # type: ignore[method-assign]


class _Anchored(torch.autograd.Function):
    """Flat parameters as one-dimensional views, whose gradients are complete before the anchor's is.

    DeepSpeed reduces the gradients of a leaf module in a full backward hook, which torch calls when the gradient of the
    module's inputs is there, and at once when no input wants one. The anchor is an input that always wants one.
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
    holder: Holder, name: str, dtype: torch.dtype, is_matrix: bool, held: list[tuple[str, nn.Module, str, Any]]
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
    attribute = f"{'matrices' if is_matrix else 'vectors'}_{str(dtype).removeprefix('torch.')}"
    holder.register_parameter(attribute, flat)
    return Flat(f"{name}.{attribute}", flat, tuple(slots))


def graphed(objective: nn.Module) -> list[str]:
    """Return the names of the leaf modules whose training passes are replayed as CUDA graphs on a GPU.

    The reader of texts meets other lengths in each step, and what it reads is large: it is not recorded.
    """
    names = {id(module): name for name, module in objective.named_modules()}
    leaves = {names[id(module)]: module for module in objective.leaf_modules()}  # type: ignore[operator]
    return [name for name, leaf in leaves.items() if not name.startswith("language.") and not _drops_out(leaf)]


def _drops_out(module: nn.Module) -> bool:
    """Tell whether a module draws random numbers in training, which a replay would repeat."""
    return any(
        (isinstance(m, nn.Dropout) and m.p > 0) or (isinstance(rate := getattr(m, "dropout", 0.0), float) and rate > 0)
        for m in module.modules()
    )


def _show(flat: Flat, values: Tensor) -> None:
    """Put views where the modules look for their parameters; nn.Module reads __dict__ first."""
    pieces = values.split([slot.end - slot.begin for slot in flat.slots])
    for slot, piece in zip(flat.slots, pieces, strict=True):
        slot.owner.__dict__[slot.attribute] = piece.view(slot.shape)


def take_apart(flat: Flat, values: Tensor) -> dict[str, Tensor]:
    """Return what a full flat tensor (values, moments, gradients) holds of each parameter, by name."""
    whole = values.reshape(-1)
    return {slot.name: whole[slot.begin : slot.end].view(slot.shape) for slot in flat.slots}
