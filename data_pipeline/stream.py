"""Stream batches to the ranks of a run: seeded order, exact position, equal numbers of batches.

The order of samples is a function of (seed, pass) alone. A step's global batch is the next `samples_per_rank * world`
samples of that order, and rank r takes its r-th slice. What is hidden from the fusion, and the phrasing of the text,
are functions of (seed, pass, sample), so that two ranks see exactly what one process sees.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import datasets
import numpy as np
import pyarrow as pa

from data_pipeline import text
from data_pipeline.batch import MODALITIES, OBSERVABLE, TEXT, Batch, Sample
from data_pipeline.collate import collate
from data_pipeline.errors import InputError
from data_pipeline.graph_folder import graph_samples
from data_pipeline.order import generator, windows
from data_pipeline.shards import SCHEMA, Shard, load_chemistry, load_manifest, to_samples, verify

TextMode = Literal["mixed", "full", "observable"]
FULL_SHARE = 0.30  # mixed: the fusion reads all that is present
OBSERVABLE_SHARE = 0.45  # mixed: it reads what a telescope gives; the rest of the samples show a random part
PREFETCHED_BATCHES = 2
_OBSERVABLE = np.array([m in OBSERVABLE for m in MODALITIES])


@runtime_checkable
class Source(Protocol):
    """Samples of one split in numbered shards."""

    shard_rows: Sequence[int]
    chemistry: dict[str, Any]  # of the vocabulary: metabolism.chemistry_table

    def read(self, shard: int, rows: np.ndarray) -> list[Sample]:
        """Return these rows of a shard, in this order."""
        ...


class ShardSource:
    """Parquet shards, read through a streaming Hugging Face dataset as Arrow buffers."""

    def __init__(self, data_dir: str | Path, split: str, check: bool) -> None:
        manifest = load_manifest(data_dir)
        shards: tuple[Shard, ...] = manifest.of_split(split)
        verify(data_dir, replace(manifest, shards=shards), checksums=check)
        self.chemistry = load_chemistry(data_dir)
        self.shard_rows: Sequence[int] = [s.rows for s in shards]
        self._files = [str(Path(data_dir) / s.file) for s in shards]
        if not shards:
            raise InputError(f"data={data_dir}: no {split} samples in it; build more planets (2400 fill every split)")
        self._dataset = datasets.load_dataset(
            "parquet",
            data_files={split: self._files},
            features=datasets.Features.from_arrow_schema(SCHEMA),
            split=split,
            streaming=True,
        ).with_format("arrow")

    def read(self, shard: int, rows: np.ndarray) -> list[Sample]:
        """Return these rows of a shard; one shard of the dataset is one file.

        Raises:
            InputError: The file went away or was damaged since the stream was opened.
        """
        part = self._dataset.shard(num_shards=len(self.shard_rows), index=shard)
        try:
            table = next(part.iter(batch_size=self.shard_rows[shard]))
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(
                f"shard={self._files[shard]}: cannot be read any more ({error}); build it again"
            ) from error
        return to_samples(table.take(rows))


class GraphFolderSource:
    """Anybody's graphs, one NPZ a graph: everything but the graph and the environment is absent."""

    def __init__(self, folder: str | Path, split: str) -> None:
        samples, self.chemistry = graph_samples(folder)
        self._samples = [s for s in samples if s.split == split]
        self.shard_rows: Sequence[int] = [len(self._samples)]

    def read(self, shard: int, rows: np.ndarray) -> list[Sample]:
        """Return these samples."""
        return [self._samples[row] for row in rows]


