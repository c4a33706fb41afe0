"""A replay's side of a Postgres target: a sink of its own beside the live one, and the exchange (protocol B7).

The rebuilt tables are written by an ordinary sink called `replay:<sink>`, into a schema of their own; what is to be done is a row
of `_cdc.replays`, so a killed replay goes on. The invariant: the exchange of rows, what `_cdc` says of them, the result and the
removal of the rebuilt tables are one transaction, under the lock of the live sink's bookmark.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from cdc import failpoints
from cdc.avro import table_of
from cdc.errors import CdcError
from cdc.table import TableId
from sinks.postgres import exchange, shape
from sinks.postgres.bookkeeping import Bookkeeping, TableRow
from sinks.postgres.exchange import Changed, Content, Pair
from sinks.postgres.generations import Generations
from sinks.postgres.session import Refused, Session
from sinks.postgres.sink import PostgresSink
from sinks.postgres.sql import ident, literal, relation
from sinks.postgres.target import TargetTable, describe
from sinks.replay import replay_name
from sinks.sink import Bookmark

Json = Any
_APPLICATION = "penstock-replay"
_NAME_BYTES_MAX = 63


def fitting(name: str) -> str:
    """`name`, or what stands for it, in the bytes that a name may have."""
    if len(name.encode()) <= _NAME_BYTES_MAX:
        return name
    return f"{name.encode()[:40].decode(errors='ignore')}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"


class PostgresRebuild:
    """See `sinks.replay.Rebuild`. `wants` and `rename` are the live sink's; `picked` says which of its tables are replayed.
    `into`: the schema to leave the rebuilt tables in; None: they are exchanged with the live ones."""

    def __init__(
        self,
        name: str,
        url: str,
        *,
        pipeline: str,
        schemas: Callable[[int], Any],
        wants: Callable[[TableId], bool],
        rename: Callable[[TableId], TableId],
        picked: Callable[[TableId], bool],
        into: str | None = None,
    ) -> None:
        self.name, self.into = name, into
        self._url, self._pipeline, self._schemas = url, pipeline, schemas
        self._wants, self._rename = wants, rename
        self._schema = into if into is not None else fitting(f"_cdc_replay.{pipeline}.{name}")
        self.sink = PostgresSink(
            replay_name(name),
            url,
            pipeline=pipeline,
            schemas=schemas,
            wants=lambda table: wants(table) and picked(table),
            rename=self.place,
            like=None if into is not None else rename,
        )

    def place(self, table: TableId) -> TableId:
        """Where a table is rebuilt."""
        target = self._rename(table)
        return TableId(
            self._schema, target.name if self.into is not None else fitting(f"{target.schema}.{target.name}")
        )

    # ------------------------------------------------------------------------------------------------------------- the row
    @contextmanager
    def _session(self) -> Iterator[Session]:
        session = Session(self._url, _APPLICATION)
        try:
            yield session
        finally:
            session.close()

    def _mine(self) -> str:
        return f"pipeline = {literal(self._pipeline)} AND sink = {literal(self.name)}"

    def found(self) -> tuple[str, str, Json] | None:
        """Id, log and plan of a replay that was begun and has not ended."""
        with self._session() as session:
            if not Bookkeeping(session, self._pipeline, self.name).exists():
                return None
            self._books(session).ensure()
            rows = session.rows(f"SELECT id, log_id, plan FROM _cdc.replays WHERE {self._mine()} AND ended_at IS NULL")
            return (rows[0][0], rows[0][1], json.loads(rows[0][2])) if rows else None

    def result(self, id: str) -> Json | None:
        """What a replay that has ended came to."""
        with self._session() as session:
            rows = session.rows(f"SELECT result FROM _cdc.replays WHERE id = {literal(id)} AND ended_at IS NOT NULL")
            return json.loads(rows[0][0]) if rows else None

    def begin(self, log_id: str, tables: list[TableId], plan: Json) -> str:
        """Note what is to be done; the replay's id. Raises CDC-RPL-108 where something is in the way, CDC-RPL-109 for a sink that
        has nothing to exchange with."""
        with self._session() as session:
            books = self._books(session)
            if self.into is None and (not books.exists() or books.bookmark() is None):
                raise CdcError("CDC-RPL-109", f"sink {self.name} of pipeline {self._pipeline} has no bookmark")
            books.ensure()
            places: dict[TableId, TableId] = {}
            for table in tables:
                place = self.place(table)
                if place in places:
                    raise CdcError(
                        "CDC-TGT-124", f"{places[place]} is written to it already", where=f"{table} to {place}"
                    )
                places[place] = table
                if describe(session, place) is not None:
                    raise CdcError("CDC-RPL-108", "there is a relation of that name", where=str(place))
            id = secrets.token_hex(8)
            values = ", ".join(map(literal, (id, self._pipeline, self.name, log_id, json.dumps(plan))))
            session.execute(f"INSERT INTO _cdc.replays VALUES ({values}, now())")
            return id

    def live(self) -> Bookmark | None:
        """The live sink's bookmark, now."""
        with self._session() as session:
            return self._books(session).bookmark()

    def _books(self, session: Session) -> Bookkeeping:
        return Bookkeeping(session, self._pipeline, self.name)

    def _replayed(self, session: Session) -> Bookkeeping:
        return Bookkeeping(session, self._pipeline, replay_name(self.name))

    # -------------------------------------------------------------------------------------------------------------- the end
    def keep(self, id: str, bookmark: Bookmark) -> Json:
        """The rebuilt tables stay where they are; count and hash them. The result."""
        with self._session() as session:
            session.execute("BEGIN")
            books = self._replayed(session)
            self._fence(session, bookmark)
            tables = []
            for row in books.tables():
                rebuilt = describe(session, row.target)
                values = [f"t.{ident(name)}" for name in rebuilt.columns] if rebuilt else []
                tables.append(_entry(row, row.target, exchange.content(session, rebuilt, values), None, Changed()))
                if rebuilt:
                    words = f"{row.table} of {self._pipeline}, as of checkpoint {bookmark.mark.number}"
                    session.execute(f"COMMENT ON TABLE {relation(row.target)} IS {literal(words)}")
            return self._end(session, id, bookmark, tables)

    @contextmanager
    def exchanging(self) -> Iterator[Exchange]:
        """With the live sink's bookmark locked: it can be behind the replay from now on, and never ahead."""
        with self._session() as session:
            session.execute("BEGIN ISOLATION LEVEL READ COMMITTED; SET CONSTRAINTS ALL DEFERRED")
            yield Exchange(self, session)

    def _fence(self, session: Session, bookmark: Bookmark) -> None:
        """No twin of this replay moves on meanwhile."""
        mine = f"pipeline = {literal(self._pipeline)} AND sink = {literal(replay_name(self.name))}"
        found = session.rows(f"SELECT number, id FROM _cdc.bookmark WHERE {mine} FOR UPDATE")
        if found != [tuple(bookmark.mark)]:
            raise CdcError("CDC-RPL-110", f"it is not at checkpoint {bookmark.mark.number}", where=f"sink {self.name}")

    def _end(self, session: Session, id: str, bookmark: Bookmark, tables: list[Json]) -> Json:
        result = {
            "checkpoint": bookmark.mark.number,
            "checkpoint_id": bookmark.mark.id,
            "log": bookmark.log_id,
            "tables": tables,
        }
        session.execute(
            f"UPDATE _cdc.replays SET ended_at = now(), result = {literal(json.dumps(result))} WHERE id = {literal(id)}"
        )
        forget(session, self._replayed(session), None if self.into is not None else self._schema)
        try:
            session.execute("SET CONSTRAINTS ALL IMMEDIATE")
        except Refused as error:
            raise CdcError("CDC-RPL-107", error.cause, where=f"sink {self.name}") from None
        failpoints.hit("replay.exchanging")
        session.commit()
        failpoints.hit("replay.exchanged")
        return result

    def discard(self) -> bool:
        """Remove what an unfinished replay left, tables included; False when there is none."""
        with self._session() as session:
            books = self._books(session)
            if not books.exists():
                return False
            books.ensure()
            session.execute("BEGIN")
            rows = session.rows(f"DELETE FROM _cdc.replays WHERE {self._mine()} AND ended_at IS NULL RETURNING plan")
            if not rows:
                session.execute("ROLLBACK")
                return False
            into = json.loads(rows[0][0])["into"]
            replayed = self._replayed(session)
            for row in replayed.tables() if into is not None else ():
                if row.created:
                    session.execute(f"DROP TABLE IF EXISTS {relation(row.target)}")
            forget(session, replayed, None if into is not None else self._schema)
            session.commit()
            return True


