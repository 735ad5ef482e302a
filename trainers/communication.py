"""Count the collectives that a training step issues, and foretell their bytes from how ZeRO shares the parameters out.

Bytes are those of the full tensor on one rank: what a gather writes, what a reduction reads. On the wire a rank of N
sends (N - 1) / N of a gather or a scattered reduction and twice that of an all-reduce. The rules are those of DeepSpeed
0.19.8 (runtime/zero/partitioned_param_coordinator.py, stage3.py, stage_1_and_2.py).
"""

from __future__ import annotations

import functools
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from trainers import frozen

# The tensor whose bytes count: its place among the arguments and its names, DeepSpeed's and torch's.
_OPERATIONS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "all_gather_into_tensor": ("all_gather", 0, ("output_tensor",)),
    "reduce_scatter_tensor": ("reduce_scatter", 1, ("input_tensor", "input")),
    "all_reduce": ("all_reduce", 0, ("tensor",)),
    "reduce": ("reduce", 0, ("tensor",)),
    "broadcast": ("broadcast", 0, ("tensor",)),
    "all_gather": ("all_gather", 0, ("tensor_list",)),
    "reduce_scatter": ("reduce_scatter", 1, ("input_list",)),
    "all_to_all_single": ("all_to_all", 0, ("output",)),
}


class Call(NamedTuple):
    """One collective of this rank."""

    source: str  # "zero": DeepSpeed's; "frozen": trainers/frozen.py's; "torch": the rest (metrics of our engine, FSDP)
    operation: str
    bytes: int


@dataclass
class Ledger:
    """The collectives that were issued while `counted` ran, in order."""

    calls: list[Call] = field(default_factory=list)

    def bytes(self, source: str | None = None) -> dict[str, int]:
        """Return the bytes by operation, of one source or of all."""
        totals: Counter[str] = Counter()
        for call in self.calls:
            totals[call.operation] += call.bytes if source in (None, call.source) else 0
        return {operation: total for operation, total in sorted(totals.items()) if total}

    def numbers(self, source: str | None = None) -> dict[str, int]:
        """Return how many calls there were by operation, of one source or of all."""
        return dict(sorted(Counter(c.operation for c in self.calls if source in (None, c.source)).items()))


