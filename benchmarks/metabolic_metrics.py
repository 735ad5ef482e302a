"""Judge generated metabolic networks by flux balance and by their likeness to the true ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.graph_sets import Graph, GraphSet
from benchmarks.peers.nearest_neighbour import NearestNeighbour
from data_pipeline import habitat
from data_pipeline.feasibility import Question
from trainers import oracle
from trainers.records import Edges

DRAWS = 16  # networks of every model and baseline for each environment


def edges_of(graph: Graph, vocabulary: Sequence[str]) -> Edges:
    """Return the edges by name; when a metabolite occurs twice, the edges of both."""
    names = [vocabulary[i] for i in graph.labels]
    return frozenset((names[s], names[t]) for s, t in np.argwhere(graph.adjacency).tolist())


def edge_f1(drawn: Sequence[Edges], true: Sequence[Edges]) -> float:
    """Return the harmonic mean of the best Jaccard index of each drawn network to a true one, and the reverse.

    Of one environment; both directions are averaged over networks before the harmonic mean.
    """
    table = np.array([[jaccard(d, t) for t in true] for d in drawn])
    precision, recall = float(table.max(1).mean()), float(table.max(0).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def jaccard(a: Edges, b: Edges) -> float:
    """Return the share of the edges of both that both have; 0 for two networks without edges."""
    return len(a & b) / len(a | b) if a or b else 0.0


def share_feasible(questions: Sequence[Question], organisms: Sequence[str] = ()) -> float:
    """Return the share of networks with which one organism makes ATP from the nutrients that are given.

    Args:
        questions: Equal ones are solved once; in this process, since the rows of a benchmark run beside each other.
        organisms: Those whose models may make it; all without.
    """
    if organisms:
        questions = [question._replace(organisms=frozenset(organisms)) for question in questions]
    return float(np.mean(oracle.atp_feasible(questions, processes=1)))


def statistics(data: GraphSet) -> dict[str, float]:
    """Return how alike the networks of a set are; similarities are Jaccard indices of edges, means over the test.

    `by_chance`: of any training network to any test network; `of_nearest`: of the networks of the nearest training
    environment to those of a test environment; `seen`: share of test networks that are a training network as well.
    """
    train, test = ([edges_of(g, data.vocabulary) for g in part] for part in (data.train, data.test))
    conditions = np.stack([g.condition for g in data.test])
    nearest = NearestNeighbour(torch.device("cpu"))
    nearest.fit(data, 0.0, 0)
    answers = [edges_of(nearest.sample(c[None], 0)[0], data.vocabulary) for c in conditions]
    return {
        "environments": len({g.condition.tobytes() for part in (data.train, data.held_out, data.test) for g in part}),
        "distinct_train": len(set(train)),
        "distinct_test": len(set(test)),
        "seen": float(np.mean([t in set(train) for t in test])),
        "by_chance": float(np.mean([jaccard(a, b) for a in train[::7] for b in test])),
        "of_nearest": float(np.mean([jaccard(a, b) for a, b in zip(answers, test, strict=True)])),
    }


def question_of(graph: Graph, edges: Edges) -> Question:
    """Return the question whether a drawn network feeds somebody in the environment that it was drawn for."""
    return Question(edges, habitat.nutrients(graph.condition))
