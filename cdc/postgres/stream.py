"""The replication connection: START_REPLICATION on libpq as it is, and standby-status messages that are our own.

The invariant (rule R1): no message to the server carries a flush position beyond what `confirmed` was set to. psycopg2's
replication cursor breaks it: it moves the position by itself when a keepalive arrives.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable
from typing import NoReturn

from psycopg import pq

from cdc.errors import CdcError, Unavailable
from cdc.postgres import sql
from cdc.postgres.position import lsn_text
from cdc.postgres.session import IDLE_S, Session, SqlFailed

_STATUS = struct.Struct(">cqqqqB")
_KEEPALIVE = struct.Struct(">xqqB")
PG_EPOCH_US = 946_684_800_000_000
_NO_LSN = 0
BEAT_S = 5.0
# By SQLSTATE: the one object that a stream names is its publication, the one file that it reads is a segment of the server's log.
_STOPS = {"42704": "CDC-PG-142", "58P01": "CDC-PG-123"}


class Stream:
    """A running replication stream. The owner reads with `session.pg.get_copy_data` in its own loop, and calls `beat` often."""

    def __init__(
        self, session: Session, slot: str, start_lsn: int, publications: Iterable[str], *, binary: bool
    ) -> None:
        self.session, self.confirmed, self.received = session, _NO_LSN, start_lsn
        timeout_ms = session.run("SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'")[0][0]
        self._beat_s = min(BEAT_S, int(timeout_ms or 0) / 4000) or BEAT_S  # 0: the server waits for ever
        self._next_beat = time.monotonic() + self._beat_s
        options = {
            "proto_version": "1",
            "publication_names": sql.columns(publications),
            "messages": "true",
            "binary": "true" if binary else "false",
        }
        listed = ", ".join(f"{name} {sql.literal(value)}" for name, value in options.items())
        session.copy_out(
            f"START_REPLICATION SLOT {sql.ident(slot)} LOGICAL {lsn_text(start_lsn)} ({listed})",
            "starting the stream",
            replication=True,
        )
        # A server that is stuck sending to us must not make us stuck sending to it.
        session.pg.nonblocking = 1

    def beat(self) -> None:
        """Tell the server that we are here, when it is time to: by our own clock, whatever arrives or not."""
        if time.monotonic() >= self._next_beat:
            self.report()

    def report(self) -> None:
        """Tell the server what it may forget."""
        self._send(max(self.received, self.confirmed), self.confirmed)

    def keepalive(self, message: bytes | memoryview) -> None:
        """Take in a `k` message, and answer it when it asks for that.

        A server that shuts down waits until its walsender's client has flushed all that was sent, which we never say: the last
        transaction stays unconfirmed. With no flush position in the answer it goes by the written one, and the slot stays.
        """
        end, _, wants_reply = _KEEPALIVE.unpack(message)
        self.received = max(self.received, end)
        if wants_reply:
            self._send(self.received, _NO_LSN)

    def wait(self, timeout_s: float) -> bool:
        """Wait until there is input and take it in; True when there was some."""
        self.beat()
        until = time.monotonic() + timeout_s
        while not self.session.wait(min(IDLE_S, max(0.0, until - time.monotonic()))):
            self.beat()
            if time.monotonic() >= until:
                return False
        return True

    def ended(self) -> NoReturn:
        """The server ended the stream: raise why."""
        try:
            self.session.raise_pending("streaming")
        except SqlFailed as error:
            if error.sqlstate in _STOPS:
                raise CdcError(_STOPS[error.sqlstate], error.detail) from None
            raise
        raise Unavailable("CDC-PG-101", "the server ended the stream")

    def _send(self, written: int, flushed: int) -> None:
        now_us = time.time_ns() // 1000 - PG_EPOCH_US
        pg: pq.abc.PGconn = self.session.pg
        self.session.guarded(lambda: pg.put_copy_data(_STATUS.pack(b"r", written, flushed, flushed, now_us, 0)))
        self.session.guarded(pg.flush)
        self._next_beat = time.monotonic() + self._beat_s

    def close(self) -> None:
        self.session.close()
