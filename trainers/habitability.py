"""Answer "is it habitable?" with the unified model and with its baselines, all calibrated alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

from data_pipeline import planets
from data_pipeline.batch import MODALITIES, OBSERVABLE, Batch
from models.objectives import UnifiedObjective
from trainers import baselines, calibration, metrics
from trainers.calibration import Calibration
from trainers.records import Record

# What each row may read. The text is in every row the one that is written from observables.
VIEWS: dict[str, tuple[str, ...]] = {
    "unified": MODALITIES,
    "unified_observable": OBSERVABLE,
    **{m: (m,) for m in ("climate", "spectrum", "graph", "text")},
}


class Answers(NamedTuple):
    """Log-odds (or any growing function of them) of being habitable, on the planets of two splits."""

    calibration: Float[np.ndarray, " m"]
    judged: Float[np.ndarray, " n"]


class Truth(NamedTuple):
    """Whether the planets of the same two splits are habitable."""

    calibration: Bool[np.ndarray, " m"]
    judged: Bool[np.ndarray, " n"]


def calibrations(truth: Truth, answers: dict[str, Answers]) -> dict[str, Calibration]:
    """Return the calibration of each answer, fitted on the split that is kept for it."""
    return {name: calibration.fit(truth.calibration, answer.calibration) for name, answer in answers.items()}


def scores(
    truth: Truth, answers: dict[str, Answers], calibrated: dict[str, Calibration]
) -> dict[str, dict[str, float]]:
    """Return auroc, brier and ece of each answer on the judged split."""
    return {
        name: metrics.classification(truth.judged, calibrated[name].probability(answer.judged))
        for name, answer in answers.items()
    }


def baseline_answers(
    train: Sequence[Record], calibration: Sequence[Record], judged: Sequence[Record]
) -> dict[str, Answers]:
    """Return the answers of the habitable-zone rule, and of boosted trees with more and more of what is seen."""
    habitable = np.array([r.habitable for r in train])
    # The rule as it is used: inside the zone or not. Where inside it a planet lies is no claim of its authors.
    rule = (planets.hz_rule_score(baselines.planet_parameters(r))[1] for r in (calibration, judged))
    answers = {"hz_rule": Answers(*rule)}
    features = {
        "gradient_boosting": baselines.planet_parameters,
        "gradient_boosting_with_spectrum": baselines.parameters_with_spectrum,
        "gradient_boosting_with_features": baselines.parameters_with_features,
    }
    for name, read in features.items():
        fitted = baselines.gradient_boosting(read(train), habitable, read(calibration), read(judged))
        answers[name] = Answers(*map(_log_odds, fitted))
    return answers


def _log_odds(probability: np.ndarray) -> np.ndarray:
    probability = np.clip(np.asarray(probability, dtype=np.float64), 1e-6, 1 - 1e-6)
    return np.log(probability / (1 - probability))


@torch.no_grad()
def model_answers(objective: UnifiedObjective, batches: Iterable[Batch]) -> dict[str, Float[np.ndarray, " n"]]:
    """Return the logits of each view of the same planets; every network runs once, since only the fusion differs.

    Only the latent of a network depends on whether the environment is visible as well: it is computed for both.
    """
    device = next(objective.parameters()).device
    logits: dict[str, list[torch.Tensor]] = {name: [] for name in VIEWS}
    for batch in batches:
        batch = descriptions_only(batch.to(device))
        outputs = objective(replace(batch, visible=batch.present)).outputs
        latents = {m: outputs[f"{m}_latent"] for m in MODALITIES}
        unseen = torch.zeros_like(batch.present[:, 0])
        alone = latents | {"graph": objective.graph_vae(batch.graph, batch.environment, unseen).latent}
        for name, modalities in VIEWS.items():
            seen = batch.present & torch.tensor([m in modalities for m in MODALITIES], device=device)
            fused = objective.judge(latents if "environment" in modalities else alone, seen)
            logits[name].append(fused.habitability_logit.double().cpu())
    return {name: torch.cat(parts).numpy() for name, parts in logits.items()}


def descriptions_only(batch: Batch) -> Batch:
    """Drop question and answer: the judgement reads the description alone, and tokens are what evaluation costs."""
    text = batch.text
    longest = max(int(text.description_mask.sum(1).max()), 1)
    cut = {
        "token_ids": text.token_ids[:, :longest],
        "attention_mask": text.description_mask[:, :longest],
        "description_mask": text.description_mask[:, :longest],
        "label_ids": torch.full_like(text.label_ids[:, :longest], -100),
    }
    return replace(batch, text=replace(text, **cut))
