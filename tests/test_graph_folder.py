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
from models.biochemistry import Chemistry
from models.configs import GraphVAEConfig
from models.graph_vae import GraphVAE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(100):
        graph_files.write_npz(tmp_path / f"g{number}.npz", chain("glc", f"m{number % 3}"), np.full(20, 0.5, np.float32))
    return tmp_path


def test_files_are_split_eighty_ten_ten_by_name(folder: Path) -> None:
    samples, chemistry = graph_samples(folder)
    splits = [s.split for s in samples]
    assert [splits.count(s) for s in ("train", "held_out", "test")] == [80, 10, 10]
    edges = [[0, 1, 2], [0, 2, 2], [0, 3, 2]]  # reversible ones of the files
    assert chemistry == {"metabolites": ["glc", "m0", "m1", "m2"], "allowed_edges": edges}
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


def test_only_edges_of_training_files_may_be_and_each_has_its_greatest_type(tmp_path: Path) -> None:
    for number in range(20):
        adjacency = np.zeros((3, 3), int)
        adjacency[0, 1] = 1 + number % 3
        np.savez(tmp_path / f"{number}.npz", adj=adjacency, edge_type=adjacency)
    splits = {s.name: s.split for s in graph_samples(tmp_path)[0]}
    for name in (name for name, split in splits.items() if split != "train"):
        np.savez(tmp_path / f"{name}.npz", adj=np.eye(3, k=-1))  # edges that only they have
    assert graph_samples(tmp_path)[1]["allowed_edges"] == [[0, 1, 3]]


def test_a_large_vocabulary_of_few_edges_makes_a_graph_vae(tmp_path: Path) -> None:
    for number in range(30):  # 600 names: 359,400 possible pairs, of which the files use 30 x 19
        names = [f"m{20 * number + i}" for i in range(20)]
        graph_files.write_npz(tmp_path / f"{number:02d}.npz", chain(*names), np.full(20, 0.5, np.float32))
    samples, chemistry = graph_samples(tmp_path)
    model = GraphVAE(GraphVAEConfig(), Chemistry.from_dict(chemistry))
    assert len(chemistry["metabolites"]) == 600 and len(model.pairs) == 19 * sum(s.split == "train" for s in samples)


def test_the_network_of_a_whole_organism_is_read(tmp_path: Path) -> None:
    for number in range(6):
        np.savez(tmp_path / f"{number}.npz", adj=np.eye(500, k=1))
    samples, chemistry = graph_samples(tmp_path)
    assert len(samples[0].graph.metabolites) == 500 and len(chemistry["allowed_edges"]) == 499


def test_graphs_without_an_edge_are_refused(tmp_path: Path) -> None:
    for number in range(6):
        np.savez(tmp_path / f"{number}.npz", adj=np.eye(2))
    with pytest.raises(InputError, match="no training graph has an edge"):
        graph_samples(tmp_path)


def test_too_few_graphs_are_refused_with_their_number(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", adj=np.array([[0, 1], [0, 0]]))
    with pytest.raises(InputError, match="1 graphs; training needs at least 6"):
        graph_samples(tmp_path)
