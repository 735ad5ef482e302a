"""Measure the peak memory of this process together with everything that it starts."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from types import TracebackType

import psutil

GIB = 2**30
_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


def memory_bytes(process: psutil.Process) -> int:
    """Return the proportional set size, in which a page that n processes share counts 1/n; the resident size elsewhere.

    Source:
        /proc/PID/smaps_rollup (Linux 4.14), which includes shared memory and leaves out the page cache.
    """
    try:
        match = _PSS.search(Path(f"/proc/{process.pid}/smaps_rollup").read_text())
    except OSError:
        match = None
    return int(match[1]) * 1024 if match else process.memory_info().rss


def tree_bytes(root: psutil.Process) -> int:
    """Return the memory of a process and its descendants; one that ends meanwhile counts 0."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += memory_bytes(process)
        except psutil.Error:
            continue
    return total


class PeakMemory:
    """Sample the memory of this process tree while the `with` block runs; `gib` is the largest sum seen."""

    def __init__(self, every_s: float = 1.0) -> None:
        self.gib = 0.0
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        root = psutil.Process()
        while True:
            self.gib = max(self.gib, tree_bytes(root) / GIB)
            if self._stop.wait(self._every_s):
                return

    def __enter__(self) -> PeakMemory:
        """Start sampling."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()
