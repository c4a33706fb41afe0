"""The Postgres source's stream on real servers, as the documented role: events, positions, marks, confirmation."""

from __future__ import annotations

import random
from contextlib import closing

import pytest

from cdc.errors import CdcError, Unavailable
from cdc.postgres import reader
from cdc.source import Filter
from cdc.table import TableId
from tests.integration.pg_source import Capture, brief
from tests.servers import Database

pytestmark = pytest.mark.majors(16, 18)


def test_end_to_end(database: Database) -> None:
    """Start, load, mark, stream, confirm, resume: the whole of a capture's life in one go."""
    database.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 10) i"
    )
    capture = Capture(database.grant_source(), tables=["public.*"]).start()
    rows = capture.rows(capture.chunk("public.t", rows_max=7))
    assert [event.after for event in rows] == [{"id": i, "v": f"v{i}"} for i in range(1, 8)]
    database.execute("INSERT INTO t VALUES (11, NULL); UPDATE t SET v = 'x' WHERE id = 1; DELETE FROM t WHERE id = 2")
    capture.until_mark()
    assert brief(capture.events) == [("c", "t", (11, None)), ("u", "t", (1, "x")), ("d", "t", (2, None))]
    capture.source.confirm(capture.cut)
    capture.reopen()
    database.execute("UPDATE t SET id = 20 WHERE id = 1")
    capture.until_mark()
    assert brief(capture.events[3:]) == [("d", "t", (1, None)), ("c", "t", (20, "x"))]
    status = capture.source.status()
    assert status["exists"]
    assert status["lag_bytes"] >= 0
    assert sorted(capture.source.drop()) == ["publication cdc_p", "publication cdc_p_inserts", "slot cdc_p"]


