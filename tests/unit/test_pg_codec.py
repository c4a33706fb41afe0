"""Capture's codec against fastavro: every type, NULL, UNCHANGED, extremes, all three wire forms, and damaged input."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc.avro import PLAIN, decode_event, schemas_of
from cdc.errors import CdcError
from cdc.postgres.codec import ChunkCodec, StreamCodec, compile_chunk, compile_stream, select_list
from cdc.records import Records
from cdc.source import Move
from cdc.table import Column, LogicalType, TableId, TableSchema
from tests.pg_rows import (
    COMMIT_US,
    KEY_ID,
    LSN,
    NOW_US,
    UNCHANGED,
    VALUE_ID,
    VALUES,
    XID,
    Value,
    datum,
    expected,
    expected_key,
    message,
    origin,
    rows,
    tables,
    tuple_bytes,
)


def stream_codec(schema: TableSchema, wire: str, full: bool = False) -> tuple[StreamCodec, Records]:
    codec = compile_stream(
        schema, KEY_ID if schema.key else None, VALUE_ID, identity_full=full, binary=wire == "binary"
    )
    codec.begin(origin().transaction(XID, COMMIT_US), records := Records(), [])
    return codec, records


def chunk_codec(schema: TableSchema) -> ChunkCodec:
    return compile_chunk(schema, KEY_ID if schema.key else None, VALUE_ID)


def key_only(schema: TableSchema, row: list[Value]) -> list[Value]:
    return [value if column.name in schema.key else None for column, value in zip(schema.columns, row, strict=True)]


quick = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
WIRES = pytest.mark.parametrize("wire", ["binary", "text"])


# ---------------------------------------------------------------------------------------------------------------- tests
@WIRES
@quick
@given(data=st.data())
def test_an_insert_is_what_fastavro_writes(wire: str, data: st.DataObject) -> None:
    schema = data.draw(tables(exact=wire == "binary"))
    row = data.draw(rows(schema))
    codec, records = stream_codec(schema, wire)
    codec.insert([message(b"I", b"N", tuple_bytes(schema, row, wire))], 1_000_009)
    assert records.values == [expected(schema, "c", 1_000_009, None, row)]
    assert records.keys == [expected_key(schema, row)]
    assert records.values[0][5:9] in PLAIN


@quick
@given(data=st.data())
def test_a_chunk_is_what_fastavro_writes(data: st.DataObject) -> None:
    schema = data.draw(tables(exact=False))
    drawn = data.draw(st.lists(rows(schema), max_size=3))
    payloads = [tuple_bytes(schema, row, "copy") for row in drawn]
    signature = b"PGCOPY\n\xff\r\n\0" + bytes(8)
    match data.draw(st.integers(0, 2)):
        case 0:  # as servers do: the signature comes with the first row, or with the trailer
            payloads = [*payloads, b"\xff\xff"]
            payloads[0] = signature + payloads[0]
        case 1:
            payloads = [signature, *payloads, b"\xff\xff"]
    records = Records()
    after = chunk_codec(schema).encode(payloads, 99, LSN, origin().reading(NOW_US), records)
    assert after == 99 + len(drawn)
    assert records.values == [expected(schema, "r", 99 + i, None, row) for i, row in enumerate(drawn)]
    assert records.keys == [expected_key(schema, row) for row in drawn]


@WIRES
@quick
@given(data=st.data())
def test_an_update_without_old_tuple(wire: str, data: st.DataObject) -> None:
    schema = data.draw(tables())
    row = data.draw(rows(schema, unchanged=True))
    codec, records = stream_codec(schema, wire)
    assert codec.update([message(b"U", b"N", tuple_bytes(schema, row, wire))], 5) == 6
    assert records.values == [expected(schema, "u", 5, None, row)]
    assert records.keys == [expected_key(schema, row)]


@WIRES
@quick
@given(data=st.data())
def test_an_update_with_a_whole_old_row(wire: str, data: st.DataObject) -> None:
    schema = data.draw(tables())
    old, new = data.draw(rows(schema)), data.draw(rows(schema, unchanged=True))
    if data.draw(st.booleans()):
        new = [was if c.name in schema.key else value for c, was, value in zip(schema.columns, old, new, strict=True)]
    filled = [was if value is UNCHANGED else value for was, value in zip(old, new, strict=True)]
    sent = message(b"U", b"O", tuple_bytes(schema, old, wire), b"N", tuple_bytes(schema, new, wire))
    check_update(schema, stream_codec(schema, wire, full=True), sent, old, filled, old)


@WIRES
@quick
@given(data=st.data())
def test_an_update_with_an_old_key(wire: str, data: st.DataObject) -> None:
    schema = data.draw(tables(keyed=True))
    old, new = data.draw(rows(schema)), data.draw(rows(schema, unchanged=True))
    toasted = data.draw(st.booleans())  # a key column of the new row is UNCHANGED: the old key has it
    old = key_only(schema, old)
    sent = [UNCHANGED if toasted and c.name in schema.key else v for c, v in zip(schema.columns, new, strict=True)]
    if toasted:
        new = [was if c.name in schema.key else v for c, was, v in zip(schema.columns, old, new, strict=True)]
    update = message(b"U", b"K", tuple_bytes(schema, old, wire), b"N", tuple_bytes(schema, sent, wire))
    check_update(schema, stream_codec(schema, wire), update, old, new, old)


def check_update(
    schema: TableSchema,
    made: tuple[StreamCodec, Records],
    sent: bytes,
    old: list[Value],
    new: list[Value],
    before: list[Value],
) -> None:
    codec, records = made
    moves: list[Move] = []
    codec.begin(origin().transaction(XID, COMMIT_US), records, moves)
    after = codec.update([sent], 5)
    old_key, new_key = expected_key(schema, old), expected_key(schema, new)
    if old_key == new_key:
        assert (after, moves) == (6, [])
        assert records.values == [expected(schema, "u", 5, before, new)]
        assert records.keys == [new_key]
        return
    assert old_key is not None
    assert new_key is not None
    assert after == 7
    assert moves == ([Move(schema.id, old_key, new_key, 1)] if UNCHANGED in new else [])
    assert records.keys == [old_key, new_key]
    assert records.values == [
        expected(schema, "d", 5, before, None, moved=new_key[5:]),
        expected(schema, "c", 6, None, new, moved=old_key[5:]),
    ]


@WIRES
def test_rows_of_one_call_have_their_own_lsn_and_number(wire: str) -> None:
    """An LSN's upper bits are kept from row to row, and a key change takes two numbers."""
    schema = bench_schema()
    lsns = [0, 1, 8191, 8192, 0x1000000, 0x1001FFF, 0x1002000, 0x1000000, (1 << 41) - 1, 1 << 41, (1 << 63) - 1]
    row, other = ([number, *[None] * 9] for number in (1, 2))
    new, was = (tuple_bytes(schema, row, wire) for row in (row, other))
    codec, records = stream_codec(schema, wire)
    assert codec.insert([message(b"I", b"N", new, lsn=lsn) for lsn in lsns], 5) == 5 + len(lsns)
    assert records.values == [expected(schema, "c", 5 + i, None, row, lsn=lsn) for i, lsn in enumerate(lsns)]

    codec, records = stream_codec(schema, wire)
    plain, move = (message(b"U", *parts, lsn=8191) for parts in ((b"N", new), (b"K", was, b"N", new)))
    assert codec.update([plain, move, plain], 5) == 9
    sequences = [
        decode_event(schemas_of("shop", schema, "postgresql").value, v).source["sequence"] for v in records.values
    ]
    assert sequences == ["5", "6", "7", "8"]


