"""A two-phase generator of the junction-tree kind (Jin et al. 2018): first the modules of a graph, then their edges.

Named nodes: modules are groups of labels, the communities of all training edges together. A graph holds at most one
fragment of each: a set of labels and the edges among them, as seen at least twice in training. The first phase chooses
fragments module after module, the second draws the edges between them. A fragment that is not in the list is "other":
its labels are drawn one by one, its edges with those between the modules.

Unnamed nodes: modules are the communities of each graph. The first phase draws their sizes, the second the edges inside
and between them. In both cases a latent of the graph and one of each node stand behind the phases.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import networkx as nx
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.graph_sets import Graph, GraphSet
from benchmarks.peers import dense_graphs
from benchmarks.peers.dense_graphs import NEVER, Convolutions, Frame, GraphReader, Padded, draw, kl_nats, mlp, pair_of

CHUNK = 64
SEEN = 2  # times in training that make a fragment known
OTHER_SHARE = 0.02  # of known fragments that training takes as "other", so that it knows how to draw those
KNOWN_SHARE = 0.9  # of module sizes drawn as some training graph has them; the rest are made of single sizes
NODE_LATENTS = 8
KL_GROWS = 0.3
Fragment = tuple[tuple[int, ...], tuple[tuple[int, int], ...]]  # labels, edges among labels
EMPTY: Fragment = ((), ())


class Modules:
    """Which module each label belongs to, and the fragments that are known of each."""

    def __init__(self, data: GraphSet) -> None:
        joined = nx.Graph()
        joined.add_nodes_from({int(i) for g in data.train for i in g.labels})
        for graph in data.train:
            for i, j in np.argwhere(graph.adjacency):
                a, b = int(graph.labels[i]), int(graph.labels[j])
                weight = joined.get_edge_data(a, b, {"weight": 0})["weight"]
                joined.add_edge(a, b, weight=weight + 1)
        groups = nx.community.louvain_communities(joined, weight="weight", seed=0)
        large = [sorted(g) for g in groups if len(g) > 1]
        seen = {i for g in large for i in g}
        alone = [i for i in range(len(data.vocabulary)) if i not in seen]  # also labels that training lacks
        self.groups = sorted([*large, alone] if alone else large, key=len, reverse=True)
        self.of = np.zeros(len(data.vocabulary), np.int64)
        for m, group in enumerate(self.groups):
            self.of[group] = m
        counts = [Counter(found) for found in zip(*map(self.fragments, data.train), strict=True)]
        self.known: list[list[Fragment]] = []  # of each module, the empty one first
        for count in counts:
            often = sorted(f for f, n in count.items() if n >= SEEN and f != EMPTY)
            self.known.append([EMPTY, *often])
        lengths = [len(k) + 1 for k in self.known]  # the last code of a module: other
        self.first = np.cumsum([0, *lengths])
        self.code = [{f: self.first[m] + i for i, f in enumerate(k)} for m, k in enumerate(self.known)]
        self.frequency = np.zeros(self.first[-1])
        for m, count in enumerate(counts):
            for fragment, n in count.items():
                self.frequency[self.code[m].get(fragment, self.other(m))] += n

    def other(self, module: int) -> int:
        """Return the code of a fragment of this module that is not known."""
        return int(self.first[module + 1] - 1)

    def fragments(self, graph: Graph) -> list[Fragment]:
        """Return what a graph has of each module."""
        of = self.of[graph.labels]
        found = []
        for m in range(len(self.groups)):
            own = graph.labels[of == m]
            inside = np.argwhere(graph.adjacency[np.ix_(of == m, of == m)])
            edges = tuple(sorted((int(own[i]), int(own[j])) for i, j in inside))
            found.append((tuple(sorted(own.tolist())), edges))
        return found

    def codes(self, graphs: Sequence[Graph]) -> Int[np.ndarray, "n G"]:
        """Return the code of every fragment of every graph."""
        return np.array([[self.code[m].get(f, self.other(m)) for m, f in enumerate(self.fragments(g))] for g in graphs])


class FragmentPhase(nn.Module):
    """The fragment of each module, given the graph's latent and the fragments before it."""

    own: Tensor
    others: Tensor
    member: Tensor

    def __init__(self, modules: Modules, labels: int, inputs: int, width: int) -> None:
        super().__init__()
        self.catalogue, codes = modules, int(modules.first[-1])
        of_code = torch.from_numpy(np.repeat(np.arange(len(modules.groups)), np.diff(modules.first)))
        self.register_buffer("own", of_code[None] == torch.arange(len(modules.groups))[:, None])  # G x codes
        self.register_buffer("others", torch.tensor([modules.other(m) for m in range(len(modules.groups))]))
        member = torch.from_numpy(modules.of)[None] == torch.arange(len(modules.groups))[:, None]
        self.register_buffer("member", member)  # G x labels
        self.seen, self.module = nn.Embedding(codes, width), nn.Embedding(len(modules.groups), width)
        self.net = mlp(inputs + 2 * width, width, width)
        self.write, self.detail = nn.Linear(width, codes), nn.Linear(width, labels)
        with torch.no_grad():
            self.write.bias.copy_(torch.log(torch.from_numpy(modules.frequency) + 0.1))
            nn.init.constant_(self.detail.bias, -1.0)

    def scores(
        self, given: Float[Tensor, "B I"], before: Float[Tensor, "B W"], module: int
    ) -> tuple[Float[Tensor, "B F"], Float[Tensor, "B M"]]:
        """Return log-probabilities of the codes of a module, and log-odds of labels if it is another one."""
        at = self.module.weight[module].expand(len(given), -1)
        h = self.net(torch.cat([given, before, at], -1))
        return torch.log_softmax(self.write(h).masked_fill(~self.own[module], NEVER), -1), self.detail(h)

    def nats(
        self, given: Float[Tensor, "B I"], codes: Int[Tensor, "B G"], there: Float[Tensor, "B M"]
    ) -> Float[Tensor, " B"]:
        """Return the negative log-likelihood of the fragments, and of the labels of those that are not known."""
        seen = self.seen(codes)
        before = seen.cumsum(1) - seen
        at = self.module.weight[None].expand(len(given), -1, -1)
        h = self.net(torch.cat([given[:, None].expand(-1, codes.shape[1], -1), before, at], -1))
        chosen = torch.log_softmax(self.write(h).masked_fill(~self.own, NEVER), -1).gather(-1, codes[..., None])
        logits = self.detail(h)
        truth = there[:, None].expand_as(logits)
        each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * self.member
        return (each.sum(-1) * (codes == self.others)).sum(1) - chosen[..., 0].sum(1)

    def draw(self, given: Float[Tensor, "n I"]) -> tuple[Int[Tensor, "n G"], Bool[Tensor, "n M"]]:
        """Return codes, and the labels of the fragments that are not known."""
        codes = []
        before = torch.zeros(len(given), self.module.weight.shape[1], device=given.device)
        other = torch.zeros(len(given), self.member.shape[1], dtype=torch.bool, device=given.device)
        for m in range(len(self.own)):
            logits, detail = self.scores(given, before, m)
            code = draw(logits)
            unknown = (code == self.others[m])[:, None] & self.member[m]
            other |= unknown & (torch.rand_like(detail) < torch.sigmoid(detail))
            before = before + self.seen(code)
            codes.append(code)
        return torch.stack(codes, 1), other


