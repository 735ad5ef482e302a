"""Turn logits into probabilities that come true as often as they say: two numbers, fitted on planets kept apart."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from data_pipeline.errors import InputError

FILE = "calibration.json"


class Calibration(NamedTuple):
    """What a logit of one view is shifted and divided by; the order of planets, and so the AUROC, stays."""

    temperature: float = 1.0
    offset: float = 0.0

    def probability(self, logit: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return the calibrated probability of habitable."""
        return np.exp(-np.logaddexp(0.0, -(logit - self.offset) / self.temperature))


def fit(truth: Bool[np.ndarray, " n"], logit: Float[np.ndarray, " n"]) -> Calibration:
    """Return the calibration with the lowest log loss; the identity when only one class is there.

    Source:
        Platt 1999, with the slope bounded to 1/20..20 so that a split that separates perfectly gives a finite answer.
    """
    from scipy.optimize import minimize

    if truth.all() or not truth.any():
        return Calibration()
    sign = np.where(truth, 1.0, -1.0)

    def log_loss(parameters: np.ndarray) -> float:
        margin = sign * (logit - parameters[1]) / np.exp(parameters[0])
        return float(np.logaddexp(0.0, -margin).mean())

    bound = np.log(20.0)
    best = minimize(log_loss, np.zeros(2), method="L-BFGS-B", bounds=[(-bound, bound), (None, None)])
    return Calibration(float(np.exp(best.x[0])), float(best.x[1]))


def save(run: Path, by_view: dict[str, Calibration], split: str, planets: int) -> None:
    """Write RUN/calibration.json: the two numbers of each view, the split they were fitted on and its size."""
    views = {view: c._asdict() for view, c in by_view.items()}
    (run / FILE).write_text(json.dumps({"fitted_on": split, "planets": planets, "views": views}, indent=2) + "\n")


def load(run: Path, view: str) -> Calibration | None:
    """Return the calibration of a view, None when the run was not evaluated yet.

    Raises:
        InputError: The file is there but holds no such numbers.
    """
    path = run / FILE
    if not path.is_file():
        return None
    try:
        found = Calibration(**{k: float(v) for k, v in json.loads(path.read_text())["views"][view].items()})
        if not (0 < found.temperature < math.inf and math.isfinite(found.offset)):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(
            f"{path}: no temperature and offset of {view} in it; ./launch.sh evaluate writes it anew"
        ) from None
    return found