@WIRES
@quick
@given(data=st.data())
def test_a_delete(wire: str, data: st.DataObject) -> None:
    schema = data.draw(tables())
    full = data.draw(st.booleans()) or not schema.key
    old = data.draw(rows(schema))
    old = old if full else key_only(schema, old)
    codec, records = stream_codec(schema, wire, full)
    codec.delete([message(b"D", b"O" if full else b"K", tuple_bytes(schema, old, wire))], 5)
    assert records.values == [expected(schema, "d", 5, old, None)]
    assert records.keys == [expected_key(schema, old)]


@quick
@given(data=st.data())
def test_a_requested_key_that_is_gone(data: st.DataObject) -> None:
    schema = data.draw(tables(keyed=True))
    row = data.draw(rows(schema))
    key = expected_key(schema, row)
    assert key is not None
    records = Records()
    codec = chunk_codec(schema)
    assert codec.gone([key, key], 5, LSN, origin().reading(NOW_US), records) == 7
    event = decode_event(schemas_of("shop", schema, "postgresql").value, records.values[1])
    assert (event.op, event.after, event.source["sequence"], event.source["snapshot"]) == ("d", None, "6", "true")
    assert repr(event.before) == repr(
        {c.name: v for c, v in zip(schema.columns, datum(schema, key_only(schema, row)).values(), strict=True)}  # type: ignore[union-attr]
    )
    with pytest.raises(CdcError, match="CDC-PG-151"):
        codec.gone([key + b"\0"], 5, LSN, origin().reading(NOW_US), records)


def test_a_truncate() -> None:
    schema = bench_schema()
    codec, records = stream_codec(schema, "binary")
    codec.truncate(5, LSN)
    assert records.keys == [None]
    assert records.values == [expected(schema, "t", 5, None, None)]


