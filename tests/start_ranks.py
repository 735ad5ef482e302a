"""Start a script on some CPU ranks, as a launcher would, and wait for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from trainers.ranks import free_port


def start_ranks(script: Path | str, arguments: list[str], world: int, proof: Path, timeout_s: float = 240) -> None:
    """Run the script on every rank; judge it by the file that it writes, since a rank may abort while exiting."""
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "LOCAL_SIZE": "0"}
    shared |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    proof.unlink(missing_ok=True)
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        output = [rank.communicate(timeout=timeout_s)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert proof.is_file(), "\n".join(text[-3000:] for text in output)
