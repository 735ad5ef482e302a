"""Decide what lives in an environment: nutrients, organisms, flux balance and the active network as a graph.

Sources of the models: reaction_tables.py. Cofactors and small inorganic molecules are no nodes of a network.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool
from scipy import sparse
from scipy.optimize import linprog

from data_pipeline.batch import GraphSample
from data_pipeline.graph_encoding import magnetic_laplacian
from data_pipeline.reaction_tables import SCHEMA, Organism, base_of, cache_dir, load_tables, write_atomically
from data_pipeline.variables import EDGE_TYPES, ENVIRONMENT_NAMES, NODE_FEATURES, ORGANICS

# --- what an environment offers ---------------------------------------------------------------------------------------
SALTS = frozenset(
    f"{m}_e" for m in "h h2o pi nh4 na1 k cl mg2 ca2 fe2 mn2 zn2 cu2 cobalt2 ni2 mobd hco3 tungs sel slnt".split()
)  # every water has them; none of them feeds anything on its own (tested: 0 ATP)
GAS_THRESHOLD_BAR = {"o2": 1e-4, "co2": 1e-5, "h2": 1e-5, "co": 1e-5, "ch4": 1e-5}
ORGANIC_THRESHOLD_MOL_L = 1e-6  # half-saturation constants of uptake lie at 1e-6 to 1e-5 mol/L
MAX_ORGANICS = 3  # networks stay under 54 metabolites; two organics gave a third fewer distinct networks
ORGANICS_USED = 2  # cells take up the most concentrated first
ORGANIC_IDS = dict(zip(ORGANICS, "glc__D rib__D glyc etoh meoh ac for lac__L pyr succ gly ala__L".split(), strict=True))
DONORS = frozenset(f"{m}_e" for m in (*ORGANIC_IDS.values(), "h2", "co", "ch4"))
UPTAKE_LIMIT = 10.0  # mmol per gram and hour, of an electron donor
NO_LIMIT = 1000.0

# --- what counts as a network -----------------------------------------------------------------------------------------
# Cofactors, carriers and small inorganic molecules: they join nearly everything to everything and are left out.
CURRENCY = frozenset(
    """
    h h2o pi ppi pppi nh4 h2o2 o2s hco3 na1 k cl mg2 ca2 mn2 zn2 cu2 cu cobalt2 ni2 s
    atp adp amp gtp gdp gmp ctp cdp cmp utp udp ump itp idp imp datp dadp dgtp dgdp dctp dcdp dttp dtdp
    nad nadh nadp nadph fad fadh2 fmn fmnh2 coa ACP apoACP q8 q8h2 mqn8 mql8 2dmmq8 2dmmql8 mqn6 mql6 mqn7 mql7 q6 q6h2
    ficytc focytc ficytC focytC ficytc6 focytc6 fdxo_42 fdxr_42 fdxox fdxrd fdxo_2_2 fdxo_4 fdxr_4 flxso flxr trdox
    trdrd grxox grxrd gthox gthrd f420_2 f420_2h2 mphen mphenh2 hsfd com cob thf glutrna photon
    """.split()
)
ACTIVE_FLUX = 1e-5
FLUX_COST = 1e-4  # ATP a unit of flux
MIN_ATP = 1e-3  # mmol per gram and hour
_ENERGY = (("atp_c", -1.0), ("h2o_c", -1.0), ("adp_c", 1.0), ("pi_c", 1.0), ("h_c", 1.0))
FORWARD_ONLY, REVERSIBLE, TRANSPORT = (EDGE_TYPES.index(n) for n in ("forward_only", "reversible", "transport"))
Edge = tuple[str, str]  # substrate, product


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


def nutrients(environment: np.ndarray) -> tuple[str, ...]:
    """Return the exchange metabolites that these V numbers offer beside the salts, sorted: a threshold function.

    Gases above their threshold; as electron acceptors nitrate in oxidised water (Eh over 0.4 V), ferric iron in acid
    water (pH below 7, Eh over 0.1 V), sulphate where Eh is over -0.3 V; the three most concentrated organics over 1 uM.
    """
    value = dict(zip(ENVIRONMENT_NAMES, np.asarray(environment, np.float64).tolist(), strict=True))
    found = [gas for gas, threshold in GAS_THRESHOLD_BAR.items() if value[gas] > threshold]
    if value["redox"] > 0.4:
        found.append("no3")
    elif value["redox"] > 0.1 and value["ph"] < 7.0:
        found.append("fe3")
    elif value["redox"] > -0.3:
        found.append("so4")
    most = sorted(ORGANICS, key=lambda name: -value[name])[:MAX_ORGANICS]
    found += [ORGANIC_IDS[name] for name in most if value[name] > ORGANIC_THRESHOLD_MOL_L]
    return tuple(sorted(f"{m}_e" for m in found))


def anoxic(nutrients: Iterable[str]) -> tuple[str, ...]:
    """Return what is left of the nutrients when O2 goes: nitrate and ferric iron need the Eh that O2 keeps up."""
    return tuple(sorted(set(nutrients) - {"o2_e", "no3_e", "fe3_e"}))


def viable_organisms(environment: np.ndarray) -> list[str]:
    """Return who stands temperature, pH and oxygen of these V numbers; whether it finds food is for `solve` to say."""
    value = dict(zip(ENVIRONMENT_NAMES, np.asarray(environment, np.float64).tolist(), strict=True))
    oxygen = value["o2"] > GAS_THRESHOLD_BAR["o2"]
    stands = {
        "aerobic": oxygen,
        "microaerophilic": oxygen and value["o2"] < 0.1,
        "anaerobic": not oxygen,
        "facultative": True,
    }
    return [
        name
        for name, o in load_organisms().items()
        if o.temperature_k[0] <= value["temperature_k"] <= o.temperature_k[1]
        and o.ph[0] <= value["ph"] <= o.ph[1]
        and stands[o.oxygen]
    ]


def usable(organism: str, offered: Iterable[str]) -> tuple[str, ...]:
    """Return those nutrients that this organism's model knows: environments that differ in others are one to it."""
    return tuple(sorted(set(offered) & _exchanged(organism)))