def test_resumes_at_any_row(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the last position is, the next event follows: nothing twice, nothing missing (R2)."""
    monkeypatch.setattr(reader, "BYTES_MAX", 1)  # a run per row
    database.execute("CREATE TABLE a (id int PRIMARY KEY, v int); CREATE TABLE b (id int PRIMARY KEY, v int)")
    database.execute("CREATE TABLE other (id int)")
    capture = Capture(database.grant_source(), tables=["public.a", "public.b"]).start()
    rng, transactions = random.Random(5), []
    for number in range(12):
        rows = [
            f"INSERT INTO {rng.choice('ab')} VALUES ({number * 100 + i}, {i})" for i in range(rng.choice((1, 3, 9)))
        ]
        rows += [f"UPDATE a SET v = v + 1 WHERE id >= {number * 100 - 100}", "TRUNCATE b"] * rng.randrange(2)
        rows += ["INSERT INTO other VALUES (1)", f"DELETE FROM a WHERE id % 7 = {number}"]
        transactions.append("; ".join(rng.sample(rows, len(rows))))
    for transaction in transactions:
        database.execute(transaction)
    whole = Capture(capture.url, capture.registry, tables=["public.a", "public.b"])
    whole.at, whole.cut, whole.filter = capture.at, capture.cut, capture.filter
    capture.source.close()
    monkeypatch.setattr(reader, "BYTES_MAX", 16 << 20)
    whole.open().until_mark()
    whole.source.close()
    monkeypatch.setattr(reader, "BYTES_MAX", 1)
    capture.reopen()
    mark, runs = capture.source.mark(), []
    while not (runs and mark in runs[-1].marks):
        runs.append(run := capture.poll(2.0))
        assert len(runs) < 5000
        if run.moved_on and rng.random() < 0.3:
            if rng.random() < 0.5:
                capture.source.confirm(capture.cut)
            capture.reopen()
    assert len(runs) > 50
    assert brief(capture.events) == brief(whole.events)
    assert [e.source["sequence"] for e in capture.events] == [str(i + 1) for i in range(len(capture.events))]


def test_unchanged_toast_and_identities(database: Database) -> None:
    """R6: a value that was not sent is named; with the old row in hand it is filled. Keys are the identity's columns (D7)."""
    database.execute(
        """CREATE TABLE d (id int PRIMARY KEY, v int, big text); CREATE TABLE f (id int PRIMARY KEY, v int, big text);
           CREATE TABLE i (id int PRIMARY KEY, u int UNIQUE NOT NULL, big text); CREATE TABLE n (v int, big text);
           ALTER TABLE f REPLICA IDENTITY FULL; ALTER TABLE n REPLICA IDENTITY FULL;
           ALTER TABLE i REPLICA IDENTITY USING INDEX i_u_key"""
    )
    for table, values in (("d", "1, 1"), ("f", "1, 1"), ("i", "1, 7"), ("n", "1")):
        database.execute(
            f"INSERT INTO {table} SELECT {values}, string_agg(md5(x::text), '') FROM generate_series(1, 500) x"
        )
    capture = Capture(database.grant_source(), tables=["public.*"]).start()
    database.execute("UPDATE d SET v = 2; UPDATE f SET v = 2; UPDATE i SET id = 2; UPDATE n SET v = 2")
    database.execute("UPDATE d SET id = 5; UPDATE i SET u = 8")
    runs = capture.until_mark()
    d, f, i, n, d_gone, d_new, i_gone, i_new = capture.events
    assert (d.unchanged, f.unchanged, i.unchanged, n.unchanged) == (("big",), (), ("big",), ())
    assert f.after is not None
    assert f.before is not None
    assert len(f.after["big"]) == 16_000
    assert f.before["v"] == 1
    assert (d.key, f.key, i.key, n.key) == ({"id": 1}, {"id": 1}, {"u": 7}, None)
    assert [(e.op, e.key) for e in (d_gone, d_new, i_gone, i_new)] == [
        ("d", {"id": 1}), ("c", {"id": 5}), ("d", {"u": 7}), ("c", {"u": 8}),
    ]  # fmt: skip
    moves = {move.table.name: move for run in runs for move in run.moves}
    assert set(moves) == {"d", "i"}
    records = next(run.records for run in runs if run.moves)
    assert records[TableId("public", "d")].keys[moves["d"].index] == moves["d"].new


def test_truncate_of_several_tables_stands_alone(database: Database) -> None:
    database.execute(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE c (id int PRIMARY KEY)"
    )
    capture = Capture(database.grant_source(), tables=["public.a", "public.b"]).start()
    database.execute("INSERT INTO a VALUES (1); TRUNCATE a, b, c; INSERT INTO b VALUES (2)")
    runs = capture.until_mark()
    assert brief(capture.events) == [("c", "a", (1,)), ("t", "a", ()), ("t", "b", ()), ("c", "b", (2,))]
    alone = [run for run in runs if run.truncated]
    assert [(run.truncated, run.in_transaction) for run in alone] == [
        ({TableId("public", "a"), TableId("public", "b")}, True)
    ]
    assert sum(map(len, alone[0].records.values())) == 2


def test_only_what_was_committed(database: Database) -> None:
    """R13: rollbacks and savepoints leave nothing; a prepared transaction comes when it is committed."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    capture = Capture(database.grant_source(), tables=["public.*"]).start()
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO t VALUES (1); SAVEPOINT s; INSERT INTO t VALUES (2); ROLLBACK TO s; INSERT INTO t VALUES (3)"
        )
        connection.commit()
        cursor.execute("INSERT INTO t VALUES (4)")
        connection.rollback()
        connection.tpc_begin("two")
        cursor.execute("INSERT INTO t VALUES (5)")
        connection.tpc_prepare()
        connection.reset()
        capture.until_mark()
        assert brief(capture.events) == [("c", "t", (1,)), ("c", "t", (3,))]
        connection.tpc_commit("two")
    capture.until_mark()
    assert brief(capture.events[2:]) == [("c", "t", (5,))]


def test_a_big_transaction_comes_in_bounded_runs(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
    capture = Capture(database.grant_source(), tables=["public.*"]).start()
    database.execute("INSERT INTO t SELECT i, 'v' FROM generate_series(1, 200000) i")
    mark, rows, runs, drop = capture.source.mark(), 0, [], capture.filter
    while not (runs and mark in runs[-1].marks):
        runs.append(capture.source.poll(10.0, drop))
        rows += sum(map(len, runs[-1].records.values()))
        assert sum(map(len, runs[-1].records.values())) <= reader.ROWS_MAX
    assert rows == 200_000
    assert all(run.in_transaction for run in [run for run in runs if run.records][:-1])


def test_the_filter_drops_and_still_counts(database: Database) -> None:
    database.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)")
    capture = Capture(database.grant_source(), tables=["public.*"]).start()
    capture.filter = Filter({table: facts for table, facts in capture.facts.items() if table.name == "b"})
    database.execute("INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)")
    capture.until_mark()
    assert brief(capture.events) == [("c", "b", (1,))]
    capture.filter = Filter(capture.facts)
    database.execute("INSERT INTO a VALUES (2)")
    capture.until_mark()
    assert brief(capture.events[1:]) == [("c", "a", (2,))]


HOSTILE = ['we"ird%s\n', "select", "Ünïcode-Ж", "x" * 63, "a.b", "q'uo\\te", "%(x)s"]


def test_hostile_names(database: Database) -> None:
    quoted = ['"' + name.replace('"', '""') + '"' for name in HOSTILE]
    database.execute(f"CREATE SCHEMA {quoted[0]}")
    for name in quoted:
        columns = ", ".join(f"{column} text" for column in quoted[1:])
        database.execute(
            f"CREATE TABLE {quoted[0]}.{name} ({quoted[0]} int, {columns}, PRIMARY KEY ({quoted[0]}, {quoted[1]}))"
        )
        database.execute(f"INSERT INTO {quoted[0]}.{name} SELECT i, 'k''\\' FROM generate_series(1, 5) i")
    capture = Capture(database.grant_source([HOSTILE[0]]), pipeline="Shop-'1\"").start()
    assert capture.source.tables() == sorted(TableId(HOSTILE[0], name) for name in HOSTILE)
    for id_ in capture.source.tables():
        first = capture.chunk(str(id_), rows_max=2)
        rest = capture.chunk(str(id_), after=next(iter(first.pieces)).after)
        read = capture.rows(first) + capture.rows(rest)
        assert [event.after and event.after[HOSTILE[0]] for event in read] == [1, 2, 3, 4, 5]
        again = capture.chunk(str(id_), keys=tuple(next(iter(rest.pieces)).records.keys))
        assert len(capture.rows(again)) == 3
        database.execute(
            "UPDATE {}.{} SET {} = 'x'".format(quoted[0], '"' + id_.name.replace('"', '""') + '"', quoted[4])
        )
    capture.until_mark()
    assert len(capture.events) == 5 * len(HOSTILE)


def test_text_mode_when_a_column_has_no_exact_form(database: Database) -> None:
    """A stream that began binary goes on as text, from the same place, when such a column comes up."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY, at timestamptz, n numeric)")
    capture = Capture(database.grant_source(), tables=["public.*"]).start()
    database.execute("INSERT INTO t VALUES (1, '2026-01-01 10:00+02', 1.50)")
    database.execute("CREATE TYPE pair AS (a int, b inet); ALTER TABLE t ADD COLUMN two pair")
    database.execute("INSERT INTO t VALUES (2, '2026-01-01 10:00+02', 1.50, '(1,10.0.0.1/8)')")
    capture.until_mark()
    rows = [event.after or {} for event in capture.events]
    assert [row["id"] for row in rows] == [1, 2]
    assert (rows[0]["at"], rows[0]["n"]) == (rows[1]["at"], rows[1]["n"])
    assert rows[1]["two"] == "(1,10.0.0.1/8)"
    capture.reopen()
    capture.facts = capture.source.include(capture.source.tables())
    chunk = capture.chunk("public.t")
    assert [event.after for event in capture.rows(chunk)][1] == rows[1]


