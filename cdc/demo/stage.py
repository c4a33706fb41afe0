"""What the demo plays on: two servers, three databases, the roles of the documentation, and a pipeline file, all in one folder.

The invariant: everything that the demo makes is in its folder or is a child process, and no password is outside the folder.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import psycopg2

from cdc.demo import shop
from cdc.demo.binaries import server_user
from cdc.demo.postgres import EmbeddedPostgres, base_folder
from cdc.postgres.grants import source_grants
from cdc.postgres.sql import ident, literal
from cdc.secrets import register
from cdc.table import TableId
from sinks.postgres.grants import sink_grants

PIPELINE = "demo"
SOURCE, TARGETS = "source", "targets"
MAJORS = {SOURCE: 16, TARGETS: 18}
SETTINGS = {"shared_buffers": "48MB", "max_wal_size": "512MB"}
SERVERS_FILE, PASSWORD_FILE, PIPELINE_FILE, SERVERS_SCRIPT = "servers.json", "pgpass", "demo.yaml", "servers"
REMOVING_S = 10.0


@dataclass(frozen=True, slots=True)
class Target:
    """A sink and where it writes: database, schema, and which tables."""

    name: str
    database: str
    schema: str
    tables: Sequence[str]
    about: str

    def place(self, table: str) -> TableId:
        return TableId(self.schema, table)


REPLICA = Target("replica", "replica", "public", shop.TABLES, "everything, with its constraints")
ANALYTICS = Target(
    "analytics",
    "analytics",
    "mart",
    ("customers", "orders", "order_items", "accounts", "page_views"),
    "a part, in another schema",
)


@dataclass
class Stage:
    """The servers, running. `url` is a superuser's; the services have roles of their own, with the documented grants only."""

    folder: Path
    source: EmbeddedPostgres
    targets: EmbeddedPostgres
    passwords: dict[tuple[EmbeddedPostgres, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for server in (self.source, self.targets):
            assert server.password is not None
            self.passwords[server, "postgres"] = server.password

    @property
    def file(self) -> Path:
        return self.folder / PIPELINE_FILE

    @property
    def source_url(self) -> str:
        return self.source.url("shop")

    @property
    def shop_url(self) -> str:
        """As the application logs in, which owns the tables."""
        return self.source.url("shop", "shop", self.passwords[self.source, "shop"])

    def url(self, target: Target) -> str:
        return self.targets.url(target.database)

    def rows(self) -> int:
        """The rows in the shop."""
        with closing(psycopg2.connect(self.source_url)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT " + " + ".join(f"(SELECT count(*) FROM public.{table})" for table in shop.TABLES))
            return int((cursor.fetchone() or (0,))[0])

    def build(self) -> None:
        """Make databases, roles, the filled shop, and the files. The replica is prepared with tables and constraints, as for a
        migration; the tables in analytics are the sink's to make."""
        for server in (self.source, self.targets):
            self._role(server, "shop", lambda password: [f"CREATE ROLE shop LOGIN PASSWORD {literal(password)}"])
        self._database(self.source, "shop")
        shop.execute(self.shop_url, shop.SCHEMA, shop.ROWS)
        self._role(
            self.source, "cdc", lambda password: source_grants("cdc", password, "shop", ["public"], ["shop"]), "shop"
        )
        self._database(self.targets, REPLICA.database)
        shop.execute(self.targets.url(REPLICA.database, "shop", self.passwords[self.targets, "shop"]), shop.SCHEMA)
        self._database(self.targets, ANALYTICS.database)
        for target, schemas, owners in ((REPLICA, ["public"], ["shop"]), (ANALYTICS, [], [])):
            role, database = f"etl_{target.name}", target.database
            self._role(
                self.targets,
                role,
                lambda password, grant=(role, database, schemas, owners): sink_grants(grant[0], password, *grant[1:]),  # type: ignore[misc]
                database,
            )
        self._write_files()

    def _database(self, server: EmbeddedPostgres, name: str) -> None:
        shop.execute(server.url(), f"CREATE DATABASE {ident(name)} OWNER shop TEMPLATE template0")

    def _role(
        self,
        server: EmbeddedPostgres,
        name: str,
        statements: Callable[[str], Sequence[str]],
        database: str = "postgres",
    ) -> None:
        password = self.passwords[server, name] = new_password()
        shop.execute(server.url(database), *statements(password))

    def _write_files(self) -> None:
        servers = {
            name: {"port": server.port, "password": server.password}
            for name, server in ((SOURCE, self.source), (TARGETS, self.targets))
        }
        lines = [f"127.0.0.1:{server.port}:*:{role}:{word}" for (server, role), word in self.passwords.items()]
        self._write(SERVERS_FILE, json.dumps(servers))
        self._write(PASSWORD_FILE, "\n".join(lines) + "\n")
        self._write(PIPELINE_FILE, self._pipeline())
        databases = {"source": (self.source, "shop")} | {
            target.name: (self.targets, target.database) for target in (REPLICA, ANALYTICS)
        }
        for name, (server, database) in databases.items():
            url = self._login(server, "postgres", database)
            self._write(f"psql-{name}", f'exec {shlex.quote(str(server.bin / "psql"))} {shlex.quote(url)} "$@"\n')
        again = shlex.join([sys.executable, "-P", "-m", "cdc.demo", str(self.folder)])
        self._write(SERVERS_SCRIPT, f"# Starts the demo's two servers again, until Ctrl-C.\nexec {again}\n")

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")

    def _login(self, server: EmbeddedPostgres, role: str, database: str) -> str:
        """A URL whose password is in the file beside the pipeline's."""
        passwords = quote(str(self.folder / PASSWORD_FILE), safe="/")
        return f"postgresql://{role}@127.0.0.1:{server.port}/{database}?passfile={passwords}"

    def _pipeline(self) -> str:
        some = json.dumps([f"public.{table}" for table in ANALYTICS.tables])
        return "\n".join(
            [
                f"# Made by cdc demo. The passwords are in {PASSWORD_FILE}, beside this file.",
                f"pipeline: {PIPELINE}",
                f"source: {json.dumps(self._login(self.source, 'cdc', 'shop'))}",
                'tables: ["public.*"]',
                "log: ./log",
                "load: {rows_max: 2000}        # small, so that there is something to see",
                'server: {bind: "127.0.0.1:0"}  # any free port',
                "sinks:",
                f"  {REPLICA.name}: {json.dumps(self._login(self.targets, 'etl_replica', REPLICA.database))}",
                f"  {ANALYTICS.name}:",
                f"    url: {json.dumps(self._login(self.targets, 'etl_analytics', ANALYTICS.database))}",
                f"    tables: {some}",
                f'    rename: {{"public.(.*)": "{ANALYTICS.schema}.\\\\1"}}',
                "",
            ]
        )


def new_password() -> str:
    """A random one, which no text of ours will show."""
    word = secrets.token_urlsafe(18)
    register([word])
    return word


def new_folder() -> Path:
    """An empty folder for one demo, which nobody but us can read, and the servers' user can pass through."""
    user = server_user()
    folder = Path(tempfile.mkdtemp(prefix="penstock-demo-", dir=base_folder(user)))
    folder.chmod(0o711 if user.is_other else 0o700)
    return folder


def remove(folder: Path) -> None:
    """Remove the folder, and what a process that is just ending still wrote into it meanwhile."""
    deadline = time.monotonic() + REMOVING_S
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > deadline:
            return
        if folder.exists():
            time.sleep(0.05)


def server(folder: Path, name: str, *, password: str, port: int = 0, ports: range | None = None) -> EmbeddedPostgres:
    """One of the demo's servers, new or as it is in the folder; not started."""
    return EmbeddedPostgres(
        folder / name, major=MAJORS[name], password=password, port=port, ports=ports, settings=SETTINGS
    )


@contextmanager
def servers(folder: Path, first_port: int | None, *, in_order: bool) -> Iterator[Stage]:
    """Both servers, new, running until the end; on the first free ports from `first_port` on, or on any. `in_order`: they are
    shut down so that they can start again at once; else in no time, which a folder that is about to go does not mind."""
    ports = None if first_port is None else range(first_port, min(first_port + 100, 65_536))
    with ExitStack() as stack:
        running = [
            stack.enter_context(server(folder, name, password=new_password(), ports=ports))
            for name in (SOURCE, TARGETS)
        ]
        try:
            yield Stage(folder, running[0], running[1])
        finally:
            for one in running:
                one.stop("fast" if in_order else "immediate")


def start_again(folder: Path, stack: ExitStack) -> list[EmbeddedPostgres]:
    """The servers of a folder that `--keep` left, running, on their old ports."""
    kept = json.loads((folder / SERVERS_FILE).read_text(encoding="utf-8"))
    register([known["password"] for known in kept.values()])
    return [stack.enter_context(server(folder, name, **known)) for name, known in kept.items()]


def command() -> str:
    """How the user calls `cdc`."""
    script = Path(sys.executable).with_name("cdc")
    if shutil.which("cdc"):
        return "cdc"
    return str(script) if os.access(script, os.X_OK) else f"{sys.executable} -m cdc"
