"""Judge metabolic networks against the reaction database and by flux balance, many at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

from data_pipeline import feasibility, reaction_db
from data_pipeline.feasibility import Question
from trainers.records import Edges

T = TypeVar("T")
POOL_FROM = 1000  # questions of 5-10 ms; to start processes takes as long
CHUNK = 64


def atp_feasible(questions: Sequence[Question], processes: int | None = None) -> list[bool]:
    """Return for each network whether one known organism, restricted to its edges, makes ATP in that environment."""
    return _answers(feasibility.feasible, questions, processes)


def most_atp(questions: Sequence[Question], processes: int | None = None) -> list[dict[str, float]]:
    """Return for each network the known organisms that make ATP with it, and how much at most (mmol/g/h).

    More work than `atp_feasible`.
    """
    return _answers(feasibility.most_atp, questions, processes)


def _answers(
    answer: Callable[[Sequence[Question]], list[T]], questions: Sequence[Question], processes: int | None
) -> list[T]:
    """Answer, many questions in several processes; a question that is asked twice is solved once."""
    distinct = list(dict.fromkeys(questions))
    if processes is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        processes = min(cores, 8) if len(distinct) >= POOL_FROM else 1
    if processes == 1:
        found = answer(distinct)
    else:
        chunks = [distinct[first : first + CHUNK] for first in range(0, len(distinct), CHUNK)]
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            found = [each for chunk in pool.map(answer, chunks) for each in chunk]
    answers = dict(zip(distinct, found, strict=True))
    return [answers[question] for question in questions]


def edge_precision(networks: Sequence[Edges]) -> float:
    """Return the share of all edges, of all networks together, that some known reaction makes."""
    database = reaction_db.load_reaction_db()
    edges = [edge for network in networks for edge in network]
    return sum(database.has_edge(*edge) for edge in edges) / len(edges) if edges else float("nan")
