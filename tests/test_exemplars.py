"""The queue of networks after which new ones are told."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.exemplars import STEEPNESS, Exemplars, digest, draw, note

FEATURES, WIDTH = 3, 8
PAIRS = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [5, 6]])


def edges(*rows: str) -> Tensor:
    return torch.tensor([[c == "x" for c in row] for row in rows])


def queue(size: int = 4) -> Exemplars:
    torch.manual_seed(0)
    return Exemplars(PAIRS, 7, FEATURES, WIDTH, size)


def filled() -> Exemplars:
    exemplars = queue(3)
    exemplars.remember(note(edges("xxx...", "...xxx", "xx...."), torch.tensor([7, 8, 9]), torch.arange(3)))
    return exemplars


def test_the_newest_networks_stay_in_the_order_of_their_seeds_and_empty_ones_do_not() -> None:
    exemplars = queue(3)
    exemplars.remember(note(edges("x.....", "......", ".x...."), torch.tensor([1, 2, 3]), torch.tensor([20, 0, 10])))
    assert exemplars.written.tolist() == [True, True, False] and exemplars.origin.tolist()[:2] == [3, 1]
    exemplars.remember(note(edges("..x...", "...x.."), torch.tensor([4, 5]), torch.tensor([0, 1])))
    assert exemplars.origin.tolist() == [5, 1, 4] and exemplars.written.all()


def test_a_batch_larger_than_the_queue_fills_it_once() -> None:
    exemplars = queue(2)
    exemplars.remember(note(edges(*["x....."] * 5), torch.arange(5), torch.arange(5)))
    assert sorted(exemplars.origin.tolist()) == [0, 1] and exemplars.written.all()


def test_an_exemplar_from_the_environment_of_the_network_itself_is_left_out() -> None:
    told = filled().posterior(
        edges("xxx...", "xxx..."), torch.zeros(2, FEATURES), torch.tensor([7, 0]), torch.tensor([1, 2]), 1
    )
    assert told.usable.all()
    assert told.row.tolist() == [2, 0]  # the next most alike where its own is left out, itself elsewhere


def test_the_divergence_is_that_of_two_discrete_distributions() -> None:
    exemplars = filled()
    torch.nn.init.normal_(exemplars.suits.weight)
    features = torch.ones(1, FEATURES)
    told = exemplars.posterior(edges("xx...."), features, torch.tensor([0]), torch.tensor([1]), 1)
    jaccard = torch.tensor([2 / 3, 0.0, 1.0])
    posterior = torch.softmax(30 * jaccard, 0)
    log_share, usable = exemplars.log_shares(features)
    assert usable.all() and log_share.exp().sum().item() == pytest.approx(1.0)
    expected = (posterior * (posterior.log() - log_share[0])).sum().item()
    assert told.kl_nats.item() == pytest.approx(expected, rel=1e-4)


def test_what_suits_the_metabolites_of_an_exemplar_suits_it() -> None:
    exemplars = filled()
    with torch.no_grad():
        exemplars.suits.weight[0, 1] = 2.0  # the second number of an environment feeds metabolite 0
    log_share, _ = exemplars.log_shares(torch.tensor([[0.0, 1.0, 0.0]]))
    assert (log_share[0] - log_share[0, 1]).tolist() == pytest.approx([2.0 * STEEPNESS, 0.0, 2.0 * STEEPNESS])


def test_without_exemplars_nothing_is_told_and_gradients_are_finite() -> None:
    exemplars = queue()
    told = exemplars.posterior(
        edges("xx....", "......"), torch.zeros(2, FEATURES), torch.tensor([1, 2]), torch.arange(2), 1
    )
    embedded = exemplars.embed(told.row, told.usable)
    assert not told.usable.any() and not told.kl_nats.any() and not embedded.any()
    (embedded.sum() + told.kl_nats.sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in exemplars.parameters())


def test_rows_are_drawn_with_their_shares() -> None:
    log_share = torch.tensor([[0.2, 0.5, 0.3]]).log().expand(20_000, 3)
    counts = torch.bincount(draw(log_share, torch.arange(20_000), 1), minlength=3) / 20_000
    assert counts.tolist() == pytest.approx([0.2, 0.5, 0.3], abs=4 * math.sqrt(0.25 / 20_000))


def test_digests_tell_environments_apart() -> None:
    numbers = torch.randn(1000, 9)
    assert torch.equal(digest(numbers), digest(numbers.clone())) and len(digest(numbers).unique()) == 1000
