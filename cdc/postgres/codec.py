"""Capture's codec: a table's rows as Postgres sends them → framed Avro keys and values. Compiled once per schema version.

The same row gives the same bytes whether it came through the stream, binary or text, or in a chunk (rule R7), and NULL,
UNCHANGED and "not sent" stay three things (rule R6). Input that is not exactly a row of the schema raises CDC-PG-151 with the
table and the LSN, never a value; nothing is appended then.

    insert, update(frames, sequence)   generated; one call per list of messages, no object per row
    delete, truncate, key changes      the slow path over the same generated row reader
    encode(payloads, ...)              generated; one call per list of COPY payloads
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from cdc.avro import HEADER_BYTES, string
from cdc.postgres.envelope import Transaction
from cdc.postgres.generated import AT_TUPLE, CHUNK, STREAM, compiled
from cdc.postgres.pgoutput import lsn_of
from cdc.postgres.rowcode import BINARY, COPY, MALFORMED, TEXT, Printers
from cdc.postgres.rows import Rows
from cdc.postgres.sql import ident
from cdc.postgres.values import NULL, SOME
from cdc.records import Records
from cdc.source import Move
from cdc.table import TableSchema

COPY_HEADER_BYTES = 19
_COPY_SIGNATURE = b"PGCOPY\n\xff\r\n\x00" + bytes(8)  # no flags, no extension
_COPY_TRAILER = b"\xff\xff"
_NEW, _OLD_KEY, _OLD_ROW = b"N"[0], b"K"[0], b"O"[0]

Encode = Callable[[Sequence[bytes], int], int]


class StreamCodec:
    """Rows of one table in the stream. `begin` first, then calls in the order of the messages; each appends to the `Records` given
    to `begin`. A frame is a whole XLogData payload; the frames of one call are of one kind. `sequence` is the number of the first
    record that the call appends; the number after the last one's is returned.

    insert(frames, sequence)    appends a `c` for each
    update(frames, sequence)    a `u` for each, or a `d` and a `c` where the key changed: a `Move` of `begin`'s if the `c` is partial
    delete(frames, sequence)    a `d` for each
    truncate(sequence, lsn)     appends one `t`, without a key
    """

    insert: Encode
    update: Encode

    def __init__(
        self,
        schema: TableSchema,
        key_id: int | None,
        value_id: int,
        identity_full: bool,
        wire: str,
        printers: Printers,
    ) -> None:
        self._rows = Rows(schema, key_id, value_id)
        self._identity_full = identity_full
        self._records, self._moves = Records(), list[Move]()
        made = compiled(STREAM, self._rows, wire, printers, changed=self._changed)
        self.insert, self.update, self._begin, self._fields = made

    def begin(self, transaction: Transaction, records: Records, moves: list[Move]) -> None:
        """Append to `records` and `moves`, as of `transaction`, from here on."""
        self._records, self._moves = records, moves
        self._rows.transaction = transaction
        self._begin(transaction, records.keys.append, records.values.append)

    def delete(self, frames: Iterable[bytes], sequence: int) -> int:
        """The old row as sent becomes `before`; columns that were not sent are null there."""
        rows = self._rows
        for frame in frames:
            lsn = lsn_of(frame)
            try:
                old, end = self._old(frame, AT_TUPLE)
                if end != len(frame):
                    raise ValueError
                key = rows.key(old)
            except MALFORMED:
                raise rows.malformed(lsn) from None
            self._records.values.append(rows.value(b"\x02d", sequence, lsn, before=old))
            self._records.keys.append(key)
            sequence += 1
        return sequence

    def truncate(self, sequence: int, lsn: int) -> None:
        self._records.values.append(self._rows.value(b"\x02t", sequence, lsn))
        self._records.keys.append(None)

    def _old(self, frame: bytes, at: int) -> tuple[list[bytes | None], int]:
        """An old tuple and its end. None where the source did not send a column: all but the identity's in a key tuple."""
        kind = frame[at]
        if kind != (_OLD_ROW if self._identity_full else _OLD_KEY):
            raise ValueError
        columns, end = self._fields(frame, at + 1)
        if kind == _OLD_KEY:  # a NULL outside the identity is a column that was not sent
            for i in self._rows.other_indexes:
                columns[i] = None if columns[i] == NULL else columns[i]
        return columns, end

    def _changed(self, frame: bytes, sequence: int, lsn: int) -> int:
        """An update with an old tuple, or with UNCHANGED columns."""
        rows, at = self._rows, AT_TUPLE
        old: list[bytes | None] | None = None
        try:
            if frame[at] != _NEW:
                old, at = self._old(frame, at)
            if frame[at] != _NEW:
                raise ValueError
            new, end = self._fields(frame, at + 1)
            if end != len(frame):
                raise ValueError
            if old is not None:
                new = [was if column is None else column for column, was in zip(new, old, strict=True)]
            key = rows.key(new)
            old_key = key if old is None else rows.key(old)
        except MALFORMED:
            raise rows.malformed(lsn) from None
        return self._append(old, new, old_key, key, sequence, lsn)

    def _append(
        self,
        old: Sequence[bytes | None] | None,
        new: Sequence[bytes | None],
        old_key: bytes | None,
        key: bytes | None,
        sequence: int,
        lsn: int,
    ) -> int:
        rows, keys, values = self._rows, self._records.keys, self._records.values
        unchanged = rows.unchanged(new)
        if old_key is None or key is None or old_key == key:
            values.append(rows.value(b"\x02u", sequence, lsn, unchanged=unchanged, before=old, after=new))
            keys.append(key)
            return sequence + 1
        moved = SOME + string(key[HEADER_BYTES:])
        values.append(rows.value(b"\x02d", sequence, lsn, moved=moved, before=old))
        keys.append(old_key)
        moved = SOME + string(old_key[HEADER_BYTES:])
        values.append(rows.value(b"\x02c", sequence + 1, lsn, unchanged=unchanged, moved=moved, after=new))
        keys.append(key)
        if unchanged != NULL:
            self._moves.append(Move(rows.schema.id, old_key, key, len(keys) - 1))
        return sequence + 2


