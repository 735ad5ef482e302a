"""The spectrum autoencoder sees signal in units of its error and gives the spectrum back without noise."""

from __future__ import annotations

import math

import pytest
import torch

from data_pipeline.batch import SpectrumBatch
from data_pipeline.variables import OBSERVABLES, SPECTRAL_BINS, WAVELENGTH_UM
from models.configs import SpectrumConfig
from models.spectrum import (
    ECLIPSE,
    TRANSIT,
    SpectrumAutoencoder,
    continuum,
    from_error_units,
    observed_again,
    relative_brightness,
    spectral_channels,
    spectrum_terms,
    to_error_units,
)

SHAPE = (1, len(OBSERVABLES), SPECTRAL_BINS)
STAR_K = torch.tensor([3000.0])


def flat(transit_ppm: float, eclipse_ppm: float, error_ppm: float) -> tuple[torch.Tensor, torch.Tensor]:
    ppm = torch.empty(SHAPE)
    ppm[:, TRANSIT], ppm[:, ECLIPSE] = transit_ppm, eclipse_ppm
    return ppm, torch.full(SHAPE, error_ppm)


def batch(ppm: torch.Tensor, error: torch.Tensor, clean: torch.Tensor) -> SpectrumBatch:
    star = STAR_K.expand(len(ppm))
    return SpectrumBatch(ppm=ppm, error_ppm=error, clean_ppm=clean, star_temperature_k=star)


def test_the_continuum_is_the_weighted_mean_of_the_transit_and_zero_for_the_eclipse() -> None:
    ppm, error = flat(1000.0, 50.0, 10.0)
    ppm[:, TRANSIT, 0], error[:, TRANSIT, 1:] = 1300.0, 1e9  # only the first bin weighs
    assert continuum(ppm, error).flatten().tolist() == pytest.approx([1300.0, 0.0])


def test_channels_of_a_flat_spectrum_are_known() -> None:
    channels = spectral_channels(*flat(1000.0, 20.0, 10.0), STAR_K)[0, :, 0].tolist()
    expected = [0.0, math.asinh(2.0), 0.0, 0.0, math.asinh(20.0) / 2, math.asinh(10.0) / 2, 0.0, 0.0, 0.0]
    assert channels == pytest.approx(expected, abs=1e-4)


def test_the_contrast_is_free_of_the_radii() -> None:
    small, large = (
        spectral_channels(*flat(size * 1000.0, size * 20.0, size * 10.0), STAR_K)[:, [4, 5, 7, 8]] for size in (1, 4)
    )
    assert torch.allclose(small, large)


def test_a_day_side_at_280_k_glows_at_one_whatever_its_star() -> None:
    """Contrast of surface brightness is the ratio of the two Planck functions."""
    middle = torch.tensor(WAVELENGTH_UM[1:] * WAVELENGTH_UM[:-1]).sqrt()
    for star_k in (2600.0, 5800.0):
        contrast = torch.expm1(14387.77 / (middle * star_k)) / torch.expm1(14387.77 / (middle * 280.0))
        glow = contrast * relative_brightness(torch.tensor([star_k]))[0]
        assert glow[middle > 4.0].tolist() == pytest.approx([1.0] * int((middle > 4.0).sum()), rel=1e-3)
        assert (glow[middle < 4.0] == 0).all()


def test_error_units_are_linear_within_the_noise_and_invertible() -> None:
    ppm, error = flat(1000.0, 0.0, 10.0)
    above = ppm + 0.1
    assert to_error_units(above, ppm, error).mean().item() == pytest.approx(0.01, rel=1e-3)
    back = from_error_units(to_error_units(ppm + 500.0, ppm, error), ppm, error)
    assert torch.allclose(back, ppm + 500.0, rtol=1e-4)


def test_giving_back_the_clean_spectrum_costs_nothing_and_one_error_too_much_half() -> None:
    clean, error = flat(1000.0, 0.0, 10.0)
    ppm = clean + 10.0
    right = to_error_units(clean, ppm, error)
    present = torch.tensor([True])
    for offset, cost in ((0.0, 0.0), (1.0, 0.5)):
        terms = spectrum_terms(right + offset, ppm, error, clean, present)
        assert terms["spectrum/recon"].total.item() == pytest.approx(cost)


def test_spectra_observed_again_scatter_by_their_error_around_the_truth() -> None:
    ones = torch.ones(4, *SHAPE[1:])
    again = observed_again(batch(ones, 0.1 * ones, 5 * ones), torch.arange(4))
    assert again.mean().item() == pytest.approx(5.0, abs=0.02)
    assert (again - 5.0).std().item() == pytest.approx(0.1, rel=0.1)


def test_an_absent_spectrum_gives_finite_numbers_and_no_item() -> None:
    network, zeros = SpectrumAutoencoder(SpectrumConfig(width=8)), torch.zeros(SHAPE)
    output = network(batch(zeros, zeros, zeros), torch.tensor([False]))
    assert output.latent.isfinite().all() and output.reconstruction_ppm.isfinite().all()
    term = output.terms["spectrum/recon"]
    assert (term.total.item(), term.items.item()) == (0.0, 0.0)


def test_the_network_learns_to_remove_noise() -> None:
    torch.manual_seed(0)
    clean, error = flat(1000.0, 0.0, 10.0)
    clean = clean + 50.0 * torch.sin(torch.linspace(0, 12.0, SPECTRAL_BINS))
    network = SpectrumAutoencoder(SpectrumConfig(width=16, latent_dim=8))
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(150):
        ppm = clean + 10.0 * torch.randn(8, *SHAPE[1:])
        error_8, clean_8 = error.expand_as(ppm), clean.expand_as(ppm)
        loss = network(batch(ppm, error_8, clean_8)).terms["spectrum/recon"].total / 8
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    noisy = clean + 10.0 * torch.randn(SHAPE)
    rebuilt = network(batch(noisy, error, clean)).reconstruction_ppm
    assert (rebuilt - clean).square().mean() < 0.3 * (noisy - clean).square().mean()


def test_the_network_follows_bfloat16() -> None:
    network = SpectrumAutoencoder(SpectrumConfig(width=8)).bfloat16()
    ppm, error = flat(1000.0, 20.0, 10.0)
    output = network(batch(ppm, error, ppm))
    assert output.latent.dtype == torch.bfloat16 and output.reconstruction.dtype == torch.float32
