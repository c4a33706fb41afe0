"""Chunks on real servers: settled snapshots, bounds, keyless tables, locks, changes of the table (protocols C2, D1, D2, D6, D8)."""

from __future__ import annotations

import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace

import pytest

from cdc.postgres import chunks
from cdc.source import Chunk, Filter, Restructured, Unsettled
from cdc.table import TableId
from tests.integration.pg_source import Capture, brief
from tests.servers import Database, execute

pytestmark = pytest.mark.majors(16, 18)


def walk(capture: Capture, table: str, **bounds: int) -> tuple[list[dict[str, object]], int]:
    """The whole table, chunk by chunk; and how many there were."""
    rows, after, count = [], None, 0
    while True:
        chunk = capture.chunk(table, after=after, **bounds)
        rows += [dict(event.after or {}) for event in capture.rows(chunk)]
        (piece,), count = chunk.pieces, count + 1
        if piece.end_of_table:
            return rows, count
        after = piece.after


def test_bounds_in_rows_and_bytes(database: Database) -> None:
    database.execute(
        """CREATE TABLE wide (id int PRIMARY KEY, v text); INSERT INTO wide SELECT i, repeat('x', 100000) FROM generate_series(1, 40) i;
           CREATE TABLE pair (a text COLLATE "C", b numeric(6,2), PRIMARY KEY (a, b));
           INSERT INTO pair SELECT 'k' || i % 7, i FROM generate_series(1, 100) i; CREATE TABLE empty (id int PRIMARY KEY)"""
    )
    capture = Capture(database.grant_source(), tables=["public.*"]).start()
    rows, count = walk(capture, "public.wide", bytes_max=1_000_000)
    assert [row["id"] for row in rows] == list(range(1, 41))
    assert count == 5  # ten rows each, and the end
    rows, count = walk(capture, "public.pair", rows_max=9)
    assert len(rows) == len({(row["a"], row["b"]) for row in rows}) == 100
    assert count == 12
    assert walk(capture, "public.empty") == ([], 1)


def test_the_type_s_own_order(database: Database) -> None:
    """A type as citext, which sorts without case: the cursor must follow that order, not text's, or rows between are lost."""
    operators = "".join(
        f"""CREATE FUNCTION ext.{name}(ext.ci, ext.ci) RETURNS bool LANGUAGE sql IMMUTABLE RETURN
                lower($1::text) COLLATE "C" {sign} lower($2::text) COLLATE "C";
            CREATE OPERATOR ext.{sign} (FUNCTION = ext.{name}, LEFTARG = ext.ci, RIGHTARG = ext.ci);"""
        for name, sign in (("lt", "<"), ("le", "<="), ("eq", "="), ("ge", ">="), ("gt", ">"))
    )
    execute(
        database.admin_url,
        f"""CREATE SCHEMA ext; GRANT USAGE ON SCHEMA ext TO PUBLIC; CREATE TYPE ext.ci;
            CREATE FUNCTION ext.ci_in(cstring) RETURNS ext.ci LANGUAGE internal IMMUTABLE STRICT AS 'textin';
            CREATE FUNCTION ext.ci_out(ext.ci) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
            CREATE TYPE ext.ci (INPUT = ext.ci_in, OUTPUT = ext.ci_out, INTERNALLENGTH = VARIABLE, STORAGE = extended);
            CREATE CAST (ext.ci AS text) WITHOUT FUNCTION AS IMPLICIT; {operators}
            CREATE FUNCTION ext.cmp(ext.ci, ext.ci) RETURNS int LANGUAGE sql IMMUTABLE RETURN
                bttextcmp(lower($1::text) COLLATE "C", lower($2::text) COLLATE "C");
            CREATE OPERATOR CLASS ext.ci_ops DEFAULT FOR TYPE ext.ci USING btree AS OPERATOR 1 ext.<, OPERATOR 2 ext.<=,
                OPERATOR 3 ext.=, OPERATOR 4 ext.>=, OPERATOR 5 ext.>, FUNCTION 1 ext.cmp(ext.ci, ext.ci)""",
    )
    database.execute(
        """CREATE TABLE t (k ext.ci, n int, PRIMARY KEY (k, n));
           INSERT INTO t SELECT x::ext.ci, i FROM unnest(ARRAY['b', 'A', 'C', 'd', 'E']) x, generate_series(1, 3) i"""
    )
    capture = Capture(database.grant_source(), tables=["public.*"]).start()
    rows, _ = walk(capture, "public.t", rows_max=2)
    assert len(rows) == 15
    # A key that changed its case only is there: a `d` alone would take its row from a target with the same equality.
    key = next(iter(capture.chunk("public.t", rows_max=1).pieces)).records.keys[0]
    database.execute("UPDATE t SET k = 'a' WHERE k::text = 'A' AND n = 1")
    assert [event.op for event in capture.rows(capture.chunk("public.t", keys=(key,)))] == ["d", "r"]


