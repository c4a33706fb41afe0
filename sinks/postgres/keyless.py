"""Tables without a key: rows are appended, and an update or delete takes one row that equals the old image.

Only the multiset of rows counts, so a piece's events collapse to how many copies of each image come or go. Images are compared
bit by bit (`*=`), as the source's were: 1.0 is not 1.00, and types without an equality (xml, point) are compared as all others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cdc.avro import read_header
from cdc.errors import CdcError, Rejected
from sinks.postgres.plan import Plan
from sinks.postgres.session import Refused, Session
from sinks.postgres.sql import ident
from sinks.postgres.staging import copies_name, plan_number

if TYPE_CHECKING:
    from sinks.postgres.merge import Work


def net(plan: Plan, events: Iterable[bytes]) -> Counter[bytes]:
    """Copies of each image (a COPY line) that come (> 0) or go (< 0). Raises CdcError for events that no keyless table has."""
    befores, afters = [], []
    for event in events:
        head = read_header(event)
        if head.unchanged or head.moved is not None or head.op not in ("c", "u", "d", "r"):
            raise CdcError("CDC-TGT-132", f"an event {head.op} with gaps in a table without key", where=str(plan.table))
        if head.op in ("u", "d"):
            befores.append(event)
        if head.op != "d":
            afters.append(event)
    counts = Counter(_split(plan, afters, "after"))
    counts.subtract(_split(plan, befores, "before"))
    return counts


def _split(plan: Plan, events: list[bytes], image: str) -> list[bytes]:
    return b"".join(plan.lines(events, image=image)).split(b"\n")[:-1]


def delete(session: Session, works: list[Work]) -> None:
    """Take away the images that go. A live table that lacks one is `lost`: it is not what the log says, and is loaded anew."""
    for work in works:
        if work.changes.only_reads:
            continue
        plan = work.plan
        going = [(line, -count) for line, count in net(plan, work.changes.events).items() if count < 0]
        if not going:
            continue
        lines = [b"%s\t%d\t%d\n" % (line, number, copies) for number, (line, copies) in enumerate(going)]
        number, copies = plan_number(plan), copies_name(plan)
        session.copy(plan.copy_into(work.images, (*plan.columns, number, copies)), [b"".join(lines)])
        deleted = session.execute(
            f"DELETE FROM {plan.ref} AS t USING (SELECT a.ctid AS at, a.tableoid AS part, s.copies,"
            " row_number() OVER (PARTITION BY s.n) AS nth FROM"
            f" (SELECT ctid, tableoid, (SELECT r FROM (SELECT {_images(plan, 't')}) AS r) AS image FROM {plan.ref} AS t) AS a"
            f" JOIN (SELECT {ident(number)} AS n, {ident(copies)} AS copies,"
            f" (SELECT r FROM (SELECT {_images(plan, 'i')}) AS r) AS image FROM {work.images} AS i) AS s ON a.image *= s.image) AS x"
            " WHERE x.nth <= x.copies AND t.ctid = x.at AND t.tableoid = x.part"
        )
        expected = sum(copies for _, copies in going)
        work.lost = deleted != expected and not work.row.loading


def _images(plan: Plan, alias: str) -> str:
    """What of a row is compared. A domain and the type below it are not alike to `*=`."""
    types = {name: plan.target.columns[name] for name in plan.columns}
    return ", ".join(
        f"{alias}.{ident(name)}{f'::{have.type}' if have.domain else ''} AS {ident(name)}"
        for name, have in types.items()
    )


def insert(session: Session, works: list[Work]) -> None:
    """Append the images that come."""
    for work in works:
        plan, events = work.plan, work.changes.events
        if work.changes.only_reads:
            copied, expected = session.copy(plan.copy_into(plan.ref), plan.lines(events)), len(events)
        else:
            lines = [(line + b"\n") * count for line, count in net(plan, events).items() if count > 0]
            expected = sum(line.count(b"\n") for line in lines)
            copied = session.copy(plan.copy_into(plan.ref), lines)
        assert copied == expected, f"{copied} rows of {plan.table} were written, not {expected}"


def rejected(plan: Plan, error: Refused) -> Rejected:
    """A keyless row has no name."""
    return Rejected("CDC-TGT-130", f"a row of a table without key: {error.cause}", where=str(plan.table))
