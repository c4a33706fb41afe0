"""A target table made, adopted or evolved to take a table of the log.

An existing table is adopted as it is, save for columns that it lacks; whatever else differs is an error that lists all differences
at once. How a table of ours follows later versions is in `evolution`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from cdc import failpoints
from cdc.errors import CdcError
from cdc.table import Column, TableId, TableSchema
from sinks.postgres import evolution, types
from sinks.postgres.bookkeeping import TableRow
from sinks.postgres.session import Session
from sinks.postgres.sql import ident, literal, names, relation
from sinks.postgres.target import TargetTable, describe
from sinks.sink import Evolution

_PART = r'(?:"(?:[^"]|"")+"|[a-z_][a-z0-9_$]*)'
_MODIFIER = r"(?:-?\d+|[A-Za-z]+)"  # a word is an extension's: geometry(PointZ,4326)
# What format_type prints, and nothing else: the text goes into DDL.
_TYPE = re.compile(rf"{_PART}(?:\.{_PART})?(?: [a-z]+)*(?:\({_MODIFIER}(?:,{_MODIFIER})*\))?(?: [a-z]+)*(?:\[\])*\Z")
_NAME_BYTES_MAX = 63
DEFAULT = Evolution()


def source_is_postgres(value_schema: Any) -> bool:
    """Are the verbatim source types Postgres' own?"""
    source = next(field["type"] for field in value_schema["fields"] if field["name"] == "source")
    return str(source.get("namespace", "")).endswith(".postgresql")


def wanted_types(session: Session, schema: TableSchema, verbatim: bool) -> dict[str, str]:
    """The type that each column would be made with. `verbatim`: the source's own types are used where the target has them."""
    known: set[str] = set()
    asked = (
        sorted({column.source_type for column in schema.columns if _TYPE.match(column.source_type)}) if verbatim else []
    )
    if asked:
        (found,) = session.rows("SELECT " + ", ".join(f"to_regtype({literal(text)}) IS NOT NULL" for text in asked))
        known = {text for text, exists in zip(asked, found, strict=True) if exists and not types.is_printed(text)}
    unread = {"xml"} if any(_is_xml(column) for column in schema.columns) and not _reads_xml(session) else frozenset()
    return {
        column.name: column.source_type
        if column.source_type in known and not (unread and _is_xml(column))
        else types.form_of(column.type, unread)
        for column in schema.columns
    }


def _is_xml(column: Column) -> bool:
    return (column.type.element or column.type).kind == "xml"


def _reads_xml(session: Session) -> bool:
    """Every server has the type; one that was built without libxml takes no value of it."""
    session.execute(
        "DO $$BEGIN PERFORM set_config('penstock.xml', CAST('<a/>' AS xml)::text, false);"
        " EXCEPTION WHEN feature_not_supported THEN PERFORM set_config('penstock.xml', '', false); END$$"
    )
    return bool(session.rows("SELECT current_setting('penstock.xml') <> ''")[0][0])


def shaped(
    session: Session,
    target: TableId,
    schema: TableSchema,
    row: TableRow,
    verbatim: bool,
    like: TargetTable | None = None,
    *,
    policy: Evolution = DEFAULT,
    before: TableSchema | None = None,
    begins: bool = False,
) -> tuple[TargetTable, TableRow]:
    """The target table, made, adopted or evolved so that it takes rows of `schema`; and `row` with what became of it. One that is
    made has the types of `like`, where they are wide enough, and its columns take nulls: a later version may.

    `before` is the version that the table took last. A load `begins`: the key may change.
    Raises CDC-TGT-120 for a table that cannot be adopted, CDC-TGT-121, -125 or -126 for a change that is not followed.
    """
    for name in (*target, *schema.by_name):
        if len(name.encode()) > _NAME_BYTES_MAX:
            raise CdcError("CDC-TGT-120", f"the name {name} has more than {_NAME_BYTES_MAX} bytes", where=str(target))
    wanted = wanted_types(session, schema, verbatim)
    existing = describe(session, target)
    if existing is None:
        _create(session, target, schema, wanted, like)
        made = describe(session, target)
        assert made is not None
        return made, replace(row, created=True)
    if not (row.created or row.adopted):
        return _adopted(session, existing, schema, wanted), replace(row, adopted=True)
    return _evolved(session, existing, schema, wanted, policy, before, row.created, begins), row


