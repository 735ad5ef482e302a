"""Train every modality together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from data_pipeline.batch import Batch
from data_pipeline.errors import InputError
from trainers import metrics
from trainers.cnn import CNNTrainer
from trainers.engine import Engine
from trainers.graph_vae import GraphVAETrainer
from trainers.llm import LLMTrainer


@dataclass(frozen=True)
class UnifiedTrainer:
    """Train every modality through the engine that the parts share; scores habitability beside what the parts score."""

    engine: Engine
    parts: tuple[GraphVAETrainer, CNNTrainer, LLMTrainer]

    def __post_init__(self) -> None:
        """Refuse a part with an engine of its own: it would hold other weights."""
        for part in self.parts:
            if part.engine is not self.engine:
                raise InputError(f"parts: {type(part).__name__} has another engine; build all parts with the same one")

    def judge(self, batch: Batch, outputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return each sample's probability and label, and what the parts say of it."""
        own = {
            "probability": outputs["habitability_logit"].float().sigmoid().cpu().numpy(),
            "habitable": batch.habitable.cpu().numpy() > 0.5,
        }
        return {**own, **{k: v for part in self.parts for k, v in part.judge(batch, outputs).items()}}

    def scores(self, means: Mapping[str, float], judged: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return AUROC, Brier score and calibration error, and the scores of the parts."""
        truth, probability = judged["habitable"], judged["probability"]
        own = {
            "habitability/auroc": metrics.auroc(truth, probability),
            "habitability/brier": metrics.brier(truth, probability),
            "habitability/ece": metrics.ece(truth, probability),
        }
        return {**own, **{k: v for part in self.parts for k, v in part.scores(means, judged).items()}}

    def figures(self, batch: Batch, outputs: Mapping[str, Tensor]) -> dict[str, Figure]:
        """Draw what the parts draw."""
        return {k: v for part in self.parts for k, v in part.figures(batch, outputs).items()}
