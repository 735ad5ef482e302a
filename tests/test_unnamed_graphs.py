"""Graphs of exchangeable nodes that grow node by node."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks import graph_metrics
from benchmarks.graph_sets import Graph, GraphSet
from benchmarks.ours_unnamed import LEAST, OursUnnamed
from benchmarks.peers import dense_graphs
from models import unnamed_graphs
from models.pair_states import BOTH, FORWARD, HIDDEN_PAIR, NONE
from models.unnamed_graphs import (
    COMMON,
    HOPS,
    PAIR_STATES,
    GrowthDecoder,
    Patch,
    grow,
    growth_order,
    laid_out,
    opened_before,
    ordered,
    parents,
    patch_at,
    structure,
)

CPU = torch.device("cpu")
NO_CONDITION = torch.zeros(1, 0)


def joined(edges: list[tuple[int, int]], nodes: int) -> torch.Tensor:
    found = torch.zeros(1, nodes, nodes, dtype=torch.bool)
    for a, b in edges:
        found[0, a, b] = found[0, b, a] = True
    return found


WHEEL = joined([(0, i) for i in range(1, 6)] + [(i, i % 5 + 1) for i in range(1, 6)], 6)  # a centre and a ring of five


def decoder(labels: int = 1, directed: bool = False) -> GrowthDecoder:
    torch.manual_seed(0)
    return GrowthDecoder(labels, directed, 0, torch.zeros(8), width=16, heads=2, layers=2).eval()


def patch_of_wheel(hidden: list[int]) -> Patch:
    state, label, opened = ordered(WHEEL, torch.zeros(1, 6, dtype=torch.long), torch.arange(6)[None])
    chosen = torch.zeros(1, 6, dtype=torch.bool)
    chosen[0, hidden] = True
    return patch_at(torch.tensor([4]), torch.tensor([6]), opened[:, 4], label, state, chosen, 1)


# --- order ------------------------------------------------------------------------------------------------------------
def test_children_of_a_centre_come_around_it() -> None:
    for seed in range(20):
        order = growth_order(WHEEL, torch.ones(1, 6, dtype=torch.bool), torch.tensor([seed])).node
        moved = ordered(WHEEL, torch.zeros_like(order), order)[0][0]
        assert all((moved[k, :k] != NONE).sum() >= 2 for k in range(2, 6))  # each new node closes a triangle


def test_a_path_that_starts_at_an_end_has_one_order_and_starts_are_drawn_evenly() -> None:
    path, mask = joined([(0, 1), (1, 2)], 3), torch.ones(1, 3, dtype=torch.bool)
    found = growth_order(path.expand(300, -1, -1), mask.expand(300, -1), torch.arange(300))
    from_end = found.node[:, 0] == 0
    assert found.node[from_end].unique(dim=0).tolist() == [[0, 1, 2]]
    assert found.nats[from_end][0].item() == pytest.approx(math.log(3))
    assert found.nats[found.node[:, 0] == 1][0].item() == pytest.approx(math.log(6))  # then two ends to choose from
    assert 70 < from_end.sum() < 130


def test_padding_comes_last_and_another_part_of_a_graph_after_the_first() -> None:
    two = joined([(0, 2), (1, 3)], 5)
    mask = torch.tensor([[True, True, True, True, False]])
    order = growth_order(two, mask, torch.tensor([3])).node[0].tolist()
    assert order[4] == 4 and {order[0], order[1]} in ({0, 2}, {1, 3})


def test_a_node_is_closed_once_a_later_node_has_a_younger_parent() -> None:
    path = joined([(0, 1), (1, 2), (2, 3)], 5)  # and a node alone
    assert opened_before(path)[0].tolist() == [0, 0, 0, 1, 2]
    assert opened_before(joined([(1, 2)], 3))[0].tolist() == [0, 0, 1]  # the second node starts another part
    assert parents(torch.tensor([[NONE, BOTH, FORWARD, NONE]]), torch.tensor([3])).tolist() == [1]
    assert parents(torch.tensor([[NONE, NONE, NONE, BOTH]]), torch.tensor([3])).tolist() == [3]


# --- structure --------------------------------------------------------------------------------------------------------
def features_of_pairs(patch: Patch) -> torch.Tensor:
    seen = structure(patch, torch.ones_like(patch.label, dtype=torch.bool))
    return laid_out(seen.kind, seen.walks)[:, 0].permute(1, 2, 0)


def test_hops_and_common_neighbours_are_those_of_what_is_revealed() -> None:
    pairs = features_of_pairs(patch_of_wheel([]))  # nodes 0 to 4: a fan of three triangles
    table, hops = pairs[..., : PAIR_STATES * COMMON].argmax(-1), pairs[..., PAIR_STATES * COMMON :][..., :HOPS]
    assert table[0, 2] == BOTH * COMMON + 2 and table[0, 1] == BOTH * COMMON + 1 and table[1, 4] == NONE * COMMON + 1
    assert hops.argmax(-1)[1].tolist() == [1, 0, 1, 2, 2, HOPS - 1]  # the last node is not there yet
    hidden = features_of_pairs(patch_of_wheel([0, 3]))
    assert hidden[4, 0, : PAIR_STATES * COMMON].argmax() // COMMON == HIDDEN_PAIR
    assert hidden[..., PAIR_STATES * COMMON :][4, 0, HOPS - 1] == 1  # not joined to anything yet


def test_padding_changes_no_score_and_closed_nodes_are_never_joined() -> None:
    net, patch = decoder(), patch_of_wheel([2, 3])
    patch = patch._replace(opened=torch.tensor([2]))
    wide = patch._replace(
        label=torch.nn.functional.pad(patch.label, (0, 3), value=1),
        state=torch.nn.functional.pad(patch.state, (0, 3, 0, 3)),
    )
    one, other = net(patch, NO_CONDITION), net(wide, NO_CONDITION)
    assert torch.allclose(one.pair[:, :4], other.pair[:, :4], atol=1e-5)
    assert torch.allclose(one.parent[:, -1], other.parent[:, -1], atol=1e-5)
    share = torch.softmax(one.pair, -1)[0]
    assert (share[:2, NONE] == 1).all() and (share[2:4, FORWARD] == 0).all() and (share[2:4, BOTH] > 0).all()


def test_what_is_drawn_for_a_graph_depends_on_its_seed_alone() -> None:
    net, seeds = decoder(labels=3, directed=True), torch.tensor([5, 6, 7])
    size, least = torch.tensor([7, 6, 4]), torch.tensor([0.0, 0.1, 0.0])
    label, adjacency = grow(net, size, torch.zeros(3, 0), seeds, least, steps=3)
    alone = grow(net, size[1:2], torch.zeros(1, 0), seeds[1:2], least[1:2], steps=3, multiple=8)
    faster = grow(net, size, torch.zeros(3, 0), seeds, least, steps=3, ahead=2)
    assert torch.equal(faster[0], label) and torch.equal(faster[1], adjacency)
    assert torch.equal(alone[0][0, :6], label[1, :6]) and torch.equal(alone[1][0, :6, :6], adjacency[1, :6, :6])
    assert not adjacency.diagonal(dim1=1, dim2=2).any() and not adjacency[2, 4:].any() and label.max() <= 2
    assert (adjacency != adjacency.transpose(1, 2)).any()


def test_the_least_sure_pair_is_decided_with_those_that_are_sure() -> None:
    doubt = torch.tensor([[0.1, 0.6, 0.15, 0.3, 0.02, 0.0]] * 3)
    hidden = torch.tensor([[True, True, True, True, True, False]] * 3)
    hidden[2] = False
    chosen = unnamed_graphs.revealed(doubt, hidden, torch.tensor([8, 1, 8]))
    assert chosen.tolist() == [[True, True, True, False, True, False], [True] * 5 + [False], [False] * 6]
    alone = unnamed_graphs.revealed(torch.tensor([[0.5, 0.6, 0.7]]), torch.ones(1, 3).bool(), torch.tensor([8]))
    assert alone.tolist() == [[False, False, True]]


def test_graphs_that_wait_stay_as_they_are() -> None:
    net, size = decoder(), torch.tensor([4, 4])
    graphs = unnamed_graphs.Growing(
        torch.zeros(2, 4, dtype=torch.long),
        torch.full((2, 4, 4), NONE, dtype=torch.int8),
        torch.tensor([1, 4]),  # the second one is complete
        torch.zeros(2, dtype=torch.long),
        torch.full((2,), unnamed_graphs.PARENT),
    )
    graphs.state[0, 0, 1] = graphs.state[0, 1, 0] = HIDDEN_PAIR
    before = [t.clone() for t in graphs]
    given = size, torch.zeros(2, 0), torch.tensor([3, 4]), torch.zeros(2), 8
    with torch.no_grad():
        unnamed_graphs._advance(net, graphs, torch.arange(2), torch.tensor([False, False]), *given, 2)
        assert all(torch.equal(*pair) for pair in zip(before, graphs, strict=True))
        unnamed_graphs._advance(net, graphs, torch.arange(2), torch.tensor([True, False]), *given, 2)
    assert graphs.newest.tolist() == [2, 4]
    assert all(torch.equal(b[1], g[1]) for b, g in zip(before, graphs, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_replayed_passes_draw_what_a_cpu_draws() -> None:
    net, seeds = decoder(labels=3, directed=True), torch.arange(40)
    size, least = torch.arange(40, 0, -1) // 2 + 1, torch.full((40,), 0.1)
    with torch.no_grad():
        label, adjacency = grow(net, size, torch.zeros(40, 0), seeds, least, 8, multiple=8)
        there = grow(net.cuda(), *(t.cuda() for t in (size, torch.zeros(40, 0), seeds, least)), 8, 8, 8)
    assert torch.equal(there[0].cpu(), label) and torch.equal(there[1].cpu(), adjacency)


def test_features_laid_out_a_few_rows_at_a_time_give_the_same_scores_and_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, patch = decoder(), patch_of_wheel([2, 3])
    found = []
    for block in (10_000, 12):  # all six rows at once, two rows at a time
        monkeypatch.setattr(unnamed_graphs, "BLOCK", block)
        net.zero_grad()
        scores = net(patch, NO_CONDITION)
        (scores.pair[:, 2:4].sum() + scores.parent[:, -1].sum()).backward()
        found.append((scores.pair, scores.parent, net.bias.weight.grad.clone(), net.qkv[0].weight.grad.clone()))
    assert found[0][2].abs().sum() > 0
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True))


def test_of_a_large_graph_the_newest_and_the_open_nodes_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    net, patch = decoder(labels=2, directed=True), patch_of_wheel([3])
    patch = patch._replace(opened=torch.tensor([2]), label=patch.label.clamp(max=0))
    whole = net(patch, NO_CONDITION)
    monkeypatch.setattr(unnamed_graphs, "WINDOW", 5)  # all that are there: the sixth is to come
    seen = net(patch, NO_CONDITION)
    for a, b in zip(whole, seen, strict=True):
        assert torch.allclose(torch.softmax(a, -1), torch.softmax(b, -1), atol=1e-5)
    monkeypatch.setattr(unnamed_graphs, "WINDOW", 2)  # the newest two, 3 and 4, and 2, which is open
    some, other = net(patch, NO_CONDITION), patch.state.clone()
    other[0, 0, 1] = other[0, 1, 0] = NONE
    assert not torch.allclose(torch.softmax(some.pair, -1), torch.softmax(whole.pair, -1), atol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(some, net(patch._replace(state=other), NO_CONDITION), strict=True))
    assert (torch.softmax(some.pair, -1)[0, [0, 1, 4, 5], NONE] == 1).all()
    assert (torch.softmax(some.parent, -1)[0, :6] == 0).all() and some.parent.shape == whole.parent.shape
    two = Patch(*(torch.cat([t, t]) for t in patch))
    two = two._replace(newest=torch.tensor([4, 3]), opened=torch.tensor([2, 3]))
    assert torch.allclose(net(two, NO_CONDITION.expand(2, 0)).pair[:1], some.pair, atol=1e-5)  # beside a narrower one


def test_large_graphs_are_drawn_from_their_seeds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unnamed_graphs, "WINDOW", 3)
    test_what_is_drawn_for_a_graph_depends_on_its_seed_alone()


def test_pairs_less_likely_than_a_share_of_the_likeliest_are_never_drawn_and_labels_are() -> None:
    net = decoder(labels=2)
    with torch.no_grad():
        for part in (net.write_pair, net.write_parent, net.write_root, net.write_label):
            part.weight.zero_()
        net.write_parent.bias.copy_(torch.tensor([0.0, 0.0, 5.0]))  # joined both ways to any node before
        net.write_root.bias.fill_(0.0)
        net.write_pair.bias.copy_(torch.tensor([0.0, 0.0, 0.0, -2.0]))  # an edge is .14 as likely as none
        net.write_label.bias.copy_(torch.tensor([0.0, -2.0]))
    size, seeds = torch.full((200,), 4), torch.arange(200)
    for least, extra in ((0.0, True), (0.2, False)):
        label, joined = grow(net, size, torch.zeros(200, 0), seeds, torch.full((200,), least), steps=2)
        assert (joined.sum() > 200 * 2 * 3) == extra and 0.05 < label.float().mean() < 0.2


# --- the generator ----------------------------------------------------------------------------------------------------
@pytest.fixture(autouse=True)
def budgets_are_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a second pass with every look at the clock: as many steps on a busy machine as on an idle one."""
    ticks = itertools.count()
    monkeypatch.setattr(dense_graphs, "now", lambda: float(next(ticks)))


