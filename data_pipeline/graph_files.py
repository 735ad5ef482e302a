"""Write and read single graphs: NPZ (`adj`, `env`, `meta`, optional `edge_type`, `x`) and GraphML."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from jaxtyping import Bool, Float

from data_pipeline.batch import GraphSample
from data_pipeline.errors import InputError
from data_pipeline.variables import EDGE_TYPES, ENVIRONMENT, NODE_FEATURES

MAX_NODES = 512  # of a file: the network of a whole organism
UNREADABLE = (  # what numpy and zipfile raise for files that are no NPZ, are cut or are damaged
    OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, NotImplementedError, RuntimeError, MemoryError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def write_npz(path: str | Path, graph: GraphSample, environment: np.ndarray) -> None:
    """Write one graph with its environment (V)."""
    nodes = len(graph.metabolites)
    adjacency = np.zeros((nodes, nodes), np.uint8)
    edge_type = np.zeros((nodes, nodes), np.uint8)
    adjacency[tuple(graph.edge_index)] = 1
    edge_type[tuple(graph.edge_index)] = graph.edge_type
    meta = {"nodes": graph.metabolites, "organism": graph.organism, "nutrients": graph.nutrients}
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, adj=adjacency, env=environment, meta=np.array(json.dumps(meta)), edge_type=edge_type, x=graph.features
    )
    Path(path).write_bytes(buffer.getvalue())


@dataclass(frozen=True, kw_only=True)
class FileGraph:
    """One graph as its file gives it, checked; nothing is added to what is there."""

    adjacency: Bool[np.ndarray, "N N"]  # [source, target]; without loops
    loops: int  # nodes that the file joins to themselves
    names: tuple[str, ...]  # of the nodes, or labels that several nodes share; empty when the file has none
    directed: bool | None  # what the file says
    environment: Float[np.ndarray, " V"]  # of any length
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


def read_graph(path: str | Path) -> FileGraph:
    """Read one NPZ: `adj` (N x N, an edge where it is not 0), and where they are there `env`, `meta` and `node_label`.

    Names of nodes are `nodes` in the JSON text `meta`, else `node_label` (N whole numbers or words). An undirected
    graph holds each edge in both directions; `"directed": false` in meta has that checked.

    Raises:
        InputError: The file is no NPZ, would need pickle, or its arrays do not fit together.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            arrays = {name: archive[name] for name in archive.files}
        meta = json.loads(_text(arrays["meta"])) if "meta" in arrays else {}
        given = arrays["adj"]
    except UNREADABLE as error:
        raise InputError(
            f"graph={path}: not an NPZ with `adj` and JSON `meta` ({error}); write it without pickle"
        ) from error
    meta = meta if isinstance(meta, dict) else {}
    for name in {"adj", "edge_type", "x", "env"} & set(arrays):
        if arrays[name].dtype.kind not in "biuf" or not np.isfinite(arrays[name]).all():
            raise InputError(f"graph={path}: {name} holds what is no finite real number; fill it in")
    nodes = len(given) if given.ndim == 2 else 0
    if given.shape != (nodes, nodes) or not 1 <= nodes <= MAX_NODES:
        raise InputError(f"graph={path}: adj has shape {given.shape}; it must be N x N with N from 1 to {MAX_NODES}")
    adjacency = (given != 0) & ~np.eye(nodes, dtype=bool)
    directed = meta.get("directed")
    if directed is False and (adjacency != adjacency.T).any():
        source, target = np.argwhere(adjacency & ~adjacency.T)[0]
        raise InputError(
            f"graph={path}: meta.directed is false, but adj[{source}, {target}] has no adj[{target}, {source}]; store "
            "both directions"
        )
    names = _names(meta, "nodes") or _labels(path, arrays)
    if names and len(names) != nodes:
        field = "meta.nodes" if _names(meta, "nodes") else "node_label"
        raise InputError(f"graph={path}: {field} holds {len(names)} names for {nodes} nodes; name each node")
    return FileGraph(
        adjacency=adjacency,
        loops=int((given.diagonal() != 0).sum()),
        names=tuple(names),
        directed=directed if isinstance(directed, bool) else None,
        environment=np.asarray(arrays.get("env", np.zeros(0)), np.float32).ravel(),
        arrays=arrays,
        meta=meta,
    )


