"""Compare generators of graphs: same data, same seconds of training, same number of draws.

`./launch.sh bench generation --json [--data metabolic,planar] [--models ours,vgae] [--budget SECONDS] [--seeds K]`
prints one line a (data, model, seed) as each is done; `--graphs DIR` takes a folder of NPZ graphs instead of --data.
Each runs in a process of its own. It takes about rows x (budget + 30 s) / jobs. `--table FILE` turns such lines into
tables of mean and spread.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import (
    generation_table,
    graph_metrics,
    metabolic_metrics as metabolic,
    metabolic_sets,
    public_sets,
    rows,
)
from benchmarks.graph_metrics import DIRECTED, UNDIRECTED, Statistic, squared_mmd
from benchmarks.graph_sets import Generator, Graph, GraphSet
from benchmarks.rows import Row
from data_pipeline import scope
from data_pipeline.errors import InputError, one_line
from data_pipeline.variables import ENVIRONMENT
from trainers import metrics, oracle

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ours": ("benchmarks.ours_generation:Ours", {}),
    "ours_one_shot": ("benchmarks.ours_generation:Ours", {"sampling_steps": 1}),
    "vgae": ("benchmarks.peers.vgae:VGAE", {}),
    "directed_vgae": ("benchmarks.peers.vgae:DirectedVGAE", {}),
    "graphvae": ("benchmarks.peers.graphvae:GraphVAE", {}),
    "graphite": ("benchmarks.peers.graphite:Graphite", {}),
    "autoregressive": ("benchmarks.peers.autoregressive:Autoregressive", {}),
    "digress": ("benchmarks.peers.digress:Digress", {}),
    "junction_tree": ("benchmarks.peers.junction_tree:JunctionTree", {}),
    "nearest_neighbour": ("benchmarks.peers.nearest_neighbour:NearestNeighbour", {}),
    "rewired": ("benchmarks.peers.rewired:Rewired", {}),
    "real": ("benchmarks.peers.nearest_neighbour:Real", {}),  # what a perfect model would reach
}
ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {  # of ours; only where --models names them
    "without_exemplars": ("benchmarks.ours_generation:Ours", {"remembers": False}),
    "without_shift": ("benchmarks.ours_generation:Ours", {"environment_shift": 0.0}),
    "one_draw": ("benchmarks.ours_generation:Ours", {"draws": 1}),
    "guided": ("benchmarks.ours_generation:Ours", {"guided": True}),
    "guided_distinct": ("benchmarks.ours_generation:Ours", {"guided": True, "distinct": True}),
    "guided_lookup": ("benchmarks.peers.guided_lookup:GuidedLookup", {}),  # what guidance does without a model
    "temperature_1": ("benchmarks.ours_generation:Ours", {"temperature": 1.0}),
}
UNNAMED = {  # instead of those, in sets whose nodes have no names
    "ours": ("benchmarks.ours_unnamed:OursUnnamed", {}),
    "ours_one_shot": ("benchmarks.ours_unnamed:OursUnnamed", {"steps": 1}),
}
UNTRAINED = ("nearest_neighbour", "rewired", "real", "guided_lookup")
DATA = (*metabolic_sets.NAMES, *public_sets.NAMES)
LEAST_DRAWS = 100  # of sets without conditions, in whole batches of the size of the test
OVERHEAD_S = 600.0  # of reading, sampling and judging, before a row counts as hung
FOLDER = "folder"


class Drawn(NamedTuple):
    """What a trained model drew, and what that took."""

    graphs: list[Graph]
    facts: dict[str, Any]


def options() -> argparse.ArgumentParser:
    """Return the options beside those of every benchmark."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", default="metabolic", help=f"of {','.join(DATA)}")
    parser.add_argument("--graphs", default="", metavar="DIR", help="a folder of NPZ graphs, instead of --data")
    parser.add_argument("--public", default="", metavar="DIR", help=f"where {', '.join(public_sets.NAMES)} are")
    parser.add_argument("--models", default=",".join(MODELS), help=f"names, also of {','.join(ABLATIONS)}")
    parser.add_argument("--budget", type=float, default=60.0, metavar="SECONDS", help="of training, a model")
    parser.add_argument("--seeds", type=int, default=3, metavar="K")
    parser.add_argument("--no-mask", action="store_true", help="models do not know which reactions there are")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="rows at once; the cores are shared out")
    return parser