def test_chunk_and_stream_give_the_same_bytes(database: Database) -> None:
    """R7, with a generated column, a domain, an enum and a dropped column in the way."""
    database.execute(
        """CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN price AS numeric(10,2) NOT NULL DEFAULT 0;
           CREATE TABLE t (gone int, id int PRIMARY KEY, m mood, p price, g int GENERATED ALWAYS AS (id * 2) STORED,
                           ts timestamp(3), "d" date, f float4, b bytea, j jsonb, u uuid, c char(5));
           ALTER TABLE t DROP COLUMN gone"""
    )
    capture = Capture(database.grant_source(), tables=["public.*"]).start()
    values = """'ok', 12.5, '2026-01-01 10:00:00.123', '0044-03-15 BC', 1.1, '\\xff00', '{"b": 1, "a": 2}',
                '6f1c7b1e-4a52-4b8e-9a2e-0b9f0f6c8a11', 'ab'"""
    database.execute(f"INSERT INTO t (id, m, p, ts, d, f, b, j, u, c) VALUES (1, {values})")
    database.execute("INSERT INTO t (id, p, d, f) VALUES (2, 0, 'infinity', 'NaN')")
    capture.until_mark()
    read = capture.rows(capture.chunk("public.t"))
    assert str([event.after for event in read]) == str([event.after for event in capture.events])  # NaN is not itself
    assert read[0].table == capture.events[0].table


def test_the_heartbeat_moves_the_slot(database: Database) -> None:
    """Only other tables are busy: the slot advances all the same, and the position forgets what has become visible."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int)")
    capture = Capture(database.grant_source(), tables=["public.t"], heartbeat_s=0.05).start()
    first = capture.source.status()["confirmed"]
    for _ in range(5):
        database.execute("INSERT INTO other SELECT generate_series(1, 1000)")
        capture.poll(0.1)
        capture.poll(0.1)
        capture.source.confirm(capture.cut)
    capture.source._opened().stream.report()
    capture.poll(0.2)
    assert capture.source.status()["confirmed"] != first
    assert len(capture.at["unseen"]) < 5
    assert capture.events == []


def test_bytes_that_are_not_understood_stop(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    capture = Capture(database.grant_source(), tables=["public.*"]).start()
    reading = capture.source._opened()
    with pytest.raises(CdcError, match="CDC-PG-150"):
        reading._other(b"w" + bytes(24) + b"S" + bytes(8))
    with pytest.raises(CdcError, match="CDC-PG-150"):
        reading._other(b"w" + bytes(24) + b"I" + bytes(8))


def test_a_lost_session_is_unavailable(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    capture = Capture(database.grant_source(), tables=["public.*"]).start()
    database.server.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
        [database.name],
    )
    with pytest.raises(Unavailable):
        capture.source.mark()
    with pytest.raises(Unavailable):
        capture.poll(5.0)
    capture.reopen().until_mark()
