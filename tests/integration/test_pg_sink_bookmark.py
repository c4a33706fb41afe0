"""Exactly once: the bookmark under faults. Connections die between statements, COMMITs get lost, and sinks meet their twins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest

from cdc.errors import CdcError, Superseded, Unavailable
from cdc.log import Begun
from cdc.table import TableId
from sinks.changes import Changes
from sinks.postgres import session as sessions
from sinks.postgres.sink import PostgresSink
from tests.events import Feed, Table
from tests.servers import Database, execute


@pytest.fixture
def url(target: Database) -> str:
    return target.grant_sink()


@pytest.fixture
def make_sink(url: str) -> Iterator[Callable[[Feed], PostgresSink]]:
    made = []

    def make(feed: Feed, name: str = "warehouse", pipeline: str = "shop") -> PostgresSink:
        made.append(PostgresSink(name, url, pipeline=pipeline, schemas=feed.schemas.__getitem__))
        return made[-1]

    yield make
    for sink in made:
        sink.close()


def start(make_sink: Callable[[Feed], PostgresSink]) -> tuple[Feed, Table]:
    feed = Feed()
    feed.resume(make_sink(feed))
    table = feed.table("public.t", "id int64 key", "v text")
    feed.apply(table.r(id=0, v="0"), begun=[table], finished=[table])
    return feed, table


def count(target: Database) -> int:
    return int(execute(target.admin_url, "SELECT count(*) FROM public.t")[0][0])


def number(target: Database) -> int:
    return int(execute(target.admin_url, "SELECT number FROM _cdc.bookmark")[0][0])


def test_a_new_target_is_before_the_first_checkpoint(make_sink: Any, target: Database) -> None:
    feed = Feed()
    bookmark = feed.resume(make_sink(feed))
    assert (bookmark.log_id, bookmark.mark.number, bookmark.mark.id) == (feed.log_id, -1, feed.log_id)
    assert feed.resume(make_sink(feed)) == bookmark


def test_the_older_of_two_sinks_is_superseded_and_writes_nothing(make_sink: Any, target: Database) -> None:
    feed, table = start(make_sink)
    older, bookmark = feed.sink, feed.bookmark
    feed.resume(make_sink(feed))
    checkpoint, _ = feed.checkpoint(table.c(id=1))
    with pytest.raises(Superseded):
        older.begin(bookmark, checkpoint)
    with pytest.raises(Superseded):
        older.resume(feed.log_id)
    feed.apply(table.c(id=2))
    assert count(target) == 2


def test_a_successor_ends_a_predecessor_that_holds_the_lock(make_sink: Any, target: Database) -> None:
    feed, table = start(make_sink)
    older = feed.sink
    checkpoint, batch = feed.checkpoint(table.c(id=1))
    changes = Changes(feed.schemas.__getitem__)
    changes.add(checkpoint, batch, older.wants)
    older.begin(feed.bookmark, checkpoint)
    older.merge(changes.pieces[0])
    bookmark = feed.resume(make_sink(feed))  # waits for the lock, then ends the backend that the bookmark names
    assert bookmark.mark.number == 0
    with pytest.raises(Unavailable):
        older.commit(checkpoint)
    with pytest.raises(Superseded):
        older.resume(feed.log_id)
    assert count(target) == 1


def test_a_stranger_that_holds_the_lock_is_left_alone(make_sink: Any, target: Database) -> None:
    feed, _ = start(make_sink)
    with psycopg2.connect(target.admin_url) as stranger, stranger.cursor() as cursor:
        cursor.execute("SELECT 1 FROM _cdc.bookmark FOR UPDATE")
        with pytest.raises(Unavailable) as error:
            make_sink(feed).resume(feed.log_id)
        assert error.value.code == "CDC-TGT-115"
        cursor.execute("SELECT 1")
    stranger.close()


def test_the_bookmark_of_another_log_or_none_is_an_error(make_sink: Any, target: Database) -> None:
    feed, _ = start(make_sink)
    with pytest.raises(CdcError) as error:
        make_sink(feed).resume("another log")
    assert error.value.code == "CDC-TGT-111"
    execute(target.admin_url, "DELETE FROM _cdc.bookmark")
    for sink in (make_sink(feed), feed.sink):
        with pytest.raises(CdcError) as error:
            sink.resume(feed.log_id)
        assert error.value.code == "CDC-TGT-110"
        assert not isinstance(error.value, Unavailable)


def test_newer_bookkeeping_is_refused(make_sink: Any, target: Database) -> None:
    feed, _ = start(make_sink)
    execute(target.admin_url, "UPDATE _cdc.meta SET version = 99")
    with pytest.raises(CdcError) as error:
        make_sink(feed).resume(feed.log_id)
    assert error.value.code == "CDC-TGT-112"


def test_a_checkpoint_is_applied_once_though_its_commit_seemed_lost(
    make_sink: Any, target: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed, table = start(make_sink)
    before = feed.bookmark
    checkpoint, batch = feed.checkpoint(table.c(id=1))
    real = sessions.Session.commit

    def lost(session: sessions.Session) -> None:
        real(session)
        raise Unavailable("CDC-TGT-116", "the answer did not come")

    with monkeypatch.context() as patched:
        patched.setattr(sessions.Session, "commit", lost)
        with pytest.raises(Unavailable):
            feed.commit(checkpoint, batch)
    feed.resume(feed.sink)
    feed.bookmark = before  # who goes on from an old bookmark finds it moved
    with pytest.raises(Unavailable) as error:
        feed.commit(checkpoint, batch)
    assert error.value.code == "CDC-TGT-114"
    assert feed.resume(feed.sink).mark == checkpoint.mark
    feed.apply(table.c(id=2))
    assert count(target) == 3


@pytest.mark.parametrize("statement", range(14))
def test_a_connection_that_dies_before_any_statement_costs_nothing(
    make_sink: Any, target: Database, monkeypatch: pytest.MonkeyPatch, statement: int
) -> None:
    feed, table = start(make_sink)
    child = feed.table("public.kl", "v text")
    real, left, codes = sessions.Session.execute, [statement], list[str]()

    def dying(session: sessions.Session, sql: str) -> int:
        if left[0] == 0:
            pid = session._connection.info.backend_pid
            execute(target.admin_url, f"SELECT pg_terminate_backend({pid}, 5000)")
        left[0] -= 1
        return real(session, sql)

    events = table.c(id=1, v="x") + table.u(id=0, v="y") + child.c(v="1")
    made = feed.checkpoint(events, [Begun(child.id, 1, keyless=True)])
    with monkeypatch.context() as patched:
        patched.setattr(sessions.Session, "execute", dying)
        try:
            feed.commit(*made)
        except Unavailable as error:
            codes.append(error.code)
            feed.sink.rollback()
            if feed.resume(feed.sink).mark != made[0].mark:
                left[0] = -1
                feed.commit(*made)
    assert set(codes) <= {"CDC-TGT-101", "CDC-TGT-116"}
    assert execute(target.admin_url, "SELECT id, v FROM public.t ORDER BY 1") == [(0, "y"), (1, "x")]
    assert execute(target.admin_url, "SELECT v FROM public.kl") == [("1",)]
    assert number(target) == made[0].number


def test_pieces_between_cuts_share_one_transaction(make_sink: Any, target: Database) -> None:
    feed, table = start(make_sink)
    first, rows = feed.checkpoint(table.c(id=1) + table.u(id=0, v="a"), cut=False)
    second, more = feed.checkpoint(table.c(id=2) + table.u(id=0, v="b") + table.d(id=1), cut=True)
    feed.sink.begin(feed.bookmark, first)
    for checkpoint, batch in ((first, rows), (second, more)):
        changes = Changes(feed.schemas.__getitem__)
        changes.add(checkpoint, batch, feed.sink.wants)
        feed.sink.merge(changes.pieces[0])
        assert count(target) == 1
    bookmark = feed.sink.commit(second)
    assert bookmark.mark == second.mark
    assert number(target) == second.number
    assert execute(target.admin_url, "SELECT * FROM public.t ORDER BY 1") == [(0, "b"), (2, None)]


def test_a_rolled_back_transaction_leaves_the_session_usable(make_sink: Any, target: Database) -> None:
    feed, table = start(make_sink)
    fresh = feed.table("public.fresh", "id int64 key", "v text")
    made = feed.checkpoint(fresh.c(id=1) + table.c(id=1), [Begun(fresh.id, 1, keyless=False)])
    changes = Changes(feed.schemas.__getitem__)
    changes.add(*made, feed.sink.wants)
    feed.sink.begin(feed.bookmark, made[0])
    feed.sink.merge(changes.pieces[0])
    feed.sink.rollback()
    assert count(target) == 1
    feed.commit(*made)
    assert execute(target.admin_url, "SELECT * FROM public.fresh") == [(1, None)]


def test_two_sinks_of_different_names_share_a_target(make_sink: Any, target: Database) -> None:
    feed, _ = start(make_sink)
    other = Feed()
    other.resume(make_sink(other, name="other %s'\"", pipeline="p'%"))
    table = other.table("elsewhere.t", "id int64 key")
    other.apply(table.r(id=1), begun=[table], finished=[table])
    first, second = feed.sink, other.sink
    assert [found["table"] for found in second.status()["tables"]] == ["elsewhere.t"]
    second.drop()
    assert second.status() == {"bookmark": None, "tables": []}
    assert first.status()["bookmark"]["number"] == 0
    first.drop()
    assert first.status() == {"bookmark": None, "tables": []}
    assert execute(target.admin_url, "SELECT 1 FROM pg_namespace WHERE nspname = '_cdc'") == []
    assert count(target) == 1
    first.drop()


def test_drop_in_the_middle_of_a_load_gives_foreign_keys_back(target: Database) -> None:
    target.execute("CREATE TABLE public.p (id bigint PRIMARY KEY)")
    target.execute("CREATE TABLE public.c (id bigint PRIMARY KEY, p bigint REFERENCES public.p)")
    feed = Feed()
    feed.resume(PostgresSink("w", target.grant_sink(adopts=True), pipeline="shop", schemas=feed.schemas.__getitem__))
    parent = feed.table("public.p", "id int64 key")
    feed.apply(parent.r(id=1), begun=[parent])
    feed.sink.close()
    feed.sink.drop()
    assert execute(target.admin_url, "SELECT conname FROM pg_constraint WHERE contype = 'f'") == [("c_p_fkey",)]


def test_sinks_that_start_at_once_on_a_new_target(make_sink: Any, target: Database) -> None:
    feed = Feed()
    sinks = [make_sink(feed) for _ in range(4)]
    errors: list[Exception] = []

    def resume(sink: PostgresSink) -> None:
        try:
            sink.resume(feed.log_id)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=resume, args=[sink]) for sink in sinks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert all(isinstance(error, Unavailable) for error in errors), errors
    assert execute(target.admin_url, "SELECT count(*) FROM _cdc.bookmark") == [(1,)]


def test_a_wrong_login_a_dead_server_and_a_bad_url(target: Database) -> None:
    def code(url: str) -> str:
        sink = PostgresSink("w", url, pipeline="shop", schemas={}.__getitem__)
        with pytest.raises(CdcError) as error:
            sink.resume("log")
        assert "s3cret" not in f"{error.value} {error.value.to_json()}"
        assert [finding.code for finding in sink.check()] == [error.value.code]
        return error.value.code

    place = target.url.split("@")[1]
    assert code(f"postgresql://nobody:s3cret@{place}") == "CDC-TGT-102"
    assert code("postgresql://u:s3cret@127.0.0.1:1/x") == "CDC-TGT-101"
    assert code("postgresql://u:s3cret@127.0.0.1:1/x?no_such_option=1") == "CDC-TGT-102"


def test_preflight_names_missing_privileges(target: Database) -> None:
    role, password = "Poor-" + target.unique, "pw"
    target.server.execute(f"CREATE ROLE \"{role}\" LOGIN PASSWORD '{password}'")
    target.roles.append(role)
    feed = Feed()
    table = feed.table("public.t", "id int64 key")
    target.execute("CREATE TABLE public.u (id bigint PRIMARY KEY)")
    other = feed.table("public.u", "id int64 key")
    sink = PostgresSink(
        "w", target.server.url(target.name, role, password), pipeline="shop", schemas=feed.schemas.__getitem__
    )
    findings = sink.check([table.schema, other.schema])
    assert {finding.code for finding in findings} == {"CDC-TGT-103"}
    assert len(findings) == 3  # CREATE on the database and on the schema; the table. TEMPORARY is everybody's.
    assert all(finding.remedy.startswith("GRANT") for finding in findings)
    with pytest.raises(CdcError) as error:
        sink.resume("log")
    assert error.value.code == "CDC-TGT-103"
    assert (
        PostgresSink("w", target.grant_sink(), pipeline="shop", schemas={}.__getitem__).check(
            [table.schema, other.schema]
        )
        == []
    )


CHILD = """
import sys
from cdc.log import Begun
from sinks.postgres.sink import PostgresSink
from tests.events import Feed
feed = Feed(log_id="log")
sink = PostgresSink("warehouse", sys.argv[1], pipeline="shop", schemas=feed.schemas.__getitem__)
done = feed.resume(sink).mark.number
table = feed.table("public.t", "id int64 key", "v text")
for n in range(6):
    made = feed.checkpoint(table.c(id=n, v="x") + table.u(id=0, v=str(n)), [] if n else [Begun(table.id, 1, False)])
    if n > done:
        feed.commit(*made)
