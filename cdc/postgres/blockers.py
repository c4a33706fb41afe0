"""Who is in the way: open transactions and holders of locks, each in words with the statement that ends it.

The invariant (R10): pid, application, age and state, never the text of a query: queries hold values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from cdc.journal import journal
from cdc.postgres import sql
from cdc.postgres.session import Session
from cdc.table import TableId

_log = journal("cdc.postgres")

SAID_AFTER_S = 5.0  # what passes by itself in a moment is nobody's concern
SAID_EVERY_S = 30.0

_AGAINST_PUBLISHING = ("ExclusiveLock", "ShareRowExclusiveLock", "ShareLock", "ShareUpdateExclusiveLock")

# State and times of other roles' sessions are shown to members of pg_read_all_stats alone.
_SESSION = """
'pid ' || a.pid || ' (' || coalesce(nullif(a.application_name, ''), 'unnamed') || ') since ' ||
coalesce(to_char(a.xact_start, 'YYYY-MM-DD HH24:MI:SS') || ' (' || date_trunc('second', now() - a.xact_start) || ' ago)',
         'a time that pg_read_all_stats would show') ||
CASE WHEN a.state LIKE 'idle in transaction%' THEN ', idle in it for ' || date_trunc('second', now() - a.state_change) ELSE '' END ||
', which SELECT pg_terminate_backend(' || a.pid || ') ends'
"""

_PREPARED = """
'prepared transaction ' || p.gid || ' since ' || to_char(p.prepared, 'YYYY-MM-DD HH24:MI:SS') || ' (' ||
date_trunc('second', now() - p.prepared) || ' ago), which ROLLBACK PREPARED ' || pg_catalog.quote_literal(p.gid) || ' ends'
"""


def running(session: Session, xids: Iterable[int] | None = None, older_than: str = "0 s") -> list[str]:
    """The open transactions: those of `xids`, or all that have written; those that are older than an interval, among which one of
    hidden age is not. Prepared ones and their names included."""
    wanted = None if xids is None else {xid & 0xFFFFFFFF for xid in xids}
    rows = session.run(
        f"""SELECT a.backend_xid::text, {_SESSION} FROM pg_catalog.pg_stat_activity a
            WHERE a.backend_xid IS NOT NULL AND ($1 = '0 s' OR a.xact_start < now() - $1::interval)
            UNION ALL SELECT p.transaction::text, {_PREPARED} FROM pg_catalog.pg_prepared_xacts p
            WHERE p.prepared <= now() - $1::interval ORDER BY 1""",
        [older_than],
    )
    return [row[1] or "" for row in rows if wanted is None or int(row[0] or 0) in wanted]


def locking(
    session: Session, tables: Iterable[TableId], *, publishing: bool = False, older_than: str = "0 s"
) -> list[str]:
    """Who holds a lock, or waits for one, that keeps these tables or their partitions from being read, or from being put into a
    publication; in a transaction that is older than an interval, or of hidden age. Takes no lock itself, which pg_partition_tree
    would."""
    modes = ["AccessExclusiveLock", *(_AGAINST_PUBLISHING if publishing else ())]
    names = sql.text_array(sql.qualified(table) for table in tables)
    rows = session.run(
        f"""WITH RECURSIVE read (oid) AS (
                SELECT pg_catalog.to_regclass(name)::oid FROM unnest($1::text[]) AS name
                UNION SELECT i.inhrelid FROM read JOIN pg_catalog.pg_inherits i ON i.inhparent = read.oid),
            kept AS (
                SELECT l.pid, l.virtualtransaction FROM pg_catalog.pg_locks l JOIN read ON read.oid = l.relation
                WHERE l.locktype = 'relation' AND l.mode = ANY ($2::text[])
                    AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))
            SELECT {_SESSION} FROM pg_catalog.pg_stat_activity a WHERE a.pid IN (SELECT pid FROM kept)
                AND coalesce(a.xact_start <= now() - $3::interval, true)
            UNION ALL
            SELECT {_PREPARED} FROM pg_catalog.pg_prepared_xacts p
            WHERE p.transaction::text IN (
                SELECT l.transactionid::text FROM pg_catalog.pg_locks l JOIN kept USING (virtualtransaction)
                WHERE kept.pid IS NULL AND l.pid IS NULL AND l.locktype = 'transactionid') ORDER BY 1""",
        [names, sql.text_array(modes), older_than],
        doing="looking for locks",
    )
    return [row[0] or "" for row in rows]


class Said:
    """Log lines about waits: after SAID_AFTER_S, and from then on every SAID_EVERY_S."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next: dict[str, float] = {}

    def waits(self, what: str, reason: Callable[[], str]) -> None:
        """`what` waits; `reason` is asked when it is time for a line."""
        now = self._clock()
        if now >= self._next.setdefault(what, now + SAID_AFTER_S):
            self._next[what] = now + SAID_EVERY_S
            _log.warning("waiting", what=what, reason=reason())

    def goes_on(self, what: str) -> None:
        """`what` waits no more."""
        self._next.pop(what, None)
