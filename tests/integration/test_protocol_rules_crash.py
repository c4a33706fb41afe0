"""Rules whose failures need a server that crashes, or commits that hang on a standby: right as it is, wrong with the rule off.

| rule | scenario | switched off by |
|---|---|---|
| B2 | a sink's COMMIT hangs on a standby, its connection is lost, it goes on from its bookmark | no lock, no compare at the beginning |
| C1 session | the source crashes between a chunk and the round's mark | marking on a new session |
| C2 position | an update hangs on a standby; capture dies before its row is read | positions without what is delivered and unseen |
| D2 | the same, and capture lives | taking "not listed as running" for visible |
| D3 | the source crashes after the mark; the chunk held rows of `synchronous_commit=off` | a mark that waits for no disk |

One server for all of them, with fsync, made for this module.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from cdc.errors import Unavailable
from cdc.log import Checkpoint, Mark
from cdc.postgres.position import Snapshot, StreamPosition
from cdc.postgres.session import Session
from cdc.postgres.source import PostgresSource
from cdc.source import Chunk
from sinks.postgres import sink as sinks
from sinks.postgres.bookkeeping import Bookkeeping, TableRow
from sinks.postgres.sink import PostgresSink
from sinks.sink import Bookmark, Start
from tests import servers
from tests.conftest import provided
from tests.events import Feed
from tests.integration.protocol_rules import Crashable, Rule, Rules, World, equal, swap, until
from tests.servers import Database, execute

RULES = Rules()
pytestmark = pytest.mark.server


class Fragile(World):
    """A world on a server of its own."""

    def __init__(self, crashable: Crashable, make_database: Callable[[], Database], folder: Path) -> None:
        super().__init__(make_database, folder)
        self.crashable = crashable


@pytest.fixture(scope="module")
def crashable() -> Iterator[Crashable]:
    server = provided(lambda: servers.private(settings={"wal_level": "logical", "wal_writer_delay": "10s"}))
    assert server.process is not None
    with closing(server.process):
        yield Crashable(server)


@pytest.fixture
def world(crashable: Crashable, tmp_path: Path) -> Iterator[Fragile]:
    with (
        crashable.server.database("rules") as database,
        closing(Fragile(crashable, lambda: database, tmp_path)) as world,
    ):
        yield world


# -------------------------------------------------------------------------------------------------------------------- B2
def _compared_at_the_end(patch: pytest.MonkeyPatch) -> None:
    claim, begin = Bookkeeping.claim, PostgresSink.begin

    def claimed(books: Bookkeeping, *claims: Any) -> tuple[Bookmark, Start | None]:
        if (bookmark := books.bookmark()) is None:
            return claim(books, *claims)
        books._session.execute("BEGIN")
        return bookmark, None

    def lock(books: Bookkeeping, _bookmark: Bookmark, _mark: Mark, _owner: str) -> list[TableRow]:
        books._session.execute("BEGIN")
        return books.tables("state <> 'live'")

    def begun(sink: PostgresSink, bookmark: Bookmark, checkpoint: Checkpoint) -> None:
        begin(sink, bookmark, checkpoint)
        sink._locked = bookmark.mark  # so that it is moved at the end

    patch.setattr(Bookkeeping, "claim", claimed)
    patch.setattr(Bookkeeping, "lock", lock)
    patch.setattr(PostgresSink, "begin", begun)


@RULES("B2", _compared_at_the_end)
def b2(world: Fragile) -> bool:
    """A row without a key, so that it shows when it is written twice."""
    target = world.database()
    feed = Feed()
    with closing(PostgresSink("w", target.admin_url, pipeline="shop", schemas=feed.schemas.__getitem__)) as sink:
        feed.resume(sink)
        h = feed.table("public.h", "v text")
        feed.apply(h.r(v="0"), begun=[h], finished=[h])
        checkpoint, batch = feed.checkpoint(h.c(v="once"))

        def commit() -> None:
            with suppress(Unavailable):
                feed.commit(checkpoint, batch)

        with world.crashable.hanging(commit) as release:
            with socket.socket(fileno=os.dup(sink._open._connection.fileno())) as wire:
                wire.shutdown(socket.SHUT_RDWR)
            until(lambda: sink._session is None, "the sink notices")
            timer = Timer(1.0, release)
            timer.start()
            if feed.resume(sink).mark != checkpoint.mark:
                feed.commit(checkpoint, batch)
            timer.join()
    return execute(target.admin_url, "SELECT count(*) FROM h WHERE v = 'once'") == [(1,)]


# ---------------------------------------------------------------------------------------------------------------- C2, D2
def _stale_image(world: Fragile, *, restart: bool) -> bool:
    """Does a chunk that was read while an update hung win over the update, which stands in the log before it?"""
    database = world.database()
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'old')")
    capture = world.capture(database, heartbeat_s=3600)
    capture.until_mark()
    with world.crashable.hanging(lambda: database.execute("UPDATE t SET v = 'new'")) as release:
        until(lambda: capture.poll(0.2).records, "the update")
        if restart:
            capture.reopen()
        chunk = capture.chunk("public.t")
        read = capture.rows(chunk) if isinstance(chunk, Chunk) else []
        release()
        if not isinstance(chunk, Chunk):
            chunk = until(lambda: _chunk_of(capture.chunk("public.t")), "the update is visible")
            read = capture.rows(chunk)
        capture.events += read
        capture.until_mark()
    return equal(capture, database, "t")


def _chunk_of(chunk: object) -> Chunk | None:
    return chunk if isinstance(chunk, Chunk) else None


def _forgetting(patch: pytest.MonkeyPatch) -> None:
    to_json = StreamPosition.to_json
    patch.setattr(StreamPosition, "to_json", lambda at: to_json(at) | {"unseen": []})


@RULES("C2 position", _forgetting)
def c2(world: Fragile) -> bool:
    return _stale_image(world, restart=True)


@RULES("D2", swap(Snapshot, "sees", lambda snapshot, xid: xid not in snapshot.running))
def d2(world: Fragile) -> bool:
    return _stale_image(world, restart=False)


# ---------------------------------------------------------------------------------------------------------------- C1, D3
def _lazy_mark(patch: pytest.MonkeyPatch) -> None:
    mark = PostgresSource.mark

    def marking(source: PostgresSource) -> str:
        source._controlled().run("SET synchronous_commit = off")
        return mark(source)

    patch.setattr(PostgresSource, "mark", marking)


@RULES("D3", _lazy_mark)
def d3(world: Fragile) -> bool:
    """What the log has of a chunk, the source has after a crash."""
    database = world.database()
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    capture = world.capture(database)
    world.crashable.lazy(database, "INSERT INTO t SELECT generate_series(1, 10)")
    read = capture.rows(capture.chunk("public.t"))
    assert len(read) == 10
    capture.source.mark()
    capture.events += read
    world.crashable.crash()
    return equal(capture, database, "t")


def _marking_anew(patch: pytest.MonkeyPatch) -> None:
    mark = PostgresSource.mark

    def marking(source: PostgresSource) -> str:
        source._control = Session(source._url, "a session that saw no crash")
        return mark(source)

    patch.setattr(PostgresSource, "mark", marking)


@RULES("C1 session", _marking_anew)
def c1(world: Fragile) -> bool:
    """A mark that is committed after the crash would vouch for what the crash took back."""
    database = world.database()
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    capture = world.capture(database)
    world.crashable.lazy(database, "INSERT INTO t SELECT generate_series(1, 10)")
    read = capture.rows(capture.chunk("public.t"))
    assert len(read) == 10
    world.crashable.crash()
    try:
        capture.source.mark()
    except Unavailable:  # the round is abandoned
        capture.reopen()
        read = capture.rows(capture.chunk("public.t"))
        capture.source.mark()
    capture.events += read
    return equal(capture, database, "t")


@pytest.mark.parametrize(("rule", "upheld"), RULES.cases())
def test_rule(rule: Rule, upheld: bool, world: Fragile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "_CLAIM_TIMEOUT_S", 0.3)
    if not upheld:
        rule.off(monkeypatch)
    assert rule.scenario(world) is upheld