def test_requested_keys(database: Database) -> None:
    """C3: a key that is gone is a `d`; what is there is read whole. 1.0 and 1.00 are one row: it is read, not deleted."""
    database.execute("CREATE TABLE t (id numeric PRIMARY KEY, v int); INSERT INTO t VALUES (1.0, 1), (2, 2), (3, 3)")
    capture = Capture(database.grant_source(), tables=["public.*"]).start()
    keys = tuple(next(iter(capture.chunk("public.t").pieces)).records.keys)
    database.execute("DELETE FROM t WHERE id = 2; UPDATE t SET id = 1.00, v = 9 WHERE id = 1")
    events = capture.rows(capture.chunk("public.t", keys=keys))
    found = [(e.op, e.key and e.key["id"]["scale"], (e.after or {}).get("v")) for e in events]
    assert found[:2] == [("d", 1, None), ("d", 0, None)]
    assert set(found[2:]) == {("r", 2, 9), ("r", 0, 3)}


def test_a_table_that_changed_starts_anew(database: Database) -> None:
    """D1: facts are compared after the lock; harmless changes do not stop the reading of keys."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 1)")
    capture = Capture(database.grant_source(), tables=["public.*"]).start()
    keys = tuple(next(iter(capture.chunk("public.t").pieces)).records.keys)
    database.execute("VACUUM FULL t")
    assert isinstance(capture.chunk("public.t"), Restructured)
    assert isinstance(capture.chunk("public.t", keys=keys), Chunk)
    database.execute("ALTER TABLE t ALTER v TYPE bigint")
    assert isinstance(capture.chunk("public.t", keys=keys), Restructured)


def test_a_locked_table_is_unsettled(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    capture = Capture(database.grant_source(), tables=["public.*"]).start()
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE t")
        unsettled = capture.chunk("public.t")
        assert isinstance(unsettled, Unsettled)
        assert unsettled.only_this, "other tables load meanwhile"
    assert isinstance(capture.chunk("public.t"), Chunk)


def test_older_transactions_hold_the_first_chunk_back(database: Database) -> None:
    """D6: a transaction that wrote before the table was published streams only its later rows, so it must end first."""
    database.execute("CREATE TABLE a (id int PRIMARY KEY)")
    capture = Capture(database.grant_source(), tables=["public.*"]).start()
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SET application_name = 'slow app'; INSERT INTO t VALUES (1)")
        capture.facts = capture.source.include(capture.source.tables())
        capture.filter = Filter(capture.facts)
        assert capture.facts[TableId("public", "a")]["waits"] == []
        cursor.execute("INSERT INTO t VALUES (2)")
        unsettled = capture.chunk("public.t")
        assert isinstance(unsettled, Unsettled)
        assert unsettled.only_this
        assert "pid" in unsettled.reason
        assert isinstance(capture.chunk("public.a"), Chunk)
        connection.commit()
    read = {event.after and event.after["id"] for event in capture.rows(capture.chunk("public.t"))}
    assert read == {1, 2}


def test_a_table_that_was_made_again_has_older_transactions_of_its_own(database: Database) -> None:
    """D6: it is published anew, and what was written to it before is in no event, though a table of its name has been read."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    capture = Capture(database.grant_source(), tables=["public.*"]).start()
    capture.rows(capture.chunk("public.t"))
    assert capture.source.include(capture.source.tables())[TableId("public", "t")]["waits"] == []
    database.execute("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY)")
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (2)")
        capture.facts = capture.source.include(capture.source.tables())
        assert isinstance(capture.chunk("public.t"), Unsettled)
        connection.commit()
    assert [event.after for event in capture.rows(capture.chunk("public.t"))] == [{"id": 2}]


