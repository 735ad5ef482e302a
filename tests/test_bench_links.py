"""Link prediction benchmark: its measures, what each task hides, the rules beside the models, and its command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import bench_links as bench, link_tasks as tasks
from benchmarks.link_tasks import Edges, Features, Network
from benchmarks.peers.link_models import RULES
from data_pipeline.errors import InputError
from data_pipeline.metabolic_graph import composition

SMALL = "iLJ478"  # Thermotoga


@pytest.fixture(scope="module")
def network() -> Network:
    return tasks.metabolic(SMALL)


def as_set(edges: Edges) -> set[tuple[int, int]]:
    return {(i, j) for i, j in edges.tolist()}


def turned(edges: Edges) -> Edges:
    return edges[:, ::-1]


def write_ring(folder: Path, nodes: int = 60) -> None:
    """Write a citation file: each node is joined to the two after it, and has its number over four as its only word."""
    source = np.repeat(np.arange(nodes), 2)
    target = (source + np.tile([1, 2], nodes)) % nodes
    np.savez(
        folder / "cora.npz",
        src=np.r_[source, target],
        dst=np.r_[target, source],
        num_nodes=nodes,
        x_row=np.arange(nodes),
        x_col=np.arange(nodes) // 4,
        x_val=np.ones(nodes),
        num_features=nodes // 4,
    )


def test_a_perfect_ranking_scores_a_hundred_a_reversed_one_zero_and_equal_scores_fifty() -> None:
    high, low = np.array([3.0, 4.0]), np.array([1.0, 2.0])
    assert bench.quality(high, low) == (100.0, 100.0)
    assert bench.quality(low, high).auc == 0.0
    assert bench.quality(low, high).ap == pytest.approx(100 * (1 / 3 + 2 / 4) / 2)
    assert bench.quality(np.zeros(5), np.zeros(5)) == (50.0, 50.0)


@pytest.mark.parametrize("name", ["gae", "vgae"])
def test_a_symmetric_decoder_gives_exactly_fifty_where_the_absent_are_the_reversed(network: Network, name: str) -> None:
    split = tasks.direction(network, 0)
    graph = bench.graph_of(network, split.known, "cpu")
    model = bench.learner(name, network.features.columns, True, "cpu")
    for way in (False, True):
        assert bench.judged(model, graph, split.test, way) == pytest.approx((50.0, 50.0), abs=1e-9)


@pytest.mark.parametrize("make", [tasks.general, tasks.direction])
def test_known_held_out_and_tested_links_share_none_and_are_all(network: Network, make: object) -> None:
    split = make(network, 0)  # type: ignore[operator]
    parts = [as_set(e) for e in (split.known, split.held_out.linked, split.test.linked)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert set.union(*parts) == as_set(network.edges)


def test_a_tenth_is_tested_and_a_twentieth_held_out(network: Network) -> None:
    split = tasks.general(network, 0)
    assert len(split.test.linked) == len(split.test.absent) == len(network.edges) // 10
    assert len(split.held_out.linked) == len(split.held_out.absent) == len(network.edges) // 20


def test_absent_pairs_are_absent_from_the_whole_network_and_asked_once(network: Network) -> None:
    split = tasks.general(network, 0)
    tested, held_out = as_set(split.test.absent), as_set(split.held_out.absent)
    assert not (tested | held_out) & as_set(network.edges)
    assert not tested & held_out
    assert len(tested) == len(split.test.absent)


def test_seeds_hide_other_links_and_one_seed_always_the_same(network: Network) -> None:
    first, again, other = (tasks.general(network, seed).test.linked for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert as_set(first) != as_set(other)


def test_direction_asks_only_for_links_without_a_reverse_and_keeps_the_others(network: Network) -> None:
    split = tasks.direction(network, 0)
    assert as_set(split.test.absent) == as_set(turned(split.test.linked))
    assert not as_set(split.test.absent) & as_set(network.edges)
    both = network.edges[tasks.has_reverse(network)]
    assert as_set(both) <= as_set(split.known)


def test_bidirectionality_knows_one_way_of_every_asked_pair(network: Network) -> None:
    split = tasks.bidirectionality(network, 0)
    known, all_links = as_set(split.known), as_set(network.edges)
    for pairs in (split.held_out, split.test):
        assert as_set(pairs.linked) <= all_links and not as_set(pairs.linked) & known
        assert as_set(turned(pairs.linked)) <= known
        assert as_set(turned(pairs.absent)) <= known and not as_set(pairs.absent) & all_links
    assert not any(tasks.has_reverse(network._replace(edges=split.known)))


def test_look_alikes_keep_the_first_metabolite_and_are_nearer_in_composition_than_random_ones(network: Network) -> None:
    flat = tasks.undirected(network)
    split = tasks.general(flat, 0)
    alike = tasks.similar(flat, split, 0).test
    assert np.array_equal(alike.linked[:, 0], alike.absent[:, 0])
    assert not as_set(alike.absent) & (as_set(flat.edges) | as_set(turned(flat.edges)))
    carbon = np.array([composition(m)[0] for m in network.nodes])

    def off(absent: Edges) -> float:
        return float(np.abs(carbon[absent[:, 1]] - carbon[alike.linked[:, 1]]).mean())

    assert off(alike.absent) < 3.0 < 5.0 < off(split.test.absent)  # atoms


def test_an_undirected_network_lists_each_link_once_from_the_lower_node(network: Network) -> None:
    edges = tasks.undirected(network).edges
    assert (edges[:, 0] < edges[:, 1]).all()
    assert len(edges) == len(network.edges) - tasks.has_reverse(network).sum() // 2


def test_glycolysis_is_in_the_network_in_its_directions(network: Network) -> None:
    place = {m: i for i, m in enumerate(network.nodes)}
    edges = as_set(network.edges)
    reversible = (place["g6p_c"], place["f6p_c"])
    assert {reversible, reversible[::-1]} <= edges
    assert (place["glc__D_c"], place["g6p_c"]) in edges and (place["g6p_c"], place["glc__D_c"]) not in edges
    assert not {"atp_c", "h2o_c", "nad_c"} & set(place)


def test_rules_by_hand() -> None:
    known = np.array([(0, 1), (1, 2), (3, 1)])
    pairs = np.array([(0, 2), (2, 0), (1, 0)])
    found = {name: rule(known, 4, True, pairs).tolist() for name, rule in RULES.items()}
    assert found == {
        "common_neighbours": [1.0, 0.0, 0.0],  # 0 -> 1 -> 2
        "preferential_attachment": [1.0, 0.0, 0.0],  # 0 has a link out, 2 one in; nothing leaves 2 or reaches 0
        "degree_rule": [2.0, -2.0, -2.0],  # surplus of 0 is 1, of 1 is -1, of 2 is -1
        "reversed_link": [0.0, 0.0, 1.0],
    }
    assert RULES["common_neighbours"](known, 4, False, pairs).tolist() == [1.0, 1.0, 0.0]


def test_memory_is_the_share_of_organisms_with_the_edge_among_those_with_both_metabolites() -> None:
    nothing = Features(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), 1)

    def of(nodes: str, edges: list[tuple[int, int]]) -> Network:
        return Network("x", True, tuple(nodes), np.array(edges, np.int64).reshape(-1, 2), nothing)

    seen = [of("abc", [(0, 1), (1, 2)]), of("ba", [(0, 1)]), of("ac", [])]
    asked = of("cab", [])
    assert bench.memory(seen, asked, np.array([(1, 2), (2, 1), (2, 0), (0, 0)])).tolist() == [0.5, 0.5, 1.0, 0.0]


def test_the_part_nearest_to_a_metabolite_has_as_many_nodes_as_asked_and_holds_it(network: Network) -> None:
    part = bench.nearest_part(network, "glc__D_c", 50)
    assert len(part.nodes) == 50 and "glc__D_c" in part.nodes
    names = {(network.nodes[i], network.nodes[j]) for i, j in network.edges.tolist()}
    assert {(part.nodes[i], part.nodes[j]) for i, j in part.edges.tolist()} <= names


def test_a_citation_file_is_read_with_each_link_once(tmp_path: Path) -> None:
    write_ring(tmp_path)
    found = tasks.citations("cora", tmp_path)
    assert len(found.edges) == 120 and (found.edges[:, 0] < found.edges[:, 1]).all()
    assert found.features.columns == 15


def test_a_run_prints_one_line_a_model_and_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ring(tmp_path)
    arguments = ["bench_links", "--public", str(tmp_path), "--data", "cora", "--models", "ours,common_neighbours"]
    monkeypatch.setattr("sys.argv", [*arguments, "--seeds", "2", "--device", "cpu", "--json"])
    assert bench.main() == 0
    printed = capsys.readouterr().out
    assert str(tmp_path) not in printed
    found = [json.loads(line) for line in printed.splitlines()]
    assert [(f["model"], f["seed"]) for f in found] == [(m, s) for m in ("ours", "common_neighbours") for s in (0, 1)]
    for line in found:
        assert line["benchmark"] == "link_prediction" and line["task"] == "general" and 0 <= line["auc"] <= 100
    assert np.mean([f["auc"] for f in found if f["model"] == "ours"]) > 80  # a ring that its words follow


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--models", "nobody", "models=nobody"),
        ("--data", "pubmed", "data=pubmed"),
        ("--tasks", "guess", "tasks=guess"),
        ("--seeds", "0", "seeds=0"),
        ("--public", "/nowhere", "public=/nowhere"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_two(
    option: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench_links", option, value])
    assert bench.main() == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_an_organism_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="organism=iNone"):
        tasks.metabolic("iNone")