@functools.cache
def _exchanged(organism: str) -> frozenset[str]:
    return frozenset(m for m in load_tables()[0][organism].metabolites if m.endswith("_e"))


# --- flux balance -----------------------------------------------------------------------------------------------------
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
class _Program:
    """The linear program of one organism: reactions, one exchange a `_e` metabolite, ATP hydrolysis last."""

    matrix: sparse.csc_matrix
    lower: np.ndarray
    upper: np.ndarray
    exchanged: tuple[str, ...]
    reactions: tuple[str, ...]


@functools.cache
def _program(name: str) -> _Program:
    organism = load_tables()[0][name]
    row = {m: i for i, m in enumerate(organism.metabolites)}
    exchanged = tuple(m for m in organism.metabolites if m.endswith("_e"))
    size, number = len(row), len(exchanged)
    exchange = sparse.csc_matrix((-np.ones(number), ([row[m] for m in exchanged], range(number))), shape=(size, number))
    rows, values = [row[m] for m, _ in _ENERGY], [n for _, n in _ENERGY]
    energy = sparse.csc_matrix((values, (rows, [0] * len(rows))), shape=(size, 1))
    return _Program(
        sparse.hstack([organism.stoichiometry, exchange, energy]).tocsc(),
        np.concatenate([organism.lower, np.zeros(number), [0.0]]),
        np.concatenate([organism.upper, np.full(number, NO_LIMIT), [NO_LIMIT]]),
        exchanged,
        organism.reactions,
    )


