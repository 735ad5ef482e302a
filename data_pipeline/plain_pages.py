"""Find the values of a raw-bytes column in a parquet file, so that they can be read straight into a batch.

A decoder copies every value of a row group once to hand any of them out. A column that is neither compressed nor
dictionary-encoded lies in the file as it is in memory: pages of [header, levels, (length, bytes) ...]. Its offsets take
a few short reads; then a value is one read from the page cache to where it belongs. Measured for 434 kB cubes: see
benchmarks/results. Any other layout is told as None, and the caller decodes.

Source:
    Apache Parquet format: PageHeader (Thrift compact protocol), DATA_PAGE v1, PLAIN byte arrays, RLE levels.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pyarrow.parquet as pq

PREFIX = struct.Struct("<I")  # length before each value
_HEADER_BYTES = 256  # more than a header without statistics
_DATA_PAGE, _PLAIN, _RLE = 0, 0, 3
_I32, _STRUCT, _STOP = 5, 12, 0


class _OtherLayoutError(Exception):
    pass


def value_offsets(file: int, metadata: pq.FileMetaData, column: str, value_bytes: int) -> list[int] | None:
    """Return where the length prefix of each row's value is, for values of `value_bytes` each.

    Args:
        file: Descriptor of the file.
        metadata: Its footer.
        column: A column of the schema.
        value_bytes: Size of one value without its prefix.

    Returns:
        One offset a row, or None when the column is laid out in another way (compressed, encoded, other sizes, nulls).
    """
    offsets: list[int] = []
    try:
        for group in range(metadata.num_row_groups):
            chunk = _chunk(metadata.row_group(group), column)
            nullable = metadata.schema.column(_position(metadata.row_group(group), column)).max_definition_level
            for start, values in _pages(file, chunk, nullable, value_bytes):
                offsets += [start + i * (PREFIX.size + value_bytes) for i in range(values)]
    except (_OtherLayoutError, IndexError):  # IndexError: a header that ends early
        return None
    return offsets if len(offsets) == metadata.num_rows else None


def _position(group: pq.RowGroupMetaData, column: str) -> int:
    for position in range(group.num_columns):
        if group.column(position).path_in_schema == column:
            return position
    raise _OtherLayoutError


def _chunk(group: pq.RowGroupMetaData, column: str) -> pq.ColumnChunkMetaData:
    chunk = group.column(_position(group, column))
    if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
        raise _OtherLayoutError
    return chunk


def _pages(file: int, chunk: pq.ColumnChunkMetaData, nullable: int, value_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield (offset of the first prefix, number of values) of each page."""
    place, end = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
    while place < end:
        head = os.pread(file, _HEADER_BYTES, place)
        size, values, length = _page_header(head)
        body = size - values * (PREFIX.size + value_bytes)
        levels = head[length : length + body]
        expected = b"" if not nullable else _all_present(values)
        if body < 0 or levels != expected:
            raise _OtherLayoutError
        yield place + length + body, values
        place += length + size


def _all_present(values: int) -> bytes:
    """Return the definition levels of a page without nulls: one RLE run of ones."""
    run = _varint(values << 1) + b"\x01"
    return PREFIX.pack(len(run)) + run


def _page_header(head: bytes) -> tuple[int, int, int]:
    """Return (bytes of the body, values, bytes of the header) of a plain data page."""
    page, place = _integers(head, 0)
    if page.get(1) != _DATA_PAGE or page.get(2) != page.get(3) or head[place] & 15 != _STRUCT:
        raise _OtherLayoutError
    data, place = _integers(head, place + 1)
    if head[place] & 15 == _STRUCT and head[place + 1] == _STOP:  # statistics that hold nothing
        place += 2
    if data.get(2) != _PLAIN or data.get(3) != _RLE or head[place] != _STOP or head[place + 1] != _STOP:
        raise _OtherLayoutError
    return page[3], data[1], place + 2


def _integers(head: bytes, place: int) -> tuple[dict[int, int], int]:
    """Read the i32 fields at the start of a struct; stop at the first field of another type."""
    found: dict[int, int] = {}
    field = 0
    while head[place] & 15 == _I32 and head[place] >> 4:
        field += head[place] >> 4
        value, place = _read_varint(head, place + 1)
        found[field] = (value >> 1) ^ -(value & 1)
    return found, place


def _read_varint(head: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = head[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value >= 128:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
