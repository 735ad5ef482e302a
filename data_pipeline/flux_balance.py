"""Find the ATP that an organism makes from given nutrients, and the reactions that it uses for it: flux balance.

Sources of the models: reaction_tables.py.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import sparse
from scipy.optimize import linprog

from data_pipeline.reaction_tables import SCHEMA, Organism, cache_dir, load_tables, write_atomically
from data_pipeline.variables import ORGANICS

SALTS = frozenset(
    f"{m}_e" for m in "h h2o pi nh4 na1 k cl mg2 ca2 fe2 mn2 zn2 cu2 cobalt2 ni2 mobd hco3 tungs sel slnt".split()
)  # every water has them; none of them feeds anything on its own (tested: 0 ATP)
ORGANIC_IDS = dict(zip(ORGANICS, "glc__D rib__D glyc etoh meoh ac for lac__L pyr succ gly ala__L".split(), strict=True))
DONORS = frozenset(f"{m}_e" for m in (*ORGANIC_IDS.values(), "h2", "co", "ch4"))
UPTAKE_LIMIT = 10.0  # mmol per gram and hour, of an electron donor
NO_LIMIT = 1000.0
ACTIVE_FLUX = 1e-5
FLUX_COST = 1e-4  # ATP a unit of flux
MIN_ATP = 1e-3  # mmol per gram and hour
_ENERGY = (("atp_c", -1.0), ("h2o_c", -1.0), ("adp_c", 1.0), ("pi_c", 1.0), ("h_c", 1.0))


@dataclass(frozen=True)
class ActiveNetwork:
    """The reactions that an organism uses to make the most ATP with the least total flux."""

    organism: str
    nutrients: tuple[str, ...]
    atp: float  # mmol per gram and hour
    fluxes: dict[str, float]  # reaction -> flux, where it is not 0
    secreted: tuple[str, ...]  # exchange metabolites


@functools.cache
def load_organisms() -> dict[str, Organism]:
    """Return the organisms that make no ATP from salts alone (a model that does has a hole in its energy balance)."""
    return {name: organism for name, organism in load_tables()[0].items() if _solve_cached(name, ()) is None}


def usable(organism: str, offered: Iterable[str]) -> tuple[str, ...]:
    """Return those nutrients that this organism's model knows: environments that differ in others are one to it."""
    return tuple(sorted(set(offered) & _exchanged(organism)))


@functools.cache
def _exchanged(organism: str) -> frozenset[str]:
    return frozenset(m for m in load_tables()[0][organism].metabolites if m.endswith("_e"))


def solve(organism: str, nutrients: tuple[str, ...]) -> ActiveNetwork | None:
    """Return the network that makes the most ATP from these nutrients and the salts; None when there is no way.

    Parsimonious flux balance (Lewis et al. 2010): among the ways to the most ATP, the one with the least total flux. At
    most 10 mmol/g/h of each electron donor, acceptors and salts without limit. HiGHS; kept in the cache folder.
    """
    found = _solve_cached(organism, usable(organism, nutrients))
    return None if found is None else replace(found, nutrients=tuple(nutrients))


def _solve_cached(organism: str, known: tuple[str, ...]) -> ActiveNetwork | None:
    key = hashlib.blake2b(json.dumps([SCHEMA, _rules(), organism, known]).encode(), digest_size=12).hexdigest()
    path = cache_dir() / "solved" / f"{key}.json"
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError):  # not solved yet, or torn by a full disk
        found = _solve(organism, known)
        table = None if found is None else {"atp": found.atp, "fluxes": found.fluxes, "secreted": found.secreted}
        write_atomically(path, json.dumps(table).encode())
    if table is None:
        return None
    return ActiveNetwork(organism, known, table["atp"], table["fluxes"], tuple(table["secreted"]))


@functools.cache
def _rules() -> list[Any]:
    return [sorted(SALTS), sorted(DONORS), UPTAKE_LIMIT, NO_LIMIT, ACTIVE_FLUX, MIN_ATP, FLUX_COST]


@dataclass(frozen=True)
class Program:
    """The linear program of one organism: reactions, one exchange a `_e` metabolite, ATP hydrolysis last."""

    matrix: sparse.csc_matrix
    lower: np.ndarray
    upper: np.ndarray
    exchanged: tuple[str, ...]
    reactions: tuple[str, ...]


