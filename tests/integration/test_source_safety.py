"""What protects the server that is read: how long its log is kept, who is in the way, how long and how fast it is read from."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest

from cdc import journal
from cdc.commands import wiring
from cdc.config import Config
from cdc.errors import CdcError, Unavailable
from cdc.health import until_loss_s
from cdc.postgres import blockers, preflight, retention, slot
from cdc.postgres.chunks import ReadLimits
from cdc.postgres.session import Session
from cdc.source import Chunk, Finding, Unsettled
from cdc.table import TableId
from tests.e2e.pipeline import until
from tests.integration.pg_source import Capture
from tests.servers import Database, Missing, Server, execute, ident
from tests.servers.pgbouncer import pooled


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


def test_a_wait_is_said_after_a_while_and_then_now_and_then() -> None:
    now, asked = [100.0], list[float]()
    said = blockers.Said(lambda: now[0])

    def reason() -> str:
        asked.append(now[0])
        return "a reason"

    for passed in (0.0, 4.0, 1.0, 1.0, blockers.SAID_EVERY_S - 1):
        now[0] += passed
        said.waits("t", reason)
    assert asked == [105, 135]
    said.goes_on("t")
    said.waits("t", reason)
    assert len(asked) == 2


# ----------------------------------------------------------------------------------------- how long and how fast it is read
def narrow(database: Database, rows: int) -> None:
    database.execute(
        f"CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i FROM generate_series(1, {rows}) i"
    )


@pytest.mark.majors(16, 18)
def test_a_chunk_that_would_outlive_the_longest_transaction_ends_early(database: Database) -> None:
    """What came in time is kept, and the next chunk goes on behind it: each transaction is short, and no row is missing."""
    narrow(database, 300_000)
    capture = Capture(database.grant_source(), read_limits=ReadLimits(transaction_s_max=0.03)).start()
    keys: list[bytes | None] = []
    after, count, end = None, 0, False
    while not end:
        chunk = capture.chunk("public.t", after=after, rows_max=1_000_000, bytes_max=1 << 30)
        if isinstance(chunk, Unsettled):
            continue
        (piece,), count = chunk.pieces, count + 1
        keys += piece.records.keys
        after, end = piece.after, piece.end_of_table
    assert len(set(keys)) == len(keys) == 300_000
    assert count > 1


@pytest.mark.majors(16, 18)
def test_a_chunk_without_time_for_its_first_row_is_asked_for_smaller(database: Database) -> None:
    """A server that sorts the whole table first is not asked for the same in vain, and the table is read when it can be."""
    narrow(database, 500_000)
    url = database.grant_source()
    role = ident(database.roles[-1])
    slow = ("enable_indexscan", "enable_indexonlyscan", "enable_bitmapscan", "max_parallel_workers_per_gather")
    execute(database.admin_url, "; ".join(f"ALTER ROLE {role} SET {name} = 0" for name in slow))
    capture = Capture(url, read_limits=ReadLimits(statement_timeout_s=0.005)).start()
    asked = []
    for _ in range(5):
        unsettled = capture.chunk("public.t")
        assert isinstance(unsettled, Unsettled)
        assert unsettled.only_this, "other tables are read meanwhile"
        asked.append(re.findall(r"\d+", unsettled.reason)[0])
    assert asked == ["50000", "500", "5", "1", "1"]
    execute(database.admin_url, f"ALTER ROLE {role} RESET ALL")
    assert capture.source._chunks is not None
    capture.source._chunks.close()
    found: list[int] = []
    after = None
    while len(found) < 5:
        chunk = capture.chunk("public.t", after=after)
        if isinstance(chunk, Chunk):
            found.append(len(capture.rows(chunk)))
            after = next(iter(chunk.pieces)).after
    assert found[0] <= 2
    assert found[-1] > found[0], "more is asked for as long as there is time"
    key = next(iter(chunk.pieces)).after
    assert key is not None
    assert len(capture.rows(capture.chunk("public.t", keys=(key,)))) == 1


@pytest.mark.majors(16, 18)
def test_reads_are_as_fast_as_is_allowed(database: Database) -> None:
    """The rate holds on average, the stream is not kept waiting for it, and single keys that are owed are read at once."""
    database.execute(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 300) i"
    )
    capture = Capture(database.grant_source(), read_limits=ReadLimits(read_bytes_per_s=100_000)).start()
    began, rows, after, longest = time.monotonic(), 0, None, 0.0
    while True:
        asked = time.monotonic()
        chunk = capture.chunk("public.t", after=after)
        longest = max(longest, time.monotonic() - asked)
        if isinstance(chunk, Unsettled):
            assert not chunk.only_this
            capture.poll(0.05)
            continue
        rows += len(capture.rows(chunk))
        (piece,) = chunk.pieces
        after = piece.after
        if after is not None:
            assert isinstance(capture.chunk("public.t", keys=(after,)), Chunk)
        if piece.end_of_table:
            break
    assert rows == 300
    assert 1.8 < time.monotonic() - began < 15  # the last second's bytes are not waited for
    assert longest < 1.0


@pytest.mark.majors(16, 18)
def test_whoever_locks_a_table_is_named_after_the_lock_timeout(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    capture = Capture(database.grant_source(), read_limits=ReadLimits(lock_timeout_s=0.1)).start()
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE t")
        began = time.monotonic()
        unsettled = capture.chunk("public.t")
        assert 0.1 <= time.monotonic() - began < 0.9
        assert isinstance(unsettled, Unsettled)
        assert f"locked by pid {connection.info.backend_pid} (" in unsettled.reason
        assert f"pg_terminate_backend({connection.info.backend_pid})" in unsettled.reason
    assert isinstance(capture.chunk("public.t"), Chunk)


@pytest.mark.majors(16, 18)
def test_a_table_that_cannot_be_published_for_locks_is_not_waited_for_in_silence(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot, "PUBLISH_WAIT_S", 1)
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    url = database.grant_source()
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE")
        with pytest.raises(Unavailable) as locked:
            Capture(url).start()
        assert locked.value.code == "CDC-PG-143"
        assert f"pid {connection.info.backend_pid} (" in locked.value.detail
    capture = Capture(url).start()
    assert isinstance(capture.chunk("public.t"), Chunk)


@pytest.mark.majors(16, 18)
def test_a_wait_is_said_while_it_lasts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the slot and for a chunk: who is in the way stands in the log before anything gives up."""
    monkeypatch.setattr(blockers, "SAID_AFTER_S", 0.3)
    lines = io.StringIO()
    journal.configure("json", stream=lines)
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    url = database.grant_source()
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        pid = connection.info.backend_pid
        cursor.execute("INSERT INTO t VALUES (1)")
        timer = threading.Timer(4.0, connection.rollback)
        timer.start()
        capture = Capture(url, read_limits=ReadLimits(lock_timeout_s=0.2)).start()
        timer.join()
        cursor.execute("LOCK TABLE t")
        for _ in range(3):
            assert isinstance(capture.chunk("public.t"), Unsettled)
        connection.rollback()
    journal.configure()
    said = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert [line["what"] for line in said] == ["the slot cdc_p", "a chunk of public.t"]
    assert all(f"pid {pid} " in line["reason"] for line in said)


