"""Postgres types to logical types, wire values back to literals, and the calendar below them."""

from __future__ import annotations

import datetime
import math
import struct
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.avro import INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, decimal_bytes
from cdc.postgres.calendar import date_of, days_of
from cdc.postgres.printed import is_carried, printer_of
from cdc.postgres.types import PgType, logical, unwrapped, wire_text, wrapped
from cdc.table import LogicalType


def plain(oid: int, typmod: int = -1) -> LogicalType:
    return logical(PgType(oid, typmod, "b", oid, typmod))


def numeric_typmod(precision: int, scale: int) -> int:
    return (precision << 16 | scale & 0x7FF) + 4


@pytest.mark.parametrize(
    ("oid", "kind"),
    [
        *[(16, "boolean"), (17, "bytes"), (18, "other"), (19, "text"), (20, "int64"), (21, "int16"), (23, "int32"), (25, "text")],
        *[(26, "uint32"), (114, "json"), (142, "xml"), (600, "point"), (700, "float32"), (701, "float64"), (790, "money")],
        *[(28, "other"), (869, "other"), (1007, "other"), (1562, "other"), (3614, "tsvector"), (3615, "other")],
        *[(1042, "text"), (1043, "text"), (1082, "date"), (1083, "time_us"), (1114, "timestamp_us"), (1184, "timestamptz")],
        *[(1186, "interval"), (1266, "timetz"), (1560, "other")],
        *[(1700, "numeric"), (2950, "uuid"), (3802, "json"), (3904, "other"), (99_999, "other")],
    ],
)  # fmt: skip
def test_builtin_types(oid: int, kind: str) -> None:
    assert plain(oid).kind == kind


@pytest.mark.parametrize(
    ("precision", "scale", "expected"),
    [
        (12, 2, LogicalType("decimal", 12, 2)),
        (5, 0, LogicalType("decimal", 5, 0)),
        (1000, 1000, LogicalType("decimal", 1000, 1000)),
        (2, 4, LogicalType("numeric")),
        (4, -2, LogicalType("numeric")),
        (1, -1000, LogicalType("numeric")),
    ],
)
def test_numeric_modifiers(precision: int, scale: int, expected: LogicalType) -> None:
    assert plain(1700, numeric_typmod(precision, scale)) == expected


@pytest.mark.parametrize("precision", range(7))
def test_time_modifiers(precision: int) -> None:
    unit = "ms" if precision <= 3 else "us"
    assert plain(1083, precision).kind == f"time_{unit}"
    assert plain(1114, precision).kind == f"timestamp_{unit}"
    assert plain(1184, precision).kind == "timestamptz"