def forget(session: Session, replayed: Bookkeeping, schema: str | None) -> None:
    """Remove a replay's rows from `_cdc`, and its `schema` with the tables in it."""
    for row in replayed.tables() if schema is not None else ():
        if row.target.schema == schema:
            session.execute(f"DROP TABLE IF EXISTS {relation(row.target)}")
    replayed.forget_tables()
    if schema is not None:
        session.execute(f"DROP SCHEMA IF EXISTS {ident(schema)}")
    replayed.forget()


class Exchange:
    """One exchange, inside one transaction. `live` is the live sink's bookmark, locked."""

    def __init__(self, rebuild: PostgresRebuild, session: Session) -> None:
        self._rebuild, self._session = rebuild, session
        self._books, self._replayed = rebuild._books(session), rebuild._replayed(session)
        self.live = self._books.locked()
        if self.live is None:
            raise CdcError("CDC-RPL-109", f"sink {rebuild.name} has no bookmark")

    def run(self, id: str, bookmark: Bookmark) -> Json:
        """Exchange, compare, and commit; the result. `bookmark` is the replay's, at or behind the live one's."""
        rebuild, session = self._rebuild, self._session
        rebuild._fence(session, bookmark)
        rows, live_rows = self._replayed.tables(), {row.table: row for row in self._books.tables()}
        pairs, emptied, moved, shaped = [], [], [], dict[TableId, TableRow]()
        for row in rows:
            live_id = rebuild._rename(row.table)
            old = live_rows.get(row.table)
            known = old if old is not None and old.target == live_id else TableRow(row.table, live_id, "live", 0)
            live, rebuilt = describe(session, live_id), describe(session, row.target)
            if rebuilt is not None and live is not None:
                pair, shaped[row.table] = self._pair(row, known, rebuilt)
                pairs.append(pair)
                continue
            shaped[row.table] = replace(known, created=known.created or live is None)
            if rebuilt is not None:
                moved.append((row, rebuilt, live_id))
            elif live is not None:
                emptied.append((row, live))
        exchange.lock(session, [pair.live.id for pair in pairs] + [live.id for _, live in emptied])
        tables = self._tables(_parents_first(pairs), bookmark)
        tables += [
            _entry(row, live.id, exchange.content(session, None, []), None, self._empty(live)) for row, live in emptied
        ]
        for row, rebuilt, live_id in moved:
            found = exchange.content(session, rebuilt, [f"t.{ident(name)}" for name in rebuilt.columns])
            tables.append(_entry(row, live_id, found, None, Changed(inserted=found.rows)))
            exchange.move(session, row.target, live_id)
        self._book(rows, shaped, bookmark)
        Generations(session, self._books).restore()
        return rebuild._end(session, id, bookmark, sorted(tables, key=lambda entry: str(entry["table"])))

    def _pair(self, row: TableRow, known: TableRow, rebuilt: TargetTable) -> tuple[Pair, TableRow]:
        assert row.schema_id is not None, f"{row.target} is there, and of no version"
        value_schema = self._rebuild._schemas(row.schema_id)
        schema = table_of(value_schema)
        live, known = shape.shaped(self._session, known.target, schema, known, shape.source_is_postgres(value_schema))
        return Pair(row.table, rebuilt, live, schema.key), known

    def _tables(self, pairs: list[Pair], bookmark: Bookmark) -> list[Json]:
        """Exchange the rows, and say what was there and what is."""
        session, named = self._session, self.live is not None and self.live.mark == bookmark.mark
        rebuilt = {pair.table: exchange.content(session, pair.rebuilt, pair.values("s"), "s") for pair in pairs}
        before = {pair.table: exchange.content(session, pair.live, pair.values("t")) for pair in pairs} if named else {}
        session.execute("SAVEPOINT exchanged")
        try:
            done = exchange.exchange(session, pairs)
        except Refused:
            session.execute("ROLLBACK TO SAVEPOINT exchanged")
            generations = Generations(session, self._books)
            for pair in pairs:
                generations.put_aside(pair.live.id)
            try:
                done = exchange.replace(session, pairs)
            except Refused as error:
                raise exchange.refused(error, pairs) from None
        for pair in pairs:
            exchange.proved(session, pair, rebuilt[pair.table])
        rows = {row.table: row for row in self._replayed.tables()}
        return [
            _entry(rows[pair.table], pair.live.id, rebuilt[pair.table], before.get(pair.table), done[pair.table])
            for pair in pairs
        ]

    def _empty(self, live: TargetTable) -> Changed:
        """The log has no row of it."""
        try:
            return Changed(deleted=self._session.execute(f"DELETE FROM {relation(live.id)}"))
        except Refused as error:
            raise CdcError("CDC-RPL-107", error.cause, where=str(live.id)) from None

    def _book(self, rows: list[TableRow], shaped: Mapping[TableId, TableRow], bookmark: Bookmark) -> None:
        """What the live sink goes on from. All of its tables: its bookmark is the replay's. Only some: what happened to these up to
        there is not for it any more (B5)."""
        assert self.live is not None
        here = {row.table for row in rows}
        others = [
            row
            for row in self._books.tables("state <> 'suspended'")
            if row.table not in here and self._rebuild._wants(row.table)
        ]
        ahead = bookmark.mark.number > self.live.mark.number and bool(others)
        for row in rows:
            old = self._books.drop_seen(shaped[row.table])
            number = bookmark.mark.number + 1 if ahead else row.from_number
            self._books.put(
                replace(
                    old, state="live", generation=row.generation, keyless=row.keyless, fresh=False, from_number=number,
                    schema_id=row.schema_id,
                )
            )  # fmt: skip
        self._books.exchanged(self.live.mark if ahead else bookmark.mark)


def _entry(row: TableRow, target: TableId, rebuilt: Content, before: Content | None, changed: Changed) -> Json:
    return {
        "table": str(row.table),
        "target": str(target),
        **asdict(rebuilt),
        "before": None if before is None else asdict(before),
        **asdict(changed),
    }


def _parents_first(pairs: list[Pair]) -> list[Pair]:
    """Referenced tables first; in a cycle, as they come."""
    here = {pair.live.id: pair for pair in pairs}
    graph = {name: (pair.live.refers & here.keys()) - {name} for name, pair in here.items()}
    try:
        return [here[name] for name in TopologicalSorter(graph).static_order()]
    except CycleError:
        return pairs
