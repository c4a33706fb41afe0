"""What the server keeps for our slot, how fast its log grows, and what ends the keeping. Reads the catalog only.

The invariant: a figure that the server does not tell is None, never 0: no limit, no rate and no slot are three different things.
"""

from __future__ import annotations

from typing import Any

from cdc.postgres import blockers
from cdc.postgres.session import Session, SqlFailed

Json = Any
RATE_OVER_MIN_S = 30.0  # right after a checkpoint its own writes would be most of what is measured

# The row's JSON, since older servers have no such columns: `inactive_since` is 17's, the timeout 18's.
_SLOT = """
SELECT pg_catalog.pg_current_wal_flush_lsn(), confirmed_flush_lsn, active, wal_status,
       pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_flush_lsn(), restart_lsn)::int8,
       pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_flush_lsn(), confirmed_flush_lsn)::int8,
       safe_wal_size,
       (SELECT pg_catalog.pg_size_bytes(setting || unit) FROM pg_catalog.pg_settings
        WHERE name = 'max_slot_wal_keep_size' AND setting <> '-1'),
       (SELECT extract(epoch FROM (to_jsonb(s)->>'inactive_since')::timestamptz + (setting || unit)::interval - now())
        FROM pg_catalog.pg_settings WHERE name = 'idle_replication_slot_timeout' AND setting <> '0')
FROM pg_catalog.pg_replication_slots AS s WHERE slot_name = $1
"""

_GROWTH = """
SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_flush_lsn(), c.redo_lsn),
       extract(epoch FROM clock_timestamp() - c.checkpoint_time),
       w.wal_bytes, extract(epoch FROM clock_timestamp() - w.stats_reset)
FROM pg_catalog.pg_control_checkpoint() AS c, pg_catalog.pg_stat_wal AS w
"""


def status(session: Session, name: str) -> dict[str, Json]:
    """What `Source.status` says of the slot `name`: places, bytes, and the transactions that keep a slot from moving on."""
    rows = session.run(_SLOT, [name], doing="looking at the slot")
    found: dict[str, Json] = {"slot": name, "exists": bool(rows), "blockers": blockers.running(session)}
    if not rows:
        return found
    head, confirmed, active, wal_status, retained, behind, safe, limit, idle_left = rows[0]
    found |= {"head": head, "confirmed": confirmed, "active": active == "t", "wal_status": wal_status}
    numbers = {"retained_bytes": retained, "unconfirmed_bytes": behind, "safe_bytes": safe, "limit_bytes": limit}
    found |= {key: None if value is None else int(value) for key, value in numbers.items()}
    found["idle_left_s"] = None if idle_left is None or found["active"] else float(idle_left)
    rate, over_s = growth(session)
    return found | {"wal_bytes_per_s": rate, "wal_measured_s": over_s}


def growth(session: Session) -> tuple[float | None, float | None]:
    """Bytes per second that the server writes to its log, and over how long that was measured: since its last checkpoint began,
    or, when that is only moments ago, since its statistics begin. (None, None) where it tells neither."""
    try:
        rows = session.run(_GROWTH, doing="measuring the growth of the log")
    except SqlFailed:  # a managed service may keep these to itself
        return None, None
    numbers = [None if value is None else float(value) for value in rows[0]]
    for size, seconds in (numbers[:2], numbers[2:]):
        if size is not None and seconds is not None and seconds >= RATE_OVER_MIN_S:
            return size / seconds, seconds
    return None, None
