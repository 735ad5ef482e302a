"""The number type of a frozen base."""

from __future__ import annotations

import torch


def base_dtype(name: str) -> torch.dtype:
    """Return the type that `model.language.dtype` names; "auto" is bfloat16 where this machine multiplies it fast.

    A CPU without instructions for it takes ten times as long as for float32 (AVX2 only: 5.6 against 60 GFLOP/s a core).
    """
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    fast = torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32
