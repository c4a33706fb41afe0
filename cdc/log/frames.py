"""Frames: records of one table in one run of bytes, so that a row costs a fraction of an INSERT. Pure.

A frame is the lengths of all keys, the lengths of all values (unsigned 32-bit, little endian), all keys, all values. A record
without a key has the length NO_KEY and no bytes. A CRC-32 beside it (SQLite checks none) makes a changed byte loud.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple

from cdc.records import Records

NO_KEY = 0xFFFFFFFF
LENGTH_BYTES = 4


class Frame(NamedTuple):
    """`size` records, the first of them at `offset` of its run."""

    offset: int
    size: int
    body: bytes
    crc: int


class RecordTooLargeError(ValueError):
    """The record at `index` is larger than allowed."""

    def __init__(self, index: int, size_bytes: int) -> None:
        super().__init__(f"record {index} has {size_bytes} bytes")
        self.index, self.size_bytes = index, size_bytes


def pack(records: Records, frame_bytes: int, record_bytes: int) -> Iterator[Frame]:
    """Records as frames of at most `frame_bytes`, a larger record alone. Raises RecordTooLargeError above `record_bytes`."""
    keys, values = records.keys, records.values
    value_lengths = list(map(len, values))
    whole: list[bytes] = keys if None not in keys else [key or b"" for key in keys]  # type: ignore[assignment]
    key_lengths = list(map(len, whole))
    if max(key_lengths) + max(value_lengths) > record_bytes:
        for index, size in enumerate(map(int.__add__, key_lengths, value_lengths)):
            if size > record_bytes:
                raise RecordTooLargeError(index, size)
    stored = key_lengths if whole is keys else [NO_KEY if key is None else len(key) for key in keys]
    for begin, end in _ranges(key_lengths, value_lengths, frame_bytes):
        count = end - begin
        body = b"".join(
            (
                struct.pack(f"<{count}I", *stored[begin:end]),
                struct.pack(f"<{count}I", *value_lengths[begin:end]),
                *whole[begin:end],
                *values[begin:end],
            )
        )
        yield Frame(begin, count, body, zlib.crc32(body))


def _ranges(key_lengths: list[int], value_lengths: list[int], frame_bytes: int) -> Iterator[tuple[int, int]]:
    count = len(value_lengths)
    if sum(key_lengths) + sum(value_lengths) + 2 * LENGTH_BYTES * count <= frame_bytes:
        yield 0, count
        return
    begin = size = 0
    for index in range(count):
        record = key_lengths[index] + value_lengths[index] + 2 * LENGTH_BYTES
        if size and size + record > frame_bytes:
            yield begin, index
            begin, size = index, 0
        size += record
    yield begin, count


def unpack(body: bytes, count: int, crc: int, into: Records) -> None:
    """Append a frame's records. Raises ValueError when the bytes are not what `pack` made."""
    if zlib.crc32(body) != crc or len(body) < 2 * LENGTH_BYTES * count:
        raise ValueError("checksum of a frame")
    lengths: tuple[int, ...] = struct.unpack_from(f"<{2 * count}I", body)
    missing = NO_KEY in lengths[:count]
    spans = [0 if n == NO_KEY else n for n in lengths] if missing else lengths
    offsets = list(accumulate(spans, initial=2 * LENGTH_BYTES * count))
    if offsets[-1] != len(body):
        raise ValueError("lengths in a frame")
    parts = [body[begin:end] for begin, end in pairwise(offsets)]
    into.values += parts[count:]
    if missing:
        into.keys += [None if n == NO_KEY else part for n, part in zip(lengths, parts[:count], strict=False)]
    else:
        into.keys += parts[:count]
