"""pgoutput, protocol version 1: a message's bytes → one small value. Pure.

Sections cited are those of https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html and, for the two
frames, of https://www.postgresql.org/docs/current/protocol-replication.html. Rows are not decoded here: `cdc.postgres.codec`
reads their bytes. What is unknown, short, or followed by bytes that do not belong to it is an error (rule R4).
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from struct import error as StructError
from typing import NamedTuple, NoReturn

from cdc.errors import CdcError
from cdc.postgres.calendar import EPOCH_2000_US

XLOGDATA, KEEPALIVE = ord("w"), ord("k")
XLOGDATA_BYTES = 25  # what precedes a message in its frame
INSERT, UPDATE, DELETE = ord("I"), ord("U"), ord("D")
ROW_KINDS = (b"I", b"U", b"D")

_FRAME = Struct(">xQQq")
_ALIVE = Struct(">xQqB")
_BEGIN = Struct(">xQqI")
_COMMIT = Struct(">xBQQq")
_ORIGIN = Struct(">xQ")
_ID = Struct(">xI")
_COUNT = Struct(">BH")
_COLUMN = Struct(">Ii")
_TRUNCATE = Struct(">xIB")
_MESSAGE = Struct(">xBQ")
_LENGTH = Struct(">I")


class XLogData(NamedTuple):
    """`XLogData (B)`: the WAL position of the message that follows at XLOGDATA_BYTES, the server's end of WAL, its clock."""

    start_lsn: int
    end_lsn: int
    clock_us: int  # Unix time


class Keepalive(NamedTuple):
    """`Primary keepalive message (B)`. `reply`: the server asks for an answer at once."""

    end_lsn: int
    clock_us: int
    reply: bool


class Begin(NamedTuple):
    """`Begin`. `commit_lsn` is the LSN of the commit record that is to come."""

    commit_lsn: int
    commit_us: int  # Unix time
    xid: int


class Commit(NamedTuple):
    """`Commit`. The transaction ends at `end_lsn`, the position after its commit record."""

    commit_lsn: int
    end_lsn: int
    commit_us: int


class Origin(NamedTuple):
    """`Origin`: the transaction was replicated to the server from another."""

    commit_lsn: int
    name: str


class RelationColumn(NamedTuple):
    """`in_identity`: the column is part of the replica identity."""

    in_identity: bool
    name: str
    type_oid: int
    typmod: int


class Relation(NamedTuple):
    """`Relation`. `identity` is pg_class.relreplident: d, n, f or i."""

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[RelationColumn, ...]


class Type(NamedTuple):
    """`Type`: names a type that is not built in, before the Relation that uses it."""

    oid: int
    schema: str
    name: str


class Row(NamedTuple):
    """The head of an "Insert", "Update" or "Delete": `kind` is INSERT, UPDATE or DELETE."""

    kind: int
    relation_oid: int


class Truncate(NamedTuple):
    """`Truncate`: of all these tables at once."""

    cascade: bool
    restart_identity: bool
    relation_oids: tuple[int, ...]


class Message(NamedTuple):
    """`Message`: what pg_logical_emit_message wrote."""

    transactional: bool
    lsn: int
    prefix: str
    content: bytes


Parsed = Begin | Commit | Origin | Relation | Type | Row | Truncate | Message


def _malformed(detail: str) -> NoReturn:
    raise CdcError("CDC-PG-150", detail)


def parse_frame(frame: bytes) -> XLogData | Keepalive:
    """The head of one CopyData payload of START_REPLICATION. Raises CdcError (CDC-PG-150) for any other."""
    kind = frame[:1]
    if kind == b"w" and len(frame) >= XLOGDATA_BYTES:
        start_lsn, end_lsn, clock_us = _FRAME.unpack_from(frame)
        return XLogData(start_lsn, end_lsn, clock_us + EPOCH_2000_US)
    if kind == b"k" and len(frame) == _ALIVE.size:
        end_lsn, clock_us, reply = _ALIVE.unpack(frame)
        return Keepalive(end_lsn, clock_us + EPOCH_2000_US, bool(reply))
    _malformed(f"a replication frame of kind {kind!r} and {len(frame)} bytes")


def lsn_of(frame: bytes) -> int:
    """Where in the WAL the message of an XLogData payload stands."""
    return int.from_bytes(frame[1:9], "big")


