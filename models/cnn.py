"""Encode climate cubes with a convolutional network that knows their geometry, and check the physics it gives back."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from data_pipeline.variables import CLIMATE_FIELDS, LATITUDES, LEVELS, LONGITUDES, climate_field
from models.configs import ClimateConfig
from models.losses import Term, masked

COARSE = 4  # the reconstruction lives on cells of 4 x 4, an 8 x 16 grid: what the latent can hold, and cheap

# Mean and standard deviation of each field over all cells of 400 seeded draws of clero 0.1.4 over its core domain,
# levels bottom to top; humidity as log10 with a floor of 1e-9. Rounded: a normalisation, not a result.
_SURFACE = ((231.0, 43.0), (142.0, 213.0), (168.0, 70.0))  # temperature K, absorbed W m-2, outgoing W m-2
_PROFILES = (
    ((253, 24), (255, 23), (255, 23), (252, 24), (245, 25), (238, 27), (232, 30), (230, 32), (226, 34), (204, 30)),
    ((-4.05, 1.30), (-4.04, 1.29), (-4.08, 1.30), (-4.18, 1.35), (-4.41, 1.46),
     (-4.81, 1.65), (-5.34, 1.78), (-5.76, 1.80), (-6.14, 1.83), (-6.05, 1.66)),
    ((0.21, 0.28), (0.17, 0.25), (0.10, 0.21), (0.08, 0.19), (0.07, 0.18),
     (0.06, 0.15), (0.04, 0.12), (0.03, 0.08), (0.02, 0.06), (0.03, 0.06)),
    ((-0.7, 7.0), (0.0, 7.4), (1.8, 8.1), (3.5, 9.7), (4.5, 12.0),
     (4.5, 13.9), (4.3, 15.8), (3.8, 17.0), (2.5, 18.3), (1.8, 25.5)),
    ((0, 4.9), (0, 4.9), (0, 4.9), (0, 5.8), (0, 7.5), (0, 8.9), (0, 9.9), (0, 9.5), (0, 9.3), (0, 12.2)),
)  # fmt: skip
_HUMIDITY = slice(climate_field("specific_humidity"), climate_field("specific_humidity") + LEVELS)
_TEMPERATURE = slice(climate_field("temperature_k"), climate_field("temperature_k") + LEVELS)
_HUMIDITY_FLOOR = CLIMATE_FIELDS[_HUMIDITY.start].floor

# Levels of the cube: relative isobars of clero (climate_analysis/profiles.py: sigma(x), P_top 10 mbar, lowest level at
# 0.925 of the surface pressure), here for 1 bar. The surface pressure is not observable and not in the batch; another
# one changes the log thickness of the lower layers by a few per cent and stretches the uppermost.
_X = np.linspace(1.0, 0.0, LEVELS)
PRESSURE_PA = (0.75 * _X + 1.75 * _X**3 - 1.5 * _X**4) * (0.925e5 - 1.0e3) + 1.0e3
DRY_ADIABAT = 2.0 / 7.0  # R / c_p of a diatomic gas (N2, O2, H2): d ln T / d ln p; triatomic gases are below it
_ENERGY_SCALE_W_M2 = 10.0
_LAPSE_SCALE = 0.1  # in d ln T / d ln p
_THICKNESS_SCALE = 0.01  # relative error of the thickness of the column


class ClimateOutput(NamedTuple):
    """Latent of a climate, what the decoder makes of it on the coarse grid (standardised), and what that costs."""

    latent: Float[Tensor, "B D"]
    reconstruction: Float[Tensor, "B C h w"]
    target: Float[Tensor, "B C h w"]
    terms: dict[str, Term]  # of the loss, see `climate_terms`


class ClimateCNN(nn.Module):
    """Autoencoder of climate cubes: periodic in longitude, keeps where things are (the substellar point is at 0)."""

    def __init__(self, config: ClimateConfig) -> None:
        super().__init__()
        width, fields = config.width, len(CLIMATE_FIELDS)
        self.patches = nn.Conv2d(fields, width, kernel_size=COARSE, stride=COARSE)
        self.fine = ResidualBlock2d(width)
        self.down = nn.Conv2d(width, 2 * width, kernel_size=2, stride=2)
        self.coarse = ResidualBlock2d(2 * width)
        self.grid = (LATITUDES // COARSE // 2, LONGITUDES // COARSE // 2)
        cells = self.grid[0] * self.grid[1]
        self.to_latent = nn.Linear(2 * width * cells, config.latent_dim)
        self.from_latent = nn.Linear(config.latent_dim, width * cells)
        self.up = ResidualBlock2d(width)
        self.to_fields = nn.Conv2d(width, fields, kernel_size=1)

    def forward(self, climate: Float[Tensor, "B C H W"], present: Bool[Tensor, " B"] | None = None) -> ClimateOutput:
        """Encode and reconstruct cubes in physical units (variables.CLIMATE_FIELDS); by default all are present."""
        standardised = standardise_climate(climate)
        target = area_average(standardised)  # here, where nothing else takes room yet
        x = self.patches(standardised.to(self.patches.weight.dtype))
        x = self.coarse(self.down(self.fine(x)))
        latent = self.to_latent(F.silu(x).flatten(1))
        y = self.from_latent(latent).unflatten(1, (-1, *self.grid))
        y = self.up(F.interpolate(y, scale_factor=2.0, mode="nearest"))
        rebuilt = self.to_fields(F.silu(y))
        return ClimateOutput(latent, rebuilt, target, climate_terms(rebuilt, target, present))


class ResidualBlock2d(nn.Module):
    """x + conv(silu(norm(x))): the skip keeps absolute values (a mean temperature), which the norm would remove."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8 if width % 8 == 0 else 1, width)
        self.conv = nn.Conv2d(width, width, kernel_size=3)

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """Longitude is a circle; beyond a pole lies the last row again."""
        y = F.silu(self.norm(x))
        y = F.pad(F.pad(y, (1, 1, 0, 0), mode="circular"), (0, 0, 1, 1), mode="replicate")
        return x + self.conv(y)


