"""The graph VAE of this project as a generator of the benchmark: many refinement steps, or one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from benchmarks.graph_sets import Graph, GraphSet
from data_pipeline import habitat, metabolic_graph, reaction_db
from data_pipeline.batch import GraphBatch, GraphSample
from data_pipeline.collate import MULTIPLE, graph_batch
from data_pipeline.errors import InputError
from data_pipeline.variables import ENVIRONMENT
from models import graph_decoder
from models.biochemistry import Chemistry
from models.configs import GraphVAEConfig
from models.graph_encoder import SUPPLIED
from models.graph_vae import GraphVAE, graph_terms
from models.losses import weighted_total

BATCH = 64
PEAK_LR, WARM_UP_STEPS, WEIGHT_DECAY, CLIP_NORM = 2e-3, 50, 0.01, 1.0
WEIGHTS = {"graph/edges": 1.0, "graph/nodes": 1.0, "graph/edge_types": 1.0, "graph/kl": 1.0}
BOUND_DRAWS = 8  # of what is hidden, for each network


class Ours:
    """The graph VAE, trained alone with its own loss; metabolic networks only, whose nodes have names."""

    def __init__(self, device: torch.device, use_mask: bool = True, steps: int | None = None) -> None:
        self.device, self.use_mask = device, use_mask
        self.config = GraphVAEConfig(temperature=0.5) if steps is None else GraphVAEConfig(sampling_steps=steps)

    def fit(self, data: GraphSet, seconds: float, seed: int) -> None:
        """Learn from the training networks; the learning rate falls with the seconds that are spent.

        Raises:
            InputError: The nodes have no names, or the conditions are not environments.
        """
        if not data.named or len(data.train[0].condition) != len(ENVIRONMENT):
            raise InputError(f"{data.name}: ours draws named nodes for environments; leave it out of --models here")
        started = time.monotonic()
        torch.manual_seed(seed)
        self.vocabulary = data.vocabulary
        self.model = GraphVAE(self.config, Chemistry.from_dict(reaction_db.chemistry_table(data.vocabulary)))
        self.model.to(self.device).train()
        graphs, environments = self._tensors(data.train)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=PEAK_LR, weight_decay=WEIGHT_DECAY, fused=True)
        draws = torch.Generator().manual_seed(seed)
        step = 0
        while (spent := (time.monotonic() - started) / seconds) < 1.0:
            rows = torch.randint(len(environments), (BATCH,), generator=draws).to(self.device)
            noise_seed = torch.randint(2**62, (BATCH,), generator=draws).to(self.device)
            batch, present = _take(graphs, rows), torch.ones_like(rows, dtype=torch.bool)
            terms = graph_terms(
                self.model(batch, environments[rows], present, noise_seed), batch, environments[rows], present
            )
            total = weighted_total(terms, {name: WEIGHTS.get(name, 0.0) for name in terms})
            share = min((step + 1) / WARM_UP_STEPS, 0.02 + 0.49 * (1.0 + np.cos(np.pi * spent)))
            optimizer.param_groups[0]["lr"] = PEAK_LR * float(share)
            optimizer.zero_grad()
            total.loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
            optimizer.step()
            step += 1
        self.model.eval()

    def sample(self, conditions: Float[np.ndarray, "n V"], seed: int) -> list[Graph]:
        """Draw one network for each environment."""
        environments = torch.from_numpy(np.asarray(conditions, np.float32)).to(self.device)
        drawn = self.model.generate(environments, torch.Generator().manual_seed(seed), use_mask=self.use_mask)
        index, mask, adjacency = (t.cpu().numpy() for t in (drawn.metabolite_index, drawn.mask, drawn.adjacency))
        return [
            Graph(index[b][mask[b]], adjacency[b][np.ix_(mask[b], mask[b])], conditions[b]) for b in range(len(index))
        ]

    @torch.no_grad()
    def bound_nats(self, graphs: Sequence[Graph]) -> float:
        """Return the evidence bound: nodes, what is supplied, edges and the divergence of the latents.

        Shares to hide are uniform in (0.05, 1), so what is rarer than one in twenty hidden states is not counted.
        """
        batch, environments = self._tensors(graphs)
        present = torch.ones(len(graphs), dtype=torch.bool, device=self.device)
        trained, self.model.config = self.model.config, replace(self.model.config, all_hidden=0.0)
        bounds = []
        for draw in range(BOUND_DRAWS):
            seeds = torch.arange(len(graphs), device=self.device) * BOUND_DRAWS + draw
            output = self.model(batch, environments, present, seeds)
            target = output.node_target[:, None].expand_as(output.node_logits).float()
            nodes = F.binary_cross_entropy_with_logits(output.node_logits, target, reduction="none")
            supplied = F.binary_cross_entropy_with_logits(
                output.supplied_logits, (batch.features[..., SUPPLIED] > 0.5).float(), reduction="none"
            )
            state = graph_decoder.pair_state(batch.adjacency)
            edges = F.cross_entropy(output.pair_logits.permute(0, 3, 1, 2), state, reduction="none")
            bounds.append(
                (nodes * output.node_weight).sum(2).mean(1)
                + (supplied * batch.mask).sum(1)
                + (edges * output.pair_weight).sum((1, 2))
                + output.kl_nats
            )
        self.model.config = trained
        return float(torch.stack(bounds).mean())

    def _tensors(self, graphs: Sequence[Graph]) -> tuple[GraphBatch, Tensor]:
        batch = graph_batch([_sample(graph, self.vocabulary) for graph in graphs])
        environments = torch.from_numpy(np.stack([g.condition for g in graphs]).astype(np.float32))
        moved = {name: getattr(batch, name).to(self.device) for name in GraphBatch.__dataclass_fields__}
        return GraphBatch(**moved), environments.to(self.device)


def _sample(graph: Graph, vocabulary: Sequence[str]) -> GraphSample:
    names = [vocabulary[i] for i in graph.labels]
    edges = [(names[i], names[j]) for i, j in np.argwhere(graph.adjacency)]
    sample = reaction_db.graph_of_edges(edges, habitat.nutrients(graph.condition))
    return metabolic_graph.with_vocabulary(sample, {name: i for i, name in enumerate(vocabulary)})


def _take(graphs: GraphBatch, rows: Tensor) -> GraphBatch:
    """Return some of the networks, padded no further than the largest of them needs."""
    nodes = -(-int(graphs.mask[rows].sum(1).max()) // MULTIPLE) * MULTIPLE
    one = {name: getattr(graphs, name)[rows, :nodes] for name in ("mask", "metabolite_index", "features", "positional")}
    two = {name: getattr(graphs, name)[rows, :nodes, :nodes] for name in ("adjacency", "edge_type")}
    return GraphBatch(**one, **two)
