"""A sparse VAE of the links of one large graph: what is joined, and which way. Memory grows with nodes and edges.

The states of a pair are those of the graph VAE, {none, ->, <-, <->}, and as there a part of the pairs is hidden and
predicted from the rest; but no pair is held that is not asked for. The affinity of two nodes is symmetric, the
direction antisymmetric: that two metabolites are joined is another question than which one is the substrate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from data_pipeline.errors import InputError
from models.configs import require
from models.losses import Term, kl_to_normal
from models.pair_states import BACKWARD, BOTH, FORWARD


@dataclass(frozen=True, kw_only=True)
class LinkVAEConfig:
    """Encoder and latents of a link VAE."""

    directed: bool = True
    width: int = 128  # of the affinity latent
    direction_dim: int = 16  # of the source latent and of the target latent
    radius: float = 1.8  # length of a node's embedding before it is averaged (Ahn and Kim 2021); 0: not bounded
    hidden_share: float = 0.5  # of the linked pairs, in a training step; 0: predict what the encoder has read
    feature_dropout: float = 0.5
    log_var: float = -6.0  # of the posterior before training

    def __post_init__(self) -> None:
        for name in ("width", "direction_dim"):
            require(getattr(self, name) >= 1, f"link.{name}", getattr(self, name), "must be at least 1")
        for name in ("hidden_share", "feature_dropout"):
            require(0.0 <= getattr(self, name) < 1.0, f"link.{name}", getattr(self, name), "must be in [0, 1)")
        require(self.radius >= 0.0, "link.radius", self.radius, "must be 0 (not bounded) or more")


class WeightedRows(NamedTuple):
    """A sparse matrix by rows: row r has `weight[k]` in column `column[k]` for offset[r] <= k < offset[r + 1]."""

    column: Int[Tensor, " K"]
    weight: Float[Tensor, " K"]
    offset: Int[Tensor, " N"]

    def times(self, table: Float[Tensor, "M D"]) -> Float[Tensor, "N D"]:
        """Return the product with a dense matrix, without a temporary of K rows."""
        return F.embedding_bag(self.column, table, self.offset, mode="sum", per_sample_weights=self.weight)


def weighted_rows(
    row: Int[Tensor, " K"], column: Int[Tensor, " K"], weight: Float[Tensor, " K"], rows: int
) -> WeightedRows:
    """Return a sparse matrix of entries in any order."""
    order = torch.argsort(row, stable=True)
    sizes = torch.bincount(row, minlength=rows)
    return WeightedRows(column[order], weight[order], sizes.cumsum(0) - sizes)


@dataclass(frozen=True, kw_only=True)
class LinkGraph:
    """One graph: its links and what is known of its nodes.

    Raises:
        InputError: A link joins a node to itself or to one that does not exist.
    """

    edges: Int[Tensor, "2 E"]  # source, target; a link of an undirected graph is listed once
    features: WeightedRows  # a row a node

    def __post_init__(self) -> None:
        if self.edges.numel() and not 0 <= int(self.edges.min()) <= int(self.edges.max()) < self.nodes:
            lowest, highest = int(self.edges.min()), int(self.edges.max())
            wrong = lowest if lowest < 0 else highest
            raise InputError(f"edges: no node {wrong} among {self.nodes}; give a row of features to each node")
        if bool((self.edges[0] == self.edges[1]).any()):
            raise InputError("edges: a node is joined to itself; leave such links out")

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return len(self.features.offset)


class LinkLatents(NamedTuple):
    """Posterior of the latents [affinity, source, target] of each node, and its readiness for links.

    The readiness is that to be linked at all, to be the source rather than the target, and to be linked both ways.
    """

    mean: Float[Tensor, "N D"]
    log_var: Float[Tensor, "N D"]
    readiness: Float[Tensor, "N 3"]


class LinkVAE(nn.Module):
    """Read a graph into latents by averaging over neighbours; decode any pair of nodes from theirs."""

    def __init__(self, features: int, config: LinkVAEConfig) -> None:
        super().__init__()
        self.config = config
        direction = 2 * config.direction_dim if config.directed else 0
        self.read = nn.Parameter(nn.init.xavier_uniform_(torch.empty(features, config.width)))
        self.radius = nn.Parameter(torch.tensor(config.radius or 1.0))
        self.bias = nn.Parameter(torch.zeros(2))
        self.log_var = nn.Linear(config.width, config.width + direction)
        nn.init.zeros_(self.log_var.weight)
        nn.init.constant_(self.log_var.bias, config.log_var)
        if config.directed:
            self.read_direction = nn.Parameter(nn.init.xavier_uniform_(torch.empty(features, config.width)))
            self.direction = nn.Linear(3 * (config.width + 1), direction + 3)

    def forward(self, graph: LinkGraph, read: Bool[Tensor, " E"] | None = None) -> LinkLatents:
        """Return the latents.

        Args:
            graph: With its features; part of them is dropped in training.
            read: The links that are read; all by default.
        """
        edges = graph.edges if read is None else graph.edges[:, read]
        average = symmetric_average(edges, graph.nodes)
        affinity = average.times(self._embed(graph.features, self.read))
        log_var = self.log_var(affinity).clamp(-12.0, 2.0)
        if not self.config.directed:
            return LinkLatents(affinity, log_var, affinity.new_zeros(graph.nodes, 3))
        ahead, back = mean_over(edges, graph.nodes), mean_over(edges.flip(0), graph.nodes)
        surplus = surplus_of_sources(edges, graph.nodes)[:, None]
        nodes = torch.cat([self._embed(graph.features, self.read_direction), surplus], dim=1)
        around = torch.cat([nodes, ahead.times(nodes), back.times(nodes)], dim=1)
        latent, readiness = self.direction(around).split([2 * self.config.direction_dim, 3], dim=1)
        return LinkLatents(torch.cat([affinity, latent], dim=1), log_var, readiness)

    def pair_logits(
        self, latent: Float[Tensor, "N D"], readiness: Float[Tensor, "N 3"], pairs: Int[Tensor, "2 P"]
    ) -> Float[Tensor, "P S"]:
        """Return the log-odds of the states of pairs against `none`: {none, linked}, or {none, ->, <-, <->}.

        Source:
            Source and target latents as in Ou et al. 2016 (HOPE) and Salha et al. 2019, made antisymmetric.
        """
        (a, b), width, dim = pairs, self.config.width, self.config.direction_dim
        ready_a, ready_b = readiness[a], readiness[b]
        linked = (latent[a, :width] * latent[b, :width]).sum(1) + self.bias[0] + ready_a[:, 0] + ready_b[:, 0]
        if not self.config.directed:
            return torch.stack([torch.zeros_like(linked), linked], dim=1)
        source, target = latent[:, width : width + dim], latent[:, width + dim :]
        way = (source[a] * target[b] - source[b] * target[a]).sum(1) + ready_a[:, 1] - ready_b[:, 1]
        both = self.bias[1] + ready_a[:, 2] + ready_b[:, 2]
        return torch.stack([torch.zeros_like(linked), linked + way, linked - way, linked + both], dim=1)

    def probability(self, graph: LinkGraph, latents: LinkLatents, pairs: Int[Tensor, "2 P"]) -> Float[Tensor, " P"]:
        """Return the probability that source -> target exists beside the known links, at the mean of the latents.

        Training saw as many random pairs as linked ones; here the odds of a link are those of the graph again. Where
        target -> source is known, the states without it are ruled out.
        """
        linked = linked_pairs(graph.edges, graph.nodes)[1]
        log_odds = math.log(max(len(linked), 1) / max(graph.nodes * (graph.nodes - 1) / 2, 1))
        logits = self.pair_logits(latents.mean, latents.readiness, pairs).double()
        share = torch.softmax(torch.cat([logits[:, :1], logits[:, 1:] + log_odds], dim=1), dim=1)
        if not self.config.directed:
            return share[:, 1].float()
        reverse_known = torch.isin(pairs[1] * graph.nodes + pairs[0], graph.edges[0] * graph.nodes + graph.edges[1])
        there = share[:, FORWARD] + share[:, BOTH]
        return torch.where(reverse_known, there / (there + share[:, BACKWARD]), there).float()

    def which_way(self, latents: LinkLatents, pairs: Int[Tensor, "2 P"]) -> Float[Tensor, " P"]:
        """Return the log-odds of source -> target against target -> source, given that just one of them exists."""
        logits = self.pair_logits(latents.mean, latents.readiness, pairs)
        return logits[:, FORWARD] - logits[:, BACKWARD]

    def _embed(self, features: WeightedRows, table: Tensor) -> Tensor:
        if self.training:
            features = features._replace(weight=F.dropout(features.weight, self.config.feature_dropout))
        found = features.times(table)
        return F.normalize(found, dim=1) * self.radius if self.config.radius else found


def symmetric_average(edges: Int[Tensor, "2 E"], nodes: int) -> WeightedRows:
    """Return the matrix that averages over a node and its neighbours either way, as in Kipf and Welling 2017."""
    own = torch.arange(nodes, device=edges.device)
    to, source = torch.cat([edges[0], edges[1], own]), torch.cat([edges[1], edges[0], own])
    root = torch.bincount(to, minlength=nodes).float().rsqrt()
    return weighted_rows(to, source, root[to] * root[source], nodes)


def mean_over(edges: Int[Tensor, "2 E"], nodes: int) -> WeightedRows:
    """Return the matrix that takes the mean over what a node's links lead to; 0 where none leaves it."""
    number = torch.bincount(edges[0], minlength=nodes).float()
    return weighted_rows(edges[0], edges[1], 1.0 / number[edges[0]], nodes)


