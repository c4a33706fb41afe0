"""Rows of a rebuilt table put in the place of a live table's (protocol B7), inside the session's open transaction.

Row by row, and only where they differ: the table stays, and with it owner, grants, indexes, constraints, triggers, views, foreign
keys, publications, and columns of the target's own. Rows that are right are not touched, so triggers and cascades see only what
was wrong; and an older snapshot goes on seeing the old rows, which it does not when tables are truncated or renamed.
The invariant: afterwards both tables hold the same rows, counted and hashed, or nothing has happened.
"""

from __future__ import annotations

from dataclasses import dataclass

from cdc.errors import CdcError
from cdc.table import TableId
from sinks.postgres.session import Refused, Session
from sinks.postgres.sql import ident, literal, names, relation
from sinks.postgres.target import TargetTable, describe


@dataclass(frozen=True, slots=True)
class Content:
    """How many rows a table has, and a hash of them that no order of rows changes."""

    rows: int
    hash: str


@dataclass(frozen=True, slots=True)
class Changed:
    """Rows of the live table that were replaced, that it lacked, and that it had too many."""

    updated: int = 0
    inserted: int = 0
    deleted: int = 0


@dataclass(frozen=True, slots=True)
class Pair:
    """A rebuilt table and the live one, and the columns that they share; those without `key` are compared as multisets."""

    table: TableId
    rebuilt: TargetTable
    live: TargetTable
    key: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that come from the log."""
        have = self.live.columns
        return tuple(name for name in self.rebuilt.columns if name in have and not have[name].generated)

    def values(self, alias: str) -> list[str]:
        """The values of the live table (`t`) or of the rebuilt one, as the live table holds them."""
        return [f"{alias}.{ident(name)}{'' if alias == 't' else self._cast(name)}" for name in self.columns]

    def _cast(self, name: str) -> str:
        ours, theirs = self.rebuilt.columns[name], self.live.columns[name]
        wanted = theirs.domain or theirs.type
        return "" if (ours.domain or ours.type) == wanted else f"::text::{wanted}"

    def image(self, alias: str) -> str:
        """A row as text, in the server's own form of each value."""
        return image(self.values(alias))

    @property
    def same_key(self) -> str:
        index = self.live.key_index(self.key)
        equal = dict(zip(index.columns or (), index.equal, strict=True)) if index else {}
        value = dict(zip(self.columns, self.values("s"), strict=True))
        return " AND ".join(f"t.{ident(name)} {equal.get(name, '=')} {value[name]}" for name in self.key)


def image(values: list[str]) -> str:
    """SQL of a row's text, compared byte by byte."""
    return f'(ROW({", ".join(values)})::text COLLATE "C")'


def content(session: Session, table: TargetTable | None, values: list[str], alias: str = "t") -> Content:
    """Rows and hash of a table: the sum, modulo 2^64, of the first 64 bits of the SHA-256 of each row's text."""
    if table is None:
        return Content(0, f"{0:016x}")
    digest = f"substr(encode(sha256(convert_to({image(values)}, 'UTF8')), 'hex'), 1, 16)"
    ((rows, total),) = session.rows(
        f"SELECT count(*), coalesce(sum(('x' || {digest})::bit(64)::bigint::numeric), 0) FROM {relation(table.id)} AS {alias}"
    )
    return Content(int(rows), f"{int(total) % (1 << 64):016x}")


def lock(session: Session, tables: list[TableId]) -> None:
    """Nobody else writes these tables until the transaction ends; everybody may read them."""
    for table in sorted(tables):
        session.execute(f"LOCK TABLE {relation(table)} IN SHARE ROW EXCLUSIVE MODE")


def exchange(session: Session, pairs: list[Pair]) -> dict[TableId, Changed]:
    """Make the live tables equal to the rebuilt ones. `pairs` are in the order of their foreign keys, referenced tables first.
    Raises Refused when they cannot be so in this order: constraints are in the way."""
    done = {pair.table: _keyless(session, pair) if not pair.key else _written(session, pair) for pair in pairs}
    for pair in reversed(pairs):
        if pair.key:
            done[pair.table] = Changed(
                done[pair.table].updated, done[pair.table].inserted, session.execute(_delete(pair, pair.same_key))
            )
    return done


def replace(session: Session, pairs: list[Pair]) -> dict[TableId, Changed]:
    """The same without in-between states that unique values could collide in: what differs goes, then all that is missing comes.
    No foreign key may be there to notice."""
    done = {}
    for pair in pairs:
        if not pair.key:
            done[pair.table] = _keyless(session, pair)
            continue
        same = f"{pair.same_key} AND {pair.image('t')} = {pair.image('s')}"
        deleted = session.execute(_delete(pair, same))
        inserted = session.execute(
            _insert(pair, f"WHERE NOT EXISTS (SELECT 1 FROM {_live(pair)} AS t WHERE {pair.same_key})")
        )
        both = min(deleted, inserted)
        done[pair.table] = Changed(both, inserted - both, deleted - both)
    return done


