"""The command line of the generation benchmark, its judges and its baselines."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_graph_sets import write_packed

from benchmarks import (
    bench_generation as bench,
    generation_table,
    metabolic_metrics as metabolic,
    metabolic_sets,
    public_sets,
)
from benchmarks.graph_sets import Graph, GraphSet
from benchmarks.peers import rewired
from benchmarks.peers.guided_lookup import GuidedLookup
from benchmarks.peers.nearest_neighbour import NearestNeighbour, Real
from benchmarks.rows import Row
from data_pipeline.errors import InputError

CPU = torch.device("cpu")
A, B, C, D = (frozenset({("x", name)}) for name in "abcd")


def given(*words: str) -> object:
    return bench.options().parse_args(list(words))


# --- edge F1 and scope by hand ----------------------------------------------------------------------------------------
def test_drawing_one_of_two_true_networks_twice_has_f1_of_two_thirds() -> None:
    assert metabolic.edge_f1([A, A], [A, B]) == pytest.approx(2 / 3)  # precision 1, recall 1/2


def test_every_true_network_and_as_many_wrong_ones_have_f1_of_two_thirds() -> None:
    assert metabolic.edge_f1([A, B, C, D], [A, B]) == pytest.approx(2 / 3)  # precision 1/2, recall 1


def test_half_of_the_edges_of_a_network_is_a_likeness_of_a_half() -> None:
    assert metabolic.edge_f1([A], [A | B]) == pytest.approx(0.5)
    assert metabolic.edge_f1([C], [A | B]) == 0.0
    assert metabolic.edge_f1([frozenset()], [A]) == 0.0


# --- baselines --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def data() -> GraphSet:
    return metabolic_sets.load("metabolic", 60, 6)[0]


def test_rewiring_keeps_the_degrees_of_every_node_and_changes_edges() -> None:
    rng = np.random.default_rng(0)
    for directed in (True, False):
        matrix = rng.uniform(size=(15, 15)) < 0.2
        np.fill_diagonal(matrix, False)
        matrix = matrix if directed else matrix | matrix.T
        new = rewired.rewire(matrix, directed, rng)
        assert (new.sum(0) == matrix.sum(0)).all() and (new.sum(1) == matrix.sum(1)).all()
        assert not new.diagonal().any() and (new != matrix).any()
        assert directed or (new == new.T).all()
    assert not rewired.rewire(np.zeros((3, 3), bool), True, rng).any()


def test_the_nearest_of_training_environments_come_first_and_all_their_networks_before_any_other(
    data: GraphSet,
) -> None:
    model = NearestNeighbour(CPU)
    model.fit(data, 0.0, 0)
    asked = data.train[-1].condition
    own = [g for g in data.train if g.condition.tobytes() == asked.tobytes()]
    drawn = model.sample(np.stack([asked] * (len(own) + 1)), 0)
    assert [g.adjacency.tobytes() for g in drawn[: len(own)]] == [g.adjacency.tobytes() for g in own]
    nearest_other = model.sample(np.stack([asked] * (len(own) + 1)), 0)[-1]
    assert nearest_other.condition.tobytes() == asked.tobytes()


def test_a_guided_lookup_answers_with_training_networks_that_feed_those_who_live_there(data: GraphSet) -> None:
    model = GuidedLookup(CPU)
    model.fit(replace(data, train=data.train[:20]), 0.0, 0)
    asked = np.stack([data.train[0].condition] * 3 + [data.test[0].condition])
    drawn = model.sample(asked, 0)
    edges = [metabolic.edges_of(g, data.vocabulary) for g in drawn]
    assert set(edges) <= {metabolic.edges_of(g, data.vocabulary) for g in data.train[:20]}
    assert metabolic.share_feasible([metabolic.question_of(g, e) for g, e in zip(drawn[:3], edges, strict=False)]) == 1
    with pytest.raises(InputError, match="metabolic_organism: guided"):
        model.fit(replace(data, name="metabolic_organism"), 0.0, 0)


def test_what_is_real_scores_near_perfect_and_rewired_networks_do_not(data: GraphSet) -> None:
    real, shuffled = (
        bench.judge_metabolic(data, bench.train_and_draw(model, data, 0, 0.0), ())
        for model in (Real(CPU), rewired.Rewired(CPU))
    )
    assert real["edge_f1"] == real["edge_precision"] == real["atp_feasible"] == 1.0
    assert shuffled["edge_precision"] < 0.5 and shuffled["atp_feasible"] < 0.1 and shuffled["edge_f1"] < 0.2
    for name in ("in_degree", "out_degree", "clustering", "spectrum", "connected"):
        assert real[f"mmd_ratio_{name}"] < 0.05
    assert shuffled["mmd_connected"] > 10 * real["mmd_connected"]  # rewiring leaves degrees and breaks networks apart
    assert shuffled["mmd_ratio_in_degree"] < 10.0
    assert shuffled["unique"] > 0.9 > real["unique"]  # real networks repeat, within and between environments


def test_parameters_are_those_of_the_networks_that_a_model_holds() -> None:
    model, inner = Real(CPU), Real(CPU)
    model.inner, inner.net = inner, torch.nn.Linear(3, 2)  # type: ignore[attr-defined]
    assert bench.parameters(model) == 8
    assert bench.parameters(Real(CPU)) == 0


# --- sets without conditions ------------------------------------------------------------------------------------------
def test_copies_of_the_training_graphs_are_as_far_from_the_test_as_these_and_nothing_new(tmp_path: Path) -> None:
    write_packed(tmp_path / "community_small.npz", 40)
    rings = public_sets.load("community_small", tmp_path)
    found = bench.judge_graphs(rings, bench.train_and_draw(NearestNeighbour(CPU), rings, 0, 0.0))
    assert found["novel"] == 0.0 and found["connected"] == 1.0 and found["draws"] == 104
    assert found["mmd_degree"] == pytest.approx(0.0, abs=1e-9)  # all nodes of all rings have two neighbours
    assert found["kernel"]["orbit"] == "gaussian, sigma 30"


def test_directed_rings_have_cycles_and_an_empty_graph_can_be_judged(tmp_path: Path) -> None:
    write_packed(tmp_path / "rings.npz", 20, directed=True, labels=True)
    rings = public_sets.load_folder(tmp_path)
    nothing = Graph(np.zeros(0, np.int64), np.zeros((0, 0), bool), np.zeros(0, np.float32))
    found = bench.judge_graphs(rings, bench.Drawn([nothing, rings.train[0]], {}))
    assert found["acyclic"] == 0.5 and found["acyclic_test"] == 0.0
    assert found["unique"] == 1.0 and found["novel"] == 0.5
    assert found["mmd_ratio_labels"] > 1.0  # half of what is drawn has no labels


def test_planar_counts_what_is_planar_and_connected_and_new_once(tmp_path: Path) -> None:
    for part, number in (("train", 3), ("val", 2), ("test", 3)):
        write_packed(tmp_path / f"planar_{part}.npz", number)
    rings = public_sets.load("planar", tmp_path)
    big = Graph(
        np.zeros(9, np.int64),
        np.roll(np.eye(9), 1, 1).astype(bool) | np.roll(np.eye(9), -1, 1).astype(bool),
        np.zeros(0),
    )
    crowded = Graph(np.zeros(5, np.int64), ~np.eye(5, dtype=bool), np.zeros(0))
    found = bench.judge_graphs(rings, bench.Drawn([rings.train[0], big, big, crowded], {}))
    assert found["valid"] == 0.75 and found["valid_unique_novel"] == 0.25


@pytest.mark.parametrize(
    ("labels", "adjacency", "reason"),
    [
        ([0, 0], np.eye(2, dtype=bool), "without loops"),
        ([0, 0], np.array([[0, 1], [0, 0]], bool), "draw edges both ways"),
        ([0, 1], np.zeros((2, 2), bool), "a vocabulary of 1"),
    ],
)
def test_what_is_no_graph_of_the_set_is_refused(
    tmp_path: Path, labels: list[int], adjacency: np.ndarray, reason: str
) -> None:
    write_packed(tmp_path / "community_small.npz", 20)
    rings = public_sets.load("community_small", tmp_path)
    drawn = [Graph(np.array(labels), adjacency, np.zeros(0))]
    with pytest.raises(ValueError, match=reason):
        bench.checked(drawn, rings, np.zeros((1, 0), np.float32))


# --- other people's graphs ---
def write_named(folder: Path, number: int, **more: np.ndarray) -> None:
    for i in range(number):
        nodes = [f"m{(i + k) % 5}" for k in range(3)]
        np.savez(folder / f"{i:02d}.npz", adj=np.eye(3, k=1), meta=np.array(json.dumps({"nodes": nodes})), **more)


def test_the_graph_vae_draws_named_nodes_without_environments_from_the_edges_of_training(tmp_path: Path) -> None:
    write_named(tmp_path, 30)
    np.savez(tmp_path / "odd.npz", adj=np.eye(3, k=2), meta=np.array('{"nodes": ["m0", "x", "m1"]}'))
    data = public_sets.load_folder(tmp_path)
    assert bench.names_nodes(data)
    model = bench.build("ours", "cpu", named=True)
    model.fit(data, 1.0, 0)
    seen = {edge for g in data.train for edge in metabolic.edges_of(g, data.vocabulary)}
    drawn = model.sample(np.zeros((20, 0), np.float32), 0)
    assert set().union(*(metabolic.edges_of(g, data.vocabulary) for g in drawn)) <= seen
    assert np.isfinite(model.bound_nats(data.train[:3]))
    nodes = np.array([data.vocabulary.index(name) for name in ("m0", "x")])
    strange = Graph(nodes, np.eye(2, k=1).astype(bool), np.zeros(0, np.float32))
    assert model.bound_nats([strange]) == float("inf")  # m0 -> x is in no training graph
    assert {"edge_ece", "size_within_90"} <= set(model.calibration(data.test))  # type: ignore[attr-defined]


def test_named_graphs_with_conditions_that_are_no_environments_are_grown(tmp_path: Path) -> None:
    write_named(tmp_path, 8, env=np.zeros(2))
    np.savez(tmp_path / "x.npz", adj=np.eye(3, k=1), env=np.ones(2), meta=np.array('{"nodes": ["m0", "m1", "m2"]}'))
    data = public_sets.load_folder(tmp_path)
    assert data.named and not bench.names_nodes(data) and data.train[0].condition.shape == (2,)
    assert type(bench.build("ours", "cpu", named=False)).__name__ == "OursUnnamed"


# --- command line -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "ours,gan"], "models='gan': unknown; there are ours,"),
        (["--data", "qm9"], "data='qm9': unknown"),
        (["--data", "planar", "--public", "/nowhere"], "public='/nowhere': not a folder"),
        (["--data", "metabolic,enzymes"], "public='': not a folder; give the one that holds enzymes's"),
        (["--budget", "0"], "budget=0: must be at least 1"),
        (["--seeds", "0"], "seeds=0"),
        (["--jobs", "0"], "jobs=0"),
    ],
)
def test_a_wrong_option_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bench.chosen(given(*words))


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device=cuda"):
        bench.require_device("cuda")
    bench.require_device("cpu")


@pytest.mark.parametrize("name", [n for n in bench.MODELS if not n.startswith("ours")])
def test_every_peer_of_the_table_is_there_and_is_a_generator(name: str) -> None:
    model = bench.build(name, "cpu")
    assert all(callable(getattr(model, method)) for method in ("fit", "sample", "bound_nats"))


def test_every_data_set_model_and_seed_is_a_row() -> None:
    found = bench.chosen(given("--data", "metabolic,metabolic_organism", "--models", "vgae,real", "--seeds", "2"))
    assert [row.name for row in found][:3] == ["metabolic/vgae/0", "metabolic/real/0", "metabolic/vgae/1"]
    assert len(found) == 8
    assert [row.name for row in bench.chosen(given("--graphs", "x", "--models", "real", "--seeds", "1"))] == [
        "folder/real/0"
    ]


@pytest.mark.slow
def test_rows_run_in_processes_of_their_own_and_one_that_fails_loses_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_packed(tmp_path / "rings.npz", 20, directed=True)
    words = ["--graphs", str(tmp_path), "--models", "nearest_neighbour", "--seeds", "1", "--jobs", "2"]
    monkeypatch.setattr(sys, "argv", ["bench_generation", *words, "--json"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = bench.options().parse_args(words)
    options.json = True
    lines: list[dict[str, Any]] = []
    found = [*bench.chosen(options), Row("folder/absent/0", dict)]  # the child knows no such row
    assert len(bench.run(found, options, lambda line: lines.append(json.loads(line)))) == 2
    by_name = {line["model"]: line for line in lines}
    assert "StopIteration" in by_name["absent"]["error"]
    line = by_name["nearest_neighbour"]
    assert line["benchmark"] == "generation" and line["data"] == tmp_path.name and line["seed"] == 0
    assert line["mmd_ratio_in_degree"] is None  # all training graphs are rings: their discrepancy is nothing
    assert line["novel"] == 0.0 and line["device"] == "cpu" and line["parameters"] == 0
    assert line["command"].startswith("./launch.sh bench generation --graphs")


def test_a_table_shows_mean_and_spread_over_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"benchmark": "generation", "data": "metabolic", "model": "ours", "budget_seconds": 60.0, "device": "cpu"}
    lines = [{**row, "hardware": "2 cores", "seed": i, "edge_f1": f1, "novel": None} for i, f1 in enumerate((0.7, 0.8))]
    file = tmp_path / "x.jsonl"
    gpu = {**lines[0], "device": "cuda", "hardware": "1 GPU", "edge_f1": 0.1}  # a table of its own
    file.write_text("\n".join(json.dumps(line) for line in [*lines, {**row, "error": "killed"}, gpu]))
    monkeypatch.setattr(sys, "argv", ["bench_generation", "--table", str(file)])
    assert bench.main() == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "**metabolic**, 60 s of training on 2 cores (cpu)"
    assert shown[2:5] == ["| model | edge f1 |", "|---|---|", "| ours | 0.75 ± 0.071 |"]
    assert shown[6] == "**metabolic**, 60 s of training on 1 GPU (cuda)" and shown[-1] == "| ours | 0.1 |"


@pytest.mark.parametrize(("text", "reason"), [("{", "not a file of JSON lines"), ("", "no row of bench generation")])
def test_a_file_without_results_is_no_table(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(InputError, match=reason):
        generation_table.read(tmp_path / "x.jsonl")


def test_a_folder_that_is_not_there_is_one_line_and_exit_code_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_generation", "--graphs", str(tmp_path / "none"), "--json"])
    assert bench.main() == 2
    assert capsys.readouterr().err.startswith("error: ")