@functools.cache
def program_of(name: str) -> Program:
    """Return the program of an organism; nothing may be taken up until `limits_of` opens it."""
    organism = load_tables()[0][name]
    row = {m: i for i, m in enumerate(organism.metabolites)}
    exchanged = tuple(m for m in organism.metabolites if m.endswith("_e"))
    size, number = len(row), len(exchanged)
    exchange = sparse.csc_matrix((-np.ones(number), ([row[m] for m in exchanged], range(number))), shape=(size, number))
    rows, values = [row[m] for m, _ in _ENERGY], [n for _, n in _ENERGY]
    energy = sparse.csc_matrix((values, (rows, [0] * len(rows))), shape=(size, 1))
    return Program(
        sparse.hstack([organism.stoichiometry, exchange, energy]).tocsc(),
        np.concatenate([organism.lower, np.zeros(number), [0.0]]),
        np.concatenate([organism.upper, np.full(number, NO_LIMIT), [NO_LIMIT]]),
        exchanged,
        organism.reactions,
    )


def limits_of(program: Program, known: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and highest flux of each column when these nutrients and the salts may be taken up."""
    offered = SALTS | set(known)
    lower = program.lower.copy()
    for place, m in enumerate(program.exchanged, len(program.reactions)):
        if m in offered:
            lower[place] = -uptake_limit(m)
    return lower, program.upper.copy()


def uptake_limit(metabolite: str) -> float:
    """Return how much of a nutrient may be taken up."""
    return UPTAKE_LIMIT if metabolite in DONORS else NO_LIMIT


def _solve(organism: str, known: tuple[str, ...]) -> ActiveNetwork | None:
    """Most ATP and least total flux in one program: a unit of flux costs FLUX_COST, which no detour repays."""
    program = program_of(organism)
    lower, upper = limits_of(program, known)
    open_, rows = _without_dead_ends(program.matrix, lower, upper)
    lower, upper, matrix = lower[open_], upper[open_], program.matrix[rows][:, open_]
    forward, backward = np.flatnonzero(upper > 0), np.flatnonzero(lower < 0)  # |v| = v+ + v-, only where it may run
    cost = np.full(len(forward) + len(backward), FLUX_COST)
    if len(open_) == 0 or open_[-1] != program.matrix.shape[1] - 1:
        return None  # nothing can make ATP
    cost[len(forward) - 1] = -1.0
    found = linprog(
        cost,
        A_eq=sparse.hstack([matrix[:, forward], -matrix[:, backward]]).tocsc(),
        b_eq=np.zeros(len(rows)),
        bounds=np.stack([np.zeros(len(cost)), np.concatenate([upper[forward], -lower[backward]])], 1),
        method="highs",
    )
    if found.status != 0 or found.x[len(forward) - 1] < MIN_ATP:
        return None
    flux = np.zeros(program.matrix.shape[1])
    flux[open_[forward]] += found.x[: len(forward)]
    flux[open_[backward]] -= found.x[len(forward) :]
    first = len(program.reactions)
    return ActiveNetwork(
        organism,
        known,
        float(flux[-1]),
        {r: round(float(v), 6) for r, v in zip(program.reactions, flux[:first], strict=True) if abs(v) > ACTIVE_FLUX},
        tuple(m for m, v in zip(program.exchanged, flux[first:-1], strict=True) if v > ACTIVE_FLUX),
    )


def _without_dead_ends(
    matrix: sparse.csc_matrix, lower: np.ndarray, upper: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns and rows that are left without metabolites that nothing makes or nothing takes (exact)."""
    entries = matrix.tocoo()
    row, column, value = entries.row, entries.col, entries.data
    makes = np.where(value > 0, upper[column] > 0, lower[column] < 0)
    takes = np.where(value > 0, lower[column] < 0, upper[column] > 0)
    alive = (upper > 0) | (lower < 0)
    while True:
        here = alive[column]
        made = np.bincount(row[here & makes], minlength=matrix.shape[0])
        taken = np.bincount(row[here & takes], minlength=matrix.shape[0])
        dead = np.unique(column[here & ((made == 0) | (taken == 0))[row]])
        if len(dead) == 0:
            return np.flatnonzero(alive), np.unique(row[here])
        alive[dead] = False
