"""Transformer layers over graph nodes: attention biased by what joins each pair, conditioned through FiLM."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


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
        condition_dim: int,
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
        self.film = FiLM(condition_dim, width, 2 * layers)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers + 1))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.merge = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(layers)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        nodes: Float[Tensor, "B N D"],
        mask: Bool[Tensor, "B N"],
        pair_state: Int[Tensor, "B N N"],
        condition: Float[Tensor, "B E"],
    ) -> Float[Tensor, "B N D"]:
        """Return the node states; padding neither reads nor is read."""
        size, count, width = nodes.shape
        bias = self.pair_bias(pair_state).permute(3, 0, 1, 2).reshape(self.layers, self.heads, size, count, count)
        bias = bias + torch.where(mask, 0.0, -1e4).to(nodes.dtype)[None, None, :, None, :]
        sites = self.film(condition)
        for layer in range(self.layers):
            x = film(self.norms[2 * layer](nodes), sites[2 * layer])
            q, k, v = self.qkv[layer](x).view(size, count, 3, self.heads, -1).permute(2, 3, 0, 1, 4)
            weight = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias[layer], dim=-1)
            read = (weight @ v).permute(1, 2, 0, 3).reshape(size, count, width)
            nodes = nodes + self.dropout(self.merge[layer](read))
            x = film(self.norms[2 * layer + 1](nodes), sites[2 * layer + 1])
            nodes = nodes + self.dropout(self.feed[layer](x))
        return self.norms[-1](nodes) * mask[..., None].to(nodes.dtype)