def set_of(graphs: list[Graph], directed: bool, labels: int) -> GraphSet:
    return GraphSet(
        name="tiny", directed=directed, vocabulary=tuple("abc"[:labels]), named=False, allowed=None,
        train=tuple(graphs), held_out=tuple(graphs), test=tuple(graphs),
    )  # fmt: skip


def shuffled(labels: list[int], edges: list[tuple[int, int]], condition: float, seed: int) -> Graph:
    order = np.random.default_rng(seed).permutation(len(labels))
    adjacency = np.zeros((len(labels), len(labels)), bool)
    for a, b in edges:
        adjacency[order[a], order[b]] = True
    moved = np.zeros(len(labels), np.int64)
    moved[order] = labels
    return Graph(moved, adjacency, np.float32([condition]))


def test_a_condition_decides_between_a_labelled_directed_path_and_a_ring_of_more_nodes() -> None:
    kinds = {-1.0: ([0, 1, 2], [(0, 1), (1, 2)]), 1.0: ([1, 1, 1, 1], [(0, 1), (1, 2), (2, 3), (3, 0)])}
    graphs = [shuffled(*kinds[c], c, i) for i in range(8) for c in kinds]
    model = OursUnnamed(CPU)
    model.fit(set_of(graphs, True, 3), 400, 0)
    asked = np.float32([[-1.0], [1.0]] * 20)
    drawn = model.sample(asked, 0)
    right = 0
    for (condition,), graph in zip(asked.tolist(), drawn, strict=True):
        labels, edges = kinds[condition]
        found = {(graph.labels[i], graph.labels[j]) for i, j in np.argwhere(graph.adjacency)}
        same = found == {(labels[a], labels[b]) for a, b in edges} and graph.adjacency.sum() == len(edges)
        right += same and sorted(graph.labels.tolist()) == labels
    assert right >= 36
    again = model.sample(asked, 0)
    assert all(np.array_equal(a.adjacency, b.adjacency) for a, b in zip(drawn, again, strict=True))


