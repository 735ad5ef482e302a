"""The statistics of graphs and the discrepancies of the generation benchmark."""

from __future__ import annotations

from itertools import combinations

import networkx as nx
import numpy as np
import pytest

from benchmarks import graph_metrics
from benchmarks.graph_metrics import DIRECTED, UNDIRECTED, orbits, squared_mmd
from benchmarks.graph_sets import Graph

EMD = DIRECTED["out_degree"]
STATISTICS = {**DIRECTED, **UNDIRECTED}


def adjacency(edges: list[tuple[int, int]], nodes: int, directed: bool = False) -> np.ndarray:
    matrix = np.zeros((nodes, nodes), bool)
    for s, t in edges:
        matrix[s, t] = True
        matrix[t, s] |= not directed
    return matrix


def graph(matrix: np.ndarray, labels: list[int] | None = None) -> Graph:
    return Graph(np.array(labels or [0] * len(matrix)), matrix, np.zeros(0, np.float32))


def complete(nodes: int) -> np.ndarray:
    return ~np.eye(nodes, dtype=bool)


def ring(nodes: int, directed: bool = False) -> np.ndarray:
    return adjacency([(i, (i + 1) % nodes) for i in range(nodes)], nodes, directed)


def star(leaves: int) -> np.ndarray:
    return adjacency([(0, i) for i in range(1, leaves + 1)], leaves + 1)


def random_graph(rng: np.random.Generator, nodes: int, share: float, directed: bool = False) -> np.ndarray:
    matrix = rng.uniform(size=(nodes, nodes)) < share
    np.fill_diagonal(matrix, False)
    return matrix if directed else np.triu(matrix) | np.triu(matrix).T


# --- orbits by hand ---------------------------------------------------------------------------------------------------
def test_each_node_of_the_complete_graph_of_four_lies_in_three_edges_three_triangles_and_one_complete_graph() -> None:
    assert orbits(complete(4)).tolist() == [[3, 0, 0, 3] + [0] * 10 + [1]] * 4


def test_each_node_of_a_ring_of_five_ends_two_paths_of_three_and_is_twice_each_place_of_a_path_of_four() -> None:
    assert orbits(ring(5)).tolist() == [[2, 2, 1, 0, 2, 2] + [0] * 9] * 5


def test_the_centre_of_a_star_of_four_leaves_is_the_centre_of_four_stars_of_three() -> None:
    counted = orbits(star(4))
    assert counted[0].tolist() == [4, 0, 6, 0, 0, 0, 0, 4] + [0] * 7
    assert counted[1].tolist() == [1, 3, 0, 0, 0, 0, 3, 0] + [0] * 7


def test_the_places_in_a_triangle_with_a_tail_and_in_a_square_with_a_diagonal_are_told_apart() -> None:
    tail = orbits(adjacency([(0, 1), (1, 2), (2, 0), (2, 3)], 4))
    assert [row.tolist().index(1, 9) for row in tail] == [10, 10, 11, 9]
    diagonal = orbits(adjacency([(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)], 4))
    assert [row.tolist().index(1, 9) for row in diagonal] == [13, 12, 13, 12]


