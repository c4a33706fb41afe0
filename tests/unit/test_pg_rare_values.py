"""The rarer types and arrays, from both wire forms, against fastavro; and damaged values, which are never half read."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from cdc.avro import array_shapes, avro_name, decimal_bytes, encode_datum, schemas_of
from cdc.avro_types import form_of
from cdc.errors import CdcError
from cdc.postgres.codec import compile_stream
from cdc.postgres.forms import binary_form, text_form
from cdc.postgres.rowcode import MALFORMED
from cdc.records import Records
from cdc.table import Column, LogicalType, TableId, TableSchema
from tests.pg_rows import COMMIT_US, XID, message, origin, tuple_bytes

NUMBERS, WORDS = LogicalType("array", element=LogicalType("int32")), LogicalType("array", element=LogicalType("text"))
POINT = struct.pack("<dd", 1.5, -2)


def array(oid: int, bounds: list[tuple[int, int]], *items: bytes | None) -> bytes:
    head = struct.pack(">iiI", len(bounds), 1, oid) + b"".join(struct.pack(">ii", *bound) for bound in bounds)
    parts = (b"\xff" * 4 if item is None else len(item).to_bytes(4, "big") + item for item in items)
    return head + b"".join(parts)


def int4(number: int) -> bytes:
    return number.to_bytes(4, "big", signed=True)


SAMPLES: list[tuple[LogicalType, bytes, bytes, Any]] = [
    (LogicalType("uint32"), b"\xff" * 4, b"4294967295", 2**32 - 1),
    (LogicalType("timetz"), struct.pack(">qi", 1_500_000, -20_700), b"00:00:01.5+05:45", "00:00:01.500000+05:45"),
    (LogicalType("timetz"), struct.pack(">qi", 0, 61), b"00:00:00-00:01:01", "00:00:00.000000-00:01:01"),
    (LogicalType("interval"), struct.pack(">qii", -500_000, 3, -14), b"-1 years -2 mons +3 days -00:00:00.5", "P-1Y-2M3DT0H0M-0.5S"),
    (LogicalType("interval"), bytes(16), b"00:00:00", "P0Y0M0DT0H0M0S"),
    (LogicalType("interval"), struct.pack(">qii", 2**63 - 1, 2**31 - 1, 2**31 - 1), b"infinity", "infinity"),
    (LogicalType("money"), struct.pack(">q", -123_450), b"-$1,234.50", decimal_bytes(-123_450)),
    (LogicalType("bit"), b"\0\0\0\1\x80", b"1", True),
    (LogicalType("bits", 9), b"\0\0\0\x09\x80\x80", b"100000001", b"\x01\x01"),
    (LogicalType("point"), struct.pack(">dd", 1.5, -2), b"(1.5,-2)", {"x": 1.5, "y": -2.0, "wkb": b"\1\1\0\0\0" + POINT, "srid": None}),
    (
        LogicalType("hstore"),
        b"\0\0\0\2\0\0\0\1a\xff\xff\xff\xff\0\0\0\2b\"\0\0\0\1\\",
        b'"a"=>NULL, "b\\""=>"\\\\"',
        {"a": None, 'b"': "\\"},
    ),
    (LogicalType("hstore"), bytes(4), b"", {}),
    (LogicalType("ltree"), b"\x01a.b", b"a.b", "a.b"),
    (LogicalType("tsvector"), b"\0\0\0\2a'\0\0\1\xc0\x02b\0\0\0", b"'a''':2A 'b'", "'a''':2A 'b'"),
    (NUMBERS, array(23, []), b"{}", []),
    (NUMBERS, array(23, [(2, 1)], int4(-1), None), b"{-1,NULL}", [-1, None]),
    (WORDS, array(25, [(2, 1)], b'"NULL"', b"NULL"), b'{"\\"NULL\\"","NULL"}', ['"NULL"', "NULL"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "binary", "text", "value"), SAMPLES)
def test_both_forms_are_what_fastavro_writes(kind: LogicalType, binary: bytes, text: bytes, value: Any) -> None:
    schema = {"type": "record", "name": "r", "fields": [{"name": "v", "type": form_of(kind, set())}]}
    expected = (b"\x02" if kind.kind == "array" else b"") + encode_datum(schema, {"v": value})
    assert binary_form(kind)(binary) == expected
    assert text_form(kind)(text) == expected


@pytest.mark.parametrize(("kind", "binary", "text", "value"), SAMPLES)
def test_damaged_values_are_refused(kind: LogicalType, binary: bytes, text: bytes, value: Any) -> None:
    if kind.kind == "ltree":  # any bytes are text
        return
    with pytest.raises(MALFORMED):
        binary_form(kind)(binary + b"\0")
    if binary:
        with pytest.raises(MALFORMED):
            binary_form(kind)(binary[:-1])
    if kind.kind != "tsvector":
        with pytest.raises(MALFORMED):
            text_form(kind)(text + b"~")


@pytest.mark.parametrize("text", [b"{{1,2},{3}}", b"[1:3]={1,2}", b"{1,2", b"{1,{2}}", b'{"1}'])
def test_damaged_arrays_are_refused(text: bytes) -> None:
    with pytest.raises(MALFORMED):
        text_form(NUMBERS)(text)


def test_shapes_come_last_and_only_where_there_are_some() -> None:
    columns = (Column("id", LogicalType("text"), "text"), Column("ä", WORDS, "text[]"), Column("b", WORDS, "text[]"))
    schema = TableSchema(TableId("s", "t"), columns, ("id",))
    plain = TableSchema(TableId("s", "t"), (columns[0],), ("id",))
    values = {}
    for table, rows in {plain: [["x"]], schema: [["x", "{y}", None], ["x", "[0:0]={y}", "{{y,z}}"]]}.items():
        codec = compile_stream(table, 1, 2, identity_full=True, binary=False)
        codec.begin(origin().transaction(XID, COMMIT_US), records := Records(), [])
        texts = TableSchema(
            table.id, tuple(Column(c.name, LogicalType("text"), "text") for c in table.columns), ("id",)
        )
        for row in rows:
            codec.insert([message(b"I", b"N", tuple_bytes(texts, row, "text"))], 1)
        if table is schema:
            codec.update(
                [message(b"U", b"O", tuple_bytes(texts, rows[1], "text"), b"N", tuple_bytes(texts, rows[0], "text"))], 2
            )
            with pytest.raises(CdcError):
                codec.insert([message(b"I", b"N", tuple_bytes(texts, ["x", "{", None], "text"))], 3)
        values[table] = records.values
    value_schema = schemas_of("shop", schema, "postgresql").value
    assert [field["name"] for field in value_schema["fields"]][-1] == "shapes"
    bounds = {"ä": "[0:0]", "b": "[1:1][1:2]"}
    found = [array_shapes(value_schema, value) for value in values[schema]]
    assert found == [{}, {"after": bounds}, {"before": bounds}]
    assert avro_name("ä") != "ä"  # `shapes` has the source's names