class BatchStream:
    """Batches of one split for one rank, from where the state says.

    `repeat=True` (training) goes on pass after pass, in a new order each; the last samples of a pass that do not fill a
    global batch (`dropped_samples`) are left out of that pass. `repeat=False` (evaluation) is one pass in fixed order;
    its last batch is short, but with more than one rank it is left out, since ranks must take equal numbers of steps.

    Args:
        source: A data folder, or any Source.
        split: train, held_out or test.
        samples_per_rank: Samples of one batch.
        tokenizer: Of the language model; without one the text is absent.
        max_tokens: Longer descriptions are cut to it.
        text_mode: What the fusion may read. `full`: all that is present. `observable`: what a telescope gives. `mixed`:
            a hash of (seed, pass, sample) picks one of these or a random part of what is present. The text is written
            from observables alone unless the sample is shown in full.
        check: Compare the checksums of all shards of the split first (1.4 GB/s a core).

    Raises:
        InputError: The data are missing, damaged or too few for one step.
    """

    def __init__(
        self,
        source: str | Path | Source,
        split: str,
        samples_per_rank: int,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        tokenizer: Any = None,
        max_tokens: int = 160,
        text_mode: TextMode = "mixed",
        repeat: bool = True,
        check: bool = False,
    ) -> None:
        self.source: Source = ShardSource(source, split, check) if isinstance(source, str | Path) else source
        self.chemistry = self.source.chemistry
        self.seed, self.text_mode, self.repeat = seed, text_mode, repeat
        self._tokenizer, self._max_tokens = tokenizer, max_tokens
        self._rank, self._world, self._per_rank = rank, world, samples_per_rank
        self._pass, self._step = 0, 0
        self.samples = sum(self.source.shard_rows)
        if self.samples < (self._global if repeat or world > 1 else 1):
            raise InputError(
                f"data: split {split!r} holds {self.samples} samples, one step takes {self._global} "
                f"({samples_per_rank} on each of {world} ranks); build more planets or lower data.samples_per_rank"
            )

    @property
    def _global(self) -> int:
        return self._per_rank * self._world

    @property
    def dropped_samples(self) -> int:
        """Samples of a pass that do not fill a global batch; another pass drops others."""
        return self.samples - self._end

    @property
    def _end(self) -> int:
        """Position after the last sample that a pass gives out."""
        short_batch = not self.repeat and self._world == 1
        return self.samples if short_batch else self.samples // self._global * self._global

    def __len__(self) -> int:
        """Batches of one pass, the same on every rank."""
        return -(-self._end // self._global)

    def state_dict(self) -> dict[str, int]:
        """Return the place after the last batch that was given out."""
        return {"pass": self._pass, "step": self._step, "samples_per_step": self._global, "seed": self.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the last batch of `state`, with any number of ranks: no sample is lost, none comes twice.

        Raises:
            InputError: The seed differs, or the place is not a multiple of this stream's global batch.
        """
        position = state["step"] * state["samples_per_step"]
        if state["seed"] != self.seed:
            raise InputError(f"data.seed={self.seed}: the run was started with {state['seed']}; use the same to go on")
        if position % self._global:
            raise InputError(
                f"data.samples_per_rank={self._per_rank}: {self._global} samples a step do not divide the place "
                f"{position} where the run stopped; keep samples_per_rank x ranks = {state['samples_per_step']}"
            )
        self._pass, self._step = state["pass"], position // self._global

    def __iter__(self) -> Iterator[Batch]:
        """Give out batches from the present place on; a thread prepares the next ones."""
        if not self.repeat:
            self._pass, self._step = 0, 0
        while True:
            if self._step >= len(self):
                self._pass, self._step = self._pass + 1, 0
            for batch in _ahead(self._batches(self._pass, self._step)):
                self._step += 1
                yield batch
            if not self.repeat:
                return

    def _batches(self, pass_number: int, step: int) -> Iterator[Batch]:
        waiting: list[Sample] = []
        for sample in self._samples(pass_number, step * self._global):
            waiting.append(sample)
            if len(waiting) == self._per_rank:
                yield self._collate(waiting, pass_number)
                waiting = []
        if waiting:
            yield self._collate(waiting, pass_number)

    def _samples(self, pass_number: int, begin: int) -> Iterator[Sample]:
        """Yield this rank's samples of a pass in order, one window in memory at a time."""
        for window in windows(self.source.shard_rows, self.seed, pass_number, self.repeat, begin):
            position = window.start + np.arange(len(window.rows))
            mine = (position >= begin) & (position < self._end)
            mine &= position % self._global // self._per_rank == self._rank
            order = np.flatnonzero(mine)
            found: dict[int, Sample] = {}
            for shard in np.unique(window.shards[order]):
                places = order[window.shards[order] == shard]
                found.update(zip(places.tolist(), self.source.read(int(shard), window.rows[places]), strict=True))
            for place in order.tolist():
                yield found.pop(place)

    def _collate(self, samples: list[Sample], pass_number: int) -> Batch:
        written, visible = zip(*(self._write(sample, pass_number) for sample in samples), strict=True)
        return collate(written, visible=np.stack(visible))

    def _write(self, sample: Sample, pass_number: int) -> tuple[Sample, np.ndarray]:
        """Return the sample with its text, and what the fusion may read of it (Q bool)."""
        random = generator("visible", self.seed, pass_number, sample.sample_id)
        present = sample.present.copy()
        present[TEXT] = self._tokenizer is not None
        visible = _visible(present, self.text_mode, random)
        if self._tokenizer is not None:
            observable_only = bool((visible != present).any()) or self.text_mode == "observable"
            strings = text.describe(
                sample, observable_only, generator("text", self.seed, pass_number, sample.sample_id)
            )
            sample = replace(sample, text=text.encode(strings, self._tokenizer, self._max_tokens))
        return sample, visible


def open_stream(
    data_dir: str | Path,
    split: str,
    samples_per_rank: int,
    *,
    graphs: str | Path = "",
    check: bool = False,
    **options: Any,
) -> BatchStream:
    """Return the stream over a data folder or, when `graphs` is given, a folder of NPZ graphs."""
    source = GraphFolderSource(graphs, split) if graphs else ShardSource(data_dir, split, check)
    return BatchStream(source, split, samples_per_rank, **options)


def _visible(present: np.ndarray, mode: TextMode, random: np.random.Generator) -> np.ndarray:
    if mode == "mixed":
        draw = random.random()
        if draw >= FULL_SHARE + OBSERVABLE_SHARE:
            parts = np.flatnonzero(present)
            shown = random.permutation(parts)[: random.integers(1, len(parts) + 1)]  # single ones as often as all
            return np.isin(np.arange(len(present)), shown)
        mode = "full" if draw < FULL_SHARE else "observable"
    return present.copy() if mode == "full" else present & _OBSERVABLE


def _ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """Yield the same batches while a thread makes the next ones; an error comes out where the batch would have."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(PREFETCHED_BATCHES)
    stop = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                put(batch)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="stream", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
