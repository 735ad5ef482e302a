"""The reader finds a number wherever it stands in a description, and nothing else."""

from __future__ import annotations

import torch

from models.text_reader import TextReader


def test_what_lies_beyond_the_description_changes_nothing() -> None:
    torch.manual_seed(0)
    reader, states = TextReader(12, 5), torch.randn(2, 7, 12)
    real = torch.arange(7) < torch.tensor([[7], [4]])
    changed = states.clone()
    changed[1, 4:] += 10.0
    assert torch.equal(reader(states, real), reader(changed, real))
    assert torch.allclose(reader(states, real)[1], reader(states[1:, :4], real[1:, :4])[0], atol=1e-6)


def test_order_does_not_matter_and_every_token_does() -> None:
    torch.manual_seed(0)
    reader, states, real = TextReader(12, 5), torch.randn(1, 6, 12), torch.ones(1, 6, dtype=torch.bool)
    latent = reader(states, real)
    assert torch.allclose(latent, reader(states.flip(1), real), atol=1e-5)
    for token in range(6):
        other = states.clone()
        other[0, token] = -other[0, token]
        assert not torch.allclose(latent, reader(other, real), atol=1e-4)


def test_no_token_at_all_gives_finite_numbers_and_gradients() -> None:
    reader = TextReader(12, 5)
    latent = reader(torch.zeros(1, 3, 12), torch.zeros(1, 3, dtype=torch.bool))
    latent.sum().backward()
    assert latent.isfinite().all() and all(p.grad is not None and p.grad.isfinite().all() for p in reader.parameters())
