"""The generated decoders against fastavro, and against damaged bytes."""

from __future__ import annotations

import json
import re
import struct
from datetime import date, timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cdc.avro import INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, avro_name, decimal_bytes, decode_datum
from cdc.errors import CdcError
from cdc.table import Column, LogicalType
from sinks.postgres import text
from sinks.postgres.codec import compile_keys, compile_rows, fields_of
from sinks.postgres.fieldcode import Taker
from tests.events import Event, Table, make_table

_int = {
    16: st.integers(-(2**15), 2**15 - 1),
    32: st.integers(INT32_MIN, INT32_MAX),
    64: st.integers(INT64_MIN, INT64_MAX),
}
_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=300)
_decimal = st.integers(-(10**14), 10**14).map(decimal_bytes) | st.just(b"")
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "int16": _int[16],
    "int32": _int[32],
    "int64": _int[64],
    "float32": st.floats(width=32),
    "float64": st.floats(),
    "decimal": _decimal,
    "numeric": st.fixed_dictionaries({"scale": st.integers(0, 30), "value": st.integers().map(decimal_bytes)})
    | st.sampled_from([{"scale": scale, "value": b""} for scale in (0, 1, -1)]),
    "text": _text,
    "json": _text,
    "enum": _text,
    "other": _text,
    "bytes": st.binary(max_size=200),
    "date": st.integers(-2_440_588, 2_145_031_948) | st.sampled_from([INT32_MIN, INT32_MAX]),
    "time_ms": st.integers(0, 86_400_000),
    "time_us": st.integers(0, 86_400_000_000),
    "timestamp_ms": st.integers(-(2**47), 2**53) | st.sampled_from([INT64_MIN, INT64_MAX]),
    "timestamp_us": st.integers(-(2**57), 2**61) | st.sampled_from([INT64_MIN, INT64_MAX]),
    "timestamptz": st.datetimes().map(lambda at: at.isoformat(timespec="microseconds") + "Z")
    | st.sampled_from(["infinity", "-infinity", "-0043-03-15T00:00:00.000000Z", "+12345-01-02T03:04:05.678901Z"])
    | st.just("0000-01-01T00:00:00.000000Z"),
    "uuid": st.uuids().map(str),
    "uint32": st.integers(0, 2**32 - 1),
    "timetz": st.sampled_from(["24:00:00.000000+15:59:59", "00:00:00.000001-00:30"]),
    "interval": st.sampled_from(["P1Y2M-3DT4H5M6.789S", "PT0S", "-infinity"]),
    "money": _decimal.filter(bool),
    "bit": st.booleans(),
    "bits": st.integers(0, 2**11 - 1).map(lambda bits: bits.to_bytes(2, "little")),
    "xml": _text,
    "tsvector": _text,
    "ltree": _text,
    "hstore": st.dictionaries(_text, st.none() | _text, max_size=4),
    "point": st.fixed_dictionaries(
        {"x": st.floats(), "y": st.floats(), "wkb": st.none() | st.binary(), "srid": st.none() | st.just(4326)}
    ),
}  # fmt: skip
ARRAYS = st.sampled_from([None, "[1:{0}][1:1]", "[0:0][-3:-3][5:{1}]", "[-2147483648:-2147483648][1:{0}]"])


def column(name: str, kind: str, nullable: bool = True) -> Column:
    if kind.endswith("[]"):
        return Column(name, LogicalType("array", element=column(name, kind[:-2]).type), kind, nullable)
    logical = {"decimal": LogicalType("decimal", 14, 2), "bits": LogicalType("bits", 11)}.get(kind) or LogicalType(kind)
    return Column(name, logical, kind, nullable)