def _create(
    session: Session, target: TableId, schema: TableSchema, wanted: dict[str, str], like: TargetTable | None
) -> None:
    if not session.rows(f"SELECT 1 FROM pg_namespace WHERE nspname = {literal(target.schema)}"):
        session.execute(f"CREATE SCHEMA {ident(target.schema)}")
    parts = [
        f"{ident(column.name)} {_type_as(like, column, wanted[column.name])}"
        f"{'' if column.nullable or like is not None else ' NOT NULL'}"
        for column in schema.columns
    ]
    parts += [f"PRIMARY KEY ({names(schema.key)})"] if schema.key else []
    session.execute(f"CREATE TABLE {relation(target)} (\n  " + ",\n  ".join(parts) + "\n)")


def _type_as(like: TargetTable | None, column: Column, wanted: str) -> str:
    have = like.columns.get(column.name) if like is not None else None
    return (
        wanted
        if have is None or have.generated or not evolution.fits(have, column, wanted)
        else have.domain or have.type
    )


# ------------------------------------------------------------------------------------------------------------ differences
def differences(existing: TargetTable, schema: TableSchema, wanted: dict[str, str]) -> list[str]:
    """Why an existing table cannot be adopted; columns that it lacks are no reason."""
    if existing.kind not in ("r", "p"):
        return ["it is not an ordinary table"]
    found = _key_differences(existing, schema)
    for column in schema.columns:
        have = existing.columns.get(column.name)
        if have is None:
            continue
        if not evolution.fits(have, column, wanted[column.name]):
            found.append(f"column {column.name} is {have.type}, which does not hold every {wanted[column.name]}")
        if have.not_null and column.nullable and not have.generated and column.name not in schema.key:
            found.append(f"column {column.name} is NOT NULL and the source's is not")
    for have in existing.columns.values():
        if have.name not in schema.by_name and evolution.must_be_given(have):
            found.append(f"column {have.name} is NOT NULL without a default, and the source has no such column")
    return found


def _key_differences(existing: TargetTable, schema: TableSchema) -> list[str]:
    found = []
    for name in schema.key:
        have = existing.columns.get(name)
        if have is None or have.generated:
            found.append(f"key column {name} is {'missing' if have is None else 'generated'}")
    if schema.key and existing.key_index(schema.key) is None:
        found.append(
            f"there is no unique index on exactly ({', '.join(schema.key)}) that is not partial, deferrable or invalid"
        )
    found += [
        f"column {have.name} is GENERATED ALWAYS AS IDENTITY and not part of the key"
        for have in existing.columns.values()
        if have.identity == "a" and have.name in schema.by_name and have.name not in schema.key and schema.key
    ]
    return found


def _adopted(session: Session, existing: TargetTable, schema: TableSchema, wanted: dict[str, str]) -> TargetTable:
    if found := differences(existing, schema, wanted):
        raise CdcError("CDC-TGT-120", "; ".join(found), where=str(existing.id))
    if missing := evolution.added(existing, schema, wanted):
        evolution.alter(session, existing, missing)
        return evolution.again(session, existing)
    return existing


def _evolved(
    session: Session,
    existing: TargetTable,
    schema: TableSchema,
    wanted: dict[str, str],
    policy: Evolution,
    before: TableSchema | None,
    created: bool,
    begins: bool,
) -> TargetTable:
    drops = policy.dropped == "stop" or (policy.dropped == "drop" and created)
    changes = evolution.changes(existing, schema, wanted, before, drops)
    former = evolution.former_key(existing, schema, before)
    lacks = bool(schema.key) and existing.key_index(schema.key) is None
    rekeyed = begins and created and (lacks or former is not None)
    key = ", ".join(schema.key)
    if rekeyed:
        words = f"its key was ({', '.join(before.key) if before else ''}) and is ({key}) now"
        evolution.stopped(existing, policy, [*changes, evolution.Change("rekeyed", "", words, "")])
    elif found := _key_differences(existing, schema):
        raise CdcError(
            "CDC-TGT-121", "; ".join(found), where=str(existing.id), remedy=_by_hand(existing, schema, wanted)
        )
    evolution.stopped(existing, policy, changes)
    if not (changes or rekeyed):
        return existing
    if rekeyed and former is not None:
        evolution.drop_key(session, existing, former)
    if changes:
        evolution.alter(session, existing, changes)
    if rekeyed and lacks:
        evolution.make_key(session, existing, schema.key)
    failpoints.hit("sink.evolved")
    return evolution.again(session, existing)


def _by_hand(existing: TargetTable, schema: TableSchema, wanted: dict[str, str]) -> str:
    missing = [change.clause for change in evolution.added(existing, schema, wanted) if change.column in schema.key]
    add = f"ALTER TABLE {relation(existing.id)} {', '.join(missing)}; " if missing else ""
    return (
        f"Make the source's key the table's: {add}CREATE UNIQUE INDEX ON {relation(existing.id)} ({names(schema.key)}); drop the"
        " unique indexes that the source does not have any more. Then start the sink again."
    )
