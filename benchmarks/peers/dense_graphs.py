"""What the peers share: padded graphs, which pairs may be joined, node sets, convolutions, the training loop."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.graph_sets import Graph, GraphSet
from data_pipeline.variables import ENVIRONMENT, standardise

POSITIONS = 4  # Laplacian eigenvectors a node
CHECKS = 16  # of the held-out loss while training
CHECKED = 256  # held-out graphs, at most
PAIRS = 2**17  # of nodes in a batch, at most: 32 graphs of 64 nodes
NEVER = -1e9  # logit of what cannot be


class Padded(NamedTuple):
    """Graphs side by side; condition is standardised and ends in a constant 1."""

    mask: Bool[Tensor, "B N"]
    labels: Int[Tensor, "B N"]
    adjacency: Bool[Tensor, "B N N"]
    condition: Float[Tensor, "B C"]
    positions: Float[Tensor, "B N P"]  # lowest non-constant Laplacian eigenvectors of the undirected graph
    row: Int[Tensor, " B"]  # of the padded graphs, for what a model keeps beside them


class Frame:
    """The facts of a graph set that a network is built from, and the way from graphs to tensors and back."""

    def __init__(self, data: GraphSet, device: torch.device, use_mask: bool = True) -> None:
        self.device, self.directed, self.named, self.vocabulary = (
            device,
            data.directed,
            data.named,
            len(data.vocabulary),
        )
        table = np.stack([g.condition for g in data.train])
        self.mean, self.spread = table.mean(0), table.std(0) + 1e-6
        self.condition_width = table.shape[1] + 1
        self.states = 4 if data.directed else 2  # of a pair i < j: A_ij + 2 A_ji, or A_ij
        self.sizes = torch.tensor([len(g.labels) for g in data.train])
        self.most = int(self.sizes.max())
        self.allowed = None
        if use_mask and data.allowed is not None:
            self.allowed = torch.from_numpy(np.asarray(data.allowed, bool)).to(device)

    def conditions(self, values: Float[np.ndarray, "n V"]) -> Float[Tensor, "n C"]:
        """Return conditions as networks see them: environments by their known ranges, others by training statistics."""
        if values.shape[1] == len(ENVIRONMENT):
            seen = standardise(torch.from_numpy(np.asarray(values, np.float32)), ENVIRONMENT)
        else:
            seen = torch.from_numpy(np.asarray((values - self.mean) / self.spread, np.float32))
        return torch.cat([seen, torch.ones(len(values), 1)], 1).to(self.device)

    def pad(self, graphs: Sequence[Graph], positions: bool = True) -> Padded:
        """Return graphs as tensors on the device."""
        size = max(1, *(len(g.labels) for g in graphs))
        mask, labels = np.zeros((len(graphs), size), bool), np.zeros((len(graphs), size), np.int64)
        adjacency = np.zeros((len(graphs), size, size), bool)
        vectors = np.zeros((len(graphs), size, POSITIONS), np.float32)
        for i, graph in enumerate(graphs):
            n = len(graph.labels)
            mask[i, :n], labels[i, :n], adjacency[i, :n, :n] = True, graph.labels, graph.adjacency
            if positions:
                vectors[i, :n] = _eigenvectors(graph.adjacency)
        condition = self.conditions(np.stack([g.condition for g in graphs]))
        there, names, joined = (torch.from_numpy(a).to(self.device) for a in (mask, labels, adjacency))
        row = torch.arange(len(graphs), device=self.device)
        return Padded(there, names, joined, condition, torch.from_numpy(vectors).to(self.device), row)

    def graphs(
        self,
        mask: Bool[Tensor, "n N"],
        labels: Int[Tensor, "n N"],
        adjacency: Bool[Tensor, "n N N"],
        conditions: Float[np.ndarray, "n V"],
    ) -> list[Graph]:
        """Return tensors as graphs."""
        m, names, edges = mask.cpu().numpy(), labels.cpu().numpy(), adjacency.cpu().numpy()
        return [Graph(names[i][m[i]], edges[i][np.ix_(m[i], m[i])], c) for i, c in enumerate(conditions)]

    def possible(self, mask: Bool[Tensor, "B N"], labels: Int[Tensor, "B N"]) -> Bool[Tensor, "B N N"]:
        """Return which ordered pairs (source, target) may be joined."""
        pairs = mask[:, :, None] & mask[:, None, :] & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        if self.allowed is not None:
            pairs = pairs & self.allowed[labels[:, :, None], labels[:, None, :]]
        return pairs if self.directed else pairs & pairs.transpose(1, 2)

    def possible_states(self, possible: Bool[Tensor, "B N N"]) -> Bool[Tensor, "B N N S"]:
        """Return which states a pair can have."""
        one = torch.ones_like(possible)
        if not self.directed:
            return torch.stack([one, possible], -1)
        back = possible.transpose(1, 2)
        return torch.stack([one, possible, back, possible & back], -1)

    def state(self, adjacency: Bool[Tensor, "B N N"]) -> Int[Tensor, "B N N"]:
        """Return the state of each pair, seen from its first node."""
        forward = adjacency.long()
        return forward + 2 * forward.transpose(1, 2) if self.directed else forward

    def joined(self, state: Int[Tensor, "B N N"]) -> Bool[Tensor, "B N N"]:
        """Return the adjacency of states of the pairs i < j; what stands on and below the diagonal is not read."""
        upper = torch.triu(state, 1)
        if self.directed:
            return (upper % 2 == 1) | (upper >= 2).transpose(1, 2)
        return (upper == 1) | (upper == 1).transpose(1, 2)

    def size_nats(self, sizes: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Return minus the log-frequency of node counts in training, one in a thousand spread evenly over all."""
        counts = torch.bincount(self.sizes, minlength=int(1.25 * self.most) + 1)[1:].double()
        share = 0.999 * counts / counts.sum() + 0.001 / len(counts)
        found = [-math.log(share[n - 1]) if n <= len(share) else math.inf for n in sizes.tolist()]
        return torch.tensor(found, device=self.device)

    def draw_sizes(self, n: int) -> Int[Tensor, " n"]:
        """Return node counts of training."""
        return self.sizes[torch.randint(len(self.sizes), (n,))].to(self.device)