def expected(kind: str, value: Any) -> str | None:
    """The text of a wire value, written without regard to speed."""
    if value is None:
        return None
    match kind:
        case "boolean":
            return "t" if value else "f"
        case "bit":
            return "1" if value else "0"
        case "bits":
            return bin(1 << 11 | int.from_bytes(value, "little"))[3:]
        case "point":
            return f"({expected('float64', value['x'])},{expected('float64', value['y'])})"
        case "hstore":
            pairs = [(name, "NULL" if item is None else f'"{_quoted(item)}"') for name, item in value.items()]
            return ", ".join(f'"{_quoted(name)}"=>{item}' for name, item in pairs)
        case "float32" | "float64":
            return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(repr(value), repr(value))
        case "decimal" | "money":
            return text.decimal(int.from_bytes(value, "big", signed=True), 2) if value else "NaN"
        case "numeric":
            return text.numeric(value["value"], value["scale"])
        case "bytes":
            return "\\x" + value.hex()
        case "date":
            return text.DAYS[value]
        case "time_ms":
            return text.time_us(value * 1000)
        case "time_us":
            return text.time_us(value)
        case "timestamp_ms":
            return text.timestamp_ms(value)
        case "timestamp_us":
            return text.timestamp_us(value)
        case "timestamptz":
            return value if len(value) == 27 and value[0] != "0" else text.timestamptz(value)
    return str(value)


def _quoted(shown: str) -> str:
    return re.sub(r'(["\\])', r"\\\1", shown)


@st.composite
def tables_and_rows(draw: st.DrawFn) -> tuple[Table, list[dict[str, Any]]]:
    kinds = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=8))
    columns = [column(f"c {index}", kind) for index, kind in enumerate(kinds)]
    key = draw(st.lists(st.sampled_from([c.name for c in columns]), unique=True, max_size=2))
    row = st.fixed_dictionaries(
        {c.name: VALUES[c.type.kind] if c.name in key else st.none() | VALUES[c.type.kind] for c in columns}
    )
    return make_table("s.t", *columns, key=key), draw(st.lists(row, min_size=1, max_size=4))


def same(kind: str, shown: str | None, wanted: str | None) -> bool:
    if kind == "float32" and shown is not None and wanted is not None:  # the shortest text, not the double's
        single = struct.Struct("<f")
        return wanted == shown or single.pack(float(shown)) == single.pack(float(wanted))
    return shown == wanted


@settings(max_examples=400, deadline=None)
@given(tables_and_rows(), st.booleans(), st.integers(0, 2**40))
def test_rows_and_keys_decode_as_fastavro_does(drawn: Any, with_before: bool, sequence: int) -> None:
    table, rows = drawn
    values = [
        table.value(Event(table, "u", before=row if with_before else None, after=row), sequence + i)
        for i, row in enumerate(rows)
    ]
    lines = compile_rows(table.schema, table.value_schema, table.value_id)(values)
    shown = [fields_of(line + b"\n") for line in lines.split(b"\n")[:-1]]
    assert len(shown) == len(rows)
    for value, fields in zip(values, shown, strict=True):
        datum = decode_datum(table.value_schema, value[5:])["after"]
        for c, field in zip(table.schema.columns, fields, strict=True):
            assert same(c.type.kind, field, expected(c.type.kind, datum[avro_name(c.name)]))
    if with_before:
        before = compile_rows(table.schema, table.value_schema, table.value_id, image="before")
        assert before(values) == lines
    if table.schema.key:
        keys = compile_keys(table.schema)([table.key(row) for row in rows]).split(b"\n")[:-1]
        at = [table.schema.columns.index(c) for c in table.schema.key_columns]
        assert [fields_of(key + b"\n") for key in keys] == [[fields[i] for i in at] for fields in shown]


@settings(max_examples=60, deadline=None)
@given(tables_and_rows(), st.integers(0, 2**40))
def test_a_truncated_or_longer_value_is_an_error_whatever_the_place(drawn: Any, sequence: int) -> None:
    table, rows = drawn
    value = table.value(Event(table, "c", after=rows[0]), sequence)
    decode = compile_rows(table.schema, table.value_schema, table.value_id)
    for damaged in [value[:end] for end in range(len(value))] + [value + b"\0", value + value]:
        with pytest.raises(CdcError) as error:
            decode([value, damaged])
        assert error.value.code == "CDC-TGT-132"
    if table.schema.key:
        key = table.key(rows[0])
        for damaged in [key[:end] for end in range(len(key))] + [key + b"\0"]:
            with pytest.raises(CdcError):
                compile_keys(table.schema)([damaged])


