"""Turn the reactions that an organism uses into the directed graph of their metabolites.

Cofactors and small inorganic molecules are no nodes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from data_pipeline.batch import GraphSample
from data_pipeline.flux_balance import ActiveNetwork
from data_pipeline.reaction_tables import base_of, load_tables
from data_pipeline.variables import EDGE_TYPES, NODE_FEATURES

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
FORWARD_ONLY, REVERSIBLE, TRANSPORT = (EDGE_TYPES.index(n) for n in ("forward_only", "reversible", "transport"))
Edge = tuple[str, str]  # substrate, product


@functools.cache
def is_node(metabolite: str) -> bool:
    """Is it shown in a network: no currency metabolite, and its formula is known?"""
    known = load_tables()[1].get(metabolite)
    return known is not None and known.formula_known and base_of(metabolite) not in CURRENCY


class Sides(NamedTuple):
    """The nodes of a reaction in its forward direction, and its edges."""

    left: tuple[str, ...]
    right: tuple[str, ...]
    edges: tuple[Edge, ...]


@functools.cache
def reaction_sides(name: str) -> tuple[Sides, ...]:
    """Return the sides of each reaction of an organism."""
    organism = load_tables()[0][name]
    columns = organism.stoichiometry
    found = []
    for j in range(len(organism.reactions)):
        entries = slice(columns.indptr[j], columns.indptr[j + 1])
        sides = zip(columns.indices[entries], columns.data[entries], strict=True)
        nodes = [(organism.metabolites[i], n) for i, n in sides if is_node(organism.metabolites[i])]
        left, right = [m for m, n in nodes if n < 0], [m for m, n in nodes if n > 0]
        atoms = {m: {e for e, n in load_tables()[1][m].counts.items() if n > 0} - {"H", "O"} for m in (*left, *right)}
        found.append(Sides(tuple(left), tuple(right), tuple(join_sides(left, right, atoms))))
    return tuple(found)


@functools.cache
def reaction_edges(name: str) -> tuple[tuple[Edge, ...], ...]:
    """Return the edges of each reaction of an organism in its forward direction."""
    return tuple(sides.edges for sides in reaction_sides(name))


def join_sides(left: Sequence[str], right: Sequence[str], atoms: Mapping[str, set[str]]) -> list[Edge]:
    """Return which substrates become which products.

    What only changes its compartment goes to itself. Of the rest, carbon goes to carbon; without carbon, what shares
    another element is joined (nitrate -> nitrite, Fe3+ -> Fe2+).

    Args:
        left: Substrates.
        right: Products.
        atoms: Elements of each but H and O.
    """
    moved = [(s, p) for s in left for p in right if base_of(s) == base_of(p)]
    if moved:
        done = {m for edge in moved for m in edge}
        return moved + join_sides([m for m in left if m not in done], [m for m in right if m not in done], atoms)
    pairs = [(s, p) for s in left for p in right if atoms[s] & atoms[p]]
    return [(s, p) for s, p in pairs if "C" in atoms[s] & atoms[p]] or pairs


def edge_kind(edge: Edge, reversible: bool) -> int:
    """Return the row of variables.EDGE_TYPES of an edge of a reaction."""
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
        organism.reactions, reaction_edges(active.organism), organism.lower, organism.upper, strict=True
    ):
        flux = active.fluxes.get(reaction, 0.0)
        for s, p in edges if flux else ():
            edge = (s, p) if flux > 0 else (p, s)
            kinds[edge] = max(kinds.get(edge, 0), edge_kind(edge, bool(low < 0 < high)))
    return graph_of_kinds(kinds, active.organism, active.nutrients, active.secreted)


def graph_of_kinds(
    kinds: Mapping[Edge, int], organism: str, offered: tuple[str, ...], secreted: Iterable[str]
) -> GraphSample:
    """Return the graph of edges and their rows of variables.EDGE_TYPES; nodes and edges in order of name."""
    names = sorted({m for edge in kinds for m in edge})
    place = {m: i for i, m in enumerate(names)}
    ordered = sorted(kinds)
    edge_index = np.array([(place[s], place[p]) for s, p in ordered], np.int64).reshape(-1, 2).T
    features = [[*composition(m), float(m in offered), float(m in secreted)] for m in names]
    return GraphSample(
        metabolites=tuple(names),
        metabolite_index=np.zeros(len(names), np.int64),
        features=np.array(features, np.float32).reshape(len(names), len(NODE_FEATURES)),
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