def _eigenvectors(adjacency: Bool[np.ndarray, "N N"]) -> Float[np.ndarray, "N P"]:
    joined = (adjacency | adjacency.T).astype(float)
    root = 1 / np.sqrt(np.maximum(joined.sum(1), 1))
    vectors = np.linalg.eigh(np.eye(len(joined)) - root[:, None] * joined * root[None])[1][:, 1 : 1 + POSITIONS]
    return np.pad(vectors * math.sqrt(len(joined)), ((0, 0), (0, POSITIONS - vectors.shape[1])))


def upper(pairs: Bool[Tensor, "B N N"]) -> Bool[Tensor, "B N N"]:
    """Return the pairs i < j."""
    return torch.triu(pairs, 1)


def pair_of(mask: Bool[Tensor, "B N"]) -> Bool[Tensor, "B N N"]:
    """Return the pairs i < j of nodes that are there."""
    return upper(mask[:, :, None] & mask[:, None, :])


def log_orders(mask: Bool[Tensor, "B N"]) -> Float[Tensor, " B"]:
    """Return log n!: what a model that draws nodes in an order of its own pays for the order that it was given."""
    return torch.lgamma(mask.sum(1) + 1.0)


def mean_over(relation: Tensor) -> Tensor:
    """Return a matrix whose rows add up to one, or are zero."""
    relation = relation.float()
    return relation / relation.sum(-1, keepdim=True).clamp(min=1e-6)


def draw(logits: Float[Tensor, "*A S"]) -> Int[Tensor, "*A"]:
    """Return one state for each row of logits."""
    noise = -torch.log(torch.empty_like(logits).exponential_().clamp(min=1e-20))
    return (logits + noise).argmax(-1)


def kl_nats(mean: Float[Tensor, "*A Z"], log_var: Float[Tensor, "*A Z"]) -> Float[Tensor, "*A"]:
    """Return the divergence of a diagonal normal from the standard one."""
    return 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(-1)


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """Return two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs)
    )


def start_last(net: nn.Sequential, bias: Float[Tensor, " D"], std: float = 0.02) -> None:
    """Let a network say `bias` whatever it is told, but for small differences."""
    last = net[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        nn.init.normal_(last.weight, std=std)
        last.bias.copy_(bias)


class Convolutions(nn.Module):
    """Residual graph convolutions over dense matrices, one weight a relation (R-GCN, Schlichtkrull et al. 2018)."""

    def __init__(self, inputs: int, width: int, relations: int, layers: int) -> None:
        super().__init__()
        self.read = nn.Linear(inputs, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers + 1))
        self.mix = nn.ModuleList(nn.Linear((relations + 1) * width, width) for _ in range(layers))
        self.feed = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(
        self, nodes: Float[Tensor, "B N F"], relations: Sequence[Float[Tensor, "B N N"]]
    ) -> Float[Tensor, "B N D"]:
        """Return node states; each relation's rows say what a node reads."""
        x = self.read(nodes)
        for norm, mix, feed in zip(self.norms, self.mix, self.feed, strict=False):
            h = norm(x)
            x = x + feed(F.silu(mix(torch.cat([h, *(r @ h for r in relations)], -1))))
        return self.norms[-1](x)


