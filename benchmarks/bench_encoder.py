"""Measure what each part of the graph encoder is worth: how much of a network its latent keeps.

`./launch.sh bench encoder --data DIR --json [--seeds K] [--steps S]`: one line a (form, seed). Each form of the encoder
learns the distinct networks of the training planets and is judged on those of the test planets, which no training
planet has: nats that the known edges of a network take when they are told from the latent alone. Beside them:
what they take without any latent, from the frequency of each edge.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.rows import Row, main
from data_pipeline import shards
from data_pipeline.assemble import edge_names
from data_pipeline.batch import GraphBatch
from data_pipeline.collate import collate
from data_pipeline.variables import MAX_METABOLITES
from models.biochemistry import Chemistry
from models.configs import GraphVAEConfig
from models.graph_vae import GraphVAE
from trainers.records import without_cubes

BATCH, PEAK_LR, WEIGHT_DECAY = 32, 2e-3, 0.01


def _undirected(graph: GraphBatch) -> GraphBatch:
    both = torch.maximum(graph.edge_type, graph.edge_type.transpose(1, 2))
    return replace(graph, adjacency=graph.adjacency | graph.adjacency.transpose(1, 2), edge_type=both)


def _edgeless(graph: GraphBatch) -> GraphBatch:
    return replace(graph, adjacency=torch.zeros_like(graph.adjacency), edge_type=torch.zeros_like(graph.edge_type))


# What the encoder reads; what is to be told stays the whole directed network.
FORMS: Mapping[str, Callable[[GraphBatch], GraphBatch]] = {
    "ours": lambda graph: graph,
    "one_layer": lambda graph: graph,
    "undirected": _undirected,
    "metabolites_alone": _edgeless,
}


def options() -> argparse.ArgumentParser:
    """Return the options beside those of every benchmark."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="of ./launch.sh build-data")
    parser.add_argument("--seeds", type=int, default=3, metavar="K")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    return parser


def networks(data: Path, split: str, device: torch.device) -> GraphBatch:
    """Return the distinct networks of a split."""
    kept = {edges: sample for sample in without_cubes(data, split) if (edges := edge_names(sample.graph))}
    return collate(list(kept.values()), MAX_METABOLITES).to(device).graph


def _some(graph: GraphBatch, rows: Tensor) -> GraphBatch:
    return GraphBatch(**{f.name: getattr(graph, f.name)[rows] for f in fields(graph)})


def measure(form: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Train one form of the encoder and return what its latent leaves untold of networks that it never saw."""
    device = torch.device(given.device)
    torch.manual_seed(seed)
    chemistry = Chemistry.from_dict(shards.load_chemistry(given.data))
    model = GraphVAE(GraphVAEConfig(encoder_layers=1 if form == "one_layer" else 2), chemistry).to(device).train()
    train, test = (networks(given.data, split, device) for split in ("train", "test"))
    trained = [*model.identity.parameters(), *model.read_composition.parameters(), *model.recon.parameters()]
    trained += model.encoder.parameters()
    optimizer = torch.optim.AdamW(trained, lr=PEAK_LR, weight_decay=WEIGHT_DECAY)
    draws = torch.Generator().manual_seed(seed)

    def nats(graph: GraphBatch) -> Tensor:
        logits = model.recon(model.encode(FORMS[form](graph))).float()
        truth = model.edges(graph).float()
        return F.binary_cross_entropy_with_logits(logits, truth, reduction="none").sum(1)

    for step in range(given.steps):
        loss = nats(_some(train, torch.randint(len(train.mask), (BATCH,), generator=draws).to(device))).mean()
        optimizer.param_groups[0]["lr"] = PEAK_LR * 0.5 * (1 + math.cos(math.pi * step / given.steps))
        optimizer.zero_grad()
        (loss / 10).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    model.eval()
    frequency = model.edges(train).float().mean(0).clamp(1e-3, 1 - 1e-3)
    truth = model.edges(test).float()
    with torch.no_grad():
        return {
            "benchmark": "encoder",
            "form": form,
            "seed": seed,
            "test_nats": round(float(nats(test).mean()), 2),
            "train_nats": round(float(nats(train).mean()), 2),
            "nats_of_frequencies": round(
                float(F.binary_cross_entropy(frequency.expand_as(truth), truth) * len(frequency)), 2
            ),
            "networks": [len(train.mask), len(test.mask)],
            "steps": given.steps,
        }


def rows(given: argparse.Namespace) -> list[Row]:
    """Return a row for each form and seed."""
    return [
        Row(f"{form}-{seed}", partial(measure, form, seed, given), timeout_s=60 + given.steps)
        for seed in range(given.seeds)
        for form in FORMS
    ]


if __name__ == "__main__":
    given = options().parse_known_args()[0]
    if not (given.data / "manifest.json").is_file():
        print(f"error: data={given.data}: no data set there; make one with ./launch.sh build-data", file=sys.stderr)
        sys.exit(2)
    sys.exit(main("benchmarks.bench_encoder", rows(given), options()))
