"""Turn a folder of anybody's graphs (one NPZ each) into samples that hold a graph, an environment and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.batch import ENVIRONMENT_VECTOR, GRAPH, MODALITIES, GraphSample, Sample
from data_pipeline.graph_files import read_folder
from data_pipeline.order import generator
from data_pipeline.shards import SAMPLE_TENSORS

TRAIN_SHARE, HELD_OUT_SHARE = 0.8, 0.1


def graph_samples(folder: str | Path) -> tuple[list[Sample], dict[str, Any]]:
    """Return the samples of all splits in order of file name, and the chemistry of their node names.

    80 % of the files train, 10 % are held out and 10 % test, by a hash of the file's name. The vocabulary is the sorted
    union of node names; nothing is known about other people's names, so every pair may be an edge.

    Raises:
        InputError: The folder or a file in it cannot be read (graph_files.read_folder).
    """
    graphs = read_folder(folder)
    vocabulary = sorted({name for _, graph, _ in graphs for name in graph.metabolites})
    rows = {name: row for row, name in enumerate(vocabulary)}
    return [_sample(*found, rows) for found in graphs], {"metabolites": vocabulary}


def _sample(name: str, graph: GraphSample, environment: np.ndarray | None, rows: dict[str, int]) -> Sample:
    zeros: dict[str, Any] = {key: np.zeros(shape, dtype) for key, (dtype, shape) in SAMPLE_TENSORS.items()}
    present = np.zeros(len(MODALITIES), bool)
    present[GRAPH] = True
    if environment is not None:
        present[ENVIRONMENT_VECTOR] = True
        zeros["environment"] = environment
    draw = generator("graph file", name).random()
    index = np.array([rows[m] for m in graph.metabolites], dtype=np.int64)
    return Sample(
        **{**zeros, "present": present},
        sample_id=name,
        system_id=name,
        name=name,
        split="train" if draw < TRAIN_SHARE else "held_out" if draw < TRAIN_SHARE + HELD_OUT_SHARE else "test",
        graph=replace(graph, metabolite_index=index),
        habitable=False,
    )
