"""Decode metabolic networks by filling in masked states step by step: first the metabolites, then the edges.

Both stages are absorbing-mask denoisers (Austin et al. 2021; Sahoo et al. 2024): training hides a random share of the
states, sampling starts with all hidden and reveals them in T steps, the surest first; T = 1 is the one-shot decoder. A
pair of metabolites has one joint state of {none, ->, <-, <->}, so that direction and reciprocity are decided together.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from data_pipeline.variables import EDGE_TYPES, MAX_METABOLITES
from models import noise
from models.graph_layers import FiLM, GraphTransformer, film

ABSENT, PRESENT, HIDDEN_NODE = 0, 1, 2
NONE, FORWARD, BACKWARD, BOTH, HIDDEN_PAIR = range(5)  # state of (i, j) seen from i: FORWARD is i -> j
PAIR_STATES = 5
TYPES = len(EDGE_TYPES)
POSITIVE_WEIGHT = 3.0  # an existing edge weighs this much in the loss; the logits stay those of unweighted data
PAIR_WIDTH = 24  # hidden numbers a pair
PAIR_HEAD_DIM = 16
MAX_PAIR_ROWS = 65_536  # above this many known pairs (other people's graphs) a pair has no vector of its own
PLACE_STRIDE = 1 << 20  # noise of pair (i, j) does not depend on padding


class PairScores(NamedTuple):
    """What the decoder says about each ordered pair of nodes, as log-odds against "no edge"."""

    directed: Float[Tensor, "B N N"]  # i -> j
    reciprocity: Float[Tensor, "B N N"]  # what both directions together add; symmetric
    log_variance: Float[Tensor, "B N N"]  # of the log-odds: the uncertainty head; symmetric
    edge_type: Float[Tensor, "B N N T"]  # logits of EDGE_TYPES[1:]


class NodeDecoder(nn.Module):
    """Logits of presence of every metabolite of the vocabulary, given the ones already decided and a condition."""

    def __init__(self, metabolites: int, width: int, layers: int, condition_dim: int) -> None:
        super().__init__()
        self.read = nn.Linear(2 * metabolites + 1, width)
        self.film = FiLM(condition_dim, width, layers)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers + 1))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width + condition_dim, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(layers)
        )
        self.write = nn.Linear(width, metabolites)
        nn.init.constant_(self.write.bias, -2.0)

    def forward(self, state: Int[Tensor, "B R M"], condition: Float[Tensor, "B D"]) -> Float[Tensor, "B R M"]:
        """Return the log-odds of presence; `state` holds ABSENT, PRESENT or HIDDEN_NODE in R draws a sample."""
        hidden_share = (state == HIDDEN_NODE).to(condition.dtype).mean(-1, keepdim=True)
        known = torch.cat([(state == PRESENT).to(condition.dtype), (state == ABSENT).to(condition.dtype)], dim=-1)
        x = self.read(torch.cat([known, hidden_share], dim=-1))
        given = condition[:, None].expand(-1, x.shape[1], -1)
        for block, norm, site in zip(self.blocks, self.norms, self.film(condition), strict=False):
            x = x + block(torch.cat([film(norm(x), site), given], dim=-1))
        return self.write(self.norms[-1](x))


class EdgeDecoder(nn.Module):
    """Scores of every pair of the present nodes, given the pairs already decided, node inputs and a condition."""

    def __init__(
        self, width: int, heads: int, layers: int, condition_dim: int, pair_rows: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        table = torch.arange(PAIR_STATES * TYPES * TYPES)
        state = table // (TYPES * TYPES)
        hidden, forward, backward = state == HIDDEN_PAIR, table // TYPES % TYPES > 0, table % TYPES > 0
        self.transformer = GraphTransformer(
            width,
            heads,
            layers,
            condition_dim,
            successor=(state == FORWARD) | (state == BOTH) | (hidden & forward),
            predecessor=(state == BACKWARD) | (state == BOTH) | (hidden & backward),
            dropout=dropout,
        )
        self.degrees = nn.Linear(5, width)
        self.source_target = nn.Linear(width, 2 * PAIR_WIDTH * PAIR_HEAD_DIM)
        self.own = nn.Embedding(pair_rows, PAIR_WIDTH)  # a vector for each pair that the reaction DB knows; row 0: none
        self.seen = nn.Embedding(PAIR_STATES * TYPES * TYPES, PAIR_WIDTH)
        self.film = FiLM(condition_dim, PAIR_WIDTH, 1)
        self.hidden = nn.Linear(2 * PAIR_WIDTH, PAIR_WIDTH)
        self.write = nn.Linear(PAIR_WIDTH, 3 + TYPES - 1)
        nn.init.normal_(self.own.weight, std=0.3)
        nn.init.normal_(self.seen.weight, std=0.3)
        with torch.no_grad():
            self.write.bias.zero_()
            self.write.bias[0] = -2.0
            self.write.bias[2] = -2.0

    def forward(
        self,
        nodes: Float[Tensor, "B N D"],
        mask: Bool[Tensor, "B N"],
        state: Int[Tensor, "B N N"],
        known_type: Int[Tensor, "B N N"],
        pair_row: Int[Tensor, "B N N"],
        condition: Float[Tensor, "B E"],
    ) -> PairScores:
        """Return the scores.

        Args:
            nodes: What each node is (metabolite, local latent, supplied or not).
            state: NONE, FORWARD, BACKWARD, BOTH or HIDDEN_PAIR, seen from the first node.
            known_type: Edge type of the reaction DB, 0 where no reaction joins the pair.
            pair_row: Row of the pair's own vector, 0 for none.
        """
        table = (state * TYPES + known_type) * TYPES + known_type.transpose(1, 2)
        nodes = nodes + self.degrees(_degrees(state, mask).to(nodes.dtype))
        nodes = self.transformer(nodes, mask, table, condition)
        size, count, _ = nodes.shape
        source, target = self.source_target(nodes).view(size, count, 2, PAIR_WIDTH, PAIR_HEAD_DIM).unbind(2)
        match = torch.einsum("bihd,bjhd->bijh", source, target) / math.sqrt(PAIR_HEAD_DIM)
        own = film(self.own(pair_row), self.film(condition)[0])
        pair = torch.nn.functional.gelu(match + own + self.seen(table))
        pair = torch.nn.functional.gelu(self.hidden(torch.cat([pair, own], dim=-1)))
        out = self.write(pair).float()
        return PairScores(
            directed=out[..., 0],
            reciprocity=_symmetric(out[..., 1]),
            log_variance=_symmetric(out[..., 2]).clamp(-6.0, 3.0),
            edge_type=out[..., 3:],
        )


def _symmetric(x: Tensor) -> Tensor:
    return (x + x.transpose(1, 2)) / 2


def _degrees(state: Tensor, mask: Tensor) -> Tensor:
    """Return log(1 + n) of decided edges in, edges out and undecided pairs, whether any in and out: B N 5."""
    real = mask[:, :, None] & mask[:, None, :]
    out = (((state == FORWARD) | (state == BOTH)) & real).sum(2)
    into = (((state == BACKWARD) | (state == BOTH)) & real).sum(2)
    hidden = ((state == HIDDEN_PAIR) & real).sum(2)
    return torch.cat(
        [torch.stack([out, into, hidden], -1).float().log1p(), torch.stack([out > 0, into > 0], -1).float()], -1
    )


def pair_logits(scores: PairScores) -> Float[Tensor, "B N N 4"]:
    """Return logits of {NONE, FORWARD, BACKWARD, BOTH}, seen from the first node.

    The log-odds are divided by sqrt(1 + pi / 8 variance): the logistic function averaged over a normal (MacKay 1992).
    """
    shrink = torch.rsqrt(1.0 + math.pi / 8.0 * scores.log_variance.exp())
    forward, backward = scores.directed, scores.directed.transpose(1, 2)
    both = forward + backward + scores.reciprocity
    return torch.stack([torch.zeros_like(forward), forward * shrink, backward * shrink, both * shrink], dim=-1)


def edge_probability(logits: Float[Tensor, "B N N 4"]) -> Float[Tensor, "B N N"]:
    """Return the probability of i -> j."""
    probability = torch.softmax(logits, dim=-1)
    return probability[..., FORWARD] + probability[..., BOTH]


def edge_standard_deviation(scores: PairScores, probability: Float[Tensor, "B N N"]) -> Float[Tensor, "B N N"]:
    """Return the standard deviation of the probability of i -> j, from that of its log-odds (delta method)."""
    return probability * (1.0 - probability) * (0.5 * scores.log_variance).exp()


def pair_state(adjacency: Bool[Tensor, "B N N"]) -> Int[Tensor, "B N N"]:
    """Return NONE, FORWARD, BACKWARD or BOTH of each pair, seen from the first node."""
    return adjacency.long() + 2 * adjacency.transpose(1, 2).long()


def flipped(state: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Return the states seen from the other node."""
    return torch.where(state == FORWARD, BACKWARD, torch.where(state == BACKWARD, FORWARD, state))


