"""Rows of a table in one settled snapshot: key ranges, single keys, and whole keyless tables (protocols C2, D1, D2, D8).

The invariant: a chunk is read in a snapshot that sees every transaction the stream has delivered, of a table that is locked
against change before that snapshot is taken and is still the one that its load began with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from cdc.avro import HEADER_BYTES, avro_name, decode_datum, schemas_of
from cdc.errors import CdcError
from cdc.postgres import blockers, facts, sql
from cdc.postgres.codec import ChunkCodec, select_list
from cdc.postgres.envelope import Origin
from cdc.postgres.facts import Table
from cdc.postgres.position import Snapshot, StreamPosition
from cdc.postgres.relations import Relations
from cdc.postgres.session import Session, SqlFailed
from cdc.postgres.slot import Publications
from cdc.postgres.types import wire_text
from cdc.records import Records
from cdc.source import Chunk, ChunkSpec, Piece, Restructured, Unsettled
from cdc.table import TableId, TableSchema

Json = Any

SETTLE_S = 0.2
SETTLE_PAUSE_S = 0.01
SMALLER = 100  # a chunk of which no row came in time is read in parts of this many

_CANCELLED, _NO_LOCK = "57014", "55P03"


class ReadLimits(NamedTuple):
    """What reads of existing rows may cost the source. A table without key is read in one transaction whatever these say."""

    lock_timeout_s: float = 1.0
    statement_timeout_s: float | None = None
    transaction_s_max: float = 60.0
    read_bytes_per_s: int | None = None


class Pace:
    """No more than `bytes_per_s` on average; None: as fast as can be."""

    def __init__(self, bytes_per_s: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._bytes_per_s, self._clock = bytes_per_s, clock
        self._next_s = 0.0

    @property
    def due(self) -> bool:
        return self._clock() >= self._next_s

    def took(self, size: int) -> None:
        if self._bytes_per_s:
            self._next_s = max(self._next_s, self._clock()) + size / self._bytes_per_s


class _Read(NamedTuple):
    """A chunk's open transaction."""

    table: Table
    schema: TableSchema
    codec: ChunkCodec
    snapshot: str
    until_s: float


