"""`Splicer`: columns of one value's row replaced by those of another, as bytes.

An event that leaves columns out is completed from an earlier event of its row. Bytes are copied, never decoded; the shapes of
arrays, which stand at the end of a value, go with their columns. Invariant: the result is a value of the same schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from cdc.avro import HEADER_BYTES, Schema, decode_datum, has_arrays, read_varint, string, table_of
from cdc.errors import CdcError
from cdc.table import LogicalType

Json = Any
WHOLE = b"\x02u\x00\x00"
"""Bytes 5–8 of a value whose row has all columns."""
_FIXED = {"boolean": 1, "bit": 1, "float32": 4, "float64": 8}
_VARINTS = frozenset(
    ("int16", "int32", "int64", "uint32", "date", "time_ms", "time_us", "timestamp_ms", "timestamp_us")
)
_TEXT = LogicalType("text")


class Splicer:
    """For the values of one schema."""

    def __init__(self, schema: Schema) -> None:
        table = table_of(schema)
        self._schema, self._arrays = schema, has_arrays(table)
        self._columns = [(column.name, column.type, column.name in table.key) for column in table.columns]

    def splice(self, value: bytes, other: bytes, columns: Iterable[str]) -> bytes:
        """`value` with these columns of `other`; both have the plain header. Raises CdcError on bytes of another form."""
        wanted = frozenset(columns)
        try:
            mine, theirs = self._spans(value), self._spans(other)
        except IndexError as error:
            raise CdcError("CDC-LOG-133", "a value ends within a row") from error
        if not mine:
            return value
        parts = [value[: mine[0][0]]]
        for (name, _, _), (begin, end), (other_begin, other_end) in zip(self._columns, mine, theirs, strict=True):
            parts.append(other[other_begin:other_end] if name in wanted else value[begin:end])
        tail = value[mine[-1][1] :]
        if self._arrays and (value[-1] or other[-1]):
            tail = self._shaped(value, other, wanted, tail)
        return b"".join((*parts, tail))

    def _shaped(self, value: bytes, other: bytes, wanted: frozenset[str], tail: bytes) -> bytes:
        """`tail` of `value` with the shapes that its row has now."""
        (mine, length), (theirs, _) = self._shapes(value), self._shapes(other)
        row = {name: bounds for name, bounds in mine.get("after", {}).items() if name not in wanted}
        row |= {name: bounds for name, bounds in theirs.get("after", {}).items() if name in wanted}
        shapes = {image: of_image for image, of_image in {**mine, "after": row}.items() if of_image}
        encoded = b"\x02" + string(json.dumps(shapes, separators=(",", ":")).encode()) if shapes else b"\x00"
        return tail[:-length] + encoded

    def _shapes(self, value: bytes) -> tuple[Json, int]:
        """The shapes of a value, and the bytes that they take at its end."""
        if not value[-1]:
            return {}, 1
        text = decode_datum(self._schema, value[HEADER_BYTES:])["shapes"]
        return json.loads(text), 1 + len(string(text.encode()))

    def _spans(self, value: bytes) -> list[tuple[int, int]]:
        """Where each column of `after` is, its union branch included."""
        at = HEADER_BYTES + len(WHOLE)
        if value[at]:  # before
            at = self._row(value, at + 1)[-1][1] if self._columns else at + 1
        else:
            at += 1
        if value[at] != 2:
            raise CdcError("CDC-LOG-133", "a value that should hold a row holds none")
        return self._row(value, at + 1)

    def _row(self, value: bytes, at: int) -> list[tuple[int, int]]:
        spans = []
        for _, logical, is_key in self._columns:
            begin = at
            at = _skip(logical, value, at) if is_key else _skip_nullable(logical, value, at)
            spans.append((begin, at))
        if at >= len(value):  # a string may reach beyond it
            raise IndexError
        return spans


def _skip_nullable(logical: LogicalType, value: bytes, at: int) -> int:
    return _skip(logical, value, at + 1) if value[at] else at + 1


def _skip(logical: LogicalType, value: bytes, at: int) -> int:
    kind = logical.kind
    if kind in _FIXED:
        return at + _FIXED[kind]
    if kind in _VARINTS:
        return read_varint(value, at)[1]
    if kind in ("array", "hstore"):
        return _skip_blocks(logical, value, at)
    if kind == "point":  # x, y, then two that may be null
        at = _skip_nullable(_TEXT, value, at + 16)
        return read_varint(value, at + 1)[1] if value[at] else at + 1
    if kind == "numeric":  # scale, then bytes
        at = read_varint(value, at)[1]
    length, at = read_varint(value, at)
    return at + length


def _skip_blocks(logical: LogicalType, value: bytes, at: int) -> int:
    """Elements, or keys with their values, each of which may be null."""
    item = logical.element or _TEXT
    while True:
        count, at = read_varint(value, at)
        if not count:
            return at
        if count < 0:
            raise CdcError("CDC-LOG-133", "a block with its size in bytes")
        for _ in range(count):
            if logical.kind == "hstore":
                at = _skip(_TEXT, value, at)
            at = _skip_nullable(item, value, at)
