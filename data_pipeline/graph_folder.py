"""Turn a folder of anybody's graphs (one NPZ each) into samples that hold a graph, an environment and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.batch import ENVIRONMENT_VECTOR, GRAPH, MODALITIES, GraphSample, Sample
from data_pipeline.errors import InputError
from data_pipeline.graph_files import read_folder
from data_pipeline.order import generator
from data_pipeline.shards import SAMPLE_TENSORS

SHARE_ASIDE = 0.1  # of the files are held out, and as many are for the test
LEAST_ASIDE = 2  # so that two ranks have one each


def graph_samples(folder: str | Path) -> tuple[list[Sample], dict[str, Any]]:
    """Return the samples of all splits in order of file name, and the chemistry of their node names.

    A tenth of the files, at least two, is held out and as many are the test, in the order of a hash of their names. The
    vocabulary is the sorted union of node names. Nothing is known about other people's names, so the edges of the
    training files are those that may be, each of the greatest type that it has there.

    Raises:
        InputError: The folder or a file in it cannot be read (graph_files.read_folder), or there are too few files.
    """
    graphs = read_folder(folder)
    if len(graphs) < 3 * LEAST_ASIDE:
        raise InputError(f"data.graphs={folder}: {len(graphs)} graphs; training needs at least {3 * LEAST_ASIDE}")
    vocabulary = sorted({name for _, graph, _ in graphs for name in graph.metabolites})
    rows = {name: row for row, name in enumerate(vocabulary)}
    splits = _splits([name for name, _, _ in graphs])
    samples = [_sample(*found, splits[found[0]], rows) for found in graphs]
    edges = _edges(s.graph for s in samples if s.split == "train")
    if not edges:
        raise InputError(f"data.graphs={folder}: no training graph has an edge; give graphs with edges")
    return samples, {"metabolites": vocabulary, "allowed_edges": edges}


def _edges(graphs: Iterable[GraphSample]) -> list[list[int]]:
    """Return [source, target, greatest type] of every edge of some graphs, sorted."""
    found: dict[tuple[int, int], int] = {}
    for graph in graphs:
        ends = graph.metabolite_index[graph.edge_index]
        for source, target, kind in zip(*ends.tolist(), graph.edge_type.tolist(), strict=True):
            found[source, target] = max(found.get((source, target), 0), kind)
    return [[*edge, found[edge]] for edge in sorted(found)]


def _splits(names: list[str]) -> dict[str, str]:
    aside = max(round(SHARE_ASIDE * len(names)), LEAST_ASIDE)
    shuffled = sorted(names, key=lambda name: generator("graph file", name).random())
    return {
        name: "held_out" if place < aside else "test" if place < 2 * aside else "train"
        for place, name in enumerate(shuffled)
    }


def _sample(name: str, graph: GraphSample, environment: np.ndarray | None, split: str, rows: dict[str, int]) -> Sample:
    zeros: dict[str, Any] = {key: np.zeros(shape, dtype) for key, (dtype, shape) in SAMPLE_TENSORS.items()}
    present = np.zeros(len(MODALITIES), bool)
    present[GRAPH] = True
    if environment is not None:
        present[ENVIRONMENT_VECTOR] = True
        zeros["environment"] = environment
    index = np.array([rows[m] for m in graph.metabolites], dtype=np.int64)
    return Sample(
        **{**zeros, "present": present},
        sample_id=name,
        system_id=name,
        name=name,
        split=split,
        graph=replace(graph, metabolite_index=index),
        habitable=False,
    )
