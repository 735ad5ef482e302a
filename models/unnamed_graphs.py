"""Draw graphs of exchangeable nodes by growth: node after node, each joined to those that are there.

The state of a pair is one of {none, ->, <-, <->} or hidden, as in models/pair_states.py. Of a new node its parent is
drawn first (the oldest node that it is joined to, or none: another component), then its label, then its pairs with the
nodes after the parent, which are hidden and revealed in T rounds, the surest first. Everything before is decided, so
that the structure of the revealed graph (hops, common neighbours, random walks) is exact. Nodes come breadth first;
among the children of a node the one with the most edges to the graph so far is next, which walks around the node. A
node whose children are all there is closed: no later node is joined to it. Nodes have no numbers but their age. Of a
large graph the decoder looks at the WINDOW newest nodes and at all that are open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from models import noise
from models.graph_layers import FiLM
from models.pair_states import BACKWARD, BOTH, FORWARD, HIDDEN_PAIR, NONE, PAIR_STATES, flipped, pair_state

HOPS = 8  # from here on two nodes are far from each other
COMMON = 4  # common neighbours are counted up to one less
WALKS = 6  # steps of random walks
AGES = 24  # a node's age in nodes is told apart up to here
PAIR_FEATURES = PAIR_STATES * COMMON + HOPS + 1 + WALKS
PAIR_KINDS = PAIR_STATES * COMMON * HOPS  # as many, and one more for pairs with a node that is not there
NODE_FEATURES = PAIR_STATES + 3 + AGES + 2 + COMMON + 1 + WALKS
GRAPH_FEATURES = 4
WINDOW = 128  # nodes that are looked at: the newest ones, and all that are open
BLOCK = 2**15  # pairs of a graph whose features are laid out at once: all of them up to 181 nodes
SPARE = 0.3  # nats that drawing pairs independently of each other may cost in a round
NEVER = -1e9  # logit of what cannot be
PARENT, LABEL, PAIRS = range(3)  # what is drawn of a node, in this order
ABSENT = -1e4  # added to the attention to a node that is not there


class Patch(NamedTuple):
    """Growing graphs: the first nodes of each in their order, the newest one last, the others padding."""

    newest: Int[Tensor, " B"]  # number of the newest node; those with smaller numbers are decided
    opened: Int[Tensor, " B"]  # the first node that is not closed
    size: Int[Tensor, " B"]  # nodes that the graph will have
    label: Int[Tensor, "B N"]  # L (as many as there are labels) where it is hidden
    state: Int[Tensor, "B N N"]  # NONE, FORWARD, BACKWARD, BOTH or HIDDEN_PAIR, seen from the first node


class Structure(NamedTuple):
    """What nodes and pairs look like in the revealed graph; pairs are laid out where they are read (`laid_out`)."""

    nodes: Float[Tensor, "B N F"]
    kind: Int[Tensor, "B N N"]  # (state, common neighbours, hops) as one number; PAIR_KINDS where none is looked at
    walks: Float[Tensor, "W B N N"]  # square root of the probability that a random walk of 2, 3, ... steps ends there


class GrowthScores(NamedTuple):
    """What the decoder says about the newest node."""

    parent: Float[Tensor, "B P"]  # logits of 3 (j - 1) + state of the pair with the parent j, and of none at the end
    pair: Float[Tensor, "B N 4"]  # logits of the states of (newest, j), seen from the newest
    label: Float[Tensor, "B L"]  # logits


class GrowthOrder(NamedTuple):
    """An order in which graphs can grow."""

    node: Int[Tensor, "B N"]  # which node comes as the k-th; padding comes last
    nats: Float[Tensor, " B"]  # minus the log-probability of this order


# --- order ------------------------------------------------------------------------------------------------------------
def growth_order(joined: Bool[Tensor, "B N N"], mask: Bool[Tensor, "B N"], seed: Int[Tensor, " B"]) -> GrowthOrder:
    """Draw an order: breadth first, then by most edges to the nodes before, then by chance; edges go both ways."""
    size, count = mask.shape
    joined = joined | joined.transpose(1, 2)
    parent = torch.full((size, count), count, device=mask.device)  # place of the first neighbour that is there
    edges = torch.zeros(size, count, device=mask.device)
    waiting, rows = mask.clone(), torch.arange(size, device=mask.device)
    place = torch.arange(count, device=mask.device)[None]
    order, nats = [], torch.zeros(size, device=mask.device)
    for k in range(count):
        rank = torch.where(waiting, edges - (count + 1.0) * parent, NEVER)
        best = (rank == rank.amax(1, keepdim=True)) & waiting
        nats = nats + best.sum(1).clamp(min=1).log()
        chance = noise.uniform(seed, 10_000 + k, place)
        node = torch.where(best, 1.0 + chance, 0.0).argmax(1)
        node = torch.where(waiting.any(1), node, k)  # padding stays at the end
        order.append(node)
        waiting[rows, node] = False
        near = joined[rows, node]
        parent = torch.where(near, parent.clamp(max=k), parent)
        edges = edges + near
    return GrowthOrder(torch.stack(order, 1), nats)


def opened_before(joined: Bool[Tensor, "B N N"]) -> Int[Tensor, "B N"]:
    """Return, for graphs in growth order, the first node that was not closed when each node came."""
    count = joined.shape[1]
    earlier = (joined | joined.transpose(1, 2)).tril(-1)
    place = torch.arange(count, device=joined.device)
    first = torch.where(earlier, place, count).amin(2)
    first = torch.where(first == count, place, first)  # nothing before it: the start of another component
    return torch.cat([first.new_zeros(len(first), 1), first.cummax(1).values[:, :-1]], 1)


def patch_at(
    newest: Int[Tensor, " B"],
    size: Int[Tensor, " B"],
    opened: Int[Tensor, " B"],
    label: Int[Tensor, "B N"],
    state: Int[Tensor, "B N N"],
    hidden: Bool[Tensor, "B N"],
    labels: int,
) -> Patch:
    """Return whole graphs in growth order as they were when a node was the newest.

    Args:
        hidden: Pairs of the newest node that are not decided yet.
        labels: How many there are.
    """
    rows, place = torch.arange(len(newest), device=newest.device), torch.arange(label.shape[1], device=newest.device)
    is_newest, there = place == newest[:, None], place <= newest[:, None]
    state = torch.where(there[:, :, None] & there[:, None, :], state, NONE)
    row = torch.where(hidden, HIDDEN_PAIR, state[rows, newest])
    state = torch.where(is_newest[:, :, None], row[:, None, :], state)
    state = torch.where(is_newest[:, None, :], flipped(row)[:, :, None], state)
    return Patch(newest, opened, size, torch.where(there, label, labels), state)


def open_nodes(patch: Patch) -> Bool[Tensor, "B N"]:
    """Return the nodes before the newest that it can be joined to."""
    place = torch.arange(patch.label.shape[1], device=patch.label.device)
    return (place < patch.newest[:, None]) & (place >= patch.opened[:, None])


# --- structure --------------------------------------------------------------------------------------------------------
def structure(patch: Patch, looked_at: Bool[Tensor, "B N"]) -> Structure:
    """Return the structure of the revealed graph; hidden pairs count as not joined."""
    state, count = patch.state, patch.state.shape[1]
    place = torch.arange(count, device=state.device)
    joined = ((state != NONE) & (state != HIDDEN_PAIR)).float()
    eye = torch.eye(count, device=state.device)
    near = joined @ joined
    common = (near * (1.0 - eye)).clamp_(max=COMMON - 1)
    within = joined + eye
    reached, hops = within, HOPS - 1.0 - eye - within
    for _ in range(HOPS - 3):
        reached = (reached @ within).clamp_(max=1.0)
        hops -= reached
    degree = joined.sum(2)
    step = joined / degree.clamp(min=1.0)[..., None]
    walks, walk = [], step
    for _ in range(WALKS):
        walk = walk @ step
        walks.append(walk)
    walked = torch.stack(walks)
    kind = ((state * COMMON + common) * HOPS + hops).int()
    rows = torch.arange(len(state), device=state.device)
    row = state[rows, patch.newest]
    age = (patch.newest[:, None] - place).clamp(0, AGES - 1)
    flags = [place == patch.newest[:, None], open_nodes(patch), place == patch.opened[:, None]]
    back = (state == BACKWARD).sum(2)
    sides = [(joined * (common == c)).sum(2) for c in range(1, COMMON)]
    counts = [degree - back, degree - (state == FORWARD).sum(2), degree - sum(sides), *sides, (near * joined).sum(2)]
    nodes = torch.cat(
        [
            F.one_hot(row.long(), PAIR_STATES).float(),
            torch.stack(flags, -1).float(),
            F.one_hot(age, AGES).float(),
            torch.stack(counts, -1).log1p(),
            walked.diagonal(dim1=2, dim2=3).permute(1, 2, 0),
        ],
        -1,
    )
    return Structure(nodes, torch.where(looked_at[:, None], kind, PAIR_KINDS), walked.sqrt_())


def laid_out(kind: Int[Tensor, "*pairs"], walks: Tensor) -> Tensor:
    """Return G x pairs, features: one-hot state and common neighbours, one-hot hops, is one not there?, walks.

    Args:
        kind: As in Structure.
        walks: W x pairs, as in Structure.
    """
    states, hops = (torch.eye(n, device=kind.device) for n in (PAIR_STATES * COMMON, HOPS))
    table = torch.cat([states.repeat_interleave(HOPS, 1), hops.repeat(1, len(states))])
    table = torch.block_diag(table, torch.ones(1, 1, device=kind.device)).to(walks.dtype)
    # Columns of a table are eight times faster than F.one_hot.
    return torch.cat([table.index_select(1, kind.flatten()).view(-1, *kind.shape), walks])


class GrowthDecoder(nn.Module):
    """Transformer over the nodes of a patch whose attention sees the revealed structure; scores the newest node."""

    log_sizes: Tensor
    edge: Tensor
    never: Tensor

    def __init__(
        self,
        labels: int,
        directed: bool,
        condition_dim: int,
        log_sizes: Float[Tensor, " S"],
        width: int = 64,
        heads: int = 8,
        layers: int = 4,
        dropout: float = 0.0,
    ) -> None:
        """Make an untrained decoder.

        Args:
            labels: How many node labels there are.
            directed: Else only NONE and BOTH are possible.
            condition_dim: 0 in sets without conditions.
            log_sizes: Log-frequency of graphs with 1, 2, ... nodes in training; the condition moves it.
        """
        super().__init__()
        self.labels, self.heads, self.layers = labels, heads, layers
        self.register_buffer("log_sizes", log_sizes)
        states = torch.tensor([NONE, FORWARD, BACKWARD, BOTH])
        self.register_buffer("edge", states != NONE)
        self.register_buffer("never", ((states == FORWARD) | (states == BACKWARD)) & (not directed))
        self.sizes = (
            nn.Sequential(nn.Linear(condition_dim, 2 * width), nn.GELU(), nn.Linear(2 * width, len(log_sizes)))
            if condition_dim
            else None
        )
        self.read = nn.Sequential(nn.Linear(NODE_FEATURES, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.name = nn.Embedding(labels + 1, width)
        self.whole = nn.Sequential(nn.Linear(GRAPH_FEATURES + condition_dim, width), nn.GELU())
        self.film = FiLM(width, width, 2 * layers)
        self.bias = nn.Linear(PAIR_FEATURES, layers * heads)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers + 1))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.merge = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(layers))
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width)) for _ in range(layers)
        )
        self.write_label = nn.Linear(width, labels)
        self.ends = nn.Linear(width, 2 * width)
        self.between = nn.Linear(PAIR_FEATURES, width)
        self.write_pair, self.write_parent = nn.Linear(width, 4), nn.Linear(width, 3)
        self.write_root = nn.Linear(width, 1)
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.bias.weight, std=0.3)
        with torch.no_grad():
            self.write_pair.bias.copy_(torch.tensor([2.0, 0.0, 0.0, 0.0]))
            self.write_root.bias.fill_(-2.0)

    def size_logits(self, condition: Float[Tensor, "B C"]) -> Float[Tensor, "B S"]:
        """Return logits of graphs with 1, 2, ... nodes."""
        base = self.log_sizes.expand(len(condition), -1)
        return base if self.sizes is None else base + self.sizes(condition)

    def forward(self, patch: Patch, condition: Float[Tensor, "B C"], first: int = 0) -> GrowthScores:
        """Return the scores; pairs with closed nodes are NONE for certain.

        Args:
            first: Nodes before it are closed in all graphs: they are read, but not scored.
        """
        if patch.label.shape[1] <= WINDOW:
            return self._scores(patch, condition, patch.size, torch.ones_like(patch.label, dtype=torch.bool), first)
        count, index, looked_at = patch.label.shape[1], *_window(patch)
        label = torch.where(looked_at, patch.label.gather(1, index), self.labels)
        state = patch.state.gather(1, index[:, :, None].expand(-1, -1, count))
        state = state.gather(2, index[:, None, :].expand(-1, index.shape[1], -1))
        state = torch.where(looked_at[:, :, None] & looked_at[:, None, :], state, NONE)
        last = torch.full_like(patch.newest, index.shape[1] - 1)
        before = patch.newest - last  # of the window; less than nothing in graphs that do not fill it
        part = Patch(last, patch.opened - before, patch.size - before, label, state)
        scores = self._scores(part, condition, patch.size, looked_at, 0)
        where = torch.where(looked_at, index, count)[..., None]
        none = torch.where(self.edge, NEVER, 0.0).expand(len(label), count + 1, -1)
        no_parent = none[..., 1:].scatter(1, where.expand(-1, -1, 3), scores.parent[:, :-1].unflatten(1, (-1, 3)))
        return GrowthScores(
            torch.cat([no_parent[:, :-1].flatten(1), scores.parent[:, -1:]], 1),
            none.scatter(1, where.expand(-1, -1, 4), scores.pair)[:, :-1],
            scores.label,
        )

    def _scores(
        self,
        patch: Patch,
        condition: Float[Tensor, "B C"],
        wanted: Int[Tensor, " B"],
        looked_at: Bool[Tensor, "B N"],
        first: int,
    ) -> GrowthScores:
        size, count = patch.label.shape
        rows, place = torch.arange(size, device=condition.device), torch.arange(count, device=condition.device)
        there = (place <= patch.newest[:, None]) & looked_at
        seen = structure(patch, there)
        most = len(self.log_sizes)
        left = patch.size - patch.newest
        here = [wanted / most, left / wanted, left.float().log(), (patch.newest - patch.opened).float().log1p()]
        whole = self.whole(torch.cat([torch.stack(here, -1), condition], -1))
        x = self.read(seen.nodes) + self.name(patch.label)
        block = max(BLOCK // count, 1)
        bias = self._bias(seen.kind, seen.walks, range(self.layers)) if block >= count else None
        joined = ((patch.state != NONE) & (patch.state != HIDDEN_PAIR)).to(x.dtype)
        sites = self.film(whole)
        scored, first = first, 0
        for layer in range(self.layers):
            h = _film(self.norms[2 * layer](x), sites[2 * layer])
            q, k, v = self.qkv[layer](h).view(size, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            if layer == self.layers - 1:
                first = scored
                x, q = x[:, first:], q[:, :, first:]
            if bias is not None:
                means = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[layer][..., first:, :].to(q.dtype))
            else:
                parts = [slice(some, some + block) for some in range(first, count, block)]
                read = zip(q.split(block, 2), parts, strict=True)
                means = torch.cat([self._attend(layer, some, k, v, seen, part) for some, part in read], 2)
            # A sum over neighbours beside the means of attention: means cannot count.
            summed = joined[:, first:].to(v.dtype) @ v.transpose(1, 2).flatten(2) * 0.3
            means = means.transpose(1, 2).flatten(2)
            x = x + self.dropout(self.merge[layer](torch.cat([means, summed], -1)))
            x = x + self.dropout(self.feed[layer](_film(self.norms[2 * layer + 1](x), sites[2 * layer + 1])))
        x = self.norms[-1](x)
        newest = x[rows, patch.newest - first]
        j, i = self.ends(x).chunk(2, -1)
        of_newest = laid_out(seen.kind[rows, patch.newest, first:], seen.walks[:, rows, patch.newest, first:])
        between = self.between(of_newest.permute(1, 2, 0))
        pair = F.gelu(j + i[rows, patch.newest - first][:, None] + between)
        impossible = ~open_nodes(patch)[..., None] | self.never
        parent, state = (F.pad(write(pair).float(), (0, 0, first, 0)) for write in (self.write_parent, self.write_pair))
        return GrowthScores(
            torch.cat([parent.masked_fill(impossible[..., 1:], NEVER).flatten(1), self.write_root(newest).float()], 1),
            state.masked_fill(impossible & self.edge, NEVER),
            self.write_label(newest).float(),
        )

    def _bias(self, kind: Tensor, walks: Tensor, layers: range) -> Float[Tensor, "L B H R N"]:
        """Return what the heads of some layers add to the attention of some rows of pairs."""
        some = slice(layers.start * self.heads, layers.stop * self.heads)
        weight, shift = self.bias.weight[some], self.bias.bias[some, None]
        states, hops, unused, of_walks = weight.split([PAIR_STATES * COMMON, HOPS, 1, WALKS], 1)
        if torch.is_grad_enabled():
            weight = torch.cat([states, hops, torch.full_like(unused, ABSENT), of_walks], 1)
            bias = torch.addmm(shift, weight, laid_out(kind, walks).flatten(1))
        else:  # the same from a number for each kind
            table = F.pad((states[:, :, None] + hops[:, None]).flatten(1) + shift, (0, 1), value=ABSENT)
            bias = table.to(walks.dtype).index_select(1, kind.flatten())
            bias.addmm_(of_walks.to(walks.dtype), walks.flatten(1))
        return bias.view(len(layers), self.heads, *kind.shape).transpose(1, 2)

    def _attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, seen: Structure, rows: slice
    ) -> Float[Tensor, "B H R d"]:
        """Return the attention of some nodes; the features of their pairs are laid out anew in the backward pass."""

        def attention(query: Tensor, kind: Tensor, walks: Tensor) -> Tensor:
            bias = self._bias(kind, walks, range(layer, layer + 1))[0]
            return F.scaled_dot_product_attention(query, k, v, attn_mask=bias.to(query.dtype))

        given = (q, seen.kind[:, rows], seen.walks[:, :, rows])
        if not torch.is_grad_enabled():
            return attention(*given)
        found: Tensor = checkpoint(attention, *given, use_reentrant=False)
        return found


def _film(x: Float[Tensor, "B N D"], site: tuple[Tensor, Tensor]) -> Float[Tensor, "B N D"]:
    scale, shift = (part[:, None].to(x.dtype) for part in site)
    return torch.addcmul(shift, x, 1.0 + scale)


def _window(patch: Patch) -> tuple[Int[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """Return which nodes are looked at, the newest one last, and which of the places hold one at all."""
    first = torch.minimum(patch.opened, patch.newest - WINDOW + 1).clamp(min=0)
    span = int((patch.newest - first).max()) + 1
    place = patch.newest[:, None] - span + 1 + torch.arange(span, device=first.device)
    return place.clamp(min=0), place >= first[:, None]


# --- loss -------------------------------------------------------------------------------------------------------------
def parents(row: Int[Tensor, "B N"], newest: Int[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Return the oldest node that the newest is joined to; the newest itself where there is none."""
    place = torch.arange(row.shape[1], device=row.device)
    return torch.where((row != NONE) & (place < newest[:, None]), place, newest[:, None]).amin(1)


