"""The peers of the generation benchmark learn tiny distributions that can be checked by eye."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks.graph_sets import Generator, Graph, GraphSet
from benchmarks.peers import dense_graphs
from benchmarks.peers.autoregressive import Autoregressive
from benchmarks.peers.digress import Digress, Noise
from benchmarks.peers.graphite import Graphite
from benchmarks.peers.graphvae import GraphVAE
from benchmarks.peers.junction_tree import JunctionTree
from benchmarks.peers.vgae import VGAE, DirectedVGAE

CPU = torch.device("cpu")
SMALL = partial(Digress, steps=20, width=32, layers=2)  # as good on tiny graphs
SYMMETRIC = (VGAE, Graphite)
PEERS: tuple[Callable[..., Generator], ...] = (
    VGAE,
    DirectedVGAE,
    GraphVAE,
    Graphite,
    Autoregressive,
    SMALL,
    JunctionTree,
)
COLD, WARM = np.float32([-1.0]), np.float32([1.0])
NAMED = {  # edges among the letters that are there; a -> b is in both, b and c are joined both ways in one
    -1.0: {("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")},
    1.0: {("a", "b"), ("e", "b"), ("e", "a")},
}
LETTERS = ("a", "b", "c", "d", "e", "f")


def named_graph(condition: np.ndarray) -> Graph:
    edges = NAMED[float(condition[0])]
    names = sorted({n for edge in edges for n in edge})
    adjacency = np.array([[(a, b) in edges for b in names] for a in names])
    return Graph(np.array([LETTERS.index(n) for n in names]), adjacency, condition)


def named_set(allowed: np.ndarray | None = None) -> GraphSet:
    graphs = tuple(named_graph(c) for c in (COLD, WARM) * 16)
    return GraphSet(
        name="two", directed=True, vocabulary=LETTERS, named=True, allowed=allowed,
        train=graphs, held_out=graphs[:2], test=graphs[:2],
    )  # fmt: skip


def plain_set() -> GraphSet:
    """Return stars and paths of four nodes in every order."""
    graphs = []
    for edges in (((0, 1), (0, 2), (0, 3)), ((0, 1), (1, 2), (2, 3))):
        for i in range(16):
            order = np.random.default_rng(i).permutation(4)
            adjacency = np.zeros((4, 4), bool)
            for a, b in edges:
                adjacency[order[a], order[b]] = adjacency[order[b], order[a]] = True
            graphs.append(Graph(np.zeros(4, np.int64), adjacency, np.zeros(0, np.float32)))
    return GraphSet(
        name="plain", directed=False, vocabulary=("node",), named=False, allowed=None,
        train=tuple(graphs), held_out=tuple(graphs[::8]), test=tuple(graphs[::8]),
    )  # fmt: skip


def edges_of(graph: Graph) -> set[tuple[str, str]]:
    return {(LETTERS[graph.labels[i]], LETTERS[graph.labels[j]]) for i, j in np.argwhere(graph.adjacency)}


def same(a: list[Graph], b: list[Graph]) -> bool:
    return all(
        np.array_equal(x.labels, y.labels) and np.array_equal(x.adjacency, y.adjacency)
        for x, y in zip(a, b, strict=True)
    )


def share_right(model: Generator, symmetric: bool, seed: int) -> float:
    conditions = np.stack([COLD, WARM] * 50)
    right = 0
    for condition, graph in zip(conditions, model.sample(conditions, seed), strict=True):
        truth = NAMED[float(condition[0])]
        right += edges_of(graph) == (truth | {(b, a) for a, b in truth} if symmetric else truth)
    return right / len(conditions)


@pytest.fixture(autouse=True)
def budgets_are_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a second pass with every look at the clock: as many steps on a busy machine as on an idle one."""
    ticks = itertools.count()
    monkeypatch.setattr(dense_graphs, "now", lambda: float(next(ticks)))


