"""Share frozen weights of a language model out over the ranks: each keeps a part of every layer and fetches the rest.

DeepSpeed treats frozen parameters as if they were trained: it gathers each of them with a collective, takes them apart
into new tensors, hooks every module twice and lets the host run no further than two fetches ahead of the GPU. But what
is frozen never changes, so nobody has to agree with anybody on when it is read. Here the weights of a layer lie end to
end as bytes; one fetch brings them into one of two buffers, in which the layer reads them in place, while the layer
before it computes. On GPUs of one host that can read each other's memory a fetch is a copy from each neighbour: copy
engines do it, no multiprocessor is taken from the computation, no rank waits for another. Elsewhere it is one
all-gather. DeepSpeed sees what is trained, and the whole decoder as one leaf module.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.fused_decoder import DecoderLayer, FusedDecoder

_LOG = logging.getLogger(__name__)
BUFFERS = 2
# Bytes of frozen weights that a GPU may hold beyond its share of them. What the buffers leave of it lets layers stay
# whole, which nobody fetches: 3 of 40 at 13 B on 4 GPUs, all of a model of a billion.
BESIDE = 3_000_000_000
_ALIGNED = 256  # bytes; kernels read weights in wide words
# Parameters of so many numbers or fewer stay whole. A CPU rank keeps the layers of SmolLM2: loopback is slow.
WHOLE, WHOLE_ON_CPU = 100_000, 2_000_000


class Place(NamedTuple):
    """Where a tensor lies among the bytes of its unit, and who reads it under which name."""

    readers: tuple[tuple[nn.Module, str], ...]
    dtype: torch.dtype
    shape: torch.Size
    begin: int
    end: int


class Unit(NamedTuple):
    """Tensors that are fetched together."""

    places: tuple[Place, ...]
    begin: int  # of this rank's part of it, among its parts of all units
    part: int  # bytes that each rank keeps


class Source(NamedTuple):
    """Where the parts are: this rank's own bytes and, where it can read them, those of all ranks in order."""

    own: Tensor
    of_ranks: tuple[Tensor, ...]  # empty: they must be gathered


def fetch(source: Source, unit: Unit, target: Tensor, rank: int, world: int) -> None:
    """Bring all bytes of a unit into the target, on the current stream."""
    mine = slice(unit.begin, unit.begin + unit.part)
    if not source.of_ranks:
        dist.all_gather_into_tensor(target, source.own[mine])
        return
    # Each begins with the next rank, so not all read the same neighbour at once. The own part comes last, for
    # multiprocessors copy it: the small kernels with which the layer that runs begins would wait for them.
    for other in range(rank + 1, rank + world + 1):
        other %= world
        target[other * unit.part : (other + 1) * unit.part].copy_(source.of_ranks[other][mine], non_blocking=True)


class Holding:
    """Which units lie in which buffer. Units are used in their order, forward and then backward."""

    def __init__(self, units: int) -> None:
        self.units = units
        self.held: list[int | None] = [None] * BUFFERS
        self.used = 0

    def use(self, unit: int) -> list[tuple[int, int]]:
        """Use a unit; return what must be fetched for it, and then what is fetched ahead: the unit and its buffer."""
        if unit == self.used and unit in self.held:
            return []
        following = unit + 1 if unit > self.used else unit - 1
        found = self._bring(unit, beside=self.used)
        self.used = unit
        return found + (self._bring(following, beside=unit) if 0 <= following < self.units else [])

    def _bring(self, unit: int, beside: int) -> list[tuple[int, int]]:
        if unit in self.held:
            return []
        to = next(i for i, held in enumerate(self.held) if held != beside)
        self.held[to] = unit
        return [(unit, to)]


