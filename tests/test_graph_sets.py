"""The sets of graphs of the generation benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import metabolic_metrics, metabolic_sets, public_sets
from benchmarks.graph_sets import GraphSet
from data_pipeline.batch import GraphSample
from data_pipeline.errors import InputError
from data_pipeline.graph_files import write_npz
from data_pipeline.variables import ENVIRONMENT, NODE_FEATURES

PLANETS, ASIDE = 60, 6


# --- metabolic --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def metabolic() -> GraphSet:
    return metabolic_sets.load("metabolic", PLANETS, ASIDE)[0]


@pytest.fixture(scope="module")
def strangers() -> tuple[GraphSet, tuple[str, ...]]:
    return metabolic_sets.load("metabolic_organism", PLANETS, ASIDE)


def test_the_organics_of_a_test_environment_are_never_offered_together_in_training(metabolic: GraphSet) -> None:
    train, held_out, test = (
        {metabolic_sets.organics(g.condition) for g in part}
        for part in (metabolic.train, metabolic.held_out, metabolic.test)
    )
    assert len(test) >= 2 and not train & test and not train & held_out and not held_out & test
    assert len({g.condition.tobytes() for g in metabolic.test}) >= ASIDE


def test_every_true_network_is_allowed_and_makes_atp_where_it_was_found(metabolic: GraphSet) -> None:
    assert metabolic.allowed is not None
    for graph in metabolic.test:
        assert metabolic.allowed[np.ix_(graph.labels, graph.labels)][graph.adjacency].all()
        assert len(set(graph.labels.tolist())) == len(graph.labels)
    asked = [
        metabolic_metrics.question_of(g, metabolic_metrics.edges_of(g, metabolic.vocabulary)) for g in metabolic.test
    ]
    assert metabolic_metrics.share_feasible(asked) == 1.0
    assert metabolic_metrics.share_feasible([q._replace(nutrients=()) for q in asked]) == 0.0  # salts feed nobody


def test_organisms_that_are_left_out_feed_on_the_test_networks_and_no_other_network_is_in_it(
    metabolic: GraphSet, strangers: tuple[GraphSet, tuple[str, ...]]
) -> None:
    data, organisms = strangers
    assert len(organisms) == metabolic_sets.ORGANISMS_ASIDE and len(data.test) > 0
    asked = [metabolic_metrics.question_of(g, metabolic_metrics.edges_of(g, data.vocabulary)) for g in data.test]
    assert metabolic_metrics.share_feasible(asked, organisms) == 1.0
    assert len(data.train) < len(metabolic.train) and len(data.test) < len(metabolic.test)
    trained = {g.condition.tobytes() for g in data.train}
    assert not trained & {g.condition.tobytes() for g in data.test}


def test_a_set_that_is_read_again_is_the_same(metabolic: GraphSet) -> None:
    metabolic_sets._load.cache_clear()
    again = metabolic_sets.load("metabolic", PLANETS, ASIDE)[0]
    assert again.vocabulary == metabolic.vocabulary and len(again.train) == len(metabolic.train)
    assert all((a.adjacency == b.adjacency).all() for a, b in zip(again.train, metabolic.train, strict=True))


# --- packed files -----------------------------------------------------------------------------------------------------
def write_packed(path: Path, graphs: int, directed: bool = False, labels: bool = False) -> None:
    """Write rings of 3, 4, 5, ... nodes."""
    src, dst, nodes, edges = [], [], [0], [0]
    for size in range(3, 3 + graphs):
        pairs = [(i, (i + 1) % size) for i in range(size)]
        pairs += [] if directed else [(t, s) for s, t in pairs]
        src += [s for s, _ in pairs]
        dst += [t for _, t in pairs]
        nodes.append(nodes[-1] + size)
        edges.append(edges[-1] + len(pairs))
    more = {"node_label": np.arange(nodes[-1]) % 2 + 1} if labels else {}
    np.savez(path, src=np.int32(src), dst=np.int32(dst), node_ptr=nodes, edge_ptr=edges, **more)


def test_a_packed_set_is_read_whole_and_split_the_same_way_each_time(tmp_path: Path) -> None:
    write_packed(tmp_path / "community_small.npz", 50)
    data = public_sets.load("community_small", tmp_path)
    assert [len(part) for part in (data.train, data.held_out, data.test)] == [32, 8, 10]
    assert not data.directed and not data.named and data.vocabulary == ("label 0",)
    sizes = [len(g.labels) for part in (data.train, data.held_out, data.test) for g in part]
    assert sorted(sizes) == list(range(3, 53))
    assert all(g.adjacency.sum() == 2 * len(g.labels) and g.condition.shape == (0,) for g in data.train)
    assert [len(g.labels) for g in public_sets.load("community_small", tmp_path).train] == sizes[:32]


def test_planar_comes_in_its_published_parts(tmp_path: Path) -> None:
    for part, number in (("train", 5), ("val", 2), ("test", 3)):
        write_packed(tmp_path / f"planar_{part}.npz", number)
    data = public_sets.load("planar", tmp_path)
    assert [len(part) for part in (data.train, data.held_out, data.test)] == [5, 2, 3]


def test_a_set_that_is_not_in_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"enzymes\.npz: not a packed set"):
        public_sets.load("enzymes", tmp_path)


# --- any folder -------------------------------------------------------------------------------------------------------
def test_a_folder_of_packed_graphs_keeps_directions_and_labels(tmp_path: Path) -> None:
    write_packed(tmp_path / "a.npz", 12, directed=True, labels=True)
    write_packed(tmp_path / "b.npz", 12, directed=True, labels=True)
    data = public_sets.load_folder(tmp_path)
    assert data.directed and data.vocabulary == ("label 1", "label 2") and data.name == tmp_path.name
    assert [len(part) for part in (data.train, data.held_out, data.test)] == [20, 2, 2]
    assert {g.labels.sum() for g in data.train} >= {1, 2, 3}


def test_packed_files_that_are_named_as_parts_are_those_parts(tmp_path: Path) -> None:
    for part, number in (("train", 6), ("val", 2), ("test", 4)):
        write_packed(tmp_path / f"x_{part}.npz", number, directed=True)
    data = public_sets.load_folder(tmp_path)
    assert [len(part) for part in (data.train, data.held_out, data.test)] == [6, 2, 4]


def write_single(folder: Path, number: int, names: list[str] | None = None) -> None:
    for i in range(number):
        size = 3 + i % 3
        adjacency = np.zeros((size, size), np.uint8)
        adjacency[range(size - 1), range(1, size)] = 1
        more = {"meta": np.array(json.dumps({"nodes": names[:size]}))} if names else {}
        np.savez(folder / f"{i:02d}.npz", adj=adjacency, **more)


def test_single_graphs_without_names_have_one_label_and_no_condition(tmp_path: Path) -> None:
    write_single(tmp_path, 10)
    data = public_sets.load_folder(tmp_path)
    assert data.directed and not data.named and data.vocabulary == ("node",) and data.allowed is None
    assert [len(part) for part in (data.train, data.held_out, data.test)] == [6, 2, 2]
    assert data.train[0].condition.shape == (0,)


def test_names_of_nodes_are_the_vocabulary(tmp_path: Path) -> None:
    write_single(tmp_path, 10, ["glc", "pyr", "ac", "lac", "for"])
    data = public_sets.load_folder(tmp_path)
    assert data.named and data.vocabulary == ("ac", "for", "glc", "lac", "pyr")
    assert data.train[0].labels[:2].tolist() == [2, 4]


def test_names_that_a_graph_repeats_are_labels_of_exchangeable_nodes(tmp_path: Path) -> None:
    write_single(tmp_path, 9, ["C", "C", "O", "C", "N"])
    data = public_sets.load_folder(tmp_path)
    assert not data.named and data.vocabulary == ("C", "N", "O") and data.train[0].labels[:3].tolist() == [0, 0, 2]


def test_undirected_graphs_that_say_they_are_directed_are(tmp_path: Path) -> None:
    for said, folder in ((True, tmp_path / "a"), (None, tmp_path / "b")):
        folder.mkdir()
        for i in range(6):
            np.savez(folder / f"{i}.npz", adj=np.ones((3, 3)), meta=np.array(json.dumps({"directed": said})))
        assert public_sets.load_folder(folder).directed == bool(said)


def test_edges_from_a_node_to_itself_are_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(6):
        np.savez(tmp_path / f"{i}.npz", adj=np.ones((3, 3)))
    assert not public_sets.load_folder(tmp_path).train[0].adjacency.diagonal().any()
    assert "18 nodes are joined to themselves" in capsys.readouterr().err


def test_an_environment_that_is_the_same_everywhere_is_no_condition(tmp_path: Path) -> None:
    for i in range(6):
        np.savez(tmp_path / f"{i}.npz", adj=np.eye(3, k=1), env=np.ones(5))
    assert public_sets.load_folder(tmp_path).train[0].condition.shape == (0,)
    np.savez(tmp_path / "6.npz", adj=np.eye(3, k=1), env=np.zeros(5))
    assert public_sets.load_folder(tmp_path).train[0].condition.shape == (5,)
    np.savez(tmp_path / "7.npz", adj=np.eye(3, k=1), env=np.zeros(4))
    with pytest.raises(InputError, match=r"env holds 4 in 7\.npz, 5 in 6\.npz numbers; give every file as many"):
        public_sets.load_folder(tmp_path)


def test_names_in_some_files_only_are_refused(tmp_path: Path) -> None:
    write_single(tmp_path, 8, ["a", "b", "c", "d", "e"])
    np.savez(tmp_path / "x.npz", adj=np.eye(3, k=1))
    with pytest.raises(InputError, match=r"1 of 9 files, x\.npz first, name no nodes"):
        public_sets.load_folder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"src": np.array([0.5] * 36)}, "src and dst must be node numbers"),
        ({"src": np.full(36, 5)}, "src and dst must be node numbers of their graph, from 0"),
        ({"src": np.full(36, -1)}, "src and dst must be node numbers"),
        ({"dst": np.zeros(35, int)}, "not a packed set"),
        ({"node_ptr": np.array([0, 3, 2, 12, 18])}, "node_ptr must be whole numbers that start at 0 and never fall"),
        ({"node_ptr": np.array([0.0, 3, 7, 12, 18])}, "node_ptr must be whole numbers"),
        ({"node_ptr": np.array([0, 3, 3, 12, 18])}, "graphs of 0 to 9 nodes; the benchmark takes 1 to 512"),
        ({"edge_ptr": np.array([0, 6, 14, 24, 30])}, "edge_ptr ends at 30 after 4 graphs"),
        ({"edge_ptr": np.array([0, 6, 36])}, "edge_ptr ends at 36 after 2 graphs; node_ptr has 4 graphs"),
        ({"node_label": np.zeros(5)}, r"node_label of shape \(5,\)"),
        ({"node_label": np.full(18, np.nan)}, r"node_label of shape \(18,\) and type float64"),
        ({"node_label": np.array(["a"] * 18, dtype=object)}, "written without pickle"),
    ],
)
def test_what_is_wrong_with_a_packed_file_is_named(
    tmp_path: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    write_packed(tmp_path / "a.npz", 4)  # 18 nodes, 36 edges
    with np.load(tmp_path / "a.npz") as file:
        table = {name: file[name] for name in file.files}
    np.savez(tmp_path / "a.npz", **table | changes)
    with pytest.raises(InputError, match=message):
        public_sets.load_folder(tmp_path)


def test_environments_of_single_graphs_are_their_conditions(tmp_path: Path) -> None:
    sample = GraphSample(
        metabolites=("a", "b"),
        metabolite_index=np.zeros(2, np.int64),
        features=np.zeros((2, len(NODE_FEATURES)), np.float32),
        edge_index=np.array([[0], [1]]),
        edge_type=np.ones(1, np.int64),
    )
    for i in range(8):
        write_npz(tmp_path / f"{i}.npz", sample, np.full(len(ENVIRONMENT), i, np.float32))
    data = public_sets.load_folder(tmp_path)
    values = [g.condition[0] for part in (data.train, data.held_out, data.test) for g in part]
    assert sorted(values) == list(range(8))


def test_too_few_graphs_are_refused(tmp_path: Path) -> None:
    write_single(tmp_path, 5)
    with pytest.raises(InputError, match="5 graphs; training and judging need at least 6"):
        public_sets.load_folder(tmp_path)


def test_single_graphs_beside_packed_ones_are_refused(tmp_path: Path) -> None:
    write_single(tmp_path, 5)
    write_packed(tmp_path / "packed.npz", 5)
    with pytest.raises(InputError, match="give a folder of one kind"):
        public_sets.load_folder(tmp_path)


def test_a_folder_without_graphs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.npz file there"):
        public_sets.load_folder(tmp_path)
