"""Stream batches to the ranks of a run: seeded order, exact position, equal numbers of batches.

The order of samples is a function of (seed, pass) alone. A step's global batch is the next `samples_per_rank * world`
samples of that order, and rank r takes its r-th slice. Where texts are read in training, neighbouring ranks deal the
samples of their slices out so that each reads about as many tokens, for all wait for the longest, and pad networks to
one size. What is hidden from the fusion, and the phrasing of the text, are functions of (seed, pass, sample), so that
two ranks see exactly what one process sees.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import datasets
import numpy as np
import pyarrow as pa

from data_pipeline import folders, text
from data_pipeline.batch import MODALITIES, OBSERVABLE, PLANET_PARAMETERS, SPECTRUM, TEXT, Batch, TextSample
from data_pipeline.collate import Memory, absent_row, collate_rows, padded
from data_pipeline.errors import InputError
from data_pipeline.graph_folder import graph_samples
from data_pipeline.join import JoinedSource, Missing, parse_parts
from data_pipeline.order import SHUFFLE_SHARDS, Order, generator
from data_pipeline.shard_rows import PRESENT, BadSampleError, Opened, OpenShard, SampleRow, ToldRow, open_plain
from data_pipeline.shards import SCHEMA, damage, load_chemistry, load_manifest, repair

TextMode = Literal["mixed", "full", "observable"]
Damaged = Literal["refuse", "skip"]
Buckets = Literal["none", "nodes", "tokens"]
FULL_SHARE = 0.30  # mixed: the fusion reads all that is present
OBSERVABLE_SHARE = 0.45  # mixed: it reads what a telescope gives; the rest of the samples show a random part
PREFETCHED_BATCHES = 2
TEXTS_KEPT = 4096
DEALT_RANKS = 4  # that deal their samples out among themselves; each writes the texts of all of them
_OBSERVABLE = np.array([m in OBSERVABLE for m in MODALITIES])


@runtime_checkable
class Source(Protocol):
    """Samples of one split in numbered shards."""

    shard_rows: Sequence[int]
    left_out: tuple[str, ...]  # damaged shards that are not among them
    chemistry: dict[str, Any]  # of the vocabulary: reaction_db.chemistry_table

    def row(self, shard: int, row: int) -> ToldRow:
        """Return one sample where it is stored.

        Raises:
            BadSampleError: It cannot be used.
        """
        ...


class ShardSource:
    """Parquet shards of a data folder: on a disk, at an fsspec URL or on the hub.

    Shards on a disk, as build-data writes them, are read row by row straight from the file. All others (remote ones,
    and files that something else wrote again, such as push_to_hub) come through a streaming Hugging Face dataset as
    Arrow tables, one shard at a time.

    Args:
        data: Folder, URL or hub name.
        split: train, held_out or test.
        check: Compare the checksums of all shards of the split first (0.5-1.5 GB/s a core).
        damaged: What to do about a shard that is missing, truncated or (with `check`) changed. Every rank must find the
            same ones.
        shuffle_shards: As of the BatchStream; so many are kept open.
    """

    def __init__(
        self,
        data: str | Path,
        split: str,
        check: bool,
        damaged: Damaged = "refuse",
        shuffle_shards: int = SHUFFLE_SHARDS,
    ) -> None:
        manifest = load_manifest(data)
        shards = manifest.of_split(split)
        if not shards:
            raise InputError(f"data={data}: no {split} samples in it; build more planets (2400 fill every split)")
        found = {s.file: reason for s in shards if (reason := damage(data, s, checksums=check))}
        for file, reason in found.items():
            complaint = f"shard={folders.path_of(data, file)}: {reason}; {repair(manifest)}"
            if damaged == "refuse":
                raise InputError(f"{complaint}; or leave it out with data.damaged_shards=skip")
            print(f"[stream] left out: {complaint}", file=sys.stderr, flush=True)
        self.left_out = tuple(found)
        shards = tuple(s for s in shards if s.file not in found)
        if not shards:
            raise InputError(f"data={data}: every {split} shard is damaged; {repair(manifest)}")
        self.chemistry = load_chemistry(data)
        self.shard_rows: Sequence[int] = [s.rows for s in shards]
        self._files = [folders.path_of(data, s.file) for s in shards]
        self._local = folders.remote_url(data) is None
        self._split = split
        self._streamed: datasets.IterableDataset | None = None
        self._opened = Opened(self._open, at_least=2 * shuffle_shards)  # remote ones are in memory whole: two windows

    def row(self, shard: int, row: int) -> ToldRow:
        """Return one sample where it is stored.

        Raises:
            BadSampleError: Its shard went away or was damaged since the stream was opened.
        """
        try:
            opened = self._opened[shard]
        except (OSError, ValueError, pa.ArrowException) as error:
            reason = f"shard={self._files[shard]} cannot be read any more ({error}); build it again"
            raise BadSampleError(f"row {row} of {Path(self._files[shard]).name}", reason) from error
        return opened.row(row)

    def _open(self, shard: int) -> OpenShard:
        opened = open_plain(Path(self._files[shard])) if self._local else None
        opened = opened or OpenShard(self._table(shard))
        if opened.rows != self.shard_rows[shard]:
            raise pa.ArrowInvalid(f"{opened.rows} rows, the manifest says {self.shard_rows[shard]}")
        return opened

    def _table(self, shard: int) -> pa.Table:
        if self._streamed is None:
            self._streamed = datasets.load_dataset(
                "parquet",
                data_files={self._split: self._files},
                features=datasets.Features.from_arrow_schema(SCHEMA),
                split=self._split,
                streaming=True,
            ).with_format("arrow")
        one = self._streamed.shard(num_shards=len(self._files), index=shard)  # one file
        tables = list(one.iter(batch_size=self.shard_rows[shard]))
        return pa.concat_tables(tables) if tables else SCHEMA.empty_table()


class GraphFolderSource:
    """Anybody's graphs, one NPZ a graph: everything but the graph and the environment is absent."""

    left_out: tuple[str, ...] = ()

    def __init__(self, folder: str | Path, split: str) -> None:
        samples, self.chemistry = graph_samples(folder)
        self._rows = [SampleRow(s) for s in samples if s.split == split]
        self.shard_rows: Sequence[int] = [len(self._rows)]

    def row(self, shard: int, row: int) -> ToldRow:
        """Return one sample."""
        return self._rows[row]


