"""The rules of stream and load, each asked for by a failure on a real server: right as it is, wrong with the rule off.

| rule | scenario | switched off by |
|---|---|---|
| F1 | a long transaction, two short ones inside it, a reader that stalls and dies | confirming the position of a keepalive |
| D1 order | keys are read again while a rewrite commits | taking the snapshot before the lock |
| D1 compare | a rewrite between two chunks of a load | not comparing the table with the load's beginning |
| D4 version | a transaction with a savepoint that is rolled back, larger than the server's memory for it | protocol 2, streaming |
| D4 position | dies inside a transaction | positions without the number of rows |
| D5 | the slot is moved past a row that was not read | not comparing it with our position |
| D6 running | a transaction that wrote before its table was published goes on | not waiting for it |
| D6 identity | a table without identity, updated by its application | publishing it all the same |
| D7 | an identity index; the primary key changes, and a row goes | the primary key as key |
| D8 | ten loads of a keyless table beside four writers | not dropping what the copy's snapshot saw |

D9 and D10 are in `test_protocol_rules_catalog`, what needs a server that crashes or waits for a standby (B2, C1, C2, D2, D3) in
`test_protocol_rules_crash`, what needs a log or a sink (A7, B6, B7, C4) in `test_protocol_rules_sink`.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from cdc.capture import capture as run_capture
from cdc.errors import CdcError
from cdc.load import Limits
from cdc.log import Begun, Checkpoint
from cdc.postgres import facts, reader, slot
from cdc.postgres.facts import Table
from cdc.postgres.position import StreamPosition
from cdc.postgres.reader import Reader
from cdc.postgres.session import Session
from cdc.postgres.source import PostgresSource
from cdc.postgres.stream import _KEEPALIVE, Stream
from cdc.records import Batch
from cdc.source import Chunk, ChunkSpec, Filter, Restructured
from tests.fakes import MemoryLog
from tests.integration.protocol_rules import Rule, Rules, World, equal, logged, named, rows, swap, until, values
from tests.servers import Database, execute

RULES = Rules()


@pytest.fixture
def world(make_database: Callable[[], Database], tmp_path: Path) -> Iterator[World]:
    with closing(World(make_database, tmp_path)) as world:
        yield world


# ------------------------------------------------------------------------------------------------------------ F1, D4, D5
def _confirming(stream: Stream, message: bytes, keepalive: Any = Stream.keepalive) -> None:
    keepalive(stream, message)
    stream.confirmed = max(stream.confirmed, _KEEPALIVE.unpack(message)[0])


@RULES("F1", swap(Stream, "keepalive", _confirming))
def f1(world: World) -> bool:
    """T0 and T1 commit inside the long T2. T0 is stored and confirmed, T1 is read; the reader stalls in T2 until the server asks
    whether it lives, reads on, and dies with nothing more stored."""
    database = world.database()
    database.execute("CREATE TABLE t (id int PRIMARY KEY, w text)")
    url = database.grant_source() + "?options=-c%20wal_sender_timeout%3D3s"
    capture = world.capture(database, url=url, heartbeat_s=3600)
    with closing(database.connect()) as long, long.cursor() as cursor:
        cursor.execute("INSERT INTO t SELECT i, repeat('x', 3000) FROM generate_series(1000, 6999) i")
        database.execute("INSERT INTO t VALUES (0, '')")
        while not capture.events or capture.at["open"]:
            capture.poll(5.0)
        stored = capture.at
        capture.source.confirm(stored)
        database.execute("INSERT INTO t VALUES (1, '')")
        long.commit()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "BYTES_MAX", 1)  # a run per row
        while len(capture.events) < 10:
            capture.poll(5.0)
    time.sleep(1.8)  # more than half of the server's timeout
    capture.until_mark()
    capture.source._opened().stream.report()
    time.sleep(0.2)
    capture.at = capture.cut = stored
    del capture.events[1:]
    with suppress(CdcError):  # R5 and D5 notice that the slot has gone on, which brings nothing back
        capture.reopen().until_mark()
    return len(capture.events) == len(rows(database, "t"))


def _version_two(patch: pytest.MonkeyPatch) -> None:
    ask = Session.copy_out

    def asking(of: Session, sql: str, doing: str, replication: bool = False) -> None:
        ask(of, sql.replace("proto_version '1'", "proto_version '2', streaming 'on'"), doing, replication)

    patch.setattr(Session, "copy_out", asking)


@RULES("D4 version", _version_two)
def d4_version(world: World) -> bool:
    """What comes before the commit is what was committed: 3,010 rows, and none of the 3,000 that were rolled back."""
    database = world.database()
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    execute(database.admin_url, "CREATE PUBLICATION all_of_it FOR TABLE t")
    execute(database.admin_url, "SELECT pg_create_logical_replication_slot('d4_version', 'pgoutput')")
    insert = "INSERT INTO t SELECT i, repeat('v', 100) FROM generate_series({}, {}) i"
    database.execute(
        f"BEGIN; {insert.format(1, 3000)}; SAVEPOINT s; {insert.format(5001, 8000)}; ROLLBACK TO s;"
        f" {insert.format(9001, 9010)}; COMMIT"
    )
    replication = Session(database.grant_source(), "d4", replication=True)
    replication.settings({"logical_decoding_work_mem": "64kB"})
    stream, kinds = Stream(replication, "d4_version", 0, ["all_of_it"], binary=False), Counter[bytes]()
    while not kinds.keys() & {b"C", b"c"}:  # Commit, Stream Commit
        size, frame = replication.pg.get_copy_data(1)
        if size > 0 and frame[:1] == b"w":
            kinds[bytes(frame[25:26])] += 1
        elif size == 0:
            assert stream.wait(10.0)
    stream.close()
    return kinds[b"I"] == 3010 == len(rows(database, "t"))


def _without_ordinal(patch: pytest.MonkeyPatch) -> None:
    to_json = StreamPosition.to_json
    patch.setattr(StreamPosition, "to_json", lambda at: to_json(at) | {"open": None})


@RULES("D4 position", _without_ordinal)
def d4_position(world: World) -> bool:
    database = world.database()
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    capture = world.capture(database)
    database.execute("INSERT INTO t SELECT generate_series(1, 50)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "BYTES_MAX", 1)
        while len(capture.events) < 20:
            capture.poll(5.0)
    capture.reopen().until_mark()
    return [event.after for event in capture.events] == [{"id": i} for i in range(1, 51)]


def _nothing_confirmed(patch: pytest.MonkeyPatch) -> None:
    find = slot.find

    def found(of: Session, name: str) -> slot.Slot | None:
        there = find(of, name)
        return there and there._replace(confirmed=0)

    patch.setattr(slot, "find", found)


@RULES("D5", _nothing_confirmed)
def d5(world: World) -> bool:
    """The server takes a position that it has forgotten, and skips in silence what lies between."""
    database = world.database()
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    capture = world.capture(database)
    capture.source.close()
    database.execute("INSERT INTO t VALUES (1)")
    execute(database.admin_url, "SELECT pg_replication_slot_advance('cdc_p', pg_current_wal_lsn())")
    database.execute("INSERT INTO t VALUES (2)")
    try:
        capture.reopen().until_mark()
    except CdcError as stopped:
        return stopped.code == "CDC-PG-126"
    return equal(capture, database, "t")


# -------------------------------------------------------------------------------------------------------------------- D1
def _snapshot_first(patch: pytest.MonkeyPatch) -> None:
    run = Session.run

    def running(of: Session, sql: str, *more: Any, **options: Any) -> Any:
        return run(
            of, sql.replace("LOCK TABLE", "SELECT pg_catalog.pg_current_snapshot(); LOCK TABLE"), *more, **options
        )

    patch.setattr(Session, "run", running)


@RULES("D1 order", _snapshot_first)
def d1_order(world: World) -> bool:
    """A snapshot that is older than a rewrite sees an empty table: every key would be taken for gone."""
    database = world.database()
    database.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i FROM generate_series(1, 1000) i"
    )
    capture = world.capture(database)
    chunk = capture.chunk("public.t")
    capture.events += capture.rows(chunk)
    (piece,) = chunk.pieces
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("ALTER TABLE t ALTER v TYPE bigint")

        def commit() -> None:
            waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 't'::regclass"
            until(lambda: execute(database.admin_url, waiting), "the chunk waits")
            connection.commit()

        committing = threading.Thread(target=commit)
        committing.start()
        again = capture.chunk("public.t", keys=tuple(piece.records.keys))
        committing.join()
    if isinstance(again, Restructured):  # the load begins anew
        capture.facts = capture.source.include(capture.source.tables())
        again = capture.chunk("public.t")
    capture.events += capture.rows(again)
    return equal(capture, database, "t")


@RULES("D1 compare", swap(facts, "restructured", lambda _then, _now: False))
def d1_compare(world: World) -> bool:
    """The rows that were read before a rewrite are not what they were, and no event says so."""
    database = world.database()
    database.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i FROM generate_series(1, 10) i"
    )
    capture = world.capture(database)
    first = capture.chunk("public.t", rows_max=5)
    capture.events += capture.rows(first)
    database.execute("ALTER TABLE t ALTER v TYPE int USING v + 1")
    (piece,) = first.pieces
    second = capture.chunk("public.t", after=piece.after)
    if isinstance(second, Restructured):
        capture.facts = capture.source.include(capture.source.tables())
        second = capture.chunk("public.t")
    capture.events += capture.rows(second)
    return equal(capture, database, "t")


# ---------------------------------------------------------------------------------------------------------------- D6, D7
def _not_waiting(patch: pytest.MonkeyPatch) -> None:
    described = Table.facts
    patch.setattr(Table, "facts", lambda table, insert_only, _waits=(): described(table, insert_only))


@RULES("D6 running", _not_waiting)
def d6_running(world: World) -> bool:
    """What a transaction wrote before the publication held the table is in no stream, so a chunk must see all of it."""
    database = world.database()
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    capture = world.capture(database)
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (1)")
        capture.facts = capture.source.include(capture.source.tables())
        capture.filter = Filter(capture.facts)
        cursor.execute("INSERT INTO t VALUES (2)")
        early = capture.chunk("public.t")
        connection.commit()
    chunk = early if isinstance(early, Chunk) else capture.chunk("public.t")
    capture.events += capture.rows(chunk)
    capture.until_mark()
    return equal(capture, database, "t")


@RULES("D6 identity", swap(Table, "identified", True))
def d6_identity(world: World) -> bool:
    """Is the application left alone?"""
    database = world.database()
    database.execute("CREATE TABLE t (v int); INSERT INTO t VALUES (1)")
    with suppress(CdcError):  # CDC-PG-132
        world.capture(database)
    try:
        database.execute("UPDATE t SET v = 2; DELETE FROM t")
    except psycopg2.Error:
        return False
    return True


@RULES("D7", swap(Table, "key", lambda table, _insert_only: table.primary_key))
def d7(world: World) -> bool:
    """With an identity index a change of the primary key sends no old key, and a delete no primary key."""
    database = world.database()
    database.execute(
        """CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE NOT NULL); ALTER TABLE t REPLICA IDENTITY USING INDEX t_u_key;
           INSERT INTO t VALUES (1, 7), (2, 8), (3, 9)"""
    )
    capture = world.capture(database)
    capture.events += capture.rows(capture.chunk("public.t"))
    database.execute("UPDATE t SET id = 10 WHERE id = 1; DELETE FROM t WHERE id = 2; UPDATE t SET u = 11 WHERE id = 3")
    capture.until_mark()
    return equal(capture, database, "t")


# -------------------------------------------------------------------------------------------------------------------- D8
def _write(database: Database, seed: int, stop: threading.Event) -> None:
    rng = random.Random(seed)
    with closing(database.connect()) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            while not stop.wait(0.002):
                n = rng.randrange(200)
                cursor.execute(
                    rng.choice((
                        f"INSERT INTO h SELECT {n}, 'w' FROM generate_series(1, 3)",
                        f"UPDATE h SET v = {n} WHERE ctid = (SELECT min(ctid) FROM h WHERE v = {rng.randrange(200)})",
                        f"DELETE FROM h WHERE v = {n} AND w = 'w'",
                    ))
                )  # fmt: skip


@RULES("D8", swap(Reader, "_copied", lambda self, table: self._drop.keyless.get(table, 0) is None))
def d8(world: World) -> bool:
    """Not one row too many or too few, though rows without a key cannot be written twice."""
    database, h = world.database(), named("h")
    database.execute(
        """CREATE TABLE h (v int, w text); ALTER TABLE h REPLICA IDENTITY FULL; CREATE TABLE ended (id int PRIMARY KEY);
           INSERT INTO h SELECT i % 200, repeat('x', 50) FROM generate_series(1, 2000) i"""
    )
    log, done = MemoryLog(), threading.Event()
    writers = [threading.Thread(target=_write, args=(database, seed, done)) for seed in range(4)]
    loads: list[int] = []
    seen: list[int] = []

    def observe(checkpoint: Checkpoint, batch: Batch) -> None:
        loads.extend([checkpoint.number] * (h in checkpoint.finished))
        seen.extend([checkpoint.number] * (done.is_set() and named("ended") in batch))

    def stop() -> bool:
        if len(loads) < 10:
            if len(loads) == len(log.storage.signals) + 1:
                log.signal("reload", {"tables": [list(h)]})
        elif not done.is_set():
            done.set()
            for writer in writers:
                writer.join()
            database.execute("INSERT INTO ended VALUES (1)")
        return bool(seen)

    for writer in writers:
        writer.start()
    try:
        with closing(
            PostgresSource(database.grant_source(), pipeline="p", register=log.register, tables=["public.*"])
        ) as source:
            read = source.read_chunk

            def read_chunk(spec: ChunkSpec, at: Any) -> Any:
                database.execute("INSERT INTO h VALUES (500, 'seen by the copy, and still to come in the stream')")
                return read(spec, at)

            source.read_chunk = read_chunk  # type: ignore[method-assign]
            run_capture(source, log, stop, Limits(chunk_bytes=20_000), observe)
    finally:
        done.set()
    bag = Counter[tuple[Any, ...]]()
    for item in logged(log):
        if isinstance(item, Begun):
            if item.table == h:
                bag.clear()
        elif item.table.id == h:
            bag.subtract(values(item.before))
            bag.update(values(item.after))
    return bag == Counter(database.execute("SELECT v, w FROM h"))


@pytest.mark.parametrize(("rule", "upheld"), RULES.cases())
def test_rule(rule: Rule, upheld: bool, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    if not upheld:
        rule.off(monkeypatch)
    assert rule.scenario(world) is upheld
