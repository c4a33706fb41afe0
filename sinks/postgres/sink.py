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
from cdc.errors import CdcError, Unavailable
from cdc.log import Checkpoint, Mark
from cdc.source import Finding
from cdc.table import TableId, TableSchema
from sinks.postgres import merge, preflight, shape
from sinks.postgres.bookkeeping import Bookkeeping, TableRow
from sinks.postgres.generations import Generations
from sinks.postgres.plan import Plan
from sinks.postgres.session import Session
from sinks.postgres.staging import Staging
from sinks.sink import Bookmark, Missed, Piece, TableChanges

_CLAIM_TIMEOUT_S = 3.0


class PostgresSink:
    """See `sinks.sink.Sink`. `schemas` gives a registered value schema by id, `rename` a table's name in the target.

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
        lock_timeout_s: float = 30.0,
    ) -> None:
        self.name, self.wants = name, wants
        self._url, self._pipeline, self._schemas, self._rename = url, pipeline, schemas, rename
        self._lock_timeout_s = lock_timeout_s
        self._owner = secrets.token_hex(16)
        self._application_name = f"penstock-sink {self._owner}"
        self._claimed = False
        self._session: Session | None = None
        self._locked: Mark | None = None
        self._aside = False

    # -------------------------------------------------------------------------------------------------------------- claim
    def resume(self, log_id: str) -> Bookmark:
        """See Sink. A predecessor's backend that still holds the bookmark is ended, by its recorded pid and application name."""
        self.close()
        self._connect(_CLAIM_TIMEOUT_S)
        with self._closing_on_error():
            self._books.ensure()
            try:
                bookmark = self._claim(log_id)
            except Unavailable as error:
                if error.code != "CDC-TGT-115":
                    raise
                self._run("ROLLBACK")
                self._books.terminate_predecessor()
                bookmark = self._claim(log_id)
            self._claimed = True
            self._run(f"SET lock_timeout = {round(self._lock_timeout_s * 1000)}")
            self._rows = {row.table: row for row in self._books.tables()}
            self._plans: dict[TableId, Plan] = {}
            self._aside = self._books.aside() > 0
        return bookmark

    @contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        """After any error the session ends, and its locks with it: nobody waits for this process's next attempt."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _claim(self, log_id: str) -> Bookmark:
        bookmark = self._books.claim(log_id, self._owner, self._application_name, self._claimed)
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
            return self._merge(piece)

    def _merge(self, piece: Piece) -> list[Missed]:
        assert self._locked is not None, "begin() comes first"
        for begun in piece.begun:
            old = self._rows.get(begun.table)
            target = self._rename(begun.table)
            self._rows[begun.table] = self._generations.begin(begun, target, old, self._locked.number)
        if piece.begun:
            self._plans.clear()  # foreign keys are gone that other tables' plans know of
            self._aside = self._books.aside() > 0
        works = [
            merge.sort(plan, self._rows[table], changes)
            for table, changes in piece.tables.items()
            for plan in (self._plan(table, changes),)
        ]
        if emptied := [work for work in works if work.changes.emptied]:
            merge.empty(self._open, emptied)
        missed = merge.Merge(self._open, self._staging, [work for work in works if work.changes.events]).run()
        for table in piece.finished:
            if table in self._rows:
                self._rows[table] = self._generations.finish(self._rows[table])
        return missed

    def _plan(self, table: TableId, changes: TableChanges) -> Plan:
        """The plan for this version of the table; the target table is made to fit it first."""
        row, plan = self._rows.get(table), self._plans.get(table)
        if row is None:  # its load began before this sink's log does
            row = TableRow(table, self._rename(table), "live", 0, keyless=False)
        before = self._rows.get(table)
        if plan is None or plan.schema_id != changes.schema_id:
            value_schema = self._schemas(changes.schema_id)
            schema = table_of(value_schema)
            assert schema.id == table, f"schema {changes.schema_id} is of {schema.id}, not of {table}"
            target, row = shape.shaped(self._open, row.target, schema, row, shape.source_is_postgres(value_schema))
            plan = self._plans[table] = Plan(table, changes.schema_id, value_schema, schema, target)
        row = self._generations.tracking(row, plan)
        if row.fresh and not changes.only_reads:
            row = replace(row, fresh=False)
        if row != before:
            self._books.put(row)
            self._rows[table] = row
        return plan

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
                self._aside = self._books.aside() > 0
            self._open.commit()
        failpoints.hit("sink.committed")
        self._staging.ended(committed=True)
        self._locked = None
        return Bookmark(checkpoint.log_id, checkpoint.mark)

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