# ------------------------------------------------------------------------------------------------ what is found before a start
def found(url: str, **options: Any) -> dict[str, Finding]:
    """The preflight's findings, by code."""
    with closing(Capture(url, **options).source) as source:
        return {finding.code: finding for finding in source.check()}


@pytest.mark.majors(16, 18)
@pytest.mark.parametrize("mode", ["session", "transaction", "statement"])
def test_a_pooler_is_refused_in_every_mode(database: Database, mode: str) -> None:
    """Whichever connection goes through it, the stream's among them; the remedy, the server's own address, is enough."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    direct = database.grant_source()
    with ExitStack() as stack:
        try:
            url = stack.enter_context(pooled(direct, mode))
        except Missing as missing:
            pytest.skip(str(missing))
        with pytest.raises(CdcError) as refused:
            found(url)
        assert refused.value.code == "CDC-PG-117"
        assert "own host and port" in refused.value.remedy
        with pytest.raises(CdcError):
            Session(url, "test", replication=True)
        with pytest.raises(CdcError) as refused:
            Capture(url).start()
        assert refused.value.code == "CDC-PG-117"
        assert database.slots() == []
    assert found(direct) == {}


@pytest.mark.parametrize("major", [16, 18])
def test_settings_of_the_server_that_endanger_a_capture(private_postgres: Callable[..., Server], major: int) -> None:
    """Each with its statement, which mends it: afterwards nothing is found."""
    server = private_postgres(major, {"max_replication_slots": "1"})
    settings = {"wal_sender_timeout": "2s", "max_slot_wal_keep_size": "1MB"}
    for name, value in (settings | ({"idle_replication_slot_timeout": "3600s"} if major == 18 else {})).items():
        server.execute(f"ALTER SYSTEM SET {name} = '{value}'")
    server.execute("SELECT pg_reload_conf()")
    until(lambda: server.execute("SHOW max_slot_wal_keep_size") == [("1MB",)], 10, "the settings to be read")
    with server.database("danger") as database:
        database.execute(
            """CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
               CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100000000);
               INSERT INTO t SELECT i, repeat('x', 100) FROM generate_series(1, 20000) i;
               INSERT INTO p SELECT generate_series(1, 20000)"""
        )
        database.execute("VACUUM ANALYZE")
        url = database.grant_source()
        execute(database.admin_url, "SELECT pg_create_logical_replication_slot('forgotten', 'pgoutput')")
        seen = found(url)
        idle = {"CDC-PG-140"} if major == 18 else set()
        assert set(seen) == {"CDC-PG-111", "CDC-PG-118", "CDC-PG-119"} | idle
        assert seen["CDC-PG-111"].severity == "error"
        assert "nobody reads forgotten" in seen["CDC-PG-111"].detail
        assert "1 MB, and a load of the selected tables reads about 3 MB" in seen["CDC-PG-119"].detail
        execute(database.admin_url, "SELECT pg_drop_replication_slot('forgotten')")
        for code in ("CDC-PG-118", "CDC-PG-119", *idle):
            assert seen[code].severity == "warning"
            for statement in seen[code].remedy.split("; "):
                server.execute(statement)
        # 140: that there is a limit at all
        until(lambda: set(found(url)) == {"CDC-PG-140"}, 10, "the settings to be read")
        last = found(url)["CDC-PG-140"]
        assert "max_slot_wal_keep_size" in last.detail
        for statement in last.remedy.split("; "):
            server.execute(statement)
        until(lambda: found(url) == {}, 10, "the settings to be read")


@pytest.mark.majors(16, 18)
def test_an_old_transaction_is_found_with_what_ends_it(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY)")
    url = database.grant_source()
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (1)")
        assert "CDC-PG-141" not in found(url), "it is young"
        time.sleep(0.3)
        monkeypatch.setattr(preflight, "OLD_TRANSACTION", "0.2 seconds")
        execute(database.admin_url, f"GRANT pg_read_all_stats TO {ident(database.roles[-1])}")
        with closing(Capture(url).source) as source:
            pid = f"pid {connection.info.backend_pid} "
            (finding,) = [each for each in source.check() if each.code == "CDC-PG-141" and pid in each.detail]
        execute(database.admin_url, finding.remedy)
        with pytest.raises(psycopg2.Error):
            cursor.execute("SELECT 1")


@pytest.mark.majors(16, 18)
def test_tables_that_cannot_be_captured_are_named(database: Database) -> None:
    """Those that the patterns take; the remedy is what to write into `tables:`, and then nothing is found."""
    execute(
        database.admin_url,
        "CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER elsewhere FOREIGN DATA WRAPPER nothing",
    )
    execute(database.admin_url, 'CREATE FOREIGN TABLE public."Far away" (id int) SERVER elsewhere')
    database.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE UNLOGGED TABLE u (id int PRIMARY KEY)")
    url = database.grant_source()
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE passing (id int PRIMARY KEY)")
        connection.commit()
        with closing(Capture(url).source) as source:
            seen = source.check()
        kinds = sorted((finding.code, finding.severity, finding.where.partition(".")[2]) for finding in seen)
        assert kinds == [
            ("CDC-PG-134", "warning", "u"),
            ("CDC-PG-139", "warning", '"Far away"'),
            ("CDC-PG-139", "warning", "passing"),
        ]
        execute(database.admin_url, next(each.remedy for each in seen if each.code == "CDC-PG-134"))
        excluded = [json.loads(each.remedy.partition(": ")[2]) for each in seen if each.code == "CDC-PG-139"]
        assert found(url, tables=excluded) == {}
        assert found(url, tables=["public.t", "public.u"]) == {}


@pytest.mark.majors(16, 18)
def test_a_publication_of_a_dba_that_leaves_things_out(database: Database) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v int)")
    url = database.grant_source(owns_publication=False)
    execute(database.admin_url, "CREATE PUBLICATION cdc_p FOR TABLE t WHERE (id > 5) WITH (publish = 'insert')")
    seen = found(url)
    assert set(seen) == {"CDC-PG-135", "CDC-PG-136"}
    for finding in seen.values():
        execute(database.admin_url, finding.remedy)
    assert found(url) == {}


@pytest.mark.majors(16, 18)
def test_timeouts_of_the_role_do_not_reach_our_sessions(database: Database) -> None:
    """The walsender's neither: a finding about them would mean nothing."""
    url = database.grant_source()
    names = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"]
    names += ["transaction_timeout"] if database.server.major >= 17 else []
    for name in names:
        execute(database.admin_url, f"ALTER ROLE {ident(database.roles[-1])} SET {name} = '300ms'")
    for replication in (False, True):
        with closing(Session(url, "test", replication=replication)) as session:
            assert [session.run(f"SHOW {name}")[0][0] for name in names] == ["0"] * len(names)
            session.run("BEGIN; SELECT pg_catalog.pg_sleep(0.4)")
            session.pause(0.4)
            assert session.run("SELECT 1; COMMIT") == []


