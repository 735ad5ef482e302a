"""Judge metabolic networks against the reaction database and by flux balance, several at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple, TypeVar

from data_pipeline import feasibility, reaction_db
from trainers.records import Edges

T = TypeVar("T")


class Question(NamedTuple):
    """Does this network make ATP from these nutrients?"""

    edges: Edges
    nutrients: tuple[str, ...]


def _runs(question: Question) -> tuple[str, ...]:
    return tuple(feasibility.organisms_that_run(sorted(question.edges), question.nutrients))


def _feasible(question: Question) -> bool:
    return feasibility.atp_feasible(sorted(question.edges), question.nutrients)


def atp_feasible(questions: Sequence[Question], processes: int | None = None) -> list[bool]:
    """Return for each network whether one known organism, restricted to its edges, makes ATP in that environment."""
    return _answers(_feasible, questions, processes)


def organisms(questions: Sequence[Question], processes: int | None = None) -> list[tuple[str, ...]]:
    """Return for each network every known organism that makes ATP with it; more work than `atp_feasible`."""
    return _answers(_runs, questions, processes)


def _answers(answer: Callable[[Question], T], questions: Sequence[Question], processes: int | None) -> list[T]:
    """Answer in several processes; a question that is asked twice is solved once."""
    distinct = list(dict.fromkeys(questions))
    processes = processes or min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2, 8)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        answers = dict(zip(distinct, pool.map(answer, distinct, chunksize=8), strict=True))
    return [answers[question] for question in questions]


def edge_precision(networks: Sequence[Edges]) -> float:
    """Return the share of all edges, of all networks together, that some known reaction makes."""
    database = reaction_db.load_reaction_db()
    edges = [edge for network in networks for edge in network]
    return sum(database.has_edge(*edge) for edge in edges) / len(edges) if edges else float("nan")
