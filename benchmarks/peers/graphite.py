"""Graphite (Grover, Zweig & Ermon 2019): node latents whose decoder refines the graph it believes in, step by step."""

from __future__ import annotations

from functools import partial

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from benchmarks.peers.dense_graphs import Convolutions, Frame, mean_over
from benchmarks.peers.vgae import LatentGenerator, NodeDecoder

ROUNDS = 2  # of refinement
MIXED = 0.5  # share of the first latents in those that are decoded


class Refined(nn.Module):
    """Inner products of states that were passed along the soft graph which the states themselves describe."""

    def __init__(self, frame: Frame, latents: int, width: int, two_sided: bool) -> None:
        super().__init__()
        self.two_sided = two_sided
        self.first = NodeDecoder(frame, latents, width, two_sided)
        self.rounds = nn.ModuleList(Convolutions(width, width, 1, 2) for _ in range(ROUNDS))

    def forward(
        self,
        latents: Float[Tensor, "B N Z"],
        labels: Int[Tensor, "B N"],
        condition: Float[Tensor, "B C"],
        mask: Bool[Tensor, "B N"],
    ) -> Float[Tensor, "B N N"]:
        """Return log-odds of the edges among nodes."""
        first = x = self.first.states(latents, labels, condition)
        there = mask[:, :, None] & mask[:, None, :]
        for refine in self.rounds:
            unit = nn.functional.normalize(x, dim=-1)
            believed = (unit @ unit.transpose(1, 2) + 1.0) * there  # the paper's Z Z^T / |Z|^2 + 1 1^T: never negative
            x = MIXED * first + (1 - MIXED) * refine(x, [mean_over(believed)])
        return self.first.scores(x)


# Symmetric like VGAE, also in its intermediate graphs.
Graphite = partial(LatentGenerator, decoder=Refined)
