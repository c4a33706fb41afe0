"""Frames and checkpoints come back as they were; anything else is noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdc.log import Begun, Checkpoint, Mark, Span
from cdc.log.checkpoint import decode, encode
from cdc.log.folder import filesystem_type
from cdc.log.frames import RecordTooLargeError, pack, unpack
from cdc.position import Position
from cdc.records import Records
from cdc.table import TableId

KEYS = st.none() | st.binary(max_size=40)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64)
TABLES = st.builds(TableId, NAMES, NAMES)
NUMBERS = st.integers(0, 2**63 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.lists(st.tuples(KEYS, st.binary(max_size=300)), min_size=1, max_size=50), st.integers(1, 2000))
def test_records_come_back(pairs: list[tuple[bytes | None, bytes]], frame_bytes: int) -> None:
    records, read, at = Records([k for k, _ in pairs], [v for _, v in pairs]), Records(), 0
    for frame in pack(records, frame_bytes, 1 << 20):
        assert frame.offset == at
        assert len(frame.body) <= frame_bytes or frame.size == 1
        unpack(frame.body, frame.size, frame.crc, read)
        at += frame.size
    assert (read.keys, read.values) == (records.keys, records.values)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=20), st.data())
def test_a_changed_byte_is_noticed(values: list[bytes], data: st.DataObject) -> None:
    [frame] = pack(Records([None] * len(values), values), 1 << 20, 1 << 20)
    at = data.draw(st.integers(0, len(frame.body) - 1))
    changed = bytearray(frame.body)
    changed[at] ^= data.draw(st.integers(1, 255))
    for body in (bytes(changed), frame.body[:at], frame.body + b"\x00"):
        with pytest.raises(ValueError):
            unpack(body, frame.size, frame.crc, Records())


def test_a_record_that_is_too_large_is_named() -> None:
    records = Records([b"a", b"bb", None], [b"", b"x" * 98, b"x" * 101])
    with pytest.raises(RecordTooLargeError) as caught:
        list(pack(records, 1000, 100))
    assert (caught.value.index, caught.value.size_bytes) == (2, 101)


@given(
    st.builds(
        Checkpoint,
        st.text(),
        NUMBERS,
        st.text(),
        st.builds(Mark, st.integers(-1), st.text()),
        st.text(),
        st.builds(Position, NUMBERS, NUMBERS, JSON, JSON),
        st.booleans(),
        st.dictionaries(TABLES, st.lists(st.builds(Span, NUMBERS, NUMBERS, NUMBERS), max_size=3).map(tuple)),
        st.dictionaries(TABLES, st.dictionaries(st.sampled_from("cudrtm"), NUMBERS)),
        st.none() | st.tuples(NUMBERS, NUMBERS),
        st.lists(st.builds(Begun, TABLES, NUMBERS, st.booleans())).map(tuple),
        st.lists(TABLES).map(tuple),
        NUMBERS,
        st.dictionaries(TABLES, JSON),
        st.just({}) | st.dictionaries(TABLES, st.lists(NUMBERS, max_size=3).map(tuple)),
        st.just({}) | st.dictionaries(TABLES, NUMBERS),
    )
)
def test_a_checkpoint_comes_back(checkpoint: Checkpoint) -> None:
    assert decode(encode(checkpoint)) == checkpoint


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"log": 1}'])
def test_other_text_is_no_checkpoint(text: str) -> None:
    with pytest.raises(ValueError):
        decode(text)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data/log", "ext4"),
        ("/mnt/net/log", "nfs4"),
        ("/mnt/network", "ext4"),
        ("/mnt/net", "nfs4"),
        ("/mnt/with space/x", "cifs"),
        ("/over/x", "tmpfs"),
    ],
)
def test_the_longest_mount_point_decides(path: str, kind: str) -> None:
    mounts = (
        "/dev/sda / ext4 rw 0 0\nhost:/x /mnt/net nfs4 rw 0 0\n//h/s /mnt/with\\040space cifs rw 0 0\n"
        "a /over ext4 rw 0 0\nb /over tmpfs rw 0 0\nnonsense\n"
    )
    assert filesystem_type(path, mounts) == kind