class SizePhase:
    """How many nodes each module of an unnamed graph has, as often as in training."""

    def __init__(self, parts: Sequence[Int[np.ndarray, " N"]]) -> None:
        self.sizes = [tuple(sorted(np.bincount(p).tolist(), reverse=True)) for p in parts]
        self.known = Counter(self.sizes)
        self.number = self._smooth([len(s) for s in self.sizes])
        self.single = self._smooth([n for s in self.sizes for n in s])

    def nats(self, part: Int[np.ndarray, " N"]) -> float:
        """Return a bound of minus the log-probability of the sizes of the modules."""
        sizes = tuple(sorted(np.bincount(part).tolist(), reverse=True))
        made = self._at(self.number, len(sizes)) * math.prod(self._at(self.single, n) for n in sizes)
        probability = KNOWN_SHARE * self.known[sizes] / len(self.sizes) + (1 - KNOWN_SHARE) * made
        return -math.log(probability) if probability > 0 else math.inf

    def draw(self, rng: np.random.Generator, most: int) -> tuple[int, ...]:
        """Return sizes; those of a graph of more than `most` nodes are drawn again."""
        while True:
            sizes = self.sizes[rng.integers(len(self.sizes))]
            if rng.random() >= KNOWN_SHARE:
                number = rng.choice(len(self.number), p=self.number)
                sizes = tuple(sorted(rng.choice(len(self.single), number, p=self.single).tolist(), reverse=True))
            if 0 < sum(sizes) <= most:
                return sizes

    @staticmethod
    def _smooth(values: list[int]) -> Float[np.ndarray, " K"]:
        counts = np.bincount(values, minlength=int(1.25 * max(values)) + 1) + 0.05
        counts[0] = 0
        return counts / counts.sum()

    @staticmethod
    def _at(share: Float[np.ndarray, " K"], value: int) -> float:
        return float(share[value]) if value < len(share) else 0.0


