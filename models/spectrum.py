"""Encode noisy spectra with a one-dimensional autoencoder that gives back the spectrum without its noise."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from data_pipeline.batch import SpectrumBatch
from data_pipeline.variables import OBSERVABLES, SPECTRAL_BINS, WAVELENGTH_UM
from models import noise
from models.configs import SpectrumConfig
from models.losses import Term, masked

TRANSIT, ECLIPSE = OBSERVABLES.index("transit_depth_ppm"), OBSERVABLES.index("eclipse_depth_ppm")
_CHANNELS = 9
_C2_UM_K = 14387.77  # second radiation constant
_REFERENCE_K = 280.0  # a black body like this glows at 1 in the channels of surface brightness
_THERMAL_UM = 4.0  # below, a day side shines by reflected light
_NOISE_STREAM = 9_001  # of models.noise
_STRIDES = 3  # halvings of the wavelength axis: 128 bins -> 16 places


class SpectrumOutput(NamedTuple):
    """Latent of a spectrum, what the decoder makes of it in asinh of units of the error and in ppm, what that costs."""

    latent: Float[Tensor, "B D"]
    reconstruction: Float[Tensor, "B O S"]
    reconstruction_ppm: Float[Tensor, "B O S"]
    terms: dict[str, Term]  # of the loss, see `spectrum_terms`


class SpectrumAutoencoder(nn.Module):
    """Denoising autoencoder over wavelength."""

    def __init__(self, config: SpectrumConfig) -> None:
        super().__init__()
        width, places = config.width, SPECTRAL_BINS >> _STRIDES
        self.stem = nn.Conv1d(_CHANNELS, width, kernel_size=7, stride=2, padding=3)
        self.blocks = nn.ModuleList(ResidualBlock1d(width) for _ in range(_STRIDES))
        self.halve = nn.ModuleList(nn.Conv1d(width, width, kernel_size=2, stride=2) for _ in range(_STRIDES - 1))
        self.to_latent = nn.Linear(width * places, config.latent_dim)
        self.from_latent = nn.Linear(config.latent_dim, width * places)
        self.up_blocks = nn.ModuleList(ResidualBlock1d(width) for _ in range(_STRIDES))
        self.to_bins = nn.Conv1d(width, len(OBSERVABLES), kernel_size=5, padding=2)
        self.places = places

    def forward(
        self, given: SpectrumBatch, present: Bool[Tensor, " B"] | None = None,
        noise_seed: Int[Tensor, " B"] | None = None,
    ) -> SpectrumOutput:  # fmt: skip
        """Encode observed spectra and denoise them; an absent one (all zeros) gives finite numbers.

        Args:
            given: What was observed.
            present: Where False, a spectrum adds nothing to the terms; all count by default.
            noise_seed: One number a sample, with which it is observed anew; as it was by default.
        """
        ppm = given.ppm if noise_seed is None else observed_again(given, noise_seed)
        error_ppm = _safe(given.error_ppm)
        x = self.stem(spectral_channels(ppm, error_ppm, given.star_temperature_k).to(self.stem.weight.dtype))
        x = self.blocks[0](x)
        for halve, block in zip(self.halve, self.blocks[1:], strict=True):
            x = block(halve(x))
        latent = self.to_latent(F.silu(x).flatten(1))
        y = self.from_latent(latent).unflatten(1, (-1, self.places))
        for block in self.up_blocks:
            y = block(F.interpolate(y, scale_factor=2.0, mode="nearest"))
        reconstruction = self.to_bins(F.silu(y)).float()
        terms = spectrum_terms(reconstruction, ppm, error_ppm, given.clean_ppm, present)
        return SpectrumOutput(latent, reconstruction, from_error_units(reconstruction, ppm, error_ppm), terms)


class ResidualBlock1d(nn.Module):
    """x + conv(silu(norm(x))); the skip keeps absolute values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8 if width % 8 == 0 else 1, width)
        self.conv = nn.Conv1d(width, width, kernel_size=5, padding=2)

    def forward(self, x: Float[Tensor, "B D s"]) -> Float[Tensor, "B D s"]:
        """Keep the number of places."""
        return x + self.conv(F.silu(self.norm(x)))


