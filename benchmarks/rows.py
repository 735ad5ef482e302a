"""Run the rows of a benchmark, each in a process of its own, and print one JSON object a row."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

LIBRARIES = ("torch", "deepspeed", "transformers", "peft", "triton", "liger-kernel", "torch-geometric", "accelerate")
_RESULT = "ROW_RESULT "


class Row(NamedTuple):
    """One measurement; `run` is called in a fresh process and returns what was measured, with units in the names."""

    name: str
    run: Callable[[], dict[str, Any]]
    timeout_s: float = 240.0


def main(module: str, rows: Sequence[Row], options: argparse.ArgumentParser | None = None) -> int:
    """Run the rows that the command line asks for; return the exit status (1 if a row failed).

    Args:
        module: Name to start a row's process with, such as benchmarks.bench_step_time.
        rows: In the order to run.
        options: Parser with further options; they are passed on to each row's process.
    """
    arguments = _parser(options).parse_args()
    if arguments.row:
        print(_RESULT + json.dumps(next(r for r in rows if r.name == arguments.row).run()), flush=True)
        return 0
    wanted = [w for w in arguments.rows.split(",") if w]
    passed_on = [a for a in sys.argv[1:] if a != "--json"]
    rows = [row._replace(timeout_s=min(row.timeout_s, arguments.timeout_s or row.timeout_s)) for row in rows]
    failed = 0
    for row in rows:
        if wanted and not any(w in row.name for w in wanted):
            continue
        result = run_row(module, row, passed_on)
        failed += "error" in result
        if arguments.json:
            facts = {"command": command(module, row.name, passed_on), **hardware()}
            print(json.dumps({"row": row.name, **result, **facts, "versions": versions()}), flush=True)
        else:
            print(f"{row.name:44} " + "  ".join(f"{k}={_short(v)}" for k, v in result.items()), flush=True)
    return int(failed > 0)


def run_row(module: str, row: Row, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Run one row in a process of its own; what goes wrong there comes back under `error`.

    A row that ran out of time leaves the end of what it had said by then, such as the losses of its steps.
    """
    start = time.monotonic()
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "LOCAL_SIZE": "0", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments, "--row", row.name],
            cwd=Path(__file__).resolve().parent.parent,
            env=environment,
            capture_output=True,
            text=True,
            timeout=row.timeout_s,
        )
    except subprocess.TimeoutExpired as late:
        said = (late.stderr or b"").decode(errors="replace")
        return {"error": f"no result within {row.timeout_s:.0f} s", "said": said.strip().splitlines()[-60:]}
    wall = {"process_wall_s": round(time.monotonic() - start, 1)}
    for line in done.stdout.splitlines():
        if line.startswith(_RESULT):
            return {**json.loads(line.removeprefix(_RESULT)), **wall}
    return {"error": " | ".join((done.stderr or done.stdout).strip().splitlines()[-12:])[-1500:], **wall}


def command(module: str, name: str, arguments: Sequence[str]) -> str:
    """Return how to run one row again: with the options that were given, paths as DIR."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and not argument.startswith("--rows"):
            kept.append("DIR" if "/" in argument else argument)
        skip = argument == "--rows"
    return " ".join(["./launch.sh bench", _word(module), "--json", *kept, "--rows", name])


def hardware() -> dict[str, Any]:
    """Return what the rows ran on."""
    import torch

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        return {"hardware": f"{torch.cuda.device_count()} x {name}", "day": time.strftime("%Y-%m-%d")}
    return {"hardware": f"{os.cpu_count()} cores, {platform.machine()}", "day": time.strftime("%Y-%m-%d")}


def versions() -> dict[str, str]:
    """Return the versions of the libraries that are installed."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _parser(options: argparse.ArgumentParser | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(parents=[options] if options else [], description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--rows", default="", help="only rows whose name contains one of these, separated by commas")
    parser.add_argument("--timeout-s", type=float, default=0.0, help="end each row after so many seconds at the latest")
    parser.add_argument("--row", default="", help=argparse.SUPPRESS)
    return parser


def _word(module: str) -> str:
    return module.rsplit(".", 1)[-1].removeprefix("bench_").replace("_", "-")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
