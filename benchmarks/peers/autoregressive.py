"""An autoregressive generator of the GRAN kind (Liao et al. 2019), directed: node by node, each with a row of edges.

A graph network reads the graph so far and a new node that is joined to everything. It names the new node, or stops, and
then draws the states of all pairs of the new node with the earlier ones at once, from a mixture of products of
categorical distributions. Nodes come in breadth-first order: from a random one where nodes have no names (several
orders of each graph are learned), else from the label most frequent in training, ties by frequency. The number of
unnamed nodes is drawn first, as often as in training; named graphs end when the network stops.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.graph_sets import Graph, GraphSet
from benchmarks.peers import dense_graphs
from benchmarks.peers.dense_graphs import NEVER, Convolutions, Frame, Padded, label_shares, mean_over, mlp

CHUNK = 128
ORDERS = 8  # of each unnamed graph
ROWS = 4  # prefixes of a graph in a training step


class Step(nn.Module):
    """The next node and its edges, given the graph so far."""

    def __init__(self, frame: Frame, data: GraphSet, width: int, layers: int, mixture: int) -> None:
        super().__init__()
        self.frame, self.mixture = frame, mixture
        self.label = nn.Embedding(frame.vocabulary, width)
        # Beside its label, a node tells whether it is the new one, its degrees and how long ago it came; all of them
        # are told the condition and how many nodes are still to come (0 where that is not known).
        self.graph = Convolutions(width + 4 + 2 + frame.condition_width, width, 4, layers)
        self.name = mlp(2 * width + frame.vocabulary, 2 * width, frame.vocabulary + 1)  # the last one: stop
        self.query, self.key = nn.Linear(2 * width, width), nn.Linear(width, width)
        self.edges = mlp(3 * width, width, mixture * frame.states)
        self.weights = mlp(3 * width, width, mixture)
        share = torch.cat([label_shares(frame, data), torch.ones(1)])
        dense_graphs.start_last(self.name, torch.log(share), std=0.05)
        joined = sum(int(g.adjacency.sum()) for g in data.train) + 1
        pairs = sum(len(g.labels) * (len(g.labels) - 1) for g in data.train) + 2
        state = torch.full((frame.states,), math.log(joined / pairs))
        state[0] = 0.0
        dense_graphs.start_last(self.edges, state.repeat(mixture), std=0.05)

    def read(self, batch: Padded, at: Int[Tensor, " B"], sizes: Int[Tensor, " B"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the states of all nodes, of the new node `at` (label unseen) and the mean of the earlier ones."""
        count = batch.mask.shape[1]
        places = torch.arange(count, device=at.device)[None]
        before = (places < at[:, None]) & batch.mask
        new = places == at[:, None]
        a = (batch.adjacency & before[:, :, None] & before[:, None, :]).float()
        joined = (new[:, :, None] & before[:, None, :]).float()
        degrees = torch.log1p(torch.stack([a.sum(2), a.sum(1)], -1))
        age = torch.log1p((at[:, None] - places).clamp(min=0).float())
        left = (sizes - at).clamp(min=0).float()
        told = [batch.condition, torch.stack([torch.log1p(left), torch.log1p(at.float())], -1)]
        nodes = torch.cat(
            [
                self.label(batch.labels) * before[..., None],
                torch.stack([new.float(), age], -1),
                degrees,
                torch.cat(told, -1)[:, None].expand(-1, count, -1),
            ],
            -1,
        )
        relations = [mean_over(a), mean_over(a.transpose(1, 2)), mean_over(joined), joined.transpose(1, 2)]
        x = self.graph(nodes, relations)
        here = x[torch.arange(len(at), device=at.device), at]
        pooled = (x * before[..., None]).sum(1) / before.sum(1, keepdim=True).clamp(min=1)
        return x, here, pooled

    def names(
        self, here: Tensor, pooled: Tensor, batch: Padded, at: Int[Tensor, " B"], sizes: Int[Tensor, " B"]
    ) -> Float[Tensor, "B M"]:
        """Return log-probabilities of the next label; the last one is to stop. A name comes once."""
        before = (torch.arange(batch.mask.shape[1], device=at.device)[None] < at[:, None]) & batch.mask
        used = dense_graphs.presence(batch._replace(mask=before), self.frame.vocabulary)
        logits = self.name(torch.cat([here, pooled, used], -1))
        if self.frame.named:
            start = at[:, None] == 0
            logits = logits.masked_fill(torch.cat([used > 0, start], 1), NEVER)
        else:  # the number of nodes is known
            stop = (at >= sizes)[:, None]
            logits = torch.cat([logits[:, :-1].masked_fill(stop, NEVER), torch.where(stop, 0.0, NEVER)], 1)
        return torch.log_softmax(logits, -1)

    def rows(
        self, x: Tensor, here: Tensor, batch: Padded, at: Int[Tensor, " B"], label: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B N K S"]]:
        """Return log-weights of the mixture and log-probabilities of the states, seen from the new node."""
        query = self.query(torch.cat([here, self.label(label)], -1))[:, None].expand_as(x)
        key = self.key(x)
        pairs = torch.cat([query, key, query * key], -1)
        logits = self.edges(pairs).view(*x.shape[:2], self.mixture, self.frame.states)
        before = (torch.arange(x.shape[1], device=at.device)[None] < at[:, None]) & batch.mask
        ends = torch.stack([label[:, None].expand_as(batch.labels), batch.labels], -1).flatten(0, 1)
        possible = self.frame.possible(torch.ones_like(ends, dtype=torch.bool), ends)
        states = self.frame.possible_states(possible)[:, 0, 1].view(*x.shape[:2], 1, self.frame.states)
        logits = torch.log_softmax(logits.masked_fill(~states, NEVER), -1)
        weights = (self.weights(pairs) * before[..., None]).sum(1) / before.sum(1, keepdim=True).clamp(min=1)
        return torch.log_softmax(weights, -1), logits

    def nats(self, batch: Padded, at: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return the negative log-likelihood of node `at` of each graph, or of the stop after the last one."""
        sizes = batch.mask.sum(1)
        batch = _until(batch, int(at.max()))  # what comes later is not read
        rows = torch.arange(len(at), device=at.device)
        last = at >= sizes
        label = batch.labels[rows, at]
        given = sizes * (not self.frame.named)
        x, here, pooled = self.read(batch, at, given)
        named = self.names(here, pooled, batch, at, given)[rows, torch.where(last, self.frame.vocabulary, label)]
        weights, logits = self.rows(x, here, batch, at, label)
        state = self.frame.state(batch.adjacency)[rows, at]
        before = (torch.arange(x.shape[1], device=at.device)[None] < at[:, None]) & batch.mask & ~last[:, None]
        each = logits.gather(-1, state[:, :, None, None].expand(-1, -1, self.mixture, 1))[..., 0]
        edges = torch.logsumexp(weights + (each * before[..., None]).sum(1), -1)
        return -named - torch.where(last, 0.0, edges)


class Autoregressive:
    """Nodes one after the other, each with its edges to those that are there."""

    def __init__(
        self, device: torch.device, use_mask: bool = True, width: int = 96, layers: int = 4, mixture: int = 16
    ) -> None:
        self.device, self.use_mask, self.size = device, use_mask, (width, layers, mixture)

    def fit(self, data: GraphSet, seconds: float, seed: int) -> None:
        """Learn by maximising the likelihood of some rows of each graph, which stand for all."""
        until = dense_graphs.now() + seconds
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        self.frame = Frame(data, self.device, self.use_mask)
        self.rank = label_shares(self.frame, data).numpy()
        self.net = Step(self.frame, data, *self.size).to(self.device)
        repeat = 1 if data.named else ORDERS
        ordered = [self._ordered(g, rng) for g in data.train for _ in range(repeat)]
        held_out = [self._ordered(g, rng) for g in data.held_out or data.train]
        parts = (self._pad(ordered), self._pad(held_out))
        self.steps = dense_graphs.train(self.net, self._loss, parts, until, seed)

    def sample(self, conditions: Float[np.ndarray, "n V"], seed: int) -> list[Graph]:
        """Draw node after node."""
        return dense_graphs.drawn(self.frame, self._draw, conditions, seed, CHUNK)

    @torch.no_grad()
    def bound_nats(self, graphs: Sequence[Graph]) -> float:
        """Return minus the log-likelihood of the graphs in one breadth-first order.

        It is exact for named graphs but for orders that differ; of others, all orders count as equally likely.
        """
        rng = np.random.default_rng(0)
        total = 0.0
        for batch in dense_graphs.slices(self._pad([self._ordered(g, rng) for g in graphs]), CHUNK):
            sizes = batch.mask.sum(1)
            batch = _with_room(batch)
            nats = torch.zeros(len(sizes), device=self.device)
            for at in range(int(sizes.max()) + int(self.frame.named)):
                there = at < sizes + int(self.frame.named)
                nats[there] += self.net.nats(_some(batch, there), torch.full_like(sizes[there], at))
            if not self.frame.named:
                nats = nats + self.frame.size_nats(sizes) + dense_graphs.log_orders(batch.mask)
            total += float(nats.double().sum())
        return total / len(graphs)

    def _loss(self, batch: Padded, share: float) -> Float[Tensor, " B"]:
        ends = batch.mask.sum(1) + int(self.frame.named)  # the stop of a named graph is learned too
        batch = _with_room(batch)
        total = torch.zeros(len(ends), device=ends.device)
        for part in range(ROWS):  # one row of each quarter: the first ones are small
            at = ((part + torch.rand(len(ends), device=ends.device)) / ROWS * ends).long()
            total = total + self.net.nats(batch, torch.minimum(at, ends - 1))
        return total * ends / ROWS

    def _draw(
        self, condition: Float[Tensor, "n C"]
    ) -> tuple[Bool[Tensor, "n N"], Int[Tensor, "n N"], Bool[Tensor, "n N N"]]:
        named, n = self.frame.named, len(condition)
        most = min(self.frame.vocabulary, 2 * self.frame.most) if named else self.frame.most
        sizes = torch.zeros(n, dtype=torch.long, device=self.device) if named else self.frame.draw_sizes(n)
        empty = torch.zeros(n, most + 1, dtype=torch.long, device=self.device)
        adjacency = torch.zeros(n, most + 1, most + 1, dtype=torch.bool, device=self.device)
        rows = torch.arange(n, device=self.device)
        whole = Padded(empty > 0, empty.clone(), adjacency, condition, empty[..., None].float(), rows)
        going = torch.ones(n, dtype=torch.bool, device=self.device)
        for at in range(most):
            if not going.any():
                break
            live = going.nonzero()[:, 0]
            batch = _until(_some(whole, going), at)
            place = torch.full_like(live, at)
            x, here, pooled = self.net.read(batch, place, sizes[live])
            label = dense_graphs.draw(self.net.names(here, pooled, batch, place, sizes[live]))
            on = label < self.frame.vocabulary
            going[live[~on]] = False
            label = label.clamp(max=self.frame.vocabulary - 1)
            weights, logits = self.net.rows(x, here, batch, place, label)
            part = dense_graphs.draw(weights)
            state = dense_graphs.draw(logits[torch.arange(len(live), device=self.device), :, part])
            state = state[on, :at]
            live = live[on]
            whole.mask[live, at] = True
            whole.labels[live, at] = label[on]
            whole.adjacency[live, at, :at] = state % 2 == 1
            whole.adjacency[live, :at, at] = (state >= 2) if self.frame.directed else (state == 1)
        return whole.mask, whole.labels, whole.adjacency

    def _pad(self, graphs: Sequence[Graph]) -> Padded:
        return self.frame.pad(graphs, positions=False)

    def _ordered(self, graph: Graph, rng: np.random.Generator) -> Graph:
        """Return the graph with its nodes in breadth-first order."""
        urgency = self.rank[graph.labels] if self.frame.named else rng.random(len(graph.labels))
        order = list(_breadth_first(graph.adjacency | graph.adjacency.T, np.lexsort((graph.labels, -urgency))))
        return graph._replace(labels=graph.labels[order], adjacency=graph.adjacency[np.ix_(order, order)])


def _breadth_first(joined: Bool[np.ndarray, "N N"], preferred: Int[np.ndarray, " N"]) -> Iterator[int]:
    """Yield nodes breadth first; the preferred one starts every part and is the first of every level."""
    waiting, queue = preferred.tolist(), list[int]()
    while waiting or queue:
        if not queue:
            queue.append(waiting.pop(0))
        node = queue.pop(0)
        yield node
        near = [other for other in waiting if joined[node, other]]
        queue += near
        waiting = [other for other in waiting if other not in near]


def _with_room(batch: Padded) -> Padded:
    """Return the graphs with one more place, for the node after the last."""
    return batch._replace(
        mask=F.pad(batch.mask, (0, 1)),
        labels=F.pad(batch.labels, (0, 1)),
        adjacency=F.pad(batch.adjacency, (0, 1, 0, 1)),
        positions=F.pad(batch.positions, (0, 0, 0, 1)),
    )


def _until(batch: Padded, last: int) -> Padded:
    """Return the graphs without the places after `last`."""
    end = last + 1
    return batch._replace(
        mask=batch.mask[:, :end],
        labels=batch.labels[:, :end],
        adjacency=batch.adjacency[:, :end, :end],
        positions=batch.positions[:, :end],
    )


def _some(batch: Padded, chosen: Bool[Tensor, " B"]) -> Padded:
    return Padded(*(t[chosen] for t in batch))
