"""What protects the server that is read: how long its log is kept, who is in the way, how long and how fast it is read from."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from cdc.health import until_loss_s
from cdc.postgres import blockers, retention
from cdc.postgres.session import Session
from cdc.table import TableId
from tests.servers import Database, Server, execute


def reading(database: Database, url: str | None = None) -> Session:
    return Session(url or database.url, "test")


# ------------------------------------------------------------------------------------------------------- what the log keeps
@pytest.fixture(params=[16, 18])
def limited(request: pytest.FixtureRequest, private_postgres: Callable[..., Server]) -> Iterator[Database]:
    """A database on a server that keeps 64 MB for a slot and no more, with the slot `kept`."""
    server = private_postgres(request.param, {"max_slot_wal_keep_size": "64MB", "wal_keep_size": "0"})
    with server.database("limited") as database:
        execute(database.admin_url, "SELECT pg_create_logical_replication_slot('kept', 'pgoutput')")
        yield database


def test_how_long_until_the_server_gives_the_slot_up(limited: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the server's own figures: what may still be written, and how fast it has written since its last checkpoint."""
    monkeypatch.setattr(retention, "RATE_OVER_MIN_S", 0.5)
    server = limited.server
    server.execute("CHECKPOINT")
    limited.execute("CREATE TABLE filler (v text)")
    for _ in range(6):
        limited.execute("INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 2000)")
        time.sleep(0.3)
    with closing(reading(limited)) as session:
        seen = retention.status(session, "kept")
    assert seen["limit_bytes"] == 64 << 20
    assert 0 < seen["safe_bytes"] <= 96 << 20  # in whole segments
    assert seen["wal_measured_s"] >= 0.5
    written = seen["wal_bytes_per_s"] * seen["wal_measured_s"]
    assert 12e6 < written < 40e6, seen
    left = until_loss_s(seen)
    assert left == pytest.approx(seen["safe_bytes"] / seen["wal_bytes_per_s"])
    # Written on at that rate it does come so, and the figure reaches 0 before the slot is lost.
    for _ in range(40):
        limited.execute("INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 4000)")
        with closing(reading(limited)) as session:
            seen = retention.status(session, "kept")
        if seen["wal_status"] == "unreserved":
            break
    assert seen["wal_status"] == "unreserved"
    assert until_loss_s(seen) == 0
    server.execute("CHECKPOINT")
    with closing(reading(limited)) as session:
        assert retention.status(session, "kept")["wal_status"] == "lost"


def test_an_idle_slot_has_an_end_of_its_own(private_postgres: Callable[..., Server]) -> None:
    server = private_postgres(18, {"idle_replication_slot_timeout": "3600s"})
    with server.database("idle") as database, closing(reading(database)) as session:
        execute(database.admin_url, "SELECT pg_create_logical_replication_slot('idle', 'pgoutput')")
        seen = retention.status(session, "idle")
        assert seen["limit_bytes"] is seen["safe_bytes"] is None
        assert 3500 < seen["idle_left_s"] <= 3600
        assert until_loss_s(seen) == seen["idle_left_s"]


@pytest.mark.majors(16, 18)
def test_without_a_limit_there_is_no_end_and_the_growth_is_shown(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "RATE_OVER_MIN_S", 0.0)
    execute(database.admin_url, "SELECT pg_create_logical_replication_slot('free_' || pg_backend_pid(), 'pgoutput')")
    with closing(reading(database, database.grant_source())) as session:  # the documented role is told all of it
        seen = retention.status(session, database.slots()[0])
    assert seen["limit_bytes"] is seen["safe_bytes"] is seen["idle_left_s"] is until_loss_s(seen) is None
    assert seen["wal_bytes_per_s"] >= 0
    monkeypatch.setattr(retention, "RATE_OVER_MIN_S", 1e12)
    with closing(reading(database)) as session:
        assert retention.growth(session) == (None, None)
        assert retention.status(session, "none") == {"slot": "none", "exists": False, "blockers": []}


# --------------------------------------------------------------------------------------------------------- who is in the way
@pytest.mark.majors(16, 18)
def test_who_is_in_the_way_is_named_and_never_what_they_say(database: Database) -> None:
    """Pid, application, age, idleness, and the statement that ends it: which does, when it is executed."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY, secret text)")
    with ExitStack() as stack:
        idle, locking = (stack.enter_context(closing(database.connect())) for _ in range(2))
        session = stack.enter_context(closing(reading(database)))
        with idle.cursor() as cursor:
            cursor.execute("SET application_name = 'forgotten shell'")
            cursor.execute("INSERT INTO t VALUES (1, 'hunter2')")
        time.sleep(1.1)
        (said,) = [text for text in blockers.running(session) if "forgotten shell" in text]
        pid = idle.info.backend_pid
        assert said.startswith(f"pid {pid} (forgotten shell) since ")
        assert "00:00:01 ago), idle in it for 00:00:01" in said
        assert "hunter2" not in said
        assert "INSERT" not in said
        assert blockers.locking(session, [TableId("public", "t")]) == []
        execute(database.admin_url, said.split("which ")[1].removesuffix(" ends"))
        with locking.cursor() as cursor:
            cursor.execute("LOCK TABLE t")
        (said,) = blockers.locking(session, [TableId("public", "t"), TableId("public", "no such")])
        assert said.startswith(f"pid {locking.info.backend_pid} (")
        assert said.endswith(f"which SELECT pg_terminate_backend({locking.info.backend_pid}) ends")


@pytest.mark.majors(16, 18)
def test_a_prepared_transaction_is_ended_by_its_name(database: Database) -> None:
    database.execute("CREATE TABLE p (id int) PARTITION BY LIST (id); CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)")
    with closing(database.connect()) as connection, closing(reading(database)) as session:
        connection.autocommit = True
        with connection.cursor() as cursor:
            name = f"it's {database.unique}"
            cursor.execute("BEGIN")
            cursor.execute("LOCK TABLE p1; INSERT INTO p1 VALUES (1)")
            cursor.execute("PREPARE TRANSACTION %s", [name])
        (locks,) = blockers.locking(session, [TableId("public", "p")])
        (runs,) = [text for text in blockers.running(session) if database.unique in text]
        assert locks == runs
        database.execute(locks.split("which ")[1].removesuffix(" ends"))
        assert blockers.locking(session, [TableId("public", "p")]) == []


def test_a_wait_is_said_now_and_then() -> None:
    now = [100.0]
    said = blockers.Said(lambda: now[0])
    assert said.due("t")
    assert said.due("u")
    assert not said.due("t")
    now[0] += blockers.SAID_EVERY_S
    assert said.due("t")