@WIRES
@quick
@given(data=st.data())
def test_damaged_input_is_one_coded_error_without_values(wire: str, data: st.DataObject) -> None:
    schema = data.draw(tables())
    row = data.draw(rows(schema))
    body = tuple_bytes(schema, row, wire)
    cut = data.draw(st.integers(0, len(body) - 1))
    damaged = [body[:cut], body + b"\0", (len(row) + 1).to_bytes(2, "big") + body[2:] + b"n"]
    codec, records = stream_codec(schema, wire)
    for tuple_ in damaged:
        for call, sent in (
            (codec.insert, message(b"I", b"N", tuple_)),
            (codec.update, message(b"U", b"N", tuple_)),
            (codec.delete, message(b"D", b"K", tuple_)),
            (codec.insert, message(b"I", b"K", body)),
            (codec.insert, message(b"I")[:-1]),
        ):
            with pytest.raises(CdcError) as raised:
                call([sent], 5)
            assert raised.value.code == "CDC-PG-151"
            assert "t%s" in str(raised.value)
            assert "16/B3748D38" in str(raised.value)
    with pytest.raises(CdcError, match="CDC-PG-151"):
        chunk_codec(schema).encode([damaged[1]], 5, LSN, origin().reading(NOW_US), records)
    assert len(records) == 0


@quick
@given(data=st.data())
def test_random_bytes_never_raise_anything_else(data: st.DataObject) -> None:
    schema = data.draw(tables())
    wire = data.draw(st.sampled_from(["binary", "text", "copy"]))
    body = bytearray(tuple_bytes(schema, data.draw(rows(schema)), wire))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    codec, records = stream_codec(schema, wire)
    try:
        if wire == "copy":
            chunk_codec(schema).encode([bytes(body)], 5, LSN, origin().reading(NOW_US), records)
        else:
            codec.insert([message(b"I", b"N", bytes(body))], 5)
            codec.update([message(b"U", b"N", bytes(body))], 5)
    except CdcError as error:
        assert error.code == "CDC-PG-151"  # noqa: PT017


def bench_schema() -> TableSchema:
    kinds = ["int64", "int32", "int64", None, "float64", "boolean", "timestamptz", "date", "text", "json"]
    columns = [
        Column(name, LogicalType(kind) if kind else LogicalType("decimal", 12, 2), kind or "numeric(12,2)")
        for name, kind in zip(["id", *"abcdefghi"], kinds, strict=True)
    ]
    return TableSchema(TableId("public", "bench"), tuple(columns), ("id",))


def test_identities_do_not_mix() -> None:
    schema = bench_schema()
    row = tuple_bytes(schema, [1, *[None] * 9], "binary")
    for full, sent in ((True, b"K"), (False, b"O")):
        codec, _ = stream_codec(schema, "binary", full)
        with pytest.raises(CdcError, match="CDC-PG-151"):
            codec.delete([message(b"D", sent, row)], 5)


def test_an_unsent_key_is_an_error() -> None:
    schema = bench_schema()
    row = tuple_bytes(schema, [UNCHANGED, *[None] * 9], "binary")
    codec, _ = stream_codec(schema, "binary")
    with pytest.raises(CdcError, match="CDC-PG-151"):
        codec.update([message(b"U", b"N", row)], 5)


def test_not_a_number_has_one_form() -> None:
    schema = TableSchema(
        TableId("s", "t"), (Column("a", LogicalType("float64"), ""), Column("b", LogicalType("float32"), ""))
    )
    row = b"\0\2b\0\0\0\x08\xff\xf8\0\0\0\0\0\1b\0\0\0\4\xff\xc0\0\1"
    codec, records = stream_codec(schema, "binary")
    codec.insert([message(b"I", b"N", row)], 5)
    assert records.values == [expected(schema, "c", 5, None, [math.nan, math.nan])]


def test_the_select_list_quotes_names_and_prints_other_types() -> None:
    columns = (Column('a"%', LogicalType("int64"), "bigint"), Column("B", LogicalType("other"), "inet"))
    assert select_list(TableSchema(TableId("s", "t"), columns)) == [
        '"a""%"',
        'CASE WHEN "B" IS DISTINCT FROM NULL THEN pg_catalog.format(\'%s\', "B") END',
    ]


@pytest.mark.parametrize("wire", ["binary", "text", "copy"])
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_wide_table(wire: str, data: st.DataObject) -> None:
    kinds = [kind for _ in range(6) for kind in VALUES]
    columns = tuple(Column(f"c{i}", kind, kind.kind) for i, kind in enumerate(kinds))
    schema = TableSchema(TableId("s", "t"), columns, ("c3", "c0", "c20"))
    whole = [data.draw(VALUES[kind]) for kind in VALUES] * 6
    row = [
        value if column.name in schema.key or i % 5 else None
        for i, (column, value) in enumerate(zip(columns, whole, strict=True))
    ]
    for drawn in (whole, row):
        records = Records()
        if wire == "copy":
            chunk_codec(schema).encode([tuple_bytes(schema, drawn, wire)], 5, LSN, origin().reading(NOW_US), records)
        else:
            codec, records = stream_codec(schema, wire)
            codec.insert([message(b"I", b"N", tuple_bytes(schema, drawn, wire))], 5)
        assert records.values == [expected(schema, "r" if wire == "copy" else "c", 5, None, drawn)]
        assert records.keys == [expected_key(schema, drawn)]
