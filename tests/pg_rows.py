"""Rows for tests of the Postgres codec: strategies for every type, what a server would send for them, and fastavro's Avro of them."""

from __future__ import annotations

import math
import struct
import uuid
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from cdc.avro import (
    INT32_MAX,
    INT32_MIN,
    INT64_MAX,
    INT64_MIN,
    UNAVAILABLE,
    avro_name,
    decimal_bytes,
    encode_datum,
    frame,
    schemas_of,
)
from cdc.postgres.envelope import Origin
from cdc.postgres.types import wire_text, wrapped
from cdc.table import Column, LogicalType, TableId, TableSchema

KEY_ID, VALUE_ID, XID, COMMIT_US, NOW_US, LSN = (
    7,
    8,
    4_000_000_001,
    1_795_446_000_123_456,
    1_795_446_001_000_000,
    0x16_B374_8D38,
)
EPOCH_US = 946_684_800_000_000
DAY_US = 86_400_000_000

Value = Any
NULL, UNCHANGED = None, type("Unchanged", (), {"__repr__": lambda self: "UNCHANGED"})()


# ---------------------------------------------------------------------------------------------- what a server would send
def numeric_binary(unscaled: int, scale: int) -> bytes:
    """numeric_send of unscaled × 10^-scale."""
    digits = str(Decimal(abs(unscaled)))
    padded = digits + "0" * (-scale % 4)
    padded = padded.zfill(-(-len(padded) // 4) * 4)
    groups = [int(padded[i : i + 4]) for i in range(0, len(padded), 4)]
    weight = len(groups) - 1 - (scale + 3) // 4
    while groups and not groups[0]:
        groups.pop(0)
        weight -= 1
    while groups and not groups[-1]:
        groups.pop()
    if not groups:
        weight = 0
    sign = 0x4000 if unscaled < 0 else 0
    return struct.pack(f">HhHH{len(groups)}H", len(groups), weight, sign, scale, *groups)


def binary(kind: LogicalType, value: Value) -> bytes:
    """The binary form of a wire value (the form of cdc.avro.decode_datum)."""
    match kind.kind:
        case "boolean":
            return bytes([value])
        case "int16" | "int32" | "int64":
            return int(value).to_bytes(int(kind.kind[3:]) // 8, "big", signed=True)
        case "float32":
            return struct.pack(">f", value)
        case "float64":
            return struct.pack(">d", value)
        case "decimal":
            if not value:
                return bytes.fromhex("00000000c0000000")
            return numeric_binary(int.from_bytes(value, "big", signed=True), kind.scale or 0)
        case "numeric":
            if not value["value"]:
                return bytes.fromhex(
                    {0: "00000000c0000000", 1: "00000000d0000020", -1: "00000000f0000020"}[value["scale"]]
                )
            return numeric_binary(int.from_bytes(value["value"], "big", signed=True), value["scale"])
        case "bytes":
            return bytes(value)
        case "date":
            days = value if value in (INT32_MIN, INT32_MAX) else value - 10_957
            return days.to_bytes(4, "big", signed=True)
        case "time_ms":
            return (value * 1000).to_bytes(8, "big", signed=True)
        case "time_us":
            return int(value).to_bytes(8, "big", signed=True)
        case "timestamp_ms" | "timestamp_us":
            if value in (INT64_MIN, INT64_MAX):
                return int(value).to_bytes(8, "big", signed=True)
            us = value * 1000 if kind.kind == "timestamp_ms" else value if value > -(1 << 62) else value + (1 << 64) - 2
            return (us - EPOCH_US).to_bytes(8, "big", signed=True)
        case "timestamptz":
            return instant_us(value).to_bytes(8, "big", signed=True)
        case "uuid":
            return uuid.UUID(value).bytes
    return str(value).encode()


def text(kind: LogicalType, value: Value) -> bytes:
    """The text form, spelt as the server spells it."""
    plain = wire_text(kind, value)
    match kind.kind:
        case "boolean":
            plain = plain[0]
        case "timestamptz" | "timestamp_ms" | "timestamp_us" | "time_ms" | "time_us" if "." in plain:
            whole, fraction = plain.split(".")
            digits, rest = fraction[:6].rstrip("0"), fraction[6:]
            plain = whole + (f".{digits}" if digits else "") + rest
    return plain.encode()


def instant_us(value: str) -> int:
    """ISO text → microseconds since 2000, independently of the code under test."""
    if value.endswith("infinity"):
        return INT64_MIN if value.startswith("-") else INT64_MAX
    date, time = value.rstrip("Z").split("T")
    sign = -1 if date.startswith("-") else 1
    year, month, day = (int(part) for part in date.lstrip("+-").split("-"))
    hours, minutes, seconds = time.split(":")
    return (julian(sign * year, month, day) - 2_451_545) * DAY_US + round(
        (int(hours) * 3600 + int(minutes) * 60) * 10**6 + Decimal(seconds) * 10**6
    )


def julian(year: int, month: int, day: int) -> int:
    """Julian day number of the proleptic Gregorian calendar (Fliegel and Van Flandern, shifted so that division truncates alike)."""
    a = (14 - month) // 12
    y, m = year + 4800 - a, month + 12 * a - 3
    return day + (153 * m + 2) // 5 + 365 * y + y // 4 - y // 100 + y // 400 - 32_045


def iso(us: int) -> str:
    """Microseconds since 2000 → the wire form, by searching the calendar above."""
    day, us = divmod(us, DAY_US)
    number = day + 2_451_545
    year = (number - 1_721_060) * 400 // 146_097
    while julian(year + 1, 1, 1) <= number:
        year += 1
    while julian(year, 1, 1) > number:
        year -= 1
    month = max(m for m in range(1, 13) if julian(year, m, 1) <= number)
    shown = f"{year:04}" if 0 <= year <= 9999 else f"{year:+05}"
    dom = number - julian(year, month, 1) + 1
    seconds, us = divmod(us, 10**6)
    return f"{shown}-{month:02}-{dom:02}T{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{us:06}Z"


def tuple_bytes(schema: TableSchema, row: list[Value], wire: str) -> bytes:
    out = [len(row).to_bytes(2, "big")]
    for column, value in zip(schema.columns, row, strict=True):
        if value is UNCHANGED:
            out.append(b"u")
            continue
        if value is NULL:
            out.append(b"\xff\xff\xff\xff" if wire == "copy" else b"n")
            continue
        data = (text if wire == "text" else binary)(column.type, value)
        if wire == "copy" and column.source_type == "jsonb":
            data = b"\x01" + data
        if wire == "binary" and column.source_type == "jsonb":
            data = b"\x01" + data
        out.append({"copy": b"", "text": b"t", "binary": b"b"}[wire] + len(data).to_bytes(4, "big") + data)
    return b"".join(out)


def message(kind: bytes, *tuples: bytes, lsn: int = LSN) -> bytes:
    return b"w" + lsn.to_bytes(8, "big") + bytes(16) + kind + (16_384).to_bytes(4, "big") + b"".join(tuples)


# ---------------------------------------------------------------------------------------------------------- strategies
def decimals(precision: int) -> st.SearchStrategy[bytes]:
    most = 10**precision - 1
    return st.just(b"") | st.integers(-most, most).map(decimal_bytes)


def numerics() -> st.SearchStrategy[Value]:
    finite = st.builds(
        lambda n, zeros, scale: {"scale": scale, "value": decimal_bytes(n * 10**zeros)},
        st.integers(-(10**60), 10**60),
        st.sampled_from((0, 0, 0, 1, 4, 17, 130, 5000)),
        st.sampled_from((0, 1, 2, 3, 4, 5, 8, 30, 1000, 16_383)),
    )
    return finite | st.sampled_from([{"scale": n, "value": b""} for n in (-1, 0, 1)])


def one_nan(value: float) -> float:
    """The oracle writes a NaN's payload; a NaN has one form on the wire (see test_not_a_number_has_one_form)."""
    return math.nan if math.isnan(value) else value


DAYS = st.integers(-2_451_545, 2_145_031_948)
US = st.integers(-211_813_488_000_000_000, 9_223_371_331_199_999_999)
NEAR_US = st.integers(-EPOCH_US // 10, EPOCH_US)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])) | st.sampled_from(
    ["", "\ufffd😀", "x" * 9000]
)
LABELS = ("a", "it's", 'q"', "c,d", "line\nfeed", "\\")
VALUES: dict[LogicalType, st.SearchStrategy[Value]] = {
    LogicalType("boolean"): st.booleans(),
    LogicalType("int16"): st.integers(-(2**15), 2**15 - 1),
    LogicalType("int32"): st.integers(INT32_MIN, INT32_MAX),
    LogicalType("int64"): st.integers(INT64_MIN, INT64_MAX),
    LogicalType("float32"): st.floats(width=32).map(one_nan),
    LogicalType("float64"): st.floats().map(one_nan),
    LogicalType("decimal", 12, 2): decimals(12),
    LogicalType("decimal", 38, 10): decimals(38),
    LogicalType("decimal", 5, 0): decimals(5),
    LogicalType("decimal", 1000, 1000): decimals(1000),
    LogicalType("numeric"): numerics(),
    LogicalType("text"): TEXT,
    LogicalType("bytes"): st.binary() | st.just(bytes(9000)),
    LogicalType("date"): DAYS.map(lambda day: day + 10_957) | st.sampled_from([INT32_MIN, INT32_MAX]),
    LogicalType("time_ms"): st.integers(0, 86_400_000),
    LogicalType("time_us"): st.integers(0, DAY_US),
    LogicalType("timestamp_ms"): US.map(lambda us: (us + EPOCH_US) // 1000) | st.sampled_from([INT64_MIN, INT64_MAX]),
    LogicalType("timestamp_us"): (US | NEAR_US).map(lambda us: wrapped(us + EPOCH_US))
    | st.sampled_from([INT64_MIN, INT64_MAX]),
    LogicalType("timestamptz"): (US | NEAR_US).map(iso) | st.sampled_from(["infinity", "-infinity"]),
    LogicalType("uuid"): st.uuids().map(str),
    LogicalType("json"): st.sampled_from(['{"a": 1}', '{"b":1, "a":  1.50}', "null", ' "\\u0001"', "[]"]),
    LogicalType("enum", labels=LABELS): st.sampled_from(LABELS),
}
OTHER = LogicalType("other")


@st.composite
def tables(draw: st.DrawFn, exact: bool = True, keyed: bool | None = None) -> TableSchema:
    kinds = draw(st.lists(st.sampled_from([*VALUES, *([] if exact else [OTHER])]), min_size=1, max_size=9))
    columns = tuple(
        Column(f"c {i}", kind, draw(st.sampled_from(["json", "jsonb"])) if kind.kind == "json" else kind.kind)
        for i, kind in enumerate(kinds)
    )
    names = [column.name for column in columns]
    keyed = draw(st.booleans()) if keyed is None else keyed
    key = draw(st.permutations(names))[: draw(st.integers(1, min(3, len(names))))] if keyed else ()
    return TableSchema(TableId('pub"lic', "t%s.ä"), columns, tuple(key))


def rows(schema: TableSchema, *, unchanged: bool = False) -> st.SearchStrategy[list[Value]]:
    def value(column: Column) -> st.SearchStrategy[Value]:
        values = VALUES.get(column.type, TEXT)
        if column.name in schema.key:
            return values
        return values | st.none() | (st.just(UNCHANGED) if unchanged else st.nothing())

    return st.tuples(*map(value, schema.columns)).map(list)


# --------------------------------------------------------------------------------------------------------------- oracle
def origin() -> Origin:
    made = Origin("shop", "db%", 3, "0.1.0")
    made.clock(NOW_US)
    return made


def source(schema: TableSchema, sequence: int, snapshot: bool) -> dict[str, Value]:
    us = NOW_US if snapshot else COMMIT_US
    return {
        "version": "0.1.0",
        "connector": "postgresql",
        "name": "shop",
        "ts_ms": us // 1000,
        "snapshot": "true" if snapshot else "false",
        "db": "db%",
        "sequence": str(sequence),
        "ts_us": us,
        "ts_ns": us * 1000,
        "schema": schema.id.schema,
        "table": schema.id.name,
        "txId": None if snapshot else XID,
        "lsn": LSN,
        "xmin": None,
        "origin": None,
        "origin_lsn": None,
        "epoch": 3,
    }


def placeholder(kind: str) -> Value:
    if kind == "bytes":
        return UNAVAILABLE.encode()
    return UNAVAILABLE if kind in ("text", "other", "json", "enum", "uuid", "timestamptz") else None


def datum(schema: TableSchema, row: list[Value] | None) -> dict[str, Value] | None:
    return row and {
        avro_name(column.name): placeholder(column.type.kind) if value is UNCHANGED else value
        for column, value in zip(schema.columns, row, strict=True)
    }


def expected(
    schema: TableSchema,
    op: str,
    sequence: int,
    before: list[Value] | None,
    after: list[Value] | None,
    moved: bytes | None = None,
    lsn: int = LSN,
) -> bytes:
    missing = [c.name for c, value in zip(schema.columns, after or [], strict=False) if value is UNCHANGED]
    event = {
        "op": op,
        "unchanged": missing or None,
        "moved": moved,
        "before": datum(schema, before),
        "after": datum(schema, after),
        "source": source(schema, sequence, op == "r") | {"lsn": lsn},
        "transaction": None,
        "ts_ms": NOW_US // 1000,
        "ts_us": NOW_US,
        "ts_ns": NOW_US * 1000,
    }
    return frame(VALUE_ID) + encode_datum(schemas_of("shop", schema, "postgresql").value, event)


def expected_key(schema: TableSchema, row: list[Value]) -> bytes | None:
    key_schema = schemas_of("shop", schema, "postgresql").key
    if key_schema is None:
        return None
    by_name = {column.name: value for column, value in zip(schema.columns, row, strict=True)}
    return frame(KEY_ID) + encode_datum(key_schema, {avro_name(name): by_name[name] for name in schema.key})
