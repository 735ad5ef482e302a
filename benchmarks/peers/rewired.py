"""Rewire training graphs so that every node keeps its degrees: what is right about a graph beyond its degrees?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float

from benchmarks.graph_sets import Graph, GraphSet
from benchmarks.peers.nearest_neighbour import NearestNeighbour

TRIES = 10  # a pair of edges, each


class Rewired:
    """The graphs of NearestNeighbour with the targets of their edges exchanged at random."""

    def __init__(self, device: torch.device) -> None:
        self.nearest = NearestNeighbour(device)

    def fit(self, data: GraphSet, seconds: float, seed: int) -> None:
        """Keep the training graphs."""
        self.directed = data.directed
        self.nearest.fit(data, seconds, seed)

    def sample(self, conditions: Float[np.ndarray, "n V"], seed: int) -> list[Graph]:
        """Return one rewired graph for each row."""
        rng = np.random.default_rng(seed)
        return [
            g._replace(adjacency=rewire(g.adjacency, self.directed, rng)) for g in self.nearest.sample(conditions, seed)
        ]

    def bound_nats(self, graphs: Sequence[Graph]) -> float:
        """Return NaN: it has no likelihood."""
        return float("nan")


def rewire(adjacency: Bool[np.ndarray, "N N"], directed: bool, rng: np.random.Generator) -> Bool[np.ndarray, "N N"]:
    """Exchange the targets of two edges many times; an exchange that would double an edge or join a node to itself
    does not happen. In-degrees and out-degrees stay; an undirected graph stays undirected.

    Source:
        Maslov & Sneppen 2002.
    """
    new = adjacency.copy()
    edges = np.argwhere(new if directed else np.triu(new))
    number = len(edges)
    for first, second, turn in rng.integers((max(number, 1), max(number, 1), 2), size=(TRIES * number, 3)):
        (a, b), (c, d) = edges[first].tolist(), edges[second].tolist()
        if turn and not directed:
            c, d = d, c
        if len({a, b, c, d}) < 4 or new[a, d] or new[c, b]:
            continue
        for ends, there in (((a, b), False), ((c, d), False), ((a, d), True), ((c, b), True)):
            new[ends] = there
            if not directed:
                new[ends[::-1]] = there
        edges[first], edges[second] = (a, d), (c, b)
    return new