def spectral_channels(
    ppm: Float[Tensor, "B O S"], error_ppm: Float[Tensor, "B O S"], star_temperature_k: Float[Tensor, " B"]
) -> Float[Tensor, "B channels S"]:
    """Return what the network reads, float32: signal in units of its error, errors, and the planet-to-star contrast.

    Eclipse over mean transit depth is the contrast of surface brightness, free of both radii, in which a day side's
    temperature is written; the mean transit depth itself is kept as one constant channel. Contrast times the star's
    brightness is the day side's own, in units of a black body at 280 K.
    """
    ppm, error_ppm = ppm.float(), _safe(error_ppm)
    level = continuum(ppm, error_ppm)
    transit_level = level[:, TRANSIT].clamp(min=1.0).expand(-1, ppm.shape[-1])
    contrast, contrast_error = ppm[:, ECLIPSE] / transit_level, error_ppm[:, ECLIPSE] / transit_level
    signal = torch.asinh((ppm - level) / error_ppm)
    star = relative_brightness(star_temperature_k)
    return torch.stack(
        [
            signal[:, TRANSIT],
            signal[:, ECLIPSE],
            torch.log10(error_ppm[:, TRANSIT]) - 1.0,
            torch.log10(error_ppm[:, ECLIPSE]) - 1.0,
            torch.asinh(contrast / 1e-3) / 2,
            torch.asinh(contrast_error / 1e-3) / 2,
            torch.log10(transit_level) - 3.0,
            torch.asinh(contrast * star),
            torch.asinh(contrast_error * star),
        ],
        dim=1,
    )


def relative_brightness(star_temperature_k: Float[Tensor, " B"]) -> Float[Tensor, "B S"]:
    """Return how much brighter the star's surface is than a black body at 280 K in each bin; 0 below 4 um."""
    bins = torch.arange(SPECTRAL_BINS, device=star_temperature_k.device)  # made there: a copy would make the GPU wait
    middle = WAVELENGTH_UM[0] * (WAVELENGTH_UM[-1] / WAVELENGTH_UM[0]) ** ((bins + 0.5) / SPECTRAL_BINS)
    star = torch.expm1(_C2_UM_K / (middle * star_temperature_k.float().clamp(min=1000.0)[:, None]))
    return torch.where(middle > _THERMAL_UM, torch.expm1(_C2_UM_K / (middle * _REFERENCE_K)) / star, 0.0)


def continuum(ppm: Float[Tensor, "B O S"], error_ppm: Float[Tensor, "B O S"]) -> Float[Tensor, "B O 1"]:
    """Return the level that signal is measured from: weighted mean of the observed transit depth, 0 for eclipse."""
    weight = _safe(error_ppm)[:, TRANSIT].square().reciprocal()
    level = torch.zeros_like(ppm[..., :1], dtype=torch.float32)
    level[:, TRANSIT, 0] = (ppm[:, TRANSIT].float() * weight).sum(-1) / weight.sum(-1)
    return level


def to_error_units(
    values_ppm: Float[Tensor, "B O S"], ppm: Float[Tensor, "B O S"], error_ppm: Float[Tensor, "B O S"]
) -> Float[Tensor, "B O S"]:
    """Return asinh((values - continuum of the observation) / error): linear within the noise, logarithmic far above."""
    return torch.asinh((values_ppm.float() - continuum(ppm, error_ppm)) / _safe(error_ppm))


def from_error_units(
    values: Float[Tensor, "B O S"], ppm: Float[Tensor, "B O S"], error_ppm: Float[Tensor, "B O S"]
) -> Float[Tensor, "B O S"]:
    """Invert `to_error_units`."""
    return continuum(ppm, error_ppm) + _safe(error_ppm) * torch.sinh(values.float().clamp(-15.0, 15.0))


def observed_again(given: SpectrumBatch, seeds: Int[Tensor, " B"]) -> Float[Tensor, "B O S"]:
    """Observe the noiseless spectra once more with the same errors: in training every step sees other noise."""
    place = torch.arange(given.ppm[0].numel(), device=seeds.device).view(1, *given.ppm.shape[1:])
    return given.clean_ppm + given.error_ppm * noise.normal(seeds, _NOISE_STREAM, place).to(given.ppm.dtype)


def spectrum_terms(
    reconstruction: Float[Tensor, "B O S"],
    ppm: Float[Tensor, "B O S"],
    error_ppm: Float[Tensor, "B O S"],
    clean_ppm: Float[Tensor, "B O S"],
    present: Bool[Tensor, " B"] | None,
) -> dict[str, Term]:
    """Return spectrum/recon: smooth L1 to the noiseless spectrum in asinh of error units, a mean over bins."""
    target = to_error_units(clean_ppm, ppm, error_ppm)
    error = F.smooth_l1_loss(reconstruction, target, reduction="none").mean((1, 2))
    return {"spectrum/recon": masked(error, present)}


def _safe(error_ppm: Tensor) -> Tensor:
    """Errors as float32; those of an absent spectrum are 0 and become 1."""
    error_ppm = error_ppm.float()
    return torch.where(error_ppm > 0, error_ppm, torch.ones_like(error_ppm))
