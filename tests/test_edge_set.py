"""What training hides and what sampling reveals; the states of pairs."""

from __future__ import annotations

import pytest
import torch

from models.edge_set import hidden_share, reveal
from models.pair_states import BACKWARD, BOTH, FORWARD, NONE, flipped, pair_state


def test_each_step_reveals_an_equal_share_of_the_doubt_the_surest_first() -> None:
    entropy = torch.tensor([[0.4, 0.0, 0.1, 0.3, 0.2]])
    hidden = torch.tensor([[True, True, True, True, False]])
    # 0.8 nats are hidden; with two steps left, 0.4 are spent: 0.0, 0.1 and 0.3.
    assert reveal(entropy, hidden, 2).tolist() == [[False, True, True, True, False]]
    assert torch.equal(reveal(entropy, hidden, 1), hidden)
    assert reveal(torch.ones(1, 3), torch.ones(1, 3).bool(), 100).sum() == 1


def test_the_share_to_hide_is_uniform_above_a_twentieth() -> None:
    share = hidden_share(torch.arange(4000), 0, torch.zeros(1, dtype=torch.long))
    assert 0.05 <= share.min() < 0.06 and 0.99 < share.max() < 1.0
    assert share.mean().item() == pytest.approx(0.525, abs=0.02)


def test_the_four_states_of_a_pair_are_named_from_the_first_node() -> None:
    adjacency = torch.tensor([[[0, 1, 1], [0, 0, 0], [1, 0, 0]]]).bool()
    state = pair_state(adjacency)
    assert state[0, 0].tolist() == [NONE, FORWARD, BOTH]
    assert state[0, 1, 0] == BACKWARD
    assert torch.equal(flipped(state).transpose(1, 2), state)
