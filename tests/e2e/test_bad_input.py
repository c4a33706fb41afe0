"""Bad input at the front door: URLs, passwords, privileges, settings of the server, the configuration, the target's tables.

Each gets its coded error with what, where and what to do, or is waited for with the same said; and nothing is lost: when the remedy
is followed to the letter, source and target end equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extras import PhysicalReplicationConnection

from tests.e2e.pipeline import until
from tests.e2e.scene import SCHEMA, Make, Scene, Stopped, alter
from tests.servers import Database, Server, ident

# ------------------------------------------------------------------------------------------------------- URLs and passwords
GARBAGE = ("no url at all", "postgresql://h:port/x", "oracle://h/x", "mysql://h/x", "postgresql://u:a/b@h/x")


@pytest.mark.parametrize("end", ["source", "target"])
def test_a_wrong_url(scene: Scene, end: str) -> None:
    """An address that nobody answers at may answer later: waited for. What a server or the file itself refuses, stops."""
    role, area, use, url = {
        "source": ("capture", "CDC-PG", scene.use_source, scene.source_url),
        "target": ("main", "CDC-TGT", scene.use_target, scene.sink_url),
    }[end]
    for wrong in (re.sub(r"@[^/]+", "@nobody.invalid:5432", url), re.sub(r":\d+/", ":1/", url)):
        use(wrong)
        finding = scene.found(f"{area}-101")
        assert "nobody.invalid" in finding["detail"] or "port 1 " in finding["detail"]
    scene.start("capture", "main")
    assert "port 1 " in scene.waits(role, f"{area}-101")["detail"]
    scene.terminate()
    use(re.sub(r"/[^/]*$", "/no-such-database", url))
    scene.found(f"{area}-102")
    scene.start(role)
    scene.stops(role, f"{area}-102", "no-such-database", exit_code=2)
    for garbage in GARBAGE:
        use(garbage)
        words = ["capture"] if end == "source" else ["sink", "main"]
        scene.refused(*words, str(scene.pipeline.file), code="CDC-CFG-103", exit_code=2, has=("bad.yaml:",))
    use(url)
    scene.live()


CANARY = "c4nary-p%/:@ssw0rd"


@pytest.mark.parametrize("end", ["source", "target"])
def test_a_wrong_password_is_shown_nowhere(scene: Scene, end: str) -> None:
    role, code = ("capture", "CDC-PG-102") if end == "source" else ("main", "CDC-TGT-102")
    use, url = (scene.use_source, scene.source_url) if end == "source" else (scene.use_target, scene.sink_url)
    use(re.sub(r":[^:@/]+@", ":c4nary-p%25%2F%3A%40ssw0rd@", url))
    scene.start("capture", "main")
    scene.stops(role, code, "password", exit_code=2)
    shown = [scene.outputs()]
    for words in (("check",), ("check", "--json"), ("status",), ("status", "--json")):
        done = scene.pipeline.cdc(words[0], str(scene.pipeline.file), *words[1:], check=False)
        assert done.returncode == 4
        shown.append(done.stdout + done.stderr)
    shown += [path.read_text(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    shown += [path.read_bytes().decode(errors="replace") for path in scene.pipeline.log.rglob("*.sqlite*")]
    for secret in (CANARY, "c4nary-p%25%2F%3A%40ssw0rd", "c4nary"):
        assert not [text for text in shown if secret in text]
    for process in scene.pipeline.processes.values():
        if process.poll() is None:
            process.terminate()
            assert process.wait(20) == 0
    use(url)
    scene.live()


# ------------------------------------------------------------------------------------------------------- missing privileges
def test_no_select_on_a_table(scene: Scene) -> None:
    role, other = scene.source.roles[-1], f"Other-{scene.source.unique}"
    alter(scene.source, f"CREATE ROLE {ident(other)}; ALTER TABLE u OWNER TO {ident(other)}")
    scene.source.roles.append(other)
    alter(scene.source, f"REVOKE SELECT ON u FROM {ident(role)}")
    scene.found("CDC-PG-104")
    scene.start("capture")
    stopped = scene.stops("capture", "CDC-PG-104", "public.u")
    assert stopped.remedy.startswith("GRANT SELECT ON")
    alter(scene.source, stopped.remedy)
    scene.start("capture")
    stopped = scene.stops("capture", "CDC-PG-131", "public.u")  # nor may it publish what another role owns
    alter(scene.source, stopped.remedy)
    scene.live()


def test_no_replication(scene: Scene) -> None:
    role = scene.source.roles[-1]
    alter(scene.source, f"ALTER ROLE {ident(role)} NOREPLICATION")
    scene.found("CDC-PG-115")
    scene.start("capture")
    alter(scene.source, scene.stops("capture", "CDC-PG-115", role).remedy)
    scene.live()
    alter(scene.source, f"ALTER ROLE {ident(role)} NOREPLICATION")  # it is asked at every start
    scene.terminate("capture")
    scene.start("capture")
    alter(scene.source, scene.stops("capture", "CDC-PG-115").remedy)
    scene.live()


def test_a_publication_that_a_dba_makes(scene: Scene) -> None:
    role, owner = scene.source.roles[-1], scene.source.owner
    alter(scene.source, f"REVOKE {ident(owner)} FROM {ident(role)}")
    alter(scene.source, f"REVOKE CREATE ON DATABASE {ident(scene.source.name)} FROM {ident(role)}")
    scene.found("CDC-PG-131")
    scene.start("capture")
    remedy = scene.stops("capture", "CDC-PG-131").remedy
    assert remedy.startswith("CREATE PUBLICATION")
    alter(scene.source, remedy)
    scene.live()
    scene.source.execute("CREATE TABLE later (id int PRIMARY KEY); INSERT INTO later VALUES (1)")
    scene.source.execute(f"GRANT SELECT ON later TO {ident(role)}")
    scene.pairs.append(("public.later", "public.later"))
    scene.write()
    assert "ALTER PUBLICATION" in scene.problem("public.later", "CDC-PG-131")  # the others go on
    scene.terminate("capture")
    scene.start("capture")
    scene.problem("public.later")
    alter(scene.source, scene.found("CDC-PG-131")["remedy"])
    scene.live()


def test_a_target_without_create(scene: Scene) -> None:
    role, database = scene.target.roles[-1], scene.target.name
    alter(scene.target, f"REVOKE CREATE ON DATABASE {ident(database)} FROM {ident(role)}")
    scene.start("capture", "main")
    scene.stops("main", "CDC-TGT-103")
    alter(scene.target, scene.found("CDC-TGT-103")["remedy"])
    alter(scene.target, f"REVOKE CREATE ON SCHEMA public FROM {ident(role)}")
    scene.start("main")
    scene.stops("main", "CDC-TGT-103")
    alter(scene.target, scene.found("CDC-TGT-103")["remedy"])
    scene.live()


# ------------------------------------------------------------------------------------------------------------- the server
def test_a_server_that_is_not_ready(private_postgres: Callable[..., Server], tmp_path: Path, target: Database) -> None:
    """wal_level, then no slot left, then no walsender left, which passes by itself."""
    server = private_postgres(16, {"wal_level": "replica", "max_replication_slots": "1", "max_wal_senders": "1"})
    process = server.process
    assert process is not None
    with server.database("ready") as source, closing(Scene(tmp_path, source, target)) as scene:
        scene.found("CDC-PG-112")
        scene.start("capture")
        remedy = scene.stops("capture", "CDC-PG-112", "wal_level is replica").remedy
        assert "wal_level" in remedy
        process.settings["wal_level"] = "logical"
        process.restart()
        server.execute("SELECT pg_create_physical_replication_slot('taken')")
        scene.start("capture")
        scene.stops("capture", "CDC-PG-111", "pg_drop_replication_slot")
        server.execute("SELECT pg_drop_replication_slot('taken')")
        with closing(psycopg2.connect(server.admin_url, connection_factory=PhysicalReplicationConnection)):
            scene.start("capture")
            assert "walsender" in scene.waits("capture", "CDC-PG-116")["detail"]
        scene.live()
        scene.terminate()


def test_no_connection_left(scene: Scene) -> None:
    """A server that let us in before may be full for a moment: waited for, by capture and sink."""
    roles = scene.source.roles[-1], scene.target.roles[-1]
    scene.live()
    for role, database, name in (("capture", scene.source, roles[0]), ("main", scene.target, roles[1])):
        area = "CDC-PG" if role == "capture" else "CDC-TGT"
        alter(database, f"ALTER ROLE {ident(name)} CONNECTION LIMIT 0")
        alter(database, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{name}'")
        scene.waits(role, f"{area}-102")
        alter(database, f"ALTER ROLE {ident(name)} CONNECTION LIMIT -1")
        scene.arrives()
    scene.pipeline.alive()


# ------------------------------------------------------------------------------------------------------- replica identity
KEYLESS = "CREATE TABLE k (a int, b text); INSERT INTO k VALUES (1, 'x'), (1, 'x'), (2, 'y');"


def test_a_keyless_table_without_identity(make: Make) -> None:
    """Refused with both ways out; either is taken, and the application's statements never fail meanwhile."""
    scene = make(schema=SCHEMA + KEYLESS)
    scene.found("CDC-PG-132")
    scene.start("capture")
    stopped = scene.stops("capture", "CDC-PG-132", "public.k", "insert_only", "REPLICA IDENTITY FULL")
    scene.source.execute("UPDATE k SET b = 'z' WHERE a = 2")
    scene.configure(rules={"public.k": {"insert_only": True}})
    scene.pairs.append(("public.k", "public.k"))
    scene.live()
    scene.source.execute("INSERT INTO k VALUES (3, 'new')")
    scene.arrives()
    scene.source.execute("UPDATE k SET b = 'not captured' WHERE a = 1")  # and does not fail
    scene.terminate()

    scene.source.execute(stopped.remedy)
    scene.configure(rules=None)
    scene.start("capture")
    followed(scene, "capture")
    scene.source.execute(
        "UPDATE k SET b = 'captured' WHERE ctid = (SELECT min(ctid) FROM k); DELETE FROM k WHERE a = 3"
    )
    scene.live()


