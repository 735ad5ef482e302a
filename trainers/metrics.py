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

    Each bin's |share of positives - mean probability| is weighted by its share of the samples.

    Source:
        Naeini et al. 2015, for the probability of the positive class.
    """
    diagram = reliability(truth, probability, bins)
    return float(np.abs((diagram[:, 0] - diagram[:, 1]) * diagram[:, 2]).sum() / len(truth))


def reliability(
    truth: Bool[np.ndarray, " n"], probability: Float[np.ndarray, " n"], bins: int = CALIBRATION_BINS
) -> Float[np.ndarray, "b 3"]:
    """Return the reliability diagram: mean probability, share of positives and samples of each bin that has any.

    Bins are of equal width; a probability of 1 belongs to the last.
    """
    index = np.minimum((probability * bins).astype(int), bins - 1)
    counts = np.bincount(index, minlength=bins)
    sums = (np.bincount(index, weights=values, minlength=bins) for values in (probability, truth))
    filled = counts > 0
    return np.stack([*(s[filled] / counts[filled] for s in sums), counts[filled]], axis=1)


def of_edges(
    truth: Bool[np.ndarray, "g E"], probability: Float[np.ndarray, "g E"], frequency: Float[np.ndarray, " E"]
) -> dict[str, float]:
    """Return how well the probability of each edge is calibrated, and what its frequency in training gets."""
    there, foretold = truth.ravel(), probability.ravel()
    return {
        "edge_ece": ece(there, foretold),
        "edge_brier": brier(there, foretold),
        "edge_brier_of_frequencies": brier(there, np.broadcast_to(frequency, truth.shape).ravel()),
    }


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


def share(answers: Sequence[bool]) -> float:
    """Return the share of true answers; NaN when there is none to judge."""
    return float(np.mean(answers)) if len(answers) else float("nan")


def uniqueness(networks: Sequence[Hashable]) -> float:
    """Return the share of networks that are not a repetition of an earlier one."""
    return len(set(networks)) / len(networks) if len(networks) else float("nan")
