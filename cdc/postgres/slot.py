"""Publications and the replication slot: made once, found again (protocols C7, D6, G). `history` compares it with the log.

The invariant: a slot is never used unless capture made it and the server still keeps it; and publications come before the slot,
so that no change of a published table is missing from it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cdc.errors import CdcError, Unavailable
from cdc.postgres import blockers, sql
from cdc.postgres.facts import Table
from cdc.postgres.position import Snapshot, lsn_int
from cdc.postgres.session import IDLE_S, Session, SqlFailed
from cdc.table import TableId

NAME_BYTES = 63
SLOT_WAIT_S = 60.0  # for transactions that are older than the slot
PUBLISH_WAIT_S = 10  # for locks on tables; a stream that runs waits meanwhile
PREDECESSOR_WAIT_S = 5.0  # a killed process's walsender notices within a moment
SILENT_S = 30  # a living capture reports every few seconds


def slot_name(pipeline: str) -> str:
    """The default name: `cdc_<pipeline>` in the characters that a slot's name may have."""
    return re.sub(r"[^a-z0-9_]", "_", f"cdc_{pipeline.lower()}")[:NAME_BYTES]


def of_epoch(name: str, epoch: int) -> str:
    """Each epoch has a slot of its own: the old one stays until the new one stands in the log. The epoch comes first, where no
    other pipeline's default name can have it."""
    return (f"e{epoch}_{name}" if epoch else name)[:NAME_BYTES]


def of_any_epoch(session: Session, name: str) -> list[str]:
    """The slots that exist under this name, in whatever epoch."""
    rows = session.run("SELECT slot_name FROM pg_catalog.pg_replication_slots", doing="looking for slots")
    found = [row[0] for row in rows if row[0]]
    return sorted(
        slot
        for slot in found
        if slot == name or ((n := re.match(r"e(\d+)_", slot)) and slot == of_epoch(name, int(n[1])))
    )


# ---------------------------------------------------------------------------------------------------------- publications
class Publications(NamedTuple):
    """`all` publishes every change, `inserts` the insert-only tables'."""

    all: str
    inserts: str

    @classmethod
    def named(cls, name: str) -> Publications:
        tail = "_inserts"
        return cls(name, name.encode()[: NAME_BYTES - len(tail)].decode(errors="ignore") + tail)


def owned(session: Session, names: Iterable[str]) -> dict[str, bool]:
    """The publications of these names that exist: is the connected role their owner? Others' are used and never altered."""
    rows = session.run(
        """SELECT pubname, pg_catalog.pg_get_userbyid(pubowner) = current_user FROM pg_catalog.pg_publication
           WHERE pubname = ANY ($1::text[])""",
        [sql.text_array(names)],
    )
    return {row[0] or "": row[1] == "t" for row in rows}


def incomplete(session: Session, name: str) -> str | None:
    """What a publication that others made leaves out, or None."""
    rows = session.run(
        """SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot FROM pg_catalog.pg_publication
           WHERE pubname = $1""",
        [name],
    )
    if rows and rows[0][0] != "t":
        return "it does not publish all of insert, update, delete and truncate"
    if rows and rows[0][1] != "t":
        return "it lacks publish_via_partition_root"
    return None


def publish_statement(name: str, tables: Sequence[TableId], *, inserts: bool, exists: bool) -> str:
    """The statement that puts tables into a publication, for us or for the DBA. ONLY keeps inheriting tables out."""
    listed = ", ".join(f"ONLY {sql.qualified(table)}" for table in tables)
    if exists:
        return f"ALTER PUBLICATION {sql.ident(name)} ADD TABLE {listed}"
    kinds = "insert, truncate" if inserts else "insert, update, delete, truncate"
    target = f"FOR TABLE {listed} " if tables else ""
    return f"CREATE PUBLICATION {sql.ident(name)} {target}WITH (publish = '{kinds}', publish_via_partition_root = true)"


def withdraw_statement(name: str, tables: Sequence[TableId]) -> str:
    """The statement that takes tables out of a publication."""
    return f"ALTER PUBLICATION {sql.ident(name)} DROP TABLE {', '.join(f'ONLY {sql.qualified(table)}' for table in tables)}"


def publish(
    session: Session,
    publications: Publications,
    tables: Sequence[Table],
    insert_only: frozenset[TableId],
    *,
    first: bool = False,
) -> None:
    """Make sure that each table is in the publication where it belongs, and not in the other one if that is ours. `first`: before
    the slot is made both publications are, though one be empty, since a slot cannot send by one that is younger. Raises
    CDC-PG-131 with the statement for whoever may execute it."""
    existing = owned(session, publications)
    for name, inserts in ((publications.all, False), (publications.inserts, True)):
        missing = [t.id for t in tables if (t.id in insert_only) == inserts and not (t.inserts if inserts else t.whole)]
        if not missing and (name in existing or (inserts and not first)):
            continue
        statement = publish_statement(name, missing, inserts=inserts, exists=name in existing)
        if not existing.get(name, True):
            names = ", ".join(map(str, missing))
            raise CdcError(
                "CDC-PG-131",
                f"publication {name} belongs to another role and lacks {names}",
                where=names,
                remedy=statement,
            )
        try:
            session.run(
                f"SET LOCAL lock_timeout = '{PUBLISH_WAIT_S}s'; {statement}", doing=f"publishing tables in {name}"
            )
        except SqlFailed as error:
            if error.sqlstate == "55P03":
                named = "; ".join(blockers.locking(session, missing, publishing=True)) or "another session"
                raise Unavailable("CDC-PG-143", f"tables to be published are locked by {named}", where=name) from None
            if error.sqlstate != "42501":
                raise
            if not missing and existing:  # those are another's, and enough for now
                continue
            detail = f"the role may not put all of {', '.join(map(str, missing))} into publication {name}"
            raise CdcError("CDC-PG-131", detail, remedy=statement) from None
    for name, inserts in ((publications.all, False), (publications.inserts, True)):
        moved = [t.id for t in tables if (t.inserts if inserts else t.whole) and (t.id in insert_only) != inserts]
        if moved and existing.get(name):
            session.run(withdraw_statement(name, moved), doing=f"taking tables out of {name}")


