"""`PostgresSink`: Postgres as a target. Rows and bookmark commit together; a successor is noticed before anything is written.

The order inside a transaction (protocol B): lock, compare and move the bookmark; what begins; rows; what is finished; foreign
keys that can return; COMMIT. After any error the session is closed, and `resume` starts from what the target itself says.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from cdc import failpoints
from cdc.avro import table_of
from cdc.errors import CdcError, Rejected, Unavailable
from cdc.log import Begun, Checkpoint, Mark
from cdc.source import Finding
from cdc.table import TableId, TableSchema
from sinks.postgres import merge, preflight, shape
from sinks.postgres.bookkeeping import Bookkeeping, TableRow
from sinks.postgres.generations import Generations
from sinks.postgres.plan import Plan
from sinks.postgres.session import Session
from sinks.postgres.staging import Staging
from sinks.postgres.target import describe
from sinks.sink import Bookmark, Evolution, Missed, Piece, Start, TableChanges

_CLAIM_TIMEOUT_S = 3.0
_READ = ord("r")
COLLISIONS = frozenset(("23503", "23505", "23P01"))  # foreign key, unique, exclusion


class PostgresSink:
    """See `sinks.sink.Sink`. `schemas` gives a registered value schema by id, `rename` a table's name in the target. `like`: the
    table whose columns' types a table that is made should have, where they are wide enough. `evolution`: how a table follows its
    source's changes.

    One process, one instance: it owns the bookmark under a random name from its first `resume` on.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        pipeline: str,
        schemas: Callable[[int], Any],
        wants: Callable[[TableId], bool] = lambda _table: True,
        rename: Callable[[TableId], TableId] = lambda table: table,
        like: Callable[[TableId], TableId] | None = None,
        evolution: Callable[[TableId], Evolution] = lambda _table: Evolution(),
        lock_timeout_s: float = 30.0,
    ) -> None:
        self.name, self.wants = name, wants
        self._url, self._pipeline, self._schemas, self._rename = url, pipeline, schemas, rename
        self._like, self._evolution, self._lock_timeout_s = like, evolution, lock_timeout_s
        self._owner = secrets.token_hex(16)
        self._application_name = f"penstock-sink {self._owner}"
        self._claimed = False
        self._session: Session | None = None
        self._locked: Mark | None = None
        self._aside = 0  # constraints of this sink that are put aside
        self._asked: set[TableId] = set()  # tables whose load this process has asked for
        self._begins: dict[TableId, int] = {}  # what happens to these tables before these checkpoints is not for them

    # -------------------------------------------------------------------------------------------------------------- claim
    def resume(self, log_id: str, start: Callable[[], Start] | None = None) -> Bookmark:
        """See Sink. A predecessor's backend that still holds the bookmark is ended, by its recorded pid and application name."""
        self.close()
        self._connect(_CLAIM_TIMEOUT_S)
        with self._closing_on_error():
            self._books.ensure()
            try:
                bookmark = self._claim(log_id, start)
            except Unavailable as error:
                if error.code != "CDC-TGT-115":
                    raise
                self._run("ROLLBACK")
                self._books.terminate_predecessor()
                bookmark = self._claim(log_id, start)
            self._claimed = True
            self._run(f"SET lock_timeout = {round(self._lock_timeout_s * 1000)}")
            self._rows = {row.table: row for row in self._books.tables()}
            self._plans: dict[TableId, Plan] = {}
            self._aside = self._books.aside()
            number = bookmark.mark.number
            self._begins = {t: row.from_number for t, row in self._rows.items() if row.from_number > number}
        return bookmark._replace(begins=self._begins)

    def suspended(self) -> list[TableId]:
        """See Sink."""
        found = [
            table
            for table, row in self._rows.items()
            if row.state == "suspended" or (row.state == "behind" and table not in self._begins)
            if self.wants(table) and table not in self._asked
        ]
        self._asked.update(found)
        return found

    def unfinished(self) -> list[TableId]:
        """After `resume`: tables that this sink takes and that are not live."""
        return [table for table, row in self._rows.items() if row.state != "live" and self.wants(table)]

    @contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        """After any error the session ends, and its locks with it: nobody waits for this process's next attempt."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _claim(self, log_id: str, start: Callable[[], Start] | None) -> Bookmark:
        start = start or (lambda: Start(Mark(-1, log_id)))
        bookmark, joined = self._books.claim(log_id, self._owner, self._application_name, self._claimed, start)
        if joined is not None:
            # A load that is not in the log any more can begin anywhere from here on: it is asked for.
            begins = {**dict.fromkeys(joined.missing, joined.mark.number), **joined.begins}
            for table, number in begins.items():
                self._books.put(TableRow(table, self._rename(table), "behind", 0, from_number=number))
        for row in self._books.tables():
            # What is not taken now is missed, so a table that left the selection, or was renamed, is loaded anew when it returns.
            if not self.wants(row.table) or row.target != self._rename(row.table):
                self._books.put(replace(row, state="suspended"))
        self._open.commit()
        return bookmark

    def _connect(self, lock_timeout_s: float) -> None:
        self._session = Session(self._url, self._application_name, lock_timeout_s)
        self._books = Bookkeeping(self._session, self._pipeline, self.name)
        self._staging = Staging(self._session)
        self._generations = Generations(self._session, self._books)

    @property
    def _open(self) -> Session:
        assert self._session is not None, "resume() comes first"
        return self._session

    def _run(self, statement: str) -> None:
        self._open.execute(statement)

    # -------------------------------------------------------------------------------------------------------- transaction
    def begin(self, bookmark: Bookmark, checkpoint: Checkpoint) -> None:
        """See Sink."""
        assert checkpoint.log_id == bookmark.log_id, "a checkpoint of another log"
        with self._closing_on_error():
            for row in self._books.lock(bookmark, checkpoint.mark, self._owner):
                self._rows[row.table] = row
            self._locked = checkpoint.mark
            self._run("SET CONSTRAINTS ALL DEFERRED")
        failpoints.hit("sink.locked")

    def merge(self, piece: Piece) -> list[Missed]:
        """See Sink."""
        with self._closing_on_error():
            return self._merge_piece(piece)

    def _merge_piece(self, piece: Piece) -> list[Missed]:
        assert self._locked is not None, "begin() comes first"
        for begun in piece.begun:
            before = self._rows.get(begun.table)
            self._rows[begun.table] = self._begin(begun)
            self._plans.pop(begun.table, None)
            if begun.schema_id is not None:  # perhaps no row of it is ever read
                self._shaped(begun.table, begun.schema_id, begins=True, before=before.schema_id if before else None)
        if piece.begun and (aside := self._books.aside()) != self._aside:
            self._plans.clear()  # foreign keys are gone that other tables' plans know of
            self._aside = aside
        for table, changes in piece.tables.items():
            if self._takes(table) and self._rekeyed(table, changes.schema_id):
                self._suspend(table)
                self._asked.add(table)  # by the source's own change: capture loads it anew without a request
        taken = {table: changes for table, changes in piece.tables.items() if self._takes(table)}
        missed = [self._suspend(table) for table in piece.tables if table not in taken]
        try:
            missed += self._merge_tables(taken)
        except Rejected as rejected:
            # In the middle of a load's round a chunk is ahead of the stream, and rows collide that never were together.
            reading = [self._plans[table] for table, changes in taken.items() if self._is_read(table, changes)]
            if rejected.sqlstate not in COLLISIONS or not self._generations.make_room(reading):
                raise
            self._plans.clear()
            self._aside = self._books.aside()
            missed += self._merge_tables(taken)
        for table in piece.finished:
            if table in self._rows and self._rows[table].loading:
                self._rows[table] = self._generations.finish(self._rows[table], self._key(self._rows[table].schema_id))
        asked, self._asked = self._asked, self._asked | {miss.table for miss in missed if not miss.keys}
        return [miss for miss in missed if miss.keys or miss.table not in asked]

    def _begin(self, begun: Begun) -> TableRow:
        assert self._locked is not None
        target = self._rename(begun.table)
        for row in self._rows.values():
            if row.target == target and row.table != begun.table and row.state in ("loading", "live"):
                raise CdcError(
                    "CDC-TGT-124", f"{row.table} is written to it already", where=f"{begun.table} to {target}"
                )
        self._asked.discard(begun.table)
        return self._generations.begin(begun, target, self._rows.get(begun.table), self._locked.number)

    def _rekeyed(self, table: TableId, schema_id: int) -> bool:
        """Has this version of the table another key than its rows here? Then it takes nothing until it is loaded anew."""
        plan, row = self._plans.get(table), self._rows[table]
        if row.schema_id in (None, schema_id) or (plan is not None and plan.schema_id == schema_id):
            return False
        return set(self._key(row.schema_id)) != set(self._key(schema_id))

    def _key(self, schema_id: int | None) -> tuple[str, ...]:
        return () if schema_id is None else table_of(self._schemas(schema_id)).key

    def _takes(self, table: TableId) -> bool:
        row = self._rows.get(table)
        return row is not None and row.state in ("loading", "live")

    def _is_read(self, table: TableId, changes: TableChanges) -> bool:
        """Does the piece hold rows that a load or a re-read saw, ahead of the stream?"""
        return self._rows[table].loading or any(value[6] == _READ for value in changes.events)

    def _suspend(self, table: TableId) -> Missed:
        """Nothing of this table is applied until it is loaded anew, which is asked for."""
        row = self._rows.get(table) or TableRow(table, self._rename(table), "suspended", 0)
        if table not in self._rows or row.state != "suspended":
            self._rows[table] = replace(row, state="suspended")
            self._books.put(self._rows[table])
        return Missed(table, ())

    def _merge_tables(self, tables: Mapping[TableId, TableChanges]) -> list[Missed]:
        works = [
            merge.sort(plan, self._rows[table], changes)
            for table, changes in tables.items()
            for plan in (self._plan(table, changes),)
        ]
        if emptied := [work for work in works if work.changes.emptied]:
            merge.empty(self._open, emptied)
        missed = merge.Merge(self._open, self._staging, [work for work in works if work.changes.events]).run()
        return [miss if miss.keys else self._suspend(miss.table) for miss in missed]

    def _plan(self, table: TableId, changes: TableChanges) -> Plan:
        """The plan for this version of the table; the target table is made to fit it first."""
        plan = self._shaped(table, changes.schema_id)
        row = self._generations.tracking(self._rows[table], plan)
        if row.fresh and not changes.only_reads:
            row = replace(row, fresh=False)
        self._put(row)
        return plan

    def _shaped(self, table: TableId, schema_id: int, *, begins: bool = False, before: int | None = None) -> Plan:
        """The same; a load that `begins` may change the key, and `before` is the version that the table took until then."""
        plan, row = self._plans.get(table), self._rows[table]
        if plan is None or plan.schema_id != schema_id:
            value_schema = self._schemas(schema_id)
            schema = table_of(value_schema)
            assert schema.id == table, f"schema {schema_id} is of {schema.id}, not of {table}"
            like = None if self._like is None else describe(self._open, self._like(table))
            verbatim = shape.source_is_postgres(value_schema)
            older = before if begins else row.schema_id
            target, row = shape.shaped(
                self._open,
                row.target,
                schema,
                row,
                verbatim,
                like,
                policy=self._evolution(table),
                before=None if older is None else table_of(self._schemas(older)),
                begins=begins,
            )
            if row.seen is not None:
                self._generations.follow(row, target)
            self._put(replace(row, schema_id=schema_id))
            plan = self._plans[table] = Plan(table, schema_id, value_schema, schema, target)
        return plan

    def _put(self, row: TableRow) -> None:
        if row != self._rows[row.table]:
            self._books.put(row)
            self._rows[row.table] = row

    def commit(self, checkpoint: Checkpoint) -> Bookmark:
        """See Sink."""
        assert self._locked is not None, "begin() comes first"
        assert checkpoint.cut, "only a cut is committed (B1)"
        with self._closing_on_error():
            if checkpoint.mark != self._locked:
                self._books.move(checkpoint.mark)
            if self._aside and self._books.restorable():
                self._generations.restore()
                self._plans.clear()
                self._aside = self._books.aside()
            self._open.commit()
        failpoints.hit("sink.committed")
        self._staging.ended(committed=True)
        self._locked = None
        self._begins = {table: number for table, number in self._begins.items() if number > checkpoint.number}
        return Bookmark(checkpoint.log_id, checkpoint.mark, self._begins)

    def rollback(self) -> None:
        """See Sink."""
        if self._session is not None and self._session.in_transaction:
            try:
                self._session.execute("ROLLBACK")
            except CdcError:
                self.close()
        if self._session is not None and self._locked is not None:
            self._staging.ended(committed=False)
            self._plans.clear()
            self._rows = {row.table: row for row in self._books.tables()}
            self._aside = self._books.aside()
        self._locked = None

    # --------------------------------------------------------------------------------------------------------- outside it
    def check(self, tables: Iterable[TableSchema] = ()) -> list[Finding]:
        """See Sink. `tables`: what is known of the source's tables, for their shapes in the target."""
        return preflight.check(self._url, [(self._rename(table.id), table) for table in tables if self.wants(table.id)])

    def status(self) -> Mapping[str, object]:
        """The bookmark and every table, from `_cdc` alone, on a connection of its own."""
        session = Session(self._url, "penstock-status")
        try:
            books = Bookkeeping(session, self._pipeline, self.name)
            if not books.exists():
                return {"bookmark": None, "tables": []}
            bookmark = books.bookmark()
            return {
                "bookmark": bookmark
                and {"log_id": bookmark.log_id, "number": bookmark.mark.number, "id": bookmark.mark.id},
                "tables": [
                    {
                        "table": str(row.table),
                        "target": str(row.target),
                        "state": row.state,
                        "generation": row.generation,
                        "keyless": row.keyless,
                        "created": row.created,
                        "from_number": row.from_number,
                    }
                    for row in books.tables()
                ],
            }
        finally:
            session.close()

    def drop(self) -> None:
        """Remove this sink's bookkeeping, put foreign keys back, and `_cdc` with the last sink. Tables and rows stay."""
        session = Session(self._url, self._application_name, self._lock_timeout_s)
        try:
            books = Bookkeeping(session, self._pipeline, self.name)
            if not books.exists():
                return
            session.execute("BEGIN")
            books.forget_tables()
            Generations(session, books).restore()
            books.forget()
            session.commit()
        finally:
            session.close()

    def close(self) -> None:
        """End the session; an open transaction is rolled back by the server."""
        if self._session is not None:
            self._session.close()
        self._session, self._locked = None, None