def read_npz(path: str | Path) -> tuple[GraphSample, np.ndarray | None]:
    """Read one graph and its environment; None when the file has none of the length of variables.ENVIRONMENT.

    Only `adj` is needed. Nodes without names are n0, n1, ...; edges without types are of type 1; features that are
    absent or of another length are zeros; a node that is joined to itself has no such edge. metabolite_index is 0 until
    a vocabulary is given.

    Raises:
        InputError: The file cannot be read (read_graph), two nodes have one name, or edge_type does not fit.
    """
    read = read_graph(path)
    nodes = len(read.adjacency)
    names = read.names or tuple(f"n{i}" for i in range(nodes))
    if len(set(names)) != nodes:
        raise InputError(
            f"graph={path}: {len(set(names))} different names for {nodes} nodes; name each node differently here, or "
            "draw graphs with labels by `bench generation --graphs`"
        )
    edge_index = np.stack(np.nonzero(read.adjacency)).astype(np.int64)
    types = np.asarray(read.arrays.get("edge_type", read.adjacency), np.int64)
    edge_type = types[tuple(edge_index)] if types.shape == read.adjacency.shape else np.zeros(0, np.int64)
    if len(edge_type) != edge_index.shape[1] or ((edge_type < 1) | (edge_type >= len(EDGE_TYPES))).any():
        raise InputError(
            f"graph={path}: edge_type must be N x N and 1 to {len(EDGE_TYPES) - 1} wherever adj is 1; leave it out "
            "where edges have no such types"
        )
    features = np.asarray(read.arrays.get("x", np.zeros(0)), np.float32)
    if features.shape != (nodes, len(NODE_FEATURES)):
        features = np.zeros((nodes, len(NODE_FEATURES)), np.float32)
    graph = GraphSample(
        metabolites=names,
        metabolite_index=np.zeros(nodes, np.int64),
        features=features,
        edge_index=edge_index,
        edge_type=edge_type,
        organism=str(read.meta.get("organism", "")),
        nutrients=tuple(_names(read.meta, "nutrients")),
    )
    return graph, read.environment if read.environment.shape == (len(ENVIRONMENT),) else None


def _text(meta: np.ndarray) -> str:
    found = meta[()]
    return found.decode() if isinstance(found, bytes) else str(found)


def _names(meta: dict[str, Any], key: str) -> list[str]:
    found = meta.get(key)
    return [str(name) for name in found] if isinstance(found, list) else []


def _labels(path: str | Path, arrays: dict[str, np.ndarray]) -> list[str]:
    """Return node_label as words."""
    if "node_label" not in arrays:
        return []
    label = arrays["node_label"]
    whole = label.dtype.kind in "biuU" or (label.dtype.kind == "f" and (label % 1 == 0).all())
    if label.ndim != 1 or not whole:
        raise InputError(
            f"graph={path}: node_label has shape {label.shape} and type {label.dtype}; it must be N whole numbers or "
            "words, one a node"
        )
    return [str(name) for name in (label if label.dtype.kind == "U" else label.astype(np.int64))]


def graph_paths(folder: str | Path) -> list[Path]:
    """Return every *.npz of a folder in order of name.

    Raises:
        InputError: The folder does not exist or holds none.
    """
    paths = sorted(Path(folder).glob("*.npz"))
    if not paths:
        raise InputError(f"data.graphs={folder}: no .npz file there; give a folder with one NPZ a graph")
    return paths


def read_folder(folder: str | Path) -> list[tuple[str, GraphSample, np.ndarray | None]]:
    """Read the graphs of a folder in order of name, as (file name without ending, graph, environment).

    Raises:
        InputError: The folder does not exist or holds no graph, or one of them cannot be read.
    """
    return [(path.stem, *read_npz(path)) for path in graph_paths(folder)]


def write_graphml(path: str | Path, graph: GraphSample, facts: dict[str, Any] | None = None) -> None:
    """Write one graph as GraphML, as Cytoscape, Gephi and networkx read it; facts become attributes of the graph."""
    keys = {("node", name): "double" for name in NODE_FEATURES} | {("edge", "type"): "string"}
    keys |= {("graph", name): "string" for name in facts or {}}
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', '<graphml xmlns="http://graphml.graphdrawing.org/xmlns">']
    for (owner, name), kind in keys.items():
        lines.append(
            f'<key id={quoteattr(f"{owner}_{name}")} for="{owner}" attr.name={quoteattr(name)} attr.type="{kind}"/>'
        )
    lines.append('<graph edgedefault="directed">')
    lines += [_data(f"graph_{name}", value) for name, value in (facts or {}).items()]
    for name, row in zip(graph.metabolites, graph.features, strict=True):
        inner = "".join(_data(f"node_{key}", f"{value:g}") for key, value in zip(NODE_FEATURES, row, strict=True))
        lines.append(f"<node id={quoteattr(name)}>{inner}</node>")
    for (source, target), kind in zip(graph.edge_index.T, graph.edge_type, strict=True):
        ends = f"source={quoteattr(graph.metabolites[source])} target={quoteattr(graph.metabolites[target])}"
        lines.append(f"<edge {ends}>{_data('edge_type', EDGE_TYPES[kind])}</edge>")
    Path(path).write_text("\n".join([*lines, "</graph>", "</graphml>", ""]), encoding="utf-8")


def _data(key: str, value: Any) -> str:
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"<data key={quoteattr(key)}>{text}</data>"