class Chunks:
    """Reads chunks on a session of its own, which `connect` opens. `sequence` gives and takes the number of the last record."""

    def __init__(
        self,
        connect: Callable[[], Session],
        relations: Relations,
        publications: Publications,
        origin: Origin,
        tick: Callable[[], None],
        limits: ReadLimits | None = None,
    ) -> None:
        self._connect, self._relations, self._publications = connect, relations, publications
        self._origin, self._tick, self._limits = origin, tick, limits or ReadLimits()
        self._session: Session | None = None
        self._pace, self._said = Pace(self._limits.read_bytes_per_s), blockers.Said()
        self._smaller: dict[TableId, int] = {}  # rows of a chunk, where as many as were asked for take too long
        self.last_snapshot: Snapshot | None = None

    def read(self, spec: ChunkSpec, at: StreamPosition, sequence: int) -> Chunk | Unsettled | Restructured:
        """`Source.read_chunk`. The records' sequence numbers follow `sequence`. A chunk for which there is no time is one of fewer
        rows, or Unsettled and smaller the next time."""
        if not (spec.keys or self._pace.due):
            return Unsettled("as many bytes as `read_bytes_per_s` allows have been read")
        session, spec, what = self._ready(), self._allowed(spec), f"a chunk of {spec.table}"
        opened = self._open(session, spec, at)
        chunk = self._chunk(session, spec, opened, at, sequence) if isinstance(opened, _Read) else opened
        if session.in_transaction and not (spec.keyless and isinstance(chunk, Chunk)):
            session.run("ROLLBACK")
        if isinstance(chunk, Unsettled):
            reason = chunk.reason
            self._said.waits(what, lambda: reason)
        else:
            self._said.goes_on(what)
        return chunk

    def _allowed(self, spec: ChunkSpec) -> ChunkSpec:
        """As much of it as there is time for, by what was seen, and not much more than a second's bytes."""
        rows = self._smaller.get(spec.table, spec.rows_max)
        size = min(spec.bytes_max, self._limits.read_bytes_per_s or spec.bytes_max)
        return spec._replace(keys=spec.keys[:rows], rows_max=min(rows, spec.rows_max), bytes_max=size)

    def _chunk(
        self, session: Session, spec: ChunkSpec, opened: _Read, at: StreamPosition, sequence: int
    ) -> Chunk | Unsettled:
        if spec.keyless:
            return Chunk(spec, self._pieces(session, spec, opened, at, sequence), opened.snapshot)
        read = self._keys if spec.keys else self._range
        try:
            piece = read(session, spec, opened, at, sequence)
        except SqlFailed as error:
            if error.sqlstate != _CANCELLED:
                raise
            rows = len(spec.keys) or spec.rows_max
            self._smaller[spec.table] = max(1, rows // SMALLER)
            return Unsettled(f"no time to read {rows} rows of {spec.table} at once: fewer are read", only_this=True)
        if 0 < (rows := self._smaller.pop(spec.table, 0)) <= spec.rows_max:
            self._smaller[spec.table] = rows * 2  # there may be time for more again
        return Chunk(spec, [piece], opened.snapshot)

    def close(self) -> None:
        if self._session:
            self._session.close()
            self._session = None

    # ------------------------------------------------------------------------------------------------------- transaction
    def _ready(self) -> Session:
        if self._session and (not self._session.alive or self._session.in_transaction):
            self.close()  # left behind in the middle of a chunk
        if self._session is None:
            self._session = self._connect()
            self._session.idle = self._tick
        return self._session

    def _open(self, session: Session, spec: ChunkSpec, at: StreamPosition) -> _Read | Unsettled | Restructured:
        """Lock, then the snapshot, then the checks (D1, in this order: a snapshot that is older than a rewrite reads nothing)."""
        settled = self._settled(session, spec, at)
        if isinstance(settled, Unsettled | Restructured):
            return settled
        text, until_s = settled
        table = facts.by_name(session, self._publications, [spec.table]).get(spec.table)
        if table is None:
            return Restructured(gone=True)
        now = self._relations.facts(table)
        # A live table's keys are read across harmless changes; a load's chunks must all be of one and the same table.
        changed = facts.altered(spec.facts, now) is not None if spec.keys else facts.restructured(spec.facts, now)
        if changed:
            return Restructured()
        snapshot = Snapshot.parse(text)
        if spec.after is None and not spec.keys:
            older = [xid for xid in spec.facts["waits"] if not snapshot.sees(xid)]
            if older:
                named = "; ".join(blockers.running(session, older)) or ", ".join(map(str, older))
                return Unsettled(
                    f"transactions older than the publication of {spec.table} are open: {named}", only_this=True
                )
        schema, codec = self._relations.chunked(session, table)
        self.last_snapshot = snapshot
        return _Read(table, schema, codec, text, until_s)

    def _settled(
        self, session: Session, spec: ChunkSpec, at: StreamPosition
    ) -> tuple[str, float] | Unsettled | Restructured:
        """A transaction whose snapshot sees all that was delivered; the snapshot, and when it has to be over. It is taken anew for a
        moment, since on a busy synchronous server some delivered commit is nearly always still invisible."""
        only = "" if spec.facts["children"] else "ONLY "
        deadline = time.monotonic() + SETTLE_S
        while True:
            until_s = time.monotonic() + self._limits.transaction_s_max
            try:
                session.run(
                    f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = {_ms(self._limits.lock_timeout_s)}; "
                    f"LOCK TABLE {only}{sql.qualified(spec.table)} IN ACCESS SHARE MODE",
                    doing=f"locking {spec.table}",
                )
            except SqlFailed as error:
                if error.sqlstate == _NO_LOCK:
                    session.run("ROLLBACK")
                    named = "; ".join(blockers.locking(session, [spec.table])) or "another session"
                    return Unsettled(f"{spec.table} is locked by {named}", only_this=True)
                if error.sqlstate in ("42P01", "3F000"):
                    return Restructured(gone=True)
                raise
            text = session.run("SELECT pg_catalog.pg_current_snapshot()")[0][0] or ""
            snapshot = Snapshot.parse(text)
            missing = [xid for xid in at.unseen if not snapshot.sees(xid)]
            if not missing:
                return text, until_s
            if time.monotonic() > deadline:
                named = "; ".join(blockers.running(session, missing)) or ", ".join(map(str, missing))
                return Unsettled(f"delivered transactions are not yet visible: {named}")
            session.run("ROLLBACK")
            session.pause(SETTLE_PAUSE_S)

    # -------------------------------------------------------------------------------------------------------------- rows
    def _rows(self, session: Session, spec: ChunkSpec, read: _Read, condition: str = "") -> Iterator[bytes]:
        only = "" if read.table.kind == "p" else "ONLY "
        text = f"SELECT {', '.join(select_list(read.schema))} FROM {only}{sql.qualified(spec.table)}{condition}"
        doing = f"reading {spec.table}"
        if not spec.keyless:
            left_s = max(0.001, read.until_s - time.monotonic())
            session.run(f"SET LOCAL statement_timeout = {_ms(min(left_s, self._limits.statement_timeout_s or left_s))}")
        session.copy_out(f"COPY ({text}) TO STDOUT (FORMAT binary)", doing)
        return session.copied(doing)

    def _range(self, session: Session, spec: ChunkSpec, read: _Read, at: StreamPosition, sequence: int) -> Piece:
        """Up to `rows_max` rows after `after`, fewer when they reach `bytes_max`, or when the time is over. Raises SqlFailed when
        it is over before the first one."""
        where = "" if spec.after is None else f" WHERE {_beyond(session, read, _values(read.schema, spec.after))}"
        order = f" ORDER BY {sql.columns(read.schema.key)} LIMIT {spec.rows_max}"
        payloads, size, ended = [], 0, True
        try:
            for payload in self._rows(session, spec, read, where + order):
                payloads.append(payload)
                size += len(payload)
                if size >= spec.bytes_max:
                    session.cancel_copy()
                    ended = False
                    break
        except SqlFailed as error:
            if error.sqlstate != _CANCELLED or not payloads:
                raise
            ended = False  # what came before the end of the time is a valid prefix
        self._pace.took(size)
        records = Records()
        after = read.codec.encode(payloads, sequence + 1, at.lsn, self._reading(), records) - 1
        ended = ended and len(records) < spec.rows_max
        return Piece(records, records.keys[-1] if records else spec.after, True, ended, after)

    def _keys(self, session: Session, spec: ChunkSpec, read: _Read, at: StreamPosition, sequence: int) -> Piece:
        """Exactly these keys. Those that are gone come first, as `d`: what the source holds equal to a key, but spells
        otherwise (1.0 and 1.00), then stands behind it."""
        wanted = list(dict.fromkeys(spec.keys))
        where = f" WHERE {_among(session, read, wanted)}"
        payloads = list(self._rows(session, spec, read, where))
        found, records, reading = Records(), Records(), self._reading()
        first = sequence + 1 + len(wanted)
        after = read.codec.encode(payloads, first, at.lsn, reading, found)
        present = {key[HEADER_BYTES:] for key in found.keys if key is not None}
        gone = [key for key in wanted if key[HEADER_BYTES:] not in present]
        read.codec.gone(gone, sequence + 1, at.lsn, reading, records)
        return Piece(
            Records(records.keys + found.keys, records.values + found.values),
            None,
            True,
            False,
            max(after - 1, sequence),
        )

    def _pieces(
        self, session: Session, spec: ChunkSpec, read: _Read, at: StreamPosition, sequence: int
    ) -> Iterator[Piece]:
        """A whole keyless table, piece by piece in the chunk's snapshot, never more than one piece in memory."""
        rows = self._rows(session, spec, read)
        reading, payloads, size = self._reading(), list[bytes](), 0
        for payload in rows:
            if size >= spec.bytes_max:
                records = Records()
                sequence = read.codec.encode(payloads, sequence + 1, at.lsn, reading, records) - 1
                yield Piece(records, None, False, False, sequence)
                payloads, size = [], 0
            payloads.append(payload)
            size += len(payload)
        session.run("ROLLBACK")
        records = Records()
        sequence = read.codec.encode(payloads, sequence + 1, at.lsn, reading, records) - 1
        yield Piece(records, None, True, True, sequence)

    def _reading(self) -> Any:
        return self._origin.reading(time.time_ns() // 1000)


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))  # 0 would be no limit at all


