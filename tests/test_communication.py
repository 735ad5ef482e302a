"""Collectives of a step: a hand-counted network, and counters against the model on two ranks, to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from start_ranks import start_ranks
from torch import Tensor, nn

from trainers import communication as c, ds_config

JOB = Path(__file__).with_name("communication_job.py")


class Root(nn.Module):
    """Two frozen matrices of 12 and 20 numbers around a trained vector of 3."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3, bias=False).requires_grad_(False)
        self.scale = Scale()
        self.last = nn.Linear(3, 7, bias=False).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.scale(self.first(x.requires_grad_()))).sum()
        return out


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def walked() -> c.Walk:
    root = Root()
    return c.walk(root, [], lambda: root(torch.ones(2, 4)).backward())


def test_a_walk_meets_modules_forward_and_then_backward_in_reverse() -> None:
    begins = [(e.forward, e.own) for e in walked().events if e.begins and e.own]
    assert begins == [(True, (0,)), (True, (1,)), (True, (2,)), (False, (2,)), (False, (1,)), (False, (0,))]


def test_each_parameter_is_gathered_for_forward_and_backward_padded_to_the_ranks() -> None:
    sharing = c.Sharing(2, persistence_threshold=0, prefetch_bucket=0, max_reuse_distance=0)
    # 12, 3 -> 4 and 21 -> 22 numbers of four bytes, twice; the gradient of the vector once.
    assert c.of_step(walked(), sharing) == {
        "all_gather": 2 * 4 * (12 + 4 + 22), "all_reduce": 8, "reduce_scatter": 4 * 4
    }  # fmt: skip


def test_accumulation_gathers_and_reduces_for_every_micro_batch() -> None:
    sharing = c.Sharing(2, persistence_threshold=0, prefetch_bucket=0, max_reuse_distance=0)
    once, thrice = (c.of_step(walked(), sharing, accumulation) for accumulation in (1, 3))
    assert thrice["all_gather"] == 3 * once["all_gather"] and thrice["reduce_scatter"] == 3 * once["reduce_scatter"]
    assert thrice["all_reduce"] == once["all_reduce"]


def test_what_stays_whole_is_gathered_once_after_the_update() -> None:
    sharing = c.Sharing(2, persistence_threshold=12, prefetch_bucket=0, max_reuse_distance=0)
    assert c.of_step(walked(), sharing)["all_gather"] == 4 * (12 + 4) + 2 * 4 * 22


def test_what_is_used_again_soon_is_not_gathered_again() -> None:
    sharing = c.Sharing(2, persistence_threshold=0, prefetch_bucket=0, max_reuse_distance=1000)
    assert c.of_step(walked(), sharing)["all_gather"] == 4 * (12 + 4 + 22)


def test_one_rank_gathers_nothing() -> None:
    assert "all_gather" not in c.of_step(walked(), c.Sharing(1))


def test_prefetching_gathers_earlier_and_keeps_what_the_backward_pass_is_to_read_next() -> None:
    late, early = (c.of_micro_batch(walked(), c.Sharing(2, 0, bucket, max_reuse_distance=0)) for bucket in (0, 1))
    first = [next(t.at for t in transfers if 2 in t.parameters) for transfers in (late, early)]
    assert first[1] < first[0]
    assert [sum(2 in t.parameters for t in transfers) for transfers in (late, early)] == [2, 1]


def test_zero2_reduces_all_that_is_trained_and_gathers_it_padded_to_twice_the_ranks() -> None:
    groups = [[c.Piece(5, 4, True), c.Piece(4, 4, True)], [c.Piece(3, 4, True)]]
    assert c.of_zero2_step(groups, world=2) == {"all_gather": 4 * (12 + 4), "all_reduce": 4 * 12 + 2 * 4}
    assert "all_gather" not in c.of_zero2_step(groups, world=1)


def run(way: str, folder: Path, **zero: Any) -> dict[str, Any]:
    if zero:
        table = json.loads((ds_config.FOLDER / "zero3_cpu.json").read_text())
        table["zero_optimization"] |= zero
        (folder / "zero3.json").write_text(json.dumps(table))
    start_ranks(JOB, [way, str(folder)], 2, folder / "result.json")
    return dict(json.loads((folder / "result.json").read_text()))


SETTINGS = {
    "all-persistent-but-the-large": {"stage3_param_persistence_threshold": 2_000_000},
    "prefetched-and-few-live": {
        "stage3_param_persistence_threshold": 500, "stage3_prefetch_bucket_size": 20_000,
        "stage3_max_reuse_distance": 8_000, "stage3_max_live_parameters": 60_000, "reduce_bucket_size": 20_000,
    },
    "one-by-one": {
        "stage3_param_persistence_threshold": 100_000, "stage3_prefetch_bucket_size": 1,
        "stage3_max_reuse_distance": 5_000_000, "stage3_max_live_parameters": 12_000_000,
        "stage3_allgather_sequential": True,
    },
}  # fmt: skip


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("name", "frozen_weights"),
    [*((name, "auto") for name in SETTINGS), ("prefetched-and-few-live", "deepspeed"), ("one-by-one", "deepspeed")],
)
def test_counters_of_two_zero3_ranks_equal_the_model_to_the_byte(
    name: str, frozen_weights: str, tmp_path: Path
) -> None:
    found = run(frozen_weights, tmp_path, **SETTINGS[name])
    assert found["counted"] == found["model"]
    assert found["in_order"]  # every gather at its place
    assert found["fetched"] == ({} if frozen_weights == "deepspeed" else {"all_gather": found["fetched_model"]})
    assert found["persistent"] > 0
    own = found["own_model"]
    assert found["own"] == {
        "all_gather": own["contrast"]["all_gather"] + own["exemplars"]["all_gather"],
        "all_reduce": own["contrast"]["all_reduce"] + own["metrics"]["all_reduce"],
    }


@pytest.mark.ranks
def test_counters_of_two_zero2_ranks_equal_the_model_to_the_byte(tmp_path: Path) -> None:
    found = run("zero2", tmp_path)
    assert found["counted"] == found["model"]
    assert set(found["calls"]) == {"all_gather", "all_reduce"}
