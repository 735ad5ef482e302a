"""Decode metabolic networks as sets: which of the edges that chemistry knows are there, filled in step by step.

An absorbing-mask denoiser (Austin et al. 2021; Sahoo et al. 2024): training hides a random share of the edges, sampling
starts with all hidden and reveals them in T steps, the surest first; T = 1 is the one-shot decoder.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from models import noise
from models.graph_layers import FiLM, film

ABSENT, PRESENT, HIDDEN = 0, 1, 2
LEAST_SHARE = 0.05  # that training hides


class EdgeSetDecoder(nn.Module):
    """Log-odds of every known edge, given the ones already decided and a condition."""

    def __init__(self, edges: int, width: int, layers: int, condition_dim: int) -> None:
        super().__init__()
        self.read = nn.Linear(2 * edges + 1, width)
        self.film = FiLM(condition_dim, width, layers)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers + 1))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width + condition_dim, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(layers)
        )
        self.write = nn.Linear(width, edges)
        nn.init.constant_(self.write.bias, -2.0)

    def forward(self, state: Int[Tensor, "B R E"], condition: Float[Tensor, "B D"]) -> Float[Tensor, "B R E"]:
        """Return the log-odds of presence; `state` holds ABSENT, PRESENT or HIDDEN in R draws a sample."""
        share = (state == HIDDEN).to(condition.dtype).mean(-1, keepdim=True)
        known = torch.cat([(state == PRESENT).to(condition.dtype), (state == ABSENT).to(condition.dtype)], dim=-1)
        x = self.read(torch.cat([known, share], dim=-1))
        given = condition[:, None].expand(-1, x.shape[1], -1)
        for block, norm, site in zip(self.blocks, self.norms, self.film(condition), strict=False):
            x = x + block(torch.cat([film(norm(x), site), given], dim=-1))
        return self.write(self.norms[-1](x))


def hidden_share(seed: Int[Tensor, " B"], stream: int, place: Int[Tensor, "#B *places"]) -> Float[Tensor, "#B *places"]:
    """Return the share to hide in training, uniform in (0.05, 1)."""
    return LEAST_SHARE + (1.0 - LEAST_SHARE) * noise.uniform(seed, stream, place)


def sample(
    decoder: EdgeSetDecoder, condition: Float[Tensor, "B D"], seed: Int[Tensor, " B"], steps: int, temperature: float
) -> Bool[Tensor, "B E"]:
    """Draw a set of edges for each condition."""
    edges = decoder.write.out_features
    state = torch.full((len(seed), edges), HIDDEN, device=seed.device)
    place = torch.arange(edges, device=seed.device)[None]
    for step in range(steps):
        logits = decoder(state[:, None], condition)[:, 0].float() / temperature
        probability = torch.sigmoid(logits)
        chosen = reveal(_entropy(logits), state == HIDDEN, steps - step)
        value = (noise.uniform(seed, 100 + step, place) < probability).long()
        state = torch.where(chosen, value, state)
    return state == PRESENT


def reveal(entropy: Float[Tensor, "B K"], hidden: Bool[Tensor, "B K"], steps_left: int) -> Bool[Tensor, "B K"]:
    """Choose which hidden states to decide now: the surest first, an equal share of the doubt in each step.

    States revealed in one step are drawn independently of each other, so what a step may get wrong is bounded by the
    entropy that it spends (compare Ben-Hamu et al. 2025). At least one state is chosen; all when `steps_left` is 1:
    one-shot decoding.
    """
    if steps_left <= 1:
        return hidden
    cost = torch.where(hidden, entropy, torch.inf)
    order = torch.argsort(cost, dim=1, stable=True)
    spent = torch.where(hidden, entropy, 0.0).gather(1, order).cumsum(1)
    chosen = spent <= spent[:, -1:] / steps_left
    chosen[:, 0] = True
    return torch.zeros_like(hidden).scatter(1, order, chosen) & hidden


def _entropy(logits: Tensor) -> Tensor:
    """Return the entropy of a Bernoulli variable with these log-odds, in nats."""
    softplus = torch.nn.functional.softplus
    p = torch.sigmoid(logits)
    return p * softplus(-logits) + (1.0 - p) * softplus(logits)
