"""The scaling benchmark: the fit, the time model on a hand-made timeline, the jobs, and a run on CPU ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import bench_scaling, scaling_paper
from benchmarks.bench_scaling import Job, jobs, parser
from benchmarks.scaling_rank import communication_share
from benchmarks.scaling_time import FETCH, Link, between_nodes, fit, foretell, largest_of, on_paper
from trainers.communication import Event, Piece, Sharing, Walk

# Two frozen layers of 1,000 numbers in two bytes, forward then backward, each a millisecond.
PIECES = (Piece(1000, 2, False), Piece(1000, 2, False))
VISITS = ((True, 0), (True, 1), (False, 1), (False, 0))
WALK = Walk(PIECES, tuple(Event(b, f, m, False, (m,), (m,)) for f, m in VISITS for b in (True, False)))
GAPS_S = [0.0, 1e-3] * 4 + [0.0]
ALWAYS = {"all_gather": Link(0.0, 1e6), "reduce_scatter": Link(0.0, 1e6), "all_reduce": Link(0.0, 1e12)}


def sharing(prefetch: int) -> Sharing:
    return Sharing(2, persistence_threshold=0, prefetch_bucket=prefetch, max_reuse_distance=1000)


def test_a_fit_finds_the_latency_and_bandwidth_that_made_the_times() -> None:
    link = Link(20e-6, 200e9)
    sizes = (2**12, 2**20, 2**26, 2**30)
    found = fit([("all_gather", size, link.seconds("all_gather", size, 2)) for size in sizes], 2)
    assert found.latency_s == pytest.approx(20e-6) and found.bytes_s == pytest.approx(200e9)


def test_a_fit_never_finds_less_than_no_latency() -> None:
    found = fit([("all_gather", 1000, 0.5e-6), ("all_gather", 1100, 0.6e-6)], 2)
    assert found.latency_s == 0.0 and found.seconds("all_gather", 1050, 2) == pytest.approx(0.55e-6, rel=0.1)


def test_an_all_reduce_of_two_carries_its_bytes_once_and_a_gather_half_of_them() -> None:
    link = Link(0.0, 1e9)
    assert link.seconds("all_reduce", 1000, 2) == pytest.approx(1e-6)
    assert link.seconds("all_gather", 1000, 2) == pytest.approx(0.5e-6)
    assert link.seconds("all_gather", 1000, 1) == 0.0


def test_gathers_that_take_as_long_as_a_layer_hide_behind_the_layer_before() -> None:
    # 2,000 bytes, half of them on the wire, at 1 MB/s: a millisecond each. Only the first has nothing before it; the
    # second layer stays for its backward, which is next.
    told = foretell(WALK, GAPS_S, sharing(1000), ALWAYS)
    assert told.compute_s == pytest.approx(4e-3)
    assert told.step_s == pytest.approx(5e-3, rel=1e-3)


def units() -> tuple[Walk, list[float]]:
    """Return four units forward and back, a millisecond each, and the gaps of their events."""
    order = [(True, u) for u in range(4)] + [(False, u) for u in (2, 1, 0)]
    events = [Event(b, f, -1, False, (), (), u) for f, u in order for b in (True, False)]
    return Walk((), tuple(events)), [0.0, 1e-3] * len(order) + [0.0]


def test_fetches_of_frozen_units_hide_behind_the_unit_before() -> None:
    walked, gaps = units()
    fast, slow = ({**ALWAYS, FETCH: Link(0.0, rate)} for rate in (1e6, 0.5e6))
    sizes = (2000, 2000, 2000, 2000)  # half of it on the wire: a millisecond or two
    told = [foretell(walked, gaps, sharing(0), links, unit_bytes=sizes) for links in (fast, slow)]
    # Two forward and two backward: the others lie in the buffers. Those that take two milliseconds wait for one.
    assert told[0].step_s == pytest.approx(7e-3, rel=1e-3)
    assert told[1].step_s == pytest.approx(11e-3, rel=1e-3)
    alone = foretell(walked, gaps, sharing(0)._replace(world=1), slow, unit_bytes=sizes)
    assert alone.step_s == pytest.approx(7e-3)


def test_computation_is_slowed_by_the_fetches_beside_it() -> None:
    walked, gaps = units()
    links = {**ALWAYS, FETCH: Link(0.0, 1e6)}
    sizes = (2000, 2000, 2000, 2000)
    told = foretell(walked, gaps, sharing(0), links, unit_bytes=sizes, slowed=0.25)
    assert told.step_s == pytest.approx(7e-3 + 0.25 * 4e-3, rel=1e-3)  # four fetches a step


def test_one_gpu_waits_for_nothing() -> None:
    assert foretell(WALK, GAPS_S, sharing(0)._replace(world=1), ALWAYS).step_s == pytest.approx(4e-3)


def test_all_wait_for_the_rank_with_most_work() -> None:
    alone = sharing(0)._replace(world=1)
    assert foretell(WALK, GAPS_S, alone, ALWAYS, slowest=1.1).step_s == pytest.approx(4.4e-3)


def test_hierarchical_partitioning_keeps_the_gathers_inside_a_node_for_a_second_copy() -> None:
    plain, hpz, qwz = on_paper(WALK, GAPS_S, sharing(1000), ALWAYS, {}, 0.0, gpus=64)
    assert hpz.step_s < plain.step_s and qwz.step_s < plain.step_s
    assert hpz.base_gib - plain.base_gib == pytest.approx(4000 / 8 / 2**30)


def test_between_nodes_the_slower_of_cards_and_links_counts() -> None:
    assert between_nodes(Link(1e-5, 900e9), 16).bytes_s == pytest.approx(8 * 50e9 * 0.85)
    assert between_nodes(Link(1e-5, 200e9), 16) == Link(pytest.approx(2.2e-5), 200e9)
    assert between_nodes(Link(1e-5, 200e9), 8) == Link(1e-5, 200e9)


def test_the_larger_of_two_normal_numbers_lies_half_a_deviation_above_the_mean() -> None:
    assert largest_of(1) == 0.0
    assert largest_of(2) == pytest.approx(0.564, abs=0.03)


def test_counts_that_the_machine_lacks_are_skipped_with_a_row_that_says_so() -> None:
    asked = parser().parse_args(["--gpus", "1,2,8", "--llm", "small", "--ways", "ours-zero3,transformers-zero3"])
    found, missing = jobs(asked, available=2)
    assert [job[:3] for job in found] == [
        ("tiny", "ours-zero3", 1), ("tiny", "ours-zero3", 2), ("tiny", "transformers-zero3", 2)
    ]  # fmt: skip
    assert missing == [{"row": "scaling/8-gpus", "skipped": "8 GPUs asked for, this machine has 2"}]


def test_a_collective_counts_as_hidden_while_another_kernel_runs() -> None:
    def kernel(name: str, begin: float, end: float) -> dict[str, object]:
        return {"ph": "X", "cat": "kernel", "name": name, "ts": begin, "dur": end - begin}

    step = {"ph": "X", "cat": "user_annotation", "name": "ProfilerStep#1", "ts": 0.0, "dur": 100.0}
    found = communication_share([step, kernel("gemm", 0, 50), kernel("ncclDevKernel_AllGather", 40, 70)])
    assert found["collectives"] == pytest.approx(0.3)
    assert found["not_hidden"] == pytest.approx(0.2)
    assert found["idle"] == pytest.approx(0.3)


def test_copies_between_gpus_on_a_stream_of_their_own_count_as_collectives() -> None:
    def kernel(name: str, begin: float, end: float, stream: int, category: str = "kernel") -> dict[str, object]:
        return {"ph": "X", "cat": category, "name": name, "ts": begin, "dur": end - begin, "args": {"stream": stream}}

    step = {"ph": "X", "cat": "user_annotation", "name": "ProfilerStep#1", "ts": 0.0, "dur": 100.0}
    own = kernel("Memcpy DtoD (Device -> Device)", 50, 60, 7, "gpu_memcpy")  # beside kernels: computation
    fetched = kernel("Memcpy PtoP (Device -> Device)", 40, 70, 9, "gpu_memcpy")
    found = communication_share([step, kernel("gemm", 0, 50, 7), own, fetched])
    assert found["collectives"] == pytest.approx(0.3) and found["not_hidden"] == pytest.approx(0.1)
    assert found["compute_s"] == pytest.approx(60e-6)


def test_a_process_group_that_fails_gives_a_row_with_its_error() -> None:
    runner = bench_scaling.Runner(2, False, ["--data", "/nowhere"], timeout_s=60.0)
    (row,) = bench_scaling.rows_of(Job("tiny", "ours-zero3", 1), runner.one(Job("tiny", "ours-zero3", 1)), None)
    assert "/nowhere" in row["error"]


def test_a_page_without_the_rows_that_it_needs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"row": "scaling/8-gpus", "skipped": "no"}) + "\n")
    assert scaling_paper.write(rows, tmp_path / "page.md") == 1
    assert "run bench scaling" in capsys.readouterr().err


def test_the_page_names_the_card_of_each_row() -> None:
    assert scaling_paper.card("2 x NVIDIA H200") == "H200"
    assert scaling_paper.card("4 x NVIDIA H100 80GB HBM3") == "H100"