class FrozenShares:
    """The frozen weights of a decoder, of which this rank keeps its part.

    Units are used in their order, forward and then backward, and the next one is always on its way.
    """

    def __init__(
        self, tensors: Sequence[Sequence[Sequence[tuple[nn.Module, str]]]], device: torch.device, rank: int, world: int,
        shared: Callable[[int], Source],
    ) -> None:  # fmt: skip
        """Take the parameters out of their modules and keep a part of each unit; all ranks hold the same weights.

        Args:
            tensors: Of each unit: for each of its parameters the modules that read it, with the name that it has there.
            device: Where the parts and the buffers are to lie.
            rank: Of this process.
            world: Ranks.
            shared: Returns the source with room for so many bytes on each rank.
        """
        self.rank, self.world, self.device = rank, world, device
        self.units = list(_laid_out(tensors, world))
        self.source = shared(sum(unit.part for unit in self.units))
        for unit in self.units:
            _keep(unit, self.source.own, rank)
        largest = max(unit.part for unit in self.units) * world
        self._buffers = torch.empty(BUFFERS, largest, dtype=torch.uint8, device=device)
        self._views = [[_views(unit, buffer) for buffer in self._buffers] for unit in self.units]
        nothing = torch.empty(0, dtype=torch.uint8, device=device)
        self._empty = [_views(unit, nothing) for unit in self.units]
        self.holding = Holding(len(self.units))
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._arrived: list[Any] = [torch.cuda.Event() if self._stream else None for _ in range(BUFFERS)]
        for views in self._empty:
            _show(views)
        if self._stream is not None:  # every part must lie where it is read before anybody reads
            torch.cuda.synchronize(device)
            dist.barrier()

    @property
    def operation(self) -> str:
        """What a fetch is: copies from neighbours or an all_gather."""
        return "copies" if self.source.of_ranks else "all_gather"

    @property
    def kept_bytes(self) -> int:
        """Bytes of the parts that this rank keeps."""
        return self.source.own.numel()

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the buffers in which fetched units lie."""
        return self._buffers.numel()

    def unit_bytes(self) -> list[int]:
        """Return the bytes that a fetch of each unit brings."""
        return [unit.part * self.world for unit in self.units]

    def views(self) -> Iterator[list[Tensor]]:
        """Yield what modules may see of each buffer and unit."""
        for of_unit in (*self._empty, *(views for both in self._views for views in both)):
            yield [tensor for *_, tensor in of_unit]

    def use(self, unit: int) -> None:
        """Let the modules of a unit see their weights from here on, and have the next unit fetched."""
        if unit == self.holding.used and unit in self.holding.held:
            return
        before = list(self.holding.held)
        for coming, to in self.holding.use(unit):
            gone = before[to]
            if gone is not None:
                _show(self._empty[gone])
            self._bring(coming, to)
            before[to] = coming
        if self._stream is not None:
            torch.cuda.current_stream().wait_event(self._arrived[self.holding.held.index(unit)])

    def _bring(self, unit: int, to: int) -> None:
        """Fetch a unit into a buffer."""
        size = self.units[unit].part * self.world
        if self._stream is None:
            fetch(self.source, self.units[unit], self._buffers[to, :size], self.rank, self.world)
        else:
            # All that was to read the buffer has been given to the GPU by now.
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                fetch(self.source, self.units[unit], self._buffers[to, :size], self.rank, self.world)
                self._arrived[to].record()
        _show(self._views[unit][to])


def _laid_out(tensors: Sequence[Sequence[Sequence[tuple[nn.Module, str]]]], world: int) -> Iterator[Unit]:
    begin = 0
    for of_unit in tensors:
        places, size = [], 0
        for readers in of_unit:
            owner, name = readers[0]
            parameter = getattr(owner, name)
            end = size + parameter.numel() * parameter.element_size()
            places.append(Place(tuple(readers), parameter.dtype, parameter.shape, size, end))
            size = -(-end // _ALIGNED) * _ALIGNED
        part = -(-size // (world * _ALIGNED)) * _ALIGNED
        yield Unit(tuple(places), begin, part)
        begin += part


@torch.no_grad()
def _keep(unit: Unit, own: Tensor, rank: int) -> None:
    """Copy this rank's part of a unit out of its parameters, and take these from their modules."""
    first, last = rank * unit.part, (rank + 1) * unit.part
    for place in unit.places:
        owner, name = place.readers[0]
        flat = getattr(owner, name).detach().contiguous().view(-1).view(torch.uint8)
        begin, end = max(first, place.begin), min(last, place.end)
        if begin < end:
            target = own[unit.begin + begin - first : unit.begin + end - first]
            target.copy_(flat[begin - place.begin : end - place.begin])
        for module, attribute in place.readers:
            module._parameters[attribute] = None  # known but absent, as nn.Linear(bias=False) has it