# --- one row ----------------------------------------------------------------------------------------------------------
def measure(data_name: str, model_name: str, seed: int) -> dict[str, Any]:
    """Train one model on one set, draw and judge."""
    given = options().parse_known_args()[0]
    data, organisms = load(data_name, given)
    model = build(model_name, given.device, not given.no_mask, names_nodes(data))
    drawn = train_and_draw(model, data, seed, given.budget)
    judge = judge_metabolic if data_name in metabolic_sets.NAMES else judge_graphs
    return {
        "benchmark": "generation",
        "data": data.name,
        "model": model_name,
        "seed": seed,
        **{k: _plain(v) for k, v in judge(data, drawn, organisms).items()},
        **drawn.facts,
        "device": given.device,
        "mask": data.allowed is not None and not given.no_mask,
        "budget_seconds": given.budget,
    }


def load(name: str, given: argparse.Namespace) -> tuple[GraphSet, tuple[str, ...]]:
    """Return a set and the organisms that are left out of its training."""
    if name == FOLDER:
        return public_sets.load_folder(given.graphs), ()
    return metabolic_sets.load(name) if name in metabolic_sets.NAMES else (public_sets.load(name, given.public), ())


def build(name: str, device: str, use_mask: bool = True, named: bool = True) -> Generator:
    """Return an untrained model by its name in MODELS; without the mask it may join any two labels."""
    import torch

    known = MODELS | ABLATIONS if named else MODELS | UNNAMED
    if name not in known:
        raise InputError(f"models={name}: a form of ours for nodes that have names; leave it out here")
    place, arguments = known[name]
    if name not in UNTRAINED:
        arguments = {**arguments, "use_mask": use_mask}
    module, name_there = place.split(":")
    model: Generator = getattr(importlib.import_module(module), name_there)(torch.device(device), **arguments)
    return model


def names_nodes(data: GraphSet) -> bool:
    """Is the set one for the graph VAE: nodes with names, and environments or nothing as conditions?"""
    return data.named and len(data.train[0].condition) in (0, len(ENVIRONMENT))


def train_and_draw(model: Generator, data: GraphSet, seed: int, budget_seconds: float) -> Drawn:
    """Train, then draw DRAWS graphs for each test condition, or whole batches of the size of the test without any.

    Args:
        model: Untrained.
        data: To learn from.
        seed: Of training and drawing.
        budget_seconds: Of training.
    """
    start = time.monotonic()
    model.fit(data, budget_seconds, seed)
    trained = time.monotonic()
    conditions = conditions_to_draw(data)
    graphs = checked(model.sample(conditions, seed), data, conditions)
    seconds = time.monotonic() - trained
    bound = model.bound_nats(data.test)
    facts = {
        "bound_nats": _plain(bound),
        "train_seconds": round(trained - start, 1),
        "sample_seconds_1000": round(1000 * seconds / len(conditions), 2),
        "parameters": parameters(model),
    }
    facts |= getattr(model, "chosen", {})  # by the held-out graphs
    if data.named and hasattr(model, "calibration"):  # of ours: peers say nothing of their doubt
        facts |= {k: _plain(v) for k, v in model.calibration(data.test).items()}
    return Drawn(graphs, facts)


def conditions_to_draw(data: GraphSet) -> np.ndarray:
    """Return a row for each graph to draw; equal conditions are neighbours."""
    if not has_conditions(data):
        return np.zeros((len(data.test) * math.ceil(LEAST_DRAWS / len(data.test)), 0), np.float32)
    distinct = dict.fromkeys(g.condition.tobytes() for g in data.test)
    return np.repeat(
        np.stack([np.frombuffer(c, data.test[0].condition.dtype) for c in distinct]), metabolic.DRAWS, axis=0
    )


