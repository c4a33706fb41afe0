"""A real PgBouncer in front of a test's database."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tests.servers import Missing


@contextmanager
def pooled(url: str, mode: str, timeout_s: float = 10.0) -> Iterator[str]:
    """The URL of the same database and role through a PgBouncer of this pooling mode. Raises Missing."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise Missing("pgbouncer is not installed")
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.password
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as made:
        folder = Path(made)
        user = unquote(parts.username or "")
        (folder / "users").write_text(f'"{user}" "{unquote(parts.password)}"\n')
        (folder / "pgbouncer.ini").write_text(
            f"""[databases]
* = host={parts.hostname} port={parts.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = plain
auth_file = {folder / "users"}
pool_mode = {mode}
"""
        )
        login = None
        if os.geteuid() == 0:  # it does not run as root
            login = "nobody"
            for path in (folder, *folder.iterdir()):
                os.chown(path, pwd.getpwnam(login).pw_uid, -1)
        with (folder / "out").open("wb") as out:
            process = subprocess.Popen([program, str(folder / "pgbouncer.ini")], user=login, stdout=out, stderr=out)
        try:
            deadline = time.monotonic() + timeout_s
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError((folder / "out").read_text())
                time.sleep(0.05)
            login_part = parts.netloc.rpartition("@")[0]
            yield parts._replace(netloc=f"{login_part}@127.0.0.1:{port}").geturl()
        finally:
            process.kill()
            process.wait()


def _free_port() -> int:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
