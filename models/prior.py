"""The conditional prior of the network's latent: a mixture of normals whose shares depend on the environment."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from models import noise


class Mixture(NamedTuple):
    """K diagonal normals with log shares for each sample."""

    log_share: Float[Tensor, "B K"]
    mean: Float[Tensor, "K Z"]
    log_var: Float[Tensor, "K Z"]


class MixturePrior(nn.Module):
    """p(z | environment): several ways of life (components), of which an environment allows some."""

    def __init__(self, condition_dim: int, components: int, latent_dim: int) -> None:
        super().__init__()
        self.share = nn.Sequential(
            nn.Linear(condition_dim, condition_dim), nn.GELU(), nn.Linear(condition_dim, components)
        )
        self.mean = nn.Parameter(torch.randn(components, latent_dim))
        self.log_var = nn.Parameter(torch.full((components, latent_dim), -1.0))

    def forward(self, condition: Float[Tensor, "B D"]) -> Mixture:
        """Return the mixture in float32."""
        log_share = torch.log_softmax(self.share(condition).float(), dim=-1)
        return Mixture(log_share, self.mean.float(), self.log_var.float().clamp(-6.0, 2.0))

    def sample(self, condition: Float[Tensor, "B D"], seed: Int[Tensor, " B"], stream: int) -> Float[Tensor, "B Z"]:
        """Draw one latent a sample from noise that depends on its seed alone."""
        mixture = self(condition)
        place = torch.arange(mixture.mean.shape[1], device=seed.device)[None]
        u = noise.uniform(seed, stream + 500, torch.zeros_like(place[:, :1]))
        component = (u > mixture.log_share.exp().cumsum(1)[:, :-1]).sum(1)
        return mixture.mean[component] + (0.5 * mixture.log_var[component]).exp() * noise.normal(seed, stream, place)


def kl_to_normal(mean: Tensor, log_var: Tensor, prior_mean: Tensor, prior_log_var: Tensor) -> Tensor:
    """Return the divergence of diagonal normals in nats, summed over the last axis."""
    ratio = (log_var - prior_log_var).exp() + (mean - prior_mean).square() * (-prior_log_var).exp()
    return 0.5 * (ratio - 1.0 + prior_log_var - log_var).sum(-1)


def kl_to_mixture(mean: Float[Tensor, "B Z"], log_var: Float[Tensor, "B Z"], prior: Mixture) -> Float[Tensor, " B"]:
    """Return an upper bound of the divergence from a diagonal normal to a mixture, in nats.

    Exact for one component. Source: the variational bound of Hershey and Olsen 2007, -log sum_k share_k exp(-KL_k).
    """
    each = kl_to_normal(mean[:, None], log_var[:, None], prior.mean, prior.log_var)
    return -torch.logsumexp(prior.log_share - each, dim=1)