class GraphReader(nn.Module):
    """The encoder of the variational peers: node states from labels, degrees, positions and condition."""

    def __init__(self, frame: Frame, width: int, layers: int = 3) -> None:
        super().__init__()
        self.frame = frame
        self.label = nn.Embedding(frame.vocabulary, width)
        self.graph = Convolutions(width + 2 + POSITIONS + frame.condition_width, width, 2, layers)

    def forward(self, batch: Padded) -> Float[Tensor, "B N D"]:
        """Return node states; eigenvectors have a random sign each time."""
        out, into = batch.adjacency.float(), batch.adjacency.transpose(1, 2).float()
        degrees = torch.log1p(torch.stack([out.sum(-1), into.sum(-1)], -1))
        signs = torch.randint(2, (len(out), 1, POSITIONS), device=out.device) * 2 - 1
        condition = batch.condition[:, None].expand(-1, out.shape[1], -1)
        nodes = torch.cat([self.label(batch.labels), degrees, batch.positions * signs, condition], -1)
        return self.graph(nodes, [mean_over(out), mean_over(into)])


class NodeSets(nn.Module):
    """Which nodes a graph has, for peers that only know how to join given nodes.

    Named nodes: a mixture of `parts` independent presences given the condition. Others: a node count and labels as
    often as in training.
    """

    log_share: Tensor

    def __init__(self, frame: Frame, data: GraphSet, width: int = 128, parts: int = 16) -> None:
        super().__init__()
        self.frame, self.parts = frame, parts
        share = label_shares(frame, data)
        self.register_buffer("log_share", torch.log(share / share.sum()))
        if frame.named:
            self.net = mlp(frame.condition_width, width, parts * (frame.vocabulary + 1))
            start = torch.cat([torch.zeros(parts), torch.logit(share).repeat(parts)])
            start_last(self.net, start + torch.randn(len(start)))  # the parts start apart

    def nats(self, batch: Padded) -> Float[Tensor, " B"]:
        """Return the negative log-likelihood of the node sets."""
        if not self.frame.named:
            labels = -(self.log_share[batch.labels] * batch.mask).sum(1)
            return labels + self.frame.size_nats(batch.mask.sum(1))
        weight, logits = self._presences(batch.condition)
        there = presence(batch, self.frame.vocabulary)[:, None]
        each = -F.binary_cross_entropy_with_logits(logits, there.expand_as(logits), reduction="none").sum(-1)
        return -torch.logsumexp(torch.log_softmax(weight, -1) + each, -1)

    def draw(self, condition: Float[Tensor, "n C"]) -> tuple[Bool[Tensor, "n N"], Int[Tensor, "n N"]]:
        """Return mask and labels; a graph has at least one node."""
        if not self.frame.named:
            sizes = self.frame.draw_sizes(len(condition))
            mask = torch.arange(int(sizes.max()), device=sizes.device) < sizes[:, None]
            return mask, draw(self.log_share.expand(*mask.shape, -1))
        weight, logits = self._presences(condition)
        logits = logits[torch.arange(len(logits), device=logits.device), draw(weight)]
        return present(torch.rand_like(logits) < torch.sigmoid(logits), logits)

    def _presences(self, condition: Float[Tensor, "B C"]) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K M"]]:
        weight, logits = self.net(condition).split([self.parts, self.parts * self.frame.vocabulary], -1)
        return weight, logits.view(len(condition), self.parts, -1)


def label_shares(frame: Frame, data: GraphSet) -> Float[Tensor, " M"]:
    """Return the share of training graphs (named nodes) or of nodes that have each label, none quite zero."""
    counts = torch.bincount(
        torch.from_numpy(np.concatenate([g.labels for g in data.train])), minlength=frame.vocabulary
    )
    total = len(data.train) if frame.named else int(counts.sum())
    return ((counts + 0.1) / (total + 0.2)).float()


def presence(batch: Padded, vocabulary: int) -> Float[Tensor, "B M"]:
    """Return 1 for every label that a graph has."""
    empty = torch.zeros(len(batch.mask), vocabulary, device=batch.mask.device)
    return empty.scatter_add(1, batch.labels, batch.mask.float()).clamp(max=1)


def present(
    chosen: Bool[Tensor, "n M"], logits: Float[Tensor, "n M"]
) -> tuple[Bool[Tensor, "n N"], Int[Tensor, "n N"]]:
    """Return mask and labels of the chosen rows of the vocabulary; where nothing was chosen, the likeliest one."""
    none = ~chosen.any(1)
    chosen = chosen.clone()
    chosen[none, logits[none].argmax(1)] = True
    size = int(chosen.sum(1).max())
    order = torch.argsort(chosen.byte(), dim=1, descending=True, stable=True)[:, :size]
    return chosen.gather(1, order), order


