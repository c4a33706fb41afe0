"""The schema `_cdc` in the target: where each sink is, its tables, and constraints put aside.

Invariant (protocol B2): the bookmark's row is updated first in every transaction, compared in the same statement, so its row
lock orders all writers of one sink; the rows of `_cdc.tables` are read under that lock and change only in transactions that
hold it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cdc.errors import CdcError, Superseded, Unavailable
from cdc.log import Mark
from cdc.table import TableId
from sinks.postgres.session import Session
from sinks.postgres.sql import ident, literal
from sinks.sink import Bookmark, Start

VERSION = 2
_LOCK = 0x70656E73746F636B  # the advisory lock under which the schema is made and removed
_DDL = """
CREATE SCHEMA _cdc;
COMMENT ON SCHEMA _cdc IS 'Penstock: where each sink is. Removed by `cdc drop`.';
CREATE TABLE _cdc.meta (version integer NOT NULL);
CREATE TABLE _cdc.bookmark (
    pipeline text, sink text, log_id text NOT NULL, number bigint NOT NULL, id text NOT NULL,
    owner text NOT NULL, pid integer NOT NULL, application_name text NOT NULL, updated_at timestamptz NOT NULL,
    era integer NOT NULL DEFAULT 0,
    PRIMARY KEY (pipeline, sink));
CREATE TABLE _cdc.tables (
    pipeline text, sink text, schema_name text, table_name text,
    target_schema text NOT NULL, target_name text NOT NULL, state text NOT NULL, generation bigint NOT NULL,
    keyless boolean NOT NULL, fresh boolean NOT NULL, tracked boolean NOT NULL, seen text, created boolean NOT NULL,
    adopted boolean NOT NULL,
    from_number bigint NOT NULL, schema_id bigint,
    PRIMARY KEY (pipeline, sink, schema_name, table_name));
CREATE TABLE _cdc.constraints (
    table_schema text, table_name text, constraint_name text,
    refers_schema text NOT NULL, refers_name text NOT NULL, definition text NOT NULL,
    pipeline text NOT NULL, sink text NOT NULL,
    PRIMARY KEY (table_schema, table_name, constraint_name));
"""
_REPLAYS = """
CREATE TABLE _cdc.replays (
    id text PRIMARY KEY, pipeline text NOT NULL, sink text NOT NULL, log_id text NOT NULL, plan text NOT NULL,
    started_at timestamptz NOT NULL, ended_at timestamptz, result text);