# ------------------------------------------------------------------------------------------------------ least privilege
def pipeline(database: Database, target: Database, **more: Any) -> Config:
    """A pipeline file whose users are only to be made."""
    source = database.server.url(database.name, f"Reader-{database.unique}", "secret")
    sink = target.server.url(target.name, f"Writer-{target.unique}", "secret")
    for each, name in ((database, "Reader"), (target, "Writer")):
        each.roles.append(f"{name}-{each.unique}")
    data = {"pipeline": "p", "source": {"url": source, "publication": "cdc_p"}, "sinks": {"dw": {"url": sink}}}
    return Config.from_data({**data, "log": "log", **more}, "test")


def run_printed(database: Database, target: Database, lines: list[str], *, itself: bool) -> None:
    """As a DBA would: the placeholders filled in, the one way or the other taken, each part in its database."""
    text = "\n".join(lines).replace("<password>", "secret").replace("<owner>", database.owner)
    source, sink = text.split("\n\n")
    source, instead = source.split("-- Either")[0], source.split("-- Either")[1]
    members, published = instead.split("-- or, instead")
    extra = members.partition("\n")[2] if itself else published.partition("\n")[2].replace("-- ", "")
    execute(database.admin_url, source + extra)
    execute(target.admin_url, sink)


@pytest.mark.majors(16, 18)
@pytest.mark.parametrize("itself", [True, False])
@pytest.mark.parametrize("tables", [["public.*"], ["public.t"]])
def test_the_printed_grants_are_enough_and_no_more(
    database: Database, target: Database, tables: list[str], itself: bool
) -> None:
    """For a source that does not know the role yet. Nothing is missing, and the role can do nothing else."""
    database.execute(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1); CREATE SCHEMA other; CREATE TABLE other.x (id int)"
    )
    if tables == ["public.t"]:
        database.execute("CREATE TABLE private (id int PRIMARY KEY)")
    config = pipeline(database, target, tables=tables)
    before = database.server.execute("SELECT count(*) FROM pg_roles")
    lines = wiring.grants(config)
    assert database.server.execute("SELECT count(*) FROM pg_roles") == before, "it only prints"
    assert any("not let in yet" in line for line in lines)
    if not itself and tables == ["public.*"]:
        # Which tables a publication has to name cannot be known before the source lets the role in.
        run_printed(database, target, [line for line in lines if "PUBLICATION" not in line], itself=False)
        lines = wiring.grants(config)
        assert not any("not let in yet" in line for line in lines)
        (made,) = [line.removeprefix("-- ") for line in lines if "CREATE PUBLICATION" in line]
        execute(database.admin_url, made)
    else:
        run_printed(database, target, lines, itself=itself)
    url = config.source.url.reveal()
    assert found(url, tables=tables) == {}
    capture = Capture(url, tables=tables).start()
    assert len(capture.rows(capture.chunk("public.t"))) == 1
    database.execute("INSERT INTO t VALUES (2)")
    capture.until_mark()
    assert len(capture.events) == 1
    with closing(wiring.sink(config, "dw")) as sink:
        assert sink.check(wiring.schemas(config)) == []
    forbidden = ["CREATE ROLE another", "SELECT pg_read_file('postgresql.conf')"]
    forbidden += (
        [] if itself else ["INSERT INTO public.t VALUES (9)", "CREATE TABLE public.mine ()", "SELECT * FROM other.x"]
    )
    forbidden += ["SELECT * FROM public.private"] if not itself and tables == ["public.t"] else []
    for statement in forbidden:
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            execute(url, statement)


