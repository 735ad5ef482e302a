"""Discrete denoising diffusion of graphs (DiGress, Vignac et al. 2023), made directed.

Each pair of nodes has one state, {none, ->, <-, <->} in directed sets, and is noised towards the frequencies of states
in training (Q_t = a I + (1 - a) 1 m^T, cosine schedule); a graph transformer with edge features sees the noisy graph,
random-walk features of it, time and condition, and says what the clean states are. Labels of unnamed nodes are noised
and restored with the pairs, their number is drawn first. Named nodes are a set of rows of the vocabulary: presences of
all rows are restored by a diffusion of their own, with the same noise, and the pairs are then drawn among them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.graph_sets import Graph, GraphSet
from benchmarks.peers import dense_graphs
from benchmarks.peers.dense_graphs import NEVER, Frame, Padded, draw, label_shares, mean_over, mlp, pair_of

CHUNK = 64
HEADS = 8
WALKS = 6  # steps of the random walks that pairs are told
TIMES = 16  # at which the bound is evaluated for a graph
EDGE_WEIGHT = 5.0  # of pairs against labels in the loss, as published


class Noise(nn.Module):
    """The marginal noise of `steps` steps."""

    kept: Tensor

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        t = torch.linspace(0, 1, steps + 1)
        kept = torch.cos(0.5 * math.pi * (t + 0.008) / 1.008) ** 2
        self.register_buffer("kept", kept / kept[0])  # share that is as it was after t steps: 1 at t = 0

    def noisy(self, clean: Float[Tensor, "*A S"], share: Tensor, t: Int[Tensor, " B"]) -> Float[Tensor, "*A S"]:
        """Return one-hot states after t steps."""
        kept = _spread(self.kept[t], clean)
        probability = kept * clean + (1 - kept) * share
        return F.one_hot(draw(torch.log(probability.clamp(min=1e-30))), clean.shape[-1]).float()

    def alone(self, noisy: Float[Tensor, "*A S"], share: Tensor, t: Int[Tensor, " B"]) -> Float[Tensor, "*A S"]:
        """Return log-probabilities of the clean states by Bayes' rule if each stood alone, up to a constant.

        Networks add to these: to keep what is hardly noised need not be learned (as in Austin et al. 2021).
        """
        kept = _spread(self.kept[t], noisy)
        here = (noisy * share).sum(-1, keepdim=True)
        return torch.log((kept * noisy + (1 - kept) * here).clamp(min=1e-12)) + torch.log(share)

    def before(
        self, guess: Float[Tensor, "*A S"], noisy: Float[Tensor, "*A S"], share: Tensor, t: Int[Tensor, " B"]
    ) -> Float[Tensor, "*A S"]:
        """Return the distribution of the states at t - 1 from the noisy ones at t and a distribution of the clean ones.

        Sums q(x_{t-1} | x_t, x_0) over x_0; with a one-hot guess it is that posterior itself.
        """
        kept, earlier = _spread(self.kept[t], guess), _spread(self.kept[t - 1], guess)
        step = kept / earlier
        here = (noisy * share).sum(-1, keepdim=True)
        evidence = kept * noisy + (1 - kept) * here  # of x_t, for each x_0
        likelihood = step * noisy + (1 - step) * here  # of x_t, for each x_{t-1}
        ratio = guess / evidence.clamp(min=1e-12)
        found = likelihood * (earlier * ratio + (1 - earlier) * share * ratio.sum(-1, keepdim=True))
        return found / found.sum(-1, keepdim=True).clamp(min=1e-30)

    def bound(
        self, clean: Tensor, noisy: Tensor, guess: Tensor, share: Tensor, t: Int[Tensor, " B"]
    ) -> Float[Tensor, "*A"]:
        """Return the term of step t of the variational bound in nats: KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t))."""
        true, ours = self.before(clean, noisy, share, t), self.before(guess, noisy, share, t)
        return (true * (torch.log(true.clamp(min=1e-30)) - torch.log(ours.clamp(min=1e-30)))).sum(-1)

    def last(self, clean: Tensor, share: Tensor) -> Float[Tensor, "*A"]:
        """Return how far the fully noised states are from their prior, in nats."""
        left = self.kept[-1] * clean + (1 - self.kept[-1]) * share
        return (left * (torch.log(left.clamp(min=1e-30)) - torch.log(share.clamp(min=1e-30)))).sum(-1)


def _spread(value: Float[Tensor, " B"], like: Tensor) -> Tensor:
    return value.view(-1, *[1] * (like.dim() - 1))


class Layer(nn.Module):
    """Attention whose scores are scaled and shifted by edges; edges and the global vector are renewed from them.

    A head has one score a pair; the published layer has one for each channel, at four times the cost on a CPU.
    """

    def __init__(self, nodes: int, edges: int, whole: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(nodes, 3 * nodes)
        self.edge_film, self.edge_out = nn.Linear(edges, 2 * HEADS), nn.Linear(HEADS, edges)
        self.whole_edges, self.whole_nodes = nn.Linear(whole, 2 * edges), nn.Linear(whole, 2 * nodes)
        self.node_out = nn.Linear(nodes, nodes)
        self.whole_out = nn.Linear(whole + 3 * nodes + 3 * edges, whole)
        self.norms = nn.ModuleList(nn.LayerNorm(d) for d in (nodes, edges, whole, nodes, edges, whole))
        self.feeds = nn.ModuleList(
            nn.Sequential(nn.Linear(d, 2 * d), nn.SiLU(), nn.Linear(2 * d, d)) for d in (nodes, edges, whole)
        )

    def forward(
        self, x: Float[Tensor, "B N X"], e: Float[Tensor, "B N N E"], y: Float[Tensor, "B Y"], mask: Bool[Tensor, "B N"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return new states of nodes, pairs and the whole graph."""
        at = mask.float()[..., None]
        pairs = at[:, :, None] * at[:, None]
        hx, he, hy = self.norms[0](x), self.norms[1](e), self.norms[2](y)
        query, key, value = self.qkv(hx).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)  # each B H N d
        scale, shift = self.edge_film(he).permute(0, 3, 1, 2).chunk(2, 1)
        score = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]) * (1 + scale) + shift
        g_scale, g_shift = self.whole_edges(hy)[:, None, None].chunk(2, -1)
        e = e + self.edge_out(score.permute(0, 2, 3, 1)) * (1 + g_scale) + g_shift
        read = torch.softmax(score.masked_fill(~mask[:, None, None], NEVER), -1) @ value
        g_scale, g_shift = self.whole_nodes(hy)[:, None].chunk(2, -1)
        x = (x + self.node_out(read.transpose(1, 2).flatten(2) * (1 + g_scale) + g_shift)) * at
        y = y + self.whole_out(torch.cat([hy, *_moments(hx, at, (1,)), *_moments(he, pairs, (1, 2))], -1))
        x = (x + self.feeds[0](self.norms[3](x))) * at
        return x, e + self.feeds[1](self.norms[4](e)), y + self.feeds[2](self.norms[5](y))


