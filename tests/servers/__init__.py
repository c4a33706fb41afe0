"""Real servers for the tests: started once per session when a test first asks, on free loopback ports, gone when pytest is.

    postgres = server(16)                   # or 18, or 15 where Debian's is installed; PENSTOCK_TEST_PG16=postgresql://… is used as is
    with postgres.database("orders") as database:
        database.execute("CREATE TABLE …")  # as the role that owns the database, an application's
        url = database.grant_source()       # the documented role and grants, no superuser

The fixtures in tests/conftest.py are made of these. A test that crashes, restarts or configures a server starts its own.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psycopg2

from cdc.demo.binaries import FOLDERS
from cdc.demo.postgres import EmbeddedPostgres
from cdc.errors import CdcError
from cdc.postgres.grants import source_grants
from sinks.postgres.grants import sink_grants

MAJORS = (16, 18)
DEFAULT = 16

SHARED = {
    "max_connections": "200",
    "max_wal_senders": "60",
    "max_replication_slots": "60",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",
}


class Missing(Exception):
    """This machine has no such server; the message says why."""


@dataclass(frozen=True)
class Server:
    """A running Postgres: `admin_url` is a superuser's. `process` is None for one that the environment names."""

    major: int
    admin_url: str
    process: EmbeddedPostgres | None = None

    def url(self, database: str, user: str | None = None, password: str | None = None) -> str:
        """The URL of a database, for the superuser or for `user`; libpq options of `admin_url` are kept."""
        parts = urlsplit(self.admin_url)
        login, _, host = parts.netloc.rpartition("@")
        if user is not None:
            login = quote(user, safe="") + (":" + quote(password, safe="") if password else "")
        return parts._replace(netloc=f"{login}@{host}" if login else host, path="/" + quote(database, safe="")).geturl()

    def execute(self, sql: str, parameters: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        """Run SQL as the superuser, in autocommit; the rows of the last statement, if it has any."""
        return execute(self.admin_url, sql, parameters)

    @contextmanager
    def database(self, name: str = "test") -> Iterator[Database]:
        """A fresh database with an owner of its own. At the end its slots, sessions, prepared transactions and roles go with it."""
        database = self.make_database(name)
        try:
            yield database
        finally:
            database.drop()

    def make_database(self, name: str = "test") -> Database:
        """The same for a server that does not outlive the test: nothing is dropped.

        The real name is unique, and needs quoting; `name` only helps whoever looks at the server."""
        unique = secrets.token_hex(4)
        real = f"T-{re.sub(r'[^a-z0-9]+', '-', name.lower())[:40]}-{unique}"
        owner, password = f"App-{unique}", secrets.token_urlsafe(12)
        self.execute(f"CREATE ROLE {ident(owner)} LOGIN PASSWORD '{password}'")
        self.execute(f"CREATE DATABASE {ident(real)} OWNER {ident(owner)} TEMPLATE template0")
        database = Database(self, real, owner, self.url(real, owner, password), self.url(real), unique)
        database.roles.append(owner)
        return database


@dataclass(frozen=True)
class Database:
    """A test's own database. `url` is its owner's, an application's role; `admin_url` the superuser's."""

    server: Server
    name: str
    owner: str
    url: str
    admin_url: str
    unique: str
    roles: list[str] = field(default_factory=list)

    def connect(self) -> Any:
        """A psycopg2 connection of the owner's. The caller closes it."""
        return psycopg2.connect(self.url, connect_timeout=10)

    def execute(self, sql: str, parameters: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        """Run SQL as the owner, in autocommit; the rows of the last statement, if it has any."""
        return execute(self.url, sql, parameters)

    def grant_source(self, schemas: Sequence[str] = ("public",), *, owns_publication: bool = True) -> str:
        """Make the documented role of capture with exactly the documented grants; its URL. Tables of these schemas that the owner
        makes later are included. `owns_publication=False` is the role for a publication that a DBA makes."""
        role, password = f"Cdc-{self.unique}-{len(self.roles)}", secrets.token_urlsafe(12)
        return self._grant(
            role, password, source_grants(role, password, self.name, schemas, [self.owner] if owns_publication else [])
        )

    def grant_sink(self, schemas: Sequence[str] = ("public",), *, adopts: bool = False) -> str:
        """Make the documented role of a sink with exactly the documented grants; its URL. `adopts`: it may alter the owner's tables."""
        role, password = f"Etl-{self.unique}-{len(self.roles)}", secrets.token_urlsafe(12)
        return self._grant(
            role, password, sink_grants(role, password, self.name, schemas, [self.owner] if adopts else [])
        )

    def slots(self) -> list[str]:
        """The names of the replication slots of this database."""
        return [
            name
            for (name,) in self.server.execute(
                "SELECT slot_name FROM pg_replication_slots WHERE database = %s", [self.name]
            )
        ]

    def drop_slots(self, timeout_s: float = 10.0) -> None:
        """End the walsenders of this database's slots and drop them."""
        deadline = time.monotonic() + timeout_s
        while self.slots():
            self.server.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = %s AND active_pid IS NOT NULL",
                [self.name],
            )
            drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s AND active_pid IS NULL"
            try:
                self.server.execute(drop, [self.name])
            except psycopg2.errors.ObjectInUse:  # A reader that the test did not end came back.
                if time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                raise TimeoutError(f"slots of {self.name} stay in use: {self.slots()}")
            time.sleep(0.02)

    def drop(self) -> None:
        """Remove everything of this database from the server. Idempotent."""
        self.drop_slots()
        for (gid,) in self.server.execute("SELECT gid FROM pg_prepared_xacts WHERE database = %s", [self.name]):
            execute(self.admin_url, "ROLLBACK PREPARED %s", [gid])
        self.server.execute(f"DROP DATABASE IF EXISTS {ident(self.name)} WITH (FORCE)")
        for role in self.roles:
            self.server.execute(f"DROP ROLE IF EXISTS {ident(role)}")

    def _grant(self, role: str, password: str, statements: Sequence[str]) -> str:
        self.roles.append(role)
        for statement in statements:
            execute(self.admin_url, statement)
        return self.server.url(self.name, role, password)


def execute(url: str, sql: str, parameters: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
    """Run SQL on a connection of its own, in autocommit; the rows of the last statement, if it has any."""
    with closing(psycopg2.connect(url, connect_timeout=10)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else []


def ident(name: str) -> str:
    """A quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


def private(major: int = DEFAULT, settings: Mapping[str, str] | None = None) -> Server:
    """Start a server that one test has for itself; the caller closes its `process`. fsync is on."""
    return _start(major, settings or {}, fsync=True)


def server(major: int = DEFAULT) -> Server:
    """The session's server of this major version. Raises Missing."""
    found = _running.get(major)
    if found is None:
        found = _missing_or_running(major)
        _running[major] = found
    if isinstance(found, Missing):
        raise found
    return found


def stop_all() -> None:
    """Stop what `server` started."""
    while _running:
        _, found = _running.popitem()
        if isinstance(found, Server) and found.process is not None:
            found.process.close()


_running: dict[int, Server | Missing] = {}


def _missing_or_running(major: int) -> Server | Missing:
    named = os.environ.get(f"PENSTOCK_TEST_PG{major}")
    if named:
        return Server(major, named)
    try:
        return _start(major, SHARED, fsync=False)  # Nobody crashes the shared ones.
    except Missing as missing:
        return missing


def _start(major: int, settings: Mapping[str, str], *, fsync: bool) -> Server:
    installed = Path(f"/usr/lib/postgresql/{major}/bin")
    if major not in FOLDERS and not (installed / "postgres").exists():
        raise Missing(f"no Postgres {major}: not in the demo extra, and not in {installed}")
    try:
        process = EmbeddedPostgres(
            major=major,
            password=secrets.token_urlsafe(12),
            fsync=fsync,
            settings=settings,
            bin_folder=None if major in FOLDERS else installed,
        )
        process.__enter__()
    except CdcError as error:
        raise Missing(f"Postgres {major}: {error}") from error
    return Server(major, process.url(), process)
