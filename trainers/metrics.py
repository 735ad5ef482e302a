"""Score probabilities and generated networks with numbers that a person can check."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Bool, Float

CALIBRATION_BINS = 10  # equal width over [0, 1]


def auroc(truth: Bool[np.ndarray, " n"], score: Float[np.ndarray, " n"]) -> float:
    """Return the probability that a positive scores higher than a negative; a tie counts one half.

    NaN when one of the two classes is missing: no order can be judged then.

    Source:
        Mann-Whitney U over the number of pairs, with mid-ranks.
    """
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    _, inverse, repeats = np.unique(score, return_inverse=True, return_counts=True)
    mid_rank = np.cumsum(repeats) - (repeats - 1) / 2
    rank_sum = mid_rank[inverse][truth].sum()
    return float((rank_sum - positives * (positives + 1) / 2) / (positives * negatives))


def brier(truth: Bool[np.ndarray, " n"], probability: Float[np.ndarray, " n"]) -> float:
    """Return the mean squared difference between probability and outcome; 0 is best, 0.25 is a coin's."""
    return float(np.mean((probability - truth) ** 2))


def ece(truth: Bool[np.ndarray, " n"], probability: Float[np.ndarray, " n"], bins: int = CALIBRATION_BINS) -> float:
    """Return the expected calibration error over bins of equal width.

    Each bin's |share of positives - mean probability| is weighted by its share of the samples; a probability of 1
    belongs to the last bin.

    Source:
        Naeini et al. 2015, for the probability of the positive class.
    """
    index = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = np.bincount(index, weights=probability - truth, minlength=bins)
    return float(np.abs(gaps).sum() / len(truth))


def classification(truth: Bool[np.ndarray, " n"], probability: Float[np.ndarray, " n"]) -> dict[str, float]:
    """Return auroc, brier and ece, with the central 95 % of the AUROC over 500 resamplings of the samples."""
    rng = np.random.default_rng(0)
    resampled = []
    for _ in range(500):
        rows = rng.integers(len(truth), size=len(truth))
        resampled.append(auroc(truth[rows], probability[rows]))
    low, high = np.nanpercentile(resampled, [2.5, 97.5]) if np.isfinite(resampled).any() else (np.nan, np.nan)
    return {
        "auroc": auroc(truth, probability),
        "auroc_low": float(low),
        "auroc_high": float(high),
        "brier": brier(truth, probability),
        "ece": ece(truth, probability),
    }


def fit_temperature(truth: Bool[np.ndarray, " n"], logit: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Return (temperature, offset) so that sigmoid((logit - offset) / temperature) has the lowest log loss.

    Both are fitted on one split and used on another. The order of the samples, and so the AUROC, stays.

    Source:
        Platt 1999, with the slope bounded to 1/20..20 so that a split that separates perfectly gives a finite answer.
    """
    from scipy.optimize import minimize

    sign = np.where(truth, 1.0, -1.0)

    def log_loss(parameters: np.ndarray) -> float:
        margin = sign * (logit - parameters[1]) / np.exp(parameters[0])
        return float(np.logaddexp(0.0, -margin).mean())

    bound = np.log(20.0)
    best = minimize(log_loss, np.zeros(2), method="L-BFGS-B", bounds=[(-bound, bound), (None, None)])
    return float(np.exp(best.x[0])), float(best.x[1])


def sigmoid(logit: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return the logistic function without overflow."""
    return np.exp(-np.logaddexp(0.0, -logit))


def share(answers: Sequence[bool]) -> float:
    """Return the share of true answers; NaN when there is none to judge."""
    return float(np.mean(answers)) if len(answers) else float("nan")


def uniqueness(networks: Sequence[Hashable]) -> float:
    """Return the share of networks that are not a repetition of an earlier one."""
    return len(set(networks)) / len(networks) if len(networks) else float("nan")