def _values(schema: TableSchema, framed: bytes) -> list[str]:
    """A framed key's values as Postgres reads them."""
    key_schema = schemas_of("", schema, "postgresql").key
    assert key_schema is not None
    try:
        datum = decode_datum(key_schema, framed[HEADER_BYTES:])
    except ValueError:
        raise CdcError("CDC-PG-160", f"a stored key of {schema.id} is of another form", where=str(schema.id)) from None
    return [wire_text(column.type, datum[avro_name(column.name)]) for column in schema.key_columns]


def _casts(schema: TableSchema, values: Iterable[str]) -> list[str]:
    columns = schema.key_columns
    return [f"{sql.literal(value)}::{column.source_type}" for column, value in zip(columns, values, strict=True)]


def _beyond(session: Session, read: _Read, values: Sequence[str]) -> str:
    """The condition "after this key", in the order that ORDER BY has.

    ORDER BY takes the type's default operator class; a bare `>` takes what the search_path finds, which for a type of an
    extension (citext) can be another operator: rows between the two orders would be lost. So the class's own are named."""
    names, casts = [sql.ident(name) for name in read.schema.key], _casts(read.schema, values)
    operators = _operators(session, read)
    if all(schema == "pg_catalog" for schema, _, _ in operators):
        return f"({', '.join(names)}) > ({', '.join(casts)})"
    alternatives, equal = [], ""
    for name, cast, (schema, greater, same) in zip(names, casts, operators, strict=True):
        alternatives.append(f"({equal}{name} OPERATOR({sql.ident(schema)}.{greater}) {cast})")
        equal += f"{name} OPERATOR({sql.ident(schema)}.{same}) {cast} AND "
    return " OR ".join(alternatives)


