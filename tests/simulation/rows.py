"""The simulated tables, and their rows as framed Avro: the bytes that a real codec would write, made by hand because the
general encoder costs more than the rest of a simulated step. A test holds them against `cdc.avro`."""

from __future__ import annotations

from typing import Any, NamedTuple

import schemas
from cdc.avro import (
    HEADER_BYTES,
    UNAVAILABLE,
    Schema,
    encode_datum,
    frame,
    read_header,
    read_varint,
    schemas_of,
    string,
    zigzag,
)
from cdc.table import Column, LogicalType, TableId, TableSchema

A, B, KEYLESS = TableId("shop", "a"), TableId("shop", "b"), TableId("shop", "h")
KEYED, TABLES = (A, B), (A, B, KEYLESS)
VERSIONS = 2  # of each table's columns: an ALTER toggles them
UNCHANGED = None  # stands for `big` in what the source sends


class Row(NamedTuple):
    """`big` is the column that updates may leave unsent."""

    number: int
    big: int | None
    unique: int | None


class Event(NamedTuple):
    """A decoded record. `row` is a `Row`, in the keyless table its one value."""

    op: str
    unchanged: bool
    moved: int | None
    key: int | None
    row: Any
    before: Any


_COLUMNS = {
    "id": Column("id", LogicalType("int64"), "bigint", nullable=False),
    "big": Column("big", LogicalType("text"), "text"),
    "uniq": Column("uniq", LogicalType("int32"), "integer"),
}
_ORDER = {A: ("id", "number", "big", "uniq"), B: ("number", "id", "uniq", "big")}


def table_schema(table: TableId, version: int) -> TableSchema:
    number = Column("number", LogicalType("int64"), ("integer", "bigint")[version])
    if table == KEYLESS:
        return TableSchema(table, (number,))
    return TableSchema(table, tuple({**_COLUMNS, "number": number}[name] for name in _ORDER[table]), ("id",))


SCHEMAS: dict[int, Schema] = {}
_VALUE_FRAME: dict[tuple[TableId, int], bytes] = {}
_KEY_FRAME: dict[TableId, bytes] = {}
_TABLE_OF: dict[bytes, TableId] = {}


def _register() -> None:
    for table in TABLES:
        for version in range(VERSIONS):
            made = schemas_of("sim", table_schema(table, version), "postgresql")
            SCHEMAS[number := len(SCHEMAS) + 1] = made.value
            _VALUE_FRAME[table, version] = frame(number)
            _TABLE_OF[frame(number)] = table
            if made.key and table not in _KEY_FRAME:
                SCHEMAS[number := len(SCHEMAS) + 1] = made.key
                _KEY_FRAME[table] = frame(number)


_register()
_SOURCE = {
    "version": "1",
    "connector": "postgresql",
    "name": "sim",
    "ts_ms": 0,
    "db": "shop",
    "schema": "shop",
    "table": "t",
}
_TAIL = encode_datum(schemas.load("source_postgresql"), _SOURCE) + b"\0\0\0\0"  # transaction, ts_ms, ts_us, ts_ns
_UNCHANGED = b"\x02\x02" + string(b"big") + b"\0"
_UNSENT = b"\x02" + string(UNAVAILABLE.encode())


# ---------------------------------------------------------------------------------------------------------------- encode
def key_bytes(table: TableId, key: int) -> bytes:
    return _KEY_FRAME[table] + zigzag(key)


def key_of(framed: bytes) -> int:
    return read_varint(framed, HEADER_BYTES)[0]


def _optional(number: int | None) -> bytes:
    return b"\0" if number is None else b"\x02" + zigzag(number)


def _row(table: TableId, key: int | None, row: Any) -> bytes:
    if key is None:
        return _optional(row)
    number, big, unique = row
    text = _UNSENT if big is UNCHANGED else b"\x02" + string(b"big %d" % big)
    if table == A:
        return zigzag(key) + _optional(number) + text + _optional(unique)
    return _optional(number) + zigzag(key) + _optional(unique) + text


def _key_only(table: TableId, key: int) -> bytes:
    return zigzag(key) + b"\0\0\0" if table == A else b"\0" + zigzag(key) + b"\0\0"


def value_bytes(
    table: TableId, version: int, op: str, key: int | None, row: Any, before: Any = None, moved: int | None = None
) -> bytes:
    """An event's value; `row` None in a `d` and a `t`, `before` only in the keyless table."""
    if key is None:
        old = b"\0" if before is None else b"\x02" + _row(table, None, before)
    elif op == "d" or (op == "u" and table == B):
        old = b"\x02" + _key_only(table, key)
    else:
        old = b"\0"
    return b"".join(
        (
            _VALUE_FRAME[table, version],
            b"\x02",
            op.encode(),
            _UNCHANGED if key is not None and row is not None and row[1] is UNCHANGED else b"\0",
            b"\0" if moved is None else b"\x02" + string(zigzag(moved)),
            old,
            b"\0" if row is None else b"\x02" + _row(table, key, row),
            _TAIL,
        )
    )


# ---------------------------------------------------------------------------------------------------------------- decode
_decoded: dict[bytes, Event] = {}


def decode(value: bytes) -> Event:
    """The event in a framed value. Remembers the last values: a target meets each more than once."""
    if (event := _decoded.get(value)) is None:
        if len(_decoded) > 20_000:
            _decoded.clear()
        event = _decoded[value] = _decode(value)
    return event


def _decode(value: bytes) -> Event:
    table, head = _TABLE_OF[value[:HEADER_BYTES]], read_header(value)
    key, row, before, at = None, None, None, head.end
    if value[at]:
        key, before, at = _read_row(table, value, at + 1)
    else:
        at += 1
    if value[at]:
        key, row, at = _read_row(table, value, at + 1)
    else:
        at += 1
    assert value[at:] == _TAIL, "a value with something else behind its rows"
    moved = None if head.moved is None else read_varint(head.moved, 0)[0]
    return Event(head.op, bool(head.unchanged), moved, key, row, before)


def _read_row(table: TableId, value: bytes, at: int) -> tuple[int | None, Any, int]:
    number = unique = big = None
    key = None
    for name in ("number",) if table == KEYLESS else _ORDER[table]:
        if name == "id":
            key, at = read_varint(value, at)
        elif not value[at]:
            at += 1
        elif name == "big":
            length, at = read_varint(value, at + 1)
            text, at = value[at : at + length].decode(), at + length
            big = UNCHANGED if text == UNAVAILABLE else int(text[4:])
        else:
            found, at = read_varint(value, at + 1)
            number, unique = (found, unique) if name == "number" else (number, found)
    return key, number if table == KEYLESS else Row(number or 0, big, unique), at
