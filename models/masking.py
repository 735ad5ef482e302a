"""What absorbing-mask denoisers share: what sampling reveals next.

Source: Austin et al. 2021; Sahoo et al. 2024. Sampling starts with all hidden and reveals in T steps, the surest first;
T = 1 is one-shot decoding.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def reveal(
    entropy: Float[Tensor, "B K"], hidden: Bool[Tensor, "B K"], steps_left: int | Int[Tensor, " B"]
) -> Bool[Tensor, "B K"]:
    """Choose which hidden states to decide now: the surest first, an equal share of the doubt in each step.

    States revealed in one step are drawn independently of each other, so what a step may get wrong is bounded by the
    entropy that it spends (compare Ben-Hamu et al. 2025). At least one state is chosen; all when `steps_left` is 1.
    """
    if isinstance(steps_left, Tensor):
        steps_left = steps_left[:, None]
    elif steps_left <= 1:
        return hidden
    cost = torch.where(hidden, entropy, torch.inf)
    order = torch.argsort(cost, dim=1, stable=True)
    spent = torch.where(hidden, entropy, 0.0).gather(1, order).cumsum(1)
    chosen = spent <= spent[:, -1:] / steps_left
    chosen[:, 0] = True
    return torch.zeros_like(hidden).scatter(1, order, chosen) & hidden
