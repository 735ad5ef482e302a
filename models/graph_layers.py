"""Transformer layers over graph nodes, whose attention is biased by what joins each pair; FiLM."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

BLOCK = 2**15  # pairs of a graph whose attention is held at once: all of them up to 181 nodes


class FiLM(nn.Module):
    """Scale and shift features by a condition, `sites` times with different numbers; the identity at the start."""

    def __init__(self, condition_dim: int, width: int, sites: int) -> None:
        super().__init__()
        self.sites = sites
        self.project = nn.Linear(condition_dim, sites * 2 * width)
        nn.init.normal_(self.project.weight, std=0.02)
        nn.init.zeros_(self.project.bias)

    def forward(self, condition: Float[Tensor, "B D"]) -> list[tuple[Tensor, Tensor]]:
        """Return `sites` pairs (scale, shift), each B x width."""
        return [tuple(site.chunk(2, dim=-1)) for site in self.project(condition).chunk(self.sites, dim=-1)]


def film(x: Tensor, site: tuple[Tensor, Tensor]) -> Tensor:
    """Apply one (scale, shift) of B x width to B x ... x width."""
    scale, shift = (s.view(s.shape[0], *[1] * (x.dim() - 2), s.shape[-1]) for s in site)
    return x * (1.0 + scale) + shift


class GraphTransformer(nn.Module):
    """Pre-norm transformer over nodes. Each head of each layer adds its own number for the state of a pair (i, j).

    States are directed, so a head can follow edges from source to target, from target to source, or both: half of the
    heads start leaning towards `successor` states and half towards `predecessor` states.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        successor: Bool[Tensor, " R"],
        predecessor: Bool[Tensor, " R"],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.heads, self.layers = heads, layers
        self.pair_bias = nn.Embedding(len(successor), layers * heads)
        nn.init.normal_(self.pair_bias.weight, std=0.02)
        with torch.no_grad():
            for h in range(layers * heads):
                self.pair_bias.weight[:, h] += 2.0 * (successor if h % 2 == 0 else predecessor).float()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers + 1))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.merge = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(layers)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, nodes: Float[Tensor, "B N D"], mask: Bool[Tensor, "B N"], pair_state: Int[Tensor, "B N N"]
    ) -> Float[Tensor, "B N D"]:
        """Return the node states; padding neither reads nor is read."""
        size, count, width = nodes.shape
        absent = torch.where(mask, 0.0, -1e4).to(nodes.dtype)
        block = max(BLOCK // count, 1)
        bias = self._bias(pair_state, absent) if block >= count else None
        for layer in range(self.layers):
            x = self.qkv[layer](self.norms[2 * layer](nodes))
            q, k, v = x.view(size, count, 3, self.heads, -1).permute(2, 3, 0, 1, 4)
            if bias is not None:
                read = _attention(q, k, v, bias[layer])
            else:
                parts = (slice(first, first + block) for first in range(0, count, block))
                read = torch.cat([self._some(layer, q[:, :, p], k, v, pair_state[:, p], absent) for p in parts], dim=2)
            read = read.permute(1, 2, 0, 3).reshape(size, count, width)
            nodes = nodes + self.dropout(self.merge[layer](read))
            nodes = nodes + self.dropout(self.feed[layer](self.norms[2 * layer + 1](nodes)))
        return self.norms[-1](nodes) * mask[..., None].to(nodes.dtype)

    def _bias(self, pair_state: Int[Tensor, "B R N"], absent: Float[Tensor, "B N"]) -> Float[Tensor, "L H B R N"]:
        size, rows, count = pair_state.shape
        bias = self.pair_bias(pair_state).permute(3, 0, 1, 2).reshape(self.layers, self.heads, size, rows, count)
        return bias + absent[None, None, :, None, :]

    def _some(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, pair_state: Int[Tensor, "B R N"], absent: Tensor
    ) -> Float[Tensor, "H B R d"]:
        """Return the attention of some nodes of a large graph; computed once more in the backward pass."""

        def attention(query: Tensor, state: Tensor) -> Tensor:
            return _attention(query, k, v, self._bias(state, absent)[layer])

        if not torch.is_grad_enabled():
            return attention(q, pair_state)
        found: Tensor = checkpoint(attention, q, pair_state, use_reentrant=False)
        return found


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Float[Tensor, "H B R d"]:
    return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias, dim=-1) @ v
