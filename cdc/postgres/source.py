"""`PostgresSource`: Postgres 14 to 18 as a `cdc.source.Source`, on pgoutput protocol version 1 (DESIGN 7, protocols C, D, G).

Three sessions: the stream; `control` for marks, heartbeats and the catalog; one for chunks. One thread: whatever waits calls
`stream.beat`, so the server hears from us by our own timer.

The invariant (rule R1): the server is told to forget only what `confirm` was given, and even then keeps the last transaction
before it, so that it is found again and compared at the next start (R5).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from cdc.errors import CdcError, Unavailable
from cdc.postgres import facts, history, marks, preflight, retention, slot, sql, watch
from cdc.postgres.chunks import Chunks, ReadLimits
from cdc.postgres.envelope import Origin
from cdc.postgres.facts import Table
from cdc.postgres.messages import Messages
from cdc.postgres.position import Reach, Snapshot, StreamPosition, lsn_int, lsn_text
from cdc.postgres.printed import is_carried
from cdc.postgres.reader import Reader
from cdc.postgres.relations import NotBinary, Register, Relations, typed
from cdc.postgres.session import Session
from cdc.postgres.slot import Publications
from cdc.postgres.stream import Stream
from cdc.postgres.type_catalog import types_of
from cdc.postgres.watch import Look, Watch
from cdc.selection import TableFilter
from cdc.source import Chunk, ChunkSpec, Filter, Finding, Piece, Restructured, Run, Unsettled
from cdc.table import TableId

Json = Any

UNSEEN_MAX = 32  # more delivered transactions than this are looked up at once, so that positions stay small

# URLs that led this process to a primary. A standby behind one of them is about to be promoted, or the name about to move.
_led_to_a_primary: set[str] = set()


class PostgresSource:
    """One database. `register` gives a schema's id (`Log.register`). `slot_name` and `publication` default to `cdc_<pipeline>`;
    a publication that another role made is used as it is. `insert_only` tables need no replica identity: their updates and deletes
    are not captured. `messages` are the prefixes of logical messages to capture, with `*` for any run of characters."""

    connector = "postgresql"

    def __init__(
        self,
        url: str,
        *,
        pipeline: str,
        register: Register,
        tables: Sequence[str] = (),
        insert_only: Iterable[TableId] = (),
        messages: Sequence[str] = (),
        slot_name: str | None = None,
        publication: str | None = None,
        heartbeat_s: float = 10.0,
        decoding_memory: str = "64MB",
        read_limits: ReadLimits | None = None,
    ) -> None:
        self._url, self._pipeline, self._register = url, pipeline, register
        self._select, self._insert_only = TableFilter.parse(tables), frozenset(insert_only)
        self._messages = Messages(pipeline, register, messages)
        self._slot_base = slot_name or slot.slot_name(pipeline)
        self._publications = Publications.named(publication or slot.slot_name(pipeline))
        self._heartbeat_s, self._decoding_memory, self._read_limits = heartbeat_s, decoding_memory, read_limits
        self._application = f"penstock:{pipeline}"
        self._control: Session | None = None
        self._started = ""  # when the server behind the control session was
        self._reader: Reader | None = None
        self._relations: Relations
        self._origin: Origin
        self._chunks: Chunks | None = None
        # Published before the slot was made, or read since, as these facts have it: no older transaction can have written to them.
        self._published_long: dict[TableId, Json] = {}
        self._streamed: list[str] = []
        self._watch: Watch
        self._next_heartbeat = self._next_look = 0.0
        self._confirmed = 0
        self._reach: Reach | None = None

    # ---------------------------------------------------------------------------------------------------------- preflight
    def check(self) -> list[Finding]:
        """See `Source.check`. Raises CdcError when there is no connection."""
        return self._findings(self._slot_base)

    def _findings(self, slot_name: str) -> list[Finding]:
        control = self._controlled()
        return preflight.findings(control, self._plan(self._selected(control), slot_name))

    def tables(self) -> list[TableId]:
        control = self._controlled()
        ids = [table.id for table in self._selected(control) if table.persistence == "p"]
        return facts.referenced_first(ids, facts.references(control))

    # -------------------------------------------------------------------------------------------------------------- start
    def intent(self, epoch: int) -> Json:
        name, control = slot.of_epoch(self._slot_base, epoch), self._controlled()
        # Before the intent is in the log: with it there, a second start would take the slot for one that the first had made.
        # A log that knows of no epoch at all was lost whichever epoch the slot is of.
        found = [name] if slot.find(control, name) else []
        if found or (epoch == 0 and (found := slot.of_any_epoch(control, self._slot_base))):
            raise _not_in_the_log(found[0])
        return {"slot": name, "publication": self._publications.all}

    def start(self, intent: Json, resume: bool) -> Json:
        control, name = self._controlled(), str(intent["slot"])
        preflight.demand(self._findings(name))
        tables = [table for table in self._selected(control) if table.persistence == "p"]
        found = slot.find(control, name)
        if found is not None and not resume:
            raise _not_in_the_log(name)
        slot.publish(control, self._publications, tables, self._insert_only, first=True)
        published = facts.by_name(control, self._publications, [table.id for table in tables])
        replication = self._connect(replication=True)
        try:
            identity = history.identify(replication)
            # Adopting: nothing was stored and no row was read, so where the slot stands is as good a beginning as any.
            lsn = slot.usable(control, name).confirmed if found else slot.create(replication, control, name)
        finally:
            replication.close()
        for id_, table in published.items() if found is None else ():
            self._published_long[id_] = _publication(table.facts(id_ in self._insert_only))
        return StreamPosition(identity.system_id, identity.timeline, name, lsn).to_json()

    def open(self, at: Json, confirmed: Json, sequence: int, epoch: int) -> None:
        self.close()
        position, cut = StreamPosition.from_json(at), StreamPosition.from_json(confirmed)
        # What concerns one table alone is looked at with it: the others go on.
        found = (finding for finding in self._findings(position.slot) if finding.code not in watch.OF_A_TABLE)
        preflight.demand(found, passing=("CDC-PG-113",) if self._url in _led_to_a_primary else ())
        _led_to_a_primary.add(self._url)
        control, replication = self._controlled(), self._connect(replication=True)
        self._confirmed = cut.confirmable
        position = history.verify(control, replication, position, self._confirmed)
        slot.wait_free(control, position.slot, self._application)
        database = control.run("SELECT current_database()")[0][0] or ""
        self._origin = Origin(self._pipeline, database, epoch, version("penstock"))
        self._relations = Relations(control, self._pipeline, self._register, self._publications, self._insert_only)
        self._watch, self._next_look = Watch(self._relations, self._insert_only), 0.0
        self._stream(replication, position, sequence, binary=self._all_exact(control))
        self._chunks = Chunks(
            self._connect, self._relations, self._publications, self._origin, self._beat, self._read_limits
        )
        control.idle = self._beat
        for older in range(epoch):
            stale = slot.find(control, slot.of_epoch(self._slot_base, older))
            if stale and stale.active_pid is None:
                slot.drop(control, stale.name)

    def _stream(self, replication: Session, position: StreamPosition, sequence: int, *, binary: bool) -> None:
        control = self._controlled()
        replication.settings({"logical_decoding_work_mem": self._decoding_memory})
        names = self._streamed = sorted(slot.owned(control, self._publications))
        if self._publications.all not in names:
            detail = f"there is no publication {self._publications.all}"
            raise CdcError("CDC-PG-142", detail, where=self._publications.all)
        stream = Stream(replication, position.slot, position.confirmable, names, binary=binary)
        stream.confirmed = self._confirmed
        self._reader = Reader(
            stream,
            position,
            sequence,
            self._relations,
            self._messages,
            self._origin,
            binary=binary,
            mark_prefix=marks.prefix(self._pipeline),
            xid_near=slot.snapshot(control).xmax,
            watch=self._watch,
        )

    def _all_exact(self, control: Session) -> bool:
        """May the stream be binary? One column that it cannot carry puts all of it in text mode."""
        types = types_of(control, typed(self._selected(control)))
        return all(is_carried(pg_type) for pg_type, _ in types.values())

    # --------------------------------------------------------------------------------------------------------- the stream
    def poll(self, timeout_s: float, drop: Filter) -> Run:
        reader = self._opened()
        reader.stream.beat()
        if time.monotonic() >= self._next_heartbeat:
            self._heartbeat(reader)
        look = Look({}, {}) if time.monotonic() < self._next_look else self._look(drop)
        before, sequence = reader.position, reader.sequence
        try:
            run = reader.run(timeout_s, drop)
        except NotBinary:
            self._in_text(before, sequence)
            self._watch.begins(drop)
            run = Run({}, before.to_json(), sequence, before.open is not None)
        if len(reader.position.unseen) > UNSEEN_MAX:
            reader.prune(slot.snapshot(self._controlled()))
            run.stream = reader.position.to_json()
        run.left, run.altered, run.facts = (
            self._watch.left,
            look.altered | self._watch.altered,
            look.facts | self._watch.facts,
        )
        run.found, run.refused = look.found, look.refused
        if run.left:
            self._next_look = 0.0
        return run

    def _in_text(self, at: StreamPosition, sequence: int) -> None:
        """A column without an exact form came up: the same stream from the same place, as text."""
        self._opened().stream.close()
        control, replication = self._controlled(), self._connect(replication=True)
        at = history.verify(control, replication, at, self._confirmed)
        slot.wait_free(control, at.slot, self._application)
        self._stream(replication, at, sequence, binary=False)

    def _heartbeat(self, reader: Reader) -> None:
        """Lets the slot advance while only other tables are busy, forgets what has become visible, and looks for what the stream
        does not tell. Its commit waits for no standby: a hung one must not hang the stream."""
        self._next_heartbeat = time.monotonic() + self._heartbeat_s
        control, position = self._controlled(), reader.position
        row = control.run(
            f"""BEGIN; SET LOCAL synchronous_commit = off;
                SELECT pg_catalog.pg_logical_emit_message(true, {sql.literal(f"penstock.heartbeat.{self._pipeline}")}, '');
                COMMIT;
                SELECT pg_catalog.pg_current_snapshot(), confirmed_flush_lsn FROM pg_catalog.pg_replication_slots
                WHERE slot_name = {sql.literal(position.slot)}""",
            doing="the heartbeat",
        )
        if not row:
            raise CdcError("CDC-PG-120", f"the slot {position.slot} is gone", where=position.slot)
        confirmed = lsn_int(row[0][1] or "0/0")
        if confirmed > self._confirmed:
            detail = f"the slot stands at {lsn_text(confirmed)}, capture has confirmed {lsn_text(self._confirmed)}"
            raise CdcError("CDC-PG-130", detail, where=position.slot)
        reader.prune(Snapshot.parse(row[0][0] or ""))

    def _look(self, drop: Filter) -> Look:
        """D9, by timer: the catalog beside what the log knows; the selected tables that are not captured. It takes a small part of the
        time, however many tables there are."""
        started, control, seen = time.monotonic(), self._controlled(), self._watch
        watch.publications(control, self._publications, self._streamed)
        tables = {table.id: table for table in facts.candidates(control, self._publications)}
        seen.begins(drop)
        for id_ in drop.live:
            seen.looked_at(id_, tables.get(id_))
        new = [
            t for t in tables.values() if t.persistence == "p" and t.id not in drop.begun and self._select.matches(t.id)
        ]
        refused = watch.refused(control, self._plan(new))
        ended = time.monotonic()
        self._next_look = ended + max(self._heartbeat_s, watch.LOOK_SHARE * (ended - started))
        found = [table.id for table in new if table.id not in refused]
        return Look(seen.altered, seen.facts, found, list(refused.values()))

    def mark(self) -> str:
        if self._control is None:
            raise Unavailable("CDC-PG-101", "the session that marks was lost")
        self._reach = marks.commit(self._control, self._pipeline)
        return self._reach.mark

    def confirm(self, at: Json) -> None:
        reader, position = self._opened(), StreamPosition.from_json(at)
        assert self._confirmed <= position.confirmable <= reader.position.confirmable, (
            "R1: confirmed <= durable <= read"
        )
        self._confirmed = reader.stream.confirmed = position.confirmable

    # -------------------------------------------------------------------------------------------------------------- tables
    def include(self, tables: Iterable[TableId]) -> Mapping[TableId, Json]:
        control, wanted = self._controlled(), list(tables)
        watch.publications(control, self._publications, self._streamed)
        candidates = {table.id: table for table in facts.candidates(control, self._publications)}
        found = {id_: candidates[id_] for id_ in wanted if id_ in candidates and candidates[id_].persistence == "p"}
        refused = watch.refused(control, self._plan(list(found.values())))
        watch.withdrawn(control, self._publications, found.values(), refused)
        wanted = [id_ for id_ in found if id_ not in refused]
        found = {id_: found[id_] for id_ in wanted}
        if not all(table.placed(id_ in self._insert_only) for id_, table in found.items()):
            watch.publish(control, self._publications, list(found.values()), self._insert_only)
            found = facts.by_name(control, self._publications, wanted)
        everything, inserts = self._publications
        if younger := {inserts if id_ in self._insert_only else everything for id_ in wanted} - set(self._streamed):
            raise CdcError("CDC-PG-142", f"{min(younger)} was made after the stream began", where=min(younger))
        # Transactions that wrote before the publication changed must end before the first chunk (D6). Taking an xid of our own
        # first puts all of them below the snapshot's xmax, where it lists them.
        control.run("SELECT pg_catalog.pg_current_xact_id()")
        running = sorted(slot.snapshot(control).running)
        described = self._relations.described(found.values(), running)
        for id_, now in described.items():
            if self._published_long.get(id_) == _publication(now):
                now["waits"] = []
        return described

    def read_chunk(self, spec: ChunkSpec, at: Json) -> Chunk | Unsettled | Restructured:
        reader, chunks = self._opened(), self._chunks
        assert chunks is not None
        chunk = chunks.read(spec, StreamPosition.from_json(at), reader.sequence)
        if not isinstance(chunk, Chunk):
            return chunk
        self._published_long[spec.table] = _publication(spec.facts)
        if spec.keyless:
            chunk.pieces = self._counted(chunk.pieces)
        else:
            reader.sequence = max(reader.sequence, *(piece.sequence for piece in chunk.pieces))
        return chunk

    def _counted(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            self._opened().sequence = piece.sequence
            self._beat()
            yield piece

    def seen(self, at: Json) -> Json:
        reader, chunks = self._opened(), self._chunks
        if chunks is None or chunks.last_snapshot is None:
            return at
        reader.prune(chunks.last_snapshot)
        reader.position = replace(reader.position, reach=self._reach)
        stored = StreamPosition.from_json(at).pruned(chunks.last_snapshot)
        return replace(stored, timeline=reader.position.timeline, reach=self._reach).to_json()

    # ---------------------------------------------------------------------------------------------------------------- rest
    def status(self) -> Mapping[str, Json]:
        control = self._controlled()
        name = self._reader.position.slot if self._reader else self._slot_base
        status = retention.status(control, name)
        if status["exists"] and self._reader:
            status["lag_bytes"] = max(0, lsn_int(status["head"] or "0/0") - self._reader.position.lsn)
        return status

    def drop(self) -> list[str]:
        """Remove what capture made at the source: its slots of all epochs, its publications. What was removed, in words."""
        self.close()
        control = self._controlled()
        names = slot.of_any_epoch(control, self._slot_base)
        removed = [f"slot {name}" for name in names if slot.drop(control, name)]
        for name, ours in slot.owned(control, self._publications).items():
            if ours:
                control.run(f"DROP PUBLICATION {sql.ident(name)}", doing=f"dropping publication {name}")
                removed.append(f"publication {name}")
        return removed

    def close(self) -> None:
        if self._reader:
            self._reader.stream.close()
        if self._chunks:
            self._chunks.close()
        if self._control:
            self._control.close()
        self._reader = self._chunks = self._control = None

    def _opened(self) -> Reader:
        assert self._reader is not None, "open() comes first"
        return self._reader

    def _beat(self) -> None:
        if self._reader:
            self._reader.stream.beat()

    def _connect(self, *, replication: bool = False) -> Session:
        """A session beside the control session, with the same server (C5)."""
        session = Session(self._url, self._application, replication=replication)
        history.same_server(session, self._started)
        return session

    def _controlled(self) -> Session:
        """The control session. Before `open` it is made when it is needed; a lost one is never replaced after that (C1)."""
        if self._control is None or (self._reader is None and not self._control.alive):
            self._control = Session(self._url, self._application)
            self._started = history.started(self._control)
        return self._control

    def _selected(self, control: Session) -> list[Table]:
        return [table for table in facts.candidates(control, self._publications) if self._select.matches(table.id)]

    def _plan(self, tables: Sequence[Table], slot_name: str | None = None) -> preflight.Plan:
        name = slot_name or self._slot_base
        return preflight.Plan(name, self._publications, tables, self._insert_only, self._select)


def _publication(table: Json) -> Json:
    """Which table it is, and by what it is published."""
    return table["oid"], table["published"]


def _not_in_the_log(name: str) -> CdcError:
    remedy = (
        "If the log was lost, restore its folder. Otherwise `cdc drop` removes the slot and what the targets remember of the"
        " lost log, and the next start loads every table anew. If another pipeline uses the slot, name a slot of your own"
        " under `source:`."
    )
    detail = f"the slot {name} exists at the source, and the log has no position in it: it is new, or was lost"
    return CdcError("CDC-PG-121", detail, where=name, remedy=remedy)
