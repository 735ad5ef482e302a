"""Replay the forward and backward of a small network as CUDA graphs: two launches instead of thousands.

On a GPU the step of a small network is the time that the host takes to launch its kernels (shares: CHANGELOG.md). What
is recorded is a function of tensors: inputs are copied to where the recording found them, outputs lie where it left
them until the next replay. Nothing in it may wait for the device or copy from the host's memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

SHAPES = 8  # recordings of one network, in one memory; batches of other shapes run kernel by kernel
WARM_UP = 3


class Place(NamedTuple):
    """Stands for a tensor in an outline."""

    number: int


class Recording(NamedTuple):
    """Graphs with the tensors that they read and write."""

    inputs: tuple[Tensor, ...]
    outputs: list[Any]
    layout: Any  # of the outputs
    forward: torch.cuda.CUDAGraph
    output_gradients: tuple[Tensor | None, ...]
    input_gradients: tuple[Tensor | None, ...]
    backward: torch.cuda.CUDAGraph


class Graphed:
    """Calls a function through a recording of it, one for each set of shapes."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run
        self._recordings: dict[Any, Recording] = {}
        self._seen: set[Any] = set()
        self._pool: Any = None

    def __call__(self, *arguments: Any) -> Any:
        """Return what the function returns; arguments may hold tensors in dataclasses, tuples and tables."""
        tensors: list[Tensor] = []
        outlines = [outline(argument, tensors) for argument in arguments]
        key = (str(outlines), *((t.shape, t.dtype, t.requires_grad) for t in tensors))
        if key not in self._recordings:
            if key not in self._seen or len(self._recordings) == SHAPES:  # shapes that come once are not worth it
                self._seen.add(key)
                return self._run(*arguments)
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            self._recordings[key] = record(
                lambda *given: self._run(*(fill(o, given) for o in outlines)), tensors, self._pool
            )
        recording = self._recordings[key]
        return tree_unflatten(_Replay.apply(recording, *tensors), recording.layout)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, recording: Recording, *inputs: Tensor) -> tuple[Tensor, ...]:
        context.recording = recording
        for static, given in zip(recording.inputs, inputs, strict=True):
            static.copy_(given)
        recording.forward.replay()
        outputs = tuple(output.detach() for output in recording.outputs)
        context.mark_non_differentiable(
            *(o for o, recorded in zip(outputs, recording.outputs, strict=True) if not recorded.requires_grad)
        )
        context.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(context: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        recording = context.recording
        for static, given in zip(recording.output_gradients, gradients, strict=True):
            if static is not None:
                static.zero_() if given is None else static.copy_(given)
        recording.backward.replay()
        # Copies: a gradient that is accumulated must not change with the next replay.
        return None, *(None if g is None else g.clone() for g in recording.input_gradients)


def record(run: Callable[..., Any], tensors: list[Tensor], pool: Any) -> Recording:
    """Record a function and its backward on tensors like these.

    Recordings may share a pool: each backward is replayed before the next forward, so what one keeps in between is gone
    when another needs the room.
    """
    inputs = tuple(t.detach().clone().requires_grad_(t.requires_grad) for t in tensors)
    wanted = [t for t in inputs if t.requires_grad]
    side = _side_stream(torch.cuda.current_device())
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what happens once only (constants, choices of kernels) must not be recorded
        for _ in range(WARM_UP):
            outputs = [o for o in tree_flatten(run(*inputs))[0] if o.requires_grad]
            torch.autograd.grad(outputs, wanted, [torch.zeros_like(o) for o in outputs], allow_unused=True)
        del outputs
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()

    # thread_local: the thread that copies batches goes on allocating pinned memory meanwhile.
    mode = "thread_local"
    forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(forward, pool=pool, stream=side, capture_error_mode=mode):
        made = run(*inputs)
    leaves, layout = tree_flatten(made)
    gradients = tuple(torch.zeros_like(o) if o.requires_grad else None for o in leaves)
    with torch.cuda.graph(backward, pool=pool, stream=side, capture_error_mode=mode):
        found = torch.autograd.grad(
            [o for o in leaves if o.requires_grad], wanted, [g for g in gradients if g is not None], allow_unused=True
        )
    of_wanted = iter(found)
    return Recording(
        inputs, leaves, layout, forward, gradients, tuple(next(of_wanted) if t.requires_grad else None for t in inputs),
        backward,
    )  # fmt: skip


@functools.cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """Return the stream on which everything is recorded: cuBLAS keeps 64 MiB for each one that it ever met."""
    return torch.cuda.Stream(device)


def outline(part: Any, tensors: list[Tensor]) -> Any:
    """Return the argument with a Place for each tensor, which is appended to `tensors`."""
    if isinstance(part, Tensor):
        tensors.append(part)
        return Place(len(tensors) - 1)
    if is_dataclass(part) and not isinstance(part, type):
        return type(part), {f.name: outline(getattr(part, f.name), tensors) for f in fields(part)}
    if isinstance(part, Mapping):
        return {name: outline(value, tensors) for name, value in part.items()}
    if isinstance(part, tuple | list):
        return [outline(value, tensors) for value in part]
    return part


def fill(part: Any, tensors: tuple[Tensor, ...]) -> Any:
    """Return the argument that an outline was made of, with these tensors."""
    if isinstance(part, Place):
        return tensors[part.number]
    if isinstance(part, tuple):
        kind, values = part
        return kind(**{name: fill(value, tensors) for name, value in values.items()})
    if isinstance(part, dict):
        return {name: fill(value, tensors) for name, value in part.items()}
    if isinstance(part, list):
        return [fill(value, tensors) for value in part]
    return part
