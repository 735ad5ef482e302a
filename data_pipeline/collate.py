"""Pad samples into one Batch, each tensor copied once from where it is stored."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipeline.batch import (
    TEXT,
    Batch,
    GraphBatch,
    GraphSample,
    Sample,
    SpectrumBatch,
    TextBatch,
    TextSample,
)
from data_pipeline.errors import InputError
from data_pipeline.shard_rows import CUBE_DTYPE, CUBE_SHAPE, FIXED, Row, SampleRow, changed
from data_pipeline.shards import SAMPLE_TENSORS, absent_graph
from data_pipeline.variables import NODE_FEATURES, STAR_TEMPERATURE

MULTIPLE = 8  # nodes and tokens are padded to a multiple of it: few distinct shapes, and what tensor cores like
SMALL_BYTES = 2**16  # below it fresh memory costs nothing worth saving


class Memory:
    """Memory for large tensors that is given out again as soon as nothing refers to it.

    Fresh pages cost as much as the copy into them. With `pinned`, memory comes from torch, whose cache of pinned blocks
    also waits for copies to a GPU that are under way.
    """

    def __init__(self, blocks: int = 16, pinned: bool = False) -> None:
        self._limit, self._pinned = blocks, pinned
        self._blocks: list[np.ndarray] = []
        self._lock = threading.Lock()

    def empty(self, shape: tuple[int, ...], dtype: str) -> Tensor:
        """Return a tensor with whatever is in it."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if self._pinned:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True).view(_TORCH[dtype]).view(shape)
        block = np.empty(size, np.uint8) if size < SMALL_BYTES else self._block(size)
        return torch.from_numpy(block[:size].view(dtype).reshape(shape))

    def _block(self, size: int) -> np.ndarray:
        with self._lock:
            for block in self._blocks:
                if sys.getrefcount(block) == _ONLY_HERE and size <= block.nbytes <= 2 * size:
                    return block
            fresh = np.empty(size, np.uint8)
            self._blocks = [*self._blocks, fresh][-self._limit :] if self._limit else []
            return fresh


_ONLY_HERE = 3  # references to a block that nobody uses: the list, the loop variable, the argument of getrefcount
_TORCH = {"<f4": torch.float32, "|b1": torch.bool}


def collate(samples: Sequence[Sample], max_nodes: int | None = None, visible: np.ndarray | None = None) -> Batch:
    """Return the samples as one batch; absent parts become zeros with `present` False.

    Args:
        samples: At least one.
        max_nodes: Pad every network to exactly this many nodes; by default to the largest one, up to a multiple of 8.
        visible: B Q bool, what the fusion may read; by default all that is present.

    Raises:
        InputError: A network has more than `max_nodes` metabolites.
    """
    return collate_rows([SampleRow(s) for s in samples], [s.text for s in samples], Memory(0), max_nodes, visible)


def collate_rows(
    rows: Sequence[Row],
    texts: Sequence[TextSample | None],
    memory: Memory,
    max_nodes: int | None = None,
    visible: np.ndarray | None = None,
) -> Batch:
    """Return rows of shards, with the text that was written about them, as one batch; else like `collate`."""
    climate = memory.empty((len(rows), *CUBE_SHAPE), CUBE_DTYPE)
    fixed = np.empty(len(rows), FIXED)
    packed = fixed.view(np.uint8).reshape(len(rows), FIXED.itemsize)
    for place, row in zip(packed, rows, strict=True):
        place[:] = row.fixed()
    _copy_cubes(rows, climate)
    present = fixed["present"].copy()
    present[:, TEXT] = [text is not None for text in texts]
    return Batch(
        graph=_graphs(rows, max_nodes),
        climate=climate,
        spectrum=SpectrumBatch(
            ppm=_tensor(fixed["spectrum_ppm"]),
            error_ppm=_tensor(fixed["spectrum_error_ppm"]),
            clean_ppm=_tensor(fixed["spectrum_clean_ppm"]),
            star_temperature_k=_tensor(fixed["planet"][:, STAR_TEMPERATURE]),
        ),
        text=_texts(texts),
        planet=_tensor(fixed["planet"]),
        environment=_tensor(fixed["environment"]),
        habitable=torch.from_numpy(fixed["habitable"].astype(np.float32)),
        present=torch.from_numpy(present),
        visible=torch.from_numpy(present if visible is None else visible & present),
        sample_ids=tuple(row.sample_id for row in rows),
    )