def surplus_of_sources(edges: Int[Tensor, "2 E"], nodes: int) -> Float[Tensor, " N"]:
    """Return how much more often a node is the source than the target of a link, from -1 to 1."""
    out, into = torch.bincount(edges[0], minlength=nodes).float(), torch.bincount(edges[1], minlength=nodes).float()
    return (out - into) / (out + into + 1.0)


def linked_pairs(
    edges: Int[Tensor, "2 E"], nodes: int
) -> tuple[Int[Tensor, "2 P"], Int[Tensor, " P"], Int[Tensor, " E"]]:
    """Return each linked pair once (lower node first), its state, and the pair that each edge belongs to."""
    low, high = edges.amin(0), edges.amax(0)
    key, pair_of = torch.unique(low * nodes + high, return_inverse=True)
    upward = torch.zeros_like(key).index_fill(0, pair_of[edges[0] == low], FORWARD)
    downward = torch.zeros_like(key).index_fill(0, pair_of[edges[0] == high], BACKWARD)
    return torch.stack([key // nodes, key % nodes]), upward + downward, pair_of


def link_terms(model: LinkVAE, graph: LinkGraph) -> dict[str, Term]:
    """Return the loss terms of one training step: some linked pairs are hidden and told from as many random pairs.

    `link/kl` is the information in the latents of all nodes in nats. Add it with the weight 1 / nodes, as Kipf and
    Welling 2016 do (their code weights it so against a mean over pairs).
    """
    pairs, state, pair_of = linked_pairs(graph.edges, graph.nodes)
    share = model.config.hidden_share
    hidden = torch.rand(len(state), device=state.device) < share if share else torch.ones_like(state, dtype=torch.bool)
    latents = model(graph, ~hidden[pair_of] if share else None)
    asked = pairs[:, hidden]
    random = torch.randint(graph.nodes, asked.shape, device=asked.device)
    known = state[hidden] if model.config.directed else torch.ones_like(state[hidden])
    target = torch.cat([known, torch.zeros_like(known)])
    latent = latents.mean + (0.5 * latents.log_var).exp() * torch.randn_like(latents.mean)
    logits = model.pair_logits(latent, latents.readiness, torch.cat([asked, random], dim=1))
    zero = torch.zeros_like(latents.mean)
    kl_nats = kl_to_normal(latents.mean, latents.log_var, zero, zero)
    items = torch.ones_like(target, dtype=torch.float32)
    return {
        "link/pairs": Term(F.cross_entropy(logits, target, reduction="sum"), items.sum()),
        "link/kl": Term(kl_nats.sum(), torch.ones_like(kl_nats).sum()),
    }