# ------------------------------------------------------------------------------------------------------------------ slot
class Slot(NamedTuple):
    """One row of pg_replication_slots."""

    name: str
    plugin: str
    kind: str
    database: str
    active_pid: int | None
    wal_status: str
    confirmed: int
    two_phase: bool


def find(session: Session, name: str) -> Slot | None:
    """The slot of this name, in whatever state."""
    rows = session.run(
        """SELECT slot_name, coalesce(plugin, ''), slot_type, coalesce(database, ''), active_pid, coalesce(wal_status, 'lost'),
                  coalesce(confirmed_flush_lsn, '0/0'), two_phase
           FROM pg_catalog.pg_replication_slots WHERE slot_name = $1""",
        [name],
        doing="looking for the slot",
    )
    if not rows:
        return None
    row = [item or "" for item in rows[0]]
    pid = int(row[4]) if row[4] else None
    return Slot(row[0], row[1], row[2], row[3], pid, row[5], lsn_int(row[6]), row[7] == "t")


def create(replication: Session, control: Session, name: str) -> int:
    """Make the slot; the LSN where it starts. Transactions that are running keep it waiting, up to SLOT_WAIT_S. From 17 on standbys
    can take it over: where there is none, that costs nothing."""
    replication.settings({"lock_timeout": f"{int(SLOT_WAIT_S * 1000)}"})
    said, idle = blockers.Said(), replication.idle
    replication.idle = lambda: said.waits(f"the slot {name}", lambda: "; ".join(blockers.running(control)))
    options = "NOEXPORT_SNAPSHOT" if control.server_version < 170000 else "(SNAPSHOT 'nothing', FAILOVER true)"
    try:
        rows = replication.run(
            f"CREATE_REPLICATION_SLOT {sql.ident(name)} LOGICAL pgoutput {options}",
            doing=f"making the slot {name}",
        )
    except SqlFailed as error:
        if error.sqlstate == "55P03":
            detail = f"older transactions kept the slot {name} waiting for {SLOT_WAIT_S:.0f} s: "
            raise Unavailable("CDC-PG-122", detail + "; ".join(blockers.running(control))) from None
        if error.sqlstate == "53400":
            raise CdcError("CDC-PG-111", "no free replication slot on the server") from None
        raise
    finally:
        replication.idle = idle
    replication.settings({"lock_timeout": "0"})
    return lsn_int(rows[0][1] or "")


def usable(control: Session, name: str) -> Slot:
    """The slot, after everything is checked that does not depend on a position. Raises R3 errors (CDC-PG-12x)."""
    slot = find(control, name)
    if slot is None:
        raise CdcError("CDC-PG-120", f"the slot {name} is gone", where=name)
    database = control.run("SELECT current_database()")[0][0]
    if (slot.kind, slot.plugin, slot.database) != ("logical", "pgoutput", database) or slot.two_phase:
        detail = f"the slot {name} is {slot.kind} {slot.plugin} of database {slot.database or 'none'}, not one that capture made"
        raise CdcError("CDC-PG-121", detail, where=name)
    if slot.wal_status == "lost":
        raise CdcError(
            "CDC-PG-123", f"the server removed WAL that the slot {name} still needed, or invalidated it", where=name
        )
    return slot


def wait_free(control: Session, name: str, application: str) -> None:
    """Wait for a killed predecessor's walsender to go; end it when its client has long been silent. Raises Unavailable when
    the slot stays in use."""
    until = time.monotonic() + PREDECESSOR_WAIT_S
    while (slot := find(control, name)) and slot.active_pid is not None:
        rows = control.run(
            f"""SELECT application_name, coalesce(host(client_addr), 'local'),
                       coalesce(reply_time < now() - interval '{SILENT_S} s', false)
                FROM pg_catalog.pg_stat_replication WHERE pid = $1""",
            [slot.active_pid],
        )
        user, client, silent = rows[0] if rows else (None, None, "f")
        if user == application and silent == "t":
            control.run(
                "SELECT pg_catalog.pg_terminate_backend($1)", [slot.active_pid], doing="ending a dead walsender"
            )
        if (user is not None and user != application) or time.monotonic() > until:
            detail = (
                f"the slot {name} is in use by pid {slot.active_pid} ({user or 'unknown'} from {client or 'unknown'})"
            )
            raise Unavailable("CDC-PG-128", detail, where=name)
        control.pause(min(IDLE_S, 0.1))


def drop(control: Session, name: str) -> bool:
    """Drop the slot if it exists; was there one? Raises CDC-PG-128 while it is in use."""
    slot = find(control, name)
    if slot is None:
        return False
    try:
        control.run("SELECT pg_catalog.pg_drop_replication_slot($1)", [name], doing=f"dropping the slot {name}")
    except SqlFailed as error:
        if error.sqlstate == "55006":
            raise Unavailable("CDC-PG-128", f"the slot {name} is in use by pid {slot.active_pid}", where=name) from None
        if error.sqlstate == "42704":
            return False
        raise
    return True


# -------------------------------------------------------------------------------------------------- running transactions
def snapshot(session: Session) -> Snapshot:
    """The session's current snapshot."""
    return Snapshot.parse(session.run("SELECT pg_catalog.pg_current_snapshot()")[0][0] or "")
