from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from data_fixture import chain

from data_pipeline import graph_files
from data_pipeline.batch import ENVIRONMENT_VECTOR, GRAPH
from data_pipeline.errors import InputError
from data_pipeline.graph_folder import graph_samples
from data_pipeline.stream import open_stream


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(100):
        graph_files.write_npz(tmp_path / f"g{number}.npz", chain("glc", f"m{number % 3}"), np.full(20, 0.5, np.float32))
    return tmp_path


def test_files_are_split_eighty_ten_ten_by_name(folder: Path) -> None:
    samples, chemistry = graph_samples(folder)
    splits = [s.split for s in samples]
    assert [splits.count(s) for s in ("train", "held_out", "test")] == [80, 10, 10]
    assert chemistry == {"metabolites": ["glc", "m0", "m1", "m2"]}
    assert samples[0].graph.metabolite_index.tolist() == [0, 1]


def test_everything_but_graph_and_environment_is_absent(folder: Path) -> None:
    stream = open_stream("", "train", 8, graphs=folder)
    for batch in islice(stream, 3):
        assert batch.present[:, [GRAPH, ENVIRONMENT_VECTOR]].all() and batch.present.sum().item() == 16
        assert batch.graph.adjacency.sum((1, 2)).tolist() == [1] * 8 and not batch.climate.any()
        assert batch.environment.unique().tolist() == [0.5]


def test_a_graph_without_an_environment_of_ours_has_none(tmp_path: Path) -> None:
    for number in range(6):
        np.savez(tmp_path / f"{number}.npz", adj=np.array([[0, 1], [0, 0]]))
    samples, _ = graph_samples(tmp_path)
    assert sorted(s.split for s in samples) == ["held_out", "held_out", "test", "test", "train", "train"]
    assert not samples[0].present[ENVIRONMENT_VECTOR] and not samples[0].environment.any()


def test_too_few_graphs_are_refused_with_their_number(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", adj=np.array([[0, 1], [0, 0]]))
    with pytest.raises(InputError, match="1 graphs; training needs at least 6"):
        graph_samples(tmp_path)
