from __future__ import annotations

import threading
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_fixture import built_dataset, chain, sample

from data_pipeline import shards
from data_pipeline.batch import GRAPH, TEXT, Batch, Sample
from data_pipeline.errors import InputError
from data_pipeline.shards import Manifest
from data_pipeline.stream import BatchStream, open_stream


class Numbered:
    """50 numbered samples in six shards, in memory."""

    shard_rows = [9, 9, 9, 9, 9, 5]
    chemistry: dict[str, Any] = {}
    _climate = np.zeros((53, 32, 64), np.float32)

    def read(self, shard: int, rows: np.ndarray) -> list[Sample]:
        return [replace(sample(9 * shard + int(row)), climate=self._climate) for row in rows]


def numbers(batches: Any) -> list[int]:
    return [int(i.removeprefix("planet-")) for batch in batches for i in batch.sample_ids]


def stream(per_rank: int, rank: int = 0, world: int = 1, **options: Any) -> BatchStream:
    return BatchStream(Numbered(), "train", per_rank, rank, world, **options)


def steps(
    per_rank: int, world: int, count: int, state: dict[str, int] | None = None
) -> tuple[list[int], dict[str, int]]:
    """Take `count` steps on `world` ranks; return the samples in global order and the state, equal on all ranks."""
    streams = [stream(per_rank, rank, world) for rank in range(world)]
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


def test_samples_that_fill_no_step_are_left_out_and_said() -> None:
    each = stream(4, rank=1, world=3)
    assert len(each) == 4 and each.dropped_samples == 2
    states = []
    for _ in islice(each, 5):
        states.append((each.state_dict()["pass"], each.state_dict()["step"]))
    assert states == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 1)]


@pytest.mark.parametrize(
    ("stop", "before", "after"), [(0, 2, 1), (3, 1, 2), (5, 4, 2), (6, 2, 4), (11, 2, 2), (13, 8, 1)]
)
def test_stopping_and_going_on_with_other_ranks_loses_and_repeats_nothing(stop: int, before: int, after: int) -> None:
    uninterrupted, end = steps(per_rank=8, world=1, count=18)
    first, state = steps(per_rank=8 // before, world=before, count=stop)
    second, last = steps(per_rank=8 // after, world=after, count=18 - stop, state=state)
    assert first + second == uninterrupted and last == end


def test_batches_made_ahead_do_not_move_the_state() -> None:
    each = stream(5)
    batches = iter(each)
    next(batches)
    time.sleep(0.3)  # the thread is two batches ahead
    assert each.state_dict() == {"pass": 0, "step": 1, "samples_per_step": 5, "seed": 0}


def test_going_on_with_smaller_steps_keeps_the_place() -> None:
    all_samples, state = numbers(islice(stream(10), 5)), None
    each = stream(10)
    list(islice(each, 2))
    state = each.state_dict()
    smaller = stream(5)
    smaller.load_state_dict(state)
    assert numbers(islice(smaller, 6)) == all_samples[20:]


def test_another_seed_or_a_step_that_does_not_divide_the_place_is_refused() -> None:
    state = {"pass": 0, "step": 1, "samples_per_step": 10, "seed": 0}
    with pytest.raises(InputError, match="data.seed=1: the run was started with 0"):
        stream(10, seed=1).load_state_dict(state)
    with pytest.raises(
        InputError, match="7 samples a step do not divide the place 10 .* keep samples_per_rank x ranks = 10"
    ):
        stream(7).load_state_dict(state)


def test_too_few_samples_for_one_step_are_refused() -> None:
    with pytest.raises(InputError, match="split 'train' holds 50 samples, one step takes 60"):
        stream(30, world=2)


def test_evaluation_is_one_pass_in_file_order_with_a_short_last_batch() -> None:
    each = stream(16, repeat=False)
    assert len(each) == 4 and numbers(each) == list(range(50))
    assert numbers(islice(each, 1)) == numbers(islice(each, 1)) == list(range(16))
    assert [len(b.sample_ids) for b in each] == [16, 16, 16, 2]


def test_evaluation_on_two_ranks_takes_equal_numbers_of_steps() -> None:
    parts = [list(stream(8, rank, 2, repeat=False)) for rank in range(2)]
    assert [len(p) for p in parts] == [3, 3] == [len(stream(8, r, 2, repeat=False)) for r in range(2)]


def test_an_error_while_reading_comes_out_of_the_loop_and_no_thread_stays() -> None:
    class Broken(Numbered):
        def read(self, shard: int, rows: np.ndarray) -> list[Sample]:
            raise InputError("shard=x: gone")

    with pytest.raises(InputError, match="shard=x: gone"):
        list(BatchStream(Broken(), "train", 4))
    next(iter(stream(4)))
    time.sleep(0.3)
    assert not [t for t in threading.enumerate() if t.name == "stream"]


def test_mixed_mode_shows_all_or_observables_or_a_random_part() -> None:
    class Complete(Numbered):
        def read(self, shard: int, rows: np.ndarray) -> list[Sample]:
            return [replace(s, present=np.ones(6, bool)) for s in super().read(shard, rows)]

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


def test_a_damaged_shard_is_refused_before_the_first_batch(written: Path, tmp_path: Path) -> None:
    for path in written.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((tmp_path / "train-00002.parquet").read_bytes())
    content[100] ^= 1
    (tmp_path / "train-00002.parquet").write_bytes(content)
    with pytest.raises(InputError, match="train-00002.parquet: wrong checksum"):
        open_stream(tmp_path, "train", 4, check=True)
    (tmp_path / "train-00002.parquet").unlink()
    with pytest.raises(InputError, match="train-00002.parquet: missing"):
        open_stream(tmp_path, "train", 4)


def test_a_split_without_samples_is_refused(written: Path) -> None:
    with pytest.raises(InputError, match="no held_out samples in it; build more planets"):
        open_stream(written, "held_out", 4, repeat=False)


def test_a_shard_that_goes_away_while_reading_is_named(written: Path, tmp_path: Path) -> None:
    for path in written.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    each = open_stream(tmp_path, "train", 2)
    (tmp_path / "train-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="train-00001.parquet: cannot be read any more"):
        list(islice(each, 7))


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
        assert one.sample_ids == left.sample_ids + right.sample_ids and bool(one.present[:, TEXT].all())
        for part, rows in ((left, slice(0, 4)), (right, slice(4, 8))):
            length = part.text.token_ids.shape[1]
            assert torch.equal(one.text.token_ids[rows, :length] * part.text.attention_mask, part.text.token_ids)
        answer = tokenizer.decode(one.text.token_ids[0][one.text.label_ids[0] >= 0])
        assert len(answer) > 2