def _views(unit: Unit, buffer: Tensor) -> list[tuple[dict[str, Any], str, Tensor]]:
    """Return what the modules of a unit see: its tensors in a buffer; for an empty buffer empty ones of their types."""
    found = []
    for place in unit.places:
        seen = buffer[place.begin : place.end].view(place.dtype)
        seen = seen.view(place.shape) if len(buffer) else seen
        found += [(module.__dict__, attribute, seen) for module, attribute in place.readers]
    return found


def _show(views: Sequence[tuple[dict[str, Any], str, Tensor]]) -> None:
    for table, attribute, tensor in views:  # nn.Module looks there first
        table[attribute] = tensor


# --- a decoder -------------------------------------------------------------------------------------------------------


def share_out(
    decoder: FusedDecoder, device: torch.device, how: str = "auto", beside: int | None = None
) -> FrozenShares | None:
    """Share the frozen weights of a decoder out over all ranks; small ones stay whole. On one rank all do.

    Args:
        decoder: Its frozen parameters become plain tensors; those that are shared out are empty unless they are used.
        device: Of this rank.
        how: "copies" from the memory of the other GPUs, "gathers", "auto" for copies wherever they are possible.
        beside: Bytes that may be held beyond the share; BESIDE on a GPU, 0 elsewhere.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    named = {id(p): (n, p) for n, p in decoder.named_parameters(remove_duplicate=False) if not p.requires_grad}
    decoder.__dict__["frozen_numbers"] = {name: p.numel() for name, p in named.values()}
    on_gpu = device.type == "cuda"
    found = _divided(decoder, world, WHOLE if on_gpu else WHOLE_ON_CPU, _beside(on_gpu, beside))
    decoder.__dict__["frozen_units"], decoder.__dict__["frozen_division"] = found.modules, found
    units = found.fetched()
    taken = {id(getattr(*readers[0])) for unit in units for readers in unit}
    for module in decoder.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and not parameter.requires_grad and id(parameter) not in taken:
                module._parameters[name] = None
                module.__dict__[name] = parameter.detach().to(device)
    decoder.register_forward_pre_hook(_want_gradient)
    shares = None
    if units:
        by_copies = on_gpu and how != "gathers" and _can_copy(device)
        shares = FrozenShares(units, device, rank, world, lambda size: _source(size, device, world, by_copies))
        for number, unit in enumerate(units):
            for module in dict.fromkeys(owner for readers in unit for owner, _ in readers):
                _use_before(module, shares, number)
    decoder.__dict__["frozen"] = shares
    return shares


def standing(decoder: FusedDecoder, ranks: int, whole: int = WHOLE, beside: int = BESIDE) -> tuple[int, int]:
    """Return the bytes of frozen weights that each of so many ranks keeps, and those of its buffers.

    Args:
        decoder: Before `share_out`; its weights may lie on the meta device.
        ranks: How many.
        whole: Parameters of so many numbers or fewer stay whole.
        beside: Bytes that may be held beyond the share.
    """
    units = _divided(decoder, ranks, whole, beside).fetched()
    parts = [unit.part for unit in _laid_out(units, ranks)]
    taken = {id(getattr(*readers[0])) for unit in units for readers in unit}
    others = [p for p in decoder.parameters() if not p.requires_grad and id(p) not in taken]
    kept = sum(parts) + sum(p.numel() * p.element_size() for p in others)
    return kept, BUFFERS * ranks * max(parts, default=0)


class Division(NamedTuple):
    """What is fetched together of a decoder, in the order of use, and which of it stays whole on every rank."""

    modules: list[list[nn.Module]]
    tensors: list[list[list[tuple[nn.Module, str]]]]  # of each unit: who reads each of its parameters
    bytes: list[int]  # of each unit, what a fetch would bring
    stay: tuple[int, ...]

    def fetched(self) -> list[list[list[tuple[nn.Module, str]]]]:
        """Return the tensors of the units that do not stay."""
        return [tensors for unit, tensors in enumerate(self.tensors) if unit not in self.stay]


def staying(unit_bytes: Sequence[int], ranks: int, beside: int) -> tuple[int, ...]:
    """Return the units that stay whole: all, where they fit; else the first layers that fit beside the buffers.

    Args:
        unit_bytes: What a fetch of each unit brings: of the table of words, the layers and, if apart, the head.
        ranks: They are shared out over.
        beside: Bytes that a rank may hold beyond its share.
    """
    beyond = [size - size // ranks for size in unit_bytes]
    if sum(beyond) <= beside:
        return tuple(range(len(unit_bytes)))
    room = beside - BUFFERS * max(unit_bytes)
    found: list[int] = []
    for unit in range(1, len(unit_bytes) - 1):
        if beyond[unit] > room:
            break
        found.append(unit)
        room -= beyond[unit]
    return tuple(found)


def _beside(on_gpu: bool, given: int | None) -> int:
    return (BESIDE if on_gpu else 0) if given is None else given


def _divided(decoder: FusedDecoder, ranks: int, whole: int, beside: int) -> Division:
    modules = [below for below in _units(decoder) if _frozen(below, whole)]
    tensors = [_frozen(below, whole) for below in modules]
    sizes = [unit.part * ranks for unit in _laid_out(tensors, ranks)]
    large = {id(getattr(*readers[0])) for unit in tensors for readers in unit}
    others = [p for p in decoder.parameters() if not p.requires_grad and id(p) not in large]
    small = sum(p.numel() * p.element_size() for p in others)
    return Division(modules, tensors, sizes, staying(sizes, ranks, beside - (small - small // ranks)))


def _units(decoder: FusedDecoder) -> list[list[nn.Module]]:
    """Return the modules whose weights are fetched together, in the order in which they are used."""
    layers: list[list[nn.Module]] = [[layer] for layer in decoder.layers]
    if decoder.head.weight is decoder.embedding.weight:
        return [[decoder.embedding, decoder.head], *layers]
    return [[decoder.embedding], *layers, [decoder.head]]


def _frozen(modules: Sequence[nn.Module], whole: int) -> list[list[tuple[nn.Module, str]]]:
    """Return who reads each frozen parameter of more than so many numbers."""
    readers: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in modules:
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad and parameter.numel() > whole:
                readers.setdefault(id(parameter), []).append((module, name))
    return list(readers.values())


def _use_before(module: nn.Module, shares: FrozenShares, unit: int) -> None:
    """Fetch a unit before its module reads it: a layer asks for its weights backward as well, the others do not."""
    if not isinstance(module, DecoderLayer):
        module.register_forward_pre_hook(lambda *_: shares.use(unit))
        return
    inner = module.weights

    def weights() -> Any:
        shares.use(unit)
        return inner()

    module.weights = weights  # type: ignore[method-assign]


def _want_gradient(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Let the decoder's input want a gradient, as a leaf module's has to (trainers/flat.py says why)."""
    embedded, *rest = inputs
    if torch.is_grad_enabled() and not embedded.requires_grad:
        embedded = embedded.detach().requires_grad_()
    return (embedded, *rest)


