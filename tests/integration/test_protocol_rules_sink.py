"""Rules that need a log or a sink: right as it is, wrong with the rule off.

| rule | scenario | switched off by |
|---|---|---|
| A7 cursor | a reader that works long on what it read, beside a writer | a read transaction that stays open meanwhile |
| A7 files | somebody asks for a reload while the capture appends | signals in the segment |
| B6 | two rows exchange a unique value; children refer to them ON DELETE CASCADE | delete and insert where a foreign key would notice |
| B7 | the source truncates; a snapshot of the target is older than that | TRUNCATE |
| C4 | while its table loads a row moves 5000 → 10 → 20, with a value that is not sent | reading again only what was not read yet |

A7's first rule, that nobody opens a file but SQLite, is in `test_embedded_log`: test_a_reader_that_leaves_takes_no_commit_with_it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cdc.avro import HEADER_BYTES, read_varint
from cdc.capture import capture as run_capture
from cdc.errors import Unavailable
from cdc.load import Limits, Load
from cdc.log import Checkpoint, Draft, Mark
from cdc.log import database as files
from cdc.log.embedded import EmbeddedLog
from cdc.log.segment import Segment
from cdc.log.side_files import Signals
from cdc.position import Position
from cdc.postgres.source import PostgresSource
from cdc.records import Batch, Records
from cdc.source import Move
from sinks.apply import apply
from sinks.postgres import merge, shape
from sinks.postgres.sink import PostgresSink
from tests.events import Feed
from tests.fakes import MemoryLog
from tests.integration.protocol_rules import Rule, Rules, World, named, rows
from tests.servers import Database, execute

RULES = Rules()


@pytest.fixture
def world(make_database: Callable[[], Database], tmp_path: Path) -> Iterator[World]:
    with closing(World(make_database, tmp_path)) as world:
        yield world


# -------------------------------------------------------------------------------------------------------------------- A7
POSITION = Position(0, 0, None, None)


def _open_cursor(patch: pytest.MonkeyPatch) -> None:
    batch = Segment.batch

    def read(segment: Segment, *arguments: Any) -> Batch:
        found = batch(segment, *arguments)
        if not segment._connection.in_transaction:
            segment._connection.execute("BEGIN")
            segment._connection.execute("SELECT * FROM fence").fetchall()
        return found

    patch.setattr(Segment, "batch", read)


@RULES("A7 cursor", _open_cursor)
def a7_cursor(world: World) -> bool:
    """Does the write-ahead log stay in bounds?"""
    folder, values = (
        world.folder / "a.log",
        [b"\x00\x00\x00\x00\x07\x02c\x00\x00" + os.urandom(1000) for _ in range(500)],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "AUTOCHECKPOINT_BYTES", 1 << 20)
        with EmbeddedLog(folder, free_bytes_min=0) as writer, EmbeddedLog(folder) as reader:
            writer.open_writer()
            with closing(reader.read(Mark(-1, writer.id), lambda _table: True, 0)) as items:
                for n in range(20):
                    writer.append(
                        {named("t"): Records([b"\x00\x00\x00\x00\x08k"] * 500, values)}, Draft(POSITION, True)
                    )
                    if n == 0:
                        next(items)
                [wal] = (folder / "segments").glob("*-wal")
                return wal.stat().st_size < 3 << 20


def _in_the_segment(patch: pytest.MonkeyPatch) -> None:
    def opened(signals: Signals, create: bool) -> sqlite3.Connection:
        if signals._connection is None:
            [segment] = (signals.path.parent / "segments").glob("*.sqlite")
            signals._connection = sqlite3.connect(segment, timeout=0.1, isolation_level=None)
            signals._connection.execute(Signals.tables[0].replace("TABLE", "TABLE IF NOT EXISTS"))
        return signals._connection

    patch.setattr(Signals, "_opened", opened)


@RULES("A7 files", _in_the_segment)
def a7_files(world: World) -> bool:
    """Is the request taken?"""
    with EmbeddedLog(world.folder / "a.log", free_bytes_min=0) as writer, EmbeddedLog(world.folder / "a.log") as other:
        writer.open_writer()
        append = writer._writing()._segment.transaction(None)
        with append, suppress(Unavailable):  # CDC-LOG-304: database is locked
            other.signal("reload", {"tables": []})
        return len(writer.signals(0)) == 1


# ---------------------------------------------------------------------------------------------------------------- B6, B7
def _sink(feed: Feed, target: Database) -> PostgresSink:
    return PostgresSink("w", target.admin_url, pipeline="shop", schemas=feed.schemas.__getitem__)


def _noticed_by_nobody(patch: pytest.MonkeyPatch) -> None:
    describe = shape.describe

    def described(*arguments: Any) -> Any:
        found = describe(*arguments)
        return found and replace(found, referenced=False, triggers=False)

    patch.setattr(shape, "describe", described)


@RULES("B6", _noticed_by_nobody)
def b6(world: World) -> bool:
    """Both children are there afterwards, and the values are exchanged."""
    target, feed = world.database(), Feed()
    execute(
        target.admin_url,
        """CREATE TABLE parent (id bigint PRIMARY KEY, u text UNIQUE);
           CREATE TABLE child (id int PRIMARY KEY, parent bigint REFERENCES parent ON DELETE CASCADE)""",
    )
    with closing(_sink(feed, target)) as sink:
        feed.resume(sink)
        parent = feed.table("public.parent", "id int64 key", "u text")
        feed.apply(parent.r(id=1, u="a") + parent.r(id=2, u="b"), begun=[parent], finished=[parent])
        execute(target.admin_url, "INSERT INTO child VALUES (1, 1), (2, 2)")
        feed.apply(parent.u(id=1, u="t") + parent.u(id=2, u="a") + parent.u(id=1, u="b"))
    found = execute(target.admin_url, "SELECT child.id, u FROM child JOIN parent ON parent.id = parent ORDER BY 1")
    return found == [(1, "b"), (2, "a")]


def _truncating(patch: pytest.MonkeyPatch) -> None:
    def empty(session: Any, works: list[merge.Work]) -> None:
        session.execute("TRUNCATE " + ", ".join(work.plan.ref for work in works))

    patch.setattr(merge, "empty", empty)


@RULES("B7", _truncating)
def b7(world: World) -> bool:
    """An older snapshot goes on to see the rows that were there."""
    target, feed = world.database(), Feed()
    with closing(_sink(feed, target)) as sink:
        feed.resume(sink)
        t = feed.table("public.t", "id int64 key")
        feed.apply(t.r(id=1) + t.r(id=2), begun=[t], finished=[t])
        execute(target.admin_url, f'GRANT SELECT ON t TO "{target.owner}"')
        with closing(target.connect()) as reader, reader.cursor() as cursor:
            cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class LIMIT 1")
            feed.apply(t.truncate())
            cursor.execute("SELECT count(*) FROM t")
            seen = cursor.fetchone()
    return seen == (2,) and execute(target.admin_url, "SELECT count(*) FROM t") == [(0,)]


# -------------------------------------------------------------------------------------------------------------------- C4
def _consulting_ranges(patch: pytest.MonkeyPatch) -> None:
    must = Load._must_reread

    def consulting(load: Load, move: Move) -> bool:
        after = load.loading[move.table].after if move.table in load.loading else None
        old = read_varint(move.old, HEADER_BYTES)[0]
        if after is not None and old <= read_varint(after, HEADER_BYTES)[0]:
            return False  # it was read where it came from
        return must(load, move)

    patch.setattr(Load, "_must_reread", consulting)


@RULES("C4", _consulting_ranges)
def c4(world: World) -> bool:
    """The row is in the target under its last key, with its large value."""
    source, target, log, t = world.database(), world.database(), MemoryLog(), named("t")
    big = "(SELECT string_agg(md5(x::text), '') FROM generate_series(1, 500) x)"
    source.execute(
        "CREATE TABLE t (id int PRIMARY KEY, big text); INSERT INTO t SELECT i * 1000, 'v' FROM generate_series(1, 4) i"
    )
    source.execute(f"INSERT INTO t VALUES (1, 'v'), (50, 'v'), (5000, {big})")
    url, limits = source.grant_source(), Limits(chunk_rows=2, round_chunks=1)
    written: list[Checkpoint] = []

    def run(stop: Callable[[], bool]) -> None:
        with closing(PostgresSource(url, pipeline="p", register=log.register, tables=["public.t"])) as capturing:
            run_capture(capturing, log, stop, limits, lambda checkpoint, _batch: written.append(checkpoint))

    run(lambda: any(t in checkpoint.counts for checkpoint in written))
    source.execute("UPDATE t SET id = 10 WHERE id = 5000; UPDATE t SET id = 20 WHERE id = 10")
    run(lambda: any(t in checkpoint.finished for checkpoint in written))
    cut, applied = max(checkpoint.number for checkpoint in written if checkpoint.cut), list[int]()
    with closing(PostgresSink("w", target.grant_sink(), pipeline="p", schemas=log.schema)) as sink:
        apply(
            sink, log, lambda: bool(applied) and applied[-1] >= cut, observe=lambda at, _rows: applied.append(at.number)
        )
    execute(target.admin_url, f'GRANT SELECT ON t TO "{target.owner}"')
    return rows(target, "t") == rows(source, "t")


@pytest.mark.parametrize(("rule", "upheld"), RULES.cases())
def test_rule(rule: Rule, upheld: bool, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    if not upheld:
        rule.off(monkeypatch)
    assert rule.scenario(world) is upheld
