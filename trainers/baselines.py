"""Answer the questions of the networks without them: what the unified model has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float

from data_pipeline.variables import ENVIRONMENT, standardise
from trainers.records import Edges, Record


def planet_parameters(records: Sequence[Record]) -> Float[np.ndarray, "n K"]:
    """Return what is known of each planet without a spectrum."""
    return np.stack([r.planet for r in records])


def parameters_with_spectrum(records: Sequence[Record]) -> Float[np.ndarray, "n features"]:
    """Return the planet parameters beside the noisy spectrum, bin by bin: all numbers that a telescope gives."""
    return np.stack([np.concatenate([r.planet, r.spectrum_ppm.ravel()]) for r in records])


def parameters_with_features(records: Sequence[Record]) -> Float[np.ndarray, "n features"]:
    """Return the planet parameters beside what a person reads off the spectrum: a strong baseline, made by hand."""
    return np.stack([np.concatenate([r.planet, r.read_off]) for r in records])


def gradient_boosting(
    known: Float[np.ndarray, "m features"],
    habitable: Bool[np.ndarray, " m"],
    *asked: Float[np.ndarray, "_ features"],
) -> list[Float[np.ndarray, " _"]]:
    """Return the probabilities of being habitable from boosted trees that were fitted on the known planets.

    Early stopping on a tenth of the known planets chooses the number of trees.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    trees = HistGradientBoostingClassifier(
        learning_rate=0.05, max_iter=400, max_leaf_nodes=15, early_stopping=True, n_iter_no_change=20, random_state=0
    )
    trees.fit(known, habitable)
    return [trees.predict_proba(planets)[:, 1] for planets in asked]


def nearest_networks(known: Sequence[Record], environments: Float[np.ndarray, "n V"]) -> list[Edges]:
    """Return the network of the known planet whose environment is nearest, in standardised units."""
    known = [r for r in known if r.edges]
    table = standardise(torch.from_numpy(np.stack([r.environment for r in known])), ENVIRONMENT)
    distance = torch.cdist(standardise(torch.from_numpy(environments), ENVIRONMENT), table)
    return [known[i].edges for i in distance.argmin(1).tolist()]