def _live(pair: Pair) -> str:
    return relation(pair.live.id)


def _written(session: Session, pair: Pair) -> Changed:
    settable = [name for name in pair.columns if pair.live.columns[name].identity != "a"]
    value = dict(zip(pair.columns, pair.values("s"), strict=True))
    sets = ", ".join(f"{ident(name)} = {value[name]}" for name in settable)
    updated = 0
    if sets:
        updated = session.execute(
            f"UPDATE {_live(pair)} AS t SET {sets} FROM {relation(pair.rebuilt.id)} AS s"
            f" WHERE {pair.same_key} AND {pair.image('t')} <> {pair.image('s')}"
        )
    missing = f"WHERE NOT EXISTS (SELECT 1 FROM {_live(pair)} AS t WHERE {pair.same_key})"
    return Changed(updated, session.execute(_insert(pair, missing)))


def _insert(pair: Pair, condition: str) -> str:
    always = any(pair.live.columns[name].identity == "a" for name in pair.columns)
    return (
        f"INSERT INTO {_live(pair)} ({names(pair.columns)}){' OVERRIDING SYSTEM VALUE' if always else ''}"
        f" SELECT {', '.join(pair.values('s'))} FROM {relation(pair.rebuilt.id)} AS s {condition}"
    )


def _delete(pair: Pair, same: str) -> str:
    return (
        f"DELETE FROM {_live(pair)} AS t WHERE NOT EXISTS (SELECT 1 FROM {relation(pair.rebuilt.id)} AS s WHERE {same})"
    )


def _keyless(session: Session, pair: Pair) -> Changed:
    """Copies of each image: those that are too many go, those that are missing come."""

    def numbered(alias: str, table: TargetTable) -> str:
        return (
            f"(SELECT {alias}.ctid AS at, {alias}.tableoid AS part, {pair.image(alias)} AS image,"
            f" row_number() OVER (PARTITION BY {pair.image(alias)}) AS nth FROM {relation(table.id)} AS {alias})"
        )

    def counted(alias: str, table: TargetTable) -> str:
        return (
            f"(SELECT {pair.image(alias)} AS image, count(*) AS copies FROM {relation(table.id)} AS {alias} GROUP BY 1)"
        )

    deleted = session.execute(
        f"DELETE FROM {_live(pair)} AS t USING {numbered('t', pair.live)} AS a"
        f" LEFT JOIN {counted('s', pair.rebuilt)} AS b ON b.image = a.image"
        " WHERE a.nth > coalesce(b.copies, 0) AND t.ctid = a.at AND t.tableoid = a.part"
    )
    inserted = session.execute(
        _insert(
            pair,
            f"JOIN (SELECT a.at FROM {numbered('s', pair.rebuilt)} AS a LEFT JOIN {counted('t', pair.live)} AS b"
            " ON b.image = a.image WHERE a.nth > coalesce(b.copies, 0)) AS missing ON missing.at = s.ctid",
        )
    )
    return Changed(0, inserted, deleted)


def move(session: Session, rebuilt: TableId, live: TableId) -> None:
    """There is no live table: the rebuilt one becomes it."""
    if not session.rows(f"SELECT 1 FROM pg_namespace WHERE nspname = {literal(live.schema)}"):
        session.execute(f"CREATE SCHEMA {ident(live.schema)}")
    session.execute(f"ALTER TABLE {relation(rebuilt)} SET SCHEMA {ident(live.schema)}")
    moved = TableId(live.schema, rebuilt.name)
    session.execute(f"ALTER TABLE {relation(moved)} RENAME TO {ident(live.name)}")
    found = describe(session, live)
    assert found is not None
    for unique in found.uniques:
        name = f"{live.name.encode()[:58].decode(errors='ignore')}_pkey"
        if not describe(session, TableId(live.schema, name)):
            session.execute(f"ALTER INDEX {relation(TableId(live.schema, unique.name))} RENAME TO {ident(name)}")


def proved(session: Session, pair: Pair, rebuilt: Content) -> None:
    """Raises CDC-RPL-106 unless the live table holds the rebuilt one's rows now."""
    found = content(session, pair.live, pair.values("t"))
    if found != rebuilt:
        raise CdcError(
            "CDC-RPL-106",
            f"it holds {found.rows} rows with the hash {found.hash}, not {rebuilt.rows} with {rebuilt.hash}",
            where=str(pair.live.id),
        )


def refused(error: Refused, pairs: list[Pair]) -> CdcError:
    """What the live tables do not take."""
    return CdcError("CDC-RPL-107", error.cause, where=", ".join(str(pair.live.id) for pair in pairs))