def followed(scene: Scene, role: str, stops_max: int = 3) -> None:
    """Do what the role says until it runs."""
    for _ in range(stops_max):
        try:
            until(lambda: scene.pipeline.processes[role].poll() is not None, 4, "an end")
        except AssertionError:
            return
        code, text = scene.last_error(role)
        scene.follow(Stopped(code, text, 1).remedy)
        scene.start(role)


def test_an_identity_that_is_taken_away(scene: Scene) -> None:
    """The table is left out, and out of the publication: its updates would fail there. Everything else goes on; with an identity it
    is taken in by itself."""
    scene.live()
    scene.source.execute("ALTER TABLE t REPLICA IDENTITY NOTHING")
    scene.problem("public.t", "CDC-PG-132")
    scene.source.execute("UPDATE t SET v = 'meanwhile' WHERE id < 5; INSERT INTO u VALUES (777, 7)")
    until(lambda: alter(scene.target, "SELECT 1 FROM u WHERE id = 777"), 10, "the other table's change")
    scene.terminate("capture")
    scene.start("capture")
    scene.source.execute(scene.found("CDC-PG-132")["remedy"])
    scene.source.execute("UPDATE t SET v = 'after' WHERE id < 10; DELETE FROM t WHERE id = 11")
    scene.live()


