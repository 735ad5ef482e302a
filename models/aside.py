"""Find out what the host must know of a batch without waiting for what a GPU still has to do.

Numbers that the host reads (how long texts are, which samples have one) come from the batch alone. Asked for on the
stream on which the networks run they would come after all that is queued there: the host would begin each step with an
idle GPU. On a stream of their own they come as soon as the batch lies on the device.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor


def arrived(tensor: Tensor) -> bool:
    """Tell whether what the tensor holds is known to lie on the device already, whatever is queued there."""
    return bool(getattr(tensor, "_exobiome_arrived", False))


def mark_arrived(tensor: Tensor) -> None:
    """Say that it does; views and copies of the tensor are not marked."""
    tensor._exobiome_arrived = True  # type: ignore[attr-defined]


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)  # a few small kernels: they need not wait for a large one's blocks


@contextmanager
def aside(batch_is_here: bool, device: torch.device) -> Iterator[list[Any]]:
    """Queue the kernels of the `with` block on a stream of their own, which the present one waits for afterwards.

    Args:
        batch_is_here: What the block reads lies on the device; otherwise the block waits for the present stream.
        device: Of the batch; on a CPU nothing happens.

    Yields:
        A list: what is appended to it (tensors, also in dataclasses and tuples) is used by the present stream later.
    """
    results: list[Any] = []
    if device.type != "cuda":
        yield results
        return
    present, own = torch.cuda.current_stream(device), _stream(device)
    if not batch_is_here:
        own.wait_stream(present)
    with torch.cuda.stream(own):
        yield results
    present.wait_stream(own)
    for tensor in _tensors(results):
        tensor.record_stream(present)  # its memory must not serve the next block while a kernel there reads it


def _tensors(part: Any) -> Iterator[Tensor]:
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, list | tuple):
        for one in part:
            yield from _tensors(one)
    elif is_dataclass(part):
        for field in fields(part):
            yield from _tensors(getattr(part, field.name))
