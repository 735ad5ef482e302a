"""Make the modalities of one planet agree: contrast their latents, foretell what is hidden from the fused one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from data_pipeline.batch import GraphBatch
from models.losses import first_row, gather_with_grad


class ConsistencyOutput(NamedTuple):
    """Contrast codes (unit length, float32), their inverse temperature, and what the fused latent foretells."""

    codes: Float[Tensor, "B Q D"]
    sharpness: Float[Tensor, ""]
    foretold: dict[str, Tensor]  # name -> B D_name


class Consistency(nn.Module):
    """Projectors of the contrast and predictors from the fused latent."""

    def __init__(self, latent_dims: Mapping[str, int], foretell_dims: Mapping[str, int], width: int, dim: int) -> None:
        super().__init__()
        self.names, self.foretell_dims = tuple(latent_dims), dict(foretell_dims)
        self.project = nn.ModuleList(nn.Linear(size, dim) for size in latent_dims.values())
        self.log_sharpness = nn.Parameter(torch.full((1,), 2.3))  # a temperature of 0.1
        self.foretell = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(),
            nn.Linear(2 * width, sum(foretell_dims.values())),
        )  # fmt: skip

    def forward(self, latents: Mapping[str, Tensor], fused: Float[Tensor, "B D"]) -> ConsistencyOutput:
        """Project the latents (in the order given on construction) and foretell from the fused latent."""
        dtype = self.log_sharpness.dtype
        codes = [
            F.normalize(project(latents[name].to(dtype)).float(), dim=-1)
            for name, project in zip(self.names, self.project, strict=True)
        ]
        parts = self.foretell(fused).float().split(list(self.foretell_dims.values()), dim=1)
        foretold = dict(zip(self.foretell_dims, parts, strict=True))
        sharpness = self.log_sharpness.float().clamp(max=4.6).exp().squeeze(0)
        return ConsistencyOutput(torch.stack(codes, dim=1), sharpness, foretold)


def info_nce(
    codes: Float[Tensor, "B Q D"],
    sharpness: Float[Tensor, ""],
    present: Bool[Tensor, "B Q"],
    content_key: Int[Tensor, "B Q"],
) -> tuple[Float[Tensor, "B Q Q"], Bool[Tensor, "B Q Q"]]:
    """Return, for each planet and ordered pair of modalities, the nats to find one by the other, and which are valid.

    Candidates are the planets of all ranks that have the modality sought. A candidate with the same content key as the
    planet in either modality (the same network on another planet, the same planet twice) is a false negative: left out.

    Source:
        van den Oord et al. 2018, equation 4.
    """
    size, modalities, _ = codes.shape
    all_codes, all_present, all_keys = gather_with_grad(codes), gather_with_grad(present), gather_with_grad(content_key)
    own = torch.arange(size, device=codes.device) + first_row(size)
    similarity = torch.einsum("bmd,knd->bmnk", codes, all_codes) * sharpness
    same = (content_key[:, None] == all_keys[None]).transpose(1, 2)  # B Q K
    is_own = F.one_hot(own, len(all_codes)).bool()[:, None, None]
    left_out = (same[:, :, None] | same[:, None, :]) & ~is_own | ~all_present.T[None, None]
    positive = similarity.gather(3, own.view(-1, 1, 1, 1).expand(-1, modalities, modalities, 1)).squeeze(3)
    nats = similarity.masked_fill(left_out & ~is_own, float("-inf")).logsumexp(3) - positive
    pairs = ~torch.eye(modalities, dtype=torch.bool, device=codes.device)
    return nats, present[:, :, None] & present[:, None, :] & pairs


def network_key(graph: GraphBatch) -> Int[Tensor, " B"]:
    """Return a number that is the same for equal networks in any order of nodes: a sum of hashed edges, modulo 2^64."""
    source, target = graph.metabolite_index[:, :, None] + 1, graph.metabolite_index[:, None, :] + 1
    edge = (source * 1_000_003 + target) * 6_364_136_223_846_793_005
    edge = (edge ^ (edge >> 29)) * 2_862_933_555_777_941_757
    return (edge * graph.adjacency).sum((1, 2))


def foretelling_error(
    foretold: Mapping[str, Tensor], targets: Mapping[str, Tensor], present: Mapping[str, Tensor]
) -> tuple[Float[Tensor, "B Q"], Bool[Tensor, "B Q"]]:
    """Return the squared error of each foretold part, a mean over its numbers, and which parts are present.

    Targets carry no gradient, so that no encoder lowers the loss by becoming trivial; the caller normalises latents, so
    that none does by shrinking.
    """
    errors = [(foretold[name] - targets[name].detach().float()).square().mean(1) for name in foretold]
    return torch.stack(errors, dim=1), torch.stack([present[name] for name in foretold], dim=1)
