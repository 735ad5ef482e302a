"""Judge generated metabolic networks: reaction database, flux balance, scope expansion, likeness to the true ones."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.graph_sets import Graph, GraphSet
from benchmarks.peers.nearest_neighbour import NearestNeighbour
from data_pipeline import feasibility, flux_balance, habitat, metabolic_graph
from data_pipeline.feasibility import Question
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
        questions: Equal ones are solved once.
        organisms: Those whose models may make it; all without.
    """
    distinct = list(dict.fromkeys(questions))
    if organisms:
        answers = [bool(set(organisms) & set(found)) for found in feasibility.runners(distinct)]
    else:
        answers = feasibility.feasible(distinct)
    answer = dict(zip(distinct, answers, strict=True))
    return float(np.mean([answer[question] for question in questions]))


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


# --- scope expansion --------------------------------------------------------------------------------------------------
def scope_coverage(edges: Edges, nutrients: Sequence[str]) -> float:
    """Return the share of a network's metabolites that its own reactions make from the nutrients.

    A reaction is one of the database all of whose edges the network holds; it runs when all of its substrates are
    there. Cofactors are no nodes and always there. Cycles that need one of their own members to start (the citric acid
    cycle) stay outside, so that real networks do not reach 1.

    Source:
        Handorf et al. 2005.
    """
    nodes = {m for edge in edges for m in edge}
    if not nodes:
        return 0.0
    reactions, of_edge = _reactions()
    possible = [reactions[r] for r in {r for edge in edges for r in of_edge.get(edge, ())} if reactions[r] <= edges]
    scope = nodes & set(nutrients)
    while True:
        made = {p for reaction in possible if all(s in scope for s, _ in reaction) for _, p in reaction} - scope
        if not made:
            return len(scope) / len(nodes)
        scope |= made


@functools.cache
def _reactions() -> tuple[list[Edges], dict[metabolic_graph.Edge, list[int]]]:
    """Return the edges of every reaction of an organism in each direction that it may run in, and where an edge is."""
    found: dict[Edges, None] = {}
    for name, organism in flux_balance.load_organisms().items():
        for edges, low, high in zip(metabolic_graph.reaction_edges(name), organism.lower, organism.upper, strict=True):
            if edges and high > 0:
                found[frozenset(edges)] = None
            if edges and low < 0:
                found[frozenset((p, s) for s, p in edges)] = None
    of_edge = defaultdict(list)
    for number, reaction in enumerate(found):
        for edge in reaction:
            of_edge[edge].append(number)
    return list(found), dict(of_edge)


def question_of(graph: Graph, edges: Edges) -> Question:
    """Return the question whether a drawn network feeds somebody in the environment that it was drawn for."""
    return Question(edges, habitat.nutrients(graph.condition))