# --- training ---------------------------------------------------------------------------------------------------------
def now() -> float:
    """Return the seconds that budgets are counted in."""
    return time.monotonic()


def take(batch: Padded, rows: Int[Tensor, " b"]) -> Padded:
    """Return some graphs, cut to the largest of them."""
    some = Padded(*(t[rows] for t in batch))
    size = -(-int(some.mask.sum(1).max()) // 4) * 4
    return some._replace(
        mask=some.mask[:, :size],
        labels=some.labels[:, :size],
        adjacency=some.adjacency[:, :size, :size],
        positions=some.positions[:, :size],
    )


def train(
    network: nn.Module,
    loss: Callable[[Padded, float], Float[Tensor, " B"]],
    parts: tuple[Padded, Padded],
    until: float,
    seed: int,
    batch_size: int = 32,
    lr: float = 2e-3,
) -> int:
    """Lower the loss of the first part until now() says `until`; keep the weights best on the other part.

    `loss(batch, share)` returns a number a graph; share is 1 where it judges, else the share of the time that is over.
    Returns the number of steps.
    """
    training, held_out = parts
    started, rng = now(), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.01, fused=True)
    best, best_state, checked, step = math.inf, None, 0, 0
    network.train()
    for rows in _batches(training, batch_size, rng):
        share = (now() - started) / max(until - started, 1e-9)
        if share >= 1:
            break
        optimizer.param_groups[0]["lr"] = lr * min((step + 1) / 50, 0.02 + 0.98 * math.cos(math.pi / 2 * share) ** 2)
        optimizer.zero_grad()
        loss(take(training, rows), share).mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        if share > 0.3 + 0.65 * checked / CHECKS:
            checked += 1
            value = _judge(network, loss, held_out, batch_size)
            if value < best:
                best, best_state = value, copy.deepcopy(network.state_dict())
    if best_state is not None:
        network.load_state_dict(best_state)
    network.eval()
    return step


def _judge(network: nn.Module, loss: Callable[[Padded, float], Tensor], held_out: Padded, batch_size: int) -> float:
    network.eval()
    with torch.no_grad(), seeded(0, held_out.mask.device):
        total = sum(float(loss(batch, 1.0).sum()) for batch in slices(held_out, batch_size, CHECKED))
    network.train()
    return total


def slices(batch: Padded, size: int, most: int | None = None) -> Iterator[Padded]:
    """Return graphs in order, `size` at a time."""
    for first in range(0, min(len(batch.mask), most or len(batch.mask)), size):
        yield take(batch, torch.arange(first, min(first + size, len(batch.mask)), device=batch.mask.device))


def _batches(training: Padded, most: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Return rows of graphs of similar size, every graph once before any comes again; fewer where graphs are large."""
    sizes = training.mask.sum(1).cpu().numpy()
    while True:
        order = np.argsort(sizes + rng.uniform(0, 8, len(sizes)))
        runs, end = [], len(order)
        while end > 0:
            largest = sizes[order[max(end - most, 0) : end]].max()
            start = max(end - max(min(most, PAIRS // int(largest**2 + 1)), 1), 0)
            runs.append(order[start:end])
            end = start
        for i in rng.permutation(len(runs)):
            yield torch.from_numpy(runs[i]).to(training.mask.device)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from the same numbers inside; the numbers outside go on as if nothing had happened."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def drawn(
    frame: Frame,
    draw: Callable[[Float[Tensor, "b C"]], tuple[Tensor, Tensor, Tensor]],
    conditions: Float[np.ndarray, "n V"],
    seed: int,
    at_once: int,
) -> list[Graph]:
    """Draw a graph for each row of the conditions; `draw` returns mask, labels and adjacency of a part of them."""
    graphs: list[Graph] = []
    seen = frame.conditions(conditions)
    with torch.no_grad(), seeded(seed, frame.device):
        for first in range(0, len(conditions), at_once):
            part = slice(first, first + at_once)
            graphs += frame.graphs(*draw(seen[part]), conditions[part])
    return graphs


def mean_nats(frame: Frame, nats: Callable[[Padded], Float[Tensor, " b"]], batch: Padded, at_once: int) -> float:
    """Return the mean of what each graph of a batch costs, always with the same noise."""
    with torch.no_grad(), seeded(0, frame.device):
        return float(torch.cat([nats(part) for part in slices(batch, at_once)]).double().mean())
