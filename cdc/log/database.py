"""The SQLite files of the embedded log: how they are made, opened and checked, and what their errors mean.

One invariant: a file that has its name is complete, durable and says whose it is. It is made under another name and linked.
No file is ever opened but by SQLite: any `open`/`close` of one in the writer's process would drop its POSIX locks, another process
would take the writer for dead and delete its write-ahead log, and synced commits with it (protocol A7).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from cdc.errors import CdcError, Unavailable
from cdc.log.checkpoint import random_id

MAGIC = 0x50656E73  # PRAGMA application_id: "Pens"
FORMAT = 2  # PRAGMA user_version
PAGE_BYTES = 8192  # larger ones append large frames a little faster, and cost each small append several times its bytes
AUTOCHECKPOINT_BYTES = 32 << 20  # of write-ahead log; measured: 16 MiB took up to twice the time per row, 64 no less
BUSY_S = 10.0  # others hold a lock for milliseconds; longer means that one is stuck

_UNAVAILABLE = {
    sqlite3.SQLITE_FULL: "CDC-LOG-302",
    sqlite3.SQLITE_IOERR: "CDC-LOG-303",
    sqlite3.SQLITE_NOMEM: "CDC-LOG-303",
    sqlite3.SQLITE_CANTOPEN: "CDC-LOG-303",
    sqlite3.SQLITE_BUSY: "CDC-LOG-304",
    sqlite3.SQLITE_LOCKED: "CDC-LOG-304",
    sqlite3.SQLITE_PROTOCOL: "CDC-LOG-304",
}
_STOPS = {
    sqlite3.SQLITE_NOTADB: "CDC-LOG-102",
    sqlite3.SQLITE_READONLY: "CDC-LOG-305",
    sqlite3.SQLITE_PERM: "CDC-LOG-305",
    sqlite3.SQLITE_AUTH: "CDC-LOG-305",
}


def coded(error: sqlite3.Error, path: Path) -> CdcError:
    """The meaning of SQLite's result code. Errors without one are bugs of ours and raised as they are."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is None:
        raise error
    detail, primary = f"SQLite says {error.sqlite_errorname}", code & 0xFF
    if code == sqlite3.SQLITE_READONLY_DBMOVED:
        return CdcError("CDC-LOG-109", detail, where=str(path))
    if primary == sqlite3.SQLITE_CANTOPEN and not path.exists():
        return CdcError("CDC-LOG-104", "the file does not exist", where=str(path))
    if primary == sqlite3.SQLITE_CANTOPEN and not os.access(path, os.R_OK | os.W_OK):
        return CdcError("CDC-LOG-305", detail, where=str(path))
    if primary in _UNAVAILABLE:
        return Unavailable(_UNAVAILABLE[primary], detail, where=str(path))
    return CdcError(_STOPS.get(primary, "CDC-LOG-105"), detail, where=str(path))


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Errors of SQLite on this file become coded errors."""
    try:
        yield
    except sqlite3.Error as error:
        raise coded(error, path) from error


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    # A status request may come from another thread than the one that appends; SQLite itself serialises calls.
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_S,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=64,
    )


def open_file(path: Path, kind: str, log_id: str | None, synchronous: str = "FULL") -> sqlite3.Connection:
    """An existing file of this log (of any, if `log_id` is None). Raises a coded error when it is anything else."""
    with sqlite_errors(path):
        connection = _connect(path, "rw")
        try:
            _verify(connection, path, kind, log_id)
            connection.execute(f"PRAGMA synchronous={synchronous}")
            connection.execute(f"PRAGMA wal_autocheckpoint={AUTOCHECKPOINT_BYTES // PAGE_BYTES}")
            connection.execute(f"PRAGMA journal_size_limit={2 * AUTOCHECKPOINT_BYTES}")
        except BaseException:
            connection.close()
            raise
    return connection


def _verify(connection: sqlite3.Connection, path: Path, kind: str, log_id: str | None) -> None:
    magic, version = (connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    if magic != MAGIC:
        raise CdcError("CDC-LOG-102", f"its magic is {magic:#x}, not {MAGIC:#x}", where=str(path))
    if version != FORMAT:
        raise CdcError("CDC-LOG-103", f"format {version}; this version knows {FORMAT}", where=str(path))
    found_id, found_kind = connection.execute("SELECT id, kind FROM log").fetchone()
    if found_kind != kind or (log_id is not None and found_id != log_id):
        raise CdcError("CDC-LOG-102", f"it is {found_kind} of log {found_id}, not {kind} of {log_id}", where=str(path))


def create_file(path: Path, kind: str, log_id: str, fill: Callable[[sqlite3.Connection], object]) -> bool:
    """Make a file whole, then give it its name. False if another process has made it meanwhile; theirs stands.

    `fill` makes its tables, in the transaction that also writes magic, format and identity.
    """
    temporary = path.with_name(f"{random_id()}.tmp")
    with sqlite_errors(temporary):
        try:
            with closing(_connect(temporary, "rwc")) as connection:
                connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
                connection.execute("PRAGMA journal_mode=WAL")
                temporary.chmod(0o600)  # the companions that SQLite makes later inherit it
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(f"PRAGMA application_id={MAGIC}")
                connection.execute(f"PRAGMA user_version={FORMAT}")
                connection.execute("CREATE TABLE log (id TEXT NOT NULL, kind TEXT NOT NULL)")
                connection.execute("INSERT INTO log VALUES (?, ?)", (log_id, kind))
                fill(connection)
                connection.execute("COMMIT")
            give_to_owner_of(path.parent, temporary)
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            remove_file(temporary)
    sync_folder(path.parent)
    return True


def remove_file(path: Path) -> None:
    """Unlink a file and SQLite's companions; the file first, so that nobody opens it and makes them again."""
    for name in (path, *companions(path)):
        name.unlink(missing_ok=True)


def companions(path: Path) -> tuple[Path, Path]:
    return path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")


def give_to_owner_of(folder: Path, path: Path) -> None:
    """As root, in another user's folder: what we make is theirs, or their services could not open it."""
    if os.geteuid() == 0 and (owner := folder.stat()).st_uid != 0:
        os.chown(path, owner.st_uid, owner.st_gid)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
