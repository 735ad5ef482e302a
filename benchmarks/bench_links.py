"""Link prediction: Cora, Citeseer and whole metabolic networks, beside graph autoencoders and rules.

`./launch.sh bench links --public DIR [--data cora,citeseer,metabolic] [--models a,b] [--tasks t,u] [--seeds K] --json`
prints one line a data set, task, model and seed. Every learned model is kept at the step that was best on the held-out
links (AUC + AP, looked at every EVERY steps); the test is read once, at that step, and once at the last step where
`auc_at_end` says so: the published numbers of Cora and Citeseer are those of the last step.

`direction` asks which way a link goes: of every model, the score of a pair less that of the reversed pair (of ours, the
log-odds of -> against <-). In the published task it is the score of the pair alone, and the weight of proximity in
the gravity decoder is tuned for each task instead; `direction_published` scores the very same models in that way.

Citations: 85/5/10 of the undirected links, as many random absent pairs (Kipf and Welling 2016: VGAE 91.4 / 92.6 on
Cora, 90.8 / 92.0 on Citeseer). Metabolic tasks are explained in link_tasks.py; each is the mean over NETWORKS.
`mpi_random` and `mpi_similar` are after MPI-VGAE's task, whose recipe for similar pairs
was not found. `unseen_general` and `unseen_direction` ask for links of organisms
of which training saw nothing (the known links of the asked organism are only read): there `memory`, which counts the
training organisms that have the very edge, is strong because metabolites keep their names (the models know metabolites
by their formulas); `memory_then_ours` lets the model rank what memory cannot tell apart. The task `memory` shows what
one training step holds against the number of nodes.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks import link_tasks as tasks, rows
from benchmarks.link_tasks import Edges, Network, Pairs, Split
from benchmarks.live_tensors import LiveTensors
from benchmarks.peers.link_models import GAE, GRAVITY, PUBLISHED, RULES, SOURCE_TARGET, VGAE, GraphAutoencoder
from data_pipeline.errors import InputError, one_line
from models.link_vae import LinkGraph, LinkVAE, LinkVAEConfig, link_terms, weighted_rows

DATA = (*tasks.CITATIONS, "metabolic")
NETWORKS = ("iML1515", "iAF987", "iYO844")  # E. coli, Geobacter, Bacillus: 1549, 846 and 721 metabolites
SEEN = ("iML1515", "iAF987", "iJN1463", "iHN637", "iEK1008", "iNF517", "iIT341", "iLJ478")
STOPS_BY = "iCN900"  # organism that chooses when to stop, for the unseen ones
UNSEEN = ("iYO844", "iAF692", "iSynCJ816")  # Bacillus, Methanosarcina, Synechocystis: none has a close relative in SEEN
MEMORY_NODES = (250, 500, 1000, 1500)
EVERY = 5
LEARNING_RATE = {False: 0.01, True: 0.005}  # of ours, by whether the graph is directed
EPOCHS, PATIENCE = 300, 60
OURS = "ours"
ABLATIONS: dict[str, dict[str, float]] = {
    "ours_nothing_hidden": {"hidden_share": 0.0},
    "ours_no_dropout": {"feature_dropout": 0.0},
    "ours_not_bounded": {"radius": 0.0},
    "ours_no_noise": {"log_var": -12.0},
}
OF_CITATIONS = (OURS, VGAE, GAE, "common_neighbours", "preferential_attachment")
OF_MPI = (OURS, VGAE, "common_neighbours", "preferential_attachment")
OF_DIRECTED = (OURS, VGAE, SOURCE_TARGET, GRAVITY, *RULES)
OF_UNSEEN = (OURS, VGAE, SOURCE_TARGET, GRAVITY, "memory", "memory_then_ours")
DIRECTED: dict[str, Callable[[Network, int], Split]] = {
    "general": tasks.general, "direction": tasks.direction, "bidirectionality": tasks.bidirectionality,
}  # fmt: skip
TASKS = (*DIRECTED, "mpi_random", "mpi_similar", "unseen_general", "unseen_direction", "memory")

Scores = Float[np.ndarray, " P"]


class Learner(NamedTuple):
    """A model in training: its loss on a graph, its scores of pairs of one, and how long it may learn."""

    module: nn.Module
    loss: Callable[[LinkGraph], Tensor]
    scores: Callable[[LinkGraph, Edges, bool], Scores]  # of pairs; True asks which way a link goes, not whether it is
    learning_rate: float
    epochs: int
    patience: int


class Quality(NamedTuple):
    """Percent."""

    auc: float
    ap: float


# --- learning ---------------------------------------------------------------------------------------------------------
def learner(name: str, features: int, directed: bool, device: str) -> Learner:
    """Return a fresh model."""
    if name in PUBLISHED:
        peer = GraphAutoencoder(name, features).to(device)

        def peer_scores(graph: LinkGraph, pairs: Edges, way: bool) -> Scores:
            return _asked(lambda p: peer.scores(graph, _columns(p, device)).double().cpu().numpy(), pairs, way)

        return Learner(peer, peer.loss, peer_scores, *PUBLISHED[name][2:])
    config = LinkVAEConfig(directed=directed)
    ours = LinkVAE(features, replace(config, **ABLATIONS.get(name, {}))).to(device)

    def loss(graph: LinkGraph) -> Tensor:
        terms = link_terms(ours, graph)
        pairs, kl = terms["link/pairs"], terms["link/kl"]
        return 2 * pairs.total / pairs.items + kl.total / kl.items / graph.nodes

    def scores(graph: LinkGraph, pairs: Edges, way: bool) -> Scores:
        latents, asked = ours(graph), _columns(pairs, device)
        found = ours.which_way(latents, asked) if way else ours.probability(graph, latents, asked)
        return found.double().cpu().numpy()

    return Learner(ours, loss, scores, LEARNING_RATE[directed], EPOCHS, PATIENCE)


def _asked(score: Callable[[Edges], Scores], pairs: Edges, way: bool) -> Scores:
    return score(pairs) - score(pairs[:, ::-1]) if way else score(pairs)


def train(model: Learner, graphs: Sequence[LinkGraph], held_out: Callable[[], float]) -> dict[str, Any]:
    """Learn from one graph a step, in turn, and go back to the step with the best `held_out`; return how it went."""
    optimiser = torch.optim.Adam(model.module.parameters(), lr=model.learning_rate)
    best, best_step, kept = -np.inf, 0, copy.deepcopy(model.module.state_dict())
    begin = time.perf_counter()
    for step in range(1, model.epochs + 1):
        model.module.train()
        loss = model.loss(graphs[step % len(graphs)])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % EVERY == 0:
            found = held_out()
            if found > best:
                best, best_step, kept = found, step, copy.deepcopy(model.module.state_dict())
            elif step - best_step >= model.patience:
                break
    at_end = copy.deepcopy(model.module.state_dict())
    model.module.load_state_dict(kept)
    return {"train_seconds": time.perf_counter() - begin, "steps": step, "best_step": best_step, "at_end": at_end}


@torch.no_grad()
def judged(model: Learner, graph: LinkGraph, pairs: Pairs, way: bool) -> Quality:
    """Return how well a model tells linked from absent pairs."""
    model.module.eval()
    return quality(model.scores(graph, pairs.linked, way), model.scores(graph, pairs.absent, way))


def quality(linked: Scores, absent: Scores) -> Quality:
    """Return area under the ROC curve (equal scores count half) and average precision, in percent."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    truth = np.concatenate([np.ones(len(linked)), np.zeros(len(absent))])
    scores = np.concatenate([linked, absent])
    return Quality(100 * roc_auc_score(truth, scores), 100 * average_precision_score(truth, scores))


