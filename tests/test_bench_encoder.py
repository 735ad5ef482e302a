"""The forms of the encoder that bench encoder compares."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pytest
import torch

from benchmarks import bench_encoder as bench


def test_every_form_reads_less_or_as_much_and_is_judged_on_networks_of_its_own(dataset: Path) -> None:
    train, test = (bench.networks(dataset, split, torch.device("cpu")) for split in ("train", "test"))
    for form, shown in bench.FORMS.items():
        seen = shown(train)
        assert (seen.adjacency & ~(train.adjacency | train.adjacency.transpose(1, 2))).sum() == 0, form
    assert not bench.FORMS["metabolites_alone"](train).adjacency.any()
    keys = [{tuple(a.flatten().tolist()) for a in part.adjacency} for part in (train, test)]
    assert len(keys[0]) == len(train.mask)  # one of each


@pytest.mark.parametrize("form", ["ours", "one_layer"])
def test_a_row_holds_what_was_measured(form: str, dataset: Path) -> None:
    given = argparse.Namespace(data=dataset, steps=2, device="cpu")
    found = bench.measure(form, 0, given)
    assert found["form"] == form and math.isfinite(found["test_nats"]) and found["nats_of_frequencies"] > 0
