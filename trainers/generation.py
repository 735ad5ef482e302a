"""Rate the networks that a graph VAE generates for held-out environments, beside its baselines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from models.graph_vae import GraphVAE
from trainers import baselines, metrics, oracle
from trainers.networks import draw
from trainers.records import Edges, Record

NETWORKS = 128  # environments; each model draws one network for each, and each network is solved
SEED = 0


def rates(
    model: GraphVAE,
    untrained: GraphVAE,
    metabolites: tuple[str, ...],
    train: Sequence[Record],
    judged: Sequence[Record],
) -> dict[str, dict[str, float]]:
    """Return the rates of the model, of both baselines and of the real networks, for the same environments.

    `atp_feasible_shuffled_environment` draws each network for another planet's environment, and judges it in its own.
    """
    living = [r for r in judged if r.edges]
    if not living:  # a handful of planets may hold no network at all
        nothing = dict.fromkeys((*_rates([frozenset()], set()), "atp_feasible"), float("nan"))
        more = ("atp_feasible_shuffled_environment", "edge_ece", "edge_brier", "edge_brier_of_frequencies")
        return {
            "unified": nothing | dict.fromkeys(more, float("nan")),
            "nearest_neighbour": nothing,
            "untrained": nothing,
            "real": nothing,
        }
    asked = [living[i] for i in np.random.default_rng(SEED).permutation(len(living))[:NETWORKS]]
    environments = np.stack([r.environment for r in asked])

    def drawn(network: GraphVAE, of: np.ndarray) -> list[Edges]:
        return [n.edges for n in draw(network, metabolites, of, SEED)]

    networks = {
        "unified": drawn(model, environments),
        "nearest_neighbour": baselines.nearest_networks(train, environments),
        "untrained": drawn(untrained, environments),
        "real": [r.edges for r in asked],
        "shuffled": drawn(model, np.roll(environments, 1, axis=0)),
    }
    questions = [
        oracle.Question(edges, record.nutrients)
        for drawn_edges in networks.values()
        for edges, record in zip(drawn_edges, asked, strict=True)
    ]
    feasible = np.reshape(oracle.atp_feasible(questions), (len(networks), len(asked)))
    known = {r.edges for r in train}
    table = {
        name: _rates(edges, known) | {"atp_feasible": float(answers.mean())}
        for (name, edges), answers in zip(networks.items(), feasible, strict=True)
    }
    table["unified"]["atp_feasible_shuffled_environment"] = table.pop("shuffled")["atp_feasible"]
    table["unified"] |= doubts(model, metabolites, train, asked)
    return table


def doubts(
    model: GraphVAE, metabolites: tuple[str, ...], train: Sequence[Record], asked: Sequence[Record]
) -> dict[str, float]:
    """Return how well the probability of each known edge is calibrated, and what the frequencies in training get."""
    known = [(metabolites[i], metabolites[j]) for i, j in model.pairs.tolist()]

    def there(records: Sequence[Record]) -> np.ndarray:
        return np.array([[edge in r.edges for edge in known] for r in records if r.edges])

    device = model.pairs.device
    environments = torch.from_numpy(np.stack([r.environment for r in asked])).to(device)
    places = torch.arange(len(asked), device=device)
    probability, _ = model.marginals(environments, torch.ones_like(places, dtype=torch.bool), places)
    return metrics.of_edges(there(asked), probability.cpu().numpy(), there(train).mean(0))


def _rates(networks: Sequence[Edges], known: set[Edges]) -> dict[str, float]:
    return {
        "edge_precision": oracle.edge_precision(networks),
        "unique": metrics.uniqueness(networks),
        "novel": metrics.share([n not in known for n in networks]),
        "edges_per_network": float(np.mean([len(n) for n in networks])),
    }
