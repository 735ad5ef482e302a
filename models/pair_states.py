"""The joint state of an unordered pair of nodes, so that direction and reciprocity are decided together."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

NONE, FORWARD, BACKWARD, BOTH, HIDDEN_PAIR = range(5)  # state of (i, j) seen from i: FORWARD is i -> j
PAIR_STATES = 5


def pair_state(adjacency: Bool[Tensor, "B N N"]) -> Int[Tensor, "B N N"]:
    """Return NONE, FORWARD, BACKWARD or BOTH of each pair, seen from the first node."""
    return adjacency.long() + 2 * adjacency.transpose(1, 2).long()


def flipped(state: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Return the states seen from the other node."""
    return torch.where(state == FORWARD, BACKWARD, torch.where(state == BACKWARD, FORWARD, state))