@contextmanager
def counted(on_call: Callable[[], None] | None = None) -> Iterator[Ledger]:
    """Count the collectives of this rank meanwhile: those of DeepSpeed's backend and those of torch.distributed.

    Args:
        on_call: Called before each of them, such as to look at what is gathered at that moment.
    """
    ledger, inside = Ledger(), threading.local()

    def watched(source: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        operation, place, keys = _OPERATIONS[name]

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            if getattr(inside, "one", False):  # DeepSpeed's calls torch's
                return function(*arguments, **named)
            if on_call is not None:
                on_call()
            given = arguments[place] if len(arguments) > place else next(named[k] for k in keys if k in named)
            ledger.calls.append(Call(source, operation, _bytes(given)))
            inside.one = True
            try:
                return function(*arguments, **named)
            finally:
                inside.one = False

        return call

    backend = getattr(sys.modules.get("deepspeed.comm.comm"), "cdb", None)
    owners = [(dist, "torch")] + ([(backend, "zero")] if backend is not None else [])
    usual = [(o, s, n, getattr(o, n)) for o, s in owners for n in _OPERATIONS if hasattr(o, n)]
    for owner, source, name, function in usual:
        setattr(owner, name, watched(source, name, function))
    usual_fetch = frozen.fetch

    def fetch(source: frozen.Source, unit: frozen.Unit, target: Tensor, rank: int, world: int) -> None:
        ledger.calls.append(Call("frozen", "copies" if source.of_ranks else "all_gather", _bytes(target)))
        inside.one = True
        try:
            usual_fetch(source, unit, target, rank, world)
        finally:
            inside.one = False

    frozen.fetch = fetch
    try:
        yield ledger
    finally:
        frozen.fetch = usual_fetch
        for owner, _, name, function in usual:
            if owner is dist:
                setattr(owner, name, function)
            else:
                delattr(owner, name)  # the method of its class shows again


def _bytes(given: Any) -> int:
    tensors = given if isinstance(given, list | tuple) else [given]
    return sum(t.numel() * t.element_size() for t in tensors)


# --- what a step visits ----------------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """A parameter, whole."""

    numbers: int
    number_bytes: int
    trained: bool

    @classmethod
    def of(cls, parameter: Tensor) -> Piece:
        """Describe a parameter, one that ZeRO-3 has shared out as well."""
        return cls(getattr(parameter, "ds_numel", parameter.numel()), parameter.element_size(), parameter.requires_grad)


class Event(NamedTuple):
    """A module is about to run or has run; `own` is gathered for it, `below` are its and its submodules' parameters.

    Or a unit of frozen weights (trainers/frozen.py) is about to be used or has been, of which DeepSpeed knows nothing.
    """

    begins: bool
    forward: bool
    module: int
    leaf: bool
    own: tuple[int, ...]
    below: tuple[int, ...]
    unit: int = -1


class Walk(NamedTuple):
    """The order in which a micro-batch meets the modules, and the parameters in the order of their registration."""

    pieces: tuple[Piece, ...]
    events: tuple[Event, ...]


def walk(
    root: nn.Module, leaves: Sequence[nn.Module], run: Callable[[], Any], mark: Callable[[], None] | None = None,
    units: Sequence[Sequence[nn.Module]] = (),
) -> Walk:  # fmt: skip
    """Run a micro-batch forward and backward and return what it meets; works on the meta device too.

    A module is met where ZeRO-3 would hook it: before and after its forward, when the gradient of an output comes, when
    the gradients of its inputs are there. Leaf modules own all below them.

    Args:
        root: What DeepSpeed wraps.
        leaves: The leaf modules.
        run: Runs root and its backward pass.
        mark: Called at each event, such as to record its time.
        units: Modules below a leaf whose frozen weights trainers/frozen.py fetches, in its order.
    """
    # The order of DeepSpeed: it numbers parameters module by module.
    number = {id(p): i for i, p in enumerate(dict.fromkeys(p for m in root.modules() for p in _own(m)))}
    pieces = tuple(Piece.of(p) for p in dict.fromkeys(p for m in root.modules() for p in _own(m)))
    inside = {id(m) for leaf in leaves for m in leaf.modules() if m is not leaf}
    whole = {id(leaf) for leaf in leaves}
    events: list[Event] = []
    handles = []
    for place, module in enumerate(root.modules()):
        if id(module) in inside:
            continue
        below = tuple(dict.fromkeys(number[id(p)] for m in module.modules() for p in (*_own(m), *_external(m))))
        own = below if id(module) in whole else tuple(number[id(p)] for p in (*_own(module), *_external(module)))
        handles += _watch(module, functools.partial(_note, events, mark, place, id(module) in whole, own, below))
    for unit, module in ((unit, module) for unit, below in enumerate(units) for module in below):
        handles += _watch(module, functools.partial(_note_unit, events, mark, unit))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return Walk(pieces, tuple(events))


def _own(module: nn.Module) -> list[Tensor]:
    return [p for p in module._parameters.values() if p is not None]


def _external(module: nn.Module) -> list[Tensor]:
    """Return parameters of other modules that this one was seen to touch, which DeepSpeed then gathers for it too."""
    return list(getattr(module, "_external_params", {}).values())


def _note(
    events: list[Event], mark: Callable[[], None] | None, place: int, leaf: bool, own: tuple[int, ...],
    below: tuple[int, ...], begins: bool, forward: bool,
) -> None:  # fmt: skip
    events.append(Event(begins, forward, place, leaf, own, below))
    if mark is not None:
        mark()


def _note_unit(events: list[Event], mark: Callable[[], None] | None, unit: int, begins: bool, forward: bool) -> None:
    events.append(Event(begins, forward, -1, False, (), (), unit))
    if mark is not None:
        mark()


def _watch(module: nn.Module, note: Callable[[bool, bool], None]) -> list[Any]:
    remaining = [0]

    def input_gradient_is_there() -> None:
        remaining[0] -= 1
        if remaining[0] == 0:
            note(False, False)

    def before(_: nn.Module, inputs: Any) -> Any:
        note(True, True)
        remaining[0] = 0

        def watched(tensor: Tensor) -> Tensor:
            if not (torch.is_grad_enabled() and tensor.requires_grad):
                return tensor
            remaining[0] += 1
            return _Passing.apply(tensor, input_gradient_is_there)  # type: ignore[no-any-return]

        return tree_map_only(Tensor, watched, inputs)

    def after(_: nn.Module, inputs: Any, output: Any) -> Any:
        note(False, True)

        def watched(tensor: Tensor) -> Tensor:
            if not (torch.is_grad_enabled() and tensor.requires_grad):
                return tensor
            return _Passing.apply(tensor, lambda: note(True, False))  # type: ignore[no-any-return]

        return tree_map_only(Tensor, watched, output)

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


class _Passing(torch.autograd.Function):
    """Gives a tensor through and tells when its gradient passes."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, passes: Callable[[], None]) -> Tensor:
        context.passes = passes
        return tensor.view_as(tensor)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        context.passes()
        return gradient, None


# --- ZeRO-3 ----------------------------------------------------------------------------------------------------------


NORM_BYTES = 8  # of the sum over ranks of a group's squared norm in ZeRO-3, float64
ZERO2_NORM_BYTES = 4


class Sharing(NamedTuple):
    """How ZeRO shares parameters out, in numbers (not bytes); the names are those of DeepSpeed's JSON."""

    world: int
    persistence_threshold: int = 100_000
    prefetch_bucket: int = 50_000_000
    reduce_bucket: int = 50_000_000
    max_live: int = 1_000_000_000
    max_reuse_distance: int = 1_000_000_000
    sequential: bool = False  # one gather a parameter
    secondary_world: int = 0  # hierarchical partitioning (hpZ): ranks that hold a second whole copy together

    @classmethod
    def of(cls, zero: Mapping[str, Any], world: int) -> Sharing:
        """Read the table zero_optimization of a DeepSpeed JSON."""
        return cls(
            world,
            zero["stage3_param_persistence_threshold"],
            zero["stage3_prefetch_bucket_size"],
            zero["reduce_bucket_size"],
            zero["stage3_max_live_parameters"],
            zero["stage3_max_reuse_distance"],
            zero.get("stage3_allgather_sequential", False),
        )


class Transfer(NamedTuple):
    """A collective that a step issues: when the event `at` begins or ends; what it brings is needed from then on."""

    operation: str
    at: int  # place among the events of the walk; their number stands for the end of the micro-batch
    bytes: int
    parameters: tuple[int, ...] = ()


def padded(numbers: int, world: int) -> int:
    """Return the length of a tensor that `world` ranks share in equal parts."""
    return -(-numbers // world) * world


def of_step(walked: Walk, sharing: Sharing, accumulation: int = 1) -> dict[str, int]:
    """Return the bytes that one ZeRO-3 step gathers and reduces, by operation, from the third step on.

    Args:
        walked: What a micro-batch meets.
        sharing: How parameters are shared out.
        accumulation: Micro-batches a step; each gathers and reduces.
    """
    totals: Counter[str] = Counter()
    held = _Held(walked, sharing, persistent_are_there=True)
    for _ in range(accumulation):
        for transfer in held.micro_batch():
            totals[transfer.operation] += transfer.bytes
    for transfer in after_step(walked, sharing):
        totals[transfer.operation] += transfer.bytes
    return {operation: total for operation, total in sorted(totals.items()) if total}


def of_micro_batch(walked: Walk, sharing: Sharing) -> list[Transfer]:
    """Return the collectives of the first micro-batch of a step in their order."""
    return _Held(walked, sharing, persistent_are_there=True).micro_batch()


def after_step(walked: Walk, sharing: Sharing) -> list[Transfer]:
    """Return what follows the backward pass: the norm of the gradient, then the whole parameters that stay."""
    end = len(walked.events)
    norm = Transfer("all_reduce", end, NORM_BYTES)
    stay = [i for i, p in enumerate(walked.pieces) if p.numbers <= sharing.persistence_threshold]
    if sharing.world == 1 and not sharing.sequential and len(stay) != 1:  # one by one it gathers even from itself
        return [norm]
    return [norm, *(Transfer("all_gather", end, _gathered_bytes(walked, [i], sharing), (i,)) for i in stay)]


def gathered_bytes_at_most(walked: Walk, sharing: Sharing) -> int:
    """Return the bytes of frozen parameters that are whole at one time, at most, those that always are included."""
    held = _Held(walked, sharing, persistent_are_there=True)
    held.micro_batch()
    return held.most_frozen_bytes


def _gathered_bytes(walked: Walk, which: Sequence[int], sharing: Sharing) -> int:
    pieces = [walked.pieces[i] for i in which]
    return sum(padded(p.numbers, sharing.world) * p.number_bytes for p in pieces)


class _Held:
    """Which parameters are whole on a rank, followed as DeepSpeed's coordinator does once it knows the order."""

    def __init__(self, walked: Walk, sharing: Sharing, persistent_are_there: bool) -> None:
        self.walked, self.sharing = walked, sharing
        self.persistent = {i for i, p in enumerate(walked.pieces) if p.numbers <= sharing.persistence_threshold}
        self.available = set(self.persistent) if persistent_are_there else set()
        self.in_flight: set[int] = set()
        self.begins = [e for e in walked.events if e.begins and e.unit < 0]
        self.most_frozen_bytes = 0

    def micro_batch(self) -> list[Transfer]:
        """Go through the events once; return what is gathered and reduced."""
        self.transfers: list[Transfer] = []
        self.in_flight.clear()
        self.live = 0
        self.step = 0
        order = [(p, i) for i, e in enumerate(self.begins) for p in sorted(set(e.own))]
        self.queue = deque(order)
        self.fetched_for = dict.fromkeys(range(len(self.walked.pieces)), -(10**10))
        active: dict[int, set[int]] = {p: set() for p in range(len(self.walked.pieces))}
        for place, event in enumerate(self.walked.events):
            if event.unit >= 0:
                continue
            if event.begins:
                for p in event.own:
                    active[p].add(event.module)
                self._fetch(event, place)
            else:
                leaving = self._to_release(event)
                for p in event.own:
                    active[p].discard(event.module)
                    if p in leaving and p in self.available and not active[p]:
                        self.available.discard(p)
                        self.live -= self.walked.pieces[p].numbers
        self.transfers += self._reductions()
        return self.transfers

    def _fetch(self, event: Event, place: int) -> None:
        pieces = self.walked.pieces
        self._gather([p for p in event.own if not self._is_here(p)], place)
        self.in_flight -= set(event.own)
        self.available |= set(event.own)
        wanted = {p for p in event.own if self.fetched_for[p] < self.step}
        passed: set[int] = set()
        while self.queue and len(passed) < len(wanted):
            p, last = self.queue.popleft()
            self.fetched_for[p] = last
            passed.add(p)
        if self.sharing.prefetch_bucket > 0:
            most = min(self.sharing.max_live - self.live, self.sharing.prefetch_bucket)
            ahead: list[int] = []
            numbers = 0
            while self.queue and numbers < most:
                p, last = self.queue.popleft()
                self.fetched_for[p] = max(self.fetched_for[p], last)
                if not self._is_here(p) and p not in ahead:
                    ahead.append(p)
                    numbers += pieces[p].numbers
            self._gather(ahead, place)
            self.in_flight |= set(ahead)
        whole = [pieces[p] for p in self.available | self.in_flight if not pieces[p].trained]
        self.most_frozen_bytes = max(self.most_frozen_bytes, sum(p.numbers * p.number_bytes for p in whole))
        self.step += 1

    def _is_here(self, p: int) -> bool:
        return p in self.available or p in self.in_flight

    def _gather(self, wanted: list[int], place: int) -> None:
        pieces = self.walked.pieces
        self.live += sum(pieces[p].numbers for p in wanted)
        if self.sharing.world == 1 or not wanted:
            return
        # Together, but for each type apart; numbers of one size are taken for one type.
        kinds = [(p,) for p in sorted(wanted)] if self.sharing.sequential else _by_size(sorted(wanted), pieces)
        for kind in kinds:
            self.transfers.append(Transfer("all_gather", place, _gathered_bytes(self.walked, kind, self.sharing), kind))

    def _to_release(self, event: Event) -> set[int]:
        leaving = {p for p in event.own if p not in self.persistent and self.fetched_for[p] <= self.step}
        passed = 0
        for other in self.begins[self.step :]:
            if passed >= self.sharing.max_reuse_distance:
                break
            # DeepSpeed looks below the other modules when the one that it releases is a leaf module.
            seen = other.below if event.leaf else other.own
            leaving -= set(seen)
            passed += sum(self.walked.pieces[p].numbers for p in seen)
        return leaving

    def _reductions(self) -> list[Transfer]:
        """Return the scattered reductions: a bucket is reduced when the next gradient does not fit into it."""
        pieces, found = self.walked.pieces, []
        bucket: list[int] = []
        done: set[int] = set()
        for place, event in enumerate(self.walked.events):
            if not event.begins and not event.forward:
                for p in event.own:
                    if pieces[p].trained and p not in done:
                        done.add(p)
                        if bucket and sum(pieces[b].numbers for b in (*bucket, p)) > self.sharing.reduce_bucket:
                            found.append((place, bucket))
                            bucket = []
                        bucket.append(p)
        rest = [p for p, piece in enumerate(pieces) if piece.trained and p not in done]
        found.append((len(self.walked.events), bucket + rest))
        return [
            Transfer("reduce_scatter", place, _gathered_bytes(self.walked, which, self.sharing), tuple(which))
            for place, which in found
            if which
        ]


def _by_size(wanted: Sequence[int], pieces: Sequence[Piece]) -> list[tuple[int, ...]]:
    kinds: dict[int, list[int]] = {}
    for p in wanted:
        kinds.setdefault(pieces[p].number_bytes, []).append(p)
    return [tuple(kind) for kind in kinds.values()]


# --- frozen weights in shares of their own ---------------------------------------------------------------------------


def of_frozen(
    walked: Walk, unit_bytes: Sequence[int], operation: str = "all_gather", stay: Collection[int] = ()
) -> list[Transfer]:
    """Return the fetches of a micro-batch after the first in their order; `parameters` holds the unit.

    Args:
        walked: What a micro-batch meets, its units included.
        unit_bytes: What a fetch of each unit brings; none on one rank.
        operation: What a fetch is called.
        stay: Units that are whole on every rank.
    """
    units = [unit for unit in range(len(unit_bytes)) if unit not in stay]
    place_of = {unit: place for place, unit in enumerate(units)}
    holding = frozen.Holding(len(units))
    found: list[Transfer] = []
    for _ in range(2):  # the first pass begins with nothing
        found = []
        for place, event in enumerate(walked.events):
            if event.unit in place_of and event.begins:
                fetched = [units[unit] for unit, _ in holding.use(place_of[event.unit])]
                found += [Transfer(operation, place, unit_bytes[unit], (unit,)) for unit in fetched]
    return found


def of_frozen_step(unit_bytes: Sequence[int]) -> int:
    """Return the bytes that a training step fetches in which each unit runs once forward, and backward but the last.

    Forward finds the first two units where the backward pass of the step before left them; backward finds the last two.
    """
    return sum(unit_bytes[2:]) + sum(unit_bytes[:-2])


# --- ZeRO-2 and what the engine adds ---------------------------------------------------------------------------------


def of_zero2_step(groups: Sequence[Sequence[Piece]], world: int, accumulation: int = 1) -> dict[str, int]:
    """Return the bytes that one ZeRO-2 step reduces and gathers; frozen parameters are whole on every rank.

    Args:
        groups: The trained parameters by group of the optimizer; DeepSpeed lays each out flat and pads it.
        world: Ranks.
        accumulation: Micro-batches a step; each is reduced.
    """
    reduced = sum(p.numbers * p.number_bytes for group in groups for p in group)
    gathered = 0
    for group in groups:
        size = max(p.number_bytes for p in group)
        gathered += padded(sum(p.numbers for p in group), 2 * world) * size if world > 1 else 0
    norms = len(groups) * ZERO2_NORM_BYTES
    found = {"all_reduce": accumulation * reduced + norms, "all_gather": gathered}
    return {operation: total for operation, total in sorted(found.items()) if total}


def of_metrics(terms: int, accumulation: int = 1) -> dict[str, int]:
    """Return the bytes of our engine's own reductions in a step, from the third step on.

    Items and totals of each term and a 1 a rank in float32 a micro-batch, and the tokens of the step in float64.
    """
    return {"all_reduce": accumulation * 4 * (2 * terms + 1) + 8}


def of_exemplars(samples: int, edges: int) -> dict[str, int]:
    """Return the bytes with which the networks of all ranks become exemplars (models/exemplars.py), a micro-batch.

    Args:
        samples: Of all ranks together.
        edges: That are known: a byte each, beside two integers a network.
    """
    return {"all_gather": samples * (edges + 8 + 8)}


def of_contrast(samples: int, modalities: int, width: int) -> dict[str, int]:
    """Return the bytes with which the codes of all ranks meet (consistency/info_nce), in each micro-batch.

    Args:
        samples: Of all ranks together.
        modalities: Of each.
        width: Of a code.
    """
    codes = 4 * samples * modalities * width
    return {"all_gather": codes + (1 + 8) * samples * modalities, "all_reduce": codes}
