"""Judge metabolic networks against the reaction database and by flux balance, many at a time."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

import numpy as np

from data_pipeline import feasibility, habitat, reaction_db
from data_pipeline.feasibility import Question
from trainers.records import Edges

T = TypeVar("T")
POOL_FROM = 1000  # questions of 5-10 ms; to start processes takes as long
CHUNK = 64
ATP_DIGITS = 2  # mmol per gram and hour that are alike to an organism


def atp_feasible(questions: Sequence[Question], processes: int | None = None) -> list[bool]:
    """Return for each network whether one known organism, restricted to its edges, makes ATP in that environment."""
    return _answers(feasibility.feasible, questions, processes)


def most_atp(questions: Sequence[Question], processes: int | None = None) -> list[dict[str, float]]:
    """Return for each network the known organisms that make ATP with it, and how much at most (mmol/g/h).

    More work than `atp_feasible`.
    """
    return _answers(feasibility.most_atp, questions, processes)


def preferences(
    pools: Sequence[Sequence[Edges]], environments: Sequence[np.ndarray], processes: int | None = None
) -> list[list[list[int]]]:
    """Return what the organisms of each environment would choose of a pool of networks.

    For each known organism that stands the temperature, pH and oxygen and makes ATP with some network, in order of
    name: the rows of the pool with which it does, most ATP first, of equals the fewest edges first.

    Args:
        pools: Networks that there are to choose from, for each environment.
        environments: In physical units, variables.ENVIRONMENT.
    """
    questions = []
    for pool, environment in zip(pools, environments, strict=True):
        nutrients, living = habitat.nutrients(environment), frozenset(habitat.viable_organisms(environment))
        questions.append([Question(edges, nutrients, living) for edges in pool])
    answers = iter(most_atp([question for asked in questions for question in asked], processes))
    return [_preferences(pool, [next(answers) for _ in pool]) for pool in pools]


def _preferences(pool: Sequence[Edges], makes: Sequence[dict[str, float]]) -> list[list[int]]:
    found = []
    for organism in sorted({name for atp in makes for name in atp}):
        rows = [row for row, atp in enumerate(makes) if organism in atp]
        found.append(sorted(rows, key=lambda row: (-round(makes[row][organism], ATP_DIGITS), len(pool[row]))))
    return found


def in_turn(wishes: Sequence[Sequence[int]], count: int, distinct: bool) -> list[int]:
    """Return at most `count` choices of those who take turns: each its best, or its best that nobody has."""
    if not distinct:
        return [best for best, *_ in itertools.islice(itertools.cycle(wishes), count)]
    taken: dict[int, None] = {}
    left = [iter(own) for own in wishes]
    while left and len(taken) < count:
        own = left.pop(0)
        best = next((row for row in own if row not in taken), None)
        if best is not None:
            taken[best] = None
            left.append(own)
    return list(taken)


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
