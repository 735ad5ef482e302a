from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from data_fixture import chain, sample

from data_pipeline.batch import CLIMATE, GRAPH, TEXT, TextSample
from data_pipeline.collate import Memory, collate
from data_pipeline.errors import InputError


def words(*token_ids: int, description_length: int, answer_start: int) -> TextSample:
    return TextSample(token_ids=np.array(token_ids), description_length=description_length, answer_start=answer_start)


def test_networks_are_padded_to_a_multiple_of_eight_nodes_without_edges() -> None:
    graph = collate([sample(1, chain("a", "b", "c")), sample(2, chain(*map(str, range(9)))), sample(3)]).graph
    assert graph.mask.shape == (3, 16) and graph.mask.sum(1).tolist() == [3, 9, 0]
    assert graph.adjacency.nonzero()[:2].tolist() == [[0, 0, 1], [0, 1, 2]]
    assert graph.adjacency.sum((1, 2)).tolist() == [2, 8, 0]
    assert graph.edge_type[0, 1, 2] == 2 and graph.edge_type[~graph.adjacency].sum() == 0
    assert graph.features[0, :, 0].tolist()[:4] == [0.0, 1.0, 2.0, 0.0]


def test_a_batch_without_any_network_still_has_eight_empty_nodes() -> None:
    assert collate([sample(1)]).graph.mask.tolist() == [[False] * 8]


def test_a_number_of_nodes_can_be_imposed_and_a_larger_network_is_named() -> None:
    assert collate([sample(1, chain("a", "b"))], max_nodes=64).graph.mask.shape == (1, 64)
    with pytest.raises(InputError, match="planet-0000001: 3 metabolites exceed nodes=2"):
        collate([sample(1, chain("a", "b", "c"))], max_nodes=2)


def test_only_the_answer_is_learnt_and_only_the_description_is_read() -> None:
    text = words(5, 6, 7, 8, 9, description_length=2, answer_start=3)
    batch = collate([replace(sample(1), text=text), sample(2)])
    assert batch.text.token_ids[0].tolist() == [5, 6, 7, 8, 9, 0, 0, 0]
    assert batch.text.label_ids[0].tolist() == [-100, -100, -100, 8, 9, -100, -100, -100]
    assert batch.text.description_mask[0].tolist() == [True, True] + [False] * 6
    assert batch.text.attention_mask.sum(1).tolist() == [5, 0]
    assert (batch.text.label_ids[1] == -100).all() and batch.present[:, TEXT].tolist() == [True, False]


def test_presence_and_labels_follow_the_samples() -> None:
    batch = collate([sample(1, chain("a", "b")), sample(2)])
    assert batch.present[:, GRAPH].tolist() == [True, False] and batch.present[:, CLIMATE].all()
    assert batch.habitable.tolist() == [1.0, 0.0] and batch.sample_ids == ("planet-0000001", "planet-0000002")
    assert torch.equal(batch.visible, batch.present)
    assert batch.climate[1].unique().tolist() == [2.0] and batch.spectrum.clean_ppm[0, 1, 5] == 1.0


def test_what_is_shown_is_never_more_than_what_is_present() -> None:
    batch = collate([sample(2)], visible=np.ones((1, 6), bool))
    assert torch.equal(batch.visible, batch.present)


def test_the_batch_owns_its_memory() -> None:
    one = sample(1)
    batch = collate([one])
    one.climate[:] = 9
    one.present[:] = False
    assert batch.climate.max() == 1 and bool(batch.present[0, CLIMATE])


def test_memory_is_given_out_again_when_nothing_refers_to_it() -> None:
    memory = Memory(blocks=2)
    first = memory.empty((4, 53, 32, 64), "<f4")
    place = first.data_ptr()
    part = first[1:3]
    del first
    second = memory.empty((4, 53, 32, 64), "<f4")
    assert second.data_ptr() != place  # a part of the first is in use
    del part
    assert memory.empty((3, 53, 32, 64), "<f4").data_ptr() == place  # a little smaller fits


def test_more_memory_than_blocks_is_lent_and_not_kept() -> None:
    memory = Memory(blocks=2)
    held = [memory.empty((2**18,), "<f4") for _ in range(4)]
    assert len({t.data_ptr() for t in held}) == 4 and len(memory._blocks) == 2
    assert Memory(blocks=0).empty((2**18,), "<f4").shape == (2**18,)