@given(st.binary(max_size=400))
def test_random_bytes_are_an_error(noise: bytes) -> None:
    table = make_table("s.t", "id int64 key", "a text", "b numeric", "c timestamptz", "d bytes", "e boolean")
    decode = compile_rows(table.schema, table.value_schema, table.value_id)
    for value in (noise, b"\0" + table.value_id.to_bytes(4, "big") + b"\x02c\0\0\0\x02" + noise):
        with pytest.raises(CdcError):
            decode([value])


def test_a_value_of_another_schema_or_without_the_row_is_an_error() -> None:
    table, other = make_table("s.t", "id int64 key"), make_table("s.t", "id int32 key")
    decode = compile_rows(table.schema, table.value_schema, table.value_id)
    for value in (
        other.value(Event(other, "c", after={"id": 1}), 1),
        table.value(Event(table, "d", before={"id": 1}), 1),
    ):
        with pytest.raises(CdcError):
            decode([value])


def test_columns_that_were_not_sent_are_left_out() -> None:
    table = make_table("s.t", "a text", "id int64 key", "b text")
    event = Event(table, "u", after={"id": 7, "a": "x"}, unchanged=("b",))
    decode = compile_rows(table.schema, table.value_schema, table.value_id, columns=frozenset(("a", "id")))
    assert decode([table.value(event, 1)]) == b"x\t7\n"


@given(st.integers(-2_440_588, 2_145_031_948))
def test_dates_continue_the_proleptic_calendar_in_both_directions(days: int) -> None:
    shown = text.DAYS[days]
    try:
        assert shown == (date(1970, 1, 1) + timedelta(days)).isoformat()
    except OverflowError:
        year, month, day = shown.removesuffix(" BC").split("-")
        assert (int(year) > 9999) != shown.endswith(" BC")
        cycles = 0
        signed = int(year) if not shown.endswith(" BC") else 1 - int(year)
        while not 1 <= signed + 400 * cycles <= 9999:
            cycles += -1 if signed > 9999 else 1
        same_day = date(signed + 400 * cycles, int(month), int(day))
        assert (same_day - date(1970, 1, 1)).days == days + 146_097 * cycles


# --------------------------------------------------------------------------------------------------------------- arrays
def parsed(literal: str, delimiter: str = ",") -> tuple[str | None, list[Any]]:
    """An array literal read by the rules of Postgres' manual: bounds, and nested lists of texts or None."""
    found = re.match(r"((?:\[[^\]]*\])+)=", literal)
    bounds, at = (found[1], found.end()) if found else (None, 0)

    def element() -> Any:
        nonlocal at
        if literal[at] == "{":
            return items()
        if literal[at] == '"':
            at, shown = at + 1, ""
            while literal[at] != '"':
                at += literal[at] == "\\"
                shown, at = shown + literal[at], at + 1
            at += 1
            return shown
        begin = at
        while literal[at] not in delimiter + "}":
            assert literal[at] not in ' \t\n\r\v\f"\\{', "needs quotes"
            at += 1
        assert begin < at
        return None if literal[begin:at].upper() == "NULL" else literal[begin:at]

    def items() -> list[Any]:
        nonlocal at
        at, found = at + 1, []
        while literal[at] != "}":
            found.append(element())
            at += literal[at] == delimiter
        at += 1
        return found

    whole = items()
    assert at == len(literal)
    return bounds, whole