def _moments(values: Tensor, there: Tensor, axes: tuple[int, ...]) -> list[Tensor]:
    number = there.sum(axes).clamp(min=1)
    mean = (values * there).sum(axes) / number
    square = (values**2 * there).sum(axes) / number
    return [mean, (square - mean**2).clamp(min=1e-6).sqrt(), values.masked_fill(there == 0, NEVER).amax(axes)]


class Denoiser(nn.Module):
    """The graph transformer, from noisy labels and pair states to log-probabilities of the clean ones."""

    def __init__(self, frame: Frame, steps: int, width: int, layers: int) -> None:
        super().__init__()
        self.frame, self.steps = frame, steps
        edges, walks = width // 2, WALKS * (2 if frame.directed else 1)
        self.walks = walks
        self.label = nn.Linear(frame.vocabulary, width)
        self.read_nodes = mlp(width + walks + 2, width, width)
        self.read_pairs = mlp(frame.states + 2 * walks, edges, edges)
        self.read_whole = mlp(frame.condition_width + 2 + walks, width, width)
        self.layers = nn.ModuleList(Layer(width, edges, width) for _ in range(layers))
        self.write_nodes, self.write_pairs = mlp(width, width, frame.vocabulary), mlp(edges, edges, frame.states)
        # Which labels like to be joined is known without any layer: a bilinear form of what nodes are.
        self.source, self.target = nn.Linear(width, width * frame.states), nn.Linear(width, width)
        dense_graphs.start_last(self.write_nodes, torch.zeros(frame.vocabulary))
        dense_graphs.start_last(self.write_pairs, torch.zeros(frame.states))

    def forward(
        self,
        labels: Float[Tensor, "B N L"],
        pairs: Float[Tensor, "B N N S"],
        batch: Padded,
        t: Int[Tensor, " B"],
        states: Bool[Tensor, "B N N S"],
        alone: tuple[Float[Tensor, "B N L"], Float[Tensor, "B N N S"]],
    ) -> tuple[Float[Tensor, "B N L"], Float[Tensor, "B N N S"]]:
        """Return log-probabilities, from those of states that stand alone; pairs are the same seen from either end."""
        at = batch.mask.float()[..., None]
        features = self._walks(pairs)
        own = features.diagonal(dim1=1, dim2=2).transpose(1, 2)
        out = pairs[..., 1] + pairs[..., 3] if self.frame.directed else pairs[..., 1]
        degrees = torch.log1p(torch.stack([out.sum(2), out.sum(1)], -1))
        named = self.label(labels)
        x = self.read_nodes(torch.cat([named, own, degrees], -1)) * at
        e = self.read_pairs(torch.cat([pairs, features, features.transpose(1, 2)], -1))
        moment = torch.stack([t / self.steps, batch.mask.sum(1) / self.frame.most], -1)
        y = self.read_whole(torch.cat([batch.condition, moment, (own * at).sum(1) / at.sum(1).clamp(min=1)], -1))
        for layer in self.layers:
            x, e, y = layer(x, e, y, batch.mask)
        x = x + named
        ends = torch.einsum("bisd,bjd->bijs", self.source(x).unflatten(-1, (self.frame.states, -1)), self.target(x))
        logits = self.write_pairs(e) + ends / math.sqrt(x.shape[-1])
        swap = [0, 2, 1, 3] if self.frame.directed else [0, 1]
        logits = (alone[1] + logits + logits.transpose(1, 2)[..., swap]).masked_fill(~states, NEVER)
        return torch.log_softmax(alone[0] + self.write_nodes(x), -1), torch.log_softmax(logits, -1)

    def _walks(self, pairs: Float[Tensor, "B N N S"]) -> Float[Tensor, "B N N W"]:
        """Return where random walks of 1, 2, ... steps along the edges (and against them) end."""
        out = pairs[..., 1] + pairs[..., 3] if self.frame.directed else pairs[..., 1]
        found = []
        for way in (out, out.transpose(1, 2)) if self.frame.directed else (out,):
            step = walk = mean_over(way)
            for _ in range(WALKS):
                found.append(walk)
                walk = walk @ step
        return torch.stack(found, -1)


