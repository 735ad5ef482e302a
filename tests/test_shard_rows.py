from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_fixture import chain, sample

from data_pipeline import shard_rows, shards
from data_pipeline.batch import Sample
from data_pipeline.shard_rows import CUBE, FIXED, BadSampleError, Opened, OpenShard, PlainFile, open_plain

NUMBERS = range(10)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Ten samples; the cube of sample n is all n, and odd ones have a network. A page holds two or three cubes."""
    samples = [sample(n, chain("a", "b", "c") if n % 2 else None) for n in NUMBERS]
    shards.write_shard(tmp_path / "train-00000.parquet", samples)
    return tmp_path / "train-00000.parquet"


def cube(opened: OpenShard, row: int) -> np.ndarray:
    out = np.empty((53, 32, 64), np.float32)
    if (view := opened.row(row).cube(out)) is not None:
        out.reshape(-1).view(np.uint8)[:] = view.numpy()
    return out


def assert_rows(opened: OpenShard, samples: list[Sample]) -> None:
    for number, expected in enumerate(samples):
        row = opened.row(number)
        assert row.sample_id == expected.sample_id
        np.testing.assert_array_equal(cube(opened, number), expected.climate)
        for name in FIXED.names:
            np.testing.assert_array_equal(row.fixed().view(FIXED)[name][0], getattr(expected, name), err_msg=name)
        assert row.graph().metabolites == expected.graph.metabolites
        np.testing.assert_array_equal(row.graph().edge_index, expected.graph.edge_index)
        assert row.sample().facts == expected.facts and row.sample().name == expected.name


def test_cubes_are_read_from_the_file_without_a_decoder(shard: Path) -> None:
    opened = open_plain(shard)
    assert opened is not None
    assert_rows(opened, shards.to_samples(shards.read_shard(shard)))
    assert opened.bytes < 0.03 * shard.stat().st_size  # the rest of the shard is not in memory


def test_files_beyond_the_mapped_ones_are_read_with_the_same_result(
    shard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = open_plain(shard)
    monkeypatch.setattr(shard_rows, "MAPPED_BYTES", 0)
    read = open_plain(shard)
    assert mapped is not None and mapped.plain is not None and read is not None and read.plain is not None
    assert mapped.plain._content is not None and read.plain._content is None
    assert_rows(read, shards.to_samples(shards.read_shard(shard)))
    with shard.open("r+b") as file:
        file.truncate(read.plain._offsets[5] + 1000)
    assert not read.plain.whole() and not mapped.plain.whole()
    with pytest.raises(BadSampleError, match="planet-0000005: shard=.* is cut short or was changed"):
        cube(read, 5)


def test_a_mapping_ends_with_its_shard(shard: Path) -> None:
    before = PlainFile._mapped_bytes
    opened = open_plain(shard)
    assert PlainFile._mapped_bytes == before + shard.stat().st_size
    del opened
    assert PlainFile._mapped_bytes == before


def test_a_decoded_table_gives_the_same_rows(shard: Path) -> None:
    table = shards.read_shard(shard)
    assert_rows(OpenShard(table), shards.to_samples(table))
    pieces = pa.concat_tables([table.slice(0, 3), table.slice(3)])
    assert_rows(OpenShard(pieces), shards.to_samples(table))


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zstd"},
        {"use_dictionary": True, "compression": None},
        {"data_page_version": "2.0", "compression": None, "use_dictionary": False},
        {"column_encoding": {CUBE: "DELTA_LENGTH_BYTE_ARRAY"}, "use_dictionary": False, "compression": None},
    ],
    ids=["compressed", "dictionary", "pages v2", "another encoding"],
)
def test_another_layout_is_left_to_a_decoder(shard: Path, options: dict[str, object]) -> None:
    pq.write_table(shards.read_shard(shard), shard, **options)
    assert open_plain(shard) is None


def test_several_row_groups_are_read_in_place_too(shard: Path) -> None:
    table = shards.read_shard(shard)
    pq.write_table(table, shard, row_group_size=4, compression=None, use_dictionary=False, write_statistics=False)
    opened = open_plain(shard)
    assert opened is not None
    assert [cube(opened, n).flat[-1] for n in NUMBERS] == list(NUMBERS)


def test_a_missing_value_or_one_of_another_size_is_left_to_a_decoder_and_named(shard: Path) -> None:
    table = shards.read_shard(shard)
    cubes = table.column(CUBE).to_pylist()
    cubes[4] = cubes[4][:-4]
    shorter = table.set_column(table.column_names.index(CUBE), CUBE, pa.array(cubes, pa.binary()))
    cubes[4] = None
    without = table.set_column(table.column_names.index(CUBE), CUBE, pa.array(cubes, pa.binary()))
    for changed, size in ((shorter, 434_172), (without, 0)):
        shards.write_table(shard, changed)
        assert open_plain(shard) is None
        opened = OpenShard(shards.read_shard(shard))
        assert cube(opened, 3).max() == 3
        with pytest.raises(BadSampleError, match=f"planet-0000004: climate has {size} bytes, expected 434176"):
            cube(opened, 4)


def test_a_file_that_is_changed_after_it_was_opened_is_named(shard: Path) -> None:
    opened = open_plain(shard)
    assert opened is not None and opened.plain is not None
    with shard.open("r+b") as file:
        file.seek(opened.plain._offsets[2])
        file.write(b"\0\0\0\0")
    assert cube(opened, 1).max() == 1
    with pytest.raises(BadSampleError, match="planet-0000002: shard=.*00000.parquet is cut short or was changed"):
        cube(opened, 2)


def test_networks_that_do_not_fit_together_are_named(shard: Path) -> None:
    table = shards.read_shard(shard)

    def changed(column: str, value: object) -> OpenShard:
        values = table.column(column).to_pylist()
        values[1] = value
        place = table.column_names.index(column)
        return OpenShard(table.set_column(place, column, pa.array(values, table.schema.field(column).type)))

    with pytest.raises(BadSampleError, match="planet-0000001: features does not have the shape"):
        changed("features", b"1234").row(1).graph()
    with pytest.raises(
        BadSampleError, match="planet-0000001: a network of 2 metabolites, 3 nodes and an edge to node 2"
    ):
        changed("metabolites", '["a", "b"]').row(1).graph()
    with pytest.raises(
        BadSampleError, match="planet-0000001: a network of 3 metabolites, 3 nodes and an edge to node 7"
    ):
        changed("edge_index", np.array([[0, 1], [1, 7]]).tobytes()).row(1).graph()
    with pytest.raises(BadSampleError, match="planet-0000001: planet has 4 bytes, expected 32"):
        changed("planet", b"1234").row(1)


def test_a_shard_is_opened_once_however_many_threads_ask() -> None:
    opened: list[int] = []
    table = shards.to_table([sample(0)])

    def open_slowly(number: int) -> OpenShard:
        opened.append(number)
        time.sleep(0.05)
        return OpenShard(table)

    cache = Opened(open_slowly, at_least=1)
    threads = [threading.Thread(target=lambda: cache[0]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened == [0]


def test_the_shards_opened_last_stay_and_no_more_than_the_limit() -> None:
    opened: list[int] = []
    table = shards.to_table([sample(0)])

    def open_one(number: int) -> OpenShard:
        opened.append(number)
        return OpenShard(table)

    cache = Opened(open_one, at_least=2, kept_bytes=table.nbytes)
    for number in (0, 1, 0, 2, 1, 2, 0):
        assert cache[number].rows == 1
    assert opened == [0, 1, 2, 0]


def test_an_error_of_opening_comes_out_and_is_tried_again() -> None:
    answers = [OSError("gone"), OpenShard(shards.to_table([sample(0)]))]

    def open_one(number: int) -> OpenShard:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    cache = Opened(open_one, at_least=1)
    with pytest.raises(OSError, match="gone"):
        cache[0]
    assert cache[0].rows == 1
