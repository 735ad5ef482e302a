"""Make the tasks of link prediction: citation networks, whole metabolic networks, and which of their links are hidden.

Splits. All of them hide links, keep the rest as the graph that a model may read, and set as many absent pairs beside
the hidden links; a twentieth is held out (it chooses when to stop) and a tenth is the test.
`general`: uniformly drawn links and uniformly drawn absent pairs (Kipf and Welling 2016; task 1 of Salha et al. 2019).
`direction`: links that exist one way only, against the same links reversed (task 2 of Salha et al. 2019). Links that
    exist both ways stay in the graph; the published code leaves them out, and has no held-out part.
`bidirectionality`: of every link that exists both ways one direction is hidden, against the reverse of links that exist
    one way (task 3). The published task has no held-out part: a third of the pairs is held out here.
`similar`: as `general`, but an absent pair is a hidden link whose second node is replaced by one of the metabolites
    most like it in composition: telling reactions from look-alikes. Together with `general` on the undirected network,
    with the features of the metabolites, it is after the task of MPI-VGAE (Wang et al. 2023), on metabolites alone.
"""

from __future__ import annotations

import functools
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from data_pipeline.errors import InputError
from data_pipeline.metabolic_graph import composition, is_node, reaction_edges
from data_pipeline.order import generator
from data_pipeline.reaction_tables import load_tables

CITATIONS = ("cora", "citeseer")
HELD_OUT_SHARE, TEST_SHARE = 20, 10  # one of so many
NEIGHBOURS = 32  # metabolites that count as similar
MOST_ATOMS = 25
COMPARTMENTS = "_c _p _e".split()

Edges = Int[np.ndarray, "E 2"]


class Features(NamedTuple):
    """A sparse table, a row a node."""

    row: Int[np.ndarray, " K"]
    column: Int[np.ndarray, " K"]
    value: Float[np.ndarray, " K"]
    columns: int


class Network(NamedTuple):
    """One large graph. Undirected links are listed once, lower node first."""

    name: str
    directed: bool
    nodes: tuple[str, ...]
    edges: Edges
    features: Features


class Pairs(NamedTuple):
    """Ordered pairs of nodes that are linked and as many that are not."""

    linked: Edges
    absent: Edges


class Split(NamedTuple):
    """What a model may read, what chooses when to stop, and what it is asked."""

    known: Edges
    held_out: Pairs
    test: Pairs


