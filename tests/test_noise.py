from __future__ import annotations

import pytest
import torch

from models import noise


def test_noise_of_a_sample_does_not_depend_on_the_batch_or_the_padding() -> None:
    seeds, places = torch.tensor([11, -7, 2**61]), torch.arange(40)[None]
    together = noise.normal(seeds, 3, places)
    assert torch.equal(noise.normal(seeds[1:2], 3, places[:, :10]), together[1:2, :10])


def test_uniform_and_normal_numbers_have_the_moments_of_their_names() -> None:
    u = noise.uniform(torch.arange(100), 0, torch.arange(1000)[None])
    z = noise.normal(torch.arange(100), 0, torch.arange(1000)[None])
    assert 0.0 < u.min() and u.max() < 1.0
    assert u.mean().item() == pytest.approx(0.5, abs=5e-3) and u.var().item() == pytest.approx(1 / 12, abs=2e-3)
    assert z.mean().item() == pytest.approx(0.0, abs=0.02) and z.std().item() == pytest.approx(1.0, abs=0.02)


def test_neighbouring_seeds_streams_and_places_are_unrelated() -> None:
    z = noise.normal(torch.arange(2), 0, torch.arange(20_001)[None])
    other_stream = noise.normal(torch.arange(1), 1, torch.arange(20_001)[None])
    for a, b in ((z[0], z[1]), (z[0, :-1], z[0, 1:]), (z[0], other_stream[0])):
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) < 0.03