def learned(peer: Callable[..., Generator], data: GraphSet, steps: int) -> Generator:
    model = peer(CPU)
    model.fit(data, steps, 0)
    return model


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_learns_which_of_two_named_graphs_belongs_to_a_condition(peer: Callable[..., Generator]) -> None:
    symmetric = peer in SYMMETRIC
    model = learned(peer, named_set(), 300 if peer is SMALL else 130)
    assert share_right(model, symmetric, 0) > 0.9
    nats = model.bound_nats([named_graph(COLD), named_graph(WARM)])
    if symmetric:
        assert math.isnan(nats)  # it cannot say which way an edge goes
    else:
        assert 0.0 <= nats < 2.0  # untrained: some 15 nats
        reverse = named_graph(WARM)._replace(adjacency=named_graph(WARM).adjacency.T)
        assert model.bound_nats([reverse]) > model.bound_nats([named_graph(WARM)]) + 3.0
    conditions = np.stack([COLD, WARM] * 8)
    assert same(model.sample(conditions, 3), model.sample(conditions, 3))
    assert all(len(set(g.labels.tolist())) == len(g.labels) for g in model.sample(conditions, 3))


@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_joins_unnamed_nodes_both_ways_and_its_bound_falls(peer: Callable[..., Generator]) -> None:
    data = plain_set()
    before = learned(peer, data, 3).bound_nats(data.test)
    model = learned(peer, data, 40)
    assert model.bound_nats(data.test) < before - 0.3
    drawn = model.sample(np.zeros((20, 0), np.float32), 0)
    assert all((g.adjacency == g.adjacency.T).all() and not g.adjacency.diagonal().any() for g in drawn)
    assert not same(drawn, model.sample(np.zeros((20, 0), np.float32), 1))


@pytest.mark.parametrize("peer", PEERS)
def test_the_mask_forbids_and_can_be_left_out(peer: Callable[..., Generator]) -> None:
    allowed = np.ones((6, 6), bool)
    allowed[LETTERS.index("a"), LETTERS.index("b")] = False  # though training has it
    for use_mask in (True, False):
        model = learned(partial(peer, use_mask=use_mask), named_set(allowed), 20)
        drawn = [edge for g in model.sample(np.stack([COLD, WARM] * 20), 0) for edge in edges_of(g)]
        assert (("a", "b") in drawn) is not use_mask


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("peer", PEERS)
def test_what_a_bound_promises_to_all_graphs_together_is_at_most_certainty(
    peer: Callable[..., Generator], named: bool
) -> None:
    """The graphs of at most two nodes; a bound that lacks a term would promise more than a probability of one."""
    one, none = np.zeros((1, 1), bool), np.zeros(0, np.float32)
    graphs = [Graph(np.array([i]), one, none) for i in range(1 + named)]
    for forward, backward in itertools.product((False, True), repeat=2):
        if named or forward == backward:
            graphs.append(Graph(np.arange(2) * named, np.array([[False, forward], [backward, False]]), none))
    data = GraphSet(
        name="all", directed=named, vocabulary=LETTERS[: 1 + named], named=named, allowed=None,
        train=tuple(graphs) * 4, held_out=tuple(graphs), test=tuple(graphs),
    )  # fmt: skip
    model = learned(peer, data, 150 if peer is SMALL else 20)
    promised = sum(math.exp(-model.bound_nats([g] * 200)) for g in graphs)
    if named and peer in SYMMETRIC:
        assert math.isnan(promised)
    else:
        assert 0.05 < promised < 1.03  # the mean of 200 draws


def test_the_step_back_of_a_diffusion_is_bayes_rule() -> None:
    noise, share = Noise(10), torch.tensor([0.7, 0.2, 0.1])
    t, kept = torch.tensor([4]), noise.kept
    one, two = (k * torch.eye(3) + (1 - k) * share for k in (kept[4] / kept[3], kept[3]))  # rows: from, columns: to
    for clean, noisy in itertools.product(range(3), repeat=2):
        expected = two[clean] * one[:, noisy]
        found = noise.before(torch.eye(3)[clean][None], torch.eye(3)[noisy][None], share, t)[0]
        assert torch.allclose(found, expected / expected.sum(), atol=1e-6)
