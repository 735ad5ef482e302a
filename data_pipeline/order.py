"""Say which sample stands where in a pass: a function of the seed, the pass and the shard sizes alone.

The number of ranks never enters, so a run may stop and go on with another one. Shards are permuted, then cut into
windows of a few shards, and the rows of a window are permuted: good mixing, sequential reads, quick to find a place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

WINDOW_SHARDS = 4  # 256 samples, 112 MB in memory


class Window(NamedTuple):
    """Samples that follow each other in a pass."""

    start: int  # position of the first one in the pass
    shards: np.ndarray  # rows int64: the shard that each sample is in
    rows: np.ndarray  # rows int64: its row there


def generator(*key: object) -> np.random.Generator:
    """Return a random generator that is a function of the key: the same on every rank, machine and run."""
    digest = hashlib.blake2b("|".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def windows(
    shard_rows: Sequence[int], seed: int, pass_number: int, shuffle: bool, from_position: int
) -> Iterator[Window]:
    """Yield the windows of one pass, from the one that holds `from_position` on.

    Args:
        shard_rows: Rows of each shard.
        seed: Of the order.
        pass_number: Each pass has its own order.
        shuffle: False keeps the order of the shards and rows.
        from_position: Positions count samples from the start of the pass.
    """
    shards = np.arange(len(shard_rows))
    if shuffle:
        shards = generator("shards", seed, pass_number).permutation(shards)
    start = 0
    for first in range(0, len(shards), WINDOW_SHARDS):
        members = shards[first : first + WINDOW_SHARDS]
        sizes = [shard_rows[s] for s in members]
        stop = start + sum(sizes)
        if stop > from_position:
            owner = np.repeat(members, sizes)
            rows = np.concatenate([np.arange(n) for n in sizes])
            if shuffle:
                places = generator("rows", seed, pass_number, first).permutation(len(rows))
                owner, rows = owner[places], rows[places]
            yield Window(start, owner, rows)
        start = stop