def _among(session: Session, read: _Read, keys: Sequence[bytes]) -> str:
    """The condition "one of these keys", by the equality of the key's own index: another would take a row for gone that is there."""
    names, operators = read.schema.key, _operators(session, read)
    rows = [_casts(read.schema, _values(read.schema, key)) for key in keys]
    if all(schema == "pg_catalog" for schema, _, _ in operators):
        listed = ", ".join(f"({', '.join(row)})" for row in rows)
        return f"({sql.columns(names)}) IN ({listed})"
    equal = [
        f"{sql.ident(name)} OPERATOR({sql.ident(schema)}.{same})"
        for name, (schema, _, same) in zip(names, operators, strict=True)
    ]
    return " OR ".join(f"({' AND '.join(map(' '.join, zip(equal, row, strict=True)))})" for row in rows)


def _operators(session: Session, read: _Read) -> list[tuple[str, str, str]]:
    """Schema, greater-than and equality of each key column's default B-tree class; pg_catalog's where the class is a general one."""
    rows = session.run(
        """WITH RECURSIVE base AS (
               SELECT a.attname, a.atttypid AS oid FROM pg_catalog.pg_attribute a
               WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped
               UNION ALL SELECT b.attname, t.typbasetype FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.oid AND t.typtype = 'd')
           SELECT b.attname, n.nspname, g.oprname, e.oprname
           FROM base b JOIN pg_catalog.pg_opclass c ON c.opcintype = b.oid AND c.opcdefault
           JOIN pg_catalog.pg_am m ON m.oid = c.opcmethod AND m.amname = 'btree'
           JOIN pg_catalog.pg_amop x ON x.amopfamily = c.opcfamily AND x.amopstrategy = 5
               AND x.amoplefttype = c.opcintype AND x.amoprighttype = c.opcintype
           JOIN pg_catalog.pg_amop y ON y.amopfamily = c.opcfamily AND y.amopstrategy = 3
               AND y.amoplefttype = c.opcintype AND y.amoprighttype = c.opcintype
           JOIN pg_catalog.pg_operator g ON g.oid = x.amopopr JOIN pg_catalog.pg_operator e ON e.oid = y.amopopr
           JOIN pg_catalog.pg_namespace n ON n.oid = g.oprnamespace""",
        [read.table.oid],
    )
    found = {row[0]: (row[1] or "", row[2] or "", row[3] or "") for row in rows}
    return [found.get(name, ("pg_catalog", ">", "=")) for name in read.schema.key]
