"""Pad a list of samples into one Batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data_pipeline.batch import TEXT, Batch, GraphBatch, Sample, SpectrumBatch, TextBatch
from data_pipeline.errors import InputError
from data_pipeline.variables import NODE_FEATURES, POSITIONAL_DIM

MULTIPLE = 8  # nodes and tokens are padded to a multiple of it: few distinct shapes, and what tensor cores like


def collate(samples: Sequence[Sample], max_nodes: int | None = None, visible: np.ndarray | None = None) -> Batch:
    """Return the samples as one batch; absent parts become zeros with `present` False.

    Args:
        samples: At least one.
        max_nodes: Pad every network to exactly this many nodes; by default to the largest one, up to a multiple of 8.
        visible: B Q bool, what the fusion may read; by default all that is present.

    Raises:
        InputError: A network has more than `max_nodes` metabolites.
    """
    present = np.stack([s.present for s in samples])
    present[:, TEXT] = [s.text is not None for s in samples]
    return Batch(
        graph=_graphs(samples, max_nodes),
        climate=_stack([s.climate for s in samples]),
        spectrum=SpectrumBatch(
            ppm=_stack([s.spectrum_ppm for s in samples]),
            error_ppm=_stack([s.spectrum_error_ppm for s in samples]),
            clean_ppm=_stack([s.spectrum_clean_ppm for s in samples]),
        ),
        text=_texts(samples),
        planet=_stack([s.planet for s in samples]),
        environment=_stack([s.environment for s in samples]),
        habitable=torch.tensor([float(s.habitable) for s in samples]),
        present=torch.from_numpy(present),
        visible=torch.from_numpy(present if visible is None else visible & present),
        sample_ids=tuple(s.sample_id for s in samples),
    )


def _stack(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))  # the one copy out of the Arrow buffers


def _padded(size: int) -> int:
    return max(MULTIPLE, -(-size // MULTIPLE) * MULTIPLE)


def _graphs(samples: Sequence[Sample], max_nodes: int | None) -> GraphBatch:
    sizes = [len(s.graph.metabolites) for s in samples]
    nodes = _padded(max(sizes)) if max_nodes is None else max_nodes
    for sample, size in zip(samples, sizes, strict=True):
        if size > nodes:
            raise InputError(f"{sample.sample_id}: {size} metabolites exceed {nodes=}")
    batch = len(samples)
    mask = torch.zeros(batch, nodes, dtype=torch.bool)
    metabolite_index = torch.zeros(batch, nodes, dtype=torch.long)
    features = torch.zeros(batch, nodes, len(NODE_FEATURES))
    positional = torch.zeros(batch, nodes, POSITIONAL_DIM)
    adjacency = torch.zeros(batch, nodes, nodes, dtype=torch.bool)
    edge_type = torch.zeros(batch, nodes, nodes, dtype=torch.long)
    for b, (sample, size) in enumerate(zip(samples, sizes, strict=True)):
        graph = sample.graph
        mask[b, :size] = True
        metabolite_index[b, :size] = torch.tensor(graph.metabolite_index)
        features[b, :size] = torch.tensor(graph.features)
        positional[b, :size] = torch.tensor(graph.positional)
        substrate, product = torch.tensor(graph.edge_index)
        adjacency[b, substrate, product] = True
        edge_type[b, substrate, product] = torch.tensor(graph.edge_type)
    return GraphBatch(
        mask=mask,
        metabolite_index=metabolite_index,
        features=features,
        positional=positional,
        adjacency=adjacency,
        edge_type=edge_type,
    )


def _texts(samples: Sequence[Sample]) -> TextBatch:
    lengths = torch.tensor([0 if s.text is None else len(s.text.token_ids) for s in samples])
    descriptions = torch.tensor([0 if s.text is None else s.text.description_length for s in samples])
    answers = torch.tensor([0 if s.text is None else s.text.answer_start for s in samples])
    token_ids = torch.zeros(len(samples), _padded(int(lengths.max())), dtype=torch.long)
    for b, sample in enumerate(samples):
        if sample.text is not None:
            token_ids[b, : lengths[b]] = torch.tensor(sample.text.token_ids)
    position = torch.arange(token_ids.shape[1])[None]
    attention_mask = position < lengths[:, None]
    return TextBatch(
        token_ids=token_ids,
        attention_mask=attention_mask,
        description_mask=position < descriptions[:, None],
        label_ids=token_ids.masked_fill(~attention_mask | (position < answers[:, None]), -100),
    )
