"""Messages of pgoutput, whole and damaged."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.errors import CdcError
from cdc.postgres.pgoutput import (
    DELETE,
    INSERT,
    UPDATE,
    Begin,
    Commit,
    Keepalive,
    Message,
    Origin,
    Parsed,
    Relation,
    RelationColumn,
    Row,
    Truncate,
    Type,
    XLogData,
    parse,
    parse_frame,
)

LSN, US, EPOCH_US = 0x16_B374_8D38, 848_675_000_123_456, 946_684_800_000_000

MESSAGES: list[tuple[bytes, Parsed]] = [
    (struct.pack(">cQqI", b"B", LSN, US, 4_000_000_001), Begin(LSN, US + EPOCH_US, 4_000_000_001)),
    (struct.pack(">cBQQq", b"C", 0, LSN, LSN + 48, -1), Commit(LSN, LSN + 48, EPOCH_US - 1)),
    (b"O" + LSN.to_bytes(8, "big") + "über\0".encode(), Origin(LSN, "über")),
    (
        b"R\0\0\x40\x01sch\xc3\xa4\0t \"x\"\0d\0\2" + b"\1id\0\0\0\0\x17\xff\xff\xff\xff" + b"\0\0\0\0\x06\xa4\0\x0c\0\x06",
        Relation(16_385, "schä", 't "x"', "d", (RelationColumn(True, "id", 23, -1), RelationColumn(False, "", 1700, 786_438))),
    ),
    (b"R\0\0\0\1\0pg_x\0n\0\0", Relation(1, "pg_catalog", "pg_x", "n", ())),
    (b"Y\0\0\x40\x02public\0mood\0", Type(16_386, "public", "mood")),
    (b"I\0\0\x40\x01N\0\0", Row(INSERT, 16_385)),
    (b"U\xff\xff\xff\xffN\0\0", Row(UPDATE, 0xFFFFFFFF)),
    (b"D\0\0\x40\x01K\0\0", Row(DELETE, 16_385)),
    (b"T\0\0\0\2\3\0\0\x40\x01\0\0\x40\x02", Truncate(True, True, (16_385, 16_386))),
    (b"T\0\0\0\0\0", Truncate(False, False, ())),
    (struct.pack(">cBQ", b"M", 1, LSN) + b"penstock\0\0\0\0\2\0\xff", Message(True, LSN, "penstock", b"\0\xff")),
    (struct.pack(">cBQ", b"M", 0, LSN) + b"\0\0\0\0\0", Message(False, LSN, "", b"")),
]  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), MESSAGES)
def test_each_message(data: bytes, expected: Parsed) -> None:
    assert parse(data) == expected
    assert parse(bytes(25) + data, 25) == expected


@pytest.mark.parametrize(("data", "expected"), MESSAGES)
def test_a_message_cut_short_or_too_long_is_an_error(data: bytes, expected: Parsed) -> None:
    if isinstance(expected, Row):  # the codec reads what follows the head
        cuts = [data[:size] for size in range(5)]
    else:
        cuts = [*(data[:size] for size in range(len(data))), data + b"\0"]
    for cut in cuts:
        with pytest.raises(CdcError) as raised:
            parse(cut)
        assert raised.value.code == "CDC-PG-150"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"S\0\0\0\1\1",  # Stream Start: never sent in version 1
        b"P",
        b"\0",
        struct.pack(">cBQQq", b"C", 1, LSN, LSN, US),
        b"T\0\0\0\0\x04",
        struct.pack(">cBQ", b"M", 2, LSN) + b"\0\0\0\0\0",
        b"R\0\0\0\1\0t\0x\0\0",
        b"R\0\0\0\1\0t\0d\0\1\2a\0\0\0\0\x17\xff\xff\xff\xff",
        b"Y\0\0\0\1\xff\0\0",
    ],
)
def test_what_is_not_defined_is_an_error(data: bytes) -> None:
    with pytest.raises(CdcError, match="CDC-PG-150"):
        parse(data)


@given(
    st.binary(max_size=60)
    | st.builds(lambda kind, rest: kind + rest, st.sampled_from([m[:1] for m, _ in MESSAGES]), st.binary(max_size=60))
)
def test_random_bytes_parse_or_are_a_coded_error(data: bytes) -> None:
    for read in (parse, parse_frame):
        try:
            read(data)
        except CdcError as error:
            assert error.code == "CDC-PG-150"  # noqa: PT017


def test_frames() -> None:
    assert parse_frame(struct.pack(">cQQq", b"w", LSN, LSN + 1, US) + b"B") == XLogData(LSN, LSN + 1, US + EPOCH_US)
    assert parse_frame(struct.pack(">cQqB", b"k", LSN, US, 1)) == Keepalive(LSN, US + EPOCH_US, True)
    for frame in (b"", b"w" + bytes(23), b"k" + bytes(16), b"k" + bytes(18), b"x" + bytes(24)):
        with pytest.raises(CdcError, match="CDC-PG-150"):
            parse_frame(frame)
