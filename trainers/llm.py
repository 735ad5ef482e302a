"""Train the adapters of the language model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from data_pipeline.batch import Batch
from trainers.engine import Engine


@dataclass(frozen=True)
class LLMTrainer:
    """Scores answers by their perplexity."""

    engine: Engine

    def judge(self, batch: Batch, outputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return nothing: the term says it."""
        return {}

    def scores(self, means: Mapping[str, float], judged: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return the perplexity of an answer token."""
        return {"text/perplexity": math.exp(min(means["text/ce"], 50.0))}

    def figures(self, batch: Batch, outputs: Mapping[str, Tensor]) -> dict[str, Figure]:
        """Draw nothing."""
        return {}
