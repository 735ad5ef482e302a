"""Measure how fast data sets are built and how much memory that takes, for several numbers of planets.

`./launch.sh bench build --json [--planets 1000,10000,50000] [--workers W]`: one line a number. The data sets (about
0.45 MB a planet) are written to a temporary folder (--folder) and removed; the cache is empty at the start of each row.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, main
from trainers.peak_memory import PeakMemory


def options() -> argparse.ArgumentParser:
    """Return the options beside those of every benchmark."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--planets", default="1000,10000", metavar="N,N", help="how many planets, a row each")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", default=None, metavar="DIR", help="where to write; a temporary folder by default")
    return parser


def build(planets: int, workers: int, folder: str | None) -> dict[str, Any]:
    """Build one data set with an empty cache; return the planets a second and the peak memory of all processes."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        environment = os.environ | {"EXOBIOME_CACHE": str(Path(place) / "cache")}
        command = [sys.executable, "-m", "data_pipeline.build", "--planets", str(planets), "--workers", str(workers)]
        started = time.monotonic()
        with PeakMemory() as memory:
            done = subprocess.run([*command, "--out", str(Path(place) / "data")], env=environment, capture_output=True)
        if done.returncode:
            raise SystemExit(done.stderr.decode().strip().splitlines()[-1])
        seconds = time.monotonic() - started
        stored = sum(file.stat().st_size for file in (Path(place) / "data").rglob("*.parquet"))
    return {
        "benchmark": "build",
        "planets": planets,
        "workers": workers,
        "planets_per_s": round(planets / seconds, 1),
        "peak_gib_all_processes": round(memory.gib, 2),
        "stored_gib": round(stored / 2**30, 2),
    }


def rows(given: argparse.Namespace) -> list[Row]:
    """Return a row for each number of planets."""
    return [
        Row(f"build-{n}", lambda n=n: build(n, given.workers, given.folder), timeout_s=60 + n / 5)  # type: ignore[misc]
        for n in map(int, given.planets.split(","))
    ]


if __name__ == "__main__":
    sys.exit(main("benchmarks.bench_build", rows(options().parse_known_args()[0]), options()))