def upper_triangle(mask: Bool[Tensor, "B N"]) -> Bool[Tensor, "B N N"]:
    """Return the pairs i < j of real nodes: each unordered pair once."""
    return (mask[:, :, None] & mask[:, None, :]).triu(1)


def pair_places(nodes: int, device: torch.device) -> Int[Tensor, "1 N N"]:
    """Return a number for each unordered pair that does not depend on the padding."""
    i = torch.arange(nodes, device=device)
    low, high = torch.minimum(i[:, None], i[None, :]), torch.maximum(i[:, None], i[None, :])
    return (low * PLACE_STRIDE + high)[None]


def hidden_share(
    seed: Int[Tensor, " B"], stream: int, place: Int[Tensor, "#B *places"], all_hidden: float
) -> Float[Tensor, "#B *places"]:
    """Return the share to hide in training: everything for `all_hidden` of the samples, else uniform in (0.05, 1)."""
    u = noise.uniform(seed, stream, place)
    return torch.where(u < all_hidden, 1.0, 0.05 + 0.95 * (u - all_hidden) / (1.0 - all_hidden))


def reveal(entropy: Float[Tensor, "B K"], hidden: Bool[Tensor, "B K"], steps_left: int) -> Bool[Tensor, "B K"]:
    """Choose which hidden states to decide now: the surest first, an equal share of the doubt in each step.

    States revealed in one step are drawn independently of each other, so what a step may get wrong is bounded by the
    entropy that it spends (compare Ben-Hamu et al. 2025). At least one state is chosen; all when `steps_left` is 1.
    """
    if steps_left <= 1:
        return hidden
    cost = torch.where(hidden, entropy, torch.inf)
    order = torch.argsort(cost, dim=1, stable=True)
    spent = torch.where(hidden, entropy, 0.0).gather(1, order).cumsum(1)
    chosen = spent <= spent[:, -1:] / steps_left
    chosen[:, 0] = True
    return torch.zeros_like(hidden).scatter(1, order, chosen) & hidden


