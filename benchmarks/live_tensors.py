"""Count the bytes of the tensors that are alive between operations: exact, and the same on every device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Within `with LiveTensors() as live:` keep the most bytes alive at once and the bytes of the largest tensor.

    Only tensors that an operation inside returns are counted, gradients among them; what an operation needs
    while it runs is not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self.largest_bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                weak = StorageWeakRef(storage)
                self._alive[weak.cdata] = (weak, storage.nbytes())
                self.largest_bytes = max(self.largest_bytes, tensor.numel() * tensor.element_size())
        self._alive = {key: (weak, size) for key, (weak, size) in self._alive.items() if not weak.expired()}
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._alive.values()))
        return result
