"""A piece's events one by one, in source order: the slow path that is right whenever the source was (protocol B6).

At the source every prefix of the events was valid, so each statement meets the constraints as the source's own statement did;
key changes are updates of the key. The first event that is refused here is named by its key, and by nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from cdc.avro import HEADER_BYTES, Header, decode_datum, read_header
from cdc.errors import Rejected
from sinks.postgres import keyless
from sinks.postgres.codec import fields_of
from sinks.postgres.session import Refused, Session
from sinks.postgres.sql import ident, literal, names

if TYPE_CHECKING:
    from sinks.postgres.merge import Work


class Event(NamedTuple):
    """One event of a keyed table. `departs`: a `d` whose `c` follows, with the row."""

    sequence: int
    work: Work
    key: bytes
    value: bytes
    head: Header
    departs: bool


def apply(session: Session, works: list[Work]) -> None:
    """Apply; `work.missed` names keys of partial rows whose row is not there. Raises Rejected."""
    without = [work for work in works if not work.plan.key]
    _keyless(session, without, keyless.delete)
    events = [event for work in works if work.plan.key for event in _events(work)]
    for event in sorted(events, key=lambda event: event.sequence):
        try:
            _apply(session, event)
        except Refused as error:
            plan = event.work.plan
            detail = f"the row with key ({plan.shown(event.key)}): {error.cause}"
            raise Rejected("CDC-TGT-130", detail, where=str(plan.table), sqlstate=error.sqlstate) from None
    for work in works:
        work.missed = list(dict.fromkeys(work.missed))
    _keyless(session, without, keyless.insert)


def _keyless(session: Session, works: list[Work], step: object) -> None:
    assert callable(step)
    for work in works:
        try:
            step(session, [work])
        except Refused as error:
            raise keyless.rejected(work.plan, error) from None


def _events(work: Work) -> Iterator[Event]:
    changes, schema = work.changes, work.plan.value_schema
    heads = [read_header(value) for value in changes.events]
    for index, (key, value, head) in enumerate(zip(changes.keys, changes.events, heads, strict=True)):
        assert key is not None
        following = heads[index + 1] if index + 1 < len(heads) else None
        departs = (
            head.op == "d"
            and head.moved is not None
            and following is not None
            and following.op == "c"
            and following.moved == key[HEADER_BYTES:]
        )
        sequence = decode_datum(schema, value[HEADER_BYTES:])["source"].get("sequence")
        yield Event(int(sequence or 0), work, key, value, head, departs)


def _apply(session: Session, event: Event) -> None:
    plan, head = event.work.plan, event.head
    where = _is_key(event, event.key)
    if head.op == "d":
        if not event.departs:
            session.execute(f"DELETE FROM {plan.ref} AS t WHERE {where}")
        return
    sent = [name for name in plan.columns if name not in head.unchanged]
    texts = [_literal(text) for text in fields_of(b"".join(plan.lines([event.value], sent)))]
    if not head.unchanged:
        _make_way(session, event, dict(zip(sent, texts, strict=True)))
    if head.moved is not None:
        if event.work.row.loading and head.moved != event.key[HEADER_BYTES:]:
            session.execute(f"DELETE FROM {plan.ref} AS t WHERE {where}")  # what is at the new key is replaced
        where = _is_key(event, event.key[:HEADER_BYTES] + head.moved)
    elif not head.unchanged:
        session.execute(plan.upsert(f"VALUES ({', '.join(texts)})"))
        return
    # An identity that is GENERATED ALWAYS takes no update: a row that keeps its key needs none, one that moves is refused.
    fixed = {name for name in plan.key if plan.target.columns[name].identity == "a" and head.moved is None}
    sets = [f"{ident(name)} = {text}" for name, text in zip(sent, texts, strict=True) if name not in fixed]
    if sets and session.execute(f"UPDATE {plan.ref} AS t SET {', '.join(sets)} WHERE {where}"):
        return
    if not sets and session.rows(f"SELECT 1 FROM {plan.ref} AS t WHERE {where}"):
        return
    if head.unchanged:
        event.work.missed.append(event.key)
    else:
        session.execute(plan.upsert(f"VALUES ({', '.join(texts)})"))


def _literal(text: str | None) -> str:
    if text is not None and "\0" in text:
        raise Refused("22021", "SQLSTATE 22021 character_not_in_repertoire, a character that Postgres does not have")
    return literal(text)


def _is_key(event: Event, key: bytes) -> str:
    plan = event.work.plan
    texts = plan.key_texts(key)
    return " AND ".join(
        f"t.{ident(name)} {plan.equal[name]} {literal(text)}::{plan.target.columns[name].type}"
        for name, text in zip(plan.key, texts, strict=True)
    )


def _make_way(session: Session, event: Event, row: dict[str, str]) -> None:
    """While a later generation loads: delete stale rows that collide with this one, and count it as written whole."""
    from sinks.postgres.merge import stale

    work = event.work
    if work.seen is None:
        return
    plan = work.plan
    columns = names(plan.key)
    session.execute(
        f"INSERT INTO {work.seen} ({columns}) VALUES ({', '.join(row[name] for name in plan.key)}) ON CONFLICT DO NOTHING"
    )
    typed = ", ".join(f"{text}::{plan.target.columns[name].type} AS {ident(name)}" for name, text in row.items())
    for unique in plan.secondary_uniques:
        session.execute(stale(plan, unique, f"(SELECT {typed})", work.seen))