class EdgePhase(nn.Module):
    """States of all pairs, given the modules, the edges inside known fragments and the latents."""

    def __init__(self, frame: Frame, codes: int, inputs: int, width: int) -> None:
        super().__init__()
        self.frame = frame
        self.label, self.code = nn.Embedding(frame.vocabulary, width), nn.Embedding(max(codes, 1), width)
        self.graph = Convolutions(2 * width + NODE_LATENTS + inputs + 2, width, 3, 3)
        # One bilinear form for pairs of one module and one for the others.
        self.source, self.target = nn.Linear(width, 2 * width * frame.states), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(2, frame.states))

    def forward(
        self,
        batch: Padded,
        inside: Bool[Tensor, "B N N"],
        same: Bool[Tensor, "B N N"],
        code: Int[Tensor, "B N"],
        latents: Float[Tensor, "B N Z"],
        given: Float[Tensor, "B I"],
    ) -> Float[Tensor, "B N N S"]:
        """Return log-probabilities of the states; they are the same seen from either end."""
        count = batch.mask.shape[1]
        sizes = torch.log1p(torch.stack([same.sum(-1), batch.mask.sum(1, keepdim=True).expand(-1, count)], -1).float())
        told = given[:, None].expand(-1, count, -1)
        nodes = torch.cat([self.label(batch.labels), self.code(code), latents, told, sizes], -1)
        relations = [dense_graphs.mean_over(r) for r in (inside, inside.transpose(1, 2), same)]
        x = self.graph(nodes, relations)
        source = self.source(x).unflatten(-1, (2, self.frame.states, -1))
        scores = torch.einsum("bimsd,bjd->bijms", source, self.target(x)) / math.sqrt(x.shape[-1]) + self.bias
        logits = torch.where(same[..., None], scores[..., 0, :], scores[..., 1, :])
        swap = [0, 2, 1, 3] if self.frame.directed else [0, 1]
        logits = logits + logits.transpose(1, 2)[..., swap]
        states = self.frame.possible_states(self.frame.possible(batch.mask, batch.labels))
        return torch.log_softmax(logits.masked_fill(~states, NEVER), -1)


