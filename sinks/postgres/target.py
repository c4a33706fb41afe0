"""A table of the target as its catalogue describes it: columns, unique indexes, and what would notice a delete.

Read once per session and after each change of ours; a snapshot of facts, without behaviour of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from cdc.table import TableId
from sinks.postgres.session import Session
from sinks.postgres.sql import literal


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """`type` is format_type's text of the base type (a domain's own name is in `domain`). `identity` is '', 'a' (always) or 'd'.
    `delimiter` stands between the elements of its arrays."""

    name: str
    type: str
    domain: str | None
    is_enum: bool
    not_null: bool
    has_default: bool
    generated: bool
    identity: str
    delimiter: str = ","


@dataclass(frozen=True, slots=True)
class UniqueIndex:
    """`expressions` are its key columns or expressions as SQL; `columns` their names, when all are columns. `usable`: valid, total
    and not deferrable, so that ON CONFLICT takes it. `equal` are the equality operators of its operator classes. `primary`: it is
    the primary key's."""

    name: str
    expressions: tuple[str, ...]
    columns: tuple[str, ...] | None
    predicate: str | None
    nulls_equal: bool
    usable: bool
    equal: tuple[str, ...]
    primary: bool


@dataclass(frozen=True, slots=True)
class TargetTable:
    """`kind` is pg_class.relkind. `triggers`: enabled ones of users. `referenced`: some foreign key points here.
    `refers`: tables that its foreign keys point to."""

    id: TableId
    kind: str
    is_partition: bool
    columns: dict[str, TargetColumn]
    uniques: tuple[UniqueIndex, ...]
    triggers: bool
    referenced: bool
    refers: frozenset[TableId]

    def key_index(self, key: tuple[str, ...]) -> UniqueIndex | None:
        """A unique index on exactly these columns that ON CONFLICT can use."""
        for index in self.uniques:
            if index.usable and index.columns is not None and sorted(index.columns) == sorted(key):
                return index
        return None


def regclass(table: TableId) -> str:
    """SQL that looks the table's oid up by name; no row if it is absent."""
    return (
        "(SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        f" WHERE n.nspname = {literal(table.schema)} AND c.relname = {literal(table.name)})"
    )


def describe(session: Session, table: TableId) -> TargetTable | None:
    """The table, or None if there is no relation of that name."""
    found = session.rows(
        "SELECT c.oid, c.relkind::text, c.relispartition,"
        " EXISTS (SELECT 1 FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A')),"
        " EXISTS (SELECT 1 FROM pg_constraint k WHERE k.confrelid = c.oid AND k.contype = 'f')"
        f" FROM pg_class c WHERE c.oid = {regclass(table)}"
    )
    if not found:
        return None
    oid, kind, is_partition, triggers, referenced = found[0]
    refers = session.rows(
        "SELECT n.nspname, c.relname FROM pg_constraint k JOIN pg_class c ON c.oid = k.confrelid"
        f" JOIN pg_namespace n ON n.oid = c.relnamespace WHERE k.conrelid = {oid} AND k.contype = 'f'"
    )
    return TargetTable(
        table,
        kind,
        is_partition,
        _columns(session, oid),
        _uniques(session, oid),
        triggers,
        referenced,
        frozenset(TableId(*row) for row in refers),
    )


def _columns(session: Session, oid: int) -> dict[str, TargetColumn]:
    found = session.rows(
        "WITH RECURSIVE base (num, type, typmod, depth) AS ("
        f" SELECT attnum, atttypid, atttypmod, 0 FROM pg_attribute WHERE attrelid = {oid} AND attnum > 0 AND NOT attisdropped"
        " UNION ALL SELECT num, typbasetype, typtypmod, depth + 1 FROM base JOIN pg_type t ON t.oid = type"
        " WHERE t.typtype = 'd')"
        " SELECT a.attname, format_type(b.type, b.typmod),"
        " CASE WHEN a.atttypid <> b.type THEN format_type(a.atttypid, a.atttypmod) END, t.typtype = 'e', a.attnotnull,"
        " a.atthasdef, a.attgenerated <> '', a.attidentity::text, t.typdelim::text"
        " FROM pg_attribute a JOIN base b ON b.num = a.attnum JOIN pg_type t ON t.oid = b.type AND t.typtype <> 'd'"
        f" WHERE a.attrelid = {oid} ORDER BY a.attnum"
    )
    return {row[0]: TargetColumn(*row) for row in found}


def _uniques(session: Session, oid: int) -> tuple[UniqueIndex, ...]:
    nulls_equal = "i.indnullsnotdistinct" if session.version >= 150000 else "false"
    equality = (
        "SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname) FROM pg_amop p JOIN pg_operator o ON o.oid = p.amopopr"
        " JOIN pg_namespace n ON n.oid = o.oprnamespace WHERE p.amopfamily = oc.opcfamily AND p.amopstrategy = 3"
        " AND p.amoplefttype = oc.opcintype AND p.amoprighttype = oc.opcintype"
    )
    found = session.rows(
        "SELECT c.relname, array_agg(pg_get_indexdef(i.indexrelid, k.n::integer, false) ORDER BY k.n),"
        " array_agg(a.attname::text ORDER BY k.n), pg_get_expr(i.indpred, i.indrelid),"
        f" {nulls_equal}, i.indisvalid AND i.indimmediate AND i.indpred IS NULL,"
        f" array_agg(coalesce(({equality}), '=') ORDER BY k.n), i.indisprimary"
        " FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " CROSS JOIN LATERAL generate_series(1, i.indnkeyatts) AS k (n)"
        " JOIN pg_opclass oc ON oc.oid = i.indclass[k.n - 1]"
        " LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k.n - 1] AND a.attnum > 0"
        f" WHERE i.indrelid = {oid} AND i.indisunique GROUP BY i.indexrelid, c.relname, i.indpred, i.indrelid, i.indisvalid,"
        f" i.indimmediate, i.indisprimary, {nulls_equal} ORDER BY i.indisprimary DESC, c.relname"
    )
    return tuple(
        UniqueIndex(
            name,
            tuple(exprs),
            tuple(cols) if None not in cols else None,
            predicate,
            equal_nulls,
            usable,
            tuple(ops),
            primary,
        )
        for name, exprs, cols, predicate, equal_nulls, usable, ops, primary in found
    )