@pytest.mark.majors(16)
def test_the_printed_grants_of_hostile_names_and_other_schemas(database: Database, target: Database) -> None:
    """Where the role is let in, owners and tables are the real ones; insert-only tables have their publication."""
    database.execute(
        """CREATE SCHEMA "S ""x"; CREATE TABLE "S ""x"."a.b; --" (id int PRIMARY KEY); CREATE TABLE "S ""x".e (v int);
           CREATE TABLE "S ""x"."two\nlines" (id int PRIMARY KEY)"""
    )
    url = database.grant_source(['S "x'])
    config = Config.from_data(
        {
            "pipeline": "p",
            "source": url,
            "rules": {'"S ""x".e': {"insert_only": True}},
            "tables": ['"S ""x".*'],
            "sinks": {"dw": {"url": target.url, "rename": {'"S ""x"[.](.*)': "dw.\\1"}}},
            "log": "log",
        },
        "test",
    )
    text = "\n".join(wiring.grants(config))
    assert f'GRANT "{database.owner}" TO ' in text
    assert 'GRANT SELECT ON ALL TABLES IN SCHEMA "S ""x" TO' in text
    assert 'FOR TABLE ONLY "S ""x"."a.b; --", ONLY "S ""x"."two\n-- lines" WITH' in text, "a comment stays one"
    assert """FOR TABLE ONLY "S ""x"."e" WITH (publish = 'insert, truncate'""" in text
    assert '-- GRANT USAGE, CREATE ON SCHEMA "dw" TO' in text
    assert "<owner>" not in text
    assert str(urlsplit(url).password) not in text