def _copy_cubes(rows: Sequence[Row], climate: Tensor) -> None:
    files = {row.file: row for row in rows}
    for file, row in files.items():
        if file is not None and not file.whole():
            raise changed(file, row.sample_id)
    views = [row.cube(out) for row, out in zip(rows, climate.numpy(), strict=True)]
    content = climate.view(torch.uint8).view(len(rows), -1)
    there = [view for view in views if view is not None]
    if len(there) == len(rows):
        torch.stack(there, out=content)
        return
    for out, view in zip(content, views, strict=True):
        if view is not None:
            out.copy_(view)


def _tensor(field: np.ndarray) -> Tensor:
    return torch.from_numpy(field.copy())


def padded(size: int) -> int:
    """Return the next multiple of MULTIPLE."""
    return max(MULTIPLE, -(-size // MULTIPLE) * MULTIPLE)


def _graphs(rows: Sequence[Row], max_nodes: int | None) -> GraphBatch:
    graphs = [row.graph() for row in rows]
    for row, graph in zip(rows, graphs, strict=True):
        if max_nodes is not None and len(graph.metabolites) > max_nodes:
            raise InputError(f"{row.sample_id}: {len(graph.metabolites)} metabolites exceed nodes={max_nodes}")
    return graph_batch(graphs, max_nodes)


def graph_batch(graphs: Sequence[GraphSample], nodes: int | None = None) -> GraphBatch:
    """Pad graphs to `nodes` nodes; by default to those of the largest, rounded up to MULTIPLE."""
    sizes = [len(graph.metabolites) for graph in graphs]
    nodes = padded(max(sizes)) if nodes is None else nodes
    mask = np.arange(nodes) < np.array(sizes)[:, None]
    index = np.zeros(mask.shape, np.int64)
    features = np.zeros((*mask.shape, len(NODE_FEATURES)), np.float32)
    there = [graph for graph in graphs if graph.metabolites]
    if there:  # in one assignment for all networks: those nodes that are not padding, row by row
        index[mask] = np.concatenate([graph.metabolite_index for graph in there])
        features[mask] = np.concatenate([graph.features for graph in there])
    edge_type = _edge_types(graphs, nodes)
    return GraphBatch(
        mask=torch.from_numpy(mask),
        metabolite_index=torch.from_numpy(index),
        features=torch.from_numpy(features),
        adjacency=torch.from_numpy(edge_type > 0),
        edge_type=torch.from_numpy(edge_type),
    )


def _edge_types(graphs: Sequence[GraphSample], nodes: int) -> np.ndarray:
    """Return the type of each edge, B N N, 0 where there is none; filled in one assignment for all networks."""
    found = np.zeros((len(graphs), nodes, nodes), np.int64)
    edges = np.concatenate([graph.edge_index for graph in graphs], axis=1)
    owner = np.repeat(np.arange(len(graphs)), [graph.edge_type.size for graph in graphs])
    found[owner, edges[0], edges[1]] = np.concatenate([graph.edge_type for graph in graphs])
    return found


def _texts(texts: Sequence[TextSample | None]) -> TextBatch:
    if not any(texts):
        nothing = torch.zeros(len(texts), MULTIPLE, dtype=torch.long)
        unread = torch.zeros(len(texts), MULTIPLE, dtype=torch.bool)
        return TextBatch(
            token_ids=nothing, attention_mask=unread, description_mask=unread, label_ids=torch.full_like(nothing, -100)
        )
    lengths = torch.tensor([0 if text is None else len(text.token_ids) for text in texts])
    descriptions = torch.tensor([0 if text is None else text.description_length for text in texts])
    answers = torch.tensor([0 if text is None else text.answer_start for text in texts])
    token_ids = torch.zeros(len(texts), padded(int(lengths.max())), dtype=torch.long)
    for b, text in enumerate(texts):
        if text is not None:
            token_ids[b, : lengths[b]] = torch.from_numpy(text.token_ids)
    position = torch.arange(token_ids.shape[1])[None]
    attention_mask = position < lengths[:, None]
    return TextBatch(
        token_ids=token_ids,
        attention_mask=attention_mask,
        description_mask=position < descriptions[:, None],
        label_ids=token_ids.masked_fill(~attention_mask | (position < answers[:, None]), -100),
    )


def absent_row(sample_id: str) -> SampleRow:
    """Return a row of which nothing is present: it adds nothing to any sum or count of a loss."""
    tensors: dict[str, Any] = {name: np.zeros(shape, dtype) for name, (dtype, shape) in SAMPLE_TENSORS.items()}
    return SampleRow(
        Sample(
            sample_id=sample_id,
            system_id=sample_id,
            name=sample_id,
            split="",
            habitable=False,
            graph=absent_graph(),
            **tensors,
        )
    )
