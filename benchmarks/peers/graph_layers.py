"""The graph transformer of this project as torch-geometric users write it: message passing over an edge list.

It computes what models/graph_layers.GraphTransformer computes, from the same parameters (tests/test_small_networks.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import softmax

from models.graph_layers import GraphTransformer


class BiasedAttention(MessagePassing):
    """Multi-head attention over incoming edges, with a number for each edge and head added to the logits."""

    def __init__(self) -> None:
        super().__init__(aggr="add", node_dim=0)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, edge_index: Tensor, bias: Tensor) -> Tensor:
        """Return what each node reads; tensors are nodes x heads x features, the bias edges x heads."""
        read: Tensor = self.propagate(edge_index, query=query, key=key, value=value, bias=bias)
        return read

    def message(self, query_i: Tensor, key_j: Tensor, value_j: Tensor, bias: Tensor, index: Tensor) -> Tensor:
        """Weigh the value of the source of each edge."""
        logit = (query_i * key_j).sum(-1) / math.sqrt(query_i.shape[-1]) + bias
        return value_j * softmax(logit, index)[..., None]


class GeometricTransformer(nn.Module):
    """Drop-in for a GraphTransformer, with its parameters; `prepare` is what a torch-geometric loader would do."""

    def __init__(self, dense: GraphTransformer) -> None:
        super().__init__()
        self.dense, self.attention = dense, BiasedAttention()
        self.place: tuple[Tensor, ...] = ()

    def prepare(self, mask: Tensor) -> None:
        """Make the edge list of all pairs of real nodes of each graph, both ways and to themselves."""
        graph, node = mask.nonzero(as_tuple=True)
        row = torch.full_like(mask, -1, dtype=torch.long)
        row[graph, node] = torch.arange(len(graph), device=mask.device)
        pair_graph, i, j = (mask[:, :, None] & mask[:, None, :]).nonzero(as_tuple=True)
        self.place = (graph, node, torch.stack([row[pair_graph, j], row[pair_graph, i]]), pair_graph, i, j)

    def forward(self, nodes: Tensor, mask: Tensor, pair_state: Tensor) -> Tensor:
        """See GraphTransformer."""
        dense = self.dense
        graph, node, edge_index, pair_graph, i, j = self.place
        x = nodes[graph, node]
        bias = dense.pair_bias(pair_state[pair_graph, i, j]).unflatten(-1, (dense.layers, dense.heads))
        for layer in range(dense.layers):
            read = dense.qkv[layer](dense.norms[2 * layer](x))
            q, k, v = read.view(len(x), 3, dense.heads, -1).unbind(1)
            x = x + dense.merge[layer](self.attention(q, k, v, edge_index, bias[:, layer]).flatten(1))
            x = x + dense.feed[layer](dense.norms[2 * layer + 1](x))
        out = torch.zeros_like(nodes)
        out[graph, node] = dense.norms[-1](x)
        return out
