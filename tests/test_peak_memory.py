"""Peak memory of a process tree, measured in a fresh process: this one holds and frees what other tests left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MEASURE = """
import subprocess, sys, time
from trainers.peak_memory import PeakMemory
with PeakMemory(every_s=0.02) as before:
    pass
with PeakMemory(every_s=0.02) as peak:
    {work}
print(peak.gib - before.gib)
"""
HOLD = "b = bytearray(b'x') * 2**28; time.sleep(0.5)"  # 0.25 GiB, touched


def growth_gib(work: str, repository: Path) -> float:
    run = subprocess.run(
        [sys.executable, "-c", MEASURE.format(work=work)], cwd=repository, capture_output=True, text=True, check=True
    )
    return float(run.stdout)


def test_a_quarter_of_a_gib_that_was_held_and_freed_shows_in_the_peak(repository: Path) -> None:
    assert 0.2 < growth_gib(f"{HOLD}; del b; time.sleep(0.1)", repository) < 0.4


def test_memory_of_a_child_process_counts(repository: Path) -> None:
    work = f'subprocess.run([sys.executable, "-c", "import time; {HOLD}"], check=True)'
    assert 0.2 < growth_gib(work, repository) < 0.4
