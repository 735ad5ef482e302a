"""Draw metabolic networks for environments from a graph VAE."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from models.graph_vae import GraphVAE
from trainers import oracle
from trainers.records import Edges

ROUNDS = 16  # networks drawn for one that is kept, where the oracle guides
EXPLORING = 1.0  # temperature of the exemplars in all rounds but the first: what is rare in training may serve best
_SEED_STRIDE = 1_000_003  # between the seeds of rounds


class Network(NamedTuple):
    """One generated network; edge e runs from metabolites[pairs[e, 0]] to metabolites[pairs[e, 1]]."""

    metabolites: tuple[str, ...]
    metabolite_index: Int[np.ndarray, " N"]
    pairs: Int[np.ndarray, "E 2"]
    edge_type: Int[np.ndarray, " E"]
    edge_std: Float[np.ndarray, " E"]  # standard deviation of the probability of each edge, between exemplars

    @property
    def edges(self) -> Edges:
        """The same edges by name."""
        return frozenset((self.metabolites[i], self.metabolites[j]) for i, j in self.pairs.tolist())


def find_graph_vae(objective: nn.Module) -> GraphVAE:
    """Return the graph VAE inside an objective.

    Raises:
        StopIteration: There is none; only graph_vae and unified runs have one.
    """
    return next(module for module in objective.modules() if isinstance(module, GraphVAE))


@torch.no_grad()
def draw(
    model: GraphVAE,
    metabolites: tuple[str, ...],
    environments: Float[np.ndarray, "n V"],
    seed: int,
    exemplar_temperature: float | None = None,
) -> list[Network]:
    """Return one network an environment; equal seeds give equal networks.

    Args:
        metabolites: Names of the vocabulary that the model was built with.
        environments: In physical units, variables.ENVIRONMENT.
        exemplar_temperature: See GraphVAE.generate.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    drawn = model.generate(
        torch.from_numpy(environments).to(device), generator, exemplar_temperature=exemplar_temperature
    )
    networks = []
    for index, mask, adjacency, edge_type, _, edge_std in zip(*(part.cpu() for part in drawn), strict=True):
        pairs = adjacency.nonzero()  # padding has no edges
        index = index[mask]
        networks.append(
            Network(
                metabolites=tuple(metabolites[i] for i in index.tolist()),
                metabolite_index=index.numpy(),
                pairs=pairs.numpy(),
                edge_type=edge_type[pairs[:, 0], pairs[:, 1]].numpy(),
                edge_std=edge_std[pairs[:, 0], pairs[:, 1]].float().numpy(),
            )
        )
    return networks


def draw_guided(
    model: GraphVAE,
    metabolites: tuple[str, ...],
    environments: Float[np.ndarray, "n V"],
    seed: int,
    distinct: bool = False,
    processes: int | None = None,
) -> list[Network]:
    """Draw as `draw` does, ROUNDS times as many, and keep those that serve the organisms of each environment best.

    The known organisms that stand an environment (temperature, pH, oxygen) take turns in its places: each picks, of all
    networks drawn for equal environments, the one with which it makes the most ATP, of equals the one with the fewest
    edges. What nobody picks a network for keeps its first draw.

    Args:
        distinct: Each network of an environment is picked once. First draws, in places that nobody fills, may repeat.
        processes: That judge; by default what oracle.most_atp chooses.
    """
    rounds = [draw(model, metabolites, environments, seed)]
    rounds += [draw(model, metabolites, environments, seed + n * _SEED_STRIDE, EXPLORING) for n in range(1, ROUNDS)]
    places: dict[bytes, list[int]] = {}
    for place, environment in enumerate(environments):
        places.setdefault(environment.tobytes(), []).append(place)
    pools = [list({drawn[p].edges: drawn[p] for drawn in rounds for p in own}.values()) for own in places.values()]
    wishes = oracle.preferences(
        [[network.edges for network in pool] for pool in pools],
        [environments[own[0]] for own in places.values()],
        processes,
    )
    networks = rounds[0]
    for own, pool, wished in zip(places.values(), pools, wishes, strict=True):
        for place, row in zip(own, oracle.in_turn(wished, len(own), distinct), strict=False):
            networks[place] = pool[row]
    return networks