def test_keyless_tables(database: Database) -> None:
    """D8: pieces of one snapshot; the events that it saw are dropped until the mark, later ones are not."""
    database.execute(
        """CREATE TABLE h (v int, w text); ALTER TABLE h REPLICA IDENTITY FULL;
           INSERT INTO h SELECT i % 3, repeat('x', 500) FROM generate_series(1, 3000) i"""
    )
    capture = Capture(database.grant_source(), tables=["public.*"]).start()
    h = TableId("public", "h")
    assert capture.facts[h]["keyless"]
    capture.filter = replace(capture.filter, keyless={h: None}, live=frozenset())
    database.execute("INSERT INTO h VALUES (7, 'seen'); UPDATE h SET v = 8 WHERE v = 7")
    chunk = capture.chunk("public.h", keyless=True, bytes_max=100_000)
    mark = capture.source.mark()
    database.execute(
        "INSERT INTO h VALUES (9, 'later')"
    )  # not in the snapshot, which is taken before the pieces are read
    pieces = list(chunk.pieces)
    assert len(pieces) > 10
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    bag = Counter(
        event.after["v"] for piece in pieces for event in capture.registry.events(piece.records) if event.after
    )
    assert bag == {0: 1000, 1: 1000, 2: 1000, 8: 1}
    capture.filter = replace(capture.filter, keyless={h: chunk.snapshot})
    capture.until_mark(mark)
    capture.filter = replace(capture.filter, keyless={})
    capture.until_mark()
    assert brief(capture.events) == [("c", "h", (9, "later"))]
    again = capture.chunk("public.h", keyless=True, bytes_max=100_000)
    assert next(iter(again.pieces)).last is False  # left in the middle, as by an error
    assert isinstance(capture.chunk("public.h", keyless=True), Chunk)


def test_partition_roots(database: Database) -> None:
    """The root is captured under its own name; inheriting tables are not part of their parent."""
    database.execute(
        """CREATE TABLE p (id int, v int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
           CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20);
           CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent);
           INSERT INTO p VALUES (1, 1), (11, 1); INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2)"""
    )
    capture = Capture(database.grant_source(), tables=["public.*"]).start()
    assert [table.name for table in capture.source.tables()] == ["child", "p", "parent"]
    assert [len(capture.rows(capture.chunk(f"public.{name}"))) for name in ("child", "p", "parent")] == [1, 2, 1]
    database.execute("UPDATE p SET v = 2; UPDATE p SET id = 12 WHERE id = 1; INSERT INTO child VALUES (3)")
    capture.until_mark()
    assert Counter((event.op, event.table.id.name) for event in capture.events)["u", "p"] == 2
    assert brief(capture.events)[-1] == ("c", "child", (3,))


@pytest.mark.majors(16)
def test_settled_means_visible(private_postgres: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """D2: a commit that waits for a synchronous standby is delivered, invisible, and in no list of running transactions. A chunk
    is not read before it is visible, after a restart neither (C2), nor does the heartbeat hang on the missing standby."""
    server = private_postgres(16, {"wal_level": "logical"})  # type: ignore[operator]
    with server.database("settled") as database:
        database.execute("CREATE TABLE t (id int PRIMARY KEY)")
        capture = Capture(database.grant_source(), tables=["public.*"], heartbeat_s=0.05).start()

        def standby(names: str) -> None:
            server.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
            server.execute("SELECT pg_reload_conf()")

        standby("nobody")
        time.sleep(0.3)
        thread = threading.Thread(target=lambda: database.execute("INSERT INTO t VALUES (1)"), daemon=True)
        timer = threading.Timer(0.5, lambda: standby(""))
        thread.start()
        try:
            deadline = time.monotonic() + 10
            while not capture.events and time.monotonic() < deadline:
                capture.poll(0.5)
            assert brief(capture.events) == [("c", "t", (1,))]
            assert len(capture.at["unseen"]) >= 1
            unsettled = capture.chunk("public.t")
            assert isinstance(unsettled, Unsettled)
            assert "not yet visible" in unsettled.reason
            capture.reopen()
            assert isinstance(capture.chunk("public.t"), Unsettled)
            monkeypatch.setattr(chunks, "SETTLE_S", 10.0)  # it becomes visible while the chunk is waiting
            timer.start()
            assert len(capture.rows(capture.chunk("public.t"))) == 1
            assert capture.source.seen(capture.at)["unseen"] == []
        finally:
            standby("")
            thread.join()
        capture.source.drop()


@pytest.mark.majors(16)
def test_a_mark_makes_what_was_read_durable(private_postgres: object) -> None:
    """D3: a chunk can hold rows of synchronous_commit=off transactions, which a crash takes back unless a durable mark follows."""
    server = private_postgres(16, {"wal_level": "logical", "wal_writer_delay": "10s"})  # type: ignore[operator]
    with server.database("durable") as database:
        database.execute("CREATE TABLE t (id int PRIMARY KEY)")
        capture = Capture(database.grant_source(), tables=["public.*"]).start()
        database.execute("SET synchronous_commit = off; INSERT INTO t SELECT generate_series(1, 10)")
        read = len(capture.rows(capture.chunk("public.t")))
        capture.source.mark()
        server.process.kill9()
        server.process.start()
        assert database.execute("SELECT count(*) FROM t") == [(read,)] == [(10,)]
        capture.reopen().until_mark()
        assert len(capture.events) == 10
        capture.source.drop()