def _limits(program: _Program, known: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    offered = SALTS | set(known)
    lower = program.lower.copy()
    for place, m in enumerate(program.exchanged, len(program.reactions)):
        if m in offered:
            lower[place] = -UPTAKE_LIMIT if m in DONORS else -NO_LIMIT
    return lower, program.upper.copy()


def _most_atp(matrix: sparse.csc_matrix, lower: np.ndarray, upper: np.ndarray) -> float:
    goal = np.zeros(matrix.shape[1])
    goal[-1] = -1.0
    found = linprog(
        goal, A_eq=matrix, b_eq=np.zeros(matrix.shape[0]), bounds=np.stack([lower, upper], 1), method="highs"
    )
    return -found.fun if found.status == 0 else 0.0


def _solve(organism: str, known: tuple[str, ...]) -> ActiveNetwork | None:
    """Most ATP and least total flux in one program: a unit of flux costs FLUX_COST, which no detour repays."""
    program = _program(organism)
    lower, upper = _limits(program, known)
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


# --- graphs -----------------------------------------------------------------------------------------------------------
@functools.cache
def is_node(metabolite: str) -> bool:
    """Is it shown in a network: no currency metabolite, and its formula is known?"""
    known = load_tables()[1].get(metabolite)
    return known is not None and known.formula_known and base_of(metabolite) not in CURRENCY


@functools.cache
def _edges(name: str) -> tuple[tuple[Edge, ...], ...]:
    """Return the edges of each reaction of an organism in its forward direction."""
    organism = load_tables()[0][name]
    columns = organism.stoichiometry
    found = []
    for j in range(len(organism.reactions)):
        entries = slice(columns.indptr[j], columns.indptr[j + 1])
        sides = zip(columns.indices[entries], columns.data[entries], strict=True)
        nodes = [(organism.metabolites[i], n) for i, n in sides if is_node(organism.metabolites[i])]
        found.append(tuple(_join([m for m, n in nodes if n < 0], [m for m, n in nodes if n > 0])))
    return tuple(found)


def _join(left: list[str], right: list[str]) -> list[Edge]:
    """Return which substrates become which products.

    What only changes its compartment goes to itself. Of the rest, carbon goes to carbon; without carbon, what shares
    another element than H and O is joined (nitrate -> nitrite, Fe3+ -> Fe2+).
    """
    moved = [(s, p) for s in left for p in right if base_of(s) == base_of(p)]
    if moved:
        done = {m for edge in moved for m in edge}
        return moved + _join([m for m in left if m not in done], [m for m in right if m not in done])
    atoms = {m: {e for e, n in load_tables()[1][m].counts.items() if n > 0} - {"H", "O"} for m in (*left, *right)}
    pairs = [(s, p) for s in left for p in right if atoms[s] & atoms[p]]
    return [(s, p) for s, p in pairs if "C" in atoms[s] & atoms[p]] or pairs


def _kind(edge: Edge, reversible: bool) -> int:
    if base_of(edge[0]) == base_of(edge[1]):
        return TRANSPORT
    return REVERSIBLE if reversible else FORWARD_ONLY


def network_graph(active: ActiveNetwork) -> GraphSample:
    """Return the directed metabolite graph of the active reactions, in the direction of their flux, nodes by name.

    Features of a node (variables.NODE_FEATURES): atoms, charge and mass of the metabolite; whether it is one of the
    nutrients; whether it is secreted. metabolite_index is 0 until `with_vocabulary`.
    """
    organism = load_tables()[0][active.organism]
    kinds: dict[Edge, int] = {}
    for reaction, edges, low, high in zip(
        organism.reactions, _edges(active.organism), organism.lower, organism.upper, strict=True
    ):
        flux = active.fluxes.get(reaction, 0.0)
        for s, p in edges if flux else ():
            edge = (s, p) if flux > 0 else (p, s)
            kinds[edge] = max(kinds.get(edge, 0), _kind(edge, bool(low < 0 < high)))
    return _graph(kinds, active.organism, active.nutrients, active.secreted)


def graph_of_edges(edges: Iterable[Edge], nutrients: Sequence[str]) -> GraphSample:
    """Return a graph of no organism, such as a generated one; edge types are the reaction DB's, else forward only.

    A metabolite outside the cell that nothing consumes counts as secreted.
    """
    database = load_reaction_db()
    kinds = {edge: database.edge_type(*edge) or FORWARD_ONLY for edge in edges}
    consumed = {s for s, _ in kinds}
    secreted = {p for _, p in kinds if p.endswith("_e") and p not in consumed}
    return _graph(kinds, "", tuple(nutrients), secreted)


def _graph(kinds: Mapping[Edge, int], organism: str, offered: tuple[str, ...], secreted: Iterable[str]) -> GraphSample:
    names = sorted({m for edge in kinds for m in edge})
    place = {m: i for i, m in enumerate(names)}
    ordered = sorted(kinds)
    edge_index = np.array([(place[s], place[p]) for s, p in ordered], np.int64).reshape(-1, 2).T
    adjacency = np.zeros((len(names), len(names)), bool)
    adjacency[tuple(edge_index)] = True
    features = [[*composition(m), float(m in offered), float(m in secreted)] for m in names]
    return GraphSample(
        metabolites=tuple(names),
        metabolite_index=np.zeros(len(names), np.int64),
        features=np.array(features, np.float32).reshape(len(names), len(NODE_FEATURES)),
        positional=magnetic_laplacian(adjacency),
        edge_index=edge_index,
        edge_type=np.array([kinds[e] for e in ordered], np.int64),
        organism=organism,
        nutrients=offered,
    )


def with_vocabulary(graph: GraphSample, vocabulary: Mapping[str, int]) -> GraphSample:
    """Return the graph with the rows of its metabolites in a data set's vocabulary."""
    return replace(graph, metabolite_index=np.array([vocabulary[m] for m in graph.metabolites], np.int64))


def composition(metabolite: str) -> tuple[float, ...]:
    """Return C, H, N, O, P, S atoms, charge and mass in dalton."""
    known = load_tables()[1][metabolite]
    return (*(known.counts.get(e, 0.0) for e in "CHNOPS"), known.charge, known.mass_da)


# --- the reaction database --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ReactionDB:
    """Every edge that some reaction of some organism makes in a direction that it may run in."""

    kinds: dict[Edge, int]  # row of variables.EDGE_TYPES

    def has_edge(self, substrate: str, product: str) -> bool:
        """Does a known reaction make this product from this substrate?"""
        return (substrate, product) in self.kinds

    def edge_type(self, substrate: str, product: str) -> int:
        """Return the row of variables.EDGE_TYPES; 0 when there is no such reaction."""
        return self.kinds.get((substrate, product), 0)

    def mask(self, metabolites: Sequence[str]) -> Bool[np.ndarray, "N N"]:
        """Return [substrate, product]: is there such a reaction?"""
        return np.array([[(s, p) in self.kinds for p in metabolites] for s in metabolites], bool).reshape(
            len(metabolites), len(metabolites)
        )


@functools.cache
def load_reaction_db() -> ReactionDB:
    """Return the edges of all organisms."""
    kinds: dict[Edge, int] = {}
    for name, organism in load_organisms().items():
        for edges, low, high in zip(_edges(name), organism.lower, organism.upper, strict=True):
            for s, p in edges:
                for edge, runs in (((s, p), high > 0), ((p, s), low < 0)):
                    if runs and edge[0] != edge[1]:
                        kinds[edge] = max(kinds.get(edge, 0), _kind(edge, bool(low < 0 < high)))
    return ReactionDB(kinds)


def chemistry_table(vocabulary: Sequence[str]) -> dict[str, Any]:
    """Return what models.biochemistry.Chemistry.from_dict reads: composition, possible edges and degree limits."""
    row = {m: i for i, m in enumerate(vocabulary)}
    edges = sorted((row[s], row[p], kind) for (s, p), kind in load_reaction_db().kinds.items() if s in row and p in row)
    return {
        "metabolites": list(vocabulary),
        "composition": [list(composition(m)) for m in vocabulary],
        "allowed_edges": [list(edge) for edge in edges],
        "max_in": np.bincount([p for _, p, _ in edges], minlength=len(row)).tolist(),
        "max_out": np.bincount([s for s, _, _ in edges], minlength=len(row)).tolist(),
    }


def atp_feasible(edges: Iterable[Edge], nutrients: Iterable[str]) -> bool:
    """Can ONE organism, restricted to these edges, make ATP from these nutrients and the salts?

    A reaction may run in a direction when all its edges in that direction are there; reactions that make no edge
    (currency metabolites only) are free. Never the union of organisms: that invents metabolisms.
    """
    return next(organisms_that_run(edges, nutrients), None) is not None


def organisms_that_run(edges: Iterable[Edge], nutrients: Iterable[str]) -> Iterator[str]:
    """Yield each organism that makes ATP when it is restricted to these edges, as `atp_feasible` asks."""
    given, offered = set(edges), tuple(nutrients)
    return (name for name in load_organisms() if given and _feasible(name, given, offered))


def _feasible(name: str, given: set[Edge], offered: tuple[str, ...]) -> bool:
    program = _program(name)
    lower, upper = _limits(program, offered)
    used = False
    for j, edges in enumerate(_edges(name)):
        if edges:
            upper[j] *= all(edge in given for edge in edges)
            lower[j] *= all((p, s) in given for s, p in edges)
            used = used or bool(upper[j] or lower[j])
    keep = np.flatnonzero((upper > 0) | (lower < 0))
    rows = np.unique(program.matrix[:, keep].indices)
    return used and _most_atp(program.matrix[rows][:, keep], lower[keep], upper[keep]) >= MIN_ATP
