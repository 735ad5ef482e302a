from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_fixture import built_dataset, chain, sample

from data_pipeline import shard_rows, shards
from data_pipeline.batch import GRAPH, PLANET_PARAMETERS, TEXT, Batch
from data_pipeline.errors import InputError
from data_pipeline.folders import remote_url
from data_pipeline.join import write_part
from data_pipeline.shard_rows import BadSampleError, Row, SampleRow
from data_pipeline.shards import Manifest
from data_pipeline.stream import BatchStream, ShardSource, deal, open_source, open_stream
from trainers.config import DataConfig


class Numbered:
    """50 numbered samples in six shards, in memory."""

    shard_rows = [9, 9, 9, 9, 9, 5]
    left_out: tuple[str, ...] = ()
    chemistry: dict[str, Any] = {}
    _samples = [replace(sample(n), climate=np.zeros((53, 32, 64), np.float32)) for n in range(50)]

    def row(self, shard: int, row: int) -> Row:
        return SampleRow(self._samples[9 * shard + row])


def numbers(batches: Any) -> list[int]:
    return [int(i.removeprefix("planet-")) for batch in batches for i in batch.sample_ids]


def stream(per_rank: int, rank: int = 0, world: int = 1, **options: Any) -> BatchStream:
    return BatchStream(Numbered(), "train", per_rank, rank, world, **options)


def steps(
    per_rank: int, world: int, count: int, state: dict[str, Any] | None = None, workers: int = 1
) -> tuple[list[int], dict[str, Any]]:
    """Take `count` steps on `world` ranks; return the samples in global order and the state, equal on all ranks."""
    streams = [stream(per_rank, rank, world, workers=workers) for rank in range(world)]
    if state is not None:
        for each in streams:
            each.load_state_dict(state)
    taken = list(zip(*(islice(each, count) for each in streams), strict=True))
    states = [each.state_dict() for each in streams]
    assert all(s == states[0] for s in states)
    return [n for step in taken for n in numbers(step)], states[0]


def test_a_pass_on_two_ranks_gives_every_sample_of_full_steps_once() -> None:
    both, _ = steps(per_rank=5, world=2, count=5)
    assert sorted(both) == list(range(50))


def test_two_ranks_take_the_halves_of_what_one_process_takes() -> None:
    assert steps(per_rank=4, world=2, count=20)[0] == steps(per_rank=8, world=1, count=20)[0]


def test_the_order_changes_with_the_seed_and_with_the_pass() -> None:
    first, second = numbers(islice(stream(10), 5)), numbers(islice(stream(10), 5, 10))
    assert sorted(first) == sorted(second) and first != second
    assert numbers(islice(stream(10, seed=1), 5)) != first


def test_passes_follow_each_other_without_a_gap_and_leave_no_sample_out() -> None:
    taken, state = steps(per_rank=4, world=3, count=25)  # 300 samples: six passes of 50
    assert state["position"] == 300 and stream(4, world=3).dropped_samples == 0
    assert all(sorted(taken[first : first + 50]) == list(range(50)) for first in range(0, 300, 50))


