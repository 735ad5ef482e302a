"""Foretell the time of a ZeRO-3 step on many GPUs from one GPU's timeline and a fit of the links between them.

The timeline of one GPU (when each module begins and ends) is played again; each gather starts when the one before it is
done and a module waits for what it reads. What is gathered and when is trainers/communication.py's.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from trainers.communication import (
    Sharing,
    Transfer,
    Walk,
    after_step,
    gathered_bytes_at_most,
    of_frozen,
    of_micro_batch,
)
from trainers.frozen import BESIDE, BUFFERS, staying

AHEAD = 2  # fetches that the host may run ahead of the GPU: DeepSpeed 0.19.8 waits for the third
FETCH = "frozen"  # of a unit by trainers/frozen.py
GPUS_A_NODE = 8
BETWEEN_NODES_BYTES_S = 50e9  # a GPU: 400 Gb/s
USABLE = 0.85  # of a network card's rate, what collectives of hundreds of MB reach
HOP_S = 12e-6  # for each doubling of the nodes
QUANTISED = 0.5 * (1 + 2 / 64)  # qwZ: 8 bits for 16, and a scale for every block


class Link(NamedTuple):
    """How long a collective takes: latency_s + bytes on the wire / bytes_s."""

    latency_s: float
    bytes_s: float

    def seconds(self, operation: str, size: int, world: int) -> float:
        """Return the time of a collective of `size` bytes, the full tensor."""
        return self.latency_s + on_wire(operation, size, world) / self.bytes_s if world > 1 else 0.0


class Foretold(NamedTuple):
    """Seconds of a step, by what takes them."""

    step_s: float
    compute_s: float
    waits_s: float  # for gathers and reductions that computation does not hide
    transfers_s: float  # of all collectives, hidden or not


def on_wire(operation: str, size: float, world: int) -> float:
    """Return the bytes that each rank sends in a ring."""
    share = (world - 1) / world
    return (2 if operation == "all_reduce" else 1) * share * size


def fit(measured: Sequence[tuple[str, int, float]], world: int) -> Link:
    """Fit latency and bandwidth to (operation, bytes, seconds); relative errors count."""
    wire = np.array([on_wire(operation, size, world) for operation, size, _ in measured])
    seconds = np.array([s for *_, s in measured])
    rows = np.stack([np.ones_like(wire), wire], axis=1) / seconds[:, None]
    latency, per_byte = np.linalg.lstsq(rows, np.ones(len(seconds)), rcond=None)[0]
    if latency < 0:  # sizes too much alike to tell it from the bandwidth
        latency, per_byte = 0.0, np.linalg.lstsq(rows[:, 1:], np.ones(len(seconds)), rcond=None)[0][0]
    return Link(float(latency), 1.0 / max(float(per_byte), 1e-15))


def foretell(
    walked: Walk, gaps_s: Sequence[float], sharing: Sharing, links: Mapping[str, Link], *,
    others: Mapping[str, int] | None = None, slowest: float = 1.0, gather_share: float = 1.0,
    unit_bytes: Sequence[int] = (), slowed: float = 0.0, stay: Collection[int] = (),
) -> Foretold:  # fmt: skip
    """Return the time of a step.

    Args:
        walked: What a micro-batch meets.
        gaps_s: Seconds before each event since the one before, on one GPU; the last one is from the last event to the
            end of the step.
        sharing: Over how many ranks and how.
        links: By operation.
        others: Bytes of collectives that nothing hides (metrics, contrast), by operation.
        slowest: Work of the rank with most tokens over the mean: all wait for it.
        gather_share: Bytes of a gather over those of the model (quantised weights).
        unit_bytes: What a fetch of each unit of frozen weights brings; its link is called FETCH.
        slowed: Time that computation loses beside a fetch, over the time of the fetch: both use the same memory.
        stay: Units that are whole on every rank.
    """
    world = sharing.world

    def seconds(transfer: Transfer) -> float:
        gathers = transfer.operation in ("all_gather", FETCH)
        size = round(transfer.bytes * (gather_share if gathers else 1.0))
        return links[transfer.operation].seconds(transfer.operation, size, world)

    at: dict[int, list[Transfer]] = {}
    for transfer in of_micro_batch(walked, sharing):
        at.setdefault(transfer.at, []).append(transfer)
    fetches: dict[int, list[Transfer]] = {}
    for transfer in of_frozen(walked, unit_bytes if world > 1 else (), FETCH, stay):
        fetches.setdefault(transfer.at, []).append(transfer)
    arrived: dict[int, float] = {}  # of units
    clock = free = moved = copier = lost = 0.0
    began: list[float] = []  # of each fetch
    ready: dict[int, float] = {}
    for place, event in enumerate(walked.events):
        clock += slowest * gaps_s[place]
        if event.unit >= 0:
            for transfer in fetches.get(place, []):
                took = seconds(transfer)
                copier = max(copier, clock) + took
                moved += took
                arrived[transfer.parameters[0]] = copier
                lost += slowed * took
            if event.begins:
                clock = max(clock, arrived.get(event.unit, 0.0)) + lost
                lost = 0.0
            continue
        if event.begins:
            issued = began[-AHEAD] if len(began) >= AHEAD else 0.0
            began.append(clock)
        else:
            issued = clock
        for transfer in at.get(place, []):
            took = seconds(transfer)
            free = max(free, issued if transfer.operation == "all_gather" else clock) + took
            moved += took
            ready |= dict.fromkeys(transfer.parameters, free)
        if event.begins:
            clock = max(clock, *(ready.get(p, 0.0) for p in event.own), 0.0)
            began[-1] = clock
    compute = slowest * sum(gaps_s)
    for transfer in at.get(len(walked.events), []):
        free = max(free, clock) + seconds(transfer)
        moved += seconds(transfer)
    clock = max(clock, free) + slowest * gaps_s[-1]
    last = sum(seconds(t) for t in after_step(walked, sharing))
    last += sum(links[o].seconds(o, size, world) for o, size in (others or {}).items())
    return Foretold(clock + last, compute, clock + last - compute, moved + last)


def between_nodes(inside: Link, gpus: int) -> Link:
    """Return the link of a ring over nodes: the slower of the cards between nodes and the links inside one."""
    nodes = max(gpus // GPUS_A_NODE, 1)
    if nodes == 1:
        return inside
    # Data cross between two nodes once, over the eight cards of a node together.
    crossing = GPUS_A_NODE * BETWEEN_NODES_BYTES_S * USABLE
    return Link(inside.latency_s + HOP_S * math.log2(nodes), min(inside.bytes_s, crossing))


def largest_of(ranks: int) -> float:
    """Return how many standard deviations the largest of so many normal numbers lies above the mean (Blom)."""
    from statistics import NormalDist

    return NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25)) if ranks > 1 else 0.0


class Choice(NamedTuple):
    """One line of the table on paper."""

    gpus: int
    setting: str
    step_s: float
    efficiency: float  # against one GPU with its own batch
    base_gib: float  # of the frozen base on each GPU, what is gathered included


def on_paper(
    walked: Walk, gaps_s: Sequence[float], sharing: Sharing, links: Mapping[str, Link],
    others: Mapping[str, int], spread: float, gpus: int, unit_bytes: Sequence[int] = (), slowed: float = 0.0,
) -> list[Choice]:  # fmt: skip
    """Return what each setting of ZeRO++ would give on so many GPUs.

    Args:
        walked: As in foretell.
        gaps_s: As in foretell.
        sharing: As in foretell, its world is not read.
        links: Measured inside a node.
        others: As in foretell.
        spread: Standard deviation of the tokens of a batch over their mean.
        gpus: How many.
        unit_bytes: As in foretell.
        slowed: As in foretell.
    """
    one = sum(gaps_s)
    slowest = 1 + spread * largest_of(gpus)
    wide = {operation: between_nodes(link, gpus) for operation, link in links.items()}
    frozen = sum(p.numbers * p.number_bytes for p in walked.pieces if not p.trained) + sum(unit_bytes)
    stay = staying(unit_bytes, gpus, BESIDE) if unit_bytes else ()
    beyond = BUFFERS * max(unit_bytes, default=0) + sum(unit_bytes[unit] for unit in stay) * (1 - 1 / gpus)
    found = []
    for setting, secondary, quantised in (("ZeRO-3", 0, 1.0), ("hpZ", GPUS_A_NODE, 1.0), ("qwZ", 0, QUANTISED)):
        # The frozen base never changes, so its second partition inside a node stays valid: its gathers stay there.
        shared = sharing._replace(world=gpus)
        # Copies reach the neighbours of one host; over several, frozen weights are gathered like all else.
        inside = {"all_gather": links["all_gather"], FETCH: links.get(FETCH, links["all_gather"])}
        used = dict(wide) | {FETCH: wide["all_gather"]} | (inside if secondary else {})
        told = foretell(
            walked, gaps_s, shared, used, others=others, slowest=slowest, gather_share=quantised,
            unit_bytes=unit_bytes, slowed=slowed, stay=stay,
        )  # fmt: skip
        held = frozen / gpus + (frozen / secondary if secondary else 0) + gathered_bytes_at_most(walked, shared)
        held += beyond
        found.append(Choice(gpus, setting, told.step_s, one / told.step_s, held / 2**30))
    return found
