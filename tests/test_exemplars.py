"""The queue of networks after which new ones are told."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.exemplars import Exemplars, Surroundings, digest, draw

FEATURES, WIDTH = 3, 8
PAIRS = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [5, 6]])


def edges(*rows: str) -> Tensor:
    return torch.tensor([[c == "x" for c in row] for row in rows])


def lived(*origin: int, at: float | None = 0.0) -> Surroundings:
    """Return environments of these digests, all alike; None for environments that are not known."""
    features = torch.full((len(origin), FEATURES), at or 0.0)
    return Surroundings(features, torch.full((len(origin),), at is not None), torch.tensor(origin))


def queue(size: int = 4) -> Exemplars:
    torch.manual_seed(0)
    return Exemplars(PAIRS, 7, FEATURES, WIDTH, size, forget=0.1)


def filled() -> Exemplars:
    exemplars = queue(3)
    exemplars.remember(edges("xxx...", "...xxx", "xx...."), lived(7, 8, 9), torch.arange(3))
    return exemplars


def test_the_newest_networks_stay_in_the_order_of_their_seeds_and_empty_ones_do_not() -> None:
    exemplars = queue(3)
    exemplars.remember(edges("x.....", "......", ".x...."), lived(1, 2, 3), torch.tensor([20, 0, 10]))
    assert exemplars.written.tolist() == [True, True, False] and exemplars.origin.tolist()[:2] == [3, 1]
    exemplars.remember(edges("..x...", "...x.."), lived(4, 5), torch.tensor([0, 1]))
    assert exemplars.origin.tolist() == [5, 1, 4] and exemplars.written.all()


def test_a_batch_larger_than_the_queue_fills_it_once() -> None:
    exemplars = queue(2)
    exemplars.remember(edges(*["x....."] * 5), lived(*range(5)), torch.arange(5))
    assert sorted(exemplars.origin.tolist()) == [0, 1] and exemplars.written.all()


def test_an_exemplar_from_the_environment_of_the_network_itself_is_left_out() -> None:
    told = filled().posterior(edges("xxx...", "xxx..."), lived(7, 0), torch.tensor([1, 2]), 1)
    assert told.usable.all()
    assert told.row.tolist() == [2, 0]  # the next most alike where its own is left out, itself elsewhere


def test_the_divergence_is_that_of_two_discrete_distributions() -> None:
    exemplars = filled()
    torch.nn.init.normal_(exemplars.suits.weight)
    asked = lived(0, at=1.0)
    told = exemplars.posterior(edges("xx...."), asked, torch.tensor([1]), 1)
    jaccard = torch.tensor([2 / 3, 0.0, 1.0])
    posterior = torch.softmax(30 * jaccard, 0)
    log_share, usable = exemplars.log_shares(asked)
    assert usable.all() and log_share.exp().sum().item() == pytest.approx(1.0)
    expected = (posterior * (posterior.log() - log_share[0])).sum().item()
    assert told.kl_nats.item() == pytest.approx(expected, rel=1e-4)


def test_exemplars_from_near_environments_count_for_more_where_both_are_known() -> None:
    exemplars = queue(3)
    where = [lived(1, at=0.0), lived(2, at=5.0), lived(3, at=None)]
    everywhere = Surroundings(*map(torch.cat, zip(*where, strict=True)))
    exemplars.remember(edges("x.....", ".x....", "..x..."), everywhere, torch.arange(3))
    near, _ = exemplars.log_shares(lived(9, at=0.0))
    nat = torch.nn.functional.softplus(torch.tensor(-2.0)).item()
    assert (near[0, 0] - near[0, 1]).item() == pytest.approx(FEATURES * 5.0 * nat, rel=1e-5)
    assert near[0, 2] == near[0, 0]
    unknown, _ = exemplars.log_shares(lived(9, at=None))
    assert unknown[0].tolist() == pytest.approx([math.log(1 / 3)] * 3)


def test_what_suits_the_metabolites_of_an_exemplar_suits_it() -> None:
    exemplars = filled()
    with torch.no_grad():
        exemplars.suits.weight[0, 1] = 2.0  # the second number of an environment feeds metabolite 0
    asked = lived(0)._replace(features=torch.tensor([[0.0, 1.0, 0.0]]))
    exemplars.features[:] = asked.features
    log_share, _ = exemplars.log_shares(asked)
    assert (log_share[0] - log_share[0, 1]).tolist() == pytest.approx([2.0, 0.0, 2.0])


def test_without_exemplars_nothing_is_told_and_gradients_are_finite() -> None:
    exemplars = queue()
    told = exemplars.posterior(edges("xx....", "......"), lived(1, 2), torch.arange(2), 1)
    embedded = exemplars.embed(told.row, told.usable)
    assert not told.usable.any() and not told.kl_nats.any() and not embedded.any()
    (embedded.sum() + told.kl_nats.sum()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in exemplars.parameters())


def test_training_hides_part_of_an_exemplar_and_evaluation_nothing() -> None:
    pairs = torch.stack([torch.arange(1000), torch.arange(1, 1001)], 1)
    exemplars = Exemplars(pairs, 1001, FEATURES, WIDTH, 1, forget=0.1)
    exemplars.remember(torch.ones(1, 1000, dtype=torch.bool), lived(1), torch.tensor([1]))
    row, usable = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.bool)
    read = []
    exemplars.read.register_forward_hook(lambda _, given, __: read.append(given[0].sum().item()))
    exemplars.embed(row, usable)
    exemplars.embed(row, usable, torch.tensor([3]), 4)
    assert read[0] == 1000 and read[1] == pytest.approx(900, abs=40)


def test_rows_are_drawn_with_their_shares() -> None:
    log_share = torch.tensor([[0.2, 0.5, 0.3]]).log().expand(20_000, 3)
    counts = torch.bincount(draw(log_share, torch.arange(20_000), 1), minlength=3) / 20_000
    assert counts.tolist() == pytest.approx([0.2, 0.5, 0.3], abs=4 * math.sqrt(0.25 / 20_000))


def test_digests_tell_environments_apart() -> None:
    numbers = torch.randn(1000, 9)
    assert torch.equal(digest(numbers), digest(numbers.clone())) and len(digest(numbers).unique()) == 1000
