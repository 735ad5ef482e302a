"""Variational graph auto-encoders (Kipf & Welling 2016) that learn from many graphs: symmetric, or source and target.

Latents are per node; their decoder is told the label of the node and the condition, as a conditional auto-encoder is.
Which nodes there are is drawn first (NodeSets).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.graph_sets import Graph, GraphSet
from benchmarks.peers import dense_graphs
from benchmarks.peers.dense_graphs import Frame, GraphReader, NodeSets, Padded, kl_nats, mlp, upper

CHUNK = 128  # graphs drawn at once
KL_GROWS = 0.3  # share of the time in which the weight of the divergence grows to 1


class NodeDecoder(nn.Module):
    """Log-odds of edges from node latents: an inner product, or with `two_sided` one of a source with a target."""

    def __init__(self, frame: Frame, latents: int, width: int, two_sided: bool) -> None:
        super().__init__()
        self.two_sided = two_sided
        self.label = nn.Embedding(frame.vocabulary, width)
        self.read = mlp(latents + width + frame.condition_width, width, width)
        self.source, self.target = nn.Linear(width, width), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.tensor(-1.0))

    def states(
        self, latents: Float[Tensor, "B N Z"], labels: Int[Tensor, "B N"], condition: Float[Tensor, "B C"]
    ) -> Float[Tensor, "B N D"]:
        """Return what the decoder knows of each node."""
        given = condition[:, None].expand(-1, labels.shape[1], -1)
        return self.read(torch.cat([latents, self.label(labels), given], -1))

    def scores(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N N"]:
        """Return log-odds (source, target)."""
        source = self.source(x)
        target = self.target(x) if self.two_sided else source
        return source @ target.transpose(1, 2) / x.shape[-1] ** 0.5 + self.bias

    def forward(
        self,
        latents: Float[Tensor, "B N Z"],
        labels: Int[Tensor, "B N"],
        condition: Float[Tensor, "B C"],
        mask: Bool[Tensor, "B N"],
    ) -> Float[Tensor, "B N N"]:
        """Return log-odds of the edges among nodes."""
        return self.scores(self.states(latents, labels, condition))


class NodeLatents(nn.Module):
    """A variational auto-encoder with a latent for each node, and who draws the nodes."""

    def __init__(self, frame: Frame, data: GraphSet, decoder: nn.Module, latents: int, width: int) -> None:
        super().__init__()
        self.frame, self.latents, self.decode = frame, latents, decoder
        self.nodes = NodeSets(frame, data)
        self.reader = GraphReader(frame, width)
        self.posterior = nn.Linear(width, 2 * latents)

    def loss(self, batch: Padded, share: float) -> Float[Tensor, " B"]:
        """Return the bound in nats of each graph; early in training the divergence weighs less."""
        mean, log_var = self.posterior(self.reader(batch)).chunk(2, -1)
        log_var = log_var.clamp(-8, 4)
        latents = mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)
        logits = self.decode(latents, batch.labels, batch.condition, batch.mask)
        pairs = self.frame.possible(batch.mask, batch.labels)
        pairs = pairs if self.frame.directed else upper(pairs)
        edges = F.binary_cross_entropy_with_logits(logits, batch.adjacency.float(), reduction="none")
        kl = (kl_nats(mean, log_var) * batch.mask).sum(1)
        return self.nodes.nats(batch) + (edges * pairs).sum((1, 2)) + min(share / KL_GROWS, 1.0) * kl

    def draw(
        self, condition: Float[Tensor, "n C"]
    ) -> tuple[Bool[Tensor, "n N"], Int[Tensor, "n N"], Bool[Tensor, "n N N"]]:
        """Return mask, labels and adjacency of new graphs."""
        mask, labels = self.nodes.draw(condition)
        latents = torch.randn(*mask.shape, self.latents, device=mask.device)
        logits = self.decode(latents, labels, condition, mask)
        drawn = torch.rand_like(logits) < torch.sigmoid(logits)
        if not self.decode.two_sided:
            drawn = upper(drawn) | upper(drawn).transpose(1, 2)
        return mask, labels, drawn & self.frame.possible(mask, labels)


class LatentGenerator:
    """A generator with node latents, which `decoder(frame, latents, width, two_sided)` joins.

    One that is not `directed` cannot tell the direction of an edge: on directed sets it learns from the symmetrised
    graphs, as its users do, and every edge is drawn in both directions (less those that the mask forbids). It has no
    likelihood there.
    """

    def __init__(
        self,
        device: torch.device,
        use_mask: bool = True,
        latents: int = 16,
        width: int = 64,
        *,
        decoder: Callable[[Frame, int, int, bool], nn.Module],
        directed: bool = False,
    ) -> None:
        self.device, self.use_mask, self.latents, self.width = device, use_mask, latents, width
        self.decoder, self.directed = decoder, directed

    def fit(self, data: GraphSet, seconds: float, seed: int) -> None:
        """Learn by maximising the evidence lower bound."""
        until = dense_graphs.now() + seconds
        torch.manual_seed(seed)
        self.two_sided = self.directed and data.directed
        self.frame = Frame(data, self.device, self.use_mask)
        decoder = self.decoder(self.frame, self.latents, self.width, self.two_sided)
        self.net = NodeLatents(self.frame, data, decoder, self.latents, self.width).to(self.device)
        parts = (self._pad(data.train), self._pad(data.held_out or data.train))
        self.steps = dense_graphs.train(self.net, self.net.loss, parts, until, seed)

    def sample(self, conditions: Float[np.ndarray, "n V"], seed: int) -> list[Graph]:
        """Draw latents from the prior and edges from their probabilities."""
        return dense_graphs.drawn(self.frame, self.net.draw, conditions, seed, CHUNK)

    def bound_nats(self, graphs: Sequence[Graph]) -> float:
        """Return the evidence bound of graphs with nodes in the order given; NaN for directed graphs if symmetric."""
        if self.frame.directed and not self.two_sided:
            return float("nan")
        return dense_graphs.mean_nats(self.frame, lambda b: self.net.loss(b, 1.0), self._pad(graphs), CHUNK)

    def _pad(self, graphs: Sequence[Graph]) -> Padded:
        batch = self.frame.pad(graphs)
        if self.two_sided:
            return batch
        return batch._replace(adjacency=batch.adjacency | batch.adjacency.transpose(1, 2))


# Symmetric, with an inner product as decoder.
VGAE = partial(LatentGenerator, decoder=NodeDecoder)
# A source and a target vector a node (Ou et al. 2016, Salha et al. 2019); on undirected sets one, and it is VGAE.
DirectedVGAE = partial(LatentGenerator, decoder=NodeDecoder, directed=True)
