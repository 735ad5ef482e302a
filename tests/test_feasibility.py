"""Which organisms make ATP when they are restricted to a network's edges."""

from __future__ import annotations

import numpy as np
import pytest
from known_organisms import ECOLI, GEOBACTER, METHANOSARCINA, edges_of
from scipy.optimize import linprog

from data_pipeline import feasibility, flux_balance, metabolic_graph, reaction_db
from data_pipeline.feasibility import Question


def test_real_networks_are_feasible_and_their_edges_known() -> None:
    database = reaction_db.load_reaction_db()
    for organism, nutrients in (
        (ECOLI, ("glc__D_e", "o2_e")),
        (METHANOSARCINA, ("meoh_e",)),
        (GEOBACTER, ("ac_e", "fe3_e")),
    ):
        edges = edges_of(organism, *nutrients)
        assert feasibility.atp_feasible(edges, nutrients)
        assert all(database.has_edge(*edge) for edge in edges)


def test_a_network_is_not_feasible_without_its_food_nor_backwards_nor_empty() -> None:
    edges = edges_of(METHANOSARCINA, "meoh_e")
    assert not feasibility.atp_feasible(edges, ("glc__D_e",))
    assert not feasibility.atp_feasible({(p, s) for s, p in edges}, ("meoh_e",))
    assert not feasibility.atp_feasible(set(), ("glc__D_e", "o2_e"))


def reference(question: Question) -> tuple[str, ...]:
    """Return who makes ATP by one whole linear program for each organism, as FACTS.md describes it."""
    found = []
    for name in flux_balance.load_organisms():
        program = flux_balance.program_of(name)
        lower, upper = flux_balance.limits_of(program, question.nutrients)
        for j, edges in enumerate(metabolic_graph.reaction_edges(name)):
            if edges:
                upper[j] *= all(edge in question.edges for edge in edges)
                lower[j] *= all((p, s) in question.edges for s, p in edges)
        goal = np.zeros(len(lower))
        goal[-1] = -1.0
        rows = np.zeros(program.matrix.shape[0])
        best = linprog(goal, A_eq=program.matrix, b_eq=rows, bounds=np.stack([lower, upper], 1), method="highs")
        if best.status == 0 and -best.fun >= flux_balance.MIN_ATP:
            found.append(name)
    return tuple(found)


def questions() -> list[Question]:
    """Return real networks, and the same with edges lost, turned round, added, or on other nutrients."""
    random = np.random.default_rng(0)
    asked = []
    for organism, nutrients in (
        (ECOLI, ("glc__D_e", "o2_e")),
        (METHANOSARCINA, ("meoh_e",)),
        (GEOBACTER, ("ac_e", "fe3_e")),
    ):
        edges = sorted(edges_of(organism, *nutrients))
        extra = sorted(reaction_db.load_reaction_db().kinds)
        some = set(random.permutation(len(edges))[: max(1, len(edges) // 10)].tolist())
        asked += [
            Question(frozenset(edges), nutrients),
            Question(frozenset(e for i, e in enumerate(edges) if i not in some), nutrients),
            Question(frozenset(e[::-1] if i in some else e for i, e in enumerate(edges)), nutrients),
            Question(frozenset([*edges, *(extra[i] for i in random.integers(len(extra), size=40))]), nutrients),
            Question(frozenset(edges), ("glc__D_e", "no3_e", "h2_e", "co2_e")),
        ]
    return asked


def test_many_networks_at_once_are_judged_as_each_organism_and_network_alone() -> None:
    asked = questions()
    expected = [reference(question) for question in asked]
    assert [tuple(each) for each in feasibility.most_atp(asked)] == expected
    assert feasibility.feasible(asked) == [bool(names) for names in expected]
    assert 0 < sum(bool(names) for names in expected) < len(asked)


def test_a_program_that_fails_among_others_is_solved_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = questions()[:5]
    expected = feasibility.most_atp(asked)
    sizes = []

    def fails_when_large(goal: np.ndarray, **options: object) -> object:
        found = linprog(goal, **options)
        sizes.append(int((goal != 0).sum()))
        if sizes[-1] > 1:
            found.status = 4
        return found

    monkeypatch.setattr(feasibility, "linprog", fails_when_large)
    assert feasibility.most_atp(asked) == expected
    assert max(sizes) > 1 and sizes.count(1) == sum(size for size in sizes if size > 1)
