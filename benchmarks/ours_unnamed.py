"""The growing graphs of this project as a generator of the benchmark, for sets whose nodes have no names."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from benchmarks import graph_metrics
from benchmarks.graph_sets import Graph, GraphSet
from benchmarks.peers import dense_graphs
from benchmarks.peers.dense_graphs import Frame, Padded
from models import noise
from models.pair_states import NONE
from models.unnamed_graphs import (
    LABEL,
    PAIRS,
    PARENT,
    WINDOW,
    GrowthDecoder,
    Patch,
    draw,
    grow,
    growth_nats,
    growth_order,
    ordered,
    parents,
    patch_at,
)

CPU_SHAPE: dict[str, Any] = {"width": 64, "layers": 4, "dropout": 0.0}  # hundreds of steps
GPU_SHAPE: dict[str, Any] = {"width": 192, "layers": 6, "dropout": 0.1}  # thousands
CPU_BATCH, GPU_BATCH = 32, 768  # nodes that come next, a step
CPU_LR, GPU_LR = 2e-3, 1e-3
WARM_UP_STEPS, WEIGHT_DECAY, CLIP_NORM = 100, 0.01, 1.0
AVERAGED = 0.998  # of the moving average of the weights that is kept
ORDERS = 1024  # drawn at once, used for BATCHES batches
ORDER_PAIRS = 2**24  # of nodes in them together, at most
BATCHES = 64
CHECKS, CHECKED = 12, 512  # of the held-out loss while training, and how many nodes that come next
SHARES = {False: (0.4, 0.0, 0.6), True: (0.3, 0.2, 0.5)}  # of these in training, by whether there are labels
CPU_PAIRS, GPU_PAIRS = 2**18, 2**22  # of nodes in a batch, at most, of training and of drawing
LEAST = (0.0, 0.02, 0.05, 0.1)  # of which the held-out graphs choose one: see models.unnamed_graphs.grow
TOLERANCE = 0.02  # the least change that is this near the best is taken: scores of few draws are not exact
CPU_TRIALS, GPU_TRIALS, MOST_TRIALS = 16, 64, 256  # graphs drawn with each of them, at a time and in all
ROUNDS = 4  # that a node takes, about
MOST_CHOOSING = 0.15  # of the seconds may be kept for that; where it takes more, everything is drawn


class Bank(NamedTuple):
    """Graphs, each in an order in which it can grow."""

    state: Int[Tensor, "M N N"]
    label: Int[Tensor, "M N"]
    opened: Int[Tensor, "M N"]
    size: Int[Tensor, " M"]
    condition: Float[Tensor, "M C"]
    order_nats: Float[Tensor, " M"]


Part = tuple[Tensor, Tensor, int]  # graphs of a bank, the node that comes next in each, and the largest of those


class OursUnnamed:
    """Growth in `steps` rounds a node; 1 draws all pairs of a node independently.

    `least`, below which share of the likeliest nothing is drawn, is chosen by the held-out graphs (`_choose`).
    """

    def __init__(
        self,
        device: torch.device,
        use_mask: bool = True,
        steps: int = 8,
    ) -> None:
        self.device, self.steps, self.least = device, steps, LEAST[0]
        self.gpu = device.type == "cuda"
        # Patches of a multiple of 8 nodes, because attention kernels want it, and few passes; on a CPU few pairs.
        self.multiple, self.ahead = (8, 8) if self.gpu else (1, 0)

    def fit(self, data: GraphSet, seconds: float, seed: int) -> None:
        """Learn to add a node; the learning rate falls with the seconds that are spent."""
        started = dense_graphs.now()
        torch.manual_seed(seed)
        self.frame = Frame(data, self.device, use_mask=False)
        self.stage_share = torch.tensor([SHARES[len(data.vocabulary) > 1]], device=self.device)
        self.first_share = torch.tensor([[0.0, 1.0, 0.0]], device=self.device)  # a first node has no more than a label
        sizes = torch.arange(1, int(1.25 * self.frame.most) + 1)
        self.net = GrowthDecoder(
            len(data.vocabulary),
            data.directed,
            data.train[0].condition.size,
            -torch.tensor([self.frame.size_nats(n[None]) for n in sizes], dtype=torch.float32),
            **(GPU_SHAPE if self.gpu else CPU_SHAPE),
        ).to(self.device)
        train, held_out = (self.frame.pad(part, positions=False) for part in (data.train, data.held_out or data.train))
        began = dense_graphs.now()
        judge = graph_metrics.Likeness(data)
        judging = (dense_graphs.now() - began) / len(judge.real) * self._trials() * len(LEAST)
        kept = self._turn_seconds() + judging
        chooses = kept <= MOST_CHOOSING * seconds
        self._learn(train, held_out, started, seconds - kept * chooses)
        if chooses:
            self._choose(data, judge, started + seconds, seed)

    def _learn(self, train: Padded, held_out: Padded, started: float, seconds: float) -> None:
        batch, lr = self._at_once(judged := self._bank(held_out)), GPU_LR if self.gpu else CPU_LR
        optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY, fused=True
        )
        average = copy.deepcopy(self.net)
        ours: list[Tensor] = list(self.net.parameters())
        theirs: list[Tensor] = list(average.parameters())
        best, kept, checked, step = math.inf, average.state_dict(), 0, 0
        self.history: list[tuple[int, float, float, float]] = []
        self.net.train()
        average.eval()
        running: Tensor | float = 0.0
        while dense_graphs.now() - started < seconds:
            bank = self._bank(train)
            for part in _batches(bank, self.net.labels, batch, BATCHES):
                share = (dense_graphs.now() - started) / seconds
                if share >= 1.0:
                    break
                rate = min((step + 1) / WARM_UP_STEPS, 0.01 + 0.99 * math.cos(math.pi / 2 * share) ** 2)
                optimizer.param_groups[0]["lr"] = lr * rate
                optimizer.zero_grad()
                loss = self._loss(self.net, bank, *part).sum() / batch
                loss.backward()
                torch.nn.utils.clip_grad_norm_(ours, CLIP_NORM)
                optimizer.step()
                with torch.no_grad():
                    torch._foreach_lerp_(theirs, ours, 1.0 - min(AVERAGED, (step + 1) / (step + 10)))
                running = 0.99 * running + 0.01 * loss.detach()
                step += 1
                if share > 0.2 + 0.78 * checked / CHECKS:
                    checked += 1
                    value = self._judge(average, judged)
                    self.history.append((step, share, float(running) / (1 - 0.99**step), value))
                    if value < best:
                        best, kept = value, copy.deepcopy(average.state_dict())
        self.net.load_state_dict(kept)
        self.net.eval()

    def _choose(self, data: GraphSet, judge: graph_metrics.Likeness, until: float, seed: int) -> None:
        """Take of LEAST what gives the best draws: near the held-out graphs, and like every training graph.

        Draws until the time is over, at least once, and takes the smallest that is near the best. The score of each is
        its mean squared discrepancy plus the share of its draws that lack a property which all training graphs have
        (connected, acyclic, planar).
        """
        trials, took = self._trials(), 0.0
        asked = np.stack([g.condition for g in (data.held_out or data.train)])
        drawn: dict[float, list[graph_metrics.Described]] = {least: [] for least in LEAST}
        for turn in range(MOST_TRIALS // trials):
            began = dense_graphs.now()
            if turn and began + took > until:
                break
            rows = np.tile(np.arange(turn * trials, (turn + 1) * trials), len(LEAST))  # the same noise for each
            tried = np.repeat(np.array(LEAST, np.float32), trials)
            graphs = self._grow(asked[rows % len(asked)], tried, rows, seed + 1_000_003)
            for place, least in enumerate(LEAST):
                drawn[least] += [judge.describe(g) for g in graphs[place * trials : (place + 1) * trials]]
            took = dense_graphs.now() - began
        scores = {least: judge.score(graphs) for least, graphs in drawn.items()}
        best = min(scores.values())
        self.least = next(least for least, score in scores.items() if score <= best + TOLERANCE)
        self.chosen = {
            "least": self.least,
            "least_scores": {f"{least:g}": round(score, 4) for least, score in scores.items()},
            "least_draws": len(drawn[self.least]),
        }

    def _turn_seconds(self) -> float:
        """Return about how long the draws of a turn of `_choose` take: graphs that are three fifths grown."""
        graphs, nodes = self._trials() * len(LEAST), max(min(3 * self.frame.most // 5, WINDOW), 1)
        number = torch.full((graphs,), nodes - 1, device=self.device)
        state = torch.full((graphs, nodes, nodes), NONE, dtype=torch.int8, device=self.device)
        patch = Patch(number, torch.zeros_like(number), number + 1, torch.zeros_like(state[:, 0]).long(), state)
        nothing = torch.zeros(graphs, self.frame.condition_width - 1, device=self.device)
        with torch.no_grad(), self._precision():
            for _ in range(2):  # the first one takes longer
                began = dense_graphs.now()
                found = draw(
                    self.net, patch, torch.full_like(number, PAIRS), nothing, number, nothing.sum(1), self.steps
                )
                float(found[0].sum())
        a_node = min(self.steps, ROUNDS) + 1 + (self.net.labels > 1)
        return a_node * self.frame.most * (dense_graphs.now() - began)

    def _workers(self) -> int:
        """Return how many parts are drawn at once: on a CPU each in a thread, so that none waits for another."""
        return 1 if self.gpu else torch.get_num_threads()

    def _trials(self) -> int:
        return GPU_TRIALS if self.gpu else CPU_TRIALS

    def sample(self, conditions: Float[np.ndarray, "n V"], seed: int) -> list[Graph]:
        """Draw one graph for each row."""
        least = np.full(len(conditions), self.least, np.float32)
        return self._grow(conditions, least, np.arange(len(conditions)), seed)

    def _grow(
        self,
        conditions: Float[np.ndarray, "n V"],
        least: Float[np.ndarray, " n"],
        place: Int[np.ndarray, " n"],
        seed: int,
    ) -> list[Graph]:
        """Draw sizes, then graphs of similar size together; the noise of each depends on its place and the seed."""
        seen, rare = self.frame.conditions(conditions)[:, :-1], torch.from_numpy(least).to(self.device)
        seeds = noise.uniform(torch.full((1,), seed), 0, torch.from_numpy(place)[None])[0]
        seeds = (seeds.double() * 2**40).long().to(self.device)
        with torch.no_grad(), self._precision():
            share = torch.softmax(self.net.size_logits(seen).float(), -1).cumsum(-1)
            u = noise.uniform(seeds, 1, torch.zeros(1, 1, dtype=torch.long, device=self.device))
            size = 1 + (u > share[:, :-1]).sum(1)
            drawn: dict[int, Graph] = {}
            order = torch.argsort(size, descending=True, stable=True)
            at_once = max(self._pairs() // min(int(size.max()), WINDOW) ** 2, 1)
            parts = order.split(min(at_once, -(-len(order) // self._workers())))

        def drawn_part(rows: Tensor) -> list[Graph]:
            with torch.no_grad(), self._precision():
                label, joined = grow(
                    self.net, size[rows], seen[rows], seeds[rows], rare[rows], self.steps, self.multiple, self.ahead
                )
            mask = torch.arange(label.shape[1], device=self.device) < size[rows, None]
            return self.frame.graphs(mask, label, joined, conditions[rows.cpu().numpy()])

        for rows, found in zip(parts, _side_by_side(drawn_part, parts, self._workers()), strict=True):
            drawn.update(zip(rows.tolist(), found, strict=True))
        return [drawn[i] for i in range(len(conditions))]

    @torch.no_grad()
    def bound_nats(self, graphs: Sequence[Graph]) -> float:
        """Return a bound of graphs with nodes in the order given, from one order of growth for each."""
        with dense_graphs.seeded(0, self.device):
            return self._bound(self._bank(self.frame.pad(graphs, positions=False), len(graphs)))

    def _bound(self, bank: Bank) -> float:
        nats = -bank.order_nats.double() + torch.lgamma(bank.size + 1.0)
        sizes = torch.log_softmax(self.net.size_logits(bank.condition), -1)
        known = bank.size <= sizes.shape[1]
        nats -= sizes.gather(1, (bank.size - 1).clamp(max=sizes.shape[1] - 1)[:, None])[:, 0]
        for some, k, cut in _chunks(*_nodes(bank, self.net.labels), self._at_once(bank)):
            for stage in (PARENT, LABEL, PAIRS):
                nats.index_add_(0, some, self._nats(self.net, bank, some, k, cut, torch.full_like(k, stage)).double())
        return float(nats.mean()) if bool(known.all()) else math.inf

    def _judge(self, net: GrowthDecoder, bank: Bank) -> float:
        """Return the mean loss of adding a node; the same nodes with the same pairs hidden each time."""
        with torch.no_grad(), dense_graphs.seeded(0, self.device):
            rows, newest = _nodes(bank, net.labels)
            some = torch.randperm(len(rows), device=self.device)[:CHECKED]
            parts = [self._loss(net, bank, *part) for part in _chunks(rows[some], newest[some], self._at_once(bank))]
        return float(torch.cat(parts).double().mean())

    def _bank(self, graphs: Padded, orders: int | None = None) -> Bank:
        """Return about as many orders of growth, every graph equally often; of fewer graphs where they are too many."""
        orders = orders or max(min(ORDERS, ORDER_PAIRS // graphs.mask.shape[1] ** 2), 1)
        times = max(round(orders / len(graphs.mask)), 1)
        rows = torch.arange(len(graphs.mask), device=self.device).repeat(times)
        if len(graphs.mask) > orders:
            rows = torch.randperm(len(graphs.mask))[:orders].to(self.device)
        mask, adjacency = graphs.mask[rows], graphs.adjacency[rows]
        order, nats = growth_order(adjacency, mask, torch.randint(2**60, (len(rows),)).to(self.device))
        state, label, opened = ordered(adjacency, graphs.labels[rows], order)
        return Bank(state.to(torch.uint8), label, opened, mask.sum(1), graphs.condition[rows, :-1], nats)

    def _nats(self, net: GrowthDecoder, bank: Bank, rows: Tensor, newest: Tensor, last: int, stage: Tensor) -> Tensor:
        """Return what the parent, the label or the other pairs of nodes cost, some of those pairs being hidden."""
        cut = min(-(-(last + 1) // self.multiple) * self.multiple, bank.label.shape[1])
        state, label = bank.state[rows, :cut, :cut].long(), bank.label[rows, :cut]
        opened, place = bank.opened[rows, newest], torch.arange(cut, device=self.device)
        row = state[torch.arange(len(rows), device=self.device), newest]
        can = (place < newest[:, None]) & (place >= opened[:, None])
        others = can & (place > parents(row, newest)[:, None])
        number = others.sum(1)
        some = 1 + (torch.rand(len(rows), device=self.device) * number).long()
        rank = torch.where(others, torch.rand(can.shape, device=self.device), 2.0).argsort(1).argsort(1)
        known = others & (rank >= some[:, None])
        hidden = torch.where(stage[:, None] == PARENT, can, others & ~(known & (stage[:, None] == PAIRS)))
        patch = patch_at(newest, bank.size[rows], opened, label, state, hidden, net.labels)
        unnamed = (stage[:, None] != PAIRS) & (place == newest[:, None])
        patch = patch._replace(label=torch.where(unnamed, net.labels, patch.label))
        with self._precision():
            terms = torch.stack(growth_nats(net, patch, label, row, bank.condition[rows]), 1)
        return terms.gather(1, stage[:, None])[:, 0]

    def _loss(self, net: GrowthDecoder, bank: Bank, rows: Tensor, newest: Tensor, last: int) -> Tensor:
        """Return an estimate of what it costs to add nodes, from one random part of each, and to know the sizes."""
        share = torch.where(newest[:, None] > 0, self.stage_share, self.first_share)
        stage = (torch.rand(len(rows), 1, device=self.device) >= share.cumsum(1)[:, :-1]).sum(1)
        nats = self._nats(net, bank, rows, newest, last, stage) / share.gather(1, stage[:, None])[:, 0]
        if net.sizes is None:
            return nats
        logits = net.size_logits(bank.condition[rows])
        asked = (bank.size[rows] - 1).clamp(max=logits.shape[1] - 1)
        return nats + F.cross_entropy(logits, asked, reduction="none") / bank.size[rows]

    def _at_once(self, bank: Bank) -> int:
        return max(min(GPU_BATCH if self.gpu else CPU_BATCH, self._pairs() // min(bank.label.shape[1], WINDOW) ** 2), 1)

    def _pairs(self) -> int:
        return GPU_PAIRS if self.gpu else CPU_PAIRS

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.gpu)


def _side_by_side(
    work: Callable[[Tensor], list[Graph]], parts: Sequence[Tensor], workers: int
) -> Iterator[list[Graph]]:
    """Work on some parts at once, each in a thread of its own."""
    if workers == 1:
        yield from map(work, parts)
        return
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(work, parts)
    finally:
        torch.set_num_threads(threads)


def _nodes(bank: Bank, labels: int) -> tuple[Int[Tensor, " K"], Int[Tensor, " K"]]:
    """Return every node that can come next, as (graph, node); of a first node only the label is unknown."""
    place = torch.arange(bank.label.shape[1], device=bank.label.device)
    rows, newest = ((place < bank.size[:, None]) & (place >= int(labels == 1))).nonzero(as_tuple=True)
    return rows, newest


def _chunks(rows: Tensor, newest: Tensor, size: int) -> Iterator[Part]:
    """Return nodes that come next in parts, those with few nodes before them together."""
    newest, order = newest.sort()
    parts = newest.split(size)
    last = torch.stack([part[-1] for part in parts]).tolist()  # at once: each question to a GPU makes it wait
    return zip(rows[order].split(size), parts, last, strict=True)


def _batches(bank: Bank, labels: int, size: int, number: int) -> Iterator[Part]:
    """Return random nodes that come next, in batches of a similar number of nodes before them."""
    rows, newest = _nodes(bank, labels)
    some = torch.randint(len(rows), (size * number,)).to(rows.device)
    parts = list(_chunks(rows[some], newest[some], size))
    for i in torch.randperm(len(parts)).tolist():
        yield parts[i]
