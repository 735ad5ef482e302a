"""Evaluation: fair answers, an honest table, clear refusals."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainers import evaluate, habitability
from trainers.score_table import losses, table


def scored(auroc: float, brier: float = 0.1, ece: float = 0.02) -> dict[str, float]:
    return {"auroc": auroc, "auroc_low": auroc - 0.05, "auroc_high": auroc + 0.05, "brier": brier, "ece": ece}


@pytest.fixture
def metrics() -> dict[str, Any]:
    """Numbers in which the network wins everywhere."""
    rows = ("hz_rule", "gradient_boosting", "gradient_boosting_with_spectrum", "climate", "spectrum", "graph", "text")
    drawn = {"edge_precision": 0.9, "atp_feasible": 0.5, "unique": 0.8, "novel": 0.6}
    return {
        "split": "test",
        "calibrated_on": "held_out",
        "judged": {"planets": 360, "habitable_share": 0.4, "networks": 128},
        "habitability": {
            "unified": scored(0.95, 0.08, 0.01),
            "unified_observable": scored(0.92, 0.09, 0.01),
            **{r: scored(0.8) for r in rows},
        },
        "generation": {
            "unified": drawn
            | {
                "atp_feasible_shuffled_environment": 0.2,
                "edge_ece": 0.01,
                "edge_brier": 0.02,
                "edge_brier_of_frequencies": 0.04,
            },
            "nearest_neighbour": drawn | {"atp_feasible": 0.4, "novel": 0.0},
            "untrained": {name: 0.1 for name in drawn},
            "real": drawn,
        },
        "data": {
            "planets": 2400,
            "distinct_networks": 420,
            "o2_edge_distance": 0.7,
            "systems_shared_between_splits": 0,
        },
    }


def test_a_network_that_wins_everywhere_is_said_to_lose_nowhere(metrics: dict[str, Any]) -> None:
    assert list(losses(metrics)) == []
    assert table(metrics).splitlines()[-1] == "The network loses to no baseline in any of these numbers."


def test_every_number_that_a_baseline_wins_has_its_line(metrics: dict[str, Any]) -> None:
    metrics["habitability"]["gradient_boosting"] = scored(0.93, 0.05, 0.02)
    metrics["generation"]["nearest_neighbour"]["atp_feasible"] = 0.55
    lines = list(losses(metrics))
    assert lines == [
        "unified, observables only loses to (b) boosted trees, planet parameters: auroc 0.920 against 0.930",
        "unified, observables only loses to (b) boosted trees, planet parameters: brier 0.090 against 0.050",
        "unified, all modalities loses to (b) boosted trees, planet parameters: brier 0.080 against 0.050",
        "generation: unified loses to (d) nearest neighbour in environment: atp_feasible 0.500 against 0.550",
    ]
    assert table(metrics).splitlines()[-4:] == lines


def test_a_score_that_could_not_be_computed_is_a_dash_and_wins_nothing(metrics: dict[str, Any]) -> None:
    metrics["habitability"]["graph"] = dict.fromkeys(scored(0.5))
    assert list(losses(metrics)) == []
    row = next(line for line in table(metrics).splitlines() if "metabolic network alone" in line)
    assert row.split()[-4:] == ["-", "---", "-", "-"]


def test_a_run_of_the_graph_vae_alone_has_a_table_without_its_own_habitability(metrics: dict[str, Any]) -> None:
    for row in ("unified", "unified_observable", "climate", "spectrum", "graph", "text"):
        del metrics["habitability"][row]
    assert "unified, all modalities" not in table(metrics) and "(a) habitable-zone rule" in table(metrics)


def test_json_holds_null_where_there_is_no_number() -> None:
    assert json.loads(json.dumps(evaluate.plain({"a": {"b": float("nan")}, "c": 0.25}))) == {
        "a": {"b": None},
        "c": 0.25,
    }


def test_every_answer_is_calibrated_on_the_other_split() -> None:
    """Answers that are right but five times too sure on both splits come out calibrated; their order stays."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 4000))
    truth = habitability.Truth(*(rng.random(logits.shape) < 1 / (1 + np.exp(-logits))))
    answers = {"sure": habitability.Answers(*(5.0 * logits + 1.0)), "plain": habitability.Answers(*logits)}
    table = habitability.scores(truth, answers, habitability.calibrations(truth, answers))
    sure, plain = table["sure"], table["plain"]
    assert sure["ece"] < 0.03 and sure["auroc"] == pytest.approx(plain["auroc"])
    assert sure["brier"] == pytest.approx(plain["brier"], abs=1e-3)


def test_a_quickstart_folder_stands_for_its_unified_run(tmp_path: Path) -> None:
    assert evaluate.find_run(tmp_path) == tmp_path
    (tmp_path / "quickstart.json").write_text("{}")
    assert evaluate.find_run(tmp_path) == tmp_path / "unified"


def test_a_folder_that_is_no_run_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main([str(tmp_path / "nothing")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_the_table_does_not_change_the_numbers(metrics: dict[str, Any]) -> None:
    before = copy.deepcopy(metrics)
    table(metrics)
    assert metrics == before