class BatchStream:
    """Batches of one split for one rank, from where the state says.

    `repeat=True` (training) goes on pass after pass without a gap, in a new order each: a batch may hold the end of one
    pass and the start of the next. `repeat=False` (evaluation) is one pass in fixed order. Its last step is short and
    shared evenly; only when it holds fewer samples than there are ranks, these (`dropped_samples`) are left out.

    Args:
        source: A data folder, URL or hub name, or any Source.
        split: train, held_out or test.
        samples_per_rank: Samples of one batch.
        tokenizer: Of the language model; without one the text is absent.
        max_tokens: Longer descriptions are cut to it.
        text_mode: What the fusion may read. `full`: all that is present. `observable`: what a telescope gives. `mixed`:
            a hash of (seed, pass, sample) picks one of these or a random part of what is present. The text is written
            from observables alone unless the sample is shown in full.
        check: Compare the checksums of all shards of the split first (1.4 GB/s a core).
        workers: Threads that make batches. What costs is copying, which holds no lock of the interpreter; processes
            would copy every batch once more on its way back.
        shuffle_shards: Shards that are mixed with each other.
        buckets: Put samples of about one number of nodes, or of tokens, into one batch.
        bucket_samples: Samples of about one size that follow each other; a multiple of the global batch is best.
        max_bad_samples: Samples that cannot be read and are left out of their batches before the stream gives up. The
            other samples stay where they are in the order.
        pin_memory: Give out pinned memory, for copies to a GPU.
        tokens_beside: That the language model reads of each visible modality beside the text: what ranks deal by.

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
        *,
        workers: int = 1,
        shuffle_shards: int = SHUFFLE_SHARDS,
        buckets: Buckets = "none",
        bucket_samples: int = 64,
        max_bad_samples: int = 0,
        pin_memory: bool = False,
        tokens_beside: int = 0,
    ) -> None:
        if isinstance(source, str | Path):
            source = ShardSource(source, split, check, shuffle_shards=shuffle_shards)
        self.source: Source = source
        self.chemistry = self.source.chemistry
        self.seed, self.text_mode, self.repeat = seed, text_mode, repeat
        self.bad_samples: dict[str, str] = {}  # sample id -> reason
        self._tokenizer, self._max_tokens = tokenizer, max_tokens
        self._rank, self._world, self._per_rank = rank, world, samples_per_rank
        self._workers, self._max_bad = workers, max_bad_samples
        self._tokens_beside = tokens_beside
        self._position = 0
        self._said: dict[tuple[int, str], TextSample] = {}
        self._padding: dict[str, list[int]] = {"nodes": [0, 0], "tokens": [0, 0]}
        self._memory = Memory(2 * (workers + PREFETCHED_BATCHES), pinned=pin_memory)
        if buckets == "tokens" and tokenizer is None:
            raise InputError("data.buckets=tokens: this part reads no text; choose nodes or none")
        size_of = {"none": None, "nodes": self._nodes, "tokens": self._tokens}[buckets if repeat else "none"]
        self._deals = repeat and world > 1 and tokenizer is not None
        self._order = Order(self.source.shard_rows, seed, repeat, shuffle_shards, bucket_samples, size_of)
        texts = f" {text_mode} {max_tokens}" if buckets == "tokens" else ""  # what the number of tokens follows from
        self._order_name = f"{self._order.fingerprint} {buckets}{texts}"
        self.samples = self._order.samples
        if self.samples < (self._global if repeat else world):
            raise InputError(
                f"data: split {split!r} holds {self.samples} samples, one step takes {self._global} "
                f"({samples_per_rank} on each of {world} ranks); build more planets or lower data.samples_per_rank"
            )

    @property
    def _global(self) -> int:
        return self._per_rank * self._world

    @property
    def dropped_samples(self) -> int:
        """Samples that an evaluation leaves out since they are fewer than the ranks; training leaves none out."""
        rest = self.samples % self._global
        return 0 if self.repeat or rest >= self._world else rest

    @property
    def padding(self) -> dict[str, float]:
        """Share of nodes and of tokens that were padding, in the batches given out so far."""
        return {name: 1.0 - real / room if room else 0.0 for name, (real, room) in self._padding.items()}

    def __len__(self) -> int:
        """Batches of one pass, the same on every rank (in training the last one reaches into the next pass)."""
        return -(-(self.samples - self.dropped_samples) // self._global)

    def state_dict(self) -> dict[str, Any]:
        """Return the place after the last batch that was given out, equal on all ranks."""
        return {
            "position": self._position,  # samples given out by all ranks together since the first pass began
            "seed": self.seed,
            "order": self._order_name,
            "left_out": list(self.source.left_out),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last batch of `state`, with any ranks, batches and workers: nothing is lost or comes twice.

        Raises:
            InputError: The seed, the shards or what decides the order differ.
        """
        if "position" not in state:
            raise InputError("checkpoint: its place in the data is of an older version; start the run again")
        if state["seed"] != self.seed:
            raise InputError(f"data.seed={self.seed}: the run was started with {state['seed']}; use the same to go on")
        if changed := sorted(set(state["left_out"]) ^ set(self.source.left_out)):
            raise InputError(
                f"shard={changed[0]}: damaged now or then, but not both, and the order of samples hangs on it; run the "
                "same build-data again, it replaces what is damaged, or start a new run"
            )
        if state["order"] != self._order_name:
            raise InputError(
                "data: the shards, data.shuffle_shards, data.buckets or data.bucket_samples are not those that the run "
                "was started with; use the same to go on"
            )
        self._position = state["position"]

    def __iter__(self) -> Iterator[Batch]:
        """Give out batches from the present place on; threads make the next ones meanwhile."""
        if not self.repeat:
            self._position = 0
        end = None if self.repeat else self.samples - self.dropped_samples
        ahead: deque[tuple[int, Future[Batch]]] = deque()
        begin = self._position
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="stream")
        try:
            while True:
                while (end is None or begin < end) and len(ahead) < self._workers + PREFETCHED_BATCHES - 1:
                    after = begin + self._global if end is None else min(begin + self._global, end)
                    ahead.append((after, pool.submit(self._make, begin, after)))
                    begin = after
                if not ahead:
                    return
                after, future = ahead.popleft()
                batch = future.result()
                del future
                self._position = after
                self._count_padding(batch)
                yield batch
                del batch  # its memory can be used again
        finally:
            pool.shutdown(cancel_futures=True)

    def _count_padding(self, batch: Batch) -> None:
        for name, mask in (("nodes", batch.graph.mask), ("tokens", batch.text.attention_mask)):
            self._padding[name][0] += int(mask.sum())
            self._padding[name][1] += mask.numel()

    def _make(self, begin: int, end: int) -> Batch:
        """Return this rank's part of the samples at positions [begin, end)."""
        first = self._rank // DEALT_RANKS * DEALT_RANKS if self._deals else self._rank
        after = min(first + DEALT_RANKS, self._world) if self._deals else first + 1
        places = (begin + (end - begin) * r // self._world for r in (first, after))
        passes, shards, rows = self._order.places(*places)
        found: list[tuple[int, ToldRow]] = []
        for number, shard, row in zip(passes.tolist(), shards.tolist(), rows.tolist(), strict=True):
            try:
                found.append((number, self.source.row(shard, row)))
            except BadSampleError as error:
                self._leave_out(error)
        nodes = None
        if self._deals:
            nodes = padded(max((_nodes_of(row) for _, row in found), default=0))  # ranks that deal have one shape
            found = self._dealt(found, self._rank - first, after - first)
        while True:
            try:
                return self._collate(found or [(int(passes[0]), absent_row("none"))], nodes)
            except BadSampleError as error:
                self._leave_out(error)
                found = [(number, row) for number, row in found if row.sample_id != error.sample_id]

    def _dealt(self, found: list[tuple[int, ToldRow]], own: int, ranks: int) -> list[tuple[int, ToldRow]]:
        """Return this rank's samples of those of several ranks, each of which gets about as many tokens."""
        bad: list[BadSampleError] = []  # whose turn they are will meet them again
        written = self._write(found, bad)
        tokens = [
            self._tokens_beside * int(visible.sum()) + (len(told.token_ids) if told else 0) for told, visible in written
        ]
        mine = deal(tokens, ranks)[own]
        for place in mine:
            number, row = found[place]
            if (told := written[place][0]) is not None:
                self._said[number, row.sample_id] = told
        return [found[place] for place in mine]

    def _collate(self, found: list[tuple[int, ToldRow]], nodes: int | None) -> Batch:
        texts, visible = zip(*self._write(found), strict=True)
        return collate_rows([row for _, row in found], texts, self._memory, nodes, np.stack(visible))

    def _leave_out(self, error: BadSampleError) -> None:
        """Note a sample that cannot be used, or give up."""
        if error.sample_id in self.bad_samples:
            return
        if len(self.bad_samples) >= self._max_bad:
            told = f"; left out before: {', '.join(self.bad_samples)}" if self.bad_samples else ""
            raise InputError(f"{error}{told}; data.max_bad_samples={self._max_bad} lets no more be left out") from error
        self.bad_samples[error.sample_id] = error.reason
        print(f"[stream] left out: {error}", file=sys.stderr, flush=True)

    def _write(
        self, found: Sequence[tuple[int, ToldRow]], bad: list[BadSampleError] | None = None
    ) -> list[tuple[TextSample | None, np.ndarray]]:
        """Return the text about each sample, and what the fusion may read of it (Q bool).

        Args:
            found: Pass and row of each.
            bad: Takes the errors of samples that cannot be told; they get no text.

        Raises:
            BadSampleError: One cannot be told, and there is no list of them.
        """
        views: list[np.ndarray] = []
        texts: list[TextSample | None] = [None] * len(found)
        strings: dict[int, tuple[str, str, str]] = {}
        for place, (number, row) in enumerate(found):
            visible, observable_only = self._shown(number, row)
            views.append(visible)
            if observable_only is None:
                continue
            texts[place] = self._said.pop((number, row.sample_id), None)  # when its length was needed before
            if texts[place] is None:
                random = generator("text", self.seed, number, row.sample_id)
                try:
                    strings[place] = text.describe(row.sample(), observable_only, random)
                except BadSampleError as error:
                    if bad is None:
                        raise
                    bad.append(error)
        written = text.encode_all(list(strings.values()), self._tokenizer, self._max_tokens)
        for place, told in zip(strings, written, strict=True):
            texts[place] = told
        return list(zip(texts, views, strict=True))

    def _shown(self, pass_number: int, row: ToldRow) -> tuple[np.ndarray, bool | None]:
        """Return what the fusion may read, and whether the text tells of observables alone (None: there is no text)."""
        present = row.fixed()[PRESENT].view(bool)
        if self._tokenizer is None and self.text_mode == "full":
            return present, None
        present = present.copy()
        can_write = self._tokenizer is not None and present[SPECTRUM] and present[PLANET_PARAMETERS]
        present[TEXT] = can_write
        visible = _visible(present, self.text_mode, (self.seed, pass_number, row.sample_id))
        observable_only = bool((visible != present).any()) or self.text_mode == "observable"
        return visible, observable_only if can_write else None

    # --- sizes, for buckets ------------------------------------------------------------------------------------------
    def _nodes(self, pass_number: int, shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return self._sizes(pass_number, shards, rows, lambda row: len(row.graph().metabolites))

    def _tokens(self, pass_number: int, shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
        def tokens(row: ToldRow) -> int:
            ((said, _),) = self._write([(pass_number, row)])
            if said is None:
                return 0
            self._said[pass_number, row.sample_id] = said
            return len(said.token_ids)

        if len(self._said) > TEXTS_KEPT:  # of samples that other ranks took
            self._said.clear()

        return self._sizes(pass_number, shards, rows, tokens)

    def _sizes(self, pass_number: int, shards: np.ndarray, rows: np.ndarray, size: Any) -> np.ndarray:
        sizes = np.zeros(len(rows), np.int64)
        for i, (shard, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True)):
            try:
                sizes[i] = size(self.source.row(shard, row))
            except BadSampleError:  # it is reported when its batch is made
                continue
        return sizes


def _nodes_of(row: ToldRow) -> int:
    try:
        return len(row.graph().metabolites)
    except BadSampleError:  # whose turn it is will meet it again
        return 0


def deal(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Return the places of each rank: equally many (the first ranks one more), of about the same size in sum.

    The largest first, each to the rank with least that has room.
    """
    least, more = divmod(len(sizes), ranks)
    room = [least + (rank < more) for rank in range(ranks)]
    sums = [0] * ranks
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    for place in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        rank = min((r for r in range(ranks) if len(dealt[r]) < room[r]), key=lambda r: (sums[r], r))
        dealt[rank].append(place)
        sums[rank] += sizes[place]
    return [sorted(places) for places in dealt]


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
    return BatchStream(open_source(data_dir, split, graphs=graphs, check=check), split, samples_per_rank, **options)


def open_source(
    data: str | Path,
    split: str,
    *,
    graphs: str | Path = "",
    parts: Sequence[str] = (),
    missing: Missing = "error",
    check: bool = False,
    damaged: Damaged = "refuse",
    shuffle_shards: int = SHUFFLE_SHARDS,
) -> Source:
    """Return the samples of one split as the fields of `trainers.config.DataConfig` say.

    Args:
        data: Folder, URL or hub name.
        split: train, held_out or test.
        graphs: Folder of NPZ graphs, to read instead.
        parts: "modality=folder" of modalities that are stored apart.
        missing: About a sample that a part does not hold.
        check: Compare checksums; with `damaged="skip"` on every rank, so that all leave the same shards out.
        damaged: About damaged shards.
        shuffle_shards: As of the BatchStream.
    """
    if graphs:
        return GraphFolderSource(graphs, split)
    source = ShardSource(data, split, check, damaged, shuffle_shards)
    return JoinedSource(source, parse_parts(parts), missing) if parts else source


def _visible(present: np.ndarray, mode: TextMode, key: tuple[object, ...]) -> np.ndarray:
    if mode == "mixed":
        random = generator("visible", *key)
        draw = random.random()
        if draw >= FULL_SHARE + OBSERVABLE_SHARE:
            parts = np.flatnonzero(present)
            shown = random.permutation(parts)[: random.integers(1, len(parts) + 1)]  # single ones as often as all
            visible = np.zeros(len(present), bool)
            visible[shown] = True
            return visible
        mode = "full" if draw < FULL_SHARE else "observable"
    return present.copy() if mode == "full" else present & _OBSERVABLE
