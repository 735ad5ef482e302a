"""Graphs of many nodes: no tensor has as many numbers for each pair of nodes as a layer is wide."""

from __future__ import annotations

import pytest
import torch

from benchmarks import graph_memory
from models import graph_layers
from models.graph_layers import GraphTransformer


@pytest.mark.parametrize("name", ["graph_vae", "unnamed"])
def test_no_tensor_of_a_step_or_a_draw_is_nodes_by_nodes_by_width(name: str) -> None:
    found = graph_memory.measure(getattr(graph_memory, name), 300)  # a layer is 64 wide or more
    assert 1.0 <= found["train_largest_tensor_per_pair"] < 13.0
    assert 1.0 <= found["draw_largest_tensor_per_pair"] < 13.0


def test_the_largest_tensor_of_an_outer_product_is_that_product() -> None:
    with graph_memory.Largest() as largest:
        (torch.ones(30, 1) * torch.ones(1, 40)).sum()
    assert largest.numbers == 1200


def test_random_graphs_have_three_edges_a_node_and_hang_together() -> None:
    adjacency = graph_memory.random_graph(400)
    assert not adjacency.diagonal().any() and 2.7 < adjacency.sum() / 400 < 3.3
    assert all(adjacency[:k, k].any() for k in range(1, 400))


def test_attention_of_some_nodes_at_a_time_is_that_of_all_with_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    states = torch.tensor([False, True, True, False])
    net = GraphTransformer(16, 2, 2, states, states.roll(1))
    nodes, mask = torch.randn(2, 6, 16), torch.arange(6) < torch.tensor([[6], [4]])
    pairs = torch.randint(4, (2, 6, 6))
    found = []
    for block in (1000, 12):  # all rows at once, two at a time
        monkeypatch.setattr(graph_layers, "BLOCK", block)
        net.zero_grad()
        read = net(nodes, mask, pairs)
        read.square().sum().backward()
        found.append((read, *(p.grad.clone() for p in net.parameters())))
    assert len(found[0]) > 10 and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True))
    monkeypatch.setattr(graph_layers, "BLOCK", 12)
    with torch.no_grad():
        assert torch.allclose(net(nodes, mask, pairs), found[0][0], atol=1e-5)