def checked(graphs: Sequence[Graph], data: GraphSet, conditions: np.ndarray) -> list[Graph]:
    """Return the graphs with the conditions that were asked.

    Raises:
        ValueError: A model drew something that is no graph of the set.
    """
    for number, (labels, adjacency, _) in enumerate(graphs):
        if adjacency.shape != (len(labels), len(labels)) or adjacency.dtype != bool or adjacency.diagonal().any():
            raise ValueError(f"graph {number}: adjacency must be bool, N x N for N labels, and without loops")
        if not data.directed and (adjacency != adjacency.T).any():
            raise ValueError(f"graph {number}: {data.name} is undirected; draw edges both ways")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(data.vocabulary):
            raise ValueError(f"graph {number}: labels must be rows of a vocabulary of {len(data.vocabulary)}")
    return [g._replace(condition=c) for g, c in zip(graphs, conditions, strict=True)]


def has_conditions(data: GraphSet) -> bool:
    """Is every graph of the set the answer to a question?"""
    return len(data.test[0].condition) > 0


def parameters(model: Any) -> int:
    """Return how many numbers were learnt by the networks that a model holds, directly or inside parts of its own."""
    from torch import nn

    networks, waiting, seen = [], [model], set()
    while waiting:
        part = waiting.pop()
        if isinstance(part, nn.Module):
            networks.append(part)
        elif id(part) not in seen and type(part).__module__.startswith("benchmarks."):
            seen.add(id(part))
            waiting += getattr(part, "__dict__", {}).values()
    return sum({id(p): p.numel() for network in networks for p in network.parameters()}.values())


# --- judging ----------------------------------------------------------------------------------------------------------
def judge_metabolic(data: GraphSet, drawn: Drawn, organisms: Sequence[str]) -> dict[str, Any]:
    """Return the columns of a metabolic set; each environment counts alike, however much lives in it."""
    edges = [metabolic.edges_of(g, data.vocabulary) for g in drawn.graphs]
    asked = [metabolic.question_of(g, e) for e, g in zip(edges, drawn.graphs, strict=True)]
    true: dict[bytes, list[Any]] = {}
    for graph in data.test:
        true.setdefault(graph.condition.tobytes(), []).append(metabolic.edges_of(graph, data.vocabulary))
    groups = [edges[i : i + metabolic.DRAWS] for i in range(0, len(edges), metabolic.DRAWS)]
    known = {metabolic.edges_of(g, data.vocabulary) for g in data.train}
    found: dict[str, Any] = {
        "edge_precision": oracle.edge_precision(edges),
        "atp_feasible": metabolic.share_feasible(asked, organisms),
        "scope_coverage": float(np.mean([scope.scope(q.edges, q.nutrients) for q in asked])),
        "edge_f1": float(np.mean([metabolic.edge_f1(g, t) for g, t in zip(groups, true.values(), strict=True)])),
        **discrepancies(data, drawn.graphs, DIRECTED),
        "unique": metrics.uniqueness(edges),
        "unique_in_environment": float(np.mean([metrics.uniqueness(g) for g in groups])),
        "novel": metrics.share([e not in known for e in edges]),
        "nodes": float(np.mean([len(g.labels) for g in drawn.graphs])),
        "edges": float(np.mean([len(e) for e in edges])),
        "environments": len(groups),
        "draws_per_environment": metabolic.DRAWS,
    }
    if organisms:
        found["organisms_left_out"] = list(organisms)
    return found


