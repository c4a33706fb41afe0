"""Connections to the source: how they are made, what they set, and how their failures become ours.

One driver for SQL, COPY and the stream: `psycopg.pq`, libpq as it is. A statement is sent, then awaited on the socket, with
`idle` called meanwhile: so feedback to the walsender goes on while anything else waits.

The invariant: every session, the walsender's included, runs with the same explicit settings (protocol D10), so that the same
row has one text form and no row is silently left out.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from cdc.errors import CdcError, Unavailable

Row = tuple[str | None, ...]
T = TypeVar("T")
IDLE_S = 1.0

# `row_security=off` turns a silently shortened read into an error.
SETTINGS: Mapping[str, str] = {
    "client_encoding": "UTF8",
    "standard_conforming_strings": "on",
    "search_path": "",
    "row_security": "off",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "xmloption": "content",
    "lc_monetary": "C",
    "lc_numeric": "C",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
    "default_transaction_read_only": "off",
    "synchronous_commit": "on",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}

# URLs that a server has let this process in with. No connection left, a pg_hba.conf being edited: such refusals pass.
_accepted: set[str] = set()

# Connection, resources, operator intervention, the server's own I/O; not a file that is missing (58P01): that stays so.
_AWAY_CLASSES = ("08", "53", "57P", "58000", "58030")


# An internal error. In what we ask for it comes of a catalog that changes at the same moment ("could not map filenumber … to relation
# OID" beside a TRUNCATE, "could not open relation with OID" beside a DROP) and passes; XX001 and XX002, damaged data, do not.
INTERNAL = "XX000"


class SqlFailed(CdcError):
    """The server refused a statement; `sqlstate` says why, for the few callers that expect it."""

    def __init__(self, code: str, detail: str, sqlstate: str, where: str | None = None) -> None:
        super().__init__(code, detail, where=where)
        self.sqlstate = sqlstate


def broken(error: psycopg.Error) -> Unavailable:
    """The error for a failure inside libpq."""
    return Unavailable("CDC-PG-101", f"the connection to the source broke: {_one_line(str(error))}")


def failure(sqlstate: str, doing: str, message: str) -> CdcError:
    """The error for an SQLSTATE; "" when the connection broke before the server could answer."""
    detail = f"{doing}: {message} (SQLSTATE {sqlstate or 'none'})"
    if not sqlstate or sqlstate == INTERNAL or sqlstate.startswith(_AWAY_CLASSES):
        return Unavailable("CDC-PG-101", detail)
    if sqlstate == "42501":
        return SqlFailed("CDC-PG-104", detail, sqlstate)
    return SqlFailed("CDC-PG-199", detail, sqlstate)


def conninfo(url: str, **more: str | int) -> str:
    """libpq's connection string: all of `url` (TLS, service, options …) and `more`, which wins. Raises CDC-PG-103."""
    try:
        given = conninfo_to_dict(url)
        defaults: dict[str, str | int] = {"connect_timeout": 10, "keepalives_idle": 30, "tcp_user_timeout": 60_000}
        return make_conninfo("", **{**defaults, **{k: v for k, v in given.items() if v is not None}, **more})
    except psycopg.Error:
        # libpq's message quotes the URL, password included.
        raise CdcError("CDC-PG-103", "libpq cannot parse the source's URL") from None


