"""Standbys of a test's own server: copied from it, streaming from it, to promote. Backups of it, to start as they are.

    standby = follow(primary)                          # 17 and later: it has the failover slots, and the primary waits for it
    primary.process.kill9(); promote(standby)
    url = either(capture_url, primary, standby)        # libpq goes to the one that takes writes
    source = at(source, standby)                       # the same database there

Nothing here ends a server: the caller closes each one's `process`.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from urllib.parse import urlsplit

from cdc.demo.postgres import EmbeddedPostgres
from tests.servers import Database, Server

PROGRAM_S, REACH_S = 60.0, 20.0


def follow(
    primary: Server, name: str = "standby", *, synchronized: bool = True, settings: Mapping[str, str] | None = None
) -> Server:
    """A standby that streams from the primary by its physical slot `name`. From 17 on, unless it shall not be `synchronized`, it
    keeps the primary's failover slots, and the primary sends from those only what this standby has."""
    assert primary.process is not None
    both = primary.major >= 17 and synchronized
    streaming = {
        "primary_conninfo": conninfo(primary.process),
        "primary_slot_name": name,
        "hot_standby_feedback": "on",
        "wal_receiver_status_interval": "1s",
        "wal_retrieve_retry_interval": "100ms",
        "sync_replication_slots": "on",
    }
    if primary.major < 17 or not synchronized:
        del streaming["sync_replication_slots"]
    process = backup(primary, "-R", "-C", "-S", name, settings=settings)
    with (process.data / "postgresql.auto.conf").open(
        "a", encoding="utf-8"
    ) as file:  # where ALTER SYSTEM can change it
        file.writelines(f"{setting} = '{value}'\n" for setting, value in streaming.items())
    process.start()
    if both:
        configure(primary, synchronized_standby_slots=name)
    return Server(primary.major, process.url(), process)


def backup(server: Server, *options: str, settings: Mapping[str, str] | None = None) -> EmbeddedPostgres:
    """A base backup of a running server, not started; it has the server's settings and `settings`. Slots are in no backup."""
    process = server.process
    assert process is not None
    made = EmbeddedPostgres(
        major=server.major, password=process.password, settings={**process.settings, **(settings or {})}
    )
    run(made, "pg_basebackup", "-d", process.url(), "-D", str(made.data), "-X", "stream", "-c", "fast", *options)
    return made


def run(process: EmbeddedPostgres, program: str, *arguments: str) -> None:
    """One of the server's own programs, as the user that the server runs as."""
    command = process._command([program, *arguments], signal.SIGKILL)
    done = subprocess.run(command, capture_output=True, cwd=process.folder, timeout=PROGRAM_S, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")


def conninfo(process: EmbeddedPostgres) -> str:
    """How a standby reaches its primary; synchronizing slots needs the name of a database."""
    return f"host=127.0.0.1 port={process.port} user=postgres password={process.password} dbname=postgres"


def configure(server: Server, **settings: str) -> None:
    """ALTER SYSTEM, in effect at once."""
    for name, value in settings.items():
        server.execute(f"ALTER SYSTEM SET {name} = '{value}'")
    server.execute("SELECT pg_reload_conf()")


def caught_up(primary: Server, standby: Server) -> None:
    """Wait until the standby has replayed what the primary has written."""
    [(head,)] = primary.execute("SELECT pg_current_wal_flush_lsn()")
    _until(standby, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", head)


def synchronized(primary: Server, standby: Server, slot: str, advance: Callable[[], object] = lambda: None) -> None:
    """Wait until the standby would keep this failover slot when it is promoted: its reader has confirmed something (`advance`) that
    came after the primary wrote down its running transactions, which it does every 15 s by itself."""
    deadline = time.monotonic() + REACH_S
    claim = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s AND synced AND NOT temporary"
    while standby.execute(claim, [slot]) != [(1,)]:
        primary.execute("SELECT pg_log_standby_snapshot()")
        advance()
        assert time.monotonic() < deadline, standby.execute("TABLE pg_replication_slots")
        time.sleep(0.2)


def promote(standby: Server) -> Server:
    """Make the standby a primary of a timeline of its own; it waits for nobody then."""
    standby.execute("SELECT pg_promote()")
    if standby.major >= 17:
        configure(standby, synchronized_standby_slots="")
    return standby


def at(database: Database, server: Server) -> Database:
    """The database as it is at another server, which is a copy."""
    there = urlsplit(server.admin_url).netloc.rpartition("@")[2]
    own = urlsplit(database.url)
    url = own._replace(netloc=f"{own.netloc.rpartition('@')[0]}@{there}").geturl()
    return replace(database, server=server, url=url, admin_url=server.url(database.name))


def either(url: str, *servers: Server) -> str:
    """The URL with these servers as its hosts, of which libpq takes the one that is a primary."""
    parts = urlsplit(url)
    hosts = ",".join(urlsplit(server.admin_url).netloc.rpartition("@")[2] for server in servers)
    login = parts.netloc.rpartition("@")[0]
    return parts._replace(netloc=f"{login}@{hosts}", query="target_session_attrs=read-write").geturl()


def _until(server: Server, claim: str, *parameters: object) -> None:
    deadline = time.monotonic() + REACH_S
    while server.execute(claim, parameters) != [(True,)]:
        assert time.monotonic() < deadline, (claim, parameters)
        time.sleep(0.02)