def test_domains_are_their_base_and_enums_keep_their_labels() -> None:
    assert logical(PgType(50_000, -1, "d", 1700, numeric_typmod(7, 2))) == LogicalType("decimal", 7, 2)
    assert logical(PgType(50_000, -1, "d", 3910, -1)) == LogicalType("other")
    labels = ("a", "it's", "c,d")
    assert logical(PgType(50_001, -1, "e", 50_001, -1, labels)) == LogicalType("enum", labels=labels)
    assert logical(PgType(50_002, -1, "d", 50_001, -1, labels)) == LogicalType("enum", labels=labels)
    assert logical(PgType(50_001, -1, "e", 50_001, -1, ())) == LogicalType("enum")


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("boolean", True, "true"),
        ("uint32", 2**32 - 1, "4294967295"),
        ("timetz", "24:00:00.000000-15:59:59", "24:00:00.000000-15:59:59"),
        ("interval", "P1Y2M-3DT4H5M6.789S", "P1Y2M-3DT4H5M6.789S"),
        ("money", decimal_bytes(-5), "-0.05"),
        ("money", decimal_bytes(INT64_MIN), "-92233720368547758.08"),
        ("bit", True, "1"),
        ("point", {"x": -0.0, "y": float("inf"), "wkb": b"", "srid": None}, "(-0.0,Infinity)"),
        ("hstore", {"a": "1", 'q"\\': None, "": ""}, '"a"=>"1", "q\\"\\\\"=>NULL, ""=>""'),
        ("int64", INT64_MIN, "-9223372036854775808"),
        ("float64", float("nan"), "NaN"),
        ("float64", float("-inf"), "-Infinity"),
        ("float64", -0.0, "-0.0"),
        ("numeric", {"scale": 0, "value": b""}, "NaN"),
        ("numeric", {"scale": 1, "value": b""}, "Infinity"),
        ("numeric", {"scale": -1, "value": b""}, "-Infinity"),
        ("numeric", {"scale": 30, "value": decimal_bytes(-1)}, "-0." + "0" * 29 + "1"),
        ("numeric", {"scale": 2, "value": decimal_bytes(0)}, "0.00"),
        ("numeric", {"scale": 0, "value": decimal_bytes(10**20_000)}, "1" + "0" * 20_000),
        ("bytes", b"\x00\xff", "\\x00ff"),
        ("date", INT32_MAX, "infinity"),
        ("date", INT32_MIN, "-infinity"),
        ("date", days_of(0, 3, 1), "0001-03-01 BC"),
        ("date", days_of(5_874_897, 12, 31), "5874897-12-31"),
        ("date", days_of(-4713, 11, 24), "4714-11-24 BC"),
        ("time_us", 86_400_000_000, "24:00:00.000000"),
        ("time_ms", 1, "00:00:00.001000"),
        ("timestamp_us", -1, "1969-12-31 23:59:59.999999"),
        ("timestamp_us", INT64_MIN, "-infinity"),
        ("timestamp_us", wrapped(9_224_318_015_999_999_999), "294276-12-31 23:59:59.999999"),
        ("timestamp_ms", INT64_MAX, "infinity"),
        ("timestamp_ms", 9_224_318_015_999_999, "294276-12-31 23:59:59.999000"),
        ("timestamptz", "-infinity", "-infinity"),
        ("timestamptz", "2026-11-23T15:31:00.000001Z", "2026-11-23 15:31:00.000001+00"),
        ("timestamptz", "0000-12-31T00:00:00.000000Z", "0001-12-31 00:00:00.000000+00 BC"),
        ("timestamptz", "-4713-11-24T00:00:00.000000Z", "4714-11-24 00:00:00.000000+00 BC"),
        ("timestamptz", "+294276-12-31T23:59:59.999999Z", "294276-12-31 23:59:59.999999+00"),
        ("text", "it's", "it's"),
    ],
)  # fmt: skip
def test_wire_values_as_literals(kind: str, value: object, text: str) -> None:
    assert wire_text(LogicalType(kind), value) == text


def test_bit_strings_and_arrays() -> None:
    assert logical(PgType(1560, 1, "b", 1560, 1)) == LogicalType("bit")
    assert logical(PgType(1560, 12, "b", 1560, 12)) == LogicalType("bits", 12)
    assert wire_text(LogicalType("bits", 12), b"\x01\x08") == "100000000001"
    numeric = PgType(1700, numeric_typmod(7, 2), "b", 1700, numeric_typmod(7, 2))
    array = PgType(1231, numeric.typmod, "b", 1231, numeric.typmod, inner=numeric)
    assert logical(array) == LogicalType("array", element=LogicalType("decimal", 7, 2))
    assert logical(array, in_key=True) == LogicalType("other")
    assert logical(PgType(60_000, -1, "b", 60_000, -1, inner=array._replace(typtype="d"))) == LogicalType("other")
    assert logical(PgType(1041, -1, "b", 1041, -1, inner=PgType(869, -1, "b", 869, -1))) == LogicalType("other")
    assert logical(PgType(3906, -1, "r", 3906, -1, base_typtype="r", inner=numeric)) == LogicalType("other")


def test_types_of_extensions_are_known_by_their_extension() -> None:
    for name, kind in {"hstore.hstore": "hstore", "citext.citext": "text", "ltree.lquery": "other"}.items():
        assert logical(PgType(50_000, -1, "b", 50_000, -1, extension=name)).kind == kind
    assert logical(PgType(50_000, -1, "b", 50_000, -1)).kind == "other"
    hstore = PgType(50_000, -1, "b", 50_000, -1, extension="hstore.hstore")
    assert [logical(hstore, in_key=in_key).kind for in_key in (False, True)] == ["hstore", "other"]
    assert logical(PgType(600, -1, "b", 600, -1), in_key=True).kind == "other"


