"""The test servers and the embedded Postgres behind them."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import psycopg2
import pytest

from cdc.demo import binaries
from cdc.demo.postgres import EmbeddedPostgres
from cdc.errors import CdcError
from cdc.postgres.slot import publish_statement
from cdc.table import TableId
from tests.servers import Database, Server, execute


@pytest.mark.majors(16, 18)
def test_shared_server_is_of_the_major_asked_for_and_logical(postgres: Server) -> None:
    ((version, level),) = postgres.execute(
        "SELECT current_setting('server_version_num')::int / 10000, current_setting('wal_level')"
    )
    assert (version, level) == (postgres.major, "logical")


def test_a_database_leaves_nothing_behind(postgres: Server) -> None:
    with postgres.database('50% "of" it\n, ü') as database:
        cdc = database.grant_source()
        database.grant_sink()
        execute(cdc, "SELECT pg_create_logical_replication_slot('servers_left', 'pgoutput')")
        with closing(database.connect()) as writer:
            writer.cursor().execute("CREATE TABLE t (a int); PREPARE TRANSACTION 'servers left'")
        assert database.slots() == ["servers_left"]
    assert database.slots() == []
    assert postgres.execute("SELECT 1 FROM pg_prepared_xacts WHERE gid = 'servers left'") == []
    for catalogue, name in (("pg_database", "datname"), ("pg_roles", "rolname")):
        assert postgres.execute(f"SELECT {name} FROM {catalogue} WHERE {name} LIKE %s", [f"%{database.unique}%"]) == []


@pytest.mark.majors(16, 18)
def test_the_documented_capture_role_reads_publishes_and_writes_nothing(database: Database, cdc_role: str) -> None:
    database.execute("CREATE TABLE later (a int PRIMARY KEY); INSERT INTO later VALUES (1)")
    assert execute(cdc_role, "SELECT * FROM later") == [(1,)]
    execute(cdc_role, "CREATE PUBLICATION servers_pub FOR TABLE later")
    execute(cdc_role, "SELECT pg_logical_emit_message(true, 'penstock', 'x')")
    ((superuser, replication),) = execute(
        cdc_role, "SELECT rolsuper, rolreplication FROM pg_roles WHERE rolname = current_user"
    )
    assert (superuser, replication) == (False, True)


def test_the_role_beside_a_dbas_publication_owns_nothing(database: Database) -> None:
    database.execute('CREATE TABLE "it\'s ""t"" 50%" (a int PRIMARY KEY)')
    reader = database.grant_source(owns_publication=False)
    database.execute(publish_statement('p "1"', [TableId("public", 'it\'s "t" 50%')], inserts=False, exists=False))
    assert execute(reader, "SELECT tablename FROM pg_publication_tables") == [('it\'s "t" 50%',)]
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        execute(reader, 'INSERT INTO "it\'s ""t"" 50%" VALUES (1)')
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        execute(reader, "CREATE PUBLICATION another")


@pytest.mark.majors(16, 18)
def test_the_documented_sink_role_makes_its_tables_and_bookkeeping(target: Database, sink_role: str) -> None:
    execute(sink_role, "CREATE SCHEMA _cdc; CREATE TABLE public.t (a int); CREATE TEMPORARY TABLE staged (a int)")
    assert execute(sink_role, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == [(False,)]


def test_a_wrong_password_is_refused(database: Database, cdc_role: str) -> None:
    with pytest.raises(psycopg2.OperationalError):
        execute(database.server.url(database.name, database.owner, "wrong"), "SELECT 1")


def test_a_killed_server_comes_back_on_its_port_with_its_rows(private_postgres: Callable[..., Server]) -> None:
    server = private_postgres(18, {"work_mem": "1MB"})
    assert server.process is not None
    server.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
    server.process.kill9()
    assert server.process.pid is None
    with pytest.raises(psycopg2.OperationalError):
        server.execute("SELECT 1")
    server.process.settings["work_mem"] = "2MB"
    server.process.start()
    server.process.restart("immediate")
    assert server.execute("SELECT a, current_setting('work_mem') FROM t") == [(1, "2MB")]


def test_a_server_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = """import time; from cdc.demo.postgres import EmbeddedPostgres
server = EmbeddedPostgres(); server.start(); print(server.pid, server.folder, flush=True); time.sleep(60)"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().split(maxsplit=1)
        try:
            parent.kill()
            parent.wait()
            deadline = time.monotonic() + 10
            while alive(int(pid)) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not alive(int(pid))
        finally:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
            shutil.rmtree(folder.strip(), ignore_errors=True)


def alive(pid: int) -> bool:
    """Running, and not merely unburied by an init that does not reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_two_servers_at_once_and_a_folder_that_is_kept(open_folder: Path) -> None:
    with EmbeddedPostgres(open_folder / "a", fsync=False) as one, EmbeddedPostgres(fsync=False) as other:
        assert one.port != other.port
        execute(one.url(), "CREATE TABLE kept ()")
    assert not other.folder.exists()
    with EmbeddedPostgres(open_folder / "a", fsync=False) as again:
        assert execute(again.url(), "SELECT to_regclass('kept')::text") == [("kept",)]


def test_a_port_that_was_asked_for_and_is_taken_is_an_error_with_the_log(open_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        server = EmbeddedPostgres(open_folder / "b", port=other.getsockname()[1], fsync=False)
        with pytest.raises(CdcError) as raised:
            server.start()
    assert raised.value.code == "CDC-DEMO-102"
    assert "Address already in use" in raised.value.detail


def test_a_setting_that_postgres_refuses_is_an_error_with_the_log(open_folder: Path) -> None:
    with pytest.raises(CdcError, match="wal_level"):
        EmbeddedPostgres(open_folder / "c", settings={"wal_level": "nonsense"}).__enter__()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_as_root_a_folder_that_is_closed_to_others_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(CdcError) as raised:
        EmbeddedPostgres(tmp_path / "data")
    assert raised.value.code == "CDC-DEMO-103"


def test_the_cache_is_made_once_though_two_make_it_at_once(open_folder: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(open_folder)}
    script = "from cdc.demo.binaries import *; print(cached(16, server_user()))"
    both = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment, text=True)
        for _ in range(2)
    ]
    places = {process.communicate(timeout=60)[0].strip() for process in both}
    (place,) = places
    assert place.startswith(str(open_folder))
    assert [path.name[:12] for path in (open_folder / "penstock").iterdir()] == ["postgres-16-"]
    assert subprocess.run(
        [f"{place}/postgres", "--version"], check=True, capture_output=True, text=True
    ).stdout.startswith("postgres")


def test_a_folder_named_data_that_is_not_postgres_is_left_alone(open_folder: Path) -> None:
    (open_folder / "data").mkdir()
    (open_folder / "data" / "thesis").touch()
    with pytest.raises(CdcError) as raised:
        EmbeddedPostgres(open_folder).__enter__()
    assert raised.value.code == "CDC-DEMO-102"
    assert (open_folder / "data" / "thesis").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_a_temporary_folder_closed_to_the_servers_user_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with EmbeddedPostgres(fsync=False) as server:
        assert execute(server.url(), "SELECT 1") == [(1,)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's cache has to be open to others")
def test_a_cache_closed_to_the_servers_user_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not binaries.cached(16, binaries.server_user()).is_relative_to(tmp_path)


def test_programs_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "PACKAGE", "no_such_package")
    with pytest.raises(CdcError) as raised:
        EmbeddedPostgres()
    assert (raised.value.code, raised.value.remedy) == ("CDC-DEMO-101", "pip install 'penstock[demo]'")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the server's user may enter; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