# --- networks ---------------------------------------------------------------------------------------------------------
def citations(name: str, folder: str | Path) -> Network:
    """Return Cora or Citeseer with the words of each paper.

    Raises:
        InputError: The file is not there or is not such a graph.
    """
    path = Path(folder) / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            nodes = int(file["num_nodes"])
            ends = np.stack([file["src"], file["dst"]], axis=1).astype(np.int64)
            row, column = file["x_row"].astype(np.int64), file["x_col"].astype(np.int64)
            value, columns = file["x_val"].astype(np.float32), int(file["num_features"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"public={path}: no citation graph ({error}); give --public a folder that holds it") from error
    ends = np.unique(np.sort(ends[ends[:, 0] != ends[:, 1]], axis=1), axis=0)
    return Network(name, False, tuple(map(str, range(nodes))), ends, Features(row, column, value, columns))


def metabolic(model: str) -> Network:
    """Return every substrate -> product edge of an organism's reactions, in each direction that they may run in.

    Raises:
        InputError: There is no such BiGG model, or the tables are not installed.
    """
    organisms = {o.model: o for o in load_tables()[0].values()}
    if model not in organisms:
        raise InputError(f"organism={model}: no such model; there are {', '.join(sorted(organisms))}")
    organism = organisms[model]
    found: set[tuple[str, str]] = set()
    for edges, low, high in zip(reaction_edges(organism.name), organism.lower, organism.upper, strict=True):
        for s, p in edges:
            found |= {(s, p)} if high > 0 and s != p else set()
            found |= {(p, s)} if low < 0 and s != p else set()
    names = sorted({m for edge in found for m in edge})
    place = {m: i for i, m in enumerate(names)}
    ordered = np.array(sorted((place[s], place[p]) for s, p in found), np.int64)
    return Network(model, True, tuple(names), ordered, metabolite_features(names))


def undirected(network: Network) -> Network:
    """Return the network without its directions."""
    return network._replace(directed=False, edges=np.unique(np.sort(network.edges, axis=1), axis=0))


def metabolite_features(names: Sequence[str]) -> Features:
    """Return formula, atoms by element, charge, mass and compartment of metabolites as words of one vocabulary."""
    words = _vocabulary()
    found = [[words[w] for w in _words(m)] for m in names]
    row = np.repeat(np.arange(len(names)), [len(f) for f in found])
    column = np.concatenate([np.asarray(f, np.int64) for f in found])
    return Features(row, column, np.ones(len(column), np.float32), len(words))


@functools.cache
def _vocabulary() -> dict[str, int]:
    words = sorted({w for m in load_tables()[1] if is_node(m) for w in _words(m)})
    return {w: i for i, w in enumerate(words)}


def _words(metabolite: str) -> list[str]:
    *atoms, charge, mass_da = composition(metabolite)
    return [
        *(f"{e}{min(int(n), MOST_ATOMS)}" for e, n in zip("CHNOPS", atoms, strict=True)),
        f"charge {charge:.0f}",
        f"mass {int(4 * np.log1p(mass_da))}",
        f"in {metabolite[-2:] if metabolite.endswith(tuple(COMPARTMENTS)) else 'other'}",
        f"formula {atoms} {charge:.0f}",
    ]


# --- splits -----------------------------------------------------------------------------------------------------------
def general(network: Network, seed: int) -> Split:
    """Hide uniformly drawn links; absent pairs are uniform too."""
    random = generator("general links", network.name, seed)
    test, held_out, known = _cut(network.edges, random)
    absent = absent_pairs(network, len(test) + len(held_out), random)
    return Split(known, Pairs(held_out, absent[len(test) :]), Pairs(test, absent[: len(test)]))


def direction(network: Network, seed: int) -> Split:
    """Hide links that exist one way; absent pairs are the same links reversed."""
    random = generator("direction of links", network.name, seed)
    both = has_reverse(network)
    test, held_out, known = _cut(network.edges[~both], random)
    known = np.concatenate([known, network.edges[both]])
    return Split(known, Pairs(held_out, held_out[:, ::-1]), Pairs(test, test[:, ::-1]))


def bidirectionality(network: Network, seed: int) -> Split:
    """Hide one way of each link that exists both ways; absent pairs are reversed links that exist one way."""
    random = generator("bidirectionality of links", network.name, seed)
    both = has_reverse(network)
    one_way, two_way = network.edges[~both], network.edges[both]
    pairs = random.permutation(two_way[two_way[:, 0] < two_way[:, 1]])
    hidden = np.where(random.random((len(pairs), 1)) < 0.5, pairs, pairs[:, ::-1])
    reversed_ = random.permutation(one_way)[: len(hidden), ::-1]
    asked = min(len(hidden), len(reversed_))
    known = np.concatenate([one_way, hidden[:, ::-1]])
    cut = asked // 3
    return Split(known, Pairs(hidden[:cut], reversed_[:cut]), Pairs(hidden[cut:asked], reversed_[cut:asked]))


def similar(network: Network, split: Split, seed: int) -> Split:
    """Return a general split whose absent pairs are look-alikes of its hidden links."""
    random = generator("similar links", network.name, seed)
    near = _similar_metabolites(network)
    linked = _keys(network.edges, len(network.nodes)) | _keys(network.edges[:, ::-1], len(network.nodes))

    def absent(links: Edges) -> Edges:
        found = []
        for i, j in links:
            fit = [k for k in near[j] if k != i and i * len(network.nodes) + k not in linked]
            found.append((i, random.choice(fit) if fit else random.integers(len(network.nodes))))
        return np.array(found, np.int64).reshape(-1, 2)

    held_out, test = split.held_out.linked, split.test.linked
    return split._replace(held_out=Pairs(held_out, absent(held_out)), test=Pairs(test, absent(test)))


def absent_pairs(network: Network, number: int, random: np.random.Generator) -> Edges:
    """Draw distinct pairs that no link of the network joins; lower node first in an undirected one."""
    nodes = len(network.nodes)
    taken = _keys(network.edges, nodes)
    found: list[tuple[int, int]] = []
    while len(found) < number:
        i, j = random.integers(nodes, size=2).tolist()
        if not network.directed:
            i, j = min(i, j), max(i, j)
        if i != j and i * nodes + j not in taken:
            taken.add(i * nodes + j)
            found.append((i, j))
    return np.array(found, np.int64).reshape(-1, 2)


def has_reverse(network: Network) -> np.ndarray:
    """Return of each link whether the reversed one exists too."""
    nodes = len(network.nodes)
    keys = _keys(network.edges, nodes)
    return np.array([j * nodes + i in keys for i, j in network.edges.tolist()], bool)


def _keys(edges: Edges, nodes: int) -> set[int]:
    return set((edges[:, 0] * nodes + edges[:, 1]).tolist())


def _cut(edges: Edges, random: np.random.Generator) -> tuple[Edges, Edges, Edges]:
    shuffled = random.permutation(edges)
    first = len(edges) // TEST_SHARE
    second = first + len(edges) // HELD_OUT_SHARE
    return shuffled[:first], shuffled[first:second], shuffled[second:]


def _similar_metabolites(network: Network) -> Int[np.ndarray, "N k"]:
    chemistry = np.array([composition(m) for m in network.nodes])
    points = np.concatenate([np.log1p(chemistry[:, :6]), chemistry[:, 6:7] / 4], axis=1)
    return cKDTree(points).query(points, k=min(NEIGHBOURS, len(points)))[1].reshape(len(points), -1)