def test_what_the_bound_promises_to_all_graphs_of_at_most_two_nodes_is_at_most_certainty() -> None:
    none = np.zeros(0, np.float32)
    graphs = [Graph(np.array([i]), np.zeros((1, 1), bool), none) for i in range(2)]
    for labels in itertools.product(range(2), repeat=2):
        for forward, backward in itertools.product((False, True), repeat=2):
            graphs.append(Graph(np.array(labels), np.array([[False, forward], [backward, False]]), none))
    model = OursUnnamed(CPU)
    model.fit(set_of(graphs, True, 2), 60, 0)
    promised = sum(math.exp(-model.bound_nats([g] * 20)) for g in graphs)
    assert 0.5 < promised < 1.03


def test_a_graph_with_more_nodes_than_any_in_training_has_no_bound() -> None:
    ring = partial(shuffled, [0] * 4, [(0, 1), (1, 2), (2, 3), (3, 0)], 0.0)
    model = OursUnnamed(CPU)
    model.fit(set_of([ring(i) for i in range(4)], True, 1), 3, 0)
    large = Graph(np.zeros(40, np.int64), np.zeros((40, 40), bool), np.float32([0.0]))
    assert math.isfinite(model.bound_nats([ring(9)])) and math.isinf(model.bound_nats([large]))