@lru_cache(maxsize=8)
def _normalisation(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation as C 1 1 float32; not buffers, which a bf16 engine would round."""
    rows = torch.tensor([*_SURFACE, *(level for variable in _PROFILES for level in variable)], device=device)
    return rows[:, 0].view(-1, 1, 1), rows[:, 1].view(-1, 1, 1)


def standardise_climate(climate: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Map physical units to zero mean and unit deviation over planets and cells; humidity through log10."""
    mean, deviation = _normalisation(climate.device)
    physical = climate.float()
    humidity = torch.log10(physical[:, _HUMIDITY].clamp(min=_HUMIDITY_FLOOR))
    physical = torch.cat([physical[:, : _HUMIDITY.start], humidity, physical[:, _HUMIDITY.stop :]], dim=1)
    return (physical - mean) / deviation


def restore_climate(standardised: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Invert `standardise_climate`, except that humidity stays log10."""
    mean, deviation = _normalisation(standardised.device)
    return standardised.float() * deviation + mean


@lru_cache(maxsize=8)
def _row_area(device: torch.device) -> Tensor:
    """Share of the sphere of each row of latitudes (equal-angle cells, poles at the ends)."""
    edges = torch.linspace(-torch.pi / 2, torch.pi / 2, LATITUDES + 1, device=device)
    return torch.sin(edges).diff() / 2


@lru_cache(maxsize=8)
def _log_pressure_steps(device: torch.device) -> Tensor:
    """Differences of ln p between neighbouring levels as 1 levels-1 1 1."""
    return torch.as_tensor(np.log(PRESSURE_PA), dtype=torch.float32, device=device).diff().view(1, -1, 1, 1)


def area_average(fields: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
    """Average over cells of COARSE x COARSE with the area of each row, so that global means stay what they are."""
    area = _row_area(fields.device).view(1, 1, -1, 1)
    total, weight = F.avg_pool2d(fields * area, COARSE), F.avg_pool2d(area.expand(1, 1, -1, fields.shape[-1]), COARSE)
    return total / weight


def _global_mean(fields: Float[Tensor, "B h w"]) -> Float[Tensor, " B"]:
    area = _row_area(fields.device).view(-1, COARSE).sum(1)
    return fields.mean(-1) @ area


def climate_terms(
    reconstruction: Float[Tensor, "B C h w"], target: Float[Tensor, "B C h w"], present: Bool[Tensor, " B"] | None
) -> dict[str, Term]:
    """Return climate/recon, physics/energy_balance and physics/hydrostatic, each one number a present sample.

    climate/recon: squared error in standard deviations, area weighted.
    """
    area = _row_area(target.device).view(-1, COARSE).sum(1) * (LATITUDES // COARSE)
    error = (reconstruction.float() - target).square().mean((1, 3)) @ area / len(area)
    rebuilt, given = restore_climate(reconstruction), restore_climate(target)
    return {
        "climate/recon": masked(error, present),
        "physics/energy_balance": masked(energy_imbalance(rebuilt, given), present),
        "physics/hydrostatic": masked(hydrostatic_violation(rebuilt, given), present),
    }


def energy_imbalance(rebuilt: Float[Tensor, "B C h w"], given: Float[Tensor, "B C h w"]) -> Float[Tensor, " B"]:
    """Penalise energy that the reconstruction makes or loses: Huber loss in units of 10 W m-2.

    Both are in physical units. The global mean of absorbed minus outgoing radiation has to be that of the given
    climate, not 0: draws of the emulator are off balance by about 3 W m-2 and the network must not learn to hide that.
    """
    absorbed, outgoing = climate_field("absorbed_shortwave_w_m2"), climate_field("outgoing_longwave_w_m2")
    net = [_global_mean(x[:, absorbed] - x[:, outgoing]) / _ENERGY_SCALE_W_M2 for x in (rebuilt, given)]
    return F.huber_loss(net[0], net[1], reduction="none")


def hydrostatic_violation(rebuilt: Float[Tensor, "B C h w"], given: Float[Tensor, "B C h w"]) -> Float[Tensor, " B"]:
    """Penalise columns that cannot stand: Huber losses of two consequences of hydrostatic balance, area weighted.

    Stability: on isobars d ln T / d ln p may exceed neither the dry adiabat nor, where that is already steeper, the
    given climate's (unit 0.1). Hypsometric: the thickness of the column, sum of R T d ln p / g, must be the given one
    (unit 1 %; R and g cancel). Both vanish for a perfect reconstruction.

    Source:
        Hypsometric equation and dry adiabat: Pierrehumbert, Principles of Planetary Climate (2010), chapter 2.
    """
    log_p_steps = _log_pressure_steps(given.device)
    slopes, thickness = [], []
    for x in (rebuilt, given):
        temperature_k = x[:, _TEMPERATURE].clamp(min=30.0)
        slopes.append(temperature_k.log().diff(dim=1) / log_p_steps)
        layer_mean = (temperature_k[:, 1:] + temperature_k[:, :-1]) / 2
        thickness.append((layer_mean * -log_p_steps).sum(1))
    excess = F.relu(slopes[0] - slopes[1].clamp(min=DRY_ADIABAT)) / _LAPSE_SCALE
    unstable = F.huber_loss(excess, torch.zeros_like(excess), reduction="none").mean(1)
    stretch = (thickness[0] / thickness[1] - 1.0) / _THICKNESS_SCALE
    stretched = F.huber_loss(stretch, torch.zeros_like(stretch), reduction="none")
    return _global_mean(unstable + stretched)
