"""Samples a second of the stream beside other loaders: same samples, dtype, machine and run.

`./launch.sh bench stream --json [--data DIR]` prints one line a loader and number of workers; with `--exactly-once` it
counts what is lost and repeated after 50 stops and resumes (give --data DIR with some 2,000 planets: the set that it
builds by itself is smaller than a shuffle buffer, which then loses nothing). Conversions for the peers are kept in
`--work DIR`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rows
from benchmarks.peers import loaders
from benchmarks.rows import Row
from data_pipeline import build, shards
from data_pipeline.batch import Batch
from data_pipeline.errors import one_line
from data_pipeline.stream import BatchStream, ShardSource

BATCH = 16
WARM_UP_SHARE = 0.5  # of a pass before the clock starts
PLANETS = 400
CASES = 50
RESUMED = "held_out"  # the split that is stopped and resumed: a few hundred samples are read a hundred times
NAMES = ("ours", "hf_default", "webdataset", "mosaic", "memory")


def options() -> argparse.ArgumentParser:
    """Return the options beside those of every benchmark."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--data", default="", help=f"folder that build-data wrote; without it {PLANETS} planets are built"
    )
    parser.add_argument("--work", default=str(Path(tempfile.gettempdir()) / "exobiome-bench-stream"), metavar="DIR")
    parser.add_argument("--seconds", type=float, default=4.0, help="of timing, a loader")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--exactly-once", action="store_true", help="stops and resumes instead of rates")
    return parser


def chosen() -> argparse.Namespace:
    """Return the options of this process."""
    given = options().parse_known_args()[0]
    given.data = given.data or str(Path(given.work) / f"planets-{PLANETS}")
    return given


# --- rates ------------------------------------------------------------------------------------------------------------
def measure(name: str, workers: int) -> dict[str, Any]:
    """Return samples and megabytes a second of one loader, after half a pass to warm up."""
    given = chosen()
    samples = sum(s.rows for s in shards.load_manifest(given.data).of_split("train"))
    sample_bytes = bytes_of_tensors(given.data) / samples
    if name == "memory":
        rate = read_files(given.data, workers, given.seconds) / sample_bytes
    else:
        found = ours(given.data, workers) if name == "ours" else peer(name, given, workers)
        rate = samples_per_second(found, int(WARM_UP_SHARE * samples / BATCH), given.seconds)
    return {
        "benchmark": "stream",
        "loader": name,
        "workers": workers,
        "samples_per_s": round(rate, 1),
        "mb_per_s": round(rate * sample_bytes / 1e6, 1),
        "sample_kb": round(sample_bytes / 1e3, 1),
        "loader_version": version_of(name),
    }


def samples_per_second(batches: Iterator[Batch], warm_up: int, seconds: float) -> float:
    """Return the rate at which batches come out; each is touched once, as a step would."""
    for _ in islice(batches, warm_up):
        pass
    count, begin = 0, time.perf_counter()
    for batch in batches:
        count += len(batch.sample_ids)
        elapsed = time.perf_counter() - begin
        if elapsed >= seconds:
            return count / elapsed
    raise RuntimeError("the loader ended")


def ours(data: str, workers: int) -> Iterator[Batch]:
    """Yield batches as in training, shuffled; nothing is hidden and no text is written, as in the peers."""
    return iter(BatchStream(data, "train", BATCH, text_mode="full", workers=workers))


def peer(name: str, given: argparse.Namespace, workers: int) -> Iterator[Batch]:
    """Yield the batches of a peer; one worker is this process itself, which saves it the way between two."""
    loaders.use_peers()
    return loaders.batches(loaders.LOADERS[name], Path(given.work) / name, BATCH, 0 if workers == 1 else workers)