class Session:
    """One connection. `application` is what the server shows for it. Raises Unavailable when the server is away, CdcError when
    it is there and refuses, and Unavailable again when it refuses what it took before from this process; CDC-PG-117 when a
    pooler answers in its place, which hands out keys of its own for cancelling."""

    def __init__(self, url: str, application: str, *, replication: bool = False) -> None:
        more: dict[str, str] = {"application_name": application, "client_encoding": "UTF8"}
        if replication:
            more["replication"] = "database"
        target = conninfo(url, **more).encode()
        self.idle: Callable[[], None] = _nothing
        self.pg = pq.PGconn.connect(target)
        self.pg.notice_handler = None
        if self.pg.status != pq.ConnStatus.OK:
            raise _no_connection(self.pg, target, again=url in _accepted)
        _accepted.add(url)
        self.server_version = self.pg.server_version
        self.settings({**SETTINGS, "transaction_timeout": "0"} if self.server_version >= 170000 else SETTINGS)
        if self.run("SELECT pg_catalog.pg_backend_pid()")[0][0] != str(self.pg.backend_pid):
            self.close()
            detail = "the connection goes through a pooler: what answers is another process than the one that let us in"
            raise CdcError("CDC-PG-117", detail)

    def settings(self, values: Mapping[str, str]) -> None:
        """SET for the session. Over simple SET statements, since poolers refuse unknown start-up options."""
        for name in values:
            assert name.replace("_", "").isalpha()
        text = "; ".join(f"SET {name} = '{value}'" for name, value in values.items())
        self.run(text)

    def run(self, sql: str, parameters: Sequence[str | int | None] = (), *, doing: str = "a statement") -> list[Row]:
        """Execute and return the rows of the last result, as text. Without parameters `sql` may be several statements."""
        if not parameters:
            self.send(sql)
        else:
            values = [None if item is None else str(item).encode() for item in parameters]
            self.guarded(lambda: self.pg.send_query_params(sql.encode(), values))
        results = list(self._results(doing))
        return _rows(results[-1]) if results else []

    def send(self, sql: str) -> None:
        """Send a statement without waiting for its result."""
        self.guarded(lambda: self.pg.send_query(sql.encode()))

    def copy_out(self, sql: str, doing: str, replication: bool = False) -> None:
        """Send a statement that answers with COPY; `copied` reads it. Raises as `run`."""
        self.send(sql)
        wanted = pq.ExecStatus.COPY_BOTH if replication else pq.ExecStatus.COPY_OUT
        for result in self._results(doing):
            if result.status == wanted:
                return
        raise CdcError("CDC-PG-199", f"{doing}: the server did not answer with COPY")

    def copied(self, doing: str) -> Iterator[bytes]:
        """The messages of a COPY, one row each; after the last one its errors. To stop early call `cancel_copy` instead."""
        get = self.pg.get_copy_data
        while True:
            size, data = self.guarded(lambda: get(1))
            if size > 0:
                yield bytes(data)
            elif size == 0:
                self.wait()
            else:
                break
        self.raise_pending(doing)

    def raise_pending(self, doing: str) -> None:
        """Take the results that follow a COPY, and raise the error among them."""
        for _ in self._results(doing):
            pass

    def cancel_copy(self) -> None:
        """End a COPY that is not wanted further; what has been read is a valid prefix. The transaction is aborted by it."""
        self.guarded(lambda: self.pg.get_cancel().cancel())
        try:
            for _ in self.copied("cancelling a COPY"):
                pass
        except SqlFailed as error:
            if error.sqlstate != "57014":
                raise

    def wait(self, timeout_s: float = IDLE_S) -> bool:
        """Wait for input and take it in; True when there was some. Calls `idle` either way."""
        ready = readable(self.pg.socket, timeout_s)
        if ready:
            self.guarded(self.pg.consume_input)
        self.idle()
        return ready

    def pause(self, seconds: float) -> None:
        """Let time pass, for the waits that a protocol prescribes; `idle` is called."""
        time.sleep(seconds)
        self.idle()

    @property
    def in_transaction(self) -> bool:
        return self.pg.transaction_status != pq.TransactionStatus.IDLE

    @property
    def alive(self) -> bool:
        return bool(self.pg.status == pq.ConnStatus.OK)

    def close(self) -> None:
        self.pg.finish()

    def guarded(self, call: Callable[[], T]) -> T:
        """libpq's own failures mean a broken connection: the server's answers come as results."""
        try:
            return call()
        except psycopg.Error as error:
            raise broken(error) from None

    def _results(self, doing: str) -> Iterator[pq.abc.PGresult]:
        """The results of what was sent, until COPY begins. The first failure is raised once all of them are in."""
        failed: CdcError | None = None
        while True:
            while self.guarded(self.pg.is_busy):
                self.wait()
            result = self.pg.get_result()
            if result is None:
                break
            if result.status == pq.ExecStatus.FATAL_ERROR:
                failed = failed or _failure_of(result, doing)
                if self.pg.status != pq.ConnStatus.OK:
                    break
                continue
            yield result
            if result.status in _COPYING:
                return
        if failed:
            raise failed


_COPYING = (pq.ExecStatus.COPY_OUT, pq.ExecStatus.COPY_BOTH)


def _nothing() -> None:
    return


def readable(socket: int, timeout_s: float) -> bool:
    """Wait until the socket has input."""
    poll = select.poll()  # not select(): it fails above 1,024 descriptors
    poll.register(socket, select.POLLIN)
    return bool(poll.poll(max(0, int(timeout_s * 1000))))


def _rows(result: pq.abc.PGresult) -> list[Row]:
    columns = range(result.nfields)
    return [tuple(_text(result.get_value(row, column)) for column in columns) for row in range(result.ntuples)]


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _failure_of(result: pq.abc.PGresult, doing: str) -> CdcError:
    def field(which: pq.DiagnosticField) -> str:
        return (result.error_field(which) or b"").decode(errors="replace")

    # The primary message alone: details quote rows (rule R10).
    return failure(
        field(pq.DiagnosticField.SQLSTATE), doing, _one_line(field(pq.DiagnosticField.MESSAGE_PRIMARY) or "no answer")
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _no_connection(pg: pq.abc.PGconn, target: bytes, *, again: bool) -> CdcError:
    """libpq keeps no SQLSTATE of a refused connection, so the server is asked a second time whether it takes any at all."""
    message = _one_line(pg.error_message.decode(errors="replace"))
    if wanted := _without_a_primary(target):
        return Unavailable("CDC-PG-113", f"no host of the URL is {wanted} now: {message}")
    if pg.needs_password:
        return CdcError("CDC-PG-102", "the server asks for a password and the URL has none")
    if pq.PGconn.ping(target) == pq.Ping.OK:
        return (Unavailable if again else CdcError)("CDC-PG-102", message)
    return Unavailable("CDC-PG-101", message)


def _without_a_primary(target: bytes) -> str | None:
    """The kind of server that the URL asks for, when there are servers and none of this kind."""
    asked = {name: value for name, value in conninfo_to_dict(target.decode()).items() if value is not None}
    wanted = str(asked.get("target_session_attrs", "any"))
    if wanted == "any":
        return None
    any_server = pq.PGconn.connect(make_conninfo("", **{**asked, "target_session_attrs": "any"}).encode())
    reached = any_server.status == pq.ConnStatus.OK
    any_server.finish()
    return wanted if reached else None