"""
# From each older version to the next.
_UPGRADES = {
    1: "ALTER TABLE _cdc.bookmark ADD COLUMN era integer NOT NULL DEFAULT 0;"
    " ALTER TABLE _cdc.tables ADD COLUMN schema_id bigint;" + _REPLAYS,
}
_TABLES = (
    "schema_name, table_name, target_schema, target_name, state, generation, keyless, fresh, tracked, seen, created,"
    " adopted, from_number, schema_id"
)


@dataclass(frozen=True, slots=True)
class TableRow:
    """One table of a sink. `state` is `behind`: its load begins at `from_number`, and nothing before is for it; `loading`, `live`, or
    `suspended`: what happens to it is not applied until it is loaded anew.

    `fresh`: it was empty when its load began and holds nothing but rows read by it since. `tracked`: it held rows, so the keys
    written since are kept in the table `seen` (made with the first of them). `created`: the table is of our making; `adopted`: it
    was there, and its shape was checked.
    `from_number`: the checkpoint at which its load began; ahead of the bookmark: the first whose changes are for it (B5).
    `schema_id`: the version that the table was last made to take.
    """

    table: TableId
    target: TableId
    state: str
    generation: int
    keyless: bool = False
    fresh: bool = False
    tracked: bool = False
    seen: str | None = None
    created: bool = False
    adopted: bool = False
    from_number: int = -1
    schema_id: int | None = None

    @property
    def loading(self) -> bool:
        return self.state == "loading"


@dataclass(frozen=True, slots=True)
class PutAside:
    """A foreign key or unique index that was dropped, and how to make it again. A unique index refers to its own table."""

    table: TableId
    name: str
    refers: TableId
    definition: str


class Bookkeeping:
    """The rows of one sink of one pipeline, through one session."""

    def __init__(self, session: Session, pipeline: str, sink: str) -> None:
        self._session = session
        self.pipeline, self.sink = pipeline, sink
        self._era = 0  # raised by whoever exchanges rows beside the sink, which then has to read its tables anew
        self._mine = f"pipeline = {literal(pipeline)} AND sink = {literal(sink)}"

    # ------------------------------------------------------------------------------------------------------------ schema
    def exists(self) -> bool:
        return bool(self._session.rows("SELECT 1 FROM pg_namespace WHERE nspname = '_cdc'"))

    def ensure(self) -> None:
        """Make `_cdc` if it is absent, and bring an older one up to date. Raises CDC-TGT-112 for one of a newer version."""
        versions = self._session.rows("SELECT version FROM _cdc.meta") if self.exists() else []
        if not versions or versions[0][0] in _UPGRADES:
            self._session.execute(f"BEGIN; SELECT pg_advisory_xact_lock({_LOCK})")
            if not self.exists():
                self._session.execute(f"{_DDL}{_REPLAYS} INSERT INTO _cdc.meta VALUES ({VERSION})")
            ((version,),) = self._session.rows("SELECT version FROM _cdc.meta")
            for older in range(version, VERSION):
                self._session.execute(f"{_UPGRADES[older]} UPDATE _cdc.meta SET version = {older + 1}")
            self._session.commit()
        versions = self._session.rows("SELECT version FROM _cdc.meta")
        if versions != [(VERSION,)]:
            raise CdcError("CDC-TGT-112", f"_cdc.meta says version {versions}, this service knows {VERSION}")

    # ---------------------------------------------------------------------------------------------------------- bookmark
    def bookmark(self) -> Bookmark | None:
        """The bookmark, without a lock."""
        found = self._session.rows(f"SELECT log_id, number, id FROM _cdc.bookmark WHERE {self._mine}")
        return Bookmark(found[0][0], Mark(found[0][1], found[0][2])) if found else None

    def claim(
        self, log_id: str, owner: str, application_name: str, claimed: bool, start: Callable[[], Start]
    ) -> tuple[Bookmark, Start | None]:
        """Lock the bookmark and make it this process's; see `Sink.resume`. `claimed`: this process had it before, so another owner
        is a successor. A bookmark that was not there is made where `start` says, which is returned too. Leaves the transaction
        open."""
        self._session.execute("BEGIN")
        joined: Start | None = None
        select = f"SELECT log_id, number, id, owner, era FROM _cdc.bookmark WHERE {self._mine} FOR UPDATE"
        if not (found := self._session.rows(select)):
            if claimed or self._session.rows(f"SELECT 1 FROM _cdc.tables WHERE {self._mine} LIMIT 1"):
                raise CdcError(
                    "CDC-TGT-110", f"sink {self.sink} of pipeline {self.pipeline} has tables, and no bookmark"
                )
            begin = start()
            made = self._session.execute(
                f"INSERT INTO _cdc.bookmark VALUES ({literal(self.pipeline)}, {literal(self.sink)}, {literal(log_id)},"
                f" {begin.mark.number}, {literal(begin.mark.id)}, {literal(owner)}, pg_backend_pid(),"
                f" {literal(application_name)}, now()) ON CONFLICT DO NOTHING"
            )
            joined = begin if made else None
            found = self._session.rows(select)
        theirs, number, mark_id, holder, self._era = found[0]
        if claimed and holder != owner:
            raise self._superseded()
        if theirs != log_id:
            raise CdcError(
                "CDC-TGT-111",
                f"the bookmark of sink {self.sink} is at checkpoint {number} of log {theirs}, this log is {log_id}",
            )
        self._session.execute(
            f"UPDATE _cdc.bookmark SET owner = {literal(owner)}, pid = pg_backend_pid(),"
            f" application_name = {literal(application_name)}, updated_at = now() WHERE {self._mine}"
        )
        return Bookmark(theirs, Mark(number, mark_id)), joined

    def terminate_predecessor(self) -> bool:
        """End the backend that last claimed the bookmark, if it is still there under its recorded pid and application name."""
        found = self._session.rows(
            "SELECT pg_terminate_backend(a.pid) FROM _cdc.bookmark b JOIN pg_stat_activity a ON a.pid = b.pid"
            " AND a.application_name = b.application_name AND a.datname = current_database()"
            f" WHERE {self._mine} AND a.pid <> pg_backend_pid()"
        )
        return bool(found)

    def lock(self, bookmark: Bookmark, mark: Mark, owner: str) -> list[TableRow]:
        """Begin the transaction: compare, lock and move the bookmark in one statement; then the tables that are not live (B2)."""
        moved = self._session.execute(
            f"BEGIN ISOLATION LEVEL READ COMMITTED; UPDATE _cdc.bookmark SET number = {mark.number}, id = {literal(mark.id)},"
            f" updated_at = now() WHERE {self._mine} AND log_id = {literal(bookmark.log_id)}"
            f" AND number = {bookmark.mark.number} AND id = {literal(bookmark.mark.id)} AND owner = {literal(owner)}"
            f" AND era = {self._era}"
        )
        if moved != 1:
            self._session.execute("ROLLBACK")
            holder = self._session.rows(f"SELECT owner FROM _cdc.bookmark WHERE {self._mine}")
            if not holder:
                raise CdcError("CDC-TGT-110", f"the bookmark of sink {self.sink} of pipeline {self.pipeline} is gone")
            if holder != [(owner,)]:
                raise self._superseded()
            raise Unavailable("CDC-TGT-114", f"the bookmark is not as it was at checkpoint {bookmark.mark.number}")
        return self.tables("state <> 'live'")

    def locked(self) -> Bookmark | None:
        """The bookmark, locked until the transaction ends."""
        found = self._session.rows(f"SELECT log_id, number, id FROM _cdc.bookmark WHERE {self._mine} FOR UPDATE")
        return Bookmark(found[0][0], Mark(found[0][1], found[0][2])) if found else None

    def exchanged(self, mark: Mark) -> None:
        """Rows were exchanged beside the sink: it stands at `mark`, and has to read its tables anew."""
        self.move(mark)
        self._session.execute(f"UPDATE _cdc.bookmark SET era = era + 1, updated_at = now() WHERE {self._mine}")

    def move(self, mark: Mark) -> None:
        """Write another checkpoint into the bookmark that `lock` holds."""
        self._session.execute(
            f"UPDATE _cdc.bookmark SET number = {mark.number}, id = {literal(mark.id)} WHERE {self._mine}"
        )

    def _superseded(self) -> Superseded:
        return Superseded("CDC-TGT-113", f"another process has taken over sink {self.sink} of pipeline {self.pipeline}")

    # ------------------------------------------------------------------------------------------------------------ tables
    def tables(self, where: str = "true") -> list[TableRow]:
        found = self._session.rows(f"SELECT {_TABLES} FROM _cdc.tables WHERE {self._mine} AND {where} ORDER BY 1, 2")
        return [TableRow(TableId(row[0], row[1]), TableId(row[2], row[3]), *row[4:]) for row in found]

    def put(self, row: TableRow) -> None:
        values = ", ".join(
            literal(value)
            for value in (
                *(self.pipeline, self.sink, *row.table, *row.target, row.state, row.generation, row.keyless, row.fresh),
                *(row.tracked, row.seen, row.created, row.adopted, row.from_number, row.schema_id),
            )
        )
        columns = [name.strip() for name in _TABLES.split(",")[2:]]
        self._session.execute(
            f"INSERT INTO _cdc.tables (pipeline, sink, {_TABLES}) VALUES ({values})"
            " ON CONFLICT (pipeline, sink, schema_name, table_name)"
            f" DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in columns)}"
        )

    def drop_seen(self, row: TableRow) -> TableRow:
        """`row` without its table of keys seen."""
        if row.seen is not None:
            self._session.execute(f"DROP TABLE IF EXISTS _cdc.{ident(row.seen)}")
        return replace(row, seen=None, tracked=False)

    # -------------------------------------------------------------------------------------------------------- constraints
    def put_aside(self, constraint: PutAside) -> None:
        values = ", ".join(
            map(
                literal,
                (
                    *constraint.table,
                    constraint.name,
                    *constraint.refers,
                    constraint.definition,
                    self.pipeline,
                    self.sink,
                ),
            )
        )
        self._session.execute(f"INSERT INTO _cdc.constraints VALUES ({values})")

    def aside(self) -> int:
        """How many constraints this sink has put aside."""
        return int(self._session.rows(f"SELECT count(*) FROM _cdc.constraints WHERE {self._mine}")[0][0])

    def restorable(self) -> list[PutAside]:
        """Constraints that this sink put aside and of whose tables none is loading or about to, by any sink of this database; unique
        ones first, since foreign keys need them."""
        found = self._session.rows(
            "SELECT table_schema, table_name, constraint_name, refers_schema, refers_name, definition"
            f" FROM _cdc.constraints c WHERE {self._mine} AND NOT EXISTS (SELECT 1 FROM _cdc.tables t"
            " WHERE t.state IN ('loading', 'behind')"
            " AND (t.target_schema, t.target_name) IN ((table_schema, c.table_name), (refers_schema, refers_name)))"
            " ORDER BY definition LIKE 'FOREIGN KEY%'"
        )
        return [PutAside(TableId(row[0], row[1]), row[2], TableId(row[3], row[4]), row[5]) for row in found]

    def restored(self, constraint: PutAside) -> None:
        self._session.execute(
            f"DELETE FROM _cdc.constraints WHERE table_schema = {literal(constraint.table.schema)}"
            f" AND table_name = {literal(constraint.table.name)} AND constraint_name = {literal(constraint.name)}"
        )

    # ------------------------------------------------------------------------------------------------------------- removal
    def forget_tables(self) -> None:
        """Remove this sink's tables, so that no load of its own keeps a foreign key aside."""
        for row in self.tables():
            self.drop_seen(row)
        self._session.execute(f"DELETE FROM _cdc.tables WHERE {self._mine}")

    def forget(self) -> None:
        """Remove this sink's bookmark and what its replays came to, and `_cdc` with the last sink."""
        self._session.execute(f"DELETE FROM _cdc.bookmark WHERE {self._mine}")
        self._session.execute(f"DELETE FROM _cdc.replays WHERE {self._mine}")
        self._session.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
        rows = (
            "SELECT 1 FROM _cdc.bookmark UNION ALL SELECT 1 FROM _cdc.tables UNION ALL SELECT 1 FROM _cdc.constraints"
            " UNION ALL SELECT 1 FROM _cdc.replays"
        )
        if not self._session.rows(rows):
            self._session.execute(
                "DROP TABLE _cdc.bookmark, _cdc.tables, _cdc.constraints, _cdc.replays, _cdc.meta; DROP SCHEMA _cdc"
            )
