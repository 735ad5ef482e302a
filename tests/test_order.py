from __future__ import annotations

import numpy as np

from data_pipeline.order import Order, generator

ROWS = [3, 3, 3, 3, 3, 2]
SAMPLES = sum(ROWS)


def places(begin: int = 0, end: int = SAMPLES, rows: list[int] = ROWS, **options: object) -> list[tuple[int, int]]:
    """(shard, row) by position."""
    found = Order(rows, **{"seed": 0, **options}).places(begin, end)  # type: ignore[arg-type]
    return list(zip(found.shards.tolist(), found.rows.tolist(), strict=True))


def test_a_pass_holds_every_row_of_every_shard_once() -> None:
    everything = [(s, r) for s, n in enumerate(ROWS) for r in range(n)]
    assert sorted(places()) == everything and places() != everything
    assert sorted(places(SAMPLES, 2 * SAMPLES)) == everything


def test_without_shuffle_the_order_is_that_of_the_files() -> None:
    assert places(shuffle=False) == [(s, r) for s, n in enumerate(ROWS) for r in range(n)]


def test_each_pass_and_each_seed_has_its_own_order() -> None:
    assert places(SAMPLES, 2 * SAMPLES) != places() != places(seed=1)
    assert places(40, 60, seed=3) == places(40, 60, seed=3)


def test_any_place_is_found_without_those_before_it() -> None:
    whole = places(0, 5 * SAMPLES)
    assert all(places(p, p + 1) == [whole[p]] for p in (0, 11, 12, 16, 17, 40, 84))
    assert places(10, 40) == whole[10:40]


def test_positions_run_on_from_one_pass_into_the_next() -> None:
    assert Order(ROWS, 0).places(15, 19).passes.tolist() == [0, 0, 1, 1]


def test_a_million_shards_are_no_further_away_than_one() -> None:
    far = Order([64] * 1_000, 0)
    assert far.places(10**9, 10**9 + 4).passes.tolist() == [15625] * 4  # 10^9 / 64,000


def test_samples_of_four_shards_are_mixed_and_no_others() -> None:
    rows = [8] * 12
    first, wider = places(0, 32, rows), places(0, 64, rows, shuffle_shards=8)
    assert len({shard for shard, _ in first}) == 4 and len({shard for shard, _ in wider}) == 8
    assert len({shard for shard, _ in first[:8]}) > 1


def test_a_run_of_bucket_samples_is_of_one_size_and_a_pass_still_holds_every_row_once() -> None:
    rows = [16] * 8
    sizes = generator("sizes").integers(1, 50, (8, 16))
    found = places(0, 128, rows, bucket_samples=8, size_of=lambda _, shards, row: sizes[shards, row])
    assert sorted(found) == [(s, r) for s in range(8) for r in range(16)]
    runs = np.array([sizes[place] for place in found]).reshape(16, 8)
    mixed = np.array([sizes[place] for place in places(0, 128, rows)]).reshape(16, 8)
    assert np.ptp(runs, axis=1).mean() < np.ptp(mixed, axis=1).mean() / 4
    assert np.diff(runs[:8].mean(1)).min() < 0 < np.diff(runs[:8].mean(1)).max()  # runs of a window are shuffled


def test_the_run_that_is_not_full_comes_last_in_its_window() -> None:
    found = places(0, 10, [10], bucket_samples=4, size_of=lambda _, shards, row: row)
    assert [row for _, row in found[8:]] == [8, 9] and sorted(row for _, row in found[:4]) in (
        [0, 1, 2, 3],
        [4, 5, 6, 7],
    )


def test_what_decides_the_order_decides_its_fingerprint() -> None:
    def nodes(number: int, shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return rows

    prints = [
        Order(ROWS, 0).fingerprint,
        Order([3, 3], 0).fingerprint,
        Order(ROWS, 0, shuffle=False).fingerprint,
        Order(ROWS, 0, shuffle_shards=2).fingerprint,
        Order(ROWS, 0, size_of=nodes).fingerprint,
        Order(ROWS, 0, size_of=nodes, bucket_samples=8).fingerprint,
    ]
    assert len(set(prints)) == 6 and prints[0] == Order(ROWS, 5, bucket_samples=8).fingerprint


def test_the_random_numbers_of_a_key_are_the_same_on_every_machine() -> None:
    assert generator("text", 0, 1, "planet-0000007").integers(1_000_000) == 601_810
    assert generator("text", 0, 1, "planet-0000008").integers(1_000_000) != 601_810
