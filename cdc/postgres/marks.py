"""Marks: transactional messages of ours, which come back in the stream and vouch for what was read before them (C1, D3).

The invariant: when `commit` returns, nothing that was visible before it can be taken back, by a crash or by the promotion of a
standby that the server is told to wait for.
"""

from __future__ import annotations

import secrets
import time

from cdc.errors import Unavailable
from cdc.postgres import sql
from cdc.postgres.position import Reach, lsn_int, lsn_text
from cdc.postgres.session import Session

STANDBYS_WAIT_S = 10.0
_LOOK_S = 0.05

# Names in the setting may be quoted. A slot that does not exist or is no physical one is waited for by the server, too.
_LATE = """
SELECT 'standby slot ' || named || CASE WHEN s.slot_name IS NULL THEN ' does not exist' WHEN s.wal_status = 'lost' THEN ' is lost'
       WHEN s.active THEN ' is behind' ELSE ' is not in use' END
FROM (SELECT pg_catalog.btrim(n, ' "') FROM pg_catalog.unnest(pg_catalog.string_to_array(
      pg_catalog.current_setting('synchronized_standby_slots', true), ',')) n) AS names (named)
LEFT JOIN pg_catalog.pg_replication_slots s ON s.slot_name = named AND s.slot_type = 'physical'
WHERE s.restart_lsn IS NULL OR s.restart_lsn < $1::pg_lsn OR s.wal_status = 'lost'
"""


def prefix(pipeline: str) -> str:
    """Of the messages that are marks of this pipeline."""
    return f"penstock.mark.{pipeline}"


def commit(control: Session, pipeline: str) -> Reach:
    """Commit a mark, durably; its name, and a place in the server's log that its commit lies before. Raises CDC-PG-149 when a
    standby that the server waits for does not confirm it."""
    name = secrets.token_hex(8)
    rows = control.run(
        f"""BEGIN; SELECT pg_catalog.pg_logical_emit_message(true, {sql.literal(prefix(pipeline))}, '{name}'); COMMIT;
            SELECT pg_catalog.pg_current_wal_flush_lsn()""",
        doing="committing a mark",
    )
    reach = Reach(lsn_int(rows[0][0] or ""), name)
    await_standbys(control, reach.lsn)
    return reach


def await_standbys(control: Session, lsn: int) -> None:
    """Wait for the standbys in `synchronized_standby_slots` (17 and later) to hold the log up to `lsn`. The server lets the stream
    wait for them itself, but not those who read rows."""
    until = time.monotonic() + STANDBYS_WAIT_S
    while late := control.run(_LATE, [lsn_text(lsn)], doing="looking at standbys"):
        if time.monotonic() > until:
            detail = f"not confirmed within {STANDBYS_WAIT_S:.0f} s: {'; '.join(row[0] or '' for row in late)}"
            raise Unavailable("CDC-PG-149", detail)
        control.pause(_LOOK_S)
