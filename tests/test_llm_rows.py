"""The rows of the language model: sizes by hand, equal weights and words for every peer, rows that fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import llm, rows
from benchmarks.bench_memory import llm_rows as memory_rows
from benchmarks.bench_step_time import llm_rows
from benchmarks.llm import SHAPES, Load, fill, fused_decoder, loss_gap, measure, parameters_of, shrink, words


def test_the_thirteen_billion_are_thirteen_billion() -> None:
    layer = 4 * 5120 * 5120 + 3 * 5120 * 13824  # q, k, v, o; gate, up, down
    small = 16 * (4 * (5120 + 5120) + 3 * (5120 + 13824))
    assert parameters_of(SHAPES["13b"]) == 40 * (layer + small + 2 * 5120) + 2 * 32000 * 5120 + 5120 == 13_078_451_200


def test_our_decoder_has_the_parameters_that_are_counted() -> None:
    decoder = fused_decoder(SHAPES["tiny"])
    assert sum(p.numel() for p in decoder.parameters()) == parameters_of(SHAPES["tiny"])


def test_a_weight_is_the_same_in_one_piece_and_inside_a_fused_one() -> None:
    alone = torch.empty(128, 256, dtype=torch.bfloat16)
    fill("model.layers.1.self_attn.k_proj", alone)
    layer = fused_decoder(SHAPES["tiny"]).layers[1]
    assert torch.equal(layer.qkv[256 : 256 + 128], alone)  # after the 4 x 64 rows of q
    a = torch.empty(16, 256)
    fill("model.layers.1.self_attn.k_proj.lora_A", a)
    slot = layer.slots[0][1]
    assert slot.projection == "k_proj" and torch.equal(layer.adapter[:, slot.a], a)
    assert layer.adapter[:, slot.b].abs().sum() == 0


def test_a_step_has_the_same_words_whatever_its_micro_batches() -> None:
    whole = words(Load("tiny", rows=4, micro_batches=1, length=32), 3, 0)
    halves = [words(Load("tiny", rows=2, micro_batches=2, length=32), 3, m) for m in (0, 1)]
    assert torch.equal(whole, torch.cat(halves)) and whole.shape == (4, 32)


def test_tokens_a_second_come_from_the_median_step_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 9.0, 10.0, 12.0, 20.0, 21.0, 30.0, 34.0])  # steps of 9 (warm-up), 2, 1 and 4 seconds
    monkeypatch.setattr(llm.time, "perf_counter", lambda: next(clock))
    load = Load("tiny", rows=1, micro_batches=1, length=10, warmup=1, steps=3)
    result = measure(load, lambda i: float(i), 0.0)
    assert result["step_s"] == 2.0 and result["tokens_per_s"] == 5.0 and result["losses"] == [0, 1, 2, 3]


def test_a_loss_that_is_not_finite_ends_the_row() -> None:
    with pytest.raises(ArithmeticError, match="step 1: loss nan"):
        measure(Load("tiny", 1, 1), lambda i: float("nan") if i else 1.0, 0.0)


def test_a_trial_keeps_rows_and_steps_and_shrinks_the_model() -> None:
    load = shrink(Load("13b", rows=4, micro_batches=2), tiny=True)
    assert (load.shape, load.rows, load.tokens) == ("tiny", 4, 4 * 2 * 64)


def test_a_row_that_crashes_or_hangs_says_so_and_the_others_go_on() -> None:
    names = [row.name for row in llm_rows(True, 3)]
    assert len(names) == len(set(names))
    crashed = rows.run_row("benchmarks.bench_step_time", rows.Row("no-such-row", dict), ["--part", "llm"])
    assert "StopIteration" in crashed["error"]
    late = rows.run_row("benchmarks.bench_step_time", rows.Row(names[0], dict, timeout_s=0.05), ["--part", "llm"])
    assert "no result within" in late["error"] and late["said"] == []


def test_a_row_says_with_which_options_it_ran_but_not_where_the_data_lie() -> None:
    given = ["--part", "llm", "--data", "/some/where", "--rows", "a,b", "--curve", "9", "--rows=c"]
    told = rows.command("benchmarks.bench_step_time", "llm-13b/ours", given)
    assert told == "./launch.sh bench step-time --json --part llm --data DIR --curve 9 --rows llm-13b/ours"


def test_a_row_that_runs_out_of_time_leaves_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow.py").write_text("import sys, time\nprint('step 0 loss 1.0', file=sys.stderr)\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    late = rows.run_row("slow", rows.Row("any", dict, timeout_s=5.0))
    assert late == {"error": "no result within 5 s", "said": ["step 0 loss 1.0"]}


def test_a_quantised_decoder_starts_from_the_same_weights() -> None:
    plain, quantised = (fused_decoder(SHAPES["tiny"], quantise=kind) for kind in ("none", "int8"))
    for mine, theirs in zip(quantised.layers, plain.layers, strict=True):
        for a, b in zip(mine.weights(), theirs.weights(), strict=True):
            assert (a - b).abs().max() < 0.02 * 5 / 127  # half a step of 1/127 of a block's largest, below 5 sigma
        assert torch.equal(mine.adapter, theirs.adapter)


def test_no_row_is_started_by_the_name_of_another() -> None:
    for names in ([r.name for r in llm_rows(True, 3)], [r.name for r in memory_rows(True)]):
        assert all(a not in b for a in names for b in names if a != b)


def test_the_largest_gap_between_two_losses_is_found_with_its_step() -> None:
    table = [
        {"row": "a", "losses": [9.0]},
        {"row": "b", "losses": [2.0, 4.0, 5.0]},
        {"row": "a", "losses": [2, 3.9, 5]},
    ]
    gap = loss_gap(table, "a", "b")
    assert (gap["largest_loss_gap"], gap["after_steps"], gap["losses_there"]) == (0.025, 1, [3.9, 4.0])
    assert gap["steps_above_1e-2"] == [1] and gap["mean_loss_gap"] == pytest.approx(0.025 / 3, rel=0.01)


def test_losses_on_other_words_are_not_compared() -> None:
    table = [{"row": "a", "losses": [1.0], "words_crc32": 1}, {"row": "b", "losses": [1.0], "words_crc32": 2}]
    with pytest.raises(ValueError, match="words_crc32"):
        loss_gap(table, "a", "b")
