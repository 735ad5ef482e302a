"""Train the graph VAE of metabolic networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from data_pipeline.batch import GRAPH, Batch
from models.biochemistry import Chemistry
from models.graph_vae import GraphVAE
from trainers import figures
from trainers.engine import Engine
from trainers.networks import draw

_PREFIX = "graph_vae."


@dataclass(frozen=True)
class GraphVAETrainer:
    """Draws a network for a held-out environment beside the network that lives there."""

    engine: Engine
    chemistry: Chemistry

    def judge(self, batch: Batch, outputs: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Return nothing: generated networks are judged by trainers.evaluate, which takes minutes."""
        return {}

    def scores(self, means: Mapping[str, float], judged: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return nothing: the means of the terms say it."""
        return {}

    def figures(self, batch: Batch, outputs: Mapping[str, Tensor]) -> dict[str, Figure]:
        """Draw the first real network of the batch beside one generated for its environment."""
        weights = self.engine.weights(_PREFIX)  # by all ranks: ZeRO-3 gathers them together
        found = np.flatnonzero(batch.present[:, GRAPH].cpu().numpy())[:1]
        if not self.engine.is_main or not len(found):
            return {}
        b = int(found[0])
        names = self.chemistry.metabolites
        with torch.random.fork_rng():  # drawing must not change what training draws next
            network = GraphVAE(self.engine.config.model.graph, self.chemistry).eval()  # plain torch: ours is in shares
            network.load_state_dict({n.removeprefix(_PREFIX): t for n, t in weights.items()})
            made = draw(network, names, batch.environment[b : b + 1].float().cpu().numpy(), seed=self.engine.step)[0]
        size = int(batch.graph.mask[b].sum())
        real_names = tuple(names[i] for i in batch.graph.metabolite_index[b, :size].tolist())
        real = batch.graph.adjacency[b, :size, :size].cpu().numpy()
        adjacency = np.zeros((len(made.metabolites),) * 2, dtype=bool)
        adjacency[made.pairs[:, 0], made.pairs[:, 1]] = True
        shown = {"real": (real_names, real), "generated for its environment": (made.metabolites, adjacency)}
        return {"network": figures.networks(shown)}
