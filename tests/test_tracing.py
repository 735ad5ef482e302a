"""Profiles: where the trace lies, and shares and utilisation by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from trainers import tracing
from trainers.engine import StepReport


def event(name: str, cat: str, begin: float, duration: float) -> dict[str, object]:
    return {"ph": "X", "name": name, "cat": cat, "ts": begin, "dur": duration}


def test_shares_count_overlapping_kernels_once_and_nothing_outside_the_steps() -> None:
    events = [
        event("ProfilerStep#7", "user_annotation", 100.0, 50.0),
        event("ProfilerStep#8", "user_annotation", 150.0, 50.0),
        event("gemm", "kernel", 110.0, 20.0),
        event("copy", "gpu_memcpy", 120.0, 20.0),  # 110 to 140 together
        event("gemm", "kernel", 190.0, 30.0),  # 190 to 200 is inside
        event(tracing.WAIT_FOR_DATA, "user_annotation", 150.0, 5.0),
        event("ProfilerStep#7", "gpu_user_annotation", 0.0, 500.0),
        {"ph": "M", "name": "process_name"},
    ]
    found = tracing.shares(events)
    assert found == tracing.Shares(steps=2, step_s=50e-6, gpu_busy=0.4, data_wait=0.05)


def test_idle_time_of_the_gpu_is_laid_to_the_shortest_call_of_the_host() -> None:
    events = [
        event("ProfilerStep#7", "user_annotation", 0.0, 1000.0),
        event("ProfilerStep#8", "user_annotation", 1000.0, 1000.0),
        event("gemm", "kernel", 0.0, 400.0),
        event("aten::item", "cpu_op", 350.0, 400.0),
        event("cudaStreamSynchronize", "cuda_runtime", 360.0, 380.0),
        event("gemm", "kernel", 700.0, 500.0),  # 400 to 700 waits
        event("gemm", "kernel", 1210.0, 590.0),  # 10 us between kernels are none; nothing runs from 1800 to 2000
    ]
    assert tracing.idle_ms(events) == {"cudaStreamSynchronize": 0.15, "Python": 0.1}


def test_a_frozen_weight_costs_four_operations_a_token_and_a_trained_one_six() -> None:
    line = tracing.utilisation(1000.0, frozen=98_000_000_000, trained=500_000_000, device="NVIDIA H100 80GB HBM3")
    # 1000 x (392e9 + 3e9) = 395e12 of 989e12
    assert line.startswith("MFU 39.9% = 1,000 tokens/s x (4 x 98,000,000,000 frozen + 6 x 500,000,000 trained)")


def test_without_a_known_peak_or_without_tokens_no_utilisation_is_claimed() -> None:
    assert "no MFU: the peak of CPU" in tracing.utilisation(1.0, 1, 1, "CPU")
    assert tracing.utilisation(0.0, 1, 1, "CPU").startswith("MFU: no tokens")


def test_a_part_without_a_language_model_has_no_weights_that_tokens_pass() -> None:
    assert tracing.language_parameters(nn.Linear(2, 2)) == (0, 0)


def test_a_token_table_counts_only_where_it_is_the_head_too() -> None:
    objective = nn.Module()
    objective.language = nn.ModuleDict({"embedding": nn.Embedding(10, 4), "head": nn.Linear(4, 10, bias=False)})
    objective.language["head"].requires_grad_(False)
    assert tracing.language_parameters(objective) == (40, 0)
    objective.language["head"].weight = objective.language["embedding"].weight
    assert tracing.language_parameters(objective) == (0, 40)


def test_the_trace_lies_where_tensorboard_looks_and_the_shares_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tracing.Tracer(tmp_path, nn.Linear(2, 2)) as tracer:
        for step in range(tracing.SKIPPED + tracing.WARM_UP + tracing.RECORDED):
            with tracing.waiting_for_data():
                pass
            torch.ones(64, 64) @ torch.ones(64, 64)
            tracer.step(StepReport(step + 1, 0.0, {}, {}, 1, lambda: {"grad_norm": 0.0, "tokens": 0}), 0.01)
    assert len(list((tmp_path / "tensorboard" / "plugins" / "profile").glob("*/rank0.pt.trace.json"))) == 1
    said = capsys.readouterr().err
    assert "steps 8 to 10" in said and "waiting for data" in said and "MFU: no tokens" in said


def test_a_run_too_short_to_record_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with tracing.Tracer(tmp_path, nn.Linear(2, 2)) as tracer:
        tracer.step(StepReport(1, 0.0, {}, {}, 1, lambda: {"grad_norm": 0.0, "tokens": 0}), 0.01)
    assert "no trace: it takes 10 steps" in capsys.readouterr().err
