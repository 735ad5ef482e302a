"""Peak memory of a process tree."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from trainers.peak_memory import PeakMemory


def test_a_quarter_of_a_gib_that_was_held_and_freed_shows_in_the_peak() -> None:
    with PeakMemory(every_s=0.02) as before:
        pass
    with PeakMemory(every_s=0.02) as peak:
        block = np.ones(2**25)  # 0.25 GiB, touched
        with PeakMemory(every_s=0.02):
            del block
    assert 0.2 < peak.gib - before.gib < 0.4


def test_memory_of_a_child_process_counts() -> None:
    with PeakMemory(every_s=0.02) as before:
        pass
    with PeakMemory(every_s=0.02) as peak:
        subprocess.run([sys.executable, "-c", "import time; b = bytearray(b'x') * 2**28; time.sleep(0.3)"], check=True)
    assert 0.2 < peak.gib - before.gib < 0.4
