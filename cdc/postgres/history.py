"""May the stream go on from the log's position on this server? (protocols C5, D5, rules R3, R5)

The invariant: a server is never streamed from unless it has everything that the log has, from the same history, and can still
send everything after it. A server that was promoted is of the same history up to the place where its timeline branched off.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from cdc.errors import CdcError, Unavailable
from cdc.postgres import slot
from cdc.postgres.position import StreamPosition, lsn_int, lsn_text
from cdc.postgres.session import Session


class Identity(NamedTuple):
    """IDENTIFY_SYSTEM's answer."""

    system_id: str
    timeline: int


def identify(replication: Session) -> Identity:
    """The identity of the server behind a replication session."""
    row = replication.run("IDENTIFY_SYSTEM", doing="IDENTIFY_SYSTEM")[0]
    return Identity(row[0] or "", int(row[1] or 0))


def started(session: Session) -> str:
    """When the server behind a session was started, to the microsecond: what tells two servers of one URL apart."""
    return session.run("SELECT pg_catalog.pg_postmaster_start_time()")[0][0] or ""


def same_server(session: Session, since: str) -> None:
    """Raise Unavailable unless this session reaches the server that was started then. In the middle of a failover a URL with
    several hosts, or a name that moves, can lead to two servers."""
    if (now := started(session)) != since:
        session.close()
        detail = f"the URL leads to two servers, or to one that was restarted: started {since}, and {now}"
        raise Unavailable("CDC-PG-101", detail)


def verify(control: Session, replication: Session, position: StreamPosition, confirmed: int) -> StreamPosition:
    """Protocol D5: may the stream go on from `position`, when the server was told to forget everything before `confirmed`? The
    same position, on the timeline that the server is on now. Raises the R3 error that says why not."""
    identity = identify(replication)
    if identity.system_id != position.system_id:
        detail = f"the server is system {identity.system_id}, the position belongs to {position.system_id}"
        raise CdcError("CDC-PG-124", detail, where=str(position))
    promoted = identity.timeline != position.timeline
    if promoted:
        _must_descend(replication, identity.timeline, position)
        if slot.find(control, position.slot) is None:
            detail = f"the server was promoted, to timeline {identity.timeline}, without the slot {position.slot}"
            raise CdcError("CDC-PG-120", detail, where=position.slot)
    found = slot.usable(control, position.slot)
    if found.confirmed > confirmed:
        detail = f"the slot has forgotten everything before {lsn_text(found.confirmed)}, the log allows {lsn_text(confirmed)}"
        raise CdcError("CDC-PG-126", detail, where=position.slot)
    head = lsn_int(control.run("SELECT pg_catalog.pg_current_wal_flush_lsn()")[0][0] or "")
    if position.farthest > head:
        detail = f"the server's WAL ends at {lsn_text(head)}, the log has rows up to {lsn_text(position.farthest)}"
        raise CdcError("CDC-PG-127", detail, where=str(position))
    return replace(position, timeline=identity.timeline) if promoted else position


def _must_descend(replication: Session, timeline: int, position: StreamPosition) -> None:
    """Does this timeline hold everything that the log has? Raises CDC-PG-125."""
    if timeline < position.timeline:
        detail = (
            f"the server is on timeline {timeline}, and was overtaken: the position is of timeline {position.timeline}"
        )
        remedy = (
            "Point the source's URL at the server that was promoted, and keep applications off this one. If this one is to be"
            " the source: `cdc reload --new-epoch`."
        )
        raise CdcError("CDC-PG-125", detail, where=str(position), remedy=remedy)
    row = replication.run(f"TIMELINE_HISTORY {timeline}", doing="reading the timeline's history")[0]
    switch = _switches(row[1] or "").get(position.timeline)
    if switch is None:
        detail = f"the server's timeline {timeline} does not descend from the position's, {position.timeline}"
        raise CdcError("CDC-PG-125", detail, where=str(position))
    if switch < position.farthest:
        detail = (
            f"the server's timeline {timeline} left timeline {position.timeline} at {lsn_text(switch)}, and the log has rows up to"
            f" {lsn_text(position.farthest)}: transactions that were captured are missing from the server"
        )
        raise CdcError("CDC-PG-125", detail, where=str(position))


def _switches(history: str) -> dict[int, int]:
    """Where each ancestor was left, out of a timeline's history file: `parent TAB lsn TAB reason` in each line."""
    rows = [line.split("\t") for line in history.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return {int(row[0]): lsn_int(row[1]) for row in rows}