def read_files(data: str, workers: int, seconds: float) -> float:
    """Return bytes a second of reading the same shards from the page cache, each thread into memory of a batch."""
    files = [Path(data) / s.file for s in shards.load_manifest(data).of_split("train")]
    total = [0] * workers
    end = 0.0

    def read(number: int) -> None:
        memory = [
            np.zeros(BATCH * shards.SAMPLE_BYTES, np.uint8) for _ in range(4)
        ]  # as many batches as a loader holds
        turn = 0
        while True:
            for file in files[number::workers]:
                with file.open("rb", buffering=0) as opened:
                    while got := opened.readinto(memory[turn % 4]):
                        turn += 1
                        if time.perf_counter() > begin:
                            total[number] += got
                if time.perf_counter() > end:
                    return

    begin = time.perf_counter() + 1.0
    end = begin + seconds
    threads = [threading.Thread(target=read, args=(n,)) for n in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(total) / (time.perf_counter() - begin)


def bytes_of_tensors(data: str) -> int:
    """Return the bytes of all shards: nearly all of them are tensors."""
    return sum(s.bytes for s in shards.load_manifest(data).of_split("train"))


def version_of(name: str) -> str:
    """Return the version of what a loader is made by."""
    if name in ("ours", "memory"):
        return importlib.metadata.version("pyarrow")
    return importlib.metadata.version(loaders.LOADERS[name].package)


def prepare(given: argparse.Namespace) -> None:
    """Write the samples in the format of each peer, once."""
    digest = shards.sha256_of(Path(given.data) / shards.MANIFEST)
    for name, loader in loaders.LOADERS.items():
        folder = Path(given.work) / name
        stamp = folder.with_suffix(".json")
        if stamp.is_file() and json.loads(stamp.read_text()) == digest:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        print(f"writing {folder}", file=sys.stderr, flush=True)
        loader.write(loaders.records(given.data, "train"), folder)
        stamp.write_text(json.dumps(digest))


# --- exactly once -----------------------------------------------------------------------------------------------------
def exactly_once() -> list[dict[str, Any]]:
    """Return what our stream and the data set of Hugging Face lose and repeat over the same random stops."""
    given = chosen()
    random = np.random.default_rng(0)
    source = ShardSource(given.data, RESUMED, check=False)
    samples = sum(source.shard_rows)
    cases = [[int(n) for n in random.integers((1, 1, 1, 1), (samples // 16, 5, 5, 3))] for _ in range(CASES)]
    mine = [of_one_pass(source, samples, *case) for case in cases]
    ids = loaders.open_ids(loaders.write_ids(given.data, RESUMED, Path(tempfile.mkdtemp())))
    with ThreadPoolExecutor(CASES // 2) as pool:  # one takes ten seconds of waiting
        theirs = list(pool.map(lambda case: loaders.hf_resumed(ids, case[0] * case[1] * 8 % samples), cases))
    return [
        {
            "benchmark": "stream_exactly_once",
            "loader": name,
            "cases": CASES,
            "samples": samples,
            "lost": sum(samples - len(set(found)) for found in taken),
            "repeated": sum(len(found) - len(set(found)) for found in taken),
        }
        for name, taken in (("ours", mine), ("hf_shuffle_buffer", theirs))
    ]


def of_one_pass(source: ShardSource, samples: int, stop: int, before: int, after: int, workers: int) -> list[str]:
    """Return the ids of the pass that a stop falls into, before it and after going on with other ranks and workers."""
    first, state = take(source, before, workers, stop, None)
    rest = samples - len(first) % samples
    second, _ = take(source, after, 3 - workers, -(-rest // (after * 8)), json.loads(json.dumps(state)))
    return first[len(first) // samples * samples :] + second[:rest]


def take(source: ShardSource, world: int, workers: int, steps: int, state: Any) -> tuple[list[str], Any]:
    """Return the ids of steps of all ranks in order, and the state after them."""
    streams = [BatchStream(source, RESUMED, 8, rank, world, workers=workers) for rank in range(world)]
    for stream in streams:
        if state is not None:
            stream.load_state_dict(state)
    parts = zip(*(islice(stream, steps) for stream in streams), strict=True)
    return [i for step in parts for batch in step for i in batch.sample_ids], streams[0].state_dict()


@one_line
def main() -> int:
    """Print one line a loader; a peer that is missing is one line and exit code 2."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of each row: a worker is one thread, and two of them share no core
    given = chosen()
    if "--help" not in sys.argv and "-h" not in sys.argv and "--row" not in sys.argv:
        if given.data == str(Path(given.work) / f"planets-{PLANETS}"):
            with redirect_stdout(sys.stderr):
                build.build(given.data, PLANETS, workers=os.cpu_count() or 1)  # at once when it is there
        shards.load_manifest(given.data)
        if given.exactly_once:
            for line in exactly_once():
                print(json.dumps({**line, **rows.hardware(), "command": "./launch.sh bench stream --exactly-once"}))
            return 0
        loaders.use_peers()
        prepare(given)
    found = [
        Row(f"{name}-{workers}", partial(measure, name, workers))
        for workers in map(int, given.workers.split(","))
        for name in NAMES
    ]
    os.environ["HF_HUB_OFFLINE"] = "1"
    return rows.main("benchmarks.bench_stream", found, options())


if __name__ == "__main__":
    sys.exit(main())
