"""Draw metabolic networks for environments from a graph VAE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from data_pipeline import habitat
from models.graph_vae import GraphVAE
from trainers import metrics, oracle
from trainers.records import Edges

REDRAWS = 8  # how often a network that is not accepted is drawn again, at most
_SEED_STRIDE = 1_000_003  # between the seeds of attempts


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
) -> list[Network]:
    """Return one network an environment; equal seeds give equal networks.

    Args:
        metabolites: Names of the vocabulary that the model was built with.
        environments: In physical units, variables.ENVIRONMENT.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    drawn = model.generate(torch.from_numpy(environments).to(device), generator)
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


def critic(
    environments: Float[np.ndarray, "n V"], feasible: bool, distinct: bool, processes: int | None = None
) -> Callable[[Sequence[Network]], list[bool]]:
    """Return what says of each network, drawn for its environment, whether it may stay; see `draw_accepted`.

    Args:
        environments: In physical units, variables.ENVIRONMENT.
        feasible: One known organism must make ATP with it.
        distinct: It must not repeat one before it in the same environment.
        processes: That judge; by default what oracle.atp_feasible chooses.
    """
    nutrients = [habitat.nutrients(environment) for environment in environments]
    makes_atp: dict[oracle.Question, bool] = {}

    def accept(networks: Sequence[Network]) -> list[bool]:
        keys = [(environment.tobytes(), n.edges) for environment, n in zip(environments, networks, strict=True)]
        good = metrics.first_of_each(keys) if distinct else [True] * len(keys)
        if feasible:
            asked = [oracle.Question(n.edges, offered) for n, offered in zip(networks, nutrients, strict=True)]
            waiting = [question for question in dict.fromkeys(asked) if question not in makes_atp]
            makes_atp.update(zip(waiting, oracle.atp_feasible(waiting, processes), strict=True))
            good = [makes_atp[question] and new for question, new in zip(asked, good, strict=True)]
        return good

    return accept


def draw_accepted(
    model: GraphVAE,
    metabolites: tuple[str, ...],
    environments: Float[np.ndarray, "n V"],
    seed: int,
    accept: Callable[[Sequence[Network]], Sequence[bool]],
) -> tuple[list[Network], list[bool], int]:
    """Draw as `draw` does, and again what a critic does not accept.

    Args:
        accept: Says of each network whether it may stay (`critic`); it sees all of them, those that it accepted before
            too.

    Returns:
        The networks, which of them are accepted in the end, and how many more were drawn.
    """
    networks, redrawn = draw(model, metabolites, environments, seed), 0
    accepted = accept(networks)
    for attempt in range(1, REDRAWS + 1):
        wrong = np.flatnonzero(~np.array(accepted, dtype=bool))
        if not len(wrong):
            break
        again = draw(model, metabolites, environments[wrong], seed + attempt * _SEED_STRIDE)
        redrawn += len(wrong)
        for place, network in zip(wrong.tolist(), again, strict=True):
            networks[place] = network
        accepted = accept(networks)
    return networks, list(accepted), redrawn