def flat(nested: list[Any]) -> list[Any]:
    return [item for part in nested for item in (flat(part) if isinstance(part, list) else [part])]


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(sorted(VALUES)), st.sampled_from(",;:"))
def test_arrays_of_every_kind(data: Any, kind: str, delimiter: str) -> None:
    name = 'a"\\é {after}'
    table = make_table("s.t", "id int64 key", column(name, f"{kind}[]"), column("b", "int32[]"))
    rows = data.draw(st.lists(st.lists(st.none() | VALUES[kind], max_size=5), min_size=1, max_size=4))
    values, wanted = [], []
    for number, elements in enumerate(rows):
        bounds = data.draw(ARRAYS) if elements else None
        bounds = bounds and bounds.format(len(elements), len(elements) + 4)
        of_image = {name: bounds} if bounds else {}
        of_image |= {"b": "[7:8]"} if data.draw(st.booleans()) else {}
        wanted.append((bounds, of_image.get("b")))
        shapes = {"before": {name: "[3:3]"}, "after": of_image} if of_image else None
        row = {"id": number, name: elements, "b": [1, None]}
        values.append(table.value(Event(table, "u", after=row, shapes=shapes), number))
    decode = compile_rows(
        table.schema,
        table.value_schema,
        table.value_id,
        takers={name: Taker("x[]", delimiter), "b": Taker("integer[]")},
    )
    for elements, (bounds, of_b), line in zip(rows, wanted, decode(values).split(b"\n")[:-1], strict=True):
        _, literal, other = fields_of(line + b"\n")
        assert other == (f"{of_b}=" if of_b else "") + "{1,NULL}"
        shown_bounds, nested = parsed(str(literal), delimiter)
        plain = bounds is None or all(lower == "1" for lower in re.findall(r"\[(-?\d+):", bounds))
        assert shown_bounds == (None if plain else bounds)
        if bounds:
            dimensions, inner = 1, nested
            while isinstance(inner[0], list):
                dimensions, inner = dimensions + 1, inner[0]
            assert dimensions == bounds.count("[")
        shown = flat(nested)
        assert len(shown) == len(elements)
        for got, element in zip(shown, elements, strict=True):
            assert same(kind, got, expected(kind, element))


def test_bounds_that_do_not_fit_and_bytes_after_them_are_errors() -> None:
    table = make_table("s.t", "id int64 key", "a int32[]")
    decode = compile_rows(table.schema, table.value_schema, table.value_id)
    for bounds in ("[1:3]", "[1:2][1:2]", "[2:1]", "[1:1][1:2]; DROP", "", "{", "[1:2]["):
        event = Event(table, "c", after={"id": 1, "a": [1, 2]}, shapes={"after": {"a": bounds}})
        with pytest.raises(CdcError, match="is not a value"):
            decode([table.value(event, 1)])
    good = table.value(Event(table, "c", after={"id": 1, "a": [1, 2]}, shapes={"after": {"a": "[0:1]"}}), 1)
    assert decode([good, good]) == b"1\t[0:1]={1,2}\n" * 2
    for damaged in [good[:end] for end in range(len(good))] + [good + b"\0", good[:-1] + b"x"]:
        with pytest.raises(CdcError, match="is not a value"):
            decode([good, damaged])


def test_pairs_become_json_where_the_target_has_no_hstore() -> None:
    table = make_table("s.t", "id int64 key", "h hstore", "a hstore[]")
    pairs = {'k"\\é\n': "v\t\x01😀", "": None}
    value = table.value(Event(table, "c", after={"id": 1, "h": pairs, "a": [pairs, None]}), 1)
    takers = {"h": Taker("jsonb"), "a": Taker("json[]")}
    line = compile_rows(table.schema, table.value_schema, table.value_id, takers=takers)([value])
    _, shown, array = fields_of(line)
    assert json.loads(str(shown)) == pairs
    assert [json.loads(parsed(str(array))[1][0]), parsed(str(array))[1][1]] == [pairs, None]


def digits(shown: str) -> int:
    return len(shown.partition("e")[0].replace(".", "").strip("-0"))


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
@example(123456792.0)  # 1.2345679e+08, as the server has it too: fewer digits, but longer
def test_a_single_is_shown_with_the_fewest_digits(value: float) -> None:
    shown = text.single(value)
    assert struct.pack("<f", float(shown)) == struct.pack("<f", value) or float(shown) == value == 0
    assert digits(shown) <= digits(f"{value:.9g}")


def test_infinite_and_special_numbers_have_postgres_words() -> None:
    assert text.numeric(b"", 0) == "NaN"
    assert text.numeric(b"", -1) == "-Infinity"
    assert text.timestamp_us(INT64_MAX) == "infinity"
    assert text.timestamp_us(-(2**63) + 2) == "294247-01-10 04:00:54.775808"
    assert text.DAYS[-719_163] == "0001-12-31 BC"
    assert text.timestamp_us(-719_163 * 86_400_000_000 + 1) == "0001-12-31 00:00:00.000001 BC"
    assert text.timestamptz("-0043-03-15T00:00:00.000000Z") == "0044-03-15T00:00:00.000000Z BC"
    assert text.numeric((10**5000 - 1).to_bytes(2100, "big"), 0) == "9" * 5000