class Diffusion(nn.Module):
    """Both diffusions: of the nodes and of what joins them."""

    label_share: Tensor
    pair_share: Tensor
    there_share: Tensor

    def __init__(self, frame: Frame, data: GraphSet, steps: int, width: int, layers: int) -> None:
        super().__init__()
        self.frame, self.noise = frame, Noise(steps)
        self.denoise = Denoiser(frame, steps, width, layers)
        share = label_shares(frame, data)
        self.register_buffer("label_share", share / share.sum())
        counts = torch.full((frame.states,), 0.1)
        for graph in data.train:
            state = frame.state(torch.from_numpy(graph.adjacency)[None])[0]
            counts += torch.bincount(state.flatten(), minlength=frame.states)
            counts[0] -= len(graph.labels)  # nothing joins a node to itself
        self.register_buffer("pair_share", counts / counts.sum())
        if frame.named:
            self.register_buffer("there_share", torch.stack([1 - share, share], -1))
            self.presence = mlp(frame.vocabulary + 2 + frame.condition_width, 4 * width, frame.vocabulary)
            dense_graphs.start_last(self.presence, torch.zeros(frame.vocabulary))

    def guess_presence(
        self, noisy: Float[Tensor, "B M 2"], condition: Float[Tensor, "B C"], t: Int[Tensor, " B"]
    ) -> Float[Tensor, "B M 2"]:
        """Return log-probabilities that each row of the vocabulary is absent and present."""
        seen = noisy[..., 1]
        moment = torch.stack([t / self.noise.steps, torch.cos(math.pi * t / self.noise.steps)], -1)
        more = self.presence(torch.cat([seen - self.there_share[:, 1], moment, condition], -1))
        alone = self.noise.alone(noisy, self.there_share, t)
        return torch.log_softmax(torch.stack([alone[..., 0], alone[..., 1] + more], -1), -1)

    def guess(
        self, labels: Tensor, pairs: Tensor, batch: Padded, t: Int[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B N L"], Float[Tensor, "B N N S"]]:
        """Return log-probabilities of the clean labels and pairs."""
        states = self.states(batch) if self.frame.named else self._any_states(batch)
        alone = self.noise.alone(labels, self.label_share, t), self.noise.alone(pairs, self.pair_share, t)
        return self.denoise(labels * batch.mask[..., None], pairs, batch, t, states, alone)

    def states(self, batch: Padded) -> Bool[Tensor, "B N N S"]:
        """Return which states each pair can have; padding has state 0."""
        return self.frame.possible_states(self.frame.possible(batch.mask, batch.labels))

    def noisy_pairs(self, clean: Tensor, mask: Bool[Tensor, "B N"], t: Int[Tensor, " B"]) -> Float[Tensor, "B N N S"]:
        """Return one-hot states of pairs after t steps, the same seen from either end."""
        drawn = self.noise.noisy(clean, self.pair_share, t).argmax(-1)
        return self.one_hot(drawn, mask)

    def one_hot(self, state: Int[Tensor, "B N N"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B N N S"]:
        """Return one-hot states of all pairs from those of the pairs i < j; no state at all on the diagonal."""
        state = torch.where(pair_of(mask), state, 0)
        hot = F.one_hot(self.frame.state(self.frame.joined(state)), self.frame.states).float()
        pairs = pair_of(mask)
        return hot * (pairs | pairs.transpose(1, 2))[..., None]

    def terms(self, batch: Padded, t: Int[Tensor, " B"], bound: bool) -> Float[Tensor, " B"]:
        """Return the loss of each graph: cross-entropy of the clean states, or the term of step t of the bound."""
        clean_pairs = self.one_hot(self.frame.state(batch.adjacency), batch.mask)
        clean_labels = F.one_hot(batch.labels, self.frame.vocabulary).float()
        pairs = self.noisy_pairs(clean_pairs, batch.mask, t)
        labels = clean_labels if self.frame.named else self.noise.noisy(clean_labels, self.label_share, t)
        guess_labels, guess_pairs = self.guess(labels, pairs, batch, t)
        couples = pair_of(batch.mask)
        if bound:
            total = (self.noise.bound(clean_pairs, pairs, guess_pairs.exp(), self.pair_share, t) * couples).sum((1, 2))
            at_labels = self.noise.bound(clean_labels, labels, guess_labels.exp(), self.label_share, t)
        else:
            total = -EDGE_WEIGHT * ((clean_pairs * guess_pairs).sum(-1) * couples).sum((1, 2))
            at_labels = -(clean_labels * guess_labels).sum(-1)
        if not self.frame.named:
            return total + (at_labels * batch.mask).sum(1) if self.frame.vocabulary > 1 else total
        clean = presences(batch, self.frame.vocabulary)
        noisy = self.noise.noisy(clean, self.there_share, t)
        guess = self.guess_presence(noisy, batch.condition, t)
        if bound:
            return total + self.noise.bound(clean, noisy, guess.exp(), self.there_share, t).sum(-1)
        return total - (clean * guess).sum((-1, -2))

    def _any_states(self, batch: Padded) -> Bool[Tensor, "B N N S"]:
        """Return the states of pairs whose labels are not known yet: all, among nodes that are there."""
        couples = pair_of(batch.mask)
        return self.frame.possible_states(couples | couples.transpose(1, 2))

    def end(self, batch: Padded) -> Float[Tensor, " B"]:
        """Return what the bound holds beside its steps: the noised states against their prior, and the node count."""
        clean = self.one_hot(self.frame.state(batch.adjacency), batch.mask)
        nats = (self.noise.last(clean, self.pair_share) * pair_of(batch.mask)).sum((1, 2))
        if self.frame.named:
            there = presences(batch, self.frame.vocabulary)
            return nats + self.noise.last(there, self.there_share).sum(-1)
        labels = self.noise.last(F.one_hot(batch.labels, self.frame.vocabulary).float(), self.label_share)
        return nats + (labels * batch.mask).sum(1) + self.frame.size_nats(batch.mask.sum(1))

    def draw_nodes(self, condition: Float[Tensor, "n C"]) -> tuple[Bool[Tensor, "n N"], Int[Tensor, "n N"]]:
        """Return mask and labels: of named nodes the result of their diffusion, of others the start of it."""
        n, device = len(condition), condition.device
        if not self.frame.named:
            sizes = self.frame.draw_sizes(n)
            mask = torch.arange(int(sizes.max()), device=device) < sizes[:, None]
            return mask, draw(torch.log(self.label_share).expand(*mask.shape, -1))
        noisy = F.one_hot(draw(torch.log(self.there_share).expand(n, -1, -1)), 2).float()
        for step in range(self.noise.steps, 0, -1):
            t = torch.full((n,), step, device=device)
            guess = self.guess_presence(noisy, condition, t)
            last = self.noise.before(guess.exp(), noisy, self.there_share, t)
            noisy = F.one_hot(draw(torch.log(last.clamp(min=1e-30))), 2).float()
        return dense_graphs.present(noisy[..., 1] > 0.5, guess[..., 1])

    def draw(
        self, condition: Float[Tensor, "n C"], mask: Bool[Tensor, "n N"], names: Int[Tensor, "n N"]
    ) -> tuple[Int[Tensor, "n N"], Bool[Tensor, "n N N"]]:
        """Return labels and adjacency of new graphs among the nodes of `draw_nodes`."""
        none = torch.zeros(*mask.shape, mask.shape[1], device=mask.device)
        batch = Padded(mask, names, none > 0, condition, none[..., :1], torch.arange(len(mask), device=mask.device))
        prior = torch.log(self.pair_share).expand(*none.shape, -1)
        pairs = self.one_hot(draw(prior), mask)
        labels = F.one_hot(names, self.frame.vocabulary).float()
        for step in range(self.noise.steps, 0, -1):
            t = torch.full((len(mask),), step, device=mask.device)
            guess_labels, guess_pairs = self.guess(labels, pairs, batch, t)
            last = self.noise.before(guess_pairs.exp(), pairs, self.pair_share, t)
            pairs = self.one_hot(draw(torch.log(last.clamp(min=1e-30))), mask)
            if not self.frame.named and self.frame.vocabulary > 1:
                last = self.noise.before(guess_labels.exp(), labels, self.label_share, t)
                labels = F.one_hot(draw(torch.log(last.clamp(min=1e-30))), self.frame.vocabulary).float()
        names = labels.argmax(-1)
        return names, self.frame.joined(pairs.argmax(-1)) & self.frame.possible(mask, names)


def presences(batch: Padded, vocabulary: int) -> Float[Tensor, "B M 2"]:
    """Return one-hot absence and presence of every row of the vocabulary."""
    there = dense_graphs.presence(batch, vocabulary)
    return torch.stack([1 - there, there], -1)


class Digress:
    """Diffusion in `steps` steps (500 to 1,000 were published; a step of sampling is a pass of the network)."""

    def __init__(
        self, device: torch.device, use_mask: bool = True, steps: int = 100, width: int = 64, layers: int = 4
    ) -> None:
        self.device, self.use_mask, self.shape = device, use_mask, (steps, width, layers)

    def fit(self, data: GraphSet, seconds: float, seed: int) -> None:
        """Learn to restore the clean states from those of a random step."""
        until = dense_graphs.now() + seconds
        torch.manual_seed(seed)
        self.frame = Frame(data, self.device, self.use_mask)
        self.net = Diffusion(self.frame, data, *self.shape).to(self.device)
        parts = (self.frame.pad(data.train, False), self.frame.pad(data.held_out or data.train, False))
        self.steps = dense_graphs.train(self.net, self._loss, parts, until, seed, lr=1e-3)

    @torch.no_grad()
    def sample(self, conditions: Float[np.ndarray, "n V"], seed: int) -> list[Graph]:
        """Start from the noise and restore: all node sets, then the edges of graphs of similar size together."""
        drawn: dict[int, Graph] = {}
        with dense_graphs.seeded(seed, self.device):
            condition = self.frame.conditions(conditions)
            mask, names = self.net.draw_nodes(condition)
            for rows in torch.argsort(mask.sum(1), stable=True).split(CHUNK):
                size = int(mask[rows].sum(1).max())
                labels, adjacency = self.net.draw(condition[rows], mask[rows, :size], names[rows, :size])
                found = self.frame.graphs(mask[rows, :size], labels, adjacency, conditions[rows.cpu().numpy()])
                drawn.update(zip(rows.tolist(), found, strict=True))
        return [drawn[i] for i in range(len(conditions))]

    @torch.no_grad()
    def bound_nats(self, graphs: Sequence[Graph]) -> float:
        """Return the variational bound of graphs with nodes in the order given; some steps stand for all."""
        steps, total = self.net.noise.steps, 0.0
        with dense_graphs.seeded(0, self.device):
            for batch in dense_graphs.slices(self.frame.pad(graphs, False), CHUNK):
                nats = self.net.end(batch)
                for part in range(TIMES):
                    t = (part + torch.rand(len(nats), device=self.device)) / TIMES * steps
                    nats = nats + self.net.terms(batch, 1 + t.long().clamp(max=steps - 1), True) * steps / TIMES
                total += float(nats.double().sum())
        return total / len(graphs)

    def _loss(self, batch: Padded, share: float) -> Float[Tensor, " B"]:
        """Return the cross-entropies of one random step a graph, spread evenly over a batch."""
        size, steps = len(batch.mask), self.net.noise.steps
        t = (torch.randperm(size, device=self.device) + torch.rand(size, device=self.device)) / size * steps
        return self.net.terms(batch, 1 + t.long().clamp(max=steps - 1), False)
