from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from data_fixture import chain, sample

from data_pipeline.batch import CLIMATE, GRAPH, PLANET_PARAMETERS, Batch
from data_pipeline.collate import collate


@pytest.fixture
def batch() -> Batch:
    return collate([sample(1, chain("a", "b", "c")), sample(2)])


def test_a_hidden_modality_is_zero_and_marked_absent(batch: Batch) -> None:
    hidden = batch.hide("graph", "climate")
    assert not hidden.present[:, [GRAPH, CLIMATE]].any() and hidden.climate.abs().sum() == 0
    assert not hidden.graph.mask.any() and not hidden.graph.adjacency.any() and hidden.graph.features.sum() == 0
    assert torch.equal(hidden.planet, batch.planet) and not hidden.visible[:, GRAPH].any()


def test_keep_is_the_complement_of_hide(batch: Batch) -> None:
    kept = batch.keep("planet")
    assert kept.present.sum().item() == 2 and bool(kept.present[:, PLANET_PARAMETERS].all())
    assert kept.spectrum.ppm.abs().sum() == 0 and torch.equal(kept.planet, batch.planet)


def test_an_unknown_modality_is_named_with_those_that_exist(batch: Batch) -> None:
    with pytest.raises(ValueError, match=r"unknown modality \['weather'\]; choose from"):
        batch.keep("weather")


def test_the_sparse_form_holds_the_same_edges(batch: Batch) -> None:
    sparse = batch.graph.to_pyg()
    assert sparse.num_nodes == 3 and sparse.edge_index.tolist() == [[0, 1], [1, 2]]
    assert sparse.edge_type.tolist() == [2, 2] and sparse.num_graphs == 2


def test_parts_of_different_sizes_are_refused(batch: Batch) -> None:
    with pytest.raises(ValueError, match="batch.graph holds 1 samples, sample_ids holds 2"):
        replace(batch, graph=collate([sample(1)]).graph)


def test_a_wrong_number_of_modalities_is_refused(batch: Batch) -> None:
    three = torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="batch.present has 3 columns, expected 6"):
        replace(batch, present=three, visible=three)


def test_showing_what_is_not_present_is_refused(batch: Batch) -> None:
    with pytest.raises(ValueError, match="batch.visible shows a modality that is not present"):
        replace(batch, visible=torch.ones_like(batch.visible))


def test_moving_a_batch_keeps_every_number(batch: Batch) -> None:
    moved = batch.to("cpu")
    assert torch.equal(moved.graph.adjacency, batch.graph.adjacency) and moved.sample_ids == batch.sample_ids