class ChunkCodec:
    """Rows of `COPY (SELECT <select_list> ...) TO STDOUT (FORMAT binary)`, one CopyData payload per row as libpq hands them out;
    the signature and the trailer may be among them. Appends an `r` per row to `records`; `sequence` is the first one's number.
    Both methods return the number after the last record's."""

    def __init__(self, schema: TableSchema, key_id: int | None, value_id: int) -> None:
        self._rows = Rows(schema, key_id, value_id)
        (self._encode,) = compiled(CHUNK, self._rows, COPY, {}, header=_header_bytes)

    def encode(self, payloads: Iterable[bytes], sequence: int, lsn: int, reading: Transaction, records: Records) -> int:
        """`reading` is `Origin.reading`'s; `lsn` the stream's position, the same for all rows."""
        after: int = self._encode(payloads, sequence, lsn, reading, records.keys.append, records.values.append)
        return after

    def gone(self, keys: Iterable[bytes], sequence: int, lsn: int, reading: Transaction, records: Records) -> int:
        """A `d` for each framed key: requested, but the source has no such row (C3)."""
        rows = self._rows
        rows.transaction = reading
        for key in keys:
            try:
                before = rows.row_of_key(key[HEADER_BYTES:])
            except MALFORMED:
                raise rows.malformed(lsn) from None
            records.values.append(rows.value(b"\x02d", sequence, lsn, before=before))
            records.keys.append(key)
            sequence += 1
        return sequence


def compile_stream(
    schema: TableSchema,
    key_id: int | None,
    value_id: int,
    *,
    identity_full: bool,
    binary: bool,
    printers: Printers | None = None,
) -> StreamCodec:
    """The codec of `schema` in the stream. `key_id` is None for a keyless table. `identity_full`: old tuples are whole rows.
    `binary`: the stream's mode; `printers` are then those of every `other` column."""
    return StreamCodec(schema, key_id, value_id, identity_full, BINARY if binary else TEXT, printers or {})


def compile_chunk(schema: TableSchema, key_id: int | None, value_id: int) -> ChunkCodec:
    """The codec of `schema` in chunks: give it the rows of `select_list(schema)`."""
    return ChunkCodec(schema, key_id, value_id)


def select_list(schema: TableSchema) -> list[str]:
    """The SQL expressions, one per column, that a chunk reads. Not escaped for a driver that formats: double every % there.

    A type without an exact form is read as its output function prints it, as the stream sends it: format's %s calls that function,
    a cast to text is another one (inet, "char"). So is a tsvector, which the server prints faster than we do.
    IS NOT NULL would be false for a composite value of NULLs."""
    expressions = []
    for column in schema.columns:
        name = ident(column.name)
        if column.type.kind in ("other", "tsvector"):
            name = f"CASE WHEN {name} IS DISTINCT FROM NULL THEN pg_catalog.format('%s', {name}) END"
        expressions.append(name)
    return expressions


def _header_bytes(payload: bytes) -> int | None:
    """What precedes the row in a payload that does not begin with one; None if it has no row."""
    if payload[:COPY_HEADER_BYTES] == _COPY_SIGNATURE:
        rest = payload[COPY_HEADER_BYTES:]
        return None if rest in (b"", _COPY_TRAILER) else COPY_HEADER_BYTES
    if payload == _COPY_TRAILER:
        return None
    raise ValueError