class TwoPhases(nn.Module):
    """Encoder, latents and both phases."""

    module_of: Tensor
    label_share: Tensor

    def __init__(self, frame: Frame, data: GraphSet, latents: int, width: int) -> None:
        super().__init__()
        self.frame, self.latents = frame, latents
        self.catalogue = Modules(data) if frame.named else None
        self.sizes = None if frame.named else SizePhase([communities(g) for g in data.train])
        inputs = latents + frame.condition_width
        self.reader = GraphReader(frame, width)
        self.whole, self.each = nn.Linear(2 * width, 2 * latents), nn.Linear(width, 2 * NODE_LATENTS)
        codes = 0
        if self.catalogue is not None:
            codes = int(self.catalogue.first[-1])
            self.first_phase = FragmentPhase(self.catalogue, frame.vocabulary, inputs, width)
            self.register_buffer("module_of", torch.from_numpy(self.catalogue.of))
        share = dense_graphs.label_shares(frame, data)
        self.register_buffer("label_share", share / share.sum())
        self.second_phase = EdgePhase(frame, codes, inputs, width)

    def loss(self, batch: Padded, kept: Int[Tensor, "B K"], share: float) -> Float[Tensor, " B"]:
        """Return the bound in nats of each graph.

        Args:
            batch: Graphs.
            kept: Codes of their fragments, or of unnamed graphs the module of each node.
            share: Of the training time; the divergence weighs less early, and 1 judges.
        """
        x = self.reader(batch) * batch.mask[..., None]
        pooled = torch.cat([x.sum(1) / batch.mask.sum(1, keepdim=True), x.amax(1)], -1)
        latent, kl = _draw_latent(self.whole(pooled))
        own, own_kl = _draw_latent(self.each(x))
        kl = kl + (own_kl * batch.mask).sum(1)
        given = torch.cat([latent, batch.condition], -1)
        if self.catalogue is not None:
            if share < 1:
                change = torch.rand(kept.shape, device=kept.device) < OTHER_SHARE
                kept = torch.where(change, self.first_phase.others, kept)
            there = dense_graphs.presence(batch, self.frame.vocabulary)
            nats = self.first_phase.nats(given, kept, there)
            same, code, known = self.tree(batch, kept)
        else:
            nats = -(torch.log(self.label_share)[batch.labels] * batch.mask).sum(1)
            count = batch.mask.shape[1]
            same, code, known = self.parts(kept[:, :count], batch.mask)
        logits = self.second_phase(batch, batch.adjacency & known, same, code, own, given)
        chosen = logits.gather(-1, self.frame.state(batch.adjacency)[..., None])[..., 0]
        nats = nats - (chosen * (pair_of(batch.mask) & ~known)).sum((1, 2))
        return nats + min(share / KL_GROWS, 1.0) * kl

    def tree(self, batch: Padded, codes: Int[Tensor, "B G"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return which pairs are in one module, the code of each node, and which pairs a known fragment settles."""
        module = self.module_of[batch.labels]
        same = (module[:, :, None] == module[:, None]) & batch.mask[:, :, None] & batch.mask[:, None]
        code = codes.gather(1, module)
        known = code != self.first_phase.others[module]
        return same, code, same & known[:, :, None]

    def parts(self, part: Int[Tensor, "B N"], mask: Bool[Tensor, "B N"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same of unnamed graphs, of which no pair is settled."""
        same = (part[:, :, None] == part[:, None]) & mask[:, :, None] & mask[:, None]
        return same, torch.zeros_like(part), torch.zeros_like(same)

    def draw(
        self, condition: Float[Tensor, "n C"]
    ) -> tuple[Bool[Tensor, "n N"], Int[Tensor, "n N"], Bool[Tensor, "n N N"]]:
        """Return mask, labels and adjacency of new graphs."""
        n, device = len(condition), condition.device
        given = torch.cat([torch.randn(n, self.latents, device=device), condition], -1)
        if self.catalogue is not None:
            codes, other = self.first_phase.draw(given)
            mask, labels, inside = self._assemble(self.catalogue, codes, other)
        else:
            assert self.sizes is not None
            rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
            drawn = [self.sizes.draw(rng, 2 * self.frame.most) for _ in range(n)]
            part = torch.full((n, max(map(sum, drawn))), -1, device=device)
            for i, sizes in enumerate(drawn):
                part[i, : sum(sizes)] = torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)).to(device)
            mask = part >= 0
            labels = draw(torch.log(self.label_share).expand(*mask.shape, -1))
            inside = torch.zeros(*mask.shape, mask.shape[1], dtype=torch.bool, device=device)
        none = torch.zeros(*mask.shape, 1, device=device)
        batch = Padded(mask, labels, inside, condition, none, torch.arange(n, device=device))
        same, code, known = self.parts(part, mask) if self.catalogue is None else self.tree(batch, codes)
        own = torch.randn(*mask.shape, NODE_LATENTS, device=device)
        logits = self.second_phase(batch, inside, same, code, own, given)
        drawn_edges = self.frame.joined(draw(logits))
        return mask, labels, torch.where(known, inside, drawn_edges) & self.frame.possible(mask, labels)

    def _assemble(
        self, catalogue: Modules, codes: Int[Tensor, "n G"], other: Bool[Tensor, "n M"]
    ) -> tuple[Bool[Tensor, "n N"], Int[Tensor, "n N"], Bool[Tensor, "n N N"]]:
        """Return mask, labels and the edges inside known fragments."""
        there = other.cpu().numpy().copy()
        edges = []
        for graph, row in enumerate(codes.tolist()):
            for m, code in enumerate(row):
                if code == catalogue.other(m):
                    continue
                members, pairs = catalogue.known[m][code - int(catalogue.first[m])]
                there[graph, list(members)] = True
                edges += [(graph, a, b) for a, b in pairs]
        chosen = torch.from_numpy(there).to(codes.device)
        mask, labels = dense_graphs.present(chosen, self.label_share.expand(len(codes), -1))
        place = torch.zeros(chosen.shape, dtype=torch.long, device=codes.device)
        filled, at = mask.nonzero(as_tuple=True)
        place[filled, labels[filled, at]] = at
        inside = torch.zeros(*mask.shape, mask.shape[1], dtype=torch.bool, device=codes.device)
        if edges:
            which, source, target = torch.tensor(edges, device=codes.device).T
            inside[which, place[which, source], place[which, target]] = True
        return mask, labels, inside