def test_the_held_out_graphs_choose_what_is_too_rare_to_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = partial(shuffled, [0] * 5, [(i, (i + d) % 5) for i in range(5) for d in (1, 4)], 0.0)
    data = set_of([ring(i) for i in range(8)], False, 1)
    model = OursUnnamed(CPU)
    model.fit(data, 30, 0)
    assert model.least == 0.0 and not hasattr(model, "chosen")  # a look takes a second, a turn 5 nodes x 9
    model.fit(data, 400, 0)
    assert model.least in LEAST and [float(k) for k in model.chosen["least_scores"]] == list(LEAST)

    def grown(conditions: np.ndarray, least: np.ndarray, place: np.ndarray, seed: int) -> list[Graph]:
        star = shuffled([0] * 5, [(0, i) for i in range(1, 5)] + [(i, 0) for i in range(1, 5)], 0.0, 0)
        return [ring(i) if abs(value - LEAST[2]) < 1e-3 else star for i, value in zip(place, least, strict=True)]

    monkeypatch.setattr(model, "_grow", grown)
    model._choose(data, graph_metrics.Likeness(data), 0.0, 0)
    assert model.least == model.chosen["least"] == LEAST[2]
    assert model.chosen["least_scores"][f"{LEAST[2]:g}"] == 0.0 and model.chosen["least_scores"]["0"] > 0.0


