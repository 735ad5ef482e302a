"""Generation: refusals are one line, files are what anybody can read, equal seeds give equal networks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_pipeline import graph_files, habitat, reaction_db, shards, text
from data_pipeline.batch import MODALITIES, Batch
from data_pipeline.environment import parse_environment
from models.biochemistry import Chemistry
from models.configs import LanguageConfig, ModelConfig
from models.language import load_tokenizer
from models.objectives import ObjectiveOutput, UnifiedObjective, build_objective
from trainers import generate, networks, oracle
from trainers.calibration import Calibration
from trainers.config import RunConfig
from trainers.networks import ROUNDS, Network, draw, find_graph_vae
from trainers.records import read_records


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["{full}", "--planet", "TRAPPIST-1 e", "--out", "{full}"], ["--out", "not an empty folder"]),
        (["{full}", "--planet", "TRAPIST-1 e", "--out", "{new}"], ["did you mean 'TRAPPIST-1 e'"]),
        (["{full}", "--planet", "{new}.json", "--out", "{new}"], ["new.json"]),
        (["{full}", "--environment", "ph=99", "--out", "{new}"], ["ph", "99"]),
        (["{full}", "--environment", "hp=7", "--out", "{new}"], ["hp", "ph"]),
        (["{full}", "--environment", "ph=7", "--count", "0", "--out", "{new}"], ["--count 0"]),
        (["{full}", "--environment", "ph=7", "--seed", "-1", "--out", "{new}"], ["--seed -1"]),
        (["{full}", "--environment", "ph=7", "--distinct", "--out", "{new}"], ["--distinct", "--guided"]),
        (["{full}", "--environment", "ph=7", "--out", "{new}"], ["no model/"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    places = {"new": str(tmp_path / "new"), "full": str(tmp_path / "full")}
    assert generate.main([a.format(**places) for a in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and all(part in lines[0] for part in parts), lines
    assert not (tmp_path / "new").exists()


def test_a_generated_network_can_be_read_back_and_trained_on(tmp_path: Path) -> None:
    network = Network(
        metabolites=("glc__D_c", "g6p_c", "f6p_c"),
        metabolite_index=np.arange(3),
        pairs=np.array([[0, 1], [1, 2]]),
        edge_type=np.array([1, 2]),
        edge_std=np.array([0.1, 0.3], np.float32),
    )
    environment = parse_environment("temperature_k=310,ph=7")
    line = generate.write(tmp_path, 3, network, ("glc__D_e",), environment, {"iML1515": 12.3456})
    assert line["file"] == "network_003.npz" and line["edges"] == 2 and line["atp_feasible"] is True
    assert line["atp_mmol_g_h"] == {"iML1515": 12.346}
    assert line["edge_precision"] == 1.0  # hexokinase and glucose-6-phosphate isomerase are known reactions
    assert line["mean_edge_standard_deviation"] == pytest.approx(0.2)
    with np.load(tmp_path / "network_003.npz") as archive:  # no pickle needed
        assert archive["adj"].sum() == 2 and set(json.loads(str(archive["meta"]))["nodes"]) == set(network.metabolites)
    graph, read = graph_files.read_npz(tmp_path / "network_003.npz")
    assert {(graph.metabolites[s], graph.metabolites[p]) for s, p in graph.edge_index.T} == set(network.edges)
    np.testing.assert_allclose(read, environment)
    written = (tmp_path / "network_003.graphml").read_text()
    assert "hexokinase" not in written and 'id="g6p_c"' in written


@pytest.fixture(scope="module")
def untrained(dataset: Path) -> tuple[torch.nn.Module, Chemistry]:
    torch.manual_seed(0)
    chemistry = Chemistry.from_dict(shards.load_chemistry(dataset))
    return build_objective("graph_vae", ModelConfig(), chemistry).eval(), chemistry


def test_equal_seeds_draw_equal_networks_and_the_mask_allows_known_edges_only(
    untrained: tuple[torch.nn.Module, Chemistry],
) -> None:
    objective, chemistry = untrained
    model = find_graph_vae(objective)
    environments = np.repeat(parse_environment("temperature_k=350,ph=6.5,o2=0,redox=-0.3")[None], 4, axis=0)
    first = [n.edges for n in draw(model, chemistry.metabolites, environments, seed=1)]
    assert first == [n.edges for n in draw(model, chemistry.metabolites, environments, seed=1)]
    assert first != [n.edges for n in draw(model, chemistry.metabolites, environments, seed=2)]
    assert oracle.edge_precision(first) == 1.0


def test_the_organisms_of_an_environment_pick_in_turn_what_serves_them_best(
    untrained: tuple[torch.nn.Module, Chemistry], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = find_graph_vae(untrained[0])

    def network(*edges: tuple[int, int]) -> Network:
        return Network(("a_c", "b_c", "c_c"), np.arange(3), np.array(edges), np.ones(len(edges), int), np.zeros(2))

    poor, rich, long = network((0, 1)), network((1, 0)), network((1, 0), (1, 2))
    rounds = iter([[poor, poor, poor, poor], [rich, long, long, rich], *[[poor] * 4] * (ROUNDS - 2)])
    monkeypatch.setattr(networks, "draw", lambda *_: next(rounds))
    environments = np.repeat(parse_environment("temperature_k=310,ph=7")[None], 4, axis=0)
    environments[3, 0] = 395.0  # nobody stands it
    atp = {poor.edges: {"A": 1.0}, rich.edges: {"A": 5.0, "B": 2.0}, long.edges: {"A": 5.0, "B": 3.0}}
    asked: list[oracle.Question] = []

    def most_atp(questions: list[oracle.Question], processes: int | None) -> list[dict[str, float]]:
        asked.extend(questions)
        return [atp[q.edges] if q.organisms else {} for q in questions]

    monkeypatch.setattr(oracle, "most_atp", most_atp)
    found = networks.draw_guided(model, (), environments, 0)
    assert [n.edges for n in found] == [n.edges for n in (rich, long, rich, poor)]
    assert len(asked) == 3 + 2  # a network is asked about once in an environment
    living = frozenset(habitat.viable_organisms(environments[0]))
    assert asked[0].organisms == living and asked[-1].organisms == frozenset()

    rounds = iter([[poor, poor, poor, poor], [rich, long, long, rich], *[[poor] * 4] * (ROUNDS - 2)])
    found = networks.draw_guided(model, (), environments, 0, distinct=True)
    assert [n.edges for n in found] == [n.edges for n in (rich, long, poor, poor)]


def test_guided_networks_are_among_those_drawn_and_equal_seeds_give_equal_ones(
    untrained: tuple[torch.nn.Module, Chemistry], monkeypatch: pytest.MonkeyPatch
) -> None:
    objective, chemistry = untrained
    given = find_graph_vae(objective), chemistry.metabolites
    environments = np.repeat(parse_environment("temperature_k=310,ph=7,o2=0.2")[None], 3, axis=0)
    drawn: list[Network] = []

    def kept(*arguments: Any) -> list[Network]:
        drawn.extend(found := draw(*arguments))
        return found

    monkeypatch.setattr(networks, "draw", kept)
    found = [n.edges for n in networks.draw_guided(*given, environments, 1, processes=1)]
    assert len(drawn) == 3 * ROUNDS and set(found) <= {n.edges for n in drawn}
    assert found == [n.edges for n in networks.draw_guided(*given, environments, 1, processes=1)]


def test_an_organism_prefers_the_least_network_that_makes_all_its_atp(dataset: Path) -> None:
    record = next(r for r in read_records(dataset, "train") if r.edges)
    known = sorted(reaction_db.load_reaction_db().kinds)[:30]
    pool = [record.edges.union(known), record.edges, frozenset(known)]
    hot = record.environment.copy()
    hot[0] = 395.0  # nobody stands it
    (wishes, none) = oracle.preferences([pool, pool], [record.environment, hot], processes=1)
    assert [1, 0] in wishes and none == []
    question = oracle.Question(record.edges, record.nutrients)
    assert oracle.most_atp([question._replace(organisms=frozenset({record.organism}))])[0].keys() == {record.organism}


def test_real_networks_make_atp_in_their_own_environment_and_use_known_edges(dataset: Path) -> None:
    living = [r for r in read_records(dataset, "train") if r.edges][:4]
    assert len(living) == 4 and oracle.edge_precision([r.edges for r in living]) > 0.99
    questions = [oracle.Question(r.edges, r.nutrients) for r in living]
    starved = [oracle.Question(r.edges, ()) for r in living]
    assert oracle.atp_feasible([*questions, *starved, questions[0]], processes=2) == [True] * 4 + [False] * 4 + [True]


def test_the_organism_of_a_real_network_is_among_those_that_make_atp_with_it(dataset: Path) -> None:
    living = [r for r in read_records(dataset, "train") if r.edges][:3]
    found = oracle.most_atp([oracle.Question(r.edges, r.nutrients) for r in living])
    assert all(record.organism in organisms for record, organisms in zip(living, found, strict=True))


class Judge(UnifiedObjective):
    """Judges with a given logit and says no more than it is told to begin with."""

    def __init__(self, logit: float) -> None:
        torch.nn.Module.__init__(self)
        self.logit = torch.nn.Parameter(torch.tensor([logit]), requires_grad=False)

    def forward(self, batch: Batch) -> ObjectiveOutput:
        return ObjectiveOutput({}, {"habitability_logit": self.logit, "gates": torch.ones(1, len(MODALITIES))})

    def explain(
        self, batch: Batch, end_token_id: int, max_tokens: int = 64, begin: Sequence[Sequence[int]] | None = None
    ) -> list[list[int]]:
        return [list(b) for b in begin or ()]


@pytest.mark.parametrize(
    ("logit", "calibrated", "word"),
    [(0.3, None, "Yes"), (-0.3, None, "No"), (-0.3, Calibration(1.0, -1.0), "Yes"), (0.3, Calibration(1.0, 1.0), "No")],
)
def test_the_explanation_begins_with_the_verdict_of_the_probability_that_is_told(
    logit: float, calibrated: Calibration | None, word: str, dataset: Path
) -> None:
    sample = shards.to_samples(shards.read_shard(dataset / shards.load_manifest(dataset).shards[0].file))[0]
    told = generate.judge(Judge(logit), RunConfig(), sample, calibrated)
    assert told["explanation"] == word and (told["habitability_probability"] >= 0.5) == (word == "Yes")


def test_the_word_of_the_verdict_is_that_with_which_training_answers_begin() -> None:
    """Also in tokens: those of the word alone are the first ones of the whole answer."""
    tokenizer = load_tokenizer(LanguageConfig())
    for habitable in (True, False):
        facts = {"liquid_water_share": 0.3, "feasible_organisms": 4, "habitable": habitable}
        _, answer = text._habitability(facts, np.random.default_rng(0))
        word, whole = (tokenizer(s, add_special_tokens=False)["input_ids"] for s in (text.verdict(habitable), answer))
        assert whole[: len(word)] == word and answer.startswith(f"{text.verdict(habitable)}:")


def test_records_hold_the_nutrients_of_their_environment(dataset: Path) -> None:
    for record in read_records(dataset, "train"):
        if record.edges:
            assert record.nutrients == habitat.nutrients(record.environment)