def _draw_latent(posterior: Float[Tensor, "*A Z2"]) -> tuple[Float[Tensor, "*A Z"], Float[Tensor, "*A"]]:
    mean, log_var = posterior.chunk(2, -1)
    log_var = log_var.clamp(-8, 4)
    return mean + torch.randn_like(mean) * torch.exp(0.5 * log_var), kl_nats(mean, log_var)


def communities(graph: Graph) -> Int[np.ndarray, " N"]:
    """Return the community of each node, the largest first."""
    joined = nx.from_numpy_array((graph.adjacency | graph.adjacency.T).astype(int))
    part = np.zeros(len(graph.labels), np.int64)
    found = sorted(nx.community.louvain_communities(joined, seed=0), key=len, reverse=True)
    for number, members in enumerate(found):
        part[list(members)] = number
    return part


class JunctionTree:
    """Modules first, then the edges inside and between."""

    def __init__(self, device: torch.device, use_mask: bool = True, latents: int = 24, width: int = 96) -> None:
        self.device, self.use_mask, self.latents, self.width = device, use_mask, latents, width

    def fit(self, data: GraphSet, seconds: float, seed: int) -> None:
        """Find the modules, then learn by maximising the evidence lower bound."""
        until = dense_graphs.now() + seconds
        torch.manual_seed(seed)
        self.frame = Frame(data, self.device, self.use_mask)
        self.net = TwoPhases(self.frame, data, self.latents, self.width).to(self.device)
        held_out = data.held_out or data.train
        kept = self._kept([*data.train, *held_out])
        parts = (self.frame.pad(data.train), self.frame.pad(held_out))
        parts = (parts[0], parts[1]._replace(row=parts[1].row + len(data.train)))
        self.steps = dense_graphs.train(
            self.net, lambda batch, share: self.net.loss(batch, kept[batch.row], share), parts, until, seed
        )

    def sample(self, conditions: Float[np.ndarray, "n V"], seed: int) -> list[Graph]:
        """Draw latents, modules, then edges."""
        return dense_graphs.drawn(self.frame, self.net.draw, conditions, seed, CHUNK)

    def bound_nats(self, graphs: Sequence[Graph]) -> float:
        """Return the evidence bound; of unnamed graphs with nodes in the order given, all orders equally likely."""
        kept = self._kept(graphs)
        nats = dense_graphs.mean_nats(
            self.frame, lambda b: self.net.loss(b, kept[b.row], 1.0), self.frame.pad(graphs), CHUNK
        )
        if self.net.sizes is None:
            return nats
        return nats + float(
            np.mean([self.net.sizes.nats(communities(g)) + math.lgamma(len(g.labels) + 1) for g in graphs])
        )

    def _kept(self, graphs: Sequence[Graph]) -> Int[Tensor, "n K"]:
        if self.net.catalogue is not None:
            return torch.from_numpy(self.net.catalogue.codes(graphs)).to(self.device)
        table = np.full((len(graphs), max(len(g.labels) for g in graphs) + 4), -1, np.int64)
        for i, graph in enumerate(graphs):
            table[i, : len(graph.labels)] = communities(graph)
        return torch.from_numpy(table).to(self.device)
