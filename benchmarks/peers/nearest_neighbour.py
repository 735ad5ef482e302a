"""Answer a condition with graphs that were seen in training: what a generator has to beat."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float

from benchmarks.graph_sets import Graph, GraphSet
from data_pipeline.variables import ENVIRONMENT, standardise


class NearestNeighbour:
    """The graphs of the nearest training conditions, nearest first; ties in order. Without conditions, any of them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def fit(self, data: GraphSet, seconds: float, seed: int) -> None:
        """Keep the training graphs."""
        self.train = data.train

    def sample(self, conditions: Float[np.ndarray, "n V"], seed: int) -> list[Graph]:
        """Return for the k-th row of the same condition the k-th nearest graph."""
        if conditions.shape[1] == 0:
            return [self.train[i] for i in _shuffled(len(self.train), len(conditions), seed)]
        table = standardised(np.stack([g.condition for g in self.train]))
        seen: Counter[bytes] = Counter()
        drawn = []
        for condition, place in zip(conditions, standardised(conditions), strict=True):
            order = np.argsort(((table - place) ** 2).sum(1), kind="stable")
            key = condition.tobytes()
            drawn.append(self.train[order[seen[key] % len(order)]]._replace(condition=condition))
            seen[key] += 1
        return drawn

    def bound_nats(self, graphs: Sequence[Graph]) -> float:
        """Return NaN: a graph that was not seen is impossible."""
        return float("nan")


class Real:
    """The true graphs of each condition themselves: what a perfect model would reach in every column."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def fit(self, data: GraphSet, seconds: float, seed: int) -> None:
        """Keep the test, and what is held out for sets without conditions."""
        self.test, self.held_out = data.test, data.held_out

    def sample(self, conditions: Float[np.ndarray, "n V"], seed: int) -> list[Graph]:
        """Return for the k-th row of the same condition its k-th true graph, from the first again after the last."""
        if conditions.shape[1] == 0:
            return [self.held_out[i] for i in _shuffled(len(self.held_out), len(conditions), seed)]
        own: dict[bytes, list[Graph]] = {}
        for graph in self.test:
            own.setdefault(graph.condition.tobytes(), []).append(graph)
        seen: Counter[bytes] = Counter()
        drawn = []
        for key in (condition.tobytes() for condition in conditions):
            drawn.append(own[key][seen[key] % len(own[key])])
            seen[key] += 1
        return drawn

    def bound_nats(self, graphs: Sequence[Graph]) -> float:
        """Return NaN: nobody knows it."""
        return float("nan")


def standardised(conditions: Float[np.ndarray, "n V"]) -> Float[np.ndarray, "n V"]:
    """Return conditions as networks see them; those of other people's graphs are compared as they are."""
    if conditions.shape[1] != len(ENVIRONMENT):
        return conditions
    return standardise(torch.from_numpy(np.asarray(conditions, np.float32)), ENVIRONMENT).numpy()


def _shuffled(size: int, number: int, seed: int) -> list[int]:
    """Return numbers below size, each once before any comes again."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(size) for _ in range(-(-number // size))])[:number].tolist()