def graph_of(network: Network, known: Edges, device: str) -> LinkGraph:
    """Return what a model may read of a network."""
    features = network.features
    entries = (torch.from_numpy(a) for a in (features.row, features.column, features.value))
    found = weighted_rows(*entries, len(network.nodes))
    return LinkGraph(edges=_columns(known, device), features=type(found)(*(t.to(device) for t in found)))


def _columns(edges: Edges, device: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(edges.T)).to(device)


# --- tasks ------------------------------------------------------------------------------------------------------------
def one_network(
    name: str, network: Network, split: Split, seed: int, device: str, tests: dict[str, Pairs]
) -> tuple[dict[str, Quality], dict[str, Any]]:
    """Return the quality of a model on tests of one network, and how training went (nothing for a rule)."""
    way = "direction" in tests
    if name in RULES:
        rule = partial(RULES[name], split.known, len(network.nodes), network.directed)
        found = {
            t: quality(*(_asked(rule, side, way and t != "direction_published") for side in pairs))
            for t, pairs in tests.items()
        }
        return found, {"train_seconds": 0.0}
    torch.manual_seed(seed)
    graph = graph_of(network, split.known, device)
    model = learner(name, network.features.columns, network.directed, device)
    went = train(model, [graph], lambda: sum(judged(model, graph, split.held_out, way)))
    found = {t: judged(model, graph, p, way and t != "direction_published") for t, p in tests.items()}
    model.module.load_state_dict(went.pop("at_end"))
    went["at_end"] = judged(model, graph, split.test, way)
    return found, went


