"""Time training steps beside what else a user could run on the same card: ./launch.sh bench step-time --json."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from benchmarks import small_networks, unified
from benchmarks.llm import LR, Load, loss_gap, ours, shrink
from benchmarks.rows import Row, main

_16K = Load("13b", rows=4, micro_batches=2)


def llm_rows(tiny: bool, curve: int, lr: float = LR) -> list[Row]:
    """Return the rows of the language model; `curve` is how many steps those make whose losses are compared."""

    def row(name: str, run: Any, load: Load, **options: Any) -> Row:
        return Row(name, partial(run, shrink(load, tiny), **options), timeout_s=300.0)

    long = _16K._replace(lr=lr, steps=max(curve - _16K.warmup, 3))
    two = long._replace(rows=2, micro_batches=4)
    one = long._replace(rows=1, micro_batches=8)
    stock = {"liger": False, "checkpointing": True, "small_adapters": False}
    fast = {"liger": True, "checkpointing": False, "small_adapters": True}
    whole = _16K._replace(rows=8, micro_batches=1, steps=max(min(curve, 10) - _16K.warmup, 3))
    wide = _16K._replace(shape="13b-wide", micro_batches=1, warmup=2, steps=min(curve, 10))
    return [
        row("llm-13b/ours-zero3", ours, long),
        row("llm-13b/b-plain-torch-liger", _plain, long, **fast),
        # Two rows a micro-batch: of each projection autocast keeps a copy of what it reads.
        row("llm-13b/b-float32-adapters", _plain, two, **fast | {"small_adapters": False, "autocast": True}),
        # The same but for the rounding: what losses of two runs may differ by where nothing is wrong.
        row("llm-13b/b-one-row-float32-adapters", _plain, one, **fast | {"small_adapters": False, "autocast": True}),
        row("llm-13b/a-peft-zero3-as-shipped", _zero3, whole, **stock),
        row("llm-13b/a-peft-zero3-adapters-cast-to-bf16", _zero3, whole, **stock, zero_init=False),
        row("llm-13b/ours-plain-torch", ours, _16K, engine="local"),
        row(
            "llm-13b/c-zero3-liger-micro-batch-2",
            _zero3,
            _16K._replace(rows=2, micro_batches=4, steps=3),
            **fast,
            zero_init=False,
        ),
        row("llm-8b/ours-zero3", ours, Load("8b", rows=2, micro_batches=1, length=4096, steps=10)),
        row("llm-6-layers/float32", ours, wide, engine="local", dtype=torch.float32),
        row("llm-6-layers/ours-zero3", ours, wide),
        row("llm-6-layers/b-plain-torch-liger", _plain, wide, **fast),
        row("llm-6-layers/peft-float32-adapters", _plain, wide, **stock),
        row("llm-8b/plain-torch-liger", _plain, Load("8b", rows=2, micro_batches=1, length=4096, steps=10), **fast),
    ]


def _plain(load: Load, **options: Any) -> dict[str, Any]:
    from benchmarks.peers.llm import plain_loop

    return plain_loop(load, **options)


def _zero3(load: Load, **options: Any) -> dict[str, Any]:
    from benchmarks.peers.llm import zero3

    return zero3(load, **options)


def rows_of(part: str, tiny: bool, curve: int, lr: float = LR) -> list[Row]:
    """Return the rows of the language model, of the small networks, of the unified model or of all."""
    rows = llm_rows(tiny, curve, lr) if part in ("all", "llm") else []
    rows += small_networks.ROWS if part in ("all", "small") else []
    return rows + (unified.ROWS if part in ("all", "unified") else [])


def compare(results: Path) -> None:
    """Print how far apart the losses of any two 13 B rows are in a file of results, ours first, then the peers."""
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    compared = ("llm-13b/ours-zero3", "llm-13b/a-", "llm-13b/b-")
    names = sorted({r["row"] for r in rows if r["row"].startswith(compared) and "losses" in r}, key=_ours_first)
    for row, other in combinations(names, 2):
        print(json.dumps(loss_gap(rows, row, other)))


def _ours_first(name: str) -> tuple[bool, str]:
    return "ours" not in name, name


if __name__ == "__main__":
    options = argparse.ArgumentParser(add_help=False, parents=[small_networks.options(), unified.options()])
    options.add_argument("--part", choices=("all", "llm", "small", "unified"), default="all", help="whose rows (all)")
    options.add_argument("--tiny", action="store_true", help="a trial with a tiny language model")
    options.add_argument("--curve", type=int, default=50, help="steps of the rows whose losses are compared (50)")
    options.add_argument("--lr", type=float, default=LR, help=f"learning rate of those rows ({LR:g})")
    options.add_argument("--losses", help="compare the losses of this file of results instead of running anything")
    given, _ = options.parse_known_args()
    if given.losses:
        compare(Path(given.losses))
        sys.exit(0)
    sys.exit(main("benchmarks.bench_step_time", rows_of(given.part, given.tiny, given.curve, given.lr), options))
