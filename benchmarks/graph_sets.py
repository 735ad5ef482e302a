"""What the generation benchmark trains on: sets of graphs with labels and conditions, and who learns to draw more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int


class Graph(NamedTuple):
    """One graph of N nodes; an undirected one is symmetric. No node is joined to itself."""

    labels: Int[np.ndarray, " N"]  # rows of GraphSet.vocabulary; all 0 where nodes have no names
    adjacency: Bool[np.ndarray, "N N"]  # [source, target]
    condition: Float[np.ndarray, " V"]  # physical units, variables.ENVIRONMENT; empty in sets without conditions


@dataclass(frozen=True, kw_only=True)
class GraphSet:
    """Graphs of one kind in three parts; nothing of `held_out` and `test` is seen in training."""

    name: str
    directed: bool
    vocabulary: tuple[str, ...]  # one entry where nodes have no names
    named: bool  # every label occurs at most once in a graph (metabolites); else nodes are exchangeable
    allowed: Bool[np.ndarray, "M M"] | None  # label pairs (source, target) that a known reaction joins; None: any
    train: tuple[Graph, ...]
    held_out: tuple[Graph, ...]
    test: tuple[Graph, ...]


class Generator(Protocol):
    """A model that learns a distribution of graphs within a time budget. Built with `Model(device)`."""

    def fit(self, data: GraphSet, seconds: float, seed: int) -> None:
        """Learn from `data.train` (held_out may choose when to stop) until the seconds are over."""

    def sample(self, conditions: Float[np.ndarray, "n V"], seed: int) -> list[Graph]:
        """Draw one graph for each row; V is 0 in sets without conditions. Equal seeds give equal graphs."""

    def bound_nats(self, graphs: Sequence[Graph]) -> float:
        """Return an upper bound of the mean negative log-likelihood a graph in nats; NaN where the model has none."""
