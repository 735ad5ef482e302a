"""Train in little memory, and the largest model that one card trains: ./launch.sh bench memory --json."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

from benchmarks.llm import Load, ours, shrink
from benchmarks.rows import Row, main


def llm_rows(tiny: bool) -> list[Row]:
    """Return the rows of the language model."""

    def row(name: str, run: Any, load: Load, **options: Any) -> Row:
        return Row(name, partial(run, shrink(load, tiny), **options), timeout_s=300.0)

    least = Load("13b", rows=1, micro_batches=8, warmup=2, steps=3)
    return [
        row("llm-13b/ours-recompute-layer", ours, least, recompute="layer"),
        row("llm-13b/ours-recompute-layer-offload", ours, least, recompute="layer", offload=True),
        row("llm-13b/ours-recompute-layer-4-rows", ours, least._replace(rows=4, micro_batches=2), recompute="layer"),
        row("llm-34b/ours-recompute-layer", ours, least._replace(shape="34b", micro_batches=2), recompute="layer"),
    ]


if __name__ == "__main__":
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--tiny", action="store_true", help="a trial with a tiny language model")
    given, _ = options.parse_known_args()
    sys.exit(main("benchmarks.bench_memory", llm_rows(given.tiny), options))
