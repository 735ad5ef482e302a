"""Turn lines of `bench generation --json` into tables: mean and spread over the seeds, a table a data set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import InputError

COLUMNS = (
    "edge_precision", "atp_feasible", "scope_coverage", "edge_f1", "mmd_degree",
    "mmd_clustering", "mmd_orbit", "mmd_ratio_in_degree", "mmd_ratio_out_degree", "mmd_ratio_degree",
    "mmd_ratio_clustering", "mmd_ratio_spectrum", "mmd_ratio_connected", "mmd_ratio_orbit", "mmd_ratio_labels",
    "mmd_ratio_label_pairs", "acyclic", "valid_unique_novel", "unique", "novel", "edge_ece", "bound_nats",
    "train_seconds", "sample_seconds_1000",
)  # fmt: skip
ONLY_RATIOS = ("mmd_clustering",)  # shown where the kernels are those of published tables: of undirected sets


def read(path: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a results file that are rows of this benchmark.

    Raises:
        InputError: The file cannot be read, or holds no such line.
    """
    try:
        lines = [json.loads(line) for line in Path(path).read_text().splitlines() if line.startswith("{")]
    except (OSError, ValueError) as error:
        raise InputError(f"table={path}: not a file of JSON lines ({error}); give what --json printed") from error
    found = [line for line in lines if line.get("benchmark") == "generation" and "error" not in line]
    if not found:
        raise InputError(f"table={path}: no row of bench generation; give what --json printed")
    return found


def tables(lines: Sequence[dict[str, Any]]) -> str:
    """Return Markdown: a table a set, budget and device; each cell is the mean over seeds, and their deviation."""
    texts = []
    for key in dict.fromkeys(map(_conditions, lines)):
        data = key[0]
        rows: dict[str, list[dict[str, Any]]] = {}
        for line in lines:
            if _conditions(line) == key:
                rows.setdefault(line["model"], []).append(line)
        first = next(iter(rows.values()))[0]
        columns = [c for c in COLUMNS if any(_numbers(seeds, c) for seeds in rows.values())]
        if "mmd_orbit" not in first:
            columns = [c for c in columns if c not in ONLY_RATIOS]
        text = [f"**{data}**, {first['budget_seconds']:g} s of training on {first['hardware']} ({first['device']})", ""]
        text += [
            "| model | " + " | ".join(c.replace("_", " ") for c in columns) + " |",
            "|---" * (len(columns) + 1) + "|",
        ]
        text += [
            f"| {m} | " + " | ".join(_cell(_numbers(seeds, c)) for c in columns) + " |" for m, seeds in rows.items()
        ]
        texts.append("\n".join(text))
    return "\n\n".join(texts)


def _conditions(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["data"], line["budget_seconds"], line["device"], line["hardware"]


def _numbers(seeds: Sequence[dict[str, Any]], column: str) -> list[float]:
    return [line[column] for line in seeds if line.get(column) is not None]


def _cell(numbers: Sequence[float]) -> str:
    if not numbers:
        return ""
    spread = f" ± {np.std(numbers, ddof=1):.2g}" if len(numbers) > 1 else ""
    return f"{np.mean(numbers):.3g}{spread}"
