"""Train in little memory, the largest model that one card trains, and graphs of many nodes (`--rows graph`, on a CPU).

./launch.sh bench memory --json
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

from benchmarks.graph_memory import graph_rows
from benchmarks.llm import Load, ours, shrink
from benchmarks.rows import Row, main

CARD_GIB = 76.0  # that tensors may take on a card of 80 GB, which has 79.2 GiB; whatever card the rows run on


def llm_rows(tiny: bool) -> list[Row]:
    """Return the rows of the language model."""

    def row(name: str, run: Any, load: Load, **options: Any) -> Row:
        return Row(name, partial(run, shrink(load, tiny), **options), timeout_s=300.0)

    two = Load("13b", rows=2, micro_batches=4, warmup=2, steps=3)
    one, four = two._replace(rows=1, micro_batches=8), two._replace(rows=4, micro_batches=2)
    large = Load("70b", rows=1, micro_batches=2, warmup=1, steps=2)
    return [
        row("llm-13b/ours-layer-4-rows", ours, four, recompute="layer"),
        row("llm-13b/ours-on-host-layer-4-rows", ours, four, recompute="layer", offload=True),
        row("llm-13b/ours-32-gib-2-rows", ours, two, within_gib=32.0),
        row("llm-13b/ours-32-gib-1-row", ours, one, within_gib=32.0),
        row("llm-13b/ours-nf4-14-gib-2-rows", ours, two, within_gib=14.0, quantise="nf4"),
        row("llm-13b/ours-nf4-14-gib-1-row", ours, one, within_gib=14.0, quantise="nf4"),
        row("llm-13b/ours-nf4-14-gib-4-rows", ours, four, within_gib=14.0, quantise="nf4"),
        row("llm-13b/ours-int8-20-gib-2-rows", ours, two, within_gib=20.0, quantise="int8"),
        row("llm-34b/ours", ours, large._replace(shape="34b"), within_gib=CARD_GIB),
        row("llm-70b/ours-nf4", ours, large, within_gib=CARD_GIB, quantise="nf4"),
        row("llm-120b/ours-nf4", ours, large._replace(shape="120b"), within_gib=CARD_GIB, quantise="nf4"),
    ]


if __name__ == "__main__":
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--tiny", action="store_true", help="a trial with a tiny language model")
    given, _ = options.parse_known_args()
    sys.exit(main("benchmarks.bench_memory", [*llm_rows(given.tiny), *graph_rows()], options))
