"""Turn a folder of anybody's graphs (one NPZ each) into samples that hold a graph, an environment and nothing else."""

from __future__ import annotations

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
    vocabulary is the sorted union of node names; nothing is known about other people's names, so every pair may be an
    edge.

    Raises:
        InputError: The folder or a file in it cannot be read (graph_files.read_folder), or there are too few files.
    """
    graphs = read_folder(folder)
    if len(graphs) < 3 * LEAST_ASIDE:
        raise InputError(f"data.graphs={folder}: {len(graphs)} graphs; training needs at least {3 * LEAST_ASIDE}")
    vocabulary = sorted({name for _, graph, _ in graphs for name in graph.metabolites})
    rows = {name: row for row, name in enumerate(vocabulary)}
    splits = _splits([name for name, _, _ in graphs])
    return [_sample(*found, splits[found[0]], rows) for found in graphs], {"metabolites": vocabulary}


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