"""


@pytest.mark.parametrize("failpoint", ["sink.locked", "sink.staged", "sink.merged", "sink.committed"])
def test_killed_at_a_failpoint(url: str, target: Database, failpoint: str) -> None:
    for n, expected in ((2, -signal.SIGKILL), (1, -signal.SIGKILL), (0, 0)):
        env = os.environ | ({"CDC_FAILPOINT": f"{failpoint}:{n}"} if n else {})
        done = subprocess.run(
            [sys.executable, "-c", CHILD, url], env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == expected, done.stderr
    assert execute(target.admin_url, "SELECT id, v FROM public.t ORDER BY 1") == [
        (0, "5"),
        *((n, "x") for n in range(1, 6)),
    ]
    assert number(target) == 5


def test_a_table_that_the_sink_does_not_want_is_left_out(url: str, target: Database) -> None:
    feed = Feed()
    wanted = TableId("public", "t")
    sink = PostgresSink(
        *("w", url), pipeline="shop", schemas=feed.schemas.__getitem__, wants=lambda table: table == wanted,
        rename=lambda table: TableId("renamed", f"{table.name}_copy"),
    )  # fmt: skip
    feed.resume(sink)
    table, other = feed.table("public.t", "id int64 key"), feed.table("public.other", "id int64 key")
    feed.apply(table.r(id=1), begun=[table], finished=[table])
    feed.apply(table.c(id=2))
    assert execute(target.admin_url, "SELECT id FROM renamed.t_copy ORDER BY 1") == [(1,), (2,)]
    assert not sink.wants(other.id)
    sink.close()
