"""Bring batches to the device ahead of time: a thread pins and copies the next one while a step computes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from data_pipeline.batch import Batch
from models.aside import mark_arrived


@runtime_checkable
class Stream(Protocol):
    """Gives out batches and knows its place."""

    def __iter__(self) -> Iterator[Batch]:
        """Give out batches from the present place on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last batch that was given out."""
        ...


class _Copied(NamedTuple):
    batch: Batch
    place: dict[str, Any]


class Pause:
    """How long after a batch was taken the next one is begun: half of the last step, not at all after a wait for it.

    While a step begins the device waits for the host, and threads that write texts hold the lock of the interpreter;
    in its middle the host waits for the device (CHANGELOG.md has the figures).
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._taken: float | None = None

    def take(self, now: float, waited: bool) -> None:
        """Note that a batch was taken at a time in seconds, and whether it had to be waited for."""
        self.seconds = 0.0 if waited or self._taken is None else (now - self._taken) / 2
        self._taken = now


class OnDevice:
    """The batches of a stream on a GPU, one ahead; on a CPU the stream itself.

    `state_dict` is the place after the last batch that came out here, not after what was fetched ahead.
    """

    def __init__(self, stream: Stream, device: torch.device) -> None:
        self._stream, self._device = stream, device
        self._place: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last batch that was given out."""
        return self._stream.state_dict() if self._place is None else self._place

    def __iter__(self) -> Iterator[Batch]:
        """Give out batches; an error of the stream comes out where its batch would have."""
        if self._device.type != "cuda":
            yield from self._stream
            return
        ready: queue.SimpleQueue[_Copied | BaseException | None] = queue.SimpleQueue()
        room, stop = threading.Semaphore(1), threading.Event()  # one batch ahead, made when the one before is taken
        hurry, pause = threading.Event(), Pause()
        arguments = (ready, room, stop, hurry, pause)
        thread = threading.Thread(target=self._copy, args=arguments, name="copies", daemon=True)
        thread.start()
        try:
            while True:
                waited = ready.empty()
                if waited:
                    hurry.set()
                item = ready.get()
                hurry.clear()
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                now = torch.cuda.current_stream(self._device)
                for tensor in tensors_of(item.batch):
                    tensor.record_stream(now)  # its memory must not go to the next copy while a kernel reads it
                self._place = item.place
                pause.take(time.monotonic(), waited)
                room.release()
                yield item.batch
        finally:
            stop.set()
            hurry.set()
            room.release()
            thread.join()

    def _copy(
        self, ready: queue.SimpleQueue[Any], room: threading.Semaphore, stop: threading.Event, hurry: threading.Event,
        pause: Pause,
    ) -> None:  # fmt: skip
        side = torch.cuda.Stream(self._device)
        try:
            with torch.cuda.device(self._device), torch.cuda.stream(side):
                for batch in self._stream:
                    room.acquire()
                    hurry.wait(pause.seconds)
                    if stop.is_set():
                        return
                    copied = batch.pin_memory().to(self._device)
                    side.synchronize()
                    mark_arrived(copied.present)
                    ready.put(_Copied(copied, self._stream.state_dict()))
            ready.put(None)
        except BaseException as error:
            ready.put(error)


def tensors_of(part: Any) -> list[Tensor]:
    """Return every tensor of a batch or a part of one."""
    if isinstance(part, Tensor):
        return [part]
    if is_dataclass(part):
        return [t for f in fields(part) for t in tensors_of(getattr(part, f.name))]
    return []