def sample_nodes(
    decoder: NodeDecoder, condition: Float[Tensor, "B D"], seed: Int[Tensor, " B"], steps: int, temperature: float
) -> tuple[Bool[Tensor, "B M"], Float[Tensor, "B M"]]:
    """Return the metabolites of each network and the log-odds at which each was decided.

    At most MAX_METABOLITES are kept, the most likely ones.
    """
    metabolites = decoder.write.out_features
    state = torch.full((len(seed), metabolites), HIDDEN_NODE, device=seed.device)
    decided = torch.zeros(len(seed), metabolites, device=seed.device)
    place = torch.arange(metabolites, device=seed.device)[None]
    for step in range(steps):
        logits = decoder(state[:, None], condition)[:, 0].float() / max(temperature, 1e-4)
        probability = torch.sigmoid(logits)
        hidden = state == HIDDEN_NODE
        chosen = reveal(_bernoulli_entropy(logits), hidden, steps - step)
        value = (noise.uniform(seed, 100 + step, place) < probability).long()
        state = torch.where(chosen, value, state)
        decided = torch.where(chosen, logits, decided)
    present = state == PRESENT
    rank = torch.argsort(torch.argsort(torch.where(present, decided, -torch.inf), dim=1, descending=True), dim=1)
    return present & (rank < MAX_METABOLITES), decided


def sample_edges(
    decoder: EdgeDecoder,
    nodes: Float[Tensor, "B N D"],
    mask: Bool[Tensor, "B N"],
    known_type: Int[Tensor, "B N N"],
    pair_row: Int[Tensor, "B N N"],
    condition: Float[Tensor, "B E"],
    seed: Int[Tensor, " B"],
    steps: int,
    temperature: float,
    use_mask: bool,
) -> tuple[Bool[Tensor, "B N N"], PairScores, Float[Tensor, "B N N"]]:
    """Return the adjacency, the scores and the edge probabilities with which each pair was decided.

    With `use_mask`, pairs that no known reaction joins are never drawn.
    """
    size, count = mask.shape
    upper = upper_triangle(mask)
    state = torch.where(upper | upper.transpose(1, 2), HIDDEN_PAIR, NONE)
    allowed = known_type > 0
    forbidden = torch.stack(
        [torch.zeros_like(allowed), ~allowed, ~allowed.transpose(1, 2), ~(allowed & allowed.transpose(1, 2))], -1
    )
    place = pair_places(count, mask.device)
    kept: PairScores | None = None
    probability_kept = torch.zeros(size, count, count, device=mask.device)
    for step in range(steps):
        scores = decoder(nodes, mask, state, known_type, pair_row, condition)
        logits = pair_logits(scores) / max(temperature, 1e-4)
        if use_mask:
            logits = logits.masked_fill(forbidden, -torch.inf)
        log_probability = torch.log_softmax(logits, dim=-1)
        probability = log_probability.exp()
        entropy = -(probability * log_probability.clamp(min=-1e4)).sum(-1)
        hidden = (state == HIDDEN_PAIR) & upper
        chosen = reveal(entropy.flatten(1), hidden.flatten(1), steps - step).view_as(hidden)
        u = noise.uniform(seed, 200 + step, place)
        value = (u[..., None] > probability.cumsum(-1)[..., :3]).sum(-1)
        state = torch.where(chosen, value, state)
        state = torch.where(chosen.transpose(1, 2), flipped(value.transpose(1, 2)), state)
        both = chosen | chosen.transpose(1, 2)
        kept = (
            scores
            if kept is None
            else PairScores(*(_keep(both, new, old) for new, old in zip(scores, kept, strict=True)))
        )
        probability_kept = torch.where(both, probability[..., FORWARD] + probability[..., BOTH], probability_kept)
    assert kept is not None
    return (state == FORWARD) | (state == BOTH), kept, probability_kept


def _keep(chosen: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(chosen if new.dim() == 3 else chosen[..., None], new, old)


def _bernoulli_entropy(logits: Tensor) -> Tensor:
    softplus = torch.nn.functional.softplus
    p = torch.sigmoid(logits)
    return p * softplus(-logits) + (1.0 - p) * softplus(logits)
