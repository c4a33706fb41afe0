"""One connection to a target, and the translation of the server's errors by SQLSTATE.

Statements run one by one in autocommit; BEGIN and COMMIT are statements of ours, so that each is where the protocol wants it.
The server's primary message is repeated only for classes in which it names objects; messages about data may quote values, and
details always do (rule R10).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psycopg2
from psycopg2 import errorcodes, extensions

from cdc.errors import CdcError, Unavailable

_SETTINGS = {
    "client_encoding": "UTF8",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "standard_conforming_strings": "on",
    "search_path": "",
    "row_security": "off",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "default_transaction_isolation": "read committed",
    "lc_monetary": "C",
    "xmloption": "content",
    "client_min_messages": "warning",
}
_DATA = ("21", "22", "23", "44", "P0")
_DATA_STATES = frozenset(("42804", "428C9", "42846"))
_AWAY = ("08", "57", "58", "XX")
_BUSY = ("40001", "40P01", "55P03", "55006")
# URLs that a server has let this process in with. No connection left, a pg_hba.conf being edited: such refusals pass.
_accepted: set[str] = set()
_FULL = ("53100", "53200", "53300", "53400", "53000")


class Refused(CdcError):
    """The server refused what a statement holds (SQLSTATE classes 21, 22, 23, 44, P0); the transaction is aborted up to the last
    savepoint. `cause` names state, constraint and column, never a value."""

    def __init__(self, sqlstate: str, cause: str) -> None:
        super().__init__("CDC-TGT-130", cause)
        self.sqlstate, self.cause = sqlstate, cause


class Session:
    """A connection with the settings that our text forms rely on. Not safe for threads.

    Every method raises Unavailable when the connection is lost or the server is busy, Refused for bad data, CdcError else.
    """

    def __init__(self, url: str, application_name: str, lock_timeout_s: float = 30.0) -> None:
        try:
            options: dict[str, Any] = {"connect_timeout": "10"} | extensions.parse_dsn(url)
            self._connection = psycopg2.connect(**(options | {"application_name": application_name}))
            self._connection.autocommit = True
            self._cursor = self._connection.cursor()
        except psycopg2.Error as error:
            raise _no_connection(error, url, again=url in _accepted) from None
        _accepted.add(url)
        settings = _SETTINGS | {"lock_timeout": f"{round(lock_timeout_s * 1000)}ms"}
        self.rows("SELECT " + ", ".join(f"set_config('{name}', '{value}', false)" for name, value in settings.items()))

    @property
    def version(self) -> int:
        """As the server's server_version_num: 160003."""
        return int(self._connection.server_version)

    @property
    def in_transaction(self) -> bool:
        return bool(
            not self._connection.closed
            and self._connection.info.transaction_status != extensions.TRANSACTION_STATUS_IDLE
        )

    def execute(self, statement: str) -> int:
        """Run statements; the rows that the last one affected."""
        try:
            self._cursor.execute(statement)
        except psycopg2.Error as error:
            raise self._translated(error) from None
        return int(self._cursor.rowcount)

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        self.execute(statement)
        return list(self._cursor.fetchall())

    def copy(self, statement: str, lines: Iterable[bytes]) -> int:
        """`COPY … FROM STDIN` of blocks of whole lines, made while the server reads; the number of rows. An error in making
        them is raised as it is: a value that is not understood is no trouble of the connection."""
        reader = _Reader(iter(lines))
        try:
            self._cursor.copy_expert(statement, reader)
        except psycopg2.Error as error:
            raise reader.error or self._translated(error) from None
        return int(self._cursor.rowcount)

    def commit(self) -> None:
        """COMMIT. Raises Unavailable when the outcome is not known: the bookmark tells."""
        try:
            self._cursor.execute("COMMIT")
        except psycopg2.Error as error:
            if self._connection.closed or error.pgcode is None:
                raise Unavailable("CDC-TGT-116", "the connection was lost at COMMIT") from None
            raise self._translated(error) from None
        # An aborted transaction answers COMMIT with ROLLBACK, and no error.
        assert self._cursor.statusmessage == "COMMIT", self._cursor.statusmessage

    def close(self) -> None:
        self._connection.close()

    def _translated(self, error: psycopg2.Error) -> CdcError:
        return translated(error, bool(self._connection.closed))


class _Reader:
    """A file of blocks: psycopg2 takes what `read` gives, whatever size it asked for, and stops at the first empty one."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self.error: Exception | None = None

    def read(self, _size: int = -1) -> bytes:
        try:
            return next((block for block in self._blocks if block), b"")
        except Exception as error:
            self.error = error  # psycopg2 makes a cancelled query of it
            raise


def translated(error: psycopg2.Error, closed: bool = False) -> CdcError:
    """A driver's error as ours."""
    state = error.pgcode
    if state is None or closed:
        return Unavailable("CDC-TGT-101", "the connection was lost")
    name = state_name(state)
    if state.startswith(_DATA) or state in _DATA_STATES:
        return Refused(state, _cause(error.diag, state))
    message = f"{name}: {' '.join((error.diag.message_primary or '').split())}"
    if state in _BUSY:
        return Unavailable("CDC-TGT-115", message)
    if state in _FULL:
        return Unavailable("CDC-TGT-106", message)
    if state.startswith(_AWAY):
        return Unavailable("CDC-TGT-101", message)
    if state == "42501":
        return CdcError("CDC-TGT-103", message)
    if state == "25006":
        return CdcError("CDC-TGT-104", message)
    return CdcError("CDC-TGT-140", message)


def state_name(state: str) -> str:
    """`23505 unique_violation`."""
    try:
        return f"{state} {errorcodes.lookup(state).lower()}"
    except KeyError:
        return state


def _cause(diag: Any, state: str) -> str:
    parts = [f"SQLSTATE {state_name(state)}"]
    parts += [f"constraint {diag.constraint_name}"] if diag.constraint_name else []
    parts += [f"column {diag.column_name}"] if diag.column_name else []
    parts += [f"type {diag.datatype_name}"] if diag.datatype_name else []
    return ", ".join(parts)


def _no_connection(error: psycopg2.Error, url: str, *, again: bool) -> CdcError:
    """libpq keeps no SQLSTATE of a refused connection, so the server is asked whether it takes any at all."""
    from psycopg import pq

    message = " ".join(str(error).split()) or "no connection"
    if isinstance(error, psycopg2.ProgrammingError):  # the URL itself, which may hold a password
        return CdcError("CDC-TGT-102", "the URL is not one that libpq understands")
    ping: Callable[[bytes], int] = pq.PGconn.ping
    if ping(url.encode()) == pq.Ping.OK:
        return (Unavailable if again else CdcError)("CDC-TGT-102", message)
    return Unavailable("CDC-TGT-101", message)
