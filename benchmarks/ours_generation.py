"""The graph VAE of this project as a generator of the benchmark: many refinement steps, or one.

Its encoder serves the fusion and has no part in drawing, so only the decoder and the exemplars are trained here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from benchmarks import metabolic_sets
from benchmarks.graph_sets import Graph, GraphSet
from data_pipeline import reaction_db
from data_pipeline.errors import InputError
from data_pipeline.variables import ENVIRONMENT
from models.biochemistry import Chemistry
from models.configs import GraphVAEConfig
from models.exemplars import note
from models.graph_vae import Decoded, GraphVAE
from trainers import metrics
from trainers.networks import Network, draw, draw_guided

BATCH = 128
PEAK_LR, WARM_UP_STEPS, WEIGHT_DECAY, CLIP_NORM = 2e-3, 50, 0.01, 1.0
BOUND_DRAWS = 8  # of what is hidden, for each network
SIZE_DRAWS = 40  # networks drawn to foretell the number of edges


class Ours:
    """The graph VAE, trained alone with its own loss; of graphs whose nodes have names.

    Where no reactions are known, the edges of the training graphs are those that may be.
    """

    def __init__(
        self,
        device: torch.device,
        use_mask: bool = True,
        remembers: bool = True,
        guided: bool = False,
        distinct: bool = False,
        **changes: Any,
    ) -> None:
        """Configure it.

        Args:
            device: To train on.
            use_mask: Only edges that some known reaction makes are possible.
            remembers: False leaves the exemplars out.
            guided: Of more draws keep those with which the organisms of an environment make the most ATP
                (networks.draw_guided): flux balance and growth ranges, the rules that the true networks were made by.
            distinct: Keep each of them once in an environment.
            changes: Of the configuration.
        """
        self.device, self.remembers, self.guided, self.distinct = device, remembers, guided, distinct
        self.config = GraphVAEConfig(**{"temperature": 0.5, "mask": use_mask} | changes)

    def fit(self, data: GraphSet, seconds: float, seed: int) -> None:
        """Learn from the training networks; the learning rate falls with the seconds that are spent.

        Raises:
            InputError: The nodes have no names, the conditions are no environments, or the guide knows the organisms
                that training leaves out.
        """
        if self.guided:
            metabolic_sets.only_with_known_organisms(data)
        self.conditioned = len(data.train[0].condition) > 0
        if not data.named or (self.conditioned and len(data.train[0].condition) != len(ENVIRONMENT)):
            raise InputError(f"{data.name}: ours draws named nodes, for environments; leave it out of --models here")
        started = time.monotonic()
        torch.manual_seed(seed)
        self.vocabulary = data.vocabulary
        self.model = GraphVAE(self.config, Chemistry.from_dict(_chemistry(data)))
        self.model.to(self.device).train()
        edges, environments = self._tensors(data.train)
        self.frequency = edges.float().mean(0)
        trained = [*self.model.surroundings.parameters(), *self.model.exemplars.parameters()]
        trained += self.model.decoder.parameters()
        optimizer = torch.optim.AdamW(trained, lr=PEAK_LR, weight_decay=WEIGHT_DECAY, fused=True)
        draws = torch.Generator().manual_seed(seed)
        present = self._present(BATCH)
        nodes = float(np.mean([len(g.labels) for g in data.train]))
        step = 0
        while (spent := (time.monotonic() - started) / seconds) < 1.0:
            rows = torch.randint(len(environments), (BATCH,), generator=draws).to(self.device)
            noise_seed = torch.randint(2**62, (BATCH,), generator=draws).to(self.device)
            batch, of = edges[rows], environments[rows]
            decoded = self.model.decode(batch, of, present, noise_seed)
            loss = _bound(decoded, batch).mean() / nodes
            share = min((step + 1) / WARM_UP_STEPS, 0.02 + 0.49 * (1.0 + np.cos(np.pi * spent)))
            optimizer.param_groups[0]["lr"] = PEAK_LR * float(share)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, CLIP_NORM)
            optimizer.step()
            if self.remembers:
                self.model.exemplars.remember(note(batch, decoded.origin, noise_seed))
            step += 1
        self.model.eval()

    def sample(self, conditions: Float[np.ndarray, "n V"], seed: int) -> list[Graph]:
        """Draw one network for each environment."""
        if not self.conditioned:
            return self._unconditional(conditions, seed)
        environments = np.asarray(conditions, np.float32)
        if self.guided:  # judged in this process: rows of the benchmark run beside each other
            networks = draw_guided(self.model, self.vocabulary, environments, seed, self.distinct, processes=1)
        else:
            networks = draw(self.model, self.vocabulary, environments, seed)
        return [_graph(network, condition) for network, condition in zip(networks, conditions, strict=True)]

    def _unconditional(self, conditions: Float[np.ndarray, "n 0"], seed: int) -> list[Graph]:
        nowhere = torch.zeros(len(conditions), len(ENVIRONMENT), device=self.device)
        draws = torch.Generator().manual_seed(seed)
        drawn = self.model.generate(nowhere, draws, environment_present=self._present(len(conditions)))
        index, mask, adjacency = (t.cpu().numpy() for t in (drawn.metabolite_index, drawn.mask, drawn.adjacency))
        return [
            Graph(index[b][mask[b]], adjacency[b][np.ix_(mask[b], mask[b])], conditions[b]) for b in range(len(index))
        ]

    @torch.no_grad()
    def bound_nats(self, graphs: Sequence[Graph]) -> float:
        """Return the evidence bound: edges and the choice of the exemplar; infinite where a graph has an edge that may
        not be.

        Shares to hide are uniform in (0.05, 1), so what is rarer than one in twenty hidden states is not counted.
        """
        edges, environments = self._tensors(graphs)
        if int(edges.sum()) != sum(int(g.adjacency.sum()) for g in graphs):
            return float("inf")
        present = self._present(len(graphs))
        places = torch.arange(len(graphs), device=self.device) * BOUND_DRAWS
        bounds = [
            _bound(self.model.decode(edges, environments, present, places + draw), edges) for draw in range(BOUND_DRAWS)
        ]
        return float(torch.stack(bounds).mean())

    @torch.no_grad()
    def calibration(self, graphs: Sequence[Graph]) -> dict[str, Any]:
        """Return how well the model knows what it does not know, over networks in environments it never saw.

        `edge_ece`, `edge_brier` and the reliability diagram `edge_reliability` ([mean probability, frequency, edges] of
        each bin) are of the probability of each known edge; `edge_brier_of_frequencies` is what the frequency of each
        edge in training gets, whatever the environment. `size_within_90` is the share of networks whose number of edges
        lies in the central 90 % of the numbers that the model draws at temperature 1.
        """
        edges, environments = self._tensors(graphs)
        present = self._present(len(graphs))
        places = torch.arange(len(graphs), device=self.device)
        probability, _ = self.model.marginals(environments, present, places)
        truth, foretold = edges.cpu().numpy(), probability.cpu().numpy()
        distinct, asked = environments.unique(dim=0, return_inverse=True)
        many = distinct.repeat_interleave(SIZE_DRAWS, 0)
        drawn = self.model.generate(
            many,
            torch.Generator().manual_seed(0),
            temperature=1.0,
            environment_present=self._present(len(many)),
        )
        sizes = drawn.adjacency.sum((1, 2)).view(-1, SIZE_DRAWS).float()
        low, high = torch.quantile(sizes, torch.tensor([0.05, 0.95], device=self.device), dim=1)[:, asked]
        size = edges.sum(1)
        return {
            **metrics.of_edges(truth, foretold, self.frequency.cpu().numpy()),
            "edge_reliability": np.round(metrics.reliability(truth.ravel(), foretold.ravel()), 4).tolist(),
            "size_within_90": float(((low <= size) & (size <= high)).float().mean()),
        }

    def _tensors(self, graphs: Sequence[Graph]) -> tuple[Bool[Tensor, "G E"], Float[Tensor, "G V"]]:
        """Return which of the known edges each network has, and its environment."""
        edges = torch.zeros(len(graphs), len(self.model.pairs) + 1, dtype=torch.bool)
        rows = self.model.edge_row.cpu()
        for place, graph in enumerate(graphs):
            source, target = np.nonzero(graph.adjacency)
            edges[place, rows[graph.labels[source], graph.labels[target]]] = True
        environments = torch.zeros(len(graphs), len(ENVIRONMENT))
        if self.conditioned:
            environments = torch.from_numpy(np.stack([g.condition for g in graphs]).astype(np.float32))
        return edges[:, 1:].to(self.device), environments.to(self.device)

    def _present(self, number: int) -> Bool[Tensor, " B"]:
        return torch.full((number,), self.conditioned, device=self.device)


def _chemistry(data: GraphSet) -> dict[str, Any]:
    if data.allowed is not None:
        return reaction_db.chemistry_table(data.vocabulary)
    ends = (np.stack([g.labels[side] for side in np.nonzero(g.adjacency)], 1) for g in data.train)
    edges = np.unique(np.concatenate(list(ends)), axis=0)
    return {"metabolites": list(data.vocabulary), "allowed_edges": [[*edge, 1] for edge in edges.tolist()]}


def _graph(network: Network, condition: np.ndarray) -> Graph:
    adjacency = np.zeros((len(network.metabolites),) * 2, dtype=bool)
    adjacency[network.pairs[:, 0], network.pairs[:, 1]] = True
    return Graph(network.metabolite_index, adjacency, condition)


def _bound(decoded: Decoded, edges: Bool[Tensor, "B E"]) -> Float[Tensor, " B"]:
    """Return the nats that each network takes: its hidden edges and its exemplar."""
    target = edges[:, None].expand_as(decoded.logits).float()
    nats = F.binary_cross_entropy_with_logits(decoded.logits, target, reduction="none")
    return (nats * decoded.weight).sum(2).mean(1) + decoded.kl_nats
