"""Say which sample stands where: a function of the seed, the pass and the shard sizes alone.

The number of ranks and workers never enters, so a run may stop and go on with others. The shards of a pass are
permuted, then cut into windows of a few shards, and the rows of a window are permuted: good mixing, reads that stay
close, and any place is found at once. Passes follow each other without a gap: position p is in pass p // samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

SHUFFLE_SHARDS = 4  # shards of a window: 256 samples
_WINDOWS_KEPT = 8

SizeOf = Callable[[int, np.ndarray, np.ndarray], np.ndarray]  # (pass, shards, rows) -> nodes or tokens of each


class Places(NamedTuple):
    """Where samples that follow each other lie."""

    passes: np.ndarray  # n int64
    shards: np.ndarray  # n int64
    rows: np.ndarray  # n int64, in the shard


def generator(*key: object) -> np.random.Generator:
    """Return a random generator that is a function of the key: the same on every rank, machine and run."""
    digest = hashlib.blake2b("|".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


class Order:
    """The endless sequence of samples, pass after pass.

    Args:
        shard_rows: Rows of each shard.
        seed: Of the order.
        shuffle: False keeps the order of the shards and rows in every pass.
        shuffle_shards: Shards that are mixed with each other.
        bucket_samples: With `size_of`: each run of this many samples is of about one size, and runs are shuffled within
            a window. Batches whose size divides it hold little padding. The order stays one for all numbers of ranks.
        size_of: Size of samples; a function of its arguments alone.
    """

    def __init__(
        self,
        shard_rows: Sequence[int],
        seed: int,
        shuffle: bool = True,
        shuffle_shards: int = SHUFFLE_SHARDS,
        bucket_samples: int = 64,
        size_of: SizeOf | None = None,
    ) -> None:
        self.samples = sum(shard_rows)
        self._rows = np.asarray(shard_rows, np.int64)
        self._seed, self._shuffle, self._size_of = seed, shuffle, size_of
        self._width, self._bucket = shuffle_shards, bucket_samples
        self._pass = lru_cache(2)(self._make_pass)
        self._window = lru_cache(_WINDOWS_KEPT)(self._make_window)

    @property
    def fingerprint(self) -> str:
        """Name of the order: two streams of one seed and one fingerprint give the same sequence."""
        buckets = self._bucket if self._size_of else 0
        key = f"{self._rows.tolist()}|{self._shuffle}|{self._width}|{buckets}"
        return hashlib.blake2b(key.encode(), digest_size=6).hexdigest()

    def places(self, begin: int, end: int) -> Places:
        """Return where the samples at positions [begin, end) lie; the cost does not grow with `begin`."""
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        while begin < end:
            number, offset = divmod(begin, self.samples)
            _, starts = self._pass(number)
            window = int(np.searchsorted(starts, offset, side="right")) - 1
            shards, rows = self._window(number, window)
            first = offset - int(starts[window])
            last = min(first + end - begin, len(rows))
            found.append((np.full(last - first, number), shards[first:last], rows[first:last]))
            begin += last - first
        return Places(*found[0]) if len(found) == 1 else Places(*map(np.concatenate, zip(*found, strict=True)))

    def _make_pass(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the shards of a pass in their order, and the position at which each window starts."""
        shards = np.arange(len(self._rows))
        if self._shuffle:
            shards = generator("shards", self._seed, number).permutation(shards)
        sizes = np.add.reduceat(self._rows[shards], np.arange(0, len(shards), self._width))
        return shards, np.concatenate([[0], np.cumsum(sizes)[:-1]])

    def _make_window(self, number: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        first = window * self._width
        members = self._pass(number)[0][first : first + self._width]
        sizes = self._rows[members]
        owner = np.repeat(members, sizes)
        rows = np.concatenate([np.arange(n) for n in sizes])
        if self._shuffle:
            places = generator("rows", self._seed, number, first).permutation(len(rows))
            owner, rows = owner[places], rows[places]
        if self._size_of is not None:
            places = self._bucketed(self._size_of(number, owner, rows), ("buckets", self._seed, number, first))
            owner, rows = owner[places], rows[places]
        return owner, rows

    def _bucketed(self, sizes: np.ndarray, key: tuple[object, ...]) -> np.ndarray:
        """Return the samples of a window in runs of one size; the run that is not full comes last."""
        by_size = np.argsort(sizes, kind="stable")
        full = len(sizes) // self._bucket * self._bucket
        runs = by_size[:full].reshape(-1, self._bucket)
        return np.concatenate([runs[generator(*key).permutation(len(runs))].ravel(), by_size[full:]])
