"""Read the public sets of the generation benchmark, and any folder of NPZ graphs.

A packed file holds many graphs: `src, dst, node_ptr, edge_ptr` (prefix sums; node numbers local to the graph) and
optionally `node_label`. A single one holds `adj` (data_pipeline/graph_files.py), optionally with `env` and names.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.graph_sets import Graph, GraphSet
from data_pipeline.errors import InputError
from data_pipeline.graph_files import read_folder
from data_pipeline.order import generator

NAMES = ("community_small", "planar", "enzymes")
PARTS = ("train", "val", "test")
SHARE_ASIDE = (0.16, 0.2)  # held out, test, of community_small and enzymes: as GraphRNN and GRAN split
LEAST_ASIDE = 2  # of a folder
NO_CONDITION = np.zeros(0, np.float32)


def load(name: str, folder: str | Path) -> GraphSet:
    """Return one of NAMES; the order of community_small and enzymes is shuffled once, the same for every seed.

    Raises:
        InputError: Its files are not in the folder, or are no packed graphs.
    """
    folder = Path(folder)
    if name == "planar":
        train, held_out, test = (_packed(folder / f"planar_{part}.npz") for part in PARTS)
    else:
        graphs = _packed(folder / f"{name}.npz")
        aside, asked = (round(share * len(graphs)) for share in SHARE_ASIDE)
        train, held_out, test = _cut(graphs, aside, asked, name)
    return _graph_set(name, train, held_out, test)


def load_folder(folder: str | Path) -> GraphSet:
    """Return a folder of graphs as a set: a tenth, at least two, is held out and as many are the test.

    Files of single graphs are read as `train.graphs` reads them; a label is the name of a node where names come from
    the file. Packed files are added up, or, when their names end in _train, _val and _test, are those parts.

    Raises:
        InputError: The folder holds no graph, a file in it cannot be read, or there are too few graphs.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*.npz"))
    packed = {path.stem: _packed(path) for path in paths if _is_packed(path)}
    if not packed:
        return _single(folder)
    if len(packed) < len(paths):
        raise InputError(f"graphs={folder}: single graphs beside packed ones; give a folder of one kind")
    train, held_out, test = (
        [g for stem, gs in packed.items() if stem.endswith(f"_{part}") for g in gs] for part in PARTS
    )
    if not (train and held_out and test):
        train, held_out, test = _tenths([g for graphs in packed.values() for g in graphs], folder)
    return _graph_set(folder.name, train, held_out, test)


def _tenths(graphs: Sequence[Graph], folder: Path) -> tuple[list[Graph], list[Graph], list[Graph]]:
    if len(graphs) < 3 * LEAST_ASIDE:
        raise InputError(f"graphs={folder}: {len(graphs)} graphs; training and judging need at least {3 * LEAST_ASIDE}")
    aside = max(round(0.1 * len(graphs)), LEAST_ASIDE)
    return _cut(graphs, aside, aside, folder.name)


def _single(folder: Path) -> GraphSet:
    found = read_folder(folder)
    named = any(list(g.metabolites) != [f"n{i}" for i in range(len(g.metabolites))] for _, g, _ in found)
    vocabulary = tuple(sorted({m for _, g, _ in found for m in g.metabolites})) if named else ("node",)
    rows = {m: i for i, m in enumerate(vocabulary)}
    conditioned = all(environment is not None for _, _, environment in found)
    graphs = []
    for _, sample, environment in found:
        labels = np.array([rows.get(m, 0) for m in sample.metabolites], np.int64)
        adjacency = np.zeros((len(labels), len(labels)), bool)
        adjacency[tuple(sample.edge_index)] = True
        np.fill_diagonal(adjacency, False)
        condition = environment if conditioned and environment is not None else NO_CONDITION
        graphs.append(Graph(labels, adjacency, condition))
    return _graph_set(folder.name, *_tenths(graphs, folder), vocabulary=vocabulary, named=named)


def _cut(graphs: Sequence[Graph], held_out: int, test: int, name: str) -> tuple[list[Graph], list[Graph], list[Graph]]:
    """Return the parts train, held_out and test of graphs in an order that the name of the set decides."""
    shuffled = [graphs[i] for i in generator("graph set", name).permutation(len(graphs))]
    return shuffled[test + held_out :], shuffled[test : test + held_out], shuffled[:test]


def _graph_set(
    name: str,
    train: Sequence[Graph],
    held_out: Sequence[Graph],
    test: Sequence[Graph],
    vocabulary: tuple[str, ...] = (),
    named: bool = False,
) -> GraphSet:
    graphs = (*train, *held_out, *test)
    used = np.unique(np.concatenate([g.labels for g in graphs])) if not vocabulary else np.arange(len(vocabulary))

    def numbered(part: Sequence[Graph]) -> tuple[Graph, ...]:
        return tuple(g._replace(labels=np.searchsorted(used, g.labels)) for g in part)

    return GraphSet(
        name=name,
        directed=any((g.adjacency != g.adjacency.T).any() for g in graphs),
        vocabulary=vocabulary or tuple(f"label {i}" for i in used),
        named=named,
        allowed=None,
        train=numbered(train),
        held_out=numbered(held_out),
        test=numbered(test),
    )


def _is_packed(path: Path) -> bool:
    try:
        with np.load(path, allow_pickle=False) as file:
            return "node_ptr" in file.files
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False  # said when it is read as a single graph


def _packed(path: Path) -> list[Graph]:
    try:
        with np.load(path, allow_pickle=False) as file:
            table = {name: file[name] for name in file.files}
        nodes, edges = table["node_ptr"], np.stack([table["src"], table["dst"]])
        labels = np.asarray(table.get("node_label", np.zeros(nodes[-1])), np.int64)
        graphs = []
        for i in range(len(nodes) - 1):
            size = int(nodes[i + 1] - nodes[i])
            adjacency = np.zeros((size, size), bool)
            adjacency[tuple(edges[:, slice(*table["edge_ptr"][i : i + 2])])] = True
            np.fill_diagonal(adjacency, False)
            graphs.append(Graph(labels[slice(*nodes[i : i + 2])], adjacency, NO_CONDITION))
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"graphs={path}: not a packed set with src, dst, node_ptr and edge_ptr ({error}); give --public a folder "
            "that holds it, written without pickle"
        ) from error
    return graphs
