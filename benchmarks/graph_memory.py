"""Measure the memory of the graph models against the number of nodes: one training step and one draw on the CPU.

`largest_tensor_per_pair` is the largest tensor of a step, gradients too, in numbers a pair of nodes: a tensor N x N x D
would have D. `train_peak_mib` is of the process, beyond what it takes with eight nodes; `draw_peak_mib` beyond that.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.rows import Row
from data_pipeline.batch import GraphBatch, GraphSample
from data_pipeline.collate import graph_batch
from data_pipeline.variables import ENVIRONMENT, NODE_FEATURES
from models.biochemistry import Chemistry
from models.configs import GraphVAEConfig
from models.graph_vae import GraphVAE
from models.unnamed_graphs import PAIRS, GrowthDecoder, draw, growth_nats, growth_order, ordered, patch_at

SIZES = (50, 100, 200, 500)
DEGREE = 3.0  # edges a node
SMALL = 8
MIB = 2**20
ROUNDS = 8


class Largest(TorchDispatchMode):
    """Remember the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what it returns."""
        found = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(found) if isinstance(t, Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return found


def graph_rows() -> list[Row]:
    """Return a row for each model and number of nodes."""
    return [
        Row(f"graph-{name}/{nodes}-nodes", partial(measure, work, nodes), timeout_s=600.0)
        for name, work in (("vae", graph_vae), ("unnamed", unnamed))
        for nodes in SIZES
    ]


def measure(work: Callable[[int], tuple[Callable[[], Any], Callable[[], Any]]], nodes: int) -> dict[str, Any]:
    """Return peaks and largest tensors of a training step and of a draw."""
    for act in work(SMALL):
        act()
    found: dict[str, Any] = {"nodes": nodes, "device": "cpu"}
    acts = work(nodes)
    for name, act in zip(("train", "draw"), acts, strict=True):
        before = _peak_mib()
        act()
        found[f"{name}_peak_mib"] = round(_peak_mib() - before, 1)
        with Largest() as largest:
            act()
        found[f"{name}_largest_tensor_per_pair"] = round(largest.numbers / nodes**2, 3)
        found[f"{name}_largest_tensor_mib"] = round(largest.numbers * 4 / MIB, 2)
    return found


def random_graph(nodes: int) -> np.ndarray:
    """Return N N bool: a directed graph with DEGREE edges a node on average, all nodes joined."""
    rng = np.random.default_rng(0)
    adjacency = rng.uniform(size=(nodes, nodes)) < (DEGREE - 1.0) / nodes
    adjacency[rng.integers(0, np.arange(1, nodes)), np.arange(1, nodes)] = True
    np.fill_diagonal(adjacency, False)
    return adjacency


def graph_vae(nodes: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return a step of the graph VAE on one network of named nodes, encoder and decoder, and the draw of a network."""
    adjacency = random_graph(nodes)
    edges = np.argwhere(adjacency)
    names = tuple(f"m{i}" for i in range(nodes))
    sample = GraphSample(
        metabolites=names,
        metabolite_index=np.arange(nodes),
        features=np.zeros((nodes, len(NODE_FEATURES)), np.float32),
        edge_index=edges.T,
        edge_type=np.ones(len(edges), np.int64),
    )
    table = {"metabolites": names, "allowed_edges": [[*edge, 1] for edge in edges.tolist()]}
    model = GraphVAE(GraphVAEConfig(), Chemistry.from_dict(table))
    graph: GraphBatch = graph_batch([sample])
    environment, present = torch.zeros(1, len(ENVIRONMENT)), torch.ones(1, dtype=torch.bool)

    def train() -> None:
        terms = model(graph, environment, present).terms
        torch.stack([term.total for term in terms.values()]).sum().backward()

    return train, lambda: model.generate(environment, torch.Generator().manual_seed(0))


def unnamed(nodes: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return a step of the growing graphs on the last node of one graph, and a round of drawing it."""
    adjacency = torch.from_numpy(random_graph(nodes))[None]
    label, mask = torch.zeros(1, nodes, dtype=torch.long), torch.ones(1, nodes, dtype=torch.bool)
    seed, size, newest = torch.zeros(1, dtype=torch.long), torch.tensor([nodes]), torch.tensor([nodes - 1])
    state, label, opened = ordered(adjacency, label, growth_order(adjacency, mask, seed).node)
    model = GrowthDecoder(1, True, 0, torch.zeros(nodes))
    hidden = torch.arange(nodes)[None] >= opened[:, -1:]
    patch = patch_at(newest, size, opened[:, -1], label, state, hidden & (torch.arange(nodes) < nodes - 1), 1)
    nothing = torch.zeros(1, 0)

    def train() -> None:
        torch.stack(growth_nats(model, patch, label, state[:, -1], nothing)).sum().backward()

    def draw_pairs() -> None:
        with torch.no_grad():
            draw(model, patch, torch.full((1,), PAIRS), nothing, seed, torch.zeros(1), ROUNDS)

    return train, draw_pairs


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB
