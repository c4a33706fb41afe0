"""A private Postgres: a whole server in one folder, on a free loopback port, that dies with the process that started it.

Invariant: whatever happens to us, kill -9 included, no server stays behind. It gets SIGQUIT from the kernel when the thread that
started it ends (Linux), and is stopped at exit otherwise; so start it from a thread that lives as long as the server shall.
It listens on 127.0.0.1 only and has no socket in the file system, whose path could be too long.
"""

from __future__ import annotations

import atexit
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

from cdc.demo import launch
from cdc.demo.binaries import ServerUser, cached, server_user
from cdc.errors import CdcError

Mode = Literal["smart", "fast", "immediate"]
SIGNALS: dict[Mode, signal.Signals] = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

SETTINGS: Mapping[str, str] = {
    "wal_level": "logical",
    "max_connections": "100",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_prepared_transactions": "20",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "lc_messages": "C",
}
"""What every server of ours has, unless its `settings` say otherwise."""

PORTS = range(20_000, 32_000)
"""Below the range that the kernel gives to outgoing connections, so that none of those takes the port during a restart."""

START_ATTEMPTS = 5


class EmbeddedPostgres:
    """One server: `with EmbeddedPostgres() as server: connect(server.url())`.

    `folder` holds `data` and `server.log`; an existing one is used as it is, a temporary one (None) is removed by `close`.
    `port` 0 is a free one, the first of `ports` or any, chosen at the first start and kept over restarts. `password` None
    means that everybody on this machine may connect as anybody, which is for tests; otherwise it is the superuser's, and scram
    is asked for.
    `fsync` off is for tests that do not crash the machine; a killed server loses nothing by it.
    `bin_folder` replaces the embedded programs, of `major`, by installed ones.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        major: int = 16,
        port: int = 0,
        ports: range | None = None,
        password: str | None = None,
        fsync: bool = True,
        settings: Mapping[str, str] | None = None,
        bin_folder: Path | None = None,
    ) -> None:
        self.major, self.port, self.password = major, port, password
        self._ports = ports
        self.settings = {**SETTINGS, "fsync": "on" if fsync else "off", **(settings or {})}
        self._user = server_user()
        self._bin = bin_folder or cached(major, self._user)
        self._temporary = folder is None
        self.folder = _temporary_folder(self._user) if folder is None else _given_folder(folder, self._user)
        self.data, self.log = self.folder / "data", self.folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        atexit.register(self.close)

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def bin(self) -> Path:
        """The folder with psql, pgbench, pg_recvlogical and the others of this server's version."""
        return self._bin

    def url(self, database: str = "postgres", user: str = "postgres", password: str | None = None) -> str:
        """A libpq URL, escaped; `password` defaults to the superuser's for the superuser."""
        secret = self.password if password is None and user == "postgres" else password
        login = quote(user, safe="") + (":" + quote(secret, safe="") if secret else "")
        return f"postgresql://{login}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def start(self, timeout_s: float = 60.0) -> None:
        """Create the data folder if it is new, start the server and wait until it accepts connections.

        A port taken by somebody else meanwhile is given up for another one, unless it was asked for or is already known to
        others: then it is waited for. Raises CDC-DEMO-102 with the end of the server's log."""
        deadline = time.monotonic() + timeout_s
        if not self.data.exists():
            self._initialise(timeout_s)
        known = self.port != 0
        for attempt in range(START_ATTEMPTS):
            if not known:
                self.port = _free_port(self._ports)
            if self._launch(deadline):
                return
            if known:
                time.sleep(
                    0.2 * (attempt + 1)
                )  # The port, or a killed predecessor's shared memory, is freed in a moment.
        raise CdcError(
            "CDC-DEMO-102", f"Postgres {self.major} on port {self.port}:\n{self._log_tail()}", where=str(self.folder)
        )

    def stop(self, mode: Mode = "fast", timeout_s: float = 30.0) -> None:
        """Shut the server down and wait for its end: `smart` waits for its clients, `fast` ends them, `immediate` is a crash
        that recovers at the next start. What does not end in time is ended more roughly."""
        process = self._process
        if process is None:
            return
        modes: list[Mode] = [mode, "immediate"]
        for each in modes:
            process.send_signal(SIGNALS[each])
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout_s)
                break
        else:
            _kill_tree(process)
        self._process = None  # Only now: interrupted while we wait, we are asked again at exit.

    def kill9(self) -> None:
        """Kill -9 the postmaster and every process of it, as a power cut would; `start` recovers from the write-ahead log."""
        if self._process is not None:
            _kill_tree(self._process)
            self._process = None

    def restart(self, mode: Mode = "fast") -> None:
        """Stop and start on the same port, with the present `settings`."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stop the server and remove its folder if that is a temporary one. Does nothing the second time, or in a forked child."""
        if os.getpid() != self._owner:
            return
        atexit.unregister(self.close)
        self.stop()
        if self._temporary:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _initialise(self, timeout_s: float) -> None:
        """`initdb` beside the data folder, which is therefore whole as soon as it is there; UTF-8, in byte order."""
        making = self.folder / f".data-{secrets.token_hex(8)}"
        secret = self.folder / f".secret-{secrets.token_hex(8)}"
        secret.touch(mode=0o600)
        secret.write_text(self.password or "none needed")
        os.chown(secret, self._user.uid, self._user.gid)
        auth = "trust" if self.password is None else "scram-sha-256"
        command = [
            "initdb",
            "-D",
            str(making),
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "-A",
            auth,
            "--pwfile",
            str(secret),
            "--no-sync",
        ]
        try:
            for locale in ("C.UTF-8", "C"):  # The C library of some machines has no C.UTF-8.
                done = subprocess.run(
                    self._command([*command, f"--locale={locale}"], signal.SIGKILL),
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    timeout=timeout_s,
                    check=False,
                    cwd="/",
                    env=_environment(),
                )
                if done.returncode == 0:
                    making.rename(self.data)
                    return
            raise CdcError(
                "CDC-DEMO-102", f"initdb: {done.stderr.decode(errors='replace')[-2000:]}", where=str(self.folder)
            )
        except subprocess.TimeoutExpired:
            raise CdcError(
                "CDC-DEMO-102", f"initdb took longer than {timeout_s:.0f} s", where=str(self.folder)
            ) from None
        finally:
            secret.unlink()
            shutil.rmtree(making, ignore_errors=True)

    def _launch(self, deadline: float) -> bool:
        """One attempt: true when the server is ready, false when it ended by itself. Raises when the time is up."""
        options = [part for name, value in self.settings.items() for part in ("-c", f"{name}={value}")]
        command = ["postgres", "-D", str(self.data), "-p", str(self.port), *options]
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C at the terminal is for us, who then stop the server in good order.
            self._process = process = subprocess.Popen(
                self._command(command, signal.SIGQUIT),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env=_environment(),
            )
        while process.poll() is None:
            if self._is_ready(process.pid):
                return True
            if time.monotonic() > deadline:
                self.kill9()
                raise CdcError(
                    "CDC-DEMO-102",
                    f"not ready in time; the end of its log:\n{self._log_tail()}",
                    where=str(self.folder),
                )
            time.sleep(0.02)
        self._process = None
        return False

    def _is_ready(self, pid: int) -> bool:
        """What pg_ctl looks at: the pid and the state that the postmaster writes into its lock file. So a stranger's server on
        the same port is never taken for ours."""
        try:
            lines = (self.data / "postmaster.pid").read_text().split("\n")
        except OSError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _command(self, command: Sequence[str], at_our_end: signal.Signals) -> list[str]:
        program, *arguments = command
        parent, user = str(os.getpid()), self._user
        launcher = [
            sys.executable,
            "-I",
            "-S",
            launch.__file__,
            parent,
            str(user.uid),
            str(user.gid),
            str(int(at_our_end)),
        ]
        return [*launcher, str(self._bin / program), *arguments]

    def _log_tail(self, bytes_max: int = 2000) -> str:
        try:
            return self.log.read_bytes()[-bytes_max:].decode(errors="replace").strip()
        except OSError as error:
            return f"(no log: {error.strerror})"


def _environment() -> dict[str, str]:
    """Nothing of the caller's PG* variables, locale or time zone reaches the server."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def base_folder(user: ServerUser) -> Path:
    """Where temporary folders are made: where the usual place is closed to the servers' user, in /tmp or /var/tmp instead.
    Raises CDC-DEMO-103."""
    for base in dict.fromkeys((Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"))):  # noqa: S108 - mkdtemp is safe there
        if base.is_dir() and user.may_enter(base) and os.access(base, os.W_OK):
            return base
    raise CdcError("CDC-DEMO-103", f"no temporary folder that uid {user.uid} may enter")


def _temporary_folder(user: ServerUser) -> Path:
    """A new folder of the server's user."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-postgres-", dir=base_folder(user)))
    os.chown(folder, user.uid, user.gid)
    return folder


def _given_folder(folder: Path, user: ServerUser) -> Path:
    folder = folder.absolute()
    if not user.may_enter(folder.parent):
        raise CdcError(
            "CDC-DEMO-103", f"uid {user.uid}, which runs the server, may not enter it", where=str(folder.parent)
        )
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True)
        os.chown(folder, user.uid, user.gid)
    return folder


def _free_port(ports: range | None) -> int:
    """A port that nobody listens on now, the first of `ports` or any; somebody may before the server does, so the caller tries
    again."""
    for port in random.sample(PORTS, 100) if ports is None else ports:
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # As Postgres does: a port in TIME_WAIT is free.
            probe.bind(("127.0.0.1", port))
            return port
    raise CdcError("CDC-DEMO-102", "no free port on 127.0.0.1")


def _kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill the postmaster first, so that it starts nothing more, then what it had started; returns when it is reaped."""
    children = []
    with suppress(OSError):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    for child in children:
        with suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)
    process.wait()