def judge_graphs(data: GraphSet, drawn: Drawn, organisms: Sequence[str] = ()) -> dict[str, Any]:
    """Return the columns of a set of graphs of any kind."""
    key = graph_metrics.named_key if data.named else graph_metrics.shape_key
    keys = [key(g) for g in drawn.graphs]
    known = {key(g) for g in data.train}
    new = [k not in known for k in keys]
    adjacencies = [g.adjacency for g in drawn.graphs]
    found: dict[str, Any] = {
        **discrepancies(data, drawn.graphs, DIRECTED if data.directed else UNDIRECTED),
        **label_discrepancies(data, drawn.graphs),
        "unique": metrics.uniqueness(keys),
        "novel": metrics.share(new),
        "connected": metrics.share([graph_metrics.connected(a) for a in adjacencies]),
        "connected_test": metrics.share([graph_metrics.connected(g.adjacency) for g in data.test]),
        "nodes": float(np.mean([len(a) for a in adjacencies])),
        "edges": float(np.mean([a.sum() for a in adjacencies])) / (1 if data.directed else 2),
        "draws": len(keys),
    }
    if data.directed:
        found["acyclic"] = metrics.share([graph_metrics.acyclic(a) for a in adjacencies])
        found["acyclic_test"] = metrics.share([graph_metrics.acyclic(g.adjacency) for g in data.test])
    if data.name == "planar":
        valid = [graph_metrics.planar(a) and graph_metrics.connected(a) for a in adjacencies]
        first = [keys.index(k) == i for i, k in enumerate(keys)]
        found["valid"] = metrics.share(valid)
        found["valid_unique_novel"] = metrics.share([all(c) for c in zip(valid, first, new, strict=True)])
    return found


def discrepancies(data: GraphSet, drawn: Sequence[Graph], statistics: dict[str, Statistic]) -> dict[str, Any]:
    """Return the squared MMD of drawn graphs to the test, and its ratio to that of the training graphs.

    With conditions every graph is weighed so that each condition counts alike. Without, drawn and training graphs are
    compared in batches of the size of the test, and the batches averaged, because the statistic grows as batches
    shrink: published tables are of one such batch.
    """
    found: dict[str, Any] = {}
    for name, statistic in statistics.items():
        test, train, ours = ([statistic.describe(g) for g in part] for part in (data.test, data.train, drawn))
        if has_conditions(data):
            weights = [_by_condition(part) for part in (data.test, data.train, drawn)]
            reference = squared_mmd(train, test, statistic, (weights[1], weights[0]))
            distance = squared_mmd(ours, test, statistic, (weights[2], weights[0]))
        else:
            reference, distance = (
                float(np.mean([squared_mmd(part, test, statistic) for part in _batches(of, len(test))]))
                for of in (train, ours)
            )
        found[f"mmd_{name}"] = distance
        found[f"mmd_ratio_{name}"] = distance / reference if reference > 0 else math.nan
    mean = float(np.mean([found[f"mmd_{name}"] for name in statistics])) if statistics else math.nan
    kernels = {name: f"{s.kernel}, sigma {s.sigma:g}" for name, s in statistics.items()}
    return {**found, "mmd_average": mean, "kernel": kernels}


def label_discrepancies(data: GraphSet, drawn: Sequence[Graph]) -> dict[str, Any]:
    """Return the ratios for labels and pairs of joined labels, of sets that have labels; they are in no average."""
    found = discrepancies(data, drawn, graph_metrics.of_labels(len(data.vocabulary)))
    return {k: v for k, v in found.items() if k.startswith("mmd_ratio_")}


def _by_condition(graphs: Sequence[Graph]) -> np.ndarray:
    keys = [g.condition.tobytes() for g in graphs]
    weight = np.array([1.0 / keys.count(k) for k in keys])
    return weight / weight.sum()


def _batches(graphs: list[np.ndarray], size: int) -> list[list[np.ndarray]]:
    """Cut into batches of a size; what does not fill the last one is left out, unless it is the only one."""
    whole = [graphs[i : i + size] for i in range(0, len(graphs) - size + 1, size)]
    return whole or [graphs]