@pytest.mark.parametrize(
    ("stop", "before", "after"), [(0, 2, 1), (3, 1, 2), (5, 4, 2), (6, 2, 4), (11, 2, 2), (13, 8, 1)]
)
def test_stopping_and_going_on_with_other_ranks_loses_and_repeats_nothing(stop: int, before: int, after: int) -> None:
    uninterrupted, end = steps(per_rank=8, world=1, count=18)
    first, state = steps(per_rank=8 // before, world=before, count=stop)
    second, last = steps(per_rank=8 // after, world=after, count=18 - stop, state=state)
    assert first + second == uninterrupted and last == end


def test_fifty_random_stops_lose_and_repeat_nothing() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        stop, before, after, workers = (int(n) for n in random.integers((0, 1, 1, 1), (12, 5, 5, 4)))
        first, state = steps(per_rank=int(random.integers(1, 6)), world=before, count=stop)
        left = 50 * (len(first) // 50 + 2) - len(first)  # to the end of the pass after the one that is under way
        per_rank = int(random.integers(1, 6))
        second, _ = steps(per_rank, after, -(-left // (per_rank * after)), json.loads(json.dumps(state)), workers)
        taken = first + second[:left]
        counts = np.array([np.bincount(taken[p : p + 50], minlength=50) for p in range(0, len(taken), 50)])
        assert (counts == 1).all(), (stop, before, after, workers)


def test_batches_made_ahead_do_not_move_the_state() -> None:
    each = stream(5, workers=2)
    batches = iter(each)
    next(batches)
    time.sleep(0.3)  # the threads are ahead
    assert each.state_dict()["position"] == 5
    assert len(json.dumps(each.state_dict())) < 100


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_order_of_batches_is_that_of_one_worker(workers: int) -> None:
    assert numbers(islice(stream(7, workers=workers), 20)) == numbers(islice(stream(7), 20))


def test_going_on_with_other_steps_keeps_the_place() -> None:
    all_samples = numbers(islice(stream(10), 10))
    each = stream(10)
    list(islice(each, 2))
    other = stream(7)
    other.load_state_dict(each.state_dict())
    assert numbers(islice(other, 11)) == all_samples[20:97]


def test_what_another_order_would_follow_from_is_refused() -> None:
    state = stream(10).state_dict()
    with pytest.raises(InputError, match="data.seed=1: the run was started with 0"):
        stream(10, seed=1).load_state_dict(state)
    with pytest.raises(InputError, match="data.shuffle_shards, data.buckets .* are not those that the run was started"):
        stream(10, shuffle_shards=2).load_state_dict(state)
    with pytest.raises(InputError, match="data.buckets .* are not those"):
        stream(10, buckets="nodes").load_state_dict(state)
    with pytest.raises(InputError, match="shard=train-00003.parquet: damaged now or then, but not both"):
        stream(10).load_state_dict({**state, "left_out": ["train-00003.parquet"]})
    with pytest.raises(InputError, match="of an older version; start the run again"):
        stream(10).load_state_dict({"pass": 0, "step": 1})


def test_too_few_samples_for_one_step_are_refused() -> None:
    with pytest.raises(InputError, match="split 'train' holds 50 samples, one step takes 60"):
        stream(30, world=2)


def test_evaluation_is_one_pass_in_file_order_with_a_short_last_batch() -> None:
    each = stream(16, repeat=False)
    assert len(each) == 4 and numbers(each) == list(range(50))
    assert numbers(islice(each, 1)) == numbers(islice(each, 1)) == list(range(16))
    assert [len(b.sample_ids) for b in each] == [16, 16, 16, 2]


def test_evaluation_on_two_ranks_reads_every_sample_in_equal_numbers_of_steps() -> None:
    parts = [list(stream(8, rank, 2, repeat=False)) for rank in range(2)]
    assert [[len(b.sample_ids) for b in part] for part in parts] == [[8, 8, 8, 1]] * 2
    assert numbers(b for step in zip(*parts, strict=True) for b in step) == list(range(50))


def test_evaluation_leaves_out_what_is_fewer_than_the_ranks_and_says_so() -> None:
    parts = [list(stream(1, rank, 3, repeat=False)) for rank in range(3)]
    assert [len(p) for p in parts] == [16] * 3 and stream(1, world=3, repeat=False).dropped_samples == 2


class Broken(Numbered):
    """Samples 13 and 31 cannot be read."""

    def row(self, shard: int, row: int) -> Row:
        if 9 * shard + row in (13, 31):
            raise BadSampleError(f"planet-{9 * shard + row:07d}", "gone")
        return super().row(shard, row)


def test_a_bad_sample_is_refused_by_name_and_no_thread_stays() -> None:
    with pytest.raises(InputError, match="sample=planet-00000(13|31): gone; data.max_bad_samples=0 lets no more"):
        list(islice(BatchStream(Broken(), "train", 4), 13))
    next(iter(stream(4)))
    time.sleep(0.3)
    assert not [t for t in threading.enumerate() if t.name.startswith("stream")]


def test_bad_samples_up_to_the_limit_are_left_out_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    each = BatchStream(Broken(), "train", 10, max_bad_samples=2)
    taken = numbers(islice(each, 10))  # two passes
    assert sorted(taken) == sorted(2 * [n for n in range(50) if n not in (13, 31)])
    assert each.bad_samples == {"planet-0000013": "gone", "planet-0000031": "gone"}
    assert capsys.readouterr().err.count("[stream] left out: sample=planet-") == 2
    with pytest.raises(InputError, match="gone; left out before: planet-.*; data.max_bad_samples=1 lets no more"):
        list(islice(BatchStream(Broken(), "train", 10, max_bad_samples=1), 5))


@pytest.mark.parametrize(("workers", "seed"), [(1, 0), (3, 0), (2, 5)])
def test_ranks_that_meet_bad_samples_keep_step_and_order(workers: int, seed: int) -> None:
    """Each rank skips what lies in its own part: 20 batches on both, one process's order without the two samples."""
    ranks = [BatchStream(Broken(), "train", 5, rank, 2, seed, workers=workers, max_bad_samples=2) for rank in range(2)]
    parts = [list(islice(each, 20)) for each in ranks]  # four passes
    assert [len(part) for part in parts] == [20, 20]
    together = [n for step in zip(*parts, strict=True) for n in numbers(step)]
    undamaged = numbers(islice(stream(10, seed=seed), 20))
    assert together == [n for n in undamaged if n not in (13, 31)]
    assert ranks[0].state_dict() == ranks[1].state_dict() == {**stream(10, seed=seed).state_dict(), "position": 200}
    assert set(ranks[0].bad_samples) | set(ranks[1].bad_samples) == {"planet-0000013", "planet-0000031"}


def test_ranks_that_meet_bad_samples_end_an_evaluation_together() -> None:
    parts = [list(BatchStream(Broken(), "train", 8, r, 2, repeat=False, max_bad_samples=2)) for r in range(2)]
    assert [len(part) for part in parts] == [4, 4]
    assert [n for step in zip(*parts, strict=True) for n in numbers(step)] == [
        n for n in range(50) if n not in (13, 31)
    ]


def test_a_batch_of_nothing_but_bad_samples_is_one_of_which_nothing_is_present() -> None:
    each = BatchStream(Broken(), "train", 1, repeat=False, max_bad_samples=2)
    lengths = [(len(b.sample_ids), bool(b.present.any())) for b in each]
    assert lengths.count((1, False)) == 2 and lengths[13] == lengths[31] == (1, False)


def test_mixed_mode_shows_all_or_observables_or_a_random_part() -> None:
    class Complete(Numbered):
        _samples = [replace(s, present=np.ones(6, bool)) for s in Numbered._samples]

    def shown(mode: str, passes: int) -> np.ndarray:
        each = BatchStream(Complete(), "train", 10, text_mode=mode)
        return np.concatenate([b.visible.numpy() for b in islice(each, 5 * passes)])[:, [0, 1, 2, 4, 5]]

    assert shown("full", 1).all()
    assert (shown("observable", 1) == [False, True, False, True, False]).all()
    mixed = shown("mixed", 8)  # 400 samples; without a tokenizer there is no text
    assert mixed.any(1).all()
    assert mixed.all(1).mean() == pytest.approx(0.30 + 0.25 / 5, abs=0.07)
    assert (mixed.sum(1) == 1).mean() == pytest.approx(0.25 / 5, abs=0.03)


def test_what_is_shown_does_not_depend_on_the_number_of_ranks() -> None:
    one = torch.cat([b.visible for b in islice(stream(10), 5)])
    two = [list(islice(stream(5, rank, 2), 5)) for rank in range(2)]
    assert torch.equal(one, torch.cat([b.visible for step in zip(*two, strict=True) for b in step]))


# --- on parquet ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen numbered samples in five shards."""
    folder, files = tmp_path_factory.mktemp("written"), []
    for shard, rows in enumerate(np.split(np.arange(14), [3, 6, 9, 12])):
        samples = [sample(int(n), chain("a", "b", "c") if n % 2 else None) for n in rows]
        files.append(shards.write_shard(folder / f"train-{shard:05d}.parquet", samples))
    (folder / "chemistry.json").write_text('{"metabolites": ["a", "b", "c"]}')
    shards.save_manifest(
        folder, Manifest(planets=14, seed=0, sources={}, vocabulary=("a", "b", "c"), shards=tuple(files), facts={})
    )
    return folder


def test_shards_come_back_through_the_stream_number_for_number(written: Path) -> None:
    seen: list[int] = []
    for batch in islice(BatchStream(written, "train", 7), 2):
        for b, number in enumerate(numbers([batch])):
            assert batch.climate[b].unique().item() == batch.planet[b, 0].item() == number
            assert bool(batch.present[b, GRAPH]) == bool(number % 2) == (batch.graph.mask[b].sum().item() == 3)
            seen.append(number)
    assert sorted(seen) == list(range(14))


def test_two_ranks_over_shards_equal_one_process(written: Path) -> None:
    one = list(islice(BatchStream(written, "train", 6), 3))
    two = [list(islice(BatchStream(written, "train", 3, rank, 2), 3)) for rank in range(2)]
    for whole, left, right in zip(one, *two, strict=True):
        assert whole.sample_ids == left.sample_ids + right.sample_ids
        assert torch.equal(whole.climate, torch.cat([left.climate, right.climate]))
        assert torch.equal(whole.visible, torch.cat([left.visible, right.visible]))


def copy_of(folder: Path, to: Path) -> Path:
    to.mkdir(exist_ok=True)
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_a_damaged_shard_is_refused_before_the_first_batch(written: Path, tmp_path: Path) -> None:
    shard = copy_of(written, tmp_path) / "train-00002.parquet"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError, match="train-00002.parquet: wrong checksum.*data.damaged_shards=skip"):
        open_stream(tmp_path, "train", 4, check=True)
    shard.unlink()
    with pytest.raises(InputError, match="train-00002.parquet: missing"):
        open_stream(tmp_path, "train", 4)


def test_a_damaged_shard_is_named_and_left_out_as_asked(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = copy_of(written, tmp_path) / "train-00002.parquet"  # samples 6, 7, 8
    shard.write_bytes(shard.read_bytes()[:5000])
    source = ShardSource(tmp_path, "train", check=False, damaged="skip")
    each = BatchStream(source, "train", 11)
    assert sorted(numbers(islice(each, 1))) == [n for n in range(14) if n not in (6, 7, 8)]
    assert "train-00002.parquet: 5000 bytes, the manifest says" in capsys.readouterr().err
    with pytest.raises(InputError, match="shard=train-00002.parquet: damaged now or then, but not both"):
        BatchStream(written, "train", 11).load_state_dict(each.state_dict())
    for path in tmp_path.glob("train-*.parquet"):
        path.unlink()
    with pytest.raises(InputError, match="every train shard is damaged"):
        ShardSource(tmp_path, "train", check=False, damaged="skip")


@pytest.mark.parametrize("repeat", [True, False])
def test_ranks_that_leave_out_a_damaged_shard_keep_step_and_order(written: Path, tmp_path: Path, repeat: bool) -> None:
    shard = copy_of(written, tmp_path) / "train-00001.parquet"  # samples 3, 4, 5
    shard.write_bytes(shard.read_bytes()[:-100])

    def opened(per_rank: int, rank: int, world: int) -> BatchStream:
        source = open_source(tmp_path, "train", damaged="skip")
        return BatchStream(source, "train", per_rank, rank, world, repeat=repeat)

    one, ranks = opened(4, 0, 1), [opened(2, rank, 2) for rank in range(2)]
    whole, parts = list(islice(one, 11)), [list(islice(each, 11)) for each in ranks]
    assert len(parts[0]) == len(parts[1]) == len(whole) == (11 if repeat else 3)
    assert [n for step in zip(*parts, strict=True) for n in numbers(step)] == numbers(whole)
    counts = np.bincount(numbers(whole), minlength=14)
    assert counts.tolist() == [0 if n in (3, 4, 5) else 4 if repeat else 1 for n in range(14)]
    assert ranks[0].state_dict() == ranks[1].state_dict() == one.state_dict()
    assert one.state_dict()["left_out"] == ["train-00001.parquet"]


def test_ranks_that_meet_a_row_cut_short_inside_a_whole_shard_keep_step_and_order(
    written: Path, tmp_path: Path
) -> None:
    path = copy_of(written, tmp_path) / "train-00002.parquet"  # samples 6, 7, 8
    table = pq.read_table(path)
    cut = [value[:-4] if row == 1 else value for row, value in enumerate(table["planet"].to_pylist())]
    shards.write_table(path, table.set_column(table.column_names.index("planet"), "planet", pa.array(cut, pa.binary())))
    manifest = shards.load_manifest(tmp_path)
    entries = [shards.describe_shard(path, "train") if s.file == path.name else s for s in manifest.shards]
    shards.save_manifest(tmp_path, replace(manifest, shards=tuple(entries)))
    ranks = [open_stream(tmp_path, "train", 7, rank=r, world=2, max_bad_samples=1, workers=2) for r in range(2)]
    parts = [list(islice(each, 4)) for each in ranks]
    together = [n for step in zip(*parts, strict=True) for n in numbers(step)]
    assert together == [n for n in numbers(islice(open_stream(written, "train", 14), 4)) if n != 7]
    assert {**ranks[0].bad_samples, **ranks[1].bad_samples} == {"planet-0000007": "planet has 28 bytes, expected 32"}


def test_a_split_without_samples_is_refused(written: Path) -> None:
    with pytest.raises(InputError, match="no held_out samples in it; build more planets"):
        open_stream(written, "held_out", 4, repeat=False)


def test_a_shard_that_goes_away_while_reading_is_named(written: Path, tmp_path: Path) -> None:
    each = open_stream(copy_of(written, tmp_path), "train", 2)
    (tmp_path / "train-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="train-00001.parquet cannot be read any more"):
        list(islice(each, 7))


def test_a_shard_that_is_cut_while_it_is_read_costs_its_samples_alone(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Read, not mapped: the threads that read ahead would meet the cut in the middle of a copy, which ends the process.
    monkeypatch.setattr(shard_rows, "MAPPED_BYTES", 0)
    each = open_stream(copy_of(written, tmp_path), "train", 14, max_bad_samples=3)
    batches = iter(each)
    assert len(next(batches).sample_ids) == 14
    with (tmp_path / "train-00001.parquet").open("r+b") as file:
        file.truncate(1000)
    taken = numbers(islice(batches, 4))
    assert set(each.bad_samples) <= {"planet-0000003", "planet-0000004", "planet-0000005"} and each.bad_samples
    assert sorted(taken[-11:]) == [n for n in range(14) if n not in (3, 4, 5)]


def test_files_of_another_layout_come_through_the_hugging_face_dataset(written: Path, tmp_path: Path) -> None:
    files = []
    for path in copy_of(written, tmp_path).glob("*.parquet"):
        pq.write_table(pq.read_table(path), path, compression="zstd", row_group_size=2)
        files.append(shards.describe_shard(path, "train"))
    manifest = replace(shards.load_manifest(written), shards=tuple(sorted(files, key=lambda s: s.file)))
    shards.save_manifest(tmp_path, manifest)
    plain, packed = (next(iter(open_stream(folder, "train", 14, check=True))) for folder in (written, tmp_path))
    assert_equal(plain, packed)


def test_a_data_folder_at_a_url_equals_one_on_a_disk(written: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in written.iterdir():
        memory.pipe_file(f"/planets/{path.name}", path.read_bytes())
    here, there = (list(islice(open_stream(d, "train", 5), 4)) for d in (written, "memory://planets"))
    for one, other in zip(here, there, strict=True):
        assert_equal(one, other)
    memory.pipe_file("/planets/train-00001.parquet", b"cut")
    with pytest.raises(InputError, match="memory://planets/train-00001.parquet: 3 bytes, the manifest says"):
        open_stream("memory://planets", "train", 5)
    with pytest.raises(InputError, match="data=memory://nowhere: manifest.json cannot be read .* check the name"):
        open_stream("memory://nowhere", "train", 5)


class RangeHandler(SimpleHTTPRequestHandler):
    """A web server that gives parts of files, as all large ones do."""

    def do_GET(self) -> None:
        content = Path(self.translate_path(self.path)).read_bytes()
        first, last = 0, len(content) - 1
        if (asked := self.headers["Range"]) is not None:
            ends = asked.removeprefix("bytes=").split("-")
            first, last = int(ends[0]), min(int(ends[1] or last), last)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.write(content[first : last + 1])

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_web_server_is_a_data_folder(written: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(RangeHandler, directory=str(written))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        each = open_stream(f"http://127.0.0.1:{server.server_address[1]}", "train", 14)
        assert_equal(next(iter(each)), next(iter(open_stream(written, "train", 14))))
        server.shutdown()


def test_a_name_of_the_hub_is_asked_for_there() -> None:
    with pytest.raises(InputError, match="data=hf://datasets/somebody/planets: manifest.json cannot be read"):
        open_stream("somebody/planets", "train", 4)  # tests run without a network
    assert remote_url("data_pipeline/none") is None  # a folder of that name is here
    assert remote_url(Path("somebody/planets")) is None


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.sample_ids == other.sample_ids and torch.equal(one.climate, other.climate)
    assert torch.equal(one.spectrum.ppm, other.spectrum.ppm) and torch.equal(one.visible, other.visible)
    assert torch.equal(one.graph.adjacency, other.graph.adjacency) and torch.equal(one.habitable, other.habitable)
    assert torch.equal(one.graph.edge_type, other.graph.edge_type) and torch.equal(one.present, other.present)


# --- sizes -----------------------------------------------------------------------------------------------------------
def test_buckets_of_nodes_halve_the_padding_and_lose_nothing() -> None:
    class Sized(Numbered):
        shard_rows = [96]
        _samples = [
            replace(Numbered._samples[0], sample_id=f"planet-{n}", graph=chain(*map(str, range(2 + n % 48))))
            for n in range(96)
        ]

        def row(self, shard: int, row: int) -> Row:
            return SampleRow(self._samples[row])

    plain, bucketed = (BatchStream(Sized(), "train", 8, buckets=b, bucket_samples=16) for b in ("none", "nodes"))
    assert sorted(numbers(islice(plain, 12))) == sorted(numbers(islice(bucketed, 12))) == list(range(96))
    assert bucketed.padding["nodes"] < plain.padding["nodes"] / 2
    assert bucketed.padding["tokens"] == 1.0  # there is no text
    two = [BatchStream(Sized(), "train", 4, r, 2, buckets="nodes", bucket_samples=16) for r in range(2)]
    both = [numbers([b]) for step in zip(*(islice(s, 12) for s in two), strict=True) for b in step]
    again = numbers(islice(BatchStream(Sized(), "train", 8, buckets="nodes", bucket_samples=16), 12))
    assert [n for part in both for n in part] == again


@pytest.mark.parametrize("name", ["workers", "shuffle_shards", "bucket_samples"])
def test_the_numbers_of_a_configuration_are_checked(name: str) -> None:
    with pytest.raises(InputError, match=f"data.{name}=0: must be at least 1"):
        DataConfig(**{name: 0})
    with pytest.raises(InputError, match="data.max_bad_samples=-1: must be 0 or more"):
        DataConfig(max_bad_samples=-1)


def test_a_configuration_says_which_source_is_opened(written: Path, tmp_path: Path) -> None:
    chosen = DataConfig(dir=str(written), parts=(f"planet={tmp_path}",), missing="mask")
    write_part(tmp_path / "0.parquet", [sample(n + 1) for n in range(13)], "planet")
    source = open_source(chosen.dir, "train", parts=chosen.parts, missing=chosen.missing)
    batch = next(iter(BatchStream(source, "train", 14)))
    assert [bool(p) for p in batch.present[:, PLANET_PARAMETERS]] == [n > 0 for n in numbers([batch])]


def test_buckets_of_tokens_need_a_text() -> None:
    with pytest.raises(InputError, match="data.buckets=tokens: this part reads no text; choose nodes or none"):
        stream(4, buckets="tokens")


# --- on real data ----------------------------------------------------------------------------------------------------
def test_the_text_of_real_planets_depends_on_seed_pass_and_sample_alone() -> None:
    from models.configs import LanguageConfig
    from models.language import load_tokenizer

    tokenizer = load_tokenizer(LanguageConfig())

    def batches(per_rank: int, rank: int, world: int) -> list[Batch]:
        each = BatchStream(built_dataset(), "train", per_rank, rank, world, tokenizer=tokenizer, max_tokens=256)
        return list(islice(each, 3))

    whole, halves = batches(8, 0, 1), [batches(4, rank, 2) for rank in range(2)]
    for one, left, right in zip(whole, *halves, strict=True):
        assert sorted(one.sample_ids) == sorted(left.sample_ids + right.sample_ids)
        assert bool(one.present[:, TEXT].all())
        for part in (left, right):
            rows = [one.sample_ids.index(i) for i in part.sample_ids]
            length = part.text.token_ids.shape[1]
            assert torch.equal(one.text.token_ids[rows, :length] * part.text.attention_mask, part.text.token_ids)
        answer = tokenizer.decode(one.text.token_ids[0][one.text.label_ids[0] >= 0])
        assert len(answer) > 2


def test_ranks_deal_real_texts_so_that_none_waits_long_for_another() -> None:
    from models.configs import FusionConfig, LanguageConfig
    from models.language import load_tokenizer

    tokenizer = load_tokenizer(LanguageConfig())
    beside = FusionConfig().tokens_per_modality
    options = {"tokenizer": tokenizer, "max_tokens": 256, "tokens_beside": beside}
    ranks = [BatchStream(built_dataset(), "train", 6, r, 4, **options) for r in range(4)]
    whole = BatchStream(built_dataset(), "train", 24, tokenizer=tokenizer, max_tokens=256)
    for one, *parts in islice(zip(whole, *ranks, strict=False), 3):
        assert sorted(one.sample_ids) == sorted(i for part in parts for i in part.sample_ids)
        read = [int(p.text.attention_mask.sum() + beside * p.visible.sum()) for p in parts]
        slices = (one.text.attention_mask.sum(1) + beside * one.visible.sum(1)).unflatten(0, (4, 6)).sum(1)
        assert max(read) < 1.02 * sum(read) / 4 and max(read) < int(slices.max())
        assert {p.graph.mask.shape[1] for p in parts} == {one.graph.mask.shape[1]}  # one recording for all


def test_dealing_gives_equal_numbers_and_sums() -> None:
    sizes = np.random.default_rng(0).integers(100, 200, 64).tolist()
    dealt = deal(sizes, 4)
    assert [len(places) for places in dealt] == [16] * 4 and sorted(sum(dealt, [])) == list(range(64))
    sums = [sum(sizes[i] for i in places) for places in dealt]
    assert max(sums) - min(sums) < 8 < max(s := [sum(sizes[i : i + 16]) for i in range(0, 64, 16)]) - min(s)
    assert [len(places) for places in deal([1, 1, 1, 1, 1], 3)] == [2, 2, 1]


def test_buckets_of_tokens_lessen_the_padding_of_real_texts() -> None:
    from models.configs import LanguageConfig
    from models.language import load_tokenizer

    tokenizer = load_tokenizer(LanguageConfig())
    padding = []
    for buckets in ("none", "tokens"):
        each = BatchStream(built_dataset(), "train", 4, tokenizer=tokenizer, buckets=buckets, bucket_samples=4)
        list(islice(each, each.samples // 4))
        padding.append(each.padding["tokens"])
    assert padding[1] < 0.7 * padding[0]
