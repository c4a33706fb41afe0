"""Changes under way that a pipeline has to follow, or to stop at: structure, selection, names, refused rows, lost sessions, signals.

Whatever stops says so with a code; when its remedy is followed to the letter, source and target end equal.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from cdc.demo.postgres import EmbeddedPostgres
from cdc.postgres.slot import publish_statement
from cdc.table import TableId
from tests.e2e.pipeline import until
from tests.e2e.scene import SCHEMA, Make, Scene, alter
from tests.e2e.workload import rows_of
from tests.servers import Database, Server, ident


def end_by_end(scene: Scene, role: str = "capture", stops_max: int = 5) -> list[str]:
    """Follow each remedy of a role that stops, until everything has arrived; the codes."""
    codes: list[str] = []
    while True:
        try:
            scene.live()
        except AssertionError:
            if scene.pipeline.processes[role].poll() is None or len(codes) == stops_max:
                raise
            code, text = scene.last_error(role)
            codes.append(code)
            if "cdc " in text:
                scene.follow(text)
        else:
            return codes


# --------------------------------------------------------------------------------------------------------------- structure
FOLLOWED = {
    "add column": "ALTER TABLE t ADD COLUMN w int; UPDATE t SET w = id WHERE id < 10",
    "drop column": "ALTER TABLE t DROP COLUMN v",
    "drop not null": "ALTER TABLE t ALTER n DROP NOT NULL; INSERT INTO t (id, n) VALUES (-2, NULL)",
    "vacuum full": "VACUUM FULL t",
    "truncate": "TRUNCATE t",
    "wider varchar": "ALTER TABLE t ALTER s TYPE varchar(60); UPDATE t SET s = repeat('x', 50) WHERE id = 1",
}
WIDE = """
CREATE TABLE t (id int PRIMARY KEY, v text, n int NOT NULL DEFAULT 3, s varchar(20));
CREATE TABLE u (id int PRIMARY KEY);
INSERT INTO u VALUES (1);
INSERT INTO t (id, v) SELECT i, 'row ' || i FROM generate_series(1, 50) i;
"""


@pytest.mark.parametrize("change", FOLLOWED)
def test_a_change_that_is_followed(make: Make, change: str) -> None:
    """No stop, no reload. A column that was dropped stays at the target."""
    scene = make(schema=WIDE)
    scene.live()
    for statement in FOLLOWED[change].split("; "):
        scene.source.execute(statement)
    if change == "drop column":
        scene.pairs[0] = "(SELECT id, n, s FROM public.t)", "(SELECT id, n, s FROM public.t)"
    time.sleep(0.5)  # a heartbeat: it looks at the catalog
    scene.arrives()
    time.sleep(0.5)
    scene.arrives()
    tables = {table["table"]: table["generation"] for table in scene.pipeline.status()["result"]["tables"]}
    assert tables["public.t"] == 1


@pytest.mark.parametrize("again", [False, True], ids=["dropped", "made again"])
def test_a_publication_that_is_dropped(scene: Scene, again: bool) -> None:
    scene.live()
    scene.terminate("capture")
    alter(scene.source, "DROP PUBLICATION cdc_bad")
    scene.source.execute("DELETE FROM t WHERE id < 10")
    if again:
        statement = publish_statement(
            "cdc_bad", [TableId("public", "t"), TableId("public", "u")], inserts=False, exists=False
        )
        alter(scene.source, statement)
    scene.source.execute("DELETE FROM t WHERE id < 20")
    assert set(end_by_end(scene)) == {"CDC-PG-142"}


def test_a_publication_that_is_dropped_under_way(scene: Scene) -> None:
    scene.live()
    alter(scene.source, "DROP PUBLICATION cdc_bad")
    scene.source.execute("DELETE FROM t WHERE id < 10")
    assert set(end_by_end(scene)) == {"CDC-PG-142"}


# --------------------------------------------------------------------------------------------------------------- selection
def test_unknown_tables(scene: Scene) -> None:
    scene.configure(tables=["public.nothing"])
    scene.found("CDC-PG-137")
    scene.start("capture")
    scene.stops("capture", "CDC-PG-137", exit_code=2)
    scene.configure(tables=["nodot"])
    scene.refused("capture", str(scene.pipeline.file), code="CDC-CFG-103", exit_code=2, has=("bad.yaml:",))
    scene.configure(tables=["public.t", "public.nope"])
    done = scene.pipeline.cdc("check", str(scene.pipeline.file))
    assert "CDC-PG-138" in done.stdout
    assert "public.nope" in done.stdout
    scene.configure(tables=["public.*"], rules={"public.x": {"insert_only": True}})
    scene.configure(rules=None)
    scene.live()


CHANGED_MEANWHILE = "DELETE FROM u WHERE id < 10; UPDATE u SET n = -1 WHERE id < 20; INSERT INTO u VALUES (-5, 5)"


def test_a_table_that_is_deselected_and_comes_back(scene: Scene) -> None:
    scene.live()
    both, scene.pairs = scene.pairs, scene.pairs[:1]
    scene.terminate("capture")
    scene.configure(tables=["public.t"])
    scene.live()
    scene.source.execute(CHANGED_MEANWHILE)
    scene.arrives()
    scene.terminate("capture")
    scene.configure(tables=["public.*"])
    scene.pairs = both
    scene.live()


def test_a_table_that_one_sink_gives_up_and_takes_again(scene: Scene) -> None:
    scene.live()
    both, scene.pairs = scene.pairs, scene.pairs[:1]
    scene.terminate("main")
    scene.configure(sinks={"main": {"url": scene.sink_url, "tables": ["public.t"]}})
    scene.live()
    scene.source.execute(CHANGED_MEANWHILE)
    scene.arrives()
    scene.terminate("main")
    scene.configure(sinks={"main": {"url": scene.sink_url}})
    scene.pairs = both
    scene.live()


def test_a_sink_that_comes_later(scene: Scene, make_database: Callable[[], Database]) -> None:
    """It begins where the log does, and ends where the first one is."""
    scene.live()
    scene.source.execute(CHANGED_MEANWHILE)
    scene.arrives()
    later = make_database()
    scene.configure(sinks={"main": scene.sink_url, "later": {"url": later.grant_sink()}})
    scene.live()
    scene.target = later
    scene.arrives()


def test_another_rename(scene: Scene) -> None:
    """The tables are loaded under their new names; what is under the old ones stays."""
    scene.live()
    scene.terminate("main")
    before = rows_of(scene.target.admin_url, "public.u")
    scene.configure(sinks={"main": {"url": scene.sink_url, "rename": {"public.(.*)": "shop.\\1"}}})
    scene.source.execute(CHANGED_MEANWHILE)
    scene.pairs = [("public.t", "shop.t"), ("public.u", "shop.u")]
    scene.live()
    assert rows_of(scene.target.admin_url, "public.u") == before


# ------------------------------------------------------------------------------------------------------------ refused rows
def test_a_row_that_the_target_refuses(make: Make) -> None:
    scene = make(adopts=True)
    scene.target.execute("CREATE TABLE t (id int PRIMARY KEY, v text CONSTRAINT short CHECK (length(v) < 20))")
    scene.live()
    scene.source.execute("INSERT INTO t VALUES (777, 'c4nary, which is much too long'); INSERT INTO u VALUES (777, 7)")
    scene.stops("main", "CDC-TGT-130", "public.t", "777", "short")
    assert "c4nary" not in scene.outputs()
    assert not alter(scene.target, "SELECT 1 FROM u WHERE id = 777")  # the transaction is whole or not there
    scene.start("main")
    scene.stops("main", "CDC-TGT-130", "777")
    scene.target.execute("ALTER TABLE t DROP CONSTRAINT short")
    scene.live()


# ---------------------------------------------------------------------------------------------- servers, sessions, signals
class Load:
    """Inserts, updates and deletes while the servers may be away; `stop` ends them."""

    def __init__(self, database: Database) -> None:
        self._database, self._end, self.done = database, threading.Event(), 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                with closing(psycopg2.connect(self._database.url, connect_timeout=2)) as connection:
                    while not self._end.wait(0.005):
                        with connection, connection.cursor() as cursor:
                            self.done += 1
                            cursor.execute("INSERT INTO t VALUES (%s, 'load')", (10_000 + self.done,))
                            cursor.execute("UPDATE t SET v = 'again' WHERE id = %s", (10_000 + self.done // 2,))
                            cursor.execute("DELETE FROM t WHERE id = %s", (10_000 + self.done // 3,))
            except psycopg2.Error:
                self._end.wait(0.1)

    def stop(self) -> None:
        self._end.set()
        self._thread.join(10)


@pytest.mark.parametrize("killed", ["source", "target"])
def test_a_server_that_is_killed(
    private_postgres: Callable[..., Server], database: Database, target: Database, tmp_path: Path, killed: str
) -> None:
    """No hand is needed: both services try again, and nothing that was committed is missing."""
    server = private_postgres()
    process = server.process
    assert isinstance(process, EmbeddedPostgres)
    with server.database("killed") as own:
        source, to = (own, target) if killed == "source" else (database, own)
        with closing(Scene(tmp_path, source, to)) as scene:
            scene.live()
            load = Load(source)
            try:
                for _ in range(2):
                    time.sleep(0.5)
                    process.kill9()
                    time.sleep(0.3)
                    process.start()
            finally:
                load.stop()
            assert load.done > 20
            scene.arrives(60)
            scene.terminate()


def test_each_session_is_ended_in_turn(scene: Scene) -> None:
    scene.live()
    ended = set[str]()
    load = Load(scene.source)
    try:
        for database, role in ((scene.source, scene.source.roles[-1]), (scene.target, scene.target.roles[-1])):
            listed = f"SELECT pid, application_name, backend_type FROM pg_stat_activity WHERE usename = '{role}'"
            sessions = alter(database, listed)
            assert sessions
            for pid, application, kind in sessions:
                alter(database, f"SELECT pg_terminate_backend({pid})")
                ended.add(f"{application.split()[0]} {kind}")
                time.sleep(0.3)
    finally:
        load.stop()
    assert {"penstock:bad walsender", "penstock:bad client backend", "penstock-sink client backend"} <= ended
    scene.arrives(40)


def test_signals(scene: Scene) -> None:
    """SIGTERM: up to a committed batch, and 0. A second one: at once, whatever hangs."""
    scene.live()
    load = Load(scene.source)
    try:
        time.sleep(0.3)
        scene.terminate()
        scene.start()
        with closing(psycopg2.connect(scene.target.admin_url)) as blocker, blocker.cursor() as cursor:
            cursor.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
            waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'public.t'::regclass"
            until(lambda: alter(scene.target, waiting), 10, "the sink to wait for the lock")
            process = scene.pipeline.processes["main"]
            process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.wait(3) == 128 + signal.SIGTERM
    finally:
        load.stop()
    os.kill(scene.pipeline.processes["capture"].pid, signal.SIGINT)
    assert scene.pipeline.wait("capture", 10) == 0
    scene.live()


# ------------------------------------------------------------------------------------------------------------------- names
LONG = "é" * 31 + "x"  # 63 bytes
NAMES = [
    'quote"s',
    "per%cent %s %(x)s",
    "new\nline",
    "Upper",
    LONG,
    "select",
    "a.b",
    "back\\slash",
    "';DROP TABLE t;--",
    "💥 {x} $1",
]


def test_hostile_names(make: Make) -> None:
    columns = ", ".join(f"{ident(name)} text" for name in NAMES)
    key = ", ".join(map(ident, NAMES[:3]))
    schema = f"CREATE SCHEMA {ident('S.x %s')};" + "".join(
        f"CREATE TABLE {ident(name)} ({columns}, PRIMARY KEY ({key}));" for name in NAMES
    )
    values = ", ".join(f"'{index} ' || i" for index in range(len(NAMES)))
    schema += "".join(f"INSERT INTO {ident(name)} SELECT {values} FROM generate_series(1, 3) i;" for name in NAMES)
    scene = make(schema=SCHEMA + schema)
    scene.pairs += [(f"public.{ident(name)}", f"public.{ident(name)}") for name in NAMES]
    scene.live()
    for name in NAMES:
        table = ident(name)
        scene.source.execute(
            f"UPDATE {table} SET {ident(LONG)} = 'new' WHERE {ident(NAMES[0])} = '0 1';"
            f"UPDATE {table} SET {ident(NAMES[1])} = 'moved' WHERE {ident(NAMES[0])} = '0 2';"
            f"DELETE FROM {table} WHERE {ident(NAMES[0])} = '0 3'"
        )
    scene.arrives()
    tables = {table["table"] for table in scene.pipeline.status()["result"]["tables"]}
    assert len(tables) == len(NAMES) + 2
    for name in sorted(tables)[:3]:
        scene.pipeline.reload(name)
    scene.arrives()