def citation_line(name: str, network: Network, seed: int, device: str) -> dict[str, Any]:
    """Return the line of a citation network."""
    split = tasks.general(network, seed)
    found, went = one_network(name, network, split, seed, device, {"general": split.test})
    at_end = went.pop("at_end", None)
    last = {"auc_at_end": at_end.auc, "ap_at_end": at_end.ap} if at_end else {}
    line = {"data": network.name, "task": "general", "model": name, "seed": seed}
    return {**line, **_of(found["general"]), **last, **went}


def metabolic_lines(name: str, wanted: Sequence[str], seed: int, device: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of a model within networks: each a mean over NETWORKS, with each network's AUC and AP."""
    networks = [tasks.metabolic(m) for m in NETWORKS]
    for task, split_of in DIRECTED.items():
        if task in wanted and name in (*OF_DIRECTED, *ABLATIONS):
            splits = [split_of(network, seed) for network in networks]
            names = (task, "direction_published") if task == "direction" else (task,)
            tests = [dict.fromkeys(names, split.test) for split in splits]
            yield from _mean_lines(name, networks, splits, tests, seed, device)
    if {"mpi_random", "mpi_similar"} & set(wanted) and name in OF_MPI:
        networks = [tasks.undirected(n) for n in networks]
        splits = [tasks.general(n, seed) for n in networks]
        tests = [
            {"mpi_random": s.test, "mpi_similar": tasks.similar(n, s, seed).test}
            for n, s in zip(networks, splits, strict=True)
        ]
        yield from _mean_lines(name, networks, splits, tests, seed, device)


def _mean_lines(
    name: str,
    networks: Sequence[Network],
    splits: Sequence[Split],
    tests: Sequence[dict[str, Pairs]],
    seed: int,
    device: str,
) -> Iterator[dict[str, Any]]:
    results = [one_network(name, n, s, seed, device, t) for n, s, t in zip(networks, splits, tests, strict=True)]
    for task in tests[0]:
        each = {n.name: found[task] for n, (found, _) in zip(networks, results, strict=True)}
        seconds = sum(went["train_seconds"] for _, went in results)
        yield {**_mean_line("metabolic", task, name, seed, each), "train_seconds": seconds}


def unseen_lines(names: Sequence[str], seed: int, device: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of organisms that training has not seen; each model is trained once for both tasks."""
    seen = [tasks.metabolic(m) for m in SEEN]
    asked = [tasks.metabolic(m) for m in UNSEEN]
    splits = {
        "unseen_general": [tasks.general(n, seed) for n in asked],
        "unseen_direction": [tasks.direction(n, seed) for n in asked],
    }
    wanted = [n for n in OF_UNSEEN if n in names or (n == OURS and "memory_then_ours" in names)]
    ours: Learner | None = None
    for name in wanted:
        seconds, model = 0.0, None
        if name not in ("memory", "memory_then_ours"):
            torch.manual_seed(seed)
            model = learner(name, seen[0].features.columns, True, device)
            seconds = _train_on(model, seen, seed, device)
            ours = model if name == OURS else ours
        for task, of_task in splits.items():
            way = task == "unseen_direction"
            each = {}
            for network, split in zip(asked, of_task, strict=True):
                graph = graph_of(network, split.known, device)
                remembered = [_asked(partial(memory, seen, network), side, way) for side in split.test]
                if model is not None:
                    each[network.name] = judged(model, graph, split.test, way)
                elif name == "memory":
                    each[network.name] = quality(*remembered)
                else:
                    assert ours is not None
                    each[network.name] = _memory_then(ours, graph, split.test, way, remembered)
            if name in names:
                yield {**_mean_line("metabolic", task, name, seed, each), "train_seconds": seconds}


def _train_on(model: Learner, seen: Sequence[Network], seed: int, device: str) -> float:
    """Learn from all links of the seen organisms, until the organism that stops training gets no better."""
    by = tasks.metabolic(STOPS_BY)
    splits = [tasks.general(by, seed), tasks.direction(by, seed)]
    graphs = [graph_of(by, split.known, device) for split in splits]

    def held_out() -> float:
        return sum(sum(judged(model, g, s.test, way)) for g, s, way in zip(graphs, splits, (False, True), strict=True))

    return train(model, [graph_of(n, n.edges, device) for n in seen], held_out)["train_seconds"]


@torch.no_grad()
def _memory_then(model: Learner, graph: LinkGraph, pairs: Pairs, way: bool, remembered: Sequence[Scores]) -> Quality:
    model.module.eval()
    scores = np.concatenate([model.scores(graph, side, way) for side in pairs])
    rank = scores.argsort().argsort() / len(scores) / (2 * len(SEEN)) ** 2  # below the smallest step of memory
    cut = len(pairs.linked)
    return quality(remembered[0] + rank[:cut], remembered[1] + rank[cut:])


def memory(seen: Sequence[Network], network: Network, pairs: Edges) -> Scores:
    """Return the share of the seen organisms that have the edge, among those that have both metabolites (0 of none)."""
    places = [({m: i for i, m in enumerate(n.nodes)}, set(map(tuple, n.edges.tolist()))) for n in seen]
    found = []
    for i, j in pairs.tolist():
        a, b = network.nodes[i], network.nodes[j]
        has = [(place[a], place[b]) in edges for place, edges in places if a in place and b in place]
        found.append(sum(has) / max(len(has), 1))
    return np.array(found)


def memory_line(nodes: int, device: str) -> dict[str, Any]:
    """Return what one training step holds on part of E. coli's network: nodes nearest to glucose, and their links."""
    network = nearest_part(tasks.metabolic("iML1515"), "glc__D_c", nodes)
    graph = graph_of(network, network.edges, device)
    torch.manual_seed(0)
    model = learner(OURS, network.features.columns, True, device)
    with LiveTensors() as live:
        model.loss(graph).backward()
    width = LinkVAEConfig().width + 2 * LinkVAEConfig().direction_dim
    return {
        "data": "metabolic", "task": "memory", "model": OURS, "nodes": len(network.nodes), "edges": len(network.edges),
        "peak_mb": live.peak_bytes / 1e6, "largest_tensor_mb": live.largest_bytes / 1e6,
        "dense_n_n_d_mb": 4 * width * len(network.nodes) ** 2 / 1e6,
    }  # fmt: skip


def nearest_part(network: Network, start: str, nodes: int) -> Network:
    """Return the nodes of a network that lie nearest to one, links either way, and then what it is not joined to."""
    reached = [network.nodes.index(start)]
    seen = set(reached)
    beside: dict[int, list[int]] = {}
    for i, j in network.edges.tolist():
        beside.setdefault(i, []).append(j)
        beside.setdefault(j, []).append(i)
    for i in reached:  # grows while it is walked
        fresh = [j for j in beside.get(i, ()) if j not in seen]
        fresh = list(dict.fromkeys(fresh))[: nodes - len(reached)]
        seen.update(fresh)
        reached += fresh
    reached += [i for i in range(len(network.nodes)) if i not in seen][: nodes - len(reached)]
    place = {i: k for k, i in enumerate(sorted(reached))}
    kept = [(place[i], place[j]) for i, j in network.edges.tolist() if i in place and j in place]
    names = tuple(network.nodes[i] for i in sorted(reached))
    return network._replace(
        nodes=names, edges=np.array(kept, np.int64).reshape(-1, 2), features=tasks.metabolite_features(names)
    )


def _of(found: Quality) -> dict[str, float]:
    return {"auc": found.auc, "ap": found.ap}


def _mean_line(data: str, task: str, name: str, seed: int, each: dict[str, Quality]) -> dict[str, Any]:
    mean = Quality(*np.mean(list(each.values()), axis=0).tolist())
    networks = {n: [round(v, 2) for v in q] for n, q in each.items()}
    return {"data": data, "task": task, "model": name, "seed": seed, **_of(mean), "auc_ap_by_network": networks}


# --- command ----------------------------------------------------------------------------------------------------------
def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--public", default="", metavar="DIR", help="folder with cora.npz and citeseer.npz")
    found.add_argument("--data", default=",".join(DATA))
    found.add_argument("--tasks", default=",".join(TASKS), help="of the metabolic networks")
    found.add_argument("--models", default="", help=f"all by default; ablations too: {', '.join(ABLATIONS)}")
    found.add_argument("--seeds", type=int, default=3, metavar="K")
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--json", action="store_true", help="one JSON object a line")
    return found


def lines(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the lines that the command line asks for.

    Raises:
        InputError: A name is unknown, or a file is missing.
    """
    everything = list(dict.fromkeys((*OF_CITATIONS, *OF_DIRECTED, *OF_UNSEEN)))
    data = _known("data", given.data, DATA)
    wanted = _known("tasks", given.tasks, TASKS)
    models = _known("models", given.models, (*everything, *ABLATIONS)) or everything
    if given.seeds < 1:
        raise InputError(f"seeds={given.seeds}: must be at least 1")
    citations = [tasks.citations(d, given.public) for d in data if d in tasks.CITATIONS]
    for network in citations:
        for name in [m for m in models if m in (*OF_CITATIONS, *ABLATIONS)]:
            for seed in range(given.seeds):
                yield citation_line(name, network, seed, given.device)
    if "metabolic" not in data:
        return
    for seed in range(given.seeds):
        for name in models:
            yield from metabolic_lines(name, wanted, seed, given.device)
        if any(t.startswith("unseen") for t in wanted):
            yield from (line for line in unseen_lines(models, seed, given.device) if line["task"] in wanted)
    if "memory" in wanted and OURS in models:
        for nodes in MEMORY_NODES:
            yield memory_line(nodes, given.device)


def _known(option: str, text: str, names: Sequence[str]) -> list[str]:
    found = [n for n in text.split(",") if n]
    for name in found:
        if name not in names:
            raise InputError(f"{option}={name}: there is no such one; there are {', '.join(names)}")
    return found


@one_line
def main() -> int:
    """Print one line a result; a wrong option or a missing file is one line and exit code 2."""
    given = parser().parse_args()
    torch.set_num_threads(1)  # the tensors are small: more threads are slower
    command = "./launch.sh bench links " + " ".join(a for a in sys.argv[1:] if a not in ("--public", given.public))
    facts = {"device": given.device, **rows.hardware(), "versions": rows.versions(), "command": command}
    for line in lines(given):
        line = {k: round(v, 3) if isinstance(v, float) else v for k, v in line.items()}
        if given.json:
            print(json.dumps({"benchmark": "link_prediction", **line, **facts}), flush=True)
        else:
            print("  ".join(f"{k}={v}" for k, v in line.items() if k != "auc_ap_by_network"), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
