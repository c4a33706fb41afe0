"""The running stream, decoded into runs: what `PostgresSource.poll` does between its timers.

The invariant (rules R2, R5): a run's position counts every raw event since Begin (rows, TRUNCATEs, transactional messages), whatever
is left out; and nothing new is accepted before the last captured transaction came again, equal, and after it, inside the open
one, as many events as were stored.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import psycopg

from cdc.errors import CdcError
from cdc.postgres import pgoutput
from cdc.postgres.codec import Encode, StreamCodec
from cdc.postgres.envelope import Origin
from cdc.postgres.envelope import Transaction as Shared
from cdc.postgres.messages import Messages
from cdc.postgres.pgoutput import (
    ROW_KINDS,
    XLOGDATA_BYTES,
    Begin,
    Commit,
    Keepalive,
    Message,
    Relation,
    Row,
    Truncate,
)
from cdc.postgres.position import Open, Snapshot, StreamPosition, lsn_text, widen
from cdc.postgres.relations import Known, NotBinary, Relations
from cdc.postgres.session import broken
from cdc.postgres.stream import Stream
from cdc.postgres.watch import Watch
from cdc.records import Records
from cdc.source import Filter, Run
from cdc.table import MESSAGES, TableId, TableSchema

Json = Any

# In a backlog each run is a transaction of the log's. One of Kafka's costs the same 5 ms for 5,000 rows as for 20,000.
ROWS_MAX, BYTES_MAX = 20_000, 16 << 20
ROW_BYTES = BYTES_MAX // ROWS_MAX  # one budget bounds both
RUN_S = 0.1
_EVERY_ROW = sys.maxsize
_KIND_AND_TABLE = slice(XLOGDATA_BYTES, XLOGDATA_BYTES + 5)  # of a frame with a row
_TABLE = slice(XLOGDATA_BYTES + 1, XLOGDATA_BYTES + 5)


def _left_out(_frames: object, sequence: int) -> int:
    """Rows that are not captured have no numbers."""
    return sequence


@dataclass(slots=True)
class _Transaction:
    """The transaction that the stream is in. Its first `skip` events are stored already."""

    begin: Begin
    xid: int
    shared: Shared
    skip: int = 0
    again: bool = False  # the last captured one, sent again to be compared
    ordinal: int = 0
    marks: list[str] = field(default_factory=list)


class Reader:
    """Reads `stream` from after `at`. `watch` is shown each Relation message of a captured table (D9)."""

    def __init__(
        self,
        stream: Stream,
        at: StreamPosition,
        sequence: int,
        relations: Relations,
        messages: Messages,
        origin: Origin,
        *,
        binary: bool,
        mark_prefix: str,
        xid_near: int,
        watch: Watch,
    ) -> None:
        self.stream, self.position, self.sequence = stream, at, sequence
        self._relations, self._messages, self._origin = relations, messages, origin
        self._binary, self._mark_prefix = binary, mark_prefix
        self._xid_near, self._watch = xid_near, watch
        self._compare, self._reopen = at.commit_lsn is not None, at.open
        self._unseen = list(at.unseen)
        self._known: dict[bytes, Known] = {}
        self._transaction: _Transaction | None = None
        self._put_back: bytes | None = None
        # Per run and transaction: what takes the rows of one kind and table. Empty outside a transaction.
        self._active: dict[bytes, Encode] = {}
        self._drop, self._run, self._schemas = Filter(), Run({}, None, 0), dict[TableId, TableSchema]()
        self._end, self._budget, self._deadline = False, 0, 0.0

    def prune(self, snapshot: Snapshot) -> None:
        """Forget the delivered transactions that a snapshot of ours has seen (C2)."""
        self._xid_near = snapshot.xmax
        self.position = self.position.pruned(snapshot)
        self._unseen = list(self.position.unseen)

    # ------------------------------------------------------------------------------------------------------------- a run
    def run(self, timeout_s: float, drop: Filter) -> Run:
        """The next run (`cdc.source.Source.poll`). Raises NotBinary, after which this reader is of no use."""
        before = self.position
        self._watch.begins(drop)
        if drop is not self._drop:
            self._drop, before_it = drop, self._drop
            self._known = {oid: self._still(known, before_it) for oid, known in self._known.items()}
        run = self._run = Run({}, None, self.sequence)
        self._end, self._budget = False, BYTES_MAX
        self._active.clear()
        self._schemas.clear()
        started = time.monotonic()
        self._deadline = started + RUN_S
        self._origin.clock(time.time_ns() // 1000)
        if self._transaction:
            self._transaction.shared = self._shared(self._transaction.begin, self._transaction.xid)
        while not self._end:
            frame = self._rows()
            if frame is not None:
                self._other(frame)
            elif not self._end and not self._wait(started, timeout_s, before):
                break
        self._settle()
        run.stream, run.sequence = self.position.to_json(), self.sequence
        run.in_transaction = self.position.open is not None
        run.moved_on = replace(self.position, unseen=before.unseen) != before
        return run

    def _settle(self) -> None:
        """The position after what was read; a transaction that is still being found again is not in it."""
        inside, position = self._transaction, self.position
        if inside and not inside.again and inside.ordinal >= inside.skip:
            position = replace(position, open=Open(inside.begin.commit_lsn, inside.ordinal))
        self.position = replace(position, unseen=tuple(self._unseen))

    def _wait(self, started: float, timeout_s: float, before: StreamPosition) -> bool:
        """Nothing more in libpq's hands: is there more to come for this run? The rest of a transaction usually is on its way."""
        got = self._run.records or self.position is not before
        limit = timeout_s if not got else RUN_S if self._transaction else 0.0
        return self.stream.wait(max(0.0, started + limit - time.monotonic()))

    def _rows(self) -> bytes | None:
        """Decode row messages of the open transaction for as long as there are any; the first frame that needs more thought, or
        None when nothing can be read or the budget is spent. The loop that everything goes through: no object per row, and one
        call for all rows of a kind that come one after the other."""
        inside, active, get = self._transaction, self._active, self.stream.session.pg.get_copy_data
        if inside and inside.ordinal < inside.skip:
            frame = self._passed_over(inside)
            if frame is not None or self._end or inside.ordinal < inside.skip:
                return frame
        frame, self._put_back = self._put_back, None
        frames: list[bytes] = []
        kind, budget = None, self._budget
        encode: Encode = _left_out
        try:
            while budget >= 0:
                if frame is None:
                    size, data = get(1)
                    if size <= 0:
                        if size:
                            self.stream.ended()
                        break
                    frame = bytes(data)
                if frame[_KIND_AND_TABLE] != kind:
                    if frames:
                        self._encode(encode, frames)
                        frames = []
                    kind = frame[_KIND_AND_TABLE]
                    if kind not in active:
                        return frame
                    encode = active[kind]
                frames.append(frame)
                budget -= len(frame) + ROW_BYTES
                frame = None
        except psycopg.Error as error:
            raise broken(error) from None
        finally:
            self._budget = budget
        if frames:
            self._encode(encode, frames)
        self._end = budget < 0
        return None

    def _encode(self, encode: Encode, frames: list[bytes]) -> None:
        assert self._transaction is not None
        self.sequence = encode(frames, self.sequence + 1) - 1
        self._transaction.ordinal += len(frames)

    def _passed_over(self, inside: _Transaction) -> bytes | None:
        """Count rows that are stored already; the first frame that is none, or None when nothing can be read or the budget is
        spent."""
        while inside.ordinal < inside.skip and self._budget >= 0:
            try:
                size, data = self.stream.session.pg.get_copy_data(1)
            except psycopg.Error as error:
                raise broken(error) from None
            if size < 0:
                self.stream.ended()
            if size == 0:
                return None
            frame = bytes(data)
            if frame[_KIND_AND_TABLE][:1] not in ROW_KINDS:
                return frame
            inside.ordinal += 1
            self._budget -= len(frame) + ROW_BYTES
        self._end = self._budget < 0
        return None

    # ---------------------------------------------------------------------------------------------------- other messages
    def _other(self, frame: bytes) -> None:
        """Anything but a row of a table that this transaction has touched already."""
        head = pgoutput.parse_frame(frame)
        if isinstance(head, Keepalive):
            self.stream.keepalive(frame)
            return
        message = pgoutput.parse(frame, XLOGDATA_BYTES)
        match message:
            case Row():
                self._touch_row(frame, message)
            case Begin():
                self._begin(message)
            case Commit():
                self._commit(message)
            case Relation():
                self._relation(frame[_TABLE], message)
            case Truncate():
                self._truncate(frame, message, head.start_lsn)
            case Message(transactional=True):
                self._message(message, len(frame))
            case _:
                pass  # names of types and origins, and messages outside of transactions

    def _message(self, message: Message, size: int) -> None:
        """Every one is counted, whoever wrote it, and a mark noted even where it is stored already: it comes back with the Commit."""
        inside = self._transaction
        if inside is None:
            self._misplaced("Message")
        if message.prefix == self._mark_prefix:
            inside.marks.append(message.content.decode())
        elif inside.ordinal >= inside.skip and self._messages.wants(message.prefix):
            self.sequence += 1
            records = self._run.records.setdefault(MESSAGES, Records())
            self._messages.append(message, self.sequence, inside.shared, self._origin, records)
        inside.ordinal += 1
        self._budget -= size + ROW_BYTES

    def _begin(self, begin: Begin) -> None:
        if self._transaction:
            self._misplaced("Begin")
        at = self.position
        xid = widen(begin.xid, self._xid_near)
        inside = _Transaction(begin, xid, self._shared(begin, xid))
        if self._compare:
            if (begin.commit_lsn, xid, begin.commit_us) != (at.commit_lsn, at.xid, at.commit_us):
                self._other_history(f"after it comes the transaction {xid} committed at {lsn_text(begin.commit_lsn)}")
            inside.skip, inside.again = _EVERY_ROW, True
        elif self._reopen:
            if begin.commit_lsn != self._reopen.commit_lsn:
                self._other_history(f"the transaction at {lsn_text(self._reopen.commit_lsn)} is not there")
            inside.skip, self._reopen = self._reopen.ordinal, None
        else:
            self._unseen.append(xid)
        self._transaction = inside

    def _shared(self, begin: Begin, xid: int) -> Shared:
        return self._origin.transaction(xid, begin.commit_us)

    def _commit(self, commit: Commit) -> None:
        inside, at = self._transaction, self.position
        if inside is None or commit.commit_lsn != inside.begin.commit_lsn:
            self._misplaced("Commit")
        self._transaction = None
        self._active.clear()
        if inside.again:
            if commit.end_lsn != at.lsn:
                self._other_history(f"it ends at {lsn_text(commit.end_lsn)}")
            self._compare = False
            return
        if inside.ordinal < inside.skip:
            self._other_history(f"the open transaction has {inside.ordinal} events, {inside.skip} are stored")
        behind = at.after(commit.end_lsn, commit.commit_lsn, inside.xid, commit.commit_us, inside.marks)
        if behind.reach and commit.commit_lsn >= behind.reach.lsn:
            self._other_history(f"the mark before {lsn_text(behind.reach.lsn)} is not there")
        self.position = behind
        run, commit_ms = self._run, commit.commit_us // 1000
        first, last = run.commit_ms or (commit_ms, commit_ms)
        run.commit_ms = min(first, commit_ms), max(last, commit_ms)
        run.marks += inside.marks
        # What the budget still allows is left over: runs that end anywhere would make cuts rare in a backlog, and a sink applies
        # everything between two cuts in one transaction.
        self._end = bool(inside.marks) or self._budget < BYTES_MAX // 2 or time.monotonic() > self._deadline

    def _relation(self, oid: bytes, relation: Relation) -> None:
        for kind in ROW_KINDS:
            self._active.pop(kind + oid, None)
        self._known[oid] = self._interpreted(relation, self._known.get(oid))

    def _still(self, known: Known, before: Filter) -> Known:
        """The same while nothing else is said of the table; else its next row is looked at anew."""
        id_ = self._watch.name(known.relation)
        same = id_ == known.id and before.begun.get(id_) is self._drop.begun.get(id_)
        return known if same else Known(known.relation, id_, None, None)

    def _interpreted(self, relation: Relation, known: Known | None) -> Known:
        """What a Relation message means, with the catalog's help."""
        id_ = self._watch.name(relation)
        schema = self._watch.met(relation, id_) if id_ in self._drop.begun else None
        if schema is None:
            return Known(relation, id_, None, None)
        printers = self._relations.printers(relation, schema) if self._binary else None
        if self._binary and printers is None:
            raise NotBinary(str(id_))
        if known and known.codec and (known.schema, known.relation) == (schema, relation):
            return known
        return Known(relation, id_, schema, self._relations.stream_codec(relation, schema, printers))

    def _touch_row(self, frame: bytes, row: Row) -> None:
        """The first row of a table in this transaction: make its codec ready, then the row is looked at again."""
        if self._transaction is None:
            self._misplaced("row")
        self._put_back = frame
        oid = frame[_TABLE]
        codec = self._codec(oid, row.relation_oid)
        if self._end:
            return
        encoders = (codec.insert, codec.update, codec.delete) if codec else (_left_out,) * 3
        self._active |= {kind + oid: encode for kind, encode in zip(ROW_KINDS, encoders, strict=True)}

    def _codec(self, oid: bytes, number: int) -> StreamCodec | None:
        """The table's codec, begun; None when its events are left out. Ends the run where the table's schema is another one."""
        if not self._wanted(oid, number):
            return None
        known = self._known[oid]
        if known.codec is None or known.schema is None:
            known = self._known[oid] = self._interpreted(known.relation, None)
        if known.codec is None or known.schema is None:
            return None
        assert self._transaction is not None
        if self._schemas.setdefault(known.id, known.schema) != known.schema:
            self._end = True
            return None
        records = self._run.records.setdefault(known.id, Records())
        known.codec.begin(self._transaction.shared, records, self._run.moves)
        return known.codec

    def _copied(self, table: TableId) -> bool:
        """D8: is this transaction's event on a keyless table behind the copy that is under way?"""
        if table not in self._drop.keyless:
            return False
        copy = self._drop.keyless[table]
        return copy is None or (self._transaction is not None and Snapshot.parse(copy).sees(self._transaction.xid))

    def _truncate(self, frame: bytes, truncate: Truncate, lsn: int) -> None:
        """All tables of one statement together, in a run of their own."""
        inside = self._transaction
        if inside is None:
            self._misplaced("Truncate")
        if inside.ordinal >= inside.skip:
            touched = [(number.to_bytes(4, "big"), number) for number in truncate.relation_oids]
            wanted = [table for table in touched if self._wanted(*table)]
            if wanted and self._run.records:
                self._put_back, self._end = frame, True
                return
            for oid, number in wanted:
                if codec := self._codec(oid, number):
                    self.sequence += 1
                    codec.truncate(self.sequence, lsn)
                    self._run.truncated |= {self._known[oid].id}
            self._end = bool(self._run.truncated)
        inside.ordinal += 1

    def _wanted(self, oid: bytes, number: int) -> bool:
        """Are this table's events captured?"""
        known = self._known.get(oid)
        if known is None:
            detail = f"an event of relation {number}, which was not announced"
            raise CdcError("CDC-PG-150", detail, where=str(self.position))
        return known.id in self._drop.begun and known.id not in self._watch.left and not self._copied(known.id)

    def _misplaced(self, what: str) -> NoReturn:
        raise CdcError("CDC-PG-150", f"a {what} message out of place", where=str(self.position))

    def _other_history(self, found: str) -> NoReturn:
        detail = f"the last captured transaction {self.position.xid} is not followed as it was: {found}"
        raise CdcError("CDC-PG-129", detail, where=str(self.position))