def parse(message: bytes, start: int = 0) -> Parsed:
    """The message that begins at `start`. Raises CdcError (CDC-PG-150) for what protocol version 1 does not define."""
    kind = message[start : start + 1]
    if kind in ROW_KINDS:
        if len(message) < start + _ID.size:
            _malformed(f"a {kind!r} message of {len(message) - start} bytes")
        return Row(kind[0], _ID.unpack_from(message, start)[0])
    reader = _READERS.get(kind)
    if reader is None:
        _malformed(f"a message of kind {kind!r}")
    try:
        parsed, end = reader(message, start)
    except (StructError, ValueError):  # ValueError: no end of a string, or not UTF-8
        _malformed(f"a {kind!r} message of {len(message) - start} bytes ends early or is not text where it must be")
    if end != len(message):
        _malformed(f"{len(message) - end} bytes follow a {kind!r} message")
    return parsed


def _string(message: bytes, at: int) -> tuple[str, int]:
    end = message.index(0, at)
    return message[at:end].decode(), end + 1


def _begin(message: bytes, at: int) -> tuple[Begin, int]:
    commit_lsn, commit_us, xid = _BEGIN.unpack_from(message, at)
    return Begin(commit_lsn, commit_us + EPOCH_2000_US, xid), at + _BEGIN.size


def _commit(message: bytes, at: int) -> tuple[Commit, int]:
    flags, commit_lsn, end_lsn, commit_us = _COMMIT.unpack_from(message, at)
    if flags:
        raise ValueError("no flags are defined")
    return Commit(commit_lsn, end_lsn, commit_us + EPOCH_2000_US), at + _COMMIT.size


def _origin(message: bytes, at: int) -> tuple[Origin, int]:
    (commit_lsn,) = _ORIGIN.unpack_from(message, at)
    name, at = _string(message, at + _ORIGIN.size)
    return Origin(commit_lsn, name), at


def _named(message: bytes, at: int) -> tuple[int, str, str, int]:
    """An OID, a schema and a name; the empty schema stands for pg_catalog."""
    (oid,) = _ID.unpack_from(message, at)
    schema, at = _string(message, at + _ID.size)
    name, at = _string(message, at)
    return oid, schema or "pg_catalog", name, at


def _relation(message: bytes, at: int) -> tuple[Relation, int]:
    oid, schema, name, at = _named(message, at)
    identity, count = _COUNT.unpack_from(message, at)
    at += _COUNT.size
    columns = []
    for _ in range(count):
        flags = message[at : at + 1]
        if flags not in (b"\0", b"\1"):
            raise ValueError("no other flags are defined")
        column, at = _string(message, at + 1)
        type_oid, typmod = _COLUMN.unpack_from(message, at)
        columns.append(RelationColumn(flags == b"\1", column, type_oid, typmod))
        at += _COLUMN.size
    if chr(identity) not in "dnfi":
        raise ValueError("no other identities are defined")
    return Relation(oid, schema, name, chr(identity), tuple(columns)), at


def _type(message: bytes, at: int) -> tuple[Type, int]:
    oid, schema, name, at = _named(message, at)
    return Type(oid, schema, name), at


def _truncate(message: bytes, at: int) -> tuple[Truncate, int]:
    count, options = _TRUNCATE.unpack_from(message, at)
    if options & ~3:
        raise ValueError("no other options are defined")
    at += _TRUNCATE.size
    end = at + 4 * count
    if end > len(message):
        raise ValueError("fewer tables than announced")
    oids = tuple(int.from_bytes(message[i : i + 4], "big") for i in range(at, end, 4))
    return Truncate(bool(options & 1), bool(options & 2), oids), end


def _message(message: bytes, at: int) -> tuple[Message, int]:
    flags, lsn = _MESSAGE.unpack_from(message, at)
    if flags & ~1:
        raise ValueError("no other flags are defined")
    prefix, at = _string(message, at + _MESSAGE.size)
    (length,) = _LENGTH.unpack_from(message, at)
    at += _LENGTH.size
    content = message[at : at + length]
    if len(content) != length:
        raise ValueError("less content than announced")
    return Message(bool(flags), lsn, prefix, content), at + length


_READERS: dict[bytes, Callable[[bytes, int], tuple[Parsed, int]]] = {
    b"B": _begin,
    b"C": _commit,
    b"O": _origin,
    b"R": _relation,
    b"Y": _type,
    b"T": _truncate,
    b"M": _message,
}
