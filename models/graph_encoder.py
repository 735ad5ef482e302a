"""Read a metabolic network into one latent vector; read an environment."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from data_pipeline.batch import GraphBatch
from data_pipeline.variables import (
    EDGE_TYPES,
    ENVIRONMENT,
    ENVIRONMENT_NAMES,
    NODE_FEATURES,
    ORGANICS,
    standardise,
)
from models.biochemistry import COMPOSITION
from models.graph_layers import GraphTransformer

TYPES = len(EDGE_TYPES)
SUPPLIED, END_PRODUCT = NODE_FEATURES.index("supplied"), NODE_FEATURES.index("end_product")
ENVIRONMENT_FEATURES = len(ENVIRONMENT) + len(ORGANICS)
_ORGANICS = slice(ENVIRONMENT_NAMES.index(ORGANICS[0]), len(ENVIRONMENT_NAMES))


def environment_features(
    environment: Float[Tensor, "B V"], shift: Float[Tensor, "B V"] | None = None
) -> Float[Tensor, "B F"]:
    """Return what is read of an environment in physical units, in float32; `shift` moves its standardised numbers.

    Beside the standardised numbers these are how far each organic lies below the most concentrated one, since microbes
    use the best supplied carbon source first (Monod's diauxie).
    """
    numbers = standardise(torch.nan_to_num(environment.float()), ENVIRONMENT)
    numbers = numbers if shift is None else numbers + shift
    organics = numbers[:, _ORGANICS]
    below_best = organics - organics.amax(1, keepdim=True)
    return 2.0 * torch.cat([numbers.clamp(-2.0, 2.0), below_best.clamp(min=-2.0)], dim=1)


class EnvironmentEncoder(nn.Module):
    """Embed an environment; an absent one becomes a learned vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.randn(width) * 0.1)
        self.net = nn.Sequential(
            nn.Linear(ENVIRONMENT_FEATURES, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.LayerNorm(width)
        )

    def forward(self, features: Float[Tensor, "B F"], present: Bool[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """Return the embedding of `environment_features`."""
        return torch.where(present[:, None], self.net(features.to(self.null.dtype)), self.null)


def scaled_composition(composition: Float[Tensor, "*rows 8"]) -> Float[Tensor, "*rows 8"]:
    """Bring atom numbers and mass to logarithms and the charge to quarters, so that all are of order 1."""
    atoms, charge, mass = composition[..., :6], composition[..., 6:7], composition[..., 7:8]
    return torch.cat([atoms.clamp(min=0).log1p(), charge / 4.0, mass.clamp(min=0).log1p() / 3.0], dim=-1)


class GraphEncoder(nn.Module):
    """Graph transformer over the directed edges of a network.

    It does not read the environment: with that at hand it knows training networks by heart (CHANGELOG.md).
    """

    def __init__(self, width: int, heads: int, layers: int, latent_dim: int) -> None:
        super().__init__()
        pair = torch.arange(TYPES * TYPES)
        self.inputs = nn.Linear(COMPOSITION + 2 + 2, width)
        self.transformer = GraphTransformer(
            width, heads, layers, successor=pair // TYPES > 0, predecessor=pair % TYPES > 0
        )
        self.to_latent = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, latent_dim))

    def forward(self, graph: GraphBatch, identity: Float[Tensor, "B N D"]) -> Float[Tensor, "B Z"]:
        """Return the latent.

        Args:
            identity: Embedding of each metabolite's name.
        """
        real = graph.mask[..., None].to(identity.dtype)
        degrees = torch.stack([graph.adjacency.sum(1), graph.adjacency.sum(2)], -1).float().log1p()
        features = graph.features.float()
        known = torch.cat([scaled_composition(features[..., :COMPOSITION]), features[..., COMPOSITION:], degrees], -1)
        nodes = (identity + self.inputs(known.to(identity.dtype))) * real
        edge_type = graph.edge_type * graph.adjacency
        nodes = self.transformer(nodes, graph.mask, edge_type * TYPES + edge_type.transpose(1, 2))
        size = real.sum(1).clamp(min=1.0)
        strongest = torch.where(graph.mask[..., None], nodes, -torch.inf).amax(1).nan_to_num(neginf=0.0)
        return self.to_latent(torch.cat([nodes.sum(1) / size, strongest], dim=1))
