"""Scores checked against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trainers import metrics
from trainers.calibration import Calibration

TRUTH = np.array([False, True, False, True])


def test_auroc_is_three_quarters_when_one_of_four_pairs_is_the_wrong_way_round() -> None:
    assert metrics.auroc(TRUTH, np.array([0.1, 0.3, 0.4, 0.8])) == pytest.approx(0.75)


def test_a_tie_between_a_positive_and_a_negative_counts_one_half() -> None:
    assert metrics.auroc(TRUTH, np.array([0.5, 0.5, 0.5, 0.5])) == pytest.approx(0.5)
    assert metrics.auroc(np.array([True, False, False]), np.array([0.7, 0.7, 0.2])) == pytest.approx(0.75)


def test_auroc_depends_on_the_order_of_the_scores_only() -> None:
    score = np.random.default_rng(0).normal(size=50)
    truth = np.random.default_rng(1).random(50) < 0.4
    assert metrics.auroc(truth, score) == pytest.approx(metrics.auroc(truth, np.exp(score)))
    assert metrics.auroc(truth, score) == pytest.approx(1 - metrics.auroc(truth, -score))


def test_auroc_of_a_single_class_is_not_a_number() -> None:
    assert math.isnan(metrics.auroc(np.ones(3, bool), np.array([0.1, 0.2, 0.3])))


def test_auroc_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(2)
    truth, score = rng.random(200) < 0.3, rng.integers(0, 12, 200) / 11
    assert metrics.auroc(truth, score) == pytest.approx(roc_auc_score(truth, score))


def test_brier_of_a_coin_is_a_quarter_and_of_an_oracle_is_zero() -> None:
    assert metrics.brier(TRUTH, np.full(4, 0.5)) == pytest.approx(0.25)
    assert metrics.brier(TRUTH, TRUTH.astype(float)) == 0.0


def test_ece_by_hand() -> None:
    # Bin [.2, .3): probabilities .25 .25, one of two positive: gap .25. Bin [.9, 1]: .9 1.0, both positive: gap .05.
    truth = np.array([True, False, True, True])
    probability = np.array([0.25, 0.25, 0.9, 1.0])
    assert metrics.ece(truth, probability) == pytest.approx(0.5 * 0.25 + 0.5 * 0.05)
    assert metrics.reliability(truth, probability).tolist() == [[0.25, 0.5, 2], [pytest.approx(0.95), 1.0, 2]]


def test_a_sure_and_right_probability_of_edges_beats_their_frequencies() -> None:
    truth = np.array([[True, False], [True, True]])
    found = metrics.of_edges(truth, truth.astype(float), truth.mean(0))
    assert found == {"edge_ece": 0.0, "edge_brier": 0.0, "edge_brier_of_frequencies": pytest.approx(0.125)}


def test_a_forecast_equal_to_the_base_rate_is_calibrated() -> None:
    assert metrics.ece(np.array([True, False, False, False]), np.full(4, 0.25)) == pytest.approx(0.0)


def test_the_interval_of_the_auroc_holds_the_auroc() -> None:
    rng = np.random.default_rng(3)
    truth = rng.random(300) < 0.5
    scores = metrics.classification(truth, Calibration().probability(truth + rng.normal(size=300)))
    assert scores["auroc_low"] < scores["auroc"] < scores["auroc_high"]
    assert scores["auroc_high"] - scores["auroc_low"] < 0.2


def test_share_of_nothing_is_not_a_number() -> None:
    assert math.isnan(metrics.share([])) and math.isnan(metrics.uniqueness([]))
    assert metrics.share([True, False, True, True]) == 0.75


def test_two_copies_of_three_networks_leave_two_thirds_unique() -> None:
    a, b = frozenset({("glc", "g6p")}), frozenset({("g6p", "f6p")})
    assert metrics.uniqueness([a, b, a]) == pytest.approx(2 / 3)