def test_parts_drawn_at_once_in_threads_are_those_drawn_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = partial(shuffled, [0] * 5, [(i, (i + d) % 5) for i in range(5) for d in (1, 4)], 0.0)
    model = OursUnnamed(CPU)
    model.fit(set_of([ring(i) for i in range(4)], False, 1), 10, 0)
    threads, asked = torch.get_num_threads(), np.zeros((7, 1), np.float32)
    alone = model.sample(asked, 3)
    monkeypatch.setattr(model, "_workers", lambda: 3)
    beside = model.sample(asked, 3)
    assert all(np.array_equal(a.adjacency, b.adjacency) for a, b in zip(alone, beside, strict=True))
    assert torch.get_num_threads() == threads


def test_drawn_graphs_that_lack_what_all_training_graphs_have_are_unlike_them() -> None:
    none = np.zeros(0, np.float32)
    path, pair = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    path[range(3), range(1, 4)] = True
    pair[0, 1] = pair[2, 3] = True  # two parts
    graphs = [Graph(np.zeros(4, np.int64), a | a.T, none) for a in (path, pair)]
    judge = graph_metrics.Likeness(set_of([graphs[0]] * 4, False, 1))
    right, wrong = (judge.score([judge.describe(graph)] * 3) for graph in graphs)
    assert right == pytest.approx(0.0, abs=1e-6) and 1.0 < wrong < 3.0
    assert {has.__name__ for has in judge.properties} == {"connected", "planar"}
