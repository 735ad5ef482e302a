from __future__ import annotations

import math

import pytest
import torch

from models import graph_decoder as decoder


def scores(directed: list[list[float]], reciprocity: float = 0.0, log_variance: float = -20.0) -> decoder.PairScores:
    a = torch.tensor([directed])
    return decoder.PairScores(
        a, torch.full_like(a, reciprocity), torch.full_like(a, log_variance), torch.zeros(*a.shape, 3)
    )


def test_the_four_states_of_a_pair_are_named_from_the_first_node() -> None:
    adjacency = torch.tensor([[[0, 1, 1], [0, 0, 0], [1, 0, 0]]]).bool()
    state = decoder.pair_state(adjacency)
    assert state[0, 0].tolist() == [decoder.NONE, decoder.FORWARD, decoder.BOTH]
    assert state[0, 1, 0] == decoder.BACKWARD
    assert torch.equal(decoder.flipped(state).transpose(1, 2), state)


def test_directions_are_independent_without_reciprocity_and_joint_with_it() -> None:
    logits = decoder.pair_logits(scores([[0.0, 1.0], [-2.0, 0.0]]))
    assert decoder.edge_probability(logits)[0, 0, 1].item() == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-5)
    assert decoder.edge_probability(logits)[0, 1, 0].item() == pytest.approx(1 / (1 + math.exp(2)), abs=1e-5)
    joint = torch.softmax(decoder.pair_logits(scores([[0.0, 1.0], [-2.0, 0.0]], reciprocity=-30.0)), -1)
    assert joint[0, 0, 1, decoder.BOTH].item() < 1e-9


def test_doubt_pulls_probabilities_towards_a_half_and_widens_their_spread() -> None:
    sure, unsure = (
        scores([[0.0, 2.0], [2.0, 0.0]]),
        scores([[0.0, 2.0], [2.0, 0.0]], log_variance=math.log(8 / math.pi)),
    )
    p_sure, p_unsure = (decoder.edge_probability(decoder.pair_logits(s))[0, 0, 1].item() for s in (sure, unsure))
    assert p_sure == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-4)
    assert p_unsure == pytest.approx(1 / (1 + math.exp(-2 / math.sqrt(2))), abs=1e-4)
    std = [decoder.edge_standard_deviation(s, torch.full((1, 2, 2), 0.5))[0, 0, 1].item() for s in (sure, unsure)]
    assert std[0] < 1e-3 and std[1] == pytest.approx(0.25 * math.sqrt(8 / math.pi), rel=1e-5)


def test_each_step_reveals_an_equal_share_of_the_doubt_the_surest_first() -> None:
    entropy = torch.tensor([[0.4, 0.0, 0.1, 0.3, 0.2]])
    hidden = torch.tensor([[True, True, True, True, False]])
    # 0.8 nats are hidden; with two steps left, 0.4 are spent: 0.0, 0.1 and 0.3.
    assert decoder.reveal(entropy, hidden, 2).tolist() == [[False, True, True, True, False]]
    assert torch.equal(decoder.reveal(entropy, hidden, 1), hidden)
    assert decoder.reveal(torch.ones(1, 3), torch.ones(1, 3).bool(), 100).sum() == 1


def test_the_share_to_hide_is_everything_for_the_asked_share_of_samples() -> None:
    share = decoder.hidden_share(torch.arange(4000), 0, torch.zeros(1, dtype=torch.long), all_hidden=0.25)
    assert (share == 1.0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert share.min() >= 0.05


def test_a_forbidden_edge_is_never_drawn_and_every_pair_is_decided() -> None:
    torch.manual_seed(0)
    edges = decoder.EdgeDecoder(width=16, heads=2, layers=1, condition_dim=8, pair_rows=1)
    mask = torch.ones(3, 6, dtype=torch.bool)
    known = torch.zeros(3, 6, 6, dtype=torch.long)
    known[:, 0, 1] = known[:, 1, 0] = known[:, 2, 5] = 1
    with torch.no_grad():
        edges.write.bias[0] = 4.0  # an untrained decoder that would like to draw every edge
        drawn, kept, probability = decoder.sample_edges(
            edges, torch.randn(3, 6, 16), mask, known, known * 0, torch.randn(3, 8),
            seed=torch.arange(3), steps=4, temperature=1.0, use_mask=True,
        )  # fmt: skip
    assert drawn.any() and not (drawn & (known == 0)).any()
    assert (probability[known == 0] < 1e-6).all() and kept.directed.isfinite().all()