def _can_copy(device: torch.device) -> bool:
    """Tell whether all ranks run on one host, each on a GPU that can read the memory of all others."""
    mine = (socket.gethostname(), torch.cuda.current_device(), torch.cuda.device_count())
    all_of: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(all_of, mine)
    hosts, devices, counts = (set(x) for x in zip(*all_of, strict=True))
    if len(hosts) > 1 or len(devices) < len(all_of) or len(counts) > 1:
        return False
    others = devices - {device.index}
    reads = torch.tensor(float(all(torch.cuda.can_device_access_peer(device, o) for o in others)), device=device)
    dist.all_reduce(reads, op=dist.ReduceOp.MIN)
    return bool(reads > 0)


def _source(size: int, device: torch.device, world: int, by_copies: bool) -> Source:
    if not by_copies:
        return Source(torch.empty(size, dtype=torch.uint8, device=device), ())
    import torch.distributed._symmetric_memory as symmetric

    assert dist.group.WORLD is not None
    try:
        own = symmetric.empty(size, dtype=torch.uint8, device=device)
        handle = symmetric.rendezvous(own, dist.group.WORLD)
        others = [own if r == handle.rank else handle.get_buffer(r, (size,), torch.uint8) for r in range(world)]
    except RuntimeError as error:  # a container may forbid what the driver could
        others = []
        _LOG.warning("the memory of the other GPUs cannot be mapped (%s): frozen weights are gathered", error)
    mapped = torch.tensor(float(bool(others)), device=device)
    dist.all_reduce(mapped, op=dist.ReduceOp.MIN)
    return Source(own, tuple(others)) if mapped > 0 else _source(size, device, world, by_copies=False)