def slow_orbits(matrix: np.ndarray) -> np.ndarray:
    """Count by looking at every set of four nodes: (edges, degrees in the set) say which graph and place it is."""
    place = {
        (3, (1, 1, 2, 2)): {1: 4, 2: 5},
        (3, (1, 1, 1, 3)): {1: 6, 3: 7},
        (4, (2, 2, 2, 2)): {2: 8},
        (4, (1, 2, 2, 3)): {1: 9, 2: 10, 3: 11},
        (5, (2, 2, 3, 3)): {2: 12, 3: 13},
        (6, (3, 3, 3, 3)): {3: 14},
    }
    counted = np.zeros((len(matrix), 15))
    for four in combinations(range(len(matrix)), 4):
        degrees = matrix[np.ix_(four, four)].sum(1).tolist()
        where = place.get((sum(degrees) // 2, tuple(sorted(degrees))), {})
        for node, degree in zip(four, degrees, strict=True):
            if where:
                counted[node, where[degree]] += 1
    return counted


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_orbits_of_four_nodes_are_those_of_a_count_of_every_four_nodes(share: float) -> None:
    matrix = random_graph(np.random.default_rng(0), 11, share)
    assert orbits(matrix)[:, 4:].tolist() == slow_orbits(matrix)[:, 4:].tolist()


# --- what graphs look like --------------------------------------------------------------------------------------------
def test_half_of_the_possible_triangles_of_a_directed_ring_of_three_are_there() -> None:
    assert np.flatnonzero(graph_metrics.clustering(ring(3, directed=True))).tolist() == [50]
    assert np.flatnonzero(graph_metrics.clustering(complete(3))).tolist() == [99]


@pytest.mark.parametrize("directed", [True, False])
def test_clustering_is_that_of_networkx(directed: bool) -> None:
    matrix = random_graph(np.random.default_rng(1), 20, 0.3, directed)
    theirs = nx.clustering(nx.from_numpy_array(matrix, create_using=nx.DiGraph if directed else nx.Graph))
    histogram = np.histogram(list(theirs.values()), bins=100, range=(0, 1))[0] / 20
    assert graph_metrics.clustering(matrix) == pytest.approx(histogram)


def test_the_spectrum_sees_the_direction_of_a_ring() -> None:
    both, one_way = (np.flatnonzero(graph_metrics.spectrum(ring(3, directed))).tolist() for directed in (False, True))
    assert both == [0, 150]  # 0 and twice 1.5
    assert one_way == [13, 100, 186]  # 1 - cos(90 + 120 k degrees): .134, 1, 1.866


def test_in_degrees_of_a_star_that_points_out_are_one_and_its_centre_has_none() -> None:
    out = adjacency([(0, 1), (0, 2), (0, 3)], 4, directed=True)
    assert graph_metrics.in_degrees(out).tolist() == [0.25, 0.75]
    assert graph_metrics.out_degrees(out).tolist() == [0.75, 0.0, 0.0, 0.25]


def test_two_of_three_nodes_are_the_largest_part() -> None:
    assert np.flatnonzero(graph_metrics.largest_part(adjacency([(0, 1)], 3, directed=True))).tolist() == [66]
    assert not graph_metrics.connected(adjacency([(0, 1)], 3))
    assert graph_metrics.connected(adjacency([(0, 1), (2, 1)], 3, directed=True))


def test_a_directed_ring_has_a_cycle_and_the_complete_graph_of_five_is_not_planar() -> None:
    assert not graph_metrics.acyclic(ring(3, directed=True))
    assert graph_metrics.acyclic(adjacency([(0, 1), (1, 2), (0, 2)], 3, directed=True))
    assert graph_metrics.planar(complete(4)) and not graph_metrics.planar(complete(5))


@pytest.mark.parametrize("name", sorted(STATISTICS))
def test_the_order_of_nodes_changes_nothing(name: str) -> None:
    rng = np.random.default_rng(2)
    for directed in (True, False):
        matrix = random_graph(rng, 17, 0.15, directed)
        order = rng.permutation(17)
        describe = STATISTICS[name].describe
        assert describe(graph(matrix[np.ix_(order, order)])) == pytest.approx(describe(graph(matrix)), abs=1e-12)


def test_labels_and_pairs_of_joined_labels_are_shares() -> None:
    named = graph(adjacency([(0, 1), (2, 1)], 3, directed=True), [0, 1, 1])
    both = graph_metrics.of_labels(2)
    assert both["labels"].describe(named) == pytest.approx([1 / 3, 2 / 3])
    assert both["label_pairs"].describe(named) == pytest.approx([0, 0.5, 0, 0.5])  # 0 to 1, 1 to 1
    assert graph_metrics.of_labels(1) == {} and set(graph_metrics.of_labels(100)) == {"labels"}


# --- discrepancies ----------------------------------------------------------------------------------------------------
def test_moving_all_weight_by_two_bins_is_a_distance_of_two() -> None:
    a, b = np.array([[1.0, 0, 0]]), np.array([[0, 0, 1.0]])
    assert graph_metrics.distances(a, b, "emd", 1.0).item() == 2.0
    assert graph_metrics.distances(a, b, "emd", 0.01).item() == pytest.approx(0.02)
    assert graph_metrics.distances(a, b, "tv", 1.0).item() == 1.0
    assert graph_metrics.distances(a, b, "gaussian", 1.0).item() == pytest.approx(2**0.5)


def test_the_discrepancy_of_two_graphs_is_two_less_twice_their_kernel() -> None:
    found = squared_mmd([np.array([1.0])], [np.array([0.0, 0.0, 1.0])], EMD)  # rings against isolated nodes
    assert found == pytest.approx(2 - 2 * np.exp(-2.0))


def test_equal_collections_have_no_discrepancy_whatever_their_order() -> None:
    graphs = [graph_metrics.out_degrees(random_graph(np.random.default_rng(i), 9, 0.3)) for i in range(6)]
    assert squared_mmd(graphs, graphs[::-1], EMD) == pytest.approx(0.0, abs=1e-12)


def test_a_weight_of_two_counts_as_two_equal_graphs() -> None:
    a, b, c = np.array([1.0]), np.array([0.0, 1.0]), np.array([0.0, 0.0, 1.0])
    weights = (np.array([2, 1]) / 3, np.array([1.0]))
    assert squared_mmd([a, b], [c], EMD, weights) == pytest.approx(squared_mmd([a, a, b], [c], EMD))


def test_more_graphs_of_one_kind_are_near_and_graphs_of_another_kind_are_far() -> None:
    rng = np.random.default_rng(3)
    for statistic in UNDIRECTED.values():
        one, same, other = (
            [statistic.describe(graph(random_graph(rng, 16, share))) for _ in range(60)] for share in (0.3, 0.3, 0.6)
        )
        assert squared_mmd(one, same, statistic) < 0.1 * squared_mmd(one, other, statistic)


# --- equal graphs -----------------------------------------------------------------------------------------------------
def test_isomorphic_graphs_share_a_key_and_a_turned_edge_or_a_changed_label_does_not() -> None:
    rng = np.random.default_rng(4)
    matrix, labels = random_graph(rng, 12, 0.2, directed=True), rng.integers(0, 3, 12)
    order = rng.permutation(12)
    key = graph_metrics.shape_key(Graph(labels, matrix, np.zeros(0)))
    assert graph_metrics.shape_key(Graph(labels[order], matrix[np.ix_(order, order)], np.zeros(0))) == key
    s, t = next((s, t) for s, t in np.argwhere(matrix).tolist() if not matrix[t, s])
    turned = matrix.copy()
    turned[s, t], turned[t, s] = False, True
    assert graph_metrics.shape_key(Graph(labels, turned, np.zeros(0))) != key
    changed = labels.copy()
    changed[0] += 1
    assert graph_metrics.shape_key(Graph(changed, matrix, np.zeros(0))) != key


def test_named_graphs_are_equal_when_they_join_the_same_names() -> None:
    one = graph(adjacency([(0, 1)], 3, directed=True), [5, 7, 9])
    other = graph(adjacency([(1, 0)], 2, directed=True), [7, 5])
    assert graph_metrics.named_key(one) == graph_metrics.named_key(other)


def test_a_path_of_four_differs_from_a_star_of_three() -> None:
    path = graph(adjacency([(0, 1), (1, 2), (2, 3)], 4))
    assert graph_metrics.shape_key(path) != graph_metrics.shape_key(graph(star(3)))
