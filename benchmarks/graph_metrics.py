"""Compare two collections of graphs: maximum mean discrepancy of what nodes and whole graphs look like.

Kernels are named in every result, because tables of different kernels cannot be compared:
`emd`: exp(-d^2 / 2 sigma^2) with d = sum |cumsum(x - y)| times the width of a bin, of histograms that sum to one;
`gaussian`: d is the Euclidean distance of two vectors; `tv`: d is half the sum of |x - y| (categories have no order).
As published, a discrepancy is the squared one with the pairs of a graph with itself (a V-statistic).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist

from benchmarks.graph_sets import Graph, GraphSet

Adjacency = Bool[np.ndarray, "N N"]
MANY_LABELS = 64  # from here on pairs of labels are too many to be counted as a vector
POTENTIAL = 0.25  # of the magnetic Laplacian: an edge turns the phase by a quarter, an edge both ways by nothing


class Statistic(NamedTuple):
    """What is compared, and with which kernel."""

    describe: Callable[[Graph], Float[np.ndarray, " K"]]
    kernel: str
    sigma: float
    bin_width: float = 1.0  # in the unit of the quantity; sigma has the same unit


# --- kernels ----------------------------------------------------------------------------------------------------------
def distances(
    a: Float[np.ndarray, "n K"], b: Float[np.ndarray, "m K"], kernel: str, bin_width: float
) -> Float[np.ndarray, "n m"]:
    """Return the distance of each row of a to each row of b that a kernel is made of."""
    if kernel == "emd":
        return bin_width * cdist(np.cumsum(a, 1), np.cumsum(b, 1), "cityblock")
    return cdist(a, b, "euclidean") if kernel == "gaussian" else cdist(a, b, "cityblock") / 2


def squared_mmd(
    a: Sequence[Float[np.ndarray, " K"]],
    b: Sequence[Float[np.ndarray, " L"]],
    statistic: Statistic,
    weights: tuple[Float[np.ndarray, " n"], Float[np.ndarray, " m"]] | None = None,
) -> float:
    """Return the squared maximum mean discrepancy of two collections of vectors; shorter ones end in zeros.

    Args:
        weights: Of each graph in its collection, each summing to 1; equal without.

    Source:
        Gretton et al. 2012, the biased statistic; kernels of You et al. 2018 (GraphRNN) and Liao et al. 2019 (GRAN).
    """
    length = max(len(v) for v in (*a, *b))
    x, y = (np.stack([np.pad(v, (0, length - len(v))) for v in vectors]) for vectors in (a, b))
    wx, wy = weights or (np.full(len(x), 1.0 / len(x)), np.full(len(y), 1.0 / len(y)))

    def mean(left: np.ndarray, u: np.ndarray, right: np.ndarray, v: np.ndarray) -> float:
        d = distances(left, right, statistic.kernel, statistic.bin_width)
        return float(u @ np.exp(-(d**2) / (2 * statistic.sigma**2)) @ v)

    return max(mean(x, wx, x, wx) + mean(y, wy, y, wy) - 2 * mean(x, wx, y, wy), 0.0)


# --- what graphs look like --------------------------------------------------------------------------------------------
def out_degrees(adjacency: Adjacency) -> Float[np.ndarray, " K"]:
    """Return the share of nodes with 0, 1, 2, ... edges that leave them (the degree of an undirected graph)."""
    return _share(np.bincount(adjacency.sum(1)))


def in_degrees(adjacency: Adjacency) -> Float[np.ndarray, " K"]:
    """Return the share of nodes with 0, 1, 2, ... edges that reach them."""
    return out_degrees(adjacency.T)


def clustering(adjacency: Adjacency) -> Float[np.ndarray, " 100"]:
    """Return the share of nodes in each hundredth of the clustering coefficient, directed as well as undirected.

    Source:
        Fagiolo 2007: triangles in all directions over those that the degrees allow; that of Watts and Strogatz where
        every edge goes both ways.
    """
    a = adjacency.astype(np.float64)
    both = a + a.T
    triangles = np.diag(both @ both @ both) / 2
    degree = both.sum(1)
    possible = degree * (degree - 1) - 2 * (a * a.T).sum(1)
    coefficient = np.divide(triangles, possible, out=np.zeros(len(a)), where=possible > 0)
    return _share(np.histogram(np.clip(coefficient, 0.0, 1.0), bins=100, range=(0.0, 1.0))[0])


def spectrum(adjacency: Adjacency) -> Float[np.ndarray, " 200"]:
    """Return the share of eigenvalues of the normalised magnetic Laplacian in 200 bins from 0 to 2.

    Source:
        Zhang et al. 2021 (MagNet) with potential 1/4; the normalised Laplacian where every edge goes both ways.
    """
    a = adjacency.astype(np.float64)
    symmetric = np.maximum(a, a.T)
    degree = symmetric.sum(1)
    scale = np.divide(1.0, np.sqrt(degree), out=np.zeros(len(a)), where=degree > 0)
    phase = np.exp(2j * np.pi * POTENTIAL * (a - a.T))
    values = np.linalg.eigvalsh(np.diag((degree > 0).astype(float)) - scale[:, None] * symmetric * phase * scale)
    # Rounded, so that an eigenvalue on the border of two bins (1 is common) does not move with the order of nodes.
    return _share(np.histogram(np.clip(np.round(values, 6), 0.0, 2.0), bins=200, range=(0.0, 2.0))[0])


def largest_part(adjacency: Adjacency) -> Float[np.ndarray, " 100"]:
    """Return in which hundredth the share of nodes in the largest weakly connected part lies; 100 means connected."""
    size = np.bincount(connected_components(adjacency, directed=True, connection="weak")[1]).max() / len(adjacency)
    return _share(np.histogram(size, bins=100, range=(0.0, 1.0))[0])


def mean_orbits(adjacency: Adjacency) -> Float[np.ndarray, " 15"]:
    """Return how often a node lies in each orbit of the graphlets of 2 to 4 nodes, on average; undirected."""
    return orbits(adjacency | adjacency.T).mean(0)


def orbits(adjacency: Adjacency) -> Float[np.ndarray, "N 15"]:
    """Count the induced connected graphs of 2 to 4 nodes that each node lies in, by its place there.

    Columns in the usual order: edge; end and middle of a path of three, triangle; end and middle of a path of four;
    leaf and centre of a star; square; tail, far corner and near corner of a triangle with a tail; the two places in a
    square with a diagonal; complete graph of four.

    Counts with other edges between the nodes allowed follow from degrees and common neighbours; what each larger graph
    holds of each smaller one is then subtracted, largest first.

    Source:
        Orbits of Przulj 2007; the way of Hocevar & Demsar 2014, with all equations for graphs of this size.
    """
    a = adjacency.astype(np.float64)
    d = a.sum(1)
    common = a @ a
    shared = common * a  # triangles on each edge
    t = shared.sum(1) / 2
    complete = np.array([_triangles(a[np.ix_(row, row)]) for row in adjacency])
    pairs = common - np.diag(d)  # common neighbours of two different nodes
    o14 = complete
    o13 = (shared * (shared - 1)).sum(1) / 2 - 3 * o14
    o12 = np.einsum("ij,ij->i", a @ (a * (shared - 1)), a) / 2 - 3 * o14
    o11 = t * (d - 2) - 2 * o13 - 3 * o14
    o10 = shared @ (d - 2) - 2 * o12 - 2 * o13 - 6 * o14
    o9 = a @ t - shared.sum(1) - 2 * o12 - 3 * o14
    o8 = (pairs * (pairs - 1)).sum(1) / 2 - o12 - o13 - 3 * o14
    o7 = d * (d - 1) * (d - 2) / 6 - o11 - o13 - o14
    o6 = a @ ((d - 1) * (d - 2) / 2) - o9 - o10 - 2 * o12 - o13 - 3 * o14
    middles = (d - 1) * (a @ (d - 1)) - shared.sum(1)
    o5 = middles - 2 * o8 - o10 - 2 * o11 - 2 * o12 - 4 * o13 - 6 * o14
    ends = a @ (a @ (d - 1)) - d * (d - 1) - 2 * t
    o4 = ends - 2 * o8 - 2 * o9 - o10 - 4 * o12 - 2 * o13 - 6 * o14
    return np.stack(
        [d, a @ (d - 1) - 2 * t, d * (d - 1) / 2 - t, t, o4, o5, o6, o7, o8, o9, o10, o11, o12, o13, o14], 1
    )


def _triangles(a: Float[np.ndarray, "n n"]) -> float:
    return float(np.einsum("ij,ji->", a @ a, a)) / 6


def _share(numbers: np.ndarray) -> np.ndarray:
    return numbers / numbers.sum()


# --- sets of statistics -----------------------------------------------------------------------------------------------
def _of_edges(describe: Callable[[Adjacency], np.ndarray]) -> Callable[[Graph], np.ndarray]:
    """Return the same of a graph; one without nodes looks like a single node."""
    return lambda graph: describe(graph.adjacency if len(graph.labels) else np.zeros((1, 1), bool))


DIRECTED = {
    "in_degree": Statistic(_of_edges(in_degrees), "emd", 1.0),
    "out_degree": Statistic(_of_edges(out_degrees), "emd", 1.0),
    "clustering": Statistic(_of_edges(clustering), "emd", 0.1, 0.01),
    "spectrum": Statistic(_of_edges(spectrum), "emd", 0.1, 0.01),
    "connected": Statistic(_of_edges(largest_part), "emd", 0.1, 0.01),
}
UNDIRECTED = {  # of GRAN's table, with its sigmas
    "degree": Statistic(_of_edges(out_degrees), "emd", 1.0),
    "clustering": Statistic(_of_edges(clustering), "emd", 0.1, 0.01),
    "orbit": Statistic(_of_edges(mean_orbits), "gaussian", 30.0),
}


def of_labels(labels: int) -> dict[str, Statistic]:
    """Return what is compared of graphs with this many different labels, beside their edges; nothing for one label."""

    def nodes(graph: Graph) -> np.ndarray:
        return np.bincount(graph.labels, minlength=labels) / max(len(graph.labels), 1)

    def edges(graph: Graph) -> np.ndarray:
        source, target = np.nonzero(graph.adjacency)
        pairs = graph.labels[source] * labels + graph.labels[target]
        return np.bincount(pairs, minlength=labels**2) / max(len(pairs), 1)

    found = {"labels": Statistic(nodes, "tv", 0.5)} if labels > 1 else {}
    return found | ({"label_pairs": Statistic(edges, "tv", 0.5)} if 1 < labels <= MANY_LABELS else {})


def connected(adjacency: Adjacency) -> bool:
    """Is every node reached from every other when edges may be walked both ways?"""
    return bool(connected_components(adjacency, directed=True, connection="weak")[0] == 1)


def acyclic(adjacency: Adjacency) -> bool:
    """Is there no directed cycle?"""
    return bool(connected_components(adjacency, directed=True, connection="strong")[0] == len(adjacency))


def planar(adjacency: Adjacency) -> bool:
    """Can the graph be drawn without crossing edges?"""
    import networkx as nx

    return bool(nx.check_planarity(nx.from_numpy_array(adjacency | adjacency.T))[0])


PROPERTIES = (connected, acyclic, planar)


class Described(NamedTuple):
    """A graph as Likeness sees it."""

    wrong: bool  # lacks a property that all training graphs have
    vectors: tuple[np.ndarray, ...]  # one a statistic


class Likeness:
    """Say how unlike the graphs of a set drawn ones are: 0 is alike, 1 or more has nothing in common.

    The mean squared discrepancy to the held-out graphs (the training graphs where there are none) plus the share of
    graphs that lack one of the PROPERTIES that all training graphs have. The test graphs are not read.
    """

    def __init__(self, data: GraphSet) -> None:
        self.properties = [has for has in PROPERTIES if all(has(g.adjacency) for g in data.train)]
        self.statistics = {**(DIRECTED if data.directed else UNDIRECTED), **of_labels(len(data.vocabulary))}
        self.real = [self.describe(g) for g in (data.held_out or data.train)]

    def describe(self, graph: Graph) -> Described:
        """Return what the score of a collection is made of; this takes the time."""
        wrong = not all(has(graph.adjacency) for has in self.properties)
        return Described(wrong, tuple(s.describe(graph) for s in self.statistics.values()))

    def score(self, drawn: Sequence[Described]) -> float:
        """Return how unlike these graphs are."""
        far = [
            squared_mmd([d.vectors[i] for d in drawn], [d.vectors[i] for d in self.real], statistic)
            for i, statistic in enumerate(self.statistics.values())
        ]
        return float(np.mean([d.wrong for d in drawn]) + np.mean(far))


# --- equal graphs -----------------------------------------------------------------------------------------------------
def named_key(graph: Graph) -> Hashable:
    """Return what two graphs share when they join the same labels; for graphs in which a label occurs once."""
    source, target = np.nonzero(graph.adjacency)
    return frozenset(zip(graph.labels[source].tolist(), graph.labels[target].tolist(), strict=True))


def shape_key(graph: Graph) -> Hashable:
    """Return what isomorphic labelled graphs share: the colours of refinement (Weisfeiler & Leman), in and out apart.

    Graphs that differ share it only where every node looks alike from every other (regular graphs).
    """
    colours = [str(label) for label in graph.labels.tolist()]
    out, into = ([np.flatnonzero(row) for row in a] for a in (graph.adjacency, graph.adjacency.T))
    for _ in range(max(len(colours).bit_length() + 1, 4)):
        colours = [
            _digest(colours[i], *(",".join(sorted(colours[j] for j in side[i])) for side in (out, into)))
            for i in range(len(colours))
        ]
    return len(colours), int(graph.adjacency.sum()), _digest(*sorted(colours))


def _digest(*words: str) -> str:
    return hashlib.blake2b("|".join(words).encode(), digest_size=12).hexdigest()