def test_what_a_binary_stream_carries() -> None:
    text, composite = PgType(25, -1, "b", 25, -1), PgType(70_000, -1, "c", 70_000, -1, base_typtype="c")
    acl = PgType(1033, -1, "b", 1033, -1, sends=False)  # goes as text, but not within a binary form
    textrange = PgType(70_001, -1, "r", 70_001, -1, base_typtype="r", inner=text)
    assert is_carried(text)
    assert is_carried(acl)
    assert is_carried(textrange)
    assert not is_carried(composite)
    for inner in (acl, composite):
        assert not is_carried(PgType(70_002, -1, "b", 70_002, -1, inner=inner))
        assert not is_carried(textrange._replace(inner=inner))
    assert not is_carried(PgType(70_003, -1, "b", 70_003, -1, extension="postgis.geometry"))
    assert is_carried(PgType(70_003, -1, "b", 70_003, -1, extension="citext.citext"))
    assert is_carried(PgType(2205, -1, "b", 2205, -1)) is False  # regclass prints a name


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, b"0"),
        (-0.0, b"-0"),
        (1e15, b"1e+15"),
        (-1e15, b"-1e+15"),
        (123456789012345.0, b"123456789012345"),
        (1234567890123456.5, b"1.2345678901234565e+15"),
        (1e16, b"1e+16"),
        (-49024412113548896.0, b"-4.9024412113548896e+16"),  # -4.90244121135489e+16 is halfway to the next one
        (1.7976931348623157e308, b"1.7976931348623157e+308"),
        (1e-4, b"0.0001"),
        (1e-5, b"1e-05"),
        (math.nan, b"NaN"),
        (-math.inf, b"-Infinity"),
    ],
)
def test_numbers_are_spelt_as_the_server_does(number: float, text: bytes) -> None:
    printer = printer_of(PgType(603, -1, "b", 603, -1))
    assert printer is not None
    assert printer(struct.pack(">4d", number, 0, 1, number)) == b"(%b,0),(1,%b)" % (text, text)


@pytest.mark.parametrize(
    ("value", "bounds", "text"),
    [
        ([], "", "{}"),
        ([1, None], "", '{"1",NULL}'),
        ([1, 2, 3, None], "[1:2][0:1]", '[1:2][0:1]={{"1","2"},{"3",NULL}}'),
        ([1], "[-5:-5][1:1][2:2]", '[-5:-5][1:1][2:2]={{{"1"}}}'),
    ],
)
def test_arrays_as_literals(value: list[object], bounds: str, text: str) -> None:
    assert wire_text(LogicalType("array", element=LogicalType("int32")), value, bounds) == text


@given(st.integers(-(10**40), 10**40), st.integers(0, 40))
def test_decimals_as_literals(unscaled: int, scale: int) -> None:
    text = wire_text(LogicalType("decimal", 40, scale), decimal_bytes(unscaled))
    assert Fraction(text) == Fraction(unscaled, 10**scale)
    assert len(text.partition(".")[2]) == scale
    assert wire_text(LogicalType("decimal", 40, scale), b"") == "NaN"


@given(st.dates())
def test_the_calendar_is_the_gregorian_one(date: datetime.date) -> None:
    assert days_of(date.year, date.month, date.day) == date.toordinal() - datetime.date(1970, 1, 1).toordinal()


@given(st.integers(-3_000_000, 2_200_000_000))
def test_dates_and_days_are_inverse(days: int) -> None:
    year, month, day = date_of(days)
    assert 1 <= month <= 12
    assert 1 <= day <= 31
    assert days_of(year, month, day) == days


@given(st.integers(-210_866_803_200_000_000, 9_224_318_015_999_999_999) | st.integers(INT64_MAX - 3, INT64_MAX + 3))
def test_late_timestamps_wrap_between_the_infinities(us: int) -> None:
    assert INT64_MIN < wrapped(us) < INT64_MAX
    assert unwrapped(wrapped(us)) == us