def growth_nats(
    decoder: GrowthDecoder, patch: Patch, label: Int[Tensor, "B N"], row: Int[Tensor, "B N"], condition: Tensor
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Return minus the log-probabilities of the newest node's parent, of its label and of its other pairs.

    The last is an estimate of a bound, without bias when as many pairs as are hidden are a random share of those after
    the parent, each number equally often.

    Args:
        patch: With pairs of the newest node hidden: all (only the parent's term has a meaning), or some.
        label: Of all nodes.
        row: States of the newest node's pairs.
    """
    scores = decoder(patch, condition)
    rows, place = torch.arange(len(label), device=label.device), torch.arange(label.shape[1], device=label.device)
    hidden = patch.state[rows, patch.newest] == HIDDEN_PAIR
    each = F.cross_entropy(scores.pair.transpose(1, 2), row, reduction="none")
    parent = parents(row, patch.newest)
    others = (open_nodes(patch) & (place > parent[:, None])).sum(1)
    pairs = (each * hidden).sum(1) / hidden.sum(1).clamp(min=1) * others
    chosen = torch.where(parent < patch.newest, 3 * parent + row[rows, parent] - 1, scores.parent.shape[1] - 1)
    return (
        F.cross_entropy(scores.parent, chosen, reduction="none"),
        F.cross_entropy(scores.label, label[rows, patch.newest], reduction="none"),
        pairs,
    )


# --- drawing ----------------------------------------------------------------------------------------------------------
def grow(
    decoder: GrowthDecoder,
    size: Int[Tensor, " B"],
    condition: Float[Tensor, "B C"],
    seed: Int[Tensor, " B"],
    least: Float[Tensor, " B"],
    steps: int,
    multiple: int = 1,
    ahead: int = 0,
) -> tuple[Int[Tensor, "B N"], Bool[Tensor, "B N N"]]:
    """Return labels and adjacency of new graphs; beyond its size a graph is empty.

    Args:
        size: Nodes of each graph, not rising from row to row.
        seed: Of each graph: what is drawn depends on nothing else.
        least: Pairs and parents less likely than this share of the likeliest are never drawn: rare ones are often
            mistakes. Labels are drawn as likely as they are.
        steps: Rounds in which the pairs of a node are revealed, at most.
        multiple: Patches are padded to a multiple of this many nodes.
        ahead: Nodes that a graph may have more than another before it waits: waiting keeps patches narrow, not waiting
            saves passes.
    """
    device, padded = size.device, -(-int(size.max()) // multiple) * multiple
    graphs = Growing(
        label=torch.full((len(size), padded), decoder.labels, device=device),
        state=torch.full((len(size), padded, padded), NONE, dtype=torch.int8, device=device),
        newest=torch.zeros_like(size),
        opened=torch.zeros_like(size),
        turn=torch.full_like(size, LABEL),  # a first node has no parent
    )
    facts = torch.empty(3, dtype=torch.long, device=device)  # a GPU is asked once a pass: each question makes it wait
    going = torch.empty_like(size, dtype=torch.bool)

    def look() -> None:
        there = graphs.newest < size
        torch.logical_and(there, graphs.newest <= torch.where(there, graphs.newest, padded).amin() + ahead, out=going)
        most, first = torch.where(going, graphs.newest, 0).amax(), torch.where(going, graphs.opened, padded).amin()
        torch.stack([going.sum(), most, first], out=facts)

    def advance_all(cut: int) -> None:
        everyone = torch.arange(len(size), device=device)
        _advance(decoder, graphs, everyone, going, size, condition, seed, least, steps, cut)
        look()

    replayed = _Replayed(advance_all) if device.type == "cuda" and padded <= WINDOW else None
    look()
    while True:
        number, most, first = facts.tolist()
        if number == 0:
            break
        cut = min(-(-(most + 1) // multiple) * multiple, padded)
        if replayed is not None:
            replayed(cut)
            continue
        rows = going.byte().argsort(descending=True, stable=True)[:number]
        given = size[rows], condition[rows], seed[rows], least[rows]
        _advance(decoder, graphs, rows, going[rows], *given, steps, cut, first)
        look()
    there = torch.arange(padded, device=device) < size[:, None]
    return graphs.label.masked_fill(~there, 0), (graphs.state == FORWARD) | (graphs.state == BOTH)


class Growing(NamedTuple):
    """Graphs that are being drawn; changed in place."""

    label: Int[Tensor, "B N"]
    state: Int[Tensor, "B N N"]
    newest: Int[Tensor, " B"]
    opened: Int[Tensor, " B"]
    turn: Int[Tensor, " B"]  # see draw


def _advance(
    decoder: GrowthDecoder,
    graphs: Growing,
    rows: Int[Tensor, " R"],
    going: Bool[Tensor, " R"],
    size: Int[Tensor, " R"],
    condition: Float[Tensor, "R C"],
    seed: Int[Tensor, " R"],
    least: Float[Tensor, " R"],
    steps: int,
    cut: int,
    first: int = 0,
) -> None:
    """Draw what is next of some graphs; those that are not going stay as they are.

    Args:
        cut: Nodes of the patches.
        first: No graph has an open node before it.
    """
    label, state, newest, opened, turn = graphs
    padded = label.shape[1]
    place = torch.arange(padded, device=rows.device)
    k = newest[rows].clamp(max=cut - 1)
    patch = Patch(k, opened[rows], size, label[rows, :cut], state[rows, :cut, :cut])
    name, row, following = draw(decoder, patch, turn[rows], condition, seed, least, steps, first)
    label[rows, k] = torch.where(going, name, label[rows, k])
    row = torch.where(going[:, None], row, state[rows, k, :cut])
    state[rows, k, :cut], state[rows, :cut, k] = row, flipped(row)
    joined = row != NONE
    oldest = torch.where(joined.any(1), joined.byte().argmax(1), k)
    turn[rows] = torch.where(going, following, turn[rows])
    decided = going & (following == PARENT)
    newest[rows] += decided
    opened[rows] = torch.where(decided, torch.maximum(patch.opened, oldest), patch.opened)
    # Of the node that comes next, the pairs with open nodes are hidden.
    k = newest[rows].clamp(max=padded - 1)
    hidden = (decided & (newest[rows] < size))[:, None] & (place < k[:, None]) & (place >= opened[rows, None])
    row = torch.where(hidden, HIDDEN_PAIR, state[rows, k])
    state[rows, k], state[rows, :, k] = row, flipped(row)


class _Replayed:
    """Runs a function of a number, which changes tensors in place, from CUDA graphs: a pass is one launch, not 1,000.

    Nothing in it may wait for the device. The first call of each number runs as it is, the second is recorded.
    """

    def __init__(self, run: Callable[[int], None]) -> None:
        self.run = run
        self.recorded: dict[int, torch.cuda.CUDAGraph] = {}
        self.seen: set[int] = set()
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream()

    def __call__(self, number: int) -> None:
        if number not in self.seen:
            self.seen.add(number)
            self.run(number)
            return
        if number not in self.recorded:
            graph = torch.cuda.CUDAGraph()
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                graph.capture_begin(pool=self.pool)
                self.run(number)
                graph.capture_end()
            torch.cuda.current_stream().wait_stream(self.stream)
            self.recorded[number] = graph
        self.recorded[number].replay()


def draw(
    decoder: GrowthDecoder,
    patch: Patch,
    turn: Int[Tensor, " B"],
    condition: Float[Tensor, "B C"],
    seed: Int[Tensor, " B"],
    least: Float[Tensor, " B"],
    steps: int,
    first: int = 0,
) -> tuple[Int[Tensor, " B"], Int[Tensor, "B N"], Int[Tensor, " B"]]:
    """Draw what is next of each newest node, each at its own pace: its parent, its label or some of its other pairs.

    Args:
        turn: PARENT, LABEL, or PAIRS and the number of rounds in which pairs were revealed.
        first: No graph has an open node before it.

    Returns:
        Its label, its pairs and whose turn is next: PARENT when all of them are decided.
    """
    rows, place = torch.arange(len(turn), device=turn.device), torch.arange(patch.label.shape[1], device=turn.device)
    row = patch.state[rows, patch.newest]
    scores = decoder(patch, condition, first)
    u = noise.uniform(seed, 1_000 * (patch.newest + 1) + turn, place[None])
    # Its parent: pairs with older nodes are none.
    parent = _draw(_likely(scores.parent, least), u[:, 0])[:, None]
    below = torch.where((place > parent // 3) & (parent < 3 * len(place)), row, NONE)
    below = torch.where(place == parent // 3, 1 + parent % 3, below)
    # Some of its pairs.
    log_share = torch.log_softmax(_likely(scores.pair, least), -1)
    doubt = -(log_share.exp() * log_share.clamp(min=-1e4)).sum(-1)
    chosen = revealed(doubt, row == HIDDEN_PAIR, steps + PAIRS - turn)
    some = torch.where(chosen, _draw(log_share, u), row)
    at_parent, at_label = turn == PARENT, turn == LABEL
    row = torch.where(at_parent[:, None], below, torch.where(at_label[:, None], row, some)).to(torch.int8)
    label = torch.where(at_label, _draw(scores.label, u[:, 0]), patch.label[rows, patch.newest])
    if decoder.labels == 1:
        label, turn = torch.zeros_like(label), turn + at_parent
    decided = (turn >= LABEL) & (row != HIDDEN_PAIR).all(1)
    return label, row, torch.where(decided, PARENT, turn + 1)


def revealed(
    doubt: Float[Tensor, "B N"], hidden: Bool[Tensor, "B N"], rounds_left: Int[Tensor, " B"]
) -> Bool[Tensor, "B N"]:
    """Choose which hidden pairs to decide now: the least sure one, which tells most about the others, and sure ones.

    They are drawn independently of each other, which errs by no more nats than the sure ones have entropy together
    (Ben-Hamu et al. 2025): at most SPARE, or an equal share of all that is left in each round. All in the last one.
    """
    doubt = torch.where(hidden, doubt, 0.0)
    sums, order = doubt.masked_fill(~hidden, torch.inf).sort(1)
    spent = sums.masked_fill(sums == torch.inf, 0.0).cumsum(1)
    sure = spent <= (spent[:, -1:] / rounds_left[:, None]).clamp(min=SPARE)
    least_sure = torch.arange(doubt.shape[1], device=doubt.device) == doubt.argmax(1, keepdim=True)
    return hidden & (least_sure | torch.zeros_like(hidden).scatter(1, order, sure))


def _likely(logits: Float[Tensor, "B *more S"], least: Float[Tensor, " B"]) -> Float[Tensor, "B *more S"]:
    """Return the logits without what is less likely than a share of the likeliest."""
    below = least.clamp(min=1e-30).log().view(-1, *[1] * (logits.dim() - 1))
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + below, NEVER)


def _draw(logits: Tensor, u: Tensor) -> Tensor:
    """Return which state a uniform number stands for; one that cannot be is never drawn."""
    share = torch.softmax(logits, -1).cumsum(-1)
    return (u[..., None] * share[..., -1:] > share[..., :-1]).sum(-1)


def ordered(
    adjacency: Bool[Tensor, "B N N"], label: Int[Tensor, "B N"], order: Int[Tensor, "B N"]
) -> tuple[Int[Tensor, "B N N"], Int[Tensor, "B N"], Int[Tensor, "B N"]]:
    """Return pair states, labels and first open nodes of graphs whose nodes are put in an order."""
    rows = torch.arange(len(order), device=order.device)[:, None, None]
    moved = adjacency[rows, order[:, :, None], order[:, None, :]]
    return pair_state(moved), label.gather(1, order), opened_before(moved)
