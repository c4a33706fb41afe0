"""How a table that a sink writes follows the versions of its source's: what changes, by which policy, and what is in the way.

The invariant: nothing that the target holds is lost by itself. A type becomes one that holds every value of the old type and of the
new one, at worst text. A column goes only where the policy says so, came from the log, and is in a table of our making. A row goes
only if a loading table's new key says that it is another row's twin: the load brings whichever the source has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from cdc.errors import CdcError
from cdc.table import Column, TableSchema
from sinks.postgres import pending, types
from sinks.postgres.session import Refused, Session
from sinks.postgres.sql import ident, literal, names, relation
from sinks.postgres.target import TargetColumn, TargetTable, UniqueIndex, describe, regclass
from sinks.sink import Evolution

# Whoever waits for ALTER TABLE's lock stands before all who want to read the table: not for long, and again later.
_LOCK_MS = 5_000
# What stands in the way of another type, or of a column's end.
_DEPENDENTS = ("pg_rewrite", "pg_trigger", "pg_policy", "pg_proc")


class Change(NamedTuple):
    """One clause of ALTER TABLE. `kind` is a field of `Evolution`, or `relaxed`."""

    kind: str
    column: str
    words: str
    clause: str


def fits(have: TargetColumn, column: Column, wanted: str) -> bool:
    """Does an existing column hold every value of the source's, for which `wanted` would be made?"""
    return (
        have.generated
        or have.domain == wanted
        or types.holds(have.type, have.is_enum, column, wanted)
        or (not have.is_enum and types.includes(have.type, types.form_of(column.type)))
    )


def common(have: str, wanted: str) -> str:
    """A type that holds all values of both."""
    found = (
        wide for wide in (wanted, "numeric", "text") if types.includes(wide, have) and types.includes(wide, wanted)
    )
    return next(found, "text")


def must_be_given(have: TargetColumn) -> bool:
    """Does a row without this column not go in?"""
    return have.not_null and not (have.has_default or have.generated or have.identity)


def added(existing: TargetTable, schema: TableSchema, wanted: Mapping[str, str]) -> list[Change]:
    """Columns that the table lacks. They take nulls: its rows have no values for them."""
    return [
        Change(
            "added",
            column.name,
            f"column {column.name} is new",
            f"ADD COLUMN {ident(column.name)} {wanted[column.name]}",
        )
        for column in schema.columns
        if column.name not in existing.columns
    ]


def changes(
    existing: TargetTable,
    schema: TableSchema,
    wanted: Mapping[str, str],
    before: TableSchema | None,
    drops: bool,
) -> list[Change]:
    """What has to change so that the table takes rows of `schema`. `before`: the version that it took last. `drops`: columns of that
    one that are no more are not kept."""
    found = added(existing, schema, wanted)
    for column in schema.columns:
        have, name = existing.columns.get(column.name), ident(column.name)
        if have is None:
            continue
        if not fits(have, column, wanted[column.name]):
            words = f"column {column.name} was {have.domain or have.type} and is {wanted[column.name]} now"
            wide = common(have.type, wanted[column.name])
            found.append(Change("retyped", column.name, words, f"ALTER COLUMN {name} TYPE {wide} USING {name}::{wide}"))
        if have.not_null and column.nullable and not have.generated and column.name not in schema.key:
            found.append(_relaxed(have))
    for have in existing.columns.values():
        if have.name in schema.by_name:
            continue
        if drops and before is not None and have.name in before.by_name:
            words = f"column {have.name} is no more"
            found.append(Change("dropped", have.name, words, f"DROP COLUMN {ident(have.name)}"))
        elif must_be_given(have):
            found.append(_relaxed(have))
    return found


def _relaxed(have: TargetColumn) -> Change:
    return Change(
        "relaxed", have.name, f"column {have.name} takes nulls", f"ALTER COLUMN {ident(have.name)} DROP NOT NULL"
    )


def stopped(existing: TargetTable, policy: Evolution, found: Iterable[Change]) -> None:
    """Raises CDC-TGT-126 for a change that the policy does not follow."""
    halting = [change for change in found if getattr(policy, change.kind, None) == "stop"]
    if not halting:
        return
    kinds = sorted({change.kind for change in halting})
    clauses = ", ".join(change.clause for change in halting if change.clause)
    by_hand = f"ALTER TABLE {relation(existing.id)} {clauses};" if clauses else "change the key by hand"
    raise CdcError(
        "CDC-TGT-126",
        "; ".join(change.words for change in halting),
        where=str(existing.id),
        remedy=f"{by_hand} or take `{kinds[0]}: stop` out of `evolution`. Then start the sink again.",
    )


# ---------------------------------------------------------------------------------------------------------------- statements
def alter(session: Session, existing: TargetTable, found: Sequence[Change]) -> None:
    """Make the changes, all in one statement, so that a table is rewritten once. Raises CDC-TGT-125 where something depends on a
    column, Unavailable where the table's lock is not to be had."""
    _independent(session, existing, [change.column for change in found if change.kind in ("retyped", "dropped")])
    statement = f"ALTER TABLE {relation(existing.id)}\n  " + ",\n  ".join(change.clause for change in found)
    with _altering(session, existing):
        session.execute(statement)