def _plain(value: Any) -> Any:
    """Return numbers as JSON knows them, with five digits; what is no number is null."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


# --- all rows ---------------------------------------------------------------------------------------------------------
def chosen(given: argparse.Namespace) -> list[Row]:
    """Return the rows that the command line asks for.

    Raises:
        InputError: A name is unknown, a number out of range, or a folder or device is missing.
    """
    if given.graphs:
        data = [FOLDER]
    else:
        data = _names("data", given.data, DATA)
        public = [d for d in data if d in public_sets.NAMES]
        if public and not (given.public and Path(given.public).is_dir()):
            raise InputError(f"public={given.public!r}: not a folder; give the one that holds {public[0]}'s NPZ file")
    models = _names("models", given.models, (*MODELS, *ABLATIONS))
    for name, value, least in (("budget", given.budget, 1), ("seeds", given.seeds, 1), ("jobs", given.jobs, 1)):
        if not value >= least:
            raise InputError(f"{name}={value:g}: must be at least {least}")
    timeout_s = 2 * given.budget + OVERHEAD_S
    return [
        Row(f"{d}/{m}/{seed}", partial(measure, d, m, seed), timeout_s)
        for d in data
        for seed in range(given.seeds)
        for m in models
    ]


def _names(field: str, text: str, known: Sequence[str]) -> list[str]:
    names = [n for n in text.split(",") if n]
    for name in names or [""]:
        if name not in known:
            raise InputError(f"{field}={name!r}: unknown; there are {', '.join(known)}")
    return names


def run(found: Sequence[Row], given: argparse.Namespace, show: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Run rows in processes of their own, some at once, show each as it is done, and return them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = str(max(cores // given.jobs, 1))
    passed_on = [a for a in sys.argv[1:] if a != "--json"]
    facts = {"command": "./launch.sh bench generation " + " ".join(sys.argv[1:]), **rows.hardware()}
    lines = []
    with ThreadPoolExecutor(given.jobs) as pool:
        waiting = {pool.submit(rows.run_row, "benchmarks.bench_generation", row, passed_on): row for row in found}
        for done in as_completed(waiting):
            data, model, seed = waiting[done].name.split("/")
            line = {"benchmark": "generation", "data": data, "model": model, "seed": int(seed), **done.result()}
            lines.append({**line, **facts, "threads": int(os.environ["OMP_NUM_THREADS"]), "versions": rows.versions()})
            show(json.dumps(lines[-1]) if given.json else _short(line))
    return lines


def _short(line: dict[str, Any]) -> str:
    numbers = (f"{k}={v:.4g}" for k, v in line.items() if isinstance(v, float))
    return f"{line['data']:20} {line['model']:18} {line['seed']} " + (line.get("error") or "  ".join(numbers))


@one_line
def main() -> int:
    """Print one line a row; a wrong option is one line and exit code 2, a row that failed exit code 1."""
    if "--row" in sys.argv:
        given = options().parse_known_args()[0]
        return rows.main("benchmarks.bench_generation", chosen(given), options())
    parser = argparse.ArgumentParser(parents=[options()], description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--table", default="", metavar="FILE", help="show results that --json printed, and do no more")
    given = parser.parse_args()
    if given.table:
        print(generation_table.tables(generation_table.read(given.table)))
        return 0
    found = chosen(given)
    for name in dict.fromkeys(row.name.split("/")[0] for row in found):  # made or refused before anything starts
        data, _ = load(name, given)
        print(f"{data.name}: {_sizes(data)}", file=sys.stderr, flush=True)
    require_device(given.device)
    return int(any("error" in line for line in run(found, given, partial(print, flush=True))))


def require_device(name: str) -> None:
    """Raise InputError when there is no such device."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device=cuda: torch sees no GPU here; leave --device out")


def _sizes(data: GraphSet) -> str:
    parts = ", ".join(f"{len(getattr(data, part))} {part}" for part in ("train", "held_out", "test"))
    said = f"{parts} graphs, vocabulary of {len(data.vocabulary)}, {'directed' if data.directed else 'undirected'}"
    if data.name not in metabolic_sets.NAMES:
        return said
    return f"{said}, " + ", ".join(f"{k} {v:.3g}" for k, v in metabolic.statistics(data).items())


if __name__ == "__main__":
    sys.exit(main())
