"""Loads as the target sees them (protocol C3, B6): what a generation does at its beginning and its end, and foreign keys meanwhile.

A later generation keeps the keys that it wrote whole in a table of their own, and at its end the rows without one are deleted,
by the target's own equality and never by ranges. Foreign keys that touch a loading table are dropped, kept in `_cdc`, and made
again, validated, in the commit after which none of their tables is loading. So are unique indexes that rows collide on in the
middle of a load's round, where a chunk is ahead of the stream and rows are right only together.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from cdc.errors import CdcError
from cdc.log import Begun
from cdc.table import TableId
from sinks.postgres import evolution, pending
from sinks.postgres.bookkeeping import Bookkeeping, PutAside, TableRow
from sinks.postgres.plan import Plan
from sinks.postgres.session import Refused, Session
from sinks.postgres.sql import ident, literal, names, relation
from sinks.postgres.target import TargetTable, describe, regclass


class Generations:
    """Begins and ends loads through one session's open transaction."""

    def __init__(self, session: Session, books: Bookkeeping) -> None:
        self._session, self._books = session, books

    def begin(self, begun: Begun, target: TableId, old: TableRow | None, number: int) -> TableRow:
        """The table's row from now on. A keyless table is emptied; a load that was under way starts over."""
        if old is not None:
            self._books.drop_seen(old)
        existing, held = describe(self._session, target), False
        if existing is not None:
            if existing.kind not in ("r", "p"):
                raise CdcError("CDC-TGT-120", "it is not an ordinary table", where=str(target))
            self.put_aside(target)
            held = bool(self._session.rows(f"SELECT 1 FROM {relation(target)} LIMIT 1"))
            if held and begun.keyless:
                self._session.execute(f"DELETE FROM {relation(target)}")
                held = False
        row = TableRow(
            begun.table,
            target,
            "loading",
            begun.generation,
            keyless=begun.keyless,
            fresh=not held,
            tracked=held,
            created=old is not None and old.target == target and old.created and existing is not None,
            adopted=old is not None and old.target == target and old.adopted and existing is not None,
            from_number=number,
        )
        self._books.put(row)
        return row

    def tracking(self, row: TableRow, plan: Plan) -> TableRow:
        """`row` with its table of keys seen, made if it needs one and has none."""
        if not row.tracked or row.seen is not None:
            return row
        label = "\0".join(
            (self._books.pipeline, self._books.sink, *row.table, str(row.generation), str(row.from_number))
        )
        seen = f"seen_{hashlib.sha256(label.encode()).hexdigest()[:24]}"
        self._session.execute(
            f"CREATE TABLE _cdc.{ident(seen)} AS SELECT {names(plan.key)} FROM {plan.ref} WITH NO DATA;"
            f"ALTER TABLE _cdc.{ident(seen)} ADD PRIMARY KEY ({names(plan.key)})"
        )
        return replace(row, seen=seen)

    def follow(self, row: TableRow, target: TargetTable) -> None:
        """The keys seen have the types of the table's key, which may just have become wider."""
        seen = describe(self._session, TableId("_cdc", row.seen or ""))
        assert seen is not None, f"the keys seen of {row.table} are gone"
        evolution.follow_seen(self._session, target, seen)

    def finish(self, row: TableRow, key: tuple[str, ...] = ()) -> TableRow:
        """Delete the rows that this generation did not write whole; the table is live, and has its key if it is of our making."""
        existing = describe(self._session, row.target)
        if row.tracked and existing is not None:
            stale = f"DELETE FROM {relation(row.target)} AS t"
            if row.seen is not None:
                seen = describe(self._session, TableId("_cdc", row.seen))
                assert seen is not None, f"the keys seen of {row.table} are gone"
                index = existing.key_index(tuple(seen.columns))
                assert index is not None, f"{row.target} has lost its key"
                same = " AND ".join(
                    f"t.{ident(name)} {equal} s.{ident(name)}"
                    for name, equal in zip(index.columns or (), index.equal, strict=True)
                )
                stale += f" WHERE NOT EXISTS (SELECT 1 FROM _cdc.{ident(row.seen)} AS s WHERE {same})"
            self._session.execute(stale)
        if row.created and existing is not None:
            evolution.make_primary(self._session, existing, key)
        row = replace(self._books.drop_seen(row), state="live", fresh=False)
        self._books.put(row)
        return row

    # -------------------------------------------------------------------------------------------------------- constraints
    def make_room(self, plans: list[Plan]) -> bool:
        """Put aside the foreign keys, unique indexes and exclusion constraints of these tables, but for the key's index; False if
        there are none or the sink's role may not."""
        found = [(plan.target.id, name) for plan in plans for name in self._exclusive(plan)]
        owned = "SELECT pg_has_role(c.relowner, 'USAGE') FROM pg_class c WHERE c.oid = "
        if not all(self._session.rows(owned + regclass(plan.target.id))[0][0] for plan in plans):
            return False
        for plan in plans:
            self.put_aside(plan.target.id)
        for target, name in found:
            self._put_unique_aside(target, name)
        return bool(found)

    def _exclusive(self, plan: Plan) -> list[str]:
        key = plan.target.key_index(plan.key)
        found = self._session.rows(
            "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
            f" WHERE (i.indisunique OR i.indisexclusion) AND i.indrelid = {regclass(plan.target.id)} ORDER BY 1"
        )
        return [name for (name,) in found if key is None or name != key.name]

    def _put_unique_aside(self, target: TableId, name: str) -> None:
        index = regclass(TableId(target.schema, name))
        ((constraint, index_definition),) = self._session.rows(
            "SELECT (SELECT pg_get_constraintdef(k.oid) FROM pg_constraint k WHERE k.conindid = i.indexrelid"
            f" AND k.contype IN ('p', 'u', 'x')), pg_get_indexdef(i.indexrelid) FROM pg_index i WHERE i.indexrelid = {index}"
        )
        pending.check(self._session, target)
        if constraint is None:
            self._session.execute(f"DROP INDEX {relation(TableId(target.schema, name))}")
        else:
            self._session.execute(f"ALTER TABLE {relation(target)} DROP CONSTRAINT {ident(name)}")
        self._books.put_aside(PutAside(target, name, target, constraint or index_definition))

    def put_aside(self, target: TableId) -> None:
        """Drop the foreign keys of and into a table, and keep how to make them again. Raises CDC-TGT-122 where another owns one."""
        found = self._session.rows(
            "SELECT n.nspname, c.relname, k.conname, fn.nspname, f.relname, pg_get_constraintdef(k.oid),"
            " pg_has_role(c.relowner, 'USAGE'), pg_get_userbyid(c.relowner)"
            " FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
            " JOIN pg_class f ON f.oid = k.confrelid JOIN pg_namespace fn ON fn.oid = f.relnamespace"
            f" WHERE k.contype = 'f' AND k.conparentid = 0 AND {regclass(target)} IN (k.conrelid, k.confrelid)"
        )
        for schema, table, name, refers_schema, refers_name, definition, owned, owner in found:
            constraint = PutAside(TableId(schema, table), name, TableId(refers_schema, refers_name), definition)
            if not owned:
                raise CdcError(
                    "CDC-TGT-122",
                    f"foreign key {name} of {constraint.table} has to be put aside while {target} loads, and {owner} owns it",
                    where=str(target),
                    remedy=f"GRANT {ident(owner)} TO the sink's role, or drop the foreign key until the load is over.",
                )
            pending.check(self._session, constraint.table)
            self._session.execute(f"ALTER TABLE {relation(constraint.table)} DROP CONSTRAINT {ident(name)}")
            self._books.put_aside(constraint)

    def restore(self) -> None:
        """Make the constraints again of which no table is loading any more. Raises CDC-TGT-123 when rows do not satisfy one."""
        for constraint in self._books.restorable():
            if self._still_there(constraint):
                try:
                    pending.check(self._session, constraint.table)
                    is_index = constraint.definition.startswith("CREATE ")
                    add = f"ALTER TABLE {relation(constraint.table)} ADD CONSTRAINT {ident(constraint.name)} "
                    self._session.execute(("" if is_index else add) + constraint.definition)
                except Refused as error:
                    raise CdcError("CDC-TGT-123", error.cause, where=str(constraint.table)) from None
            self._books.restored(constraint)

    def _still_there(self, constraint: PutAside) -> bool:
        """Both tables exist, and nobody made the constraint meanwhile."""
        (found,) = self._session.rows(
            f"SELECT {regclass(constraint.table)} IS NOT NULL AND {regclass(constraint.refers)} IS NOT NULL AND NOT EXISTS ("
            f"SELECT 1 FROM pg_constraint WHERE conrelid = {regclass(constraint.table)} AND conname = {literal(constraint.name)})"
            f" AND {regclass(TableId(constraint.table.schema, constraint.name))} IS NULL"
        )
        return bool(found[0])
