"""GraphVAE (Simonovsky & Komodakis 2018): one latent a graph, decoded into all nodes and edges at once.

The decoder has a slot for each row of the vocabulary where nodes are named. Else it has as many slots as the largest
training graph has nodes, and the slot of each node is found by matching: the assignment that makes the graph likeliest,
sought by linearising its edge term around the last assignment (Frank-Wolfe; the paper pools a similarity of pairs to
the same end) and solving each linear problem with the Hungarian algorithm.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.graph_sets import Graph, GraphSet
from benchmarks.peers import dense_graphs
from benchmarks.peers.dense_graphs import NEVER, Frame, GraphReader, Padded, kl_nats, label_shares, mlp

CHUNK = 64
MATCHINGS = 3  # linear problems a graph
KL_GROWS = 0.3


class Slots(nn.Module):
    """Encoder, latent and the decoder of all slots and pairs of slots."""

    def __init__(self, frame: Frame, data: GraphSet, latents: int, width: int) -> None:
        super().__init__()
        self.frame, self.latents = frame, latents
        self.slots = frame.vocabulary if frame.named else frame.most
        self.kinds = 1 if frame.named else frame.vocabulary
        labels = torch.arange(self.slots, device=frame.device) if frame.named else None
        pairs = torch.ones(self.slots, self.slots, dtype=torch.bool, device=frame.device)
        if labels is not None:
            pairs = frame.possible(torch.ones_like(labels[None], dtype=torch.bool), labels[None])[0]
        # Label pairs that nothing may join have no output: 24 k pairs of 220 metabolites become some hundreds.
        self.first, self.second = torch.triu(pairs | pairs.T, 1).nonzero(as_tuple=True)
        self.pair_states = frame.possible_states(pairs[None])[0, self.first, self.second]
        self.reader = GraphReader(frame, width)
        self.pool = nn.Linear(width, 2 * width)
        self.posterior = nn.Linear(width + frame.condition_width, 2 * latents)
        outputs = self.slots * (1 + self.kinds) + len(self.first) * frame.states
        self.decoder = mlp(latents + frame.condition_width, 2 * width, outputs)
        dense_graphs.start_last(self.decoder, self._start(data))

    def _start(self, data: GraphSet) -> Tensor:
        """Return the biases of the decoder at which it says how frequent everything is in training."""
        if self.frame.named:
            there = torch.logit(label_shares(self.frame, data))
        else:
            reached = [(self.frame.sizes > i).float().mean() for i in range(self.slots)]
            there = torch.logit(torch.stack(reached).clamp(0.01, 0.99))
        density = np.mean([g.adjacency.sum() / max(1, len(g.labels) * (len(g.labels) - 1)) for g in data.train])
        pairs = torch.full((len(self.first), self.frame.states), float(np.log(density + 1e-3)))
        pairs[:, 0] = 0.0
        return torch.cat([there, torch.zeros(self.slots * self.kinds), pairs.flatten()])

    def decode(
        self, latent: Float[Tensor, "B Z"], condition: Float[Tensor, "B C"]
    ) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K L"], Float[Tensor, "B P S"]]:
        """Return log-odds of the slots, log-probabilities of their labels and of the states of the pairs."""
        out = self.decoder(torch.cat([latent, condition], -1))
        there, labels, pairs = out.split([self.slots, self.slots * self.kinds, len(self.first) * self.frame.states], -1)
        pairs = pairs.view(len(out), -1, self.frame.states).masked_fill(~self.pair_states, NEVER)
        labels = labels.view(len(out), self.slots, self.kinds)
        return there, torch.log_softmax(labels, -1), torch.log_softmax(pairs, -1)

    def loss(self, batch: Padded, share: float) -> Float[Tensor, " B"]:
        """Return the bound in nats of each graph, in the best assignment found where nodes have no names."""
        x = self.reader(batch)
        gate, value = self.pool(x).chunk(2, -1)
        pooled = (torch.sigmoid(gate) * value * batch.mask[..., None]).sum(1)
        mean, log_var = self.posterior(torch.cat([pooled, batch.condition], -1)).chunk(2, -1)
        log_var = log_var.clamp(-8, 4)
        latent = mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)
        there, labels, pairs = self.decode(latent, batch.condition)
        kl = min(share / KL_GROWS, 1.0) * kl_nats(mean, log_var)
        if self.frame.named:
            slot = batch.labels
        else:
            slot = self._match(batch, there.detach(), labels.detach(), pairs.detach())
            kl = kl + dense_graphs.log_orders(batch.mask)
        return kl + self._reconstruction(batch, slot, there, labels, pairs)

    def _reconstruction(self, batch: Padded, slot: Tensor, there: Tensor, labels: Tensor, pairs: Tensor) -> Tensor:
        size, count = slot.shape
        rows = torch.arange(size, device=slot.device)[:, None]
        filled = torch.zeros(size, self.slots, device=slot.device).scatter_add(1, slot, batch.mask.float())
        nats = F.binary_cross_entropy_with_logits(there, filled, reduction="none").sum(1)
        if not self.frame.named:
            nats = nats - (labels[rows, slot, batch.labels] * batch.mask).sum(1)
        place = torch.full((size, self.slots), count, device=slot.device)  # node in a slot; `count` where it is empty
        b, i = batch.mask.nonzero(as_tuple=True)
        place[b, slot[b, i]] = i
        state = F.pad(self.frame.state(batch.adjacency), (0, 1, 0, 1))
        states = state[rows, place[:, self.first], place[:, self.second]]
        both = (filled[:, self.first] * filled[:, self.second]) > 0
        return nats - (pairs.gather(-1, states[..., None])[..., 0] * both).sum(1)

    def _match(self, batch: Padded, there: Tensor, labels: Tensor, pairs: Tensor) -> Int[Tensor, "B N"]:
        """Return the slot of each node; padding gets the slots that are left, or the last one."""
        size, count = batch.labels.shape
        known = F.logsigmoid(there) - F.logsigmoid(-there)
        nodes = known[..., None] + labels.gather(2, batch.labels[:, None, :].expand(-1, self.slots, -1))
        log_state = torch.zeros(size, self.slots, self.slots, self.frame.states, device=there.device)
        log_state[:, self.first, self.second] = pairs
        swap = [0, 2, 1, 3][: self.frame.states] if self.frame.directed else [0, 1]
        log_state[:, self.second, self.first] = pairs[..., swap]
        state = self.frame.state(batch.adjacency)
        couples = batch.mask[:, :, None] & batch.mask[:, None, :]
        couples = couples & ~torch.eye(count, dtype=torch.bool, device=couples.device)
        is_state = [(couples & (state == s)).float() for s in range(self.frame.states)]
        degree = batch.adjacency.float().sum(2) + batch.adjacency.float().sum(1)
        expected = 1.0 - log_state[..., 0].exp()
        expected = (expected * torch.sigmoid(there)[:, None]).sum(2) * (2.0 if not self.frame.directed else 1.0)
        score = nodes - (expected[:, :, None] - degree[:, None, :]) ** 2 / 8
        best = torch.zeros(size, count, dtype=torch.long, device=there.device)
        best_value = torch.full((size,), -torch.inf, device=there.device)
        rows = torch.arange(size, device=there.device)[:, None]
        for _ in range(MATCHINGS):
            slot = _assign(score, batch.mask)
            chosen = F.one_hot(slot, self.slots).float() * batch.mask[..., None]  # B N K
            edges = sum(log_state[..., s] @ chosen.transpose(1, 2) @ one for s, one in enumerate(is_state))
            value = (
                (nodes + 0.5 * edges).transpose(1, 2)[rows, torch.arange(count, device=slot.device)[None], slot]
                * batch.mask
            ).sum(1)
            better = value > best_value
            best, best_value = torch.where(better[:, None], slot, best), torch.maximum(value, best_value)
            score = nodes + edges
        return best

    def draw(
        self, condition: Float[Tensor, "n C"]
    ) -> tuple[Bool[Tensor, "n N"], Int[Tensor, "n N"], Bool[Tensor, "n N N"]]:
        """Return mask, labels and adjacency of new graphs."""
        latent = torch.randn(len(condition), self.latents, device=condition.device)
        there, labels, pairs = self.decode(latent, condition)
        mask, slot = dense_graphs.present(torch.rand_like(there) < torch.sigmoid(there), there)
        state = torch.zeros(len(there), self.slots, self.slots, dtype=torch.long, device=there.device)
        state[:, self.first, self.second] = dense_graphs.draw(pairs)
        adjacency = self.frame.joined(state)
        rows = torch.arange(len(slot), device=slot.device)[:, None, None]
        adjacency = adjacency[rows, slot[:, :, None], slot[:, None, :]]
        names = slot if self.frame.named else dense_graphs.draw(labels).gather(1, slot)
        return mask, names, adjacency & self.frame.possible(mask, names)


def _assign(score: Float[Tensor, "B K N"], mask: Bool[Tensor, "B N"]) -> Int[Tensor, "B N"]:
    """Return the slot of each node in the best one-to-one assignment; 0 for padding."""
    slot = np.zeros(mask.shape, np.int64)
    table = score.double().cpu().numpy()
    for b, n in enumerate(mask.sum(1).tolist()):
        rows, columns = linear_sum_assignment(table[b, :, :n], maximize=True)
        slot[b, columns] = rows
    return torch.from_numpy(slot).to(score.device)


class GraphVAE:
    """The one-shot decoder; it learns directions by naming the state of each pair.

    A graph with more nodes than any of training has no bound: it is left out of `bound_nats`.
    """

    def __init__(self, device: torch.device, use_mask: bool = True, latents: int = 32, width: int = 128) -> None:
        self.device, self.use_mask, self.latents, self.width = device, use_mask, latents, width

    def fit(self, data: GraphSet, seconds: float, seed: int) -> None:
        """Learn by maximising the evidence lower bound."""
        until = dense_graphs.now() + seconds
        torch.manual_seed(seed)
        self.frame = Frame(data, self.device, self.use_mask)
        self.net = Slots(self.frame, data, self.latents, self.width).to(self.device)
        held_out = self._fitting(data.held_out) or data.train
        parts = (self.frame.pad(data.train), self.frame.pad(held_out))
        self.steps = dense_graphs.train(self.net, self.net.loss, parts, until, seed)

    def sample(self, conditions: Float[np.ndarray, "n V"], seed: int) -> list[Graph]:
        """Draw latents from the prior, slots and pairs from their probabilities."""
        return dense_graphs.drawn(self.frame, self.net.draw, conditions, seed, CHUNK)

    def bound_nats(self, graphs: Sequence[Graph]) -> float:
        """Return the evidence bound; of unnamed graphs with nodes in the order given, all orders equally likely."""
        fitting = self._fitting(graphs)
        if not fitting:
            return float("nan")
        return dense_graphs.mean_nats(self.frame, lambda b: self.net.loss(b, 1.0), self.frame.pad(fitting), CHUNK)

    def _fitting(self, graphs: Sequence[Graph]) -> list[Graph]:
        return [g for g in graphs if len(g.labels) <= self.net.slots]