# ----------------------------------------------------------------------------------------------------- the target's tables
SHAPES = {
    "type": ("CREATE TABLE t (id int PRIMARY KEY, v int)", "column v is integer", "ALTER TABLE t ALTER v TYPE text"),
    "no key": ("CREATE TABLE t (id int, v text)", "unique index", "ALTER TABLE t ADD PRIMARY KEY (id)"),
    "view": ("CREATE VIEW t AS SELECT 1 AS id, 'x'::text AS v", "not an ordinary table", "DROP VIEW t"),
    "required": (
        "CREATE TABLE t (id int PRIMARY KEY, v text, w int NOT NULL)",
        "column w",
        "ALTER TABLE t ALTER w SET DEFAULT 0",
    ),
    "not null": (
        "CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL)",
        "NOT NULL",
        "ALTER TABLE t ALTER v DROP NOT NULL",
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_target_table_of_another_shape(make: Make, shape: str) -> None:
    there, words, mend = SHAPES[shape]
    scene = make(adopts=True)
    scene.target.execute(there)
    if shape != "view":
        scene.target.execute("INSERT INTO t VALUES (-1, '1')" if shape == "type" else "SELECT 1")
    scene.found("CDC-TGT-120")
    scene.start("capture", "main")
    scene.stops("main", "CDC-TGT-120", words, "public.t")
    scene.target.execute(mend)
    scene.live() if shape != "required" else live_but_for_w(scene)


def live_but_for_w(scene: Scene) -> None:
    scene.pairs = [("(SELECT id, v FROM public.t) ", "(SELECT id, v FROM public.t) ")]
    scene.live()
