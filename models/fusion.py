"""Fuse the modalities of a planet by cross-attention with uncertainty gates, and judge whether it is habitable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from models.configs import FusionConfig


class ModalityTokens(NamedTuple):
    """What the fusion reads of Q modalities: T tokens each, and how unsure each one is."""

    tokens: Float[Tensor, "B Q T D"]
    log_var: Float[Tensor, "B Q"]


class FusionOutput(NamedTuple):
    """The planet as the visible modalities show it."""

    latent: Float[Tensor, "B D"]
    habitability_logit: Float[Tensor, " B"]
    gates: Float[Tensor, "B Q"]  # share of the precision that each visible modality holds


class Tokeniser(nn.Module):
    """Project the latent of each modality to tokens of the fusion; say how unsure each one is."""

    def __init__(self, latent_dims: Mapping[str, int], config: FusionConfig) -> None:
        super().__init__()
        self.shape = (config.tokens_per_modality, config.width)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in latent_dims.values())
        size = config.tokens_per_modality * config.width
        self.project = nn.ModuleList(nn.Linear(dim, size) for dim in latent_dims.values())
        self.log_var = nn.ModuleList(_zero(nn.Linear(dim, 1)) for dim in latent_dims.values())
        self.embedding = nn.Parameter(0.02 * torch.randn(len(latent_dims), *self.shape))

    def forward(self, *latents: Tensor) -> ModalityTokens:
        """Return the tokens of latents (B D each) given in the order in which the modalities were named."""
        tokens, log_var = [], []
        for given, norm, project, unsure in zip(latents, self.norms, self.project, self.log_var, strict=True):
            latent = norm(given.to(self.embedding.dtype))
            tokens.append(project(latent).unflatten(1, self.shape))
            log_var.append(unsure(latent))
        # tanh keeps a gate from closing for good: precisions differ by at most e^6.
        bounded = 3.0 * torch.tanh(torch.cat(log_var, dim=1) / 3.0)
        return ModalityTokens(torch.stack(tokens, dim=1) + self.embedding, bounded)


def _zero(linear: nn.Linear) -> nn.Linear:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class NumberEncoder(nn.Module):
    """Encode a vector of standardised numbers (planet parameters, environment)."""

    def __init__(self, size: int, latent_dim: int) -> None:
        super().__init__()
        self.read = nn.Linear(size, 2 * latent_dim)
        self.mix = nn.Linear(2 * latent_dim, latent_dim)
        self.to_latent = nn.Linear(latent_dim, latent_dim)

    def forward(self, standardised: Float[Tensor, "B V"]) -> Float[Tensor, "B D"]:
        """Return the latent."""
        x = F.silu(self.read(standardised.to(self.read.weight.dtype)))
        return self.to_latent(F.silu(self.mix(x)))


class Fusion(nn.Module):
    """Learnt queries read the visible tokens; a head turns what they gather into the logit of habitable.

    A prior token is always visible, so that a planet of which nothing is known gets the base rate.
    """

    def __init__(self, modalities: int, config: FusionConfig) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(config.queries, config.width))
        self.prior = nn.Parameter(0.02 * torch.randn(1, config.width))
        self.layers = nn.ModuleList(CrossAttentionLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.to_latent = nn.Linear(config.queries * config.width, config.width)
        self.head = nn.Sequential(nn.Linear(config.width, config.width), nn.SiLU(), nn.Linear(config.width, 1))
        self.modalities = modalities

    def forward(
        self, tokens: Float[Tensor, "B Q T D"], log_var: Float[Tensor, "B Q"], visible: Bool[Tensor, "B Q"]
    ) -> FusionOutput:
        """Fuse; what is not visible has no influence whatever its tokens hold."""
        size, _, per_modality, _ = tokens.shape
        seen = visible[:, :, None, None]
        keys = torch.cat([torch.where(seen, tokens, 0.0).flatten(1, 2), self.prior.expand(size, 1, -1)], dim=1)
        # Attention multiplied by the precision exp(-log_var) is the attention logit minus log_var.
        log_precision = torch.where(visible, -log_var.float(), float("-inf"))
        bias = F.pad(log_precision.repeat_interleave(per_modality, dim=1), (0, 1))
        x = self.queries.expand(size, -1, -1)
        for layer in self.layers:
            x = layer(x, keys, bias.to(x.dtype))
        latent = self.to_latent(self.norm(x).flatten(1))
        gates = torch.softmax(torch.where(visible, -log_var.float(), -1e4), dim=1) * visible
        return FusionOutput(latent, self.head(F.silu(latent)).squeeze(1).float(), gates)


class CrossAttentionLayer(nn.Module):
    """Queries attend to keys and to each other, then pass through a feed-forward network."""

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.norm = nn.LayerNorm(config.width)
        self.norm_keys = nn.LayerNorm(config.width)
        self.to_query = nn.Linear(config.width, config.width)
        self.to_key_value = nn.Linear(config.width, 2 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(config.width), nn.Linear(config.width, 2 * config.width), nn.SiLU(),
            nn.Linear(2 * config.width, config.width), nn.Dropout(config.dropout),
        )  # fmt: skip

    def forward(
        self, x: Float[Tensor, "B R D"], keys: Float[Tensor, "B M D"], bias: Float[Tensor, "B M"]
    ) -> Float[Tensor, "B R D"]:
        """Add `bias` to the attention logits of the keys; the queries see each other without one."""
        y = self.norm(x)
        read = torch.cat([self.norm_keys(keys), y], dim=1)
        bias = torch.cat([bias, bias.new_zeros(y.shape[:2])], dim=1)
        q, k, v = (self._split(t) for t in (self.to_query(y), *self.to_key_value(read).chunk(2, dim=-1)))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, None, None, :], dropout_p=dropout)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.feed_forward(x)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
