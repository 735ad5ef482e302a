"""Read the public sets of the generation benchmark, and any folder of NPZ graphs.

A packed file holds many graphs: `src, dst, node_ptr, edge_ptr` (prefix sums; node numbers local to the graph) and
optionally `node_label`. A single one holds `adj` (data_pipeline/graph_files.py), optionally `env`, names or labels.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.graph_sets import Graph, GraphSet
from data_pipeline.errors import InputError
from data_pipeline.graph_files import MAX_NODES, UNREADABLE, graph_paths, read_graph
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

    Files of single graphs are read by graph_files.read_graph. Names that no graph repeats identify nodes; else they are
    labels of exchangeable nodes. `env` of one length in all files, and not the same everywhere, is the condition.
    Packed files are added up, or, when their names end in _train, _val and _test, are those parts.

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
    read = [(path, read_graph(path)) for path in graph_paths(folder)]
    loops = sum(graph.loops for _, graph in read)
    if loops:
        print(f"graphs={folder}: {loops} nodes are joined to themselves; these edges are left out", file=sys.stderr)
    unnamed = [path.name for path, graph in read if not graph.names]
    if 0 < len(unnamed) < len(read):
        raise InputError(
            f"graphs={folder}: {len(unnamed)} of {len(read)} files, {unnamed[0]} first, name no nodes; give all of "
            "them meta.nodes or node_label, or none"
        )
    named = not unnamed and all(len(set(graph.names)) == len(graph.names) for _, graph in read)
    vocabulary = ("node",) if unnamed else tuple(sorted({name for _, graph in read for name in graph.names}))
    rows = {name: row for row, name in enumerate(vocabulary)}
    lengths = {len(graph.environment): path.name for path, graph in read}
    if len(lengths) > 1:
        said = ", ".join(f"{length} in {name}" for length, name in sorted(lengths.items()))
        raise InputError(f"graphs={folder}: env holds {said} numbers; give every file as many, or none")
    conditioned = any((graph.environment != read[0][1].environment).any() for _, graph in read)
    graphs = [
        Graph(
            np.array([rows.get(name, 0) for name in graph.names] or [0] * len(graph.adjacency), np.int64),
            graph.adjacency,
            graph.environment if conditioned else NO_CONDITION,  # the same for all of them: no question
        )
        for _, graph in read
    ]
    directed = any(graph.directed for _, graph in read)
    return _graph_set(folder.name, *_tenths(graphs, folder), vocabulary=vocabulary, named=named, directed=directed)


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
    directed: bool = False,
) -> GraphSet:
    graphs = (*train, *held_out, *test)
    used = np.unique(np.concatenate([g.labels for g in graphs])) if not vocabulary else np.arange(len(vocabulary))

    def numbered(part: Sequence[Graph]) -> tuple[Graph, ...]:
        return tuple(g._replace(labels=np.searchsorted(used, g.labels)) for g in part)

    return GraphSet(
        name=name,
        directed=directed or any((g.adjacency != g.adjacency.T).any() for g in graphs),
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
    except UNREADABLE:
        return False  # said when it is read as a single graph


def _packed(path: Path) -> list[Graph]:
    try:
        with np.load(path, allow_pickle=False) as file:
            table = {name: file[name] for name in file.files}
        nodes, ends, edges = table["node_ptr"], table["edge_ptr"], np.stack([table["src"], table["dst"]])
    except UNREADABLE as error:
        raise InputError(
            f"graphs={path}: not a packed set with src, dst, node_ptr and edge_ptr ({error}); give --public a folder "
            "that holds it, written without pickle"
        ) from error
    for name, end in (("node_ptr", None), ("edge_ptr", edges.shape[1])):
        steps = table[name]
        if (
            steps.dtype.kind not in "iu"
            or steps.ndim != 1
            or len(steps) < 2
            or steps[0] != 0
            or (np.diff(steps) < 0).any()
        ):
            raise InputError(f"graphs={path}: {name} must be whole numbers that start at 0 and never fall; rewrite it")
        if len(steps) != len(nodes) or (end is not None and steps[-1] != end):
            raise InputError(
                f"graphs={path}: {name} ends at {steps[-1]} after {len(steps) - 1} graphs; node_ptr has "
                f"{len(nodes) - 1} graphs, src and dst {edges.shape[1]} edges; make them fit"
            )
    size = np.diff(nodes)
    if not 1 <= size.min() <= size.max() <= MAX_NODES:
        raise InputError(
            f"graphs={path}: graphs of {size.min()} to {size.max()} nodes; the benchmark takes 1 to {MAX_NODES}"
        )
    if edges.dtype.kind not in "iu" or (edges < 0).any() or (edges >= np.repeat(size, np.diff(ends))).any():
        raise InputError(
            f"graphs={path}: src and dst must be node numbers of their graph, from 0; count from each graph's first"
        )
    labels = table.get("node_label", np.zeros(nodes[-1], np.int64))
    if labels.shape != (nodes[-1],) or labels.dtype.kind not in "biuf" or (labels % 1 != 0).any():
        raise InputError(
            f"graphs={path}: node_label of shape {labels.shape} and type {labels.dtype}; it must be {nodes[-1]} whole "
            "numbers, one a node"
        )
    labels, graphs = labels.astype(np.int64), []
    for i, number in enumerate(size.tolist()):
        adjacency = np.zeros((number, number), bool)
        adjacency[tuple(edges[:, slice(*ends[i : i + 2])])] = True
        np.fill_diagonal(adjacency, False)
        graphs.append(Graph(labels[slice(*nodes[i : i + 2])], adjacency, NO_CONDITION))
    return graphs
