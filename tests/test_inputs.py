"""Batches on their way to the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from rank_job import STEPS, batches

from data_pipeline.batch import Batch
from models.aside import arrived
from trainers.inputs import OnDevice, Pause, tensors_of


class Counting:
    """A stream that knows how many batches it gave out."""

    def __init__(self) -> None:
        self.given = 0

    def __iter__(self) -> Iterator[Batch]:
        for batch in batches(0, 1):
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.given}


def test_on_a_cpu_the_batches_and_the_place_are_those_of_the_stream() -> None:
    inputs = OnDevice(Counting(), torch.device("cpu"))
    places = [inputs.state_dict()["step"] for _ in inputs]
    assert places == list(range(1, STEPS + 1))


def test_every_tensor_of_a_batch_is_found() -> None:
    batch = next(batches(0, 1))
    found = {id(t) for t in tensors_of(batch)}
    for part in (batch, batch.graph, batch.spectrum, batch.text):
        held = [value for value in vars(part).values() if isinstance(value, torch.Tensor)]
        assert held and {id(t) for t in held} <= found


def test_the_next_batch_is_begun_in_the_middle_of_a_step_and_at_once_when_one_came_late() -> None:
    pause = Pause()
    found = []
    for now, waited in ((10.0, True), (12.0, False), (15.0, False), (19.0, True), (20.0, False)):
        pause.take(now, waited)
        found.append(pause.seconds)
    assert found == [0.0, 1.0, 1.5, 0.0, 0.5]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="copies to a GPU")
def test_on_a_gpu_the_batches_and_the_place_are_those_of_the_stream() -> None:
    inputs = OnDevice(Counting(), torch.device("cuda"))
    given = list(batches(0, 1))
    for batch, wanted in zip(inputs, given, strict=True):
        assert batch.planet.is_cuda and torch.equal(batch.planet.cpu(), wanted.planet)
        assert arrived(batch.present)
    assert inputs.state_dict() == {"step": STEPS}
