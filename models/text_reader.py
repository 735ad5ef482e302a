"""Read the latent of a description out of the language model's hidden states."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

QUERIES, QUERY_WIDTH = 8, 64


class TextReader(nn.Module):
    """Learnt queries attend to the tokens of a description, so that a number counts wherever it stands.

    A causal model need not carry the numbers of a text to its last token, and SmolLM2 does not: of 400 frozen
    descriptions the last state tells habitable planets apart with an AUROC of .60 at best, these queries with .80.
    """

    def __init__(self, width: int, latent_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.key = nn.Linear(width, QUERY_WIDTH, bias=False)  # a bias would shift all weights of a query alike
        self.value = nn.Linear(width, QUERY_WIDTH)
        self.queries = nn.Parameter(torch.randn(QUERIES, QUERY_WIDTH) / QUERY_WIDTH**0.5)
        self.norm_read = nn.LayerNorm(QUERIES * QUERY_WIDTH)
        self.to_latent = nn.Linear(QUERIES * QUERY_WIDTH, latent_dim)

    def forward(self, states: Float[Tensor, "R L h"], real: Bool[Tensor, "R L"]) -> Float[Tensor, "R D"]:
        """Return the latent; rows without a real token give numbers that mean nothing."""
        normed = self.norm(states.to(self.queries.dtype))
        keys, values = self.key(normed), self.value(normed)
        weight = (self.queries @ keys.transpose(1, 2)).masked_fill(~real[:, None], -1e4).softmax(-1)
        return self.to_latent(F.silu(self.norm_read((weight @ values).flatten(1))))
