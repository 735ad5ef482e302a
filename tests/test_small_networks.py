"""The torch-geometric form that the benchmark compares with computes what the dense one computes."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("torch_geometric")
from benchmarks.peers.graph_layers import GeometricTransformer
from models.graph_layers import GraphTransformer


def test_message_passing_gives_the_states_and_gradients_of_the_dense_layers() -> None:
    torch.manual_seed(0)
    dense = GraphTransformer(16, 4, 2, successor=torch.tensor([0, 1, 0]) > 0, predecessor=torch.tensor([0, 0, 1]) > 0)
    mask = torch.arange(5) < torch.tensor([[5], [2], [0]])
    nodes = torch.randn(3, 5, 16) * mask[..., None]
    state = torch.randint(0, 3, (3, 5, 5))
    outputs, gradients = [], []
    for layers in (dense, GeometricTransformer(dense)):
        if isinstance(layers, GeometricTransformer):
            layers.prepare(mask)
        dense.zero_grad()
        out = layers(nodes, mask, state)
        (out * mask[..., None]).square().sum().backward()
        outputs.append(out.detach())
        gradients.append([p.grad.clone() for p in dense.parameters()])
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)
