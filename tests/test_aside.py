"""What the host asks of a batch, beside what is queued."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from models.aside import _tensors, arrived, aside, mark_arrived


@dataclass(frozen=True)
class Pair:
    left: Tensor
    both: tuple[Tensor, int]


def test_only_the_tensor_itself_is_marked() -> None:
    tensor = torch.zeros(2)
    assert not arrived(tensor)
    mark_arrived(tensor)
    assert arrived(tensor) and not arrived(tensor[:1]) and not arrived(tensor.clone())


def test_tensors_are_found_in_dataclasses_and_tuples() -> None:
    a, b, c = (torch.zeros(1) for _ in range(3))
    assert {id(t) for t in _tensors([a, Pair(b, (c, 3)), None])} == {id(a), id(b), id(c)}


def test_on_a_cpu_nothing_happens() -> None:
    with aside(False, torch.device("cpu")) as used:
        used.append(torch.ones(2).sum())
    assert float(used[0]) == 2.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams of a GPU")
@pytest.mark.parametrize("is_here", [True, False])
def test_numbers_of_a_batch_that_is_there_come_before_what_is_queued(is_here: bool) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    batch = torch.arange(1000, device=device)
    with aside(True, device) as used:  # the stream is made and the kernels are loaded here, for which the host waits
        used.append((batch % 2 == 0).nonzero().flatten())
    torch.cuda.synchronize()
    done = torch.cuda.Event()
    torch.cuda._sleep(2_000_000_000)  # about a second
    done.record()
    with aside(is_here, device) as used:
        chosen = (batch % 2 == 0).nonzero().flatten()
        assert len(chosen) == 500 and done.query() is not is_here
        used.append(chosen)
    assert int(batch[chosen].sum()) == 249_500 and done.query()
