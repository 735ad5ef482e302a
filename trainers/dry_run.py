"""Run forward and backward of an objective without memory or arithmetic, and count the bytes it would hold.

Parameters and floating-point inputs are meta tensors; whole numbers and masks are real, since shapes depend on them
(which samples have text, how many metabolites). Every operation passes a dispatch mode below autograd that follows
storages from birth to death, so what autograd keeps is counted by the same reference counts that free it in training.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from trainers.graphed import outline

BLOCK = 512  # bytes: the CUDA caching allocator rounds every tensor up to it


class Counted(NamedTuple):
    """Bytes of one micro-batch beside parameters, optimizer and gradient buffers."""

    inputs: int  # the batch on the device
    kept: dict[str, int]  # by top-level module, at the end of forward: what autograd keeps, and outputs
    forward_peak: int
    backward_peak: int  # gradients that wait for their reduction included
    replayed: int = 0  # in the memory of CUDA graphs, which torch reserves and does not count as allocated


def rounded(size: int) -> int:
    """Return the bytes that the allocator takes for a tensor of `size` bytes."""
    return -(-size // BLOCK) * BLOCK


class Meter(TorchDispatchMode):
    """Follows every storage that operations make; `live` and `peak` are in bytes.

    What is made under the labels of `apart` is counted apart, with a peak of its own for each.
    """

    def __init__(self, apart: Iterable[str] = ()) -> None:
        super().__init__()
        self.live, self.peak, self.label = 0, 0, ""
        self.by_label: Counter[str] = Counter()
        self.peaks: dict[str, int] = dict.fromkeys(apart, 0)
        self._known: set[int] = set()

    def own(self, tensors: Iterable[Tensor]) -> int:
        """Count tensors that exist already; return their bytes."""
        before = self.live
        for tensor in tensors:
            self._note(tensor)
        return self.live - before

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Never count these: they are counted elsewhere (parameters, buffers)."""
        self._known |= {t.untyped_storage()._cdata for t in tensors}

    def restart_peak(self) -> None:
        """Measure the peak from here on."""
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on meta tensors if any of its tensors is one."""
        kwargs = kwargs or {}
        if any(t.is_meta for t in _tensors((args, kwargs))):
            args, kwargs = _without_masks(func, args, kwargs)
            args, kwargs = tree_map_only(Tensor, _to_meta, (args, kwargs))
        out = func(*args, **kwargs)
        for tensor in _tensors(out):
            self._note(tensor)
        return out

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, rounded(storage.nbytes())
        if key in self._known or not size:
            return
        self._known.add(key)
        label = self.label
        weakref.finalize(storage, self._gone, key, size, label)
        self.by_label[label] += size
        if label in self.peaks:
            self.peaks[label] = max(self.peaks[label], self.by_label[label])
        else:
            self.live += size
            self.peak = max(self.peak, self.live)

    def _gone(self, key: int, size: int, label: str) -> None:
        self._known.discard(key)
        self.by_label[label] -= size
        if label not in self.peaks:
            self.live -= size


class Recordings:
    """What CUDA graphs hold (trainers/graphed.py) and the most that there is while one is recorded, in bytes.

    A recording keeps copies of its weights and inputs, their gradients, its outputs and the gradients of those. What it
    makes in between lies in a memory of its own, which counts as allocated only while it is recorded, in the second
    step; the networks before it are recorded by then.
    """

    def __init__(self, meter: Meter) -> None:
        self.held, self.peak = 0, 0
        self._meter = meter

    def watch(self, name: str, module: nn.Module) -> list[Any]:
        """Follow the calls of a module whose label the meter counts apart; return the hooks."""
        weights = sum(rounded(p.numel() * p.element_size()) for p in module.parameters() if p.requires_grad)

        def recorded(_: nn.Module, inputs: Any, named: Any, output: Any) -> None:
            copies = weights + _bytes((inputs, named))
            self.peak = max(self.peak, self._meter.live + self.held + copies + self._meter.peaks[name])
            self.held += copies + weights + 2 * _bytes(output)

        return [module.register_forward_hook(recorded, with_kwargs=True)]


def _bytes(parts: Any) -> int:
    tensors: list[Tensor] = []
    outline(parts, tensors)
    return sum(rounded(t.numel() * t.element_size()) for t in tensors)


@contextmanager
def _flash_attention() -> Iterator[None]:
    """Attend over meta tensors as a GPU does, without all scores at once, which torch falls back to for them.

    A function in the place of torch's: a mode would not reach what a backward pass computes once more.
    """
    usual = F.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Tensor:
        if not query.is_meta:
            return usual(query, key, value, *rest, **named)
        out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, named.get("is_causal", False)
        )[0]
        return out

    F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = usual


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


def _to_meta(tensor: Tensor) -> Tensor:
    if tensor.is_meta:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _without_masks(func: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Turn the real masks that index a meta tensor into positions: meta tensors cannot tell how many are set."""
    if func not in _INDEXING:
        return args, kwargs
    indices: list[Tensor | None] = []
    for index in args[1]:
        is_mask = index is not None and index.dtype in (torch.bool, torch.uint8)
        indices += index.nonzero().unbind(1) if is_mask else [index]
    return (args[0], indices, *args[2:]), kwargs


_INDEXING = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
    torch.ops.aten._unsafe_index.Tensor,
)


def count(objective: nn.Module, inputs: Iterable[Tensor], loss_of: Any, graphed: Iterable[str] = ()) -> Counted:
    """Count one forward and backward.

    A gradient is freed as soon as it is complete, as a ZeRO-3 engine does after copying it into its buckets.

    Args:
        objective: On the meta device.
        inputs: Tensors of the batch.
        loss_of: Runs the objective and returns the loss to differentiate.
        graphed: Its children that are replayed as CUDA graphs.
    """
    meter = Meter(graphed)
    recordings = Recordings(meter)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    meter.ignore([*objective.parameters(), *objective.buffers()])
    handles = [p.register_post_accumulate_grad_hook(_free_gradient) for p in parameters]
    for name, child in objective.named_children():
        handles.append(child.register_forward_pre_hook(_labelling(meter, name)))
        handles.append(child.register_forward_hook(_labelling(meter, "")))
        handles += recordings.watch(name, child) if name in meter.peaks else []
    try:
        with meter, _flash_attention():
            meter.label = "inputs"
            held = meter.own(inputs)
            meter.label = ""
            loss = loss_of()
            kept = {name: size for name, size in meter.by_label.items() if size > 0 and name != "inputs"}
            forward_peak = max(meter.peak + recordings.held, recordings.peak)
            meter.restart_peak()
            loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    for name in meter.peaks:  # what lies there between a forward and its backward is in `replayed`
        kept.pop(name, None)
    if recordings.held:
        kept["CUDA graphs"] = recordings.held
    return Counted(held, kept, forward_peak, meter.peak + recordings.held, sum(meter.peaks.values()))


def _free_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _labelling(meter: Meter, label: str) -> Any:
    def hook(*unused: Any) -> None:
        meter.label = label

    return hook
