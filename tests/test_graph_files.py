from __future__ import annotations

import json
import pickle
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_fixture import chain

from data_pipeline import graph_files
from data_pipeline.errors import InputError


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_a_graph_comes_back_from_its_file_as_it_was_written(tmp_path: Path) -> None:
    graph, environment = chain("glc__D_e", "g6p_c", "pyr_c"), np.arange(20, dtype=np.float32)
    graph_files.write_npz(tmp_path / "a.npz", graph, environment)
    after, there = graph_files.read_npz(tmp_path / "a.npz")
    assert after.metabolites == graph.metabolites and after.organism == "iML1515" and after.nutrients == ("o2_e",)
    assert after.edge_index.tolist() == [[0, 1], [1, 2]] and after.edge_type.tolist() == [2, 2]
    assert (
        after.features.tolist() == graph.features.tolist() and there is not None and there.tolist() == list(range(20))
    )


def test_a_legacy_file_needs_no_types_features_or_matching_environment(tmp_path: Path) -> None:
    meta = np.array(json.dumps({"nodes": ["C00031", "C00022"]}))
    path = save(tmp_path / "a.npz", adj=np.array([[0, 1], [0, 0]]), env=np.ones(5), meta=meta)
    graph, environment = graph_files.read_npz(path)
    assert graph.metabolites == ("C00031", "C00022") and graph.edge_index.tolist() == [[0], [1]]
    assert graph.edge_type.tolist() == [1] and environment is None and not graph.features.any()


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"x": np.ones(3)}, "not an NPZ with `adj`"),
        ({"adj": np.array([{"a": 1}], dtype=object)}, "write it without pickle"),
        ({"adj": np.ones((2, 3))}, r"adj has shape \(2, 3\)"),
        ({"adj": np.zeros((513, 513))}, "N from 1 to 512"),
        ({"adj": np.eye(2), "meta": np.array({"nodes": ["a", "b"]}, dtype=object)}, "write it without pickle"),
        ({"adj": np.eye(2), "meta": np.array("nodes: a, b")}, "JSON `meta`"),
        ({"adj": np.array([["0", "1"], ["0", "0"]])}, "adj holds what is no finite real number"),
        ({"adj": np.eye(2, dtype=complex)}, "adj holds what is no finite real number"),
        ({"adj": np.eye(2), "node_label": np.arange(3)}, "node_label holds 3 names for 2 nodes"),
        ({"adj": np.eye(2), "meta": np.array('{"nodes": ["a", "b", "c"]}')}, "meta.nodes holds 3 names for 2 nodes"),
        ({"adj": np.eye(2), "node_label": np.array([0.5, 1])}, "node_label has shape .* must be N whole numbers"),
        ({"adj": np.eye(2), "node_label": np.array([np.nan, 1])}, "node_label has shape .* must be N whole numbers"),
        ({"adj": np.eye(2, k=1), "meta": np.array('{"directed": false}')}, r"adj\[0, 1\] has no adj\[1, 0\]"),
        ({"adj": np.eye(2), "meta": np.array('{"nodes": ["a", "a"]}')}, "1 different names for 2 nodes"),
        ({"adj": np.array(1)}, r"adj has shape \(\)"),
        ({"adj": np.ones((2, 2)), "edge_type": 9 * np.ones((2, 2))}, "edge_type must be N x N and 1 to 3"),
        ({"adj": np.eye(2), "env": np.array([np.nan])}, "env holds what is no finite real number"),
        ({"adj": np.array([[0, np.nan], [0, 0]])}, "adj holds what is no finite real number"),
        ({"adj": np.eye(2), "x": np.array(["carbon"])}, "x holds what is no finite real number"),
        ({"adj": np.eye(2), "edge_type": np.array([["a", "b"]])}, "edge_type holds what is no finite real number"),
    ],
)
def test_what_is_wrong_with_a_graph_file_is_named(tmp_path: Path, arrays: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        graph_files.read_npz(save(tmp_path / "a.npz", **arrays))


@pytest.mark.parametrize("meta", ["[]", '{"nodes": null, "nutrients": null}', '{"nodes": 3, "nutrients": "o2_e"}'])
def test_names_that_are_no_list_are_taken_as_absent_and_no_node_is_joined_to_itself(tmp_path: Path, meta: str) -> None:
    np.savez(tmp_path / "a.npz", adj=np.ones((2, 2)), meta=np.array(meta))
    graph, _ = graph_files.read_npz(tmp_path / "a.npz")
    assert (graph.metabolites, graph.nutrients) == (("n0", "n1"), ())
    assert graph.edge_index.T.tolist() == [[0, 1], [1, 0]]


def test_labels_may_repeat_and_are_words_of_whole_numbers(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", adj=np.eye(3) + np.eye(3, k=1), node_label=np.array([6.0, 8.0, 6.0]))
    read = graph_files.read_graph(path)
    assert read.names == ("6", "8", "6") and read.loops == 3 and read.adjacency.sum() == 2 and read.directed is None
    with pytest.raises(InputError, match="2 different names for 3 nodes; name each node differently"):
        graph_files.read_npz(path)


@pytest.mark.parametrize("how", ["a single array", "cut in half", "20 bytes changed", "a pickle"])
def test_a_file_that_is_no_npz_or_is_damaged_is_named(tmp_path: Path, how: str) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, adj=np.random.default_rng(0).integers(0, 2, (40, 40)))
    content = path.read_bytes()
    if how == "a single array":
        with path.open("wb") as file:
            np.save(file, np.eye(2))
    elif how == "a pickle":
        path.write_bytes(pickle.dumps({"adj": 1}))
    else:
        half, changed = content[: len(content) // 2], content[:150] + bytes(20) + content[170:]
        path.write_bytes(half if how == "cut in half" else changed)
    with pytest.raises(InputError, match=r"a\.npz: not an NPZ with `adj`"):
        graph_files.read_npz(path)


def test_a_folder_is_read_in_order_of_name_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no .npz file there"):
        graph_files.read_folder(tmp_path)
    for name in ("b", "a"):
        save(tmp_path / f"{name}.npz", adj=np.array([[0, 1], [0, 0]]))
    assert [name for name, _, _ in graph_files.read_folder(tmp_path)] == ["a", "b"]


def test_graphml_holds_nodes_directed_edges_and_facts(tmp_path: Path) -> None:
    graph_files.write_graphml(tmp_path / "a.graphml", chain("a&b", "c"), {"feasible": True})
    root = ElementTree.parse(tmp_path / "a.graphml").getroot()
    space = "{http://graphml.graphdrawing.org/xmlns}"
    edge = next(root.iter(f"{space}edge"))
    assert [n.attrib["id"] for n in root.iter(f"{space}node")] == ["a&b", "c"]
    assert (edge.attrib["source"], edge.attrib["target"]) == ("a&b", "c")
    assert [d.text for d in edge] == ["reversible"]
    assert [d.text for d in root.iter(f"{space}data")][0] == "True"
