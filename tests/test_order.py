from __future__ import annotations

from data_pipeline.order import WINDOW_SHARDS, generator, windows

ROWS = [3, 3, 3, 3, 3, 2]


def places(seed: int = 0, pass_number: int = 0, shuffle: bool = True, begin: int = 0) -> list[tuple[int, int]]:
    """(shard, row) by position, from the window that holds `begin` on."""
    found = windows(ROWS, seed, pass_number, shuffle, begin)
    return [(int(s), int(r)) for w in found for s, r in zip(w.shards, w.rows, strict=True)]


def test_a_pass_holds_every_row_of_every_shard_once() -> None:
    everything = [(s, r) for s, n in enumerate(ROWS) for r in range(n)]
    assert sorted(places()) == everything and places() != everything


def test_without_shuffle_the_order_is_that_of_the_files() -> None:
    assert places(shuffle=False) == [(s, r) for s, n in enumerate(ROWS) for r in range(n)]


def test_each_pass_and_each_seed_has_its_own_order() -> None:
    assert places(pass_number=1) != places() != places(seed=1)
    assert places(seed=3, pass_number=2) == places(seed=3, pass_number=2)


def test_starting_later_reads_only_the_windows_from_there_on() -> None:
    first, second = windows(ROWS, 0, 0, True, 0)
    assert WINDOW_SHARDS == 4 and first.start == 0 and second.start == len(first.rows)
    assert places(begin=second.start) == places()[second.start :]
    assert places(begin=second.start - 1) == places()


def test_the_random_numbers_of_a_key_are_the_same_on_every_machine() -> None:
    assert generator("text", 0, 1, "planet-0000007").integers(1_000_000) == 601_810
    assert generator("text", 0, 1, "planet-0000008").integers(1_000_000) != 601_810