@contextmanager
def _altering(session: Session, existing: TargetTable) -> Iterator[None]:
    """Around DDL: checks that wait come first, its lock is waited for briefly, and its errors are the table's."""
    ((usual,),) = session.rows("SELECT setting::integer FROM pg_settings WHERE name = 'lock_timeout'")
    try:
        pending.check(session, existing.id)
        session.execute(f"SET LOCAL lock_timeout = {min(usual or _LOCK_MS, _LOCK_MS)}")
        yield
        session.execute(f"SET LOCAL lock_timeout = {usual}")
    except Refused as error:
        raise CdcError("CDC-TGT-121", f"the table does not change: {error.cause}", where=str(existing.id)) from None
    except CdcError as error:
        if error.code != "CDC-TGT-140":
            raise
        raise CdcError("CDC-TGT-121", f"the table does not change: {error.detail}", where=str(existing.id)) from None


def _independent(session: Session, existing: TargetTable, columns: Sequence[str]) -> None:
    if not columns:
        return
    classes = ", ".join(f"'{name}'::regclass" for name in _DEPENDENTS)
    found = session.rows(
        "SELECT DISTINCT a.attname, v.relkind::text, quote_ident(n.nspname) || '.' || quote_ident(v.relname),"
        " pg_describe_object(d.classid, d.objid, d.objsubid)"
        " FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid"
        " LEFT JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid"
        " LEFT JOIN pg_class v ON v.oid = r.ev_class LEFT JOIN pg_namespace n ON n.oid = v.relnamespace"
        f" WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = {regclass(existing.id)} AND d.deptype = 'n'"
        f" AND d.classid IN ({classes}) AND a.attname IN ({', '.join(map(literal, columns))}) ORDER BY 1, 3, 4"
    )
    if not found:
        return
    kinds = {"v": "VIEW", "m": "MATERIALIZED VIEW"}
    views = list(dict.fromkeys((kinds[kind], name) for _, kind, name, _ in found if kind in kinds))
    things = [
        (f"{kinds[kind].lower()} {name}" if kind in kinds else words, column) for column, kind, name, words in found
    ]
    keep = "; ".join(f"SELECT pg_get_viewdef({literal(name)})" for _, name in views)
    drop = " ".join(f"DROP {kind} {name};" for kind, name in views)
    way = f"Keep its definition ({keep}), {drop}" if views else "Drop it,"
    raise CdcError(
        "CDC-TGT-125",
        ", ".join(f"{thing} uses column {column}" for thing, column in things),
        where=str(existing.id),
        remedy=f"{way} start the sink again, which goes on where it was, and make it again.",
    )


# ---------------------------------------------------------------------------------------------------------------------- keys
def former_key(existing: TargetTable, schema: TableSchema, before: TableSchema | None) -> UniqueIndex | None:
    """The index of the key that the table had and the source's has no more."""
    if before is None or not before.key or set(before.key) == set(schema.key):
        return None
    return existing.key_index(before.key)


def drop_key(session: Session, existing: TargetTable, index: UniqueIndex) -> None:
    """Rows may have equal values of it from now on. Raises CDC-TGT-121 where something depends on it."""
    constraint = _constraint(session, existing, index)
    with _altering(session, existing):
        if constraint is not None:
            session.execute(f"ALTER TABLE {relation(existing.id)} DROP CONSTRAINT {ident(constraint)}")
        else:
            session.execute(f"DROP INDEX {relation(existing.id._replace(name=index.name))}")


def _constraint(session: Session, existing: TargetTable, index: UniqueIndex) -> str | None:
    """The constraint that the index is of, if it is of any."""
    found = session.rows(
        f"SELECT conname FROM pg_constraint WHERE conrelid = {regclass(existing.id)} AND contype IN ('p', 'u')"
        f" AND conindid = {regclass(existing.id._replace(name=index.name))}"
    )
    return found[0][0] if found else None


def make_key(session: Session, existing: TargetTable, key: Sequence[str]) -> None:
    """A unique index on the key of a table that loads. Its rows are of older generations: those that lack a value stay until the
    load ends, twins go."""
    ref, columns = relation(existing.id), names(key)
    create = f"CREATE UNIQUE INDEX ON {ref} ({columns})"
    with _altering(session, existing):
        session.execute("SAVEPOINT keyed")
        try:
            session.execute(create)
        except Refused as error:
            if error.sqlstate != "23505":
                raise
            session.execute("ROLLBACK TO SAVEPOINT keyed")
            same = " AND ".join(f"t.{ident(name)} = d.{ident(name)}" for name in key)
            twins = f"SELECT {columns} FROM {ref} GROUP BY {columns} HAVING count(*) > 1"
            session.execute(f"DELETE FROM {ref} AS t USING ({twins}) AS d WHERE {same}; {create}")
        session.execute("RELEASE SAVEPOINT keyed")


def make_primary(session: Session, existing: TargetTable, key: Sequence[str]) -> None:
    """At the end of a load every row has its key: the index that `make_key` made becomes the primary key's."""
    index = existing.key_index(tuple(key)) if key else None
    if index is None or any(unique.primary for unique in existing.uniques) or _constraint(session, existing, index):
        return
    with _altering(session, existing):
        session.execute(f"ALTER TABLE {relation(existing.id)} ADD PRIMARY KEY USING INDEX {ident(index.name)}")


def follow_seen(session: Session, existing: TargetTable, seen: TargetTable) -> None:
    """The keys that a load has written have the types of the table's."""
    clauses = [
        f"ALTER COLUMN {ident(name)} TYPE {wide} USING {ident(name)}::{wide}"
        for name, have in seen.columns.items()
        for wide in (existing.columns[name].domain or existing.columns[name].type,)
        if (have.domain or have.type) != wide
    ]
    if clauses:
        session.execute(f"ALTER TABLE {relation(seen.id)} {', '.join(clauses)}")


def again(session: Session, existing: TargetTable) -> TargetTable:
    """The table as it is now."""
    found = describe(session, existing.id)
    assert found is not None
    return found
