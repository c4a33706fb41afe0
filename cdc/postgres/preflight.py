"""What must be true of a server before it is captured, each finding with the statement that mends it. Reads only.

The invariant: nothing that would lose, shorten or tear a stream later passes here as less than an error. The same code runs
for `cdc check`, at every start and at every reconnect.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from cdc.catalogue.postgres import ENTRIES
from cdc.errors import EXIT_UNAVAILABLE, CdcError, Unavailable, entry
from cdc.postgres import blockers, facts, slot, sql
from cdc.postgres.facts import Table
from cdc.postgres.session import Session
from cdc.postgres.slot import Publications
from cdc.selection import Pattern, TableFilter
from cdc.source import Finding
from cdc.table import TableId

VERSIONS = range(14, 19)
OLD_TRANSACTION = "5 minutes"
SENDER_TIMEOUT_MIN_S = 10


class Plan(NamedTuple):
    """What capture is about to use: its names, the selected tables as the catalog has them, and by what they were selected."""

    slot: str
    publications: Publications
    tables: Sequence[Table]
    insert_only: frozenset[TableId]
    wanted: TableFilter = TableFilter()


def error(code: str, detail: str, where: str = "", remedy: str | None = None) -> Finding:
    return Finding("error", code, detail, where, ENTRIES[code].remedy if remedy is None else remedy)


def warning(code: str, detail: str, where: str = "", remedy: str | None = None) -> Finding:
    return Finding("warning", code, detail, where, ENTRIES[code].remedy if remedy is None else remedy)


def findings(session: Session, plan: Plan) -> list[Finding]:
    """All of them, errors first."""
    checks: tuple[Callable[[Session, Plan], Iterator[Finding]], ...] = (
        _server,
        _role,
        _capacity,
        _tables,
        _left_out,
        _partitions,
        _publications,
        _retention,
        _old_transactions,
    )
    found = [finding for check in checks for finding in check(session, plan)]
    return sorted(found, key=lambda finding: finding.severity != "error")


def table_findings(session: Session, plan: Plan) -> list[Finding]:
    """Those of the tables alone, for tables that join a running capture."""
    return [*_tables(session, plan), *_partitions(session, plan), *_publications(session, plan)]


def _server(session: Session, _plan: Plan) -> Iterator[Finding]:
    major = session.server_version // 10000
    if major not in VERSIONS:
        yield error("CDC-PG-110", f"the server is version {major}")
    level, recovering, encoding = session.run(
        "SELECT current_setting('wal_level'), pg_catalog.pg_is_in_recovery(), current_setting('server_encoding')"
    )[0]
    if level != "logical":
        yield error("CDC-PG-112", f"wal_level is {level}")
    if recovering == "t":
        yield error("CDC-PG-113", "the server is a standby")
    if encoding == "SQL_ASCII":
        yield error("CDC-PG-114", "the database's encoding is SQL_ASCII")


def _role(session: Session, _plan: Plan) -> Iterator[Finding]:
    role, allowed = session.run(
        "SELECT rolname, rolreplication OR rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user"
    )[0]
    if allowed != "t":
        yield error(
            "CDC-PG-115",
            f"role {role} lacks REPLICATION",
            role or "",
            f"ALTER ROLE {sql.ident(role or '')} REPLICATION",
        )


def _capacity(session: Session, plan: Plan) -> Iterator[Finding]:
    slots, slots_max, senders, senders_max = session.run(
        """SELECT (SELECT count(*) FROM pg_catalog.pg_replication_slots), current_setting('max_replication_slots'),
                  (SELECT count(*) FROM pg_catalog.pg_stat_replication), current_setting('max_wal_senders')"""
    )[0]
    if int(slots or 0) >= int(slots_max or 0) and slot.find(session, plan.slot) is None:
        idle = session.run("SELECT slot_name FROM pg_catalog.pg_replication_slots WHERE NOT active ORDER BY 1")
        unread = f"; nobody reads {', '.join(str(row[0]) for row in idle)}" if idle else ""
        yield error("CDC-PG-111", f"all {slots_max} replication slots are taken{unread}")
    if int(senders_max or 0) == 0:
        yield error("CDC-PG-116", "max_wal_senders is 0")
    elif int(senders or 0) >= int(senders_max or 0):
        yield error("CDC-PG-116", f"all {senders_max} walsenders are busy")
    role, timeout_ms = session.run(
        "SELECT current_user, setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'"
    )[0]
    if 0 < int(timeout_ms or 0) < SENDER_TIMEOUT_MIN_S * 1000:
        detail = f"wal_sender_timeout is {int(timeout_ms or 0) / 1000:g} s: a short pause ends the stream"
        yield warning("CDC-PG-118", detail, "", f"ALTER ROLE {sql.ident(role or '')} SET wal_sender_timeout = '60s'")


def _tables(session: Session, plan: Plan) -> Iterator[Finding]:
    if not plan.tables:
        yield error("CDC-PG-137", "the selection matches no table")
    for pattern in plan.wanted.unmatched(table.id for table in plan.tables):
        yield from _unmatched(session, pattern)
    role = session.run("SELECT current_user")[0][0] or ""
    readable = _readable(session, plan.tables)
    for table in plan.tables:
        where = str(table.id)
        if table.persistence == "u":
            remedy = f"ALTER TABLE {sql.qualified(table.id)} SET LOGGED"
            yield warning("CDC-PG-134", f"{where} is unlogged and is left out", where, remedy)
            continue
        schema_allowed, table_allowed = readable[table.oid]
        if not schema_allowed:
            remedy = f"GRANT USAGE ON SCHEMA {sql.ident(table.id.schema)} TO {sql.ident(role)}"
            yield error("CDC-PG-104", f"role {role} may not use schema {table.id.schema}", where, remedy)
        if not table_allowed:
            remedy = f"GRANT SELECT ON {sql.qualified(table.id)} TO {sql.ident(role)}"
            yield error("CDC-PG-104", f"role {role} may not read {where}", where, remedy)
        if table.row_security:
            remedy = f"ALTER ROLE {sql.ident(role)} BYPASSRLS"
            yield error("CDC-PG-133", f"row security hides rows of {where} from role {role}", where, remedy)
        yield from identity(table, plan.insert_only)


def _left_out(session: Session, plan: Plan) -> Iterator[Finding]:
    """Tables that the patterns take and whose changes are in no log: foreign and temporary ones."""
    rows = session.run(
        """SELECT n.nspname, c.relname, CASE c.relkind WHEN 'f' THEN 'a foreign table' ELSE 'a temporary table' END
           FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
           WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')
               AND (c.relkind = 'f' OR (c.relpersistence = 't' AND c.relkind IN ('r', 'p'))) ORDER BY 1, 2"""
    )
    for schema, name, kind in rows:
        table = TableId(schema or "", name or "")
        if plan.wanted.matches(table):
            remedy = f"Name it in `tables:` of the pipeline file: {json.dumps('!' + str(table))}"
            yield warning("CDC-PG-139", f"{table} is {kind} and is left out", str(table), remedy)


def _unmatched(session: Session, pattern: str) -> Iterator[Finding]:
    """What a pattern names that is no table to capture, or that it names nothing; `_left_out` names what is of another kind."""
    table = Pattern.parse(pattern).table
    rows = session.run(
        """SELECT CASE WHEN c.relispartition THEN 'a partition' WHEN c.relkind = 'v' THEN 'a view'
                       WHEN c.relkind = 'm' THEN 'a materialized view' WHEN c.relkind IN ('r', 'p') THEN 'a table without columns' END,
                  c.relkind = 'f',
                  (SELECT r.nspname || '.' || p.relname FROM pg_catalog.pg_class p
                   JOIN pg_catalog.pg_namespace r ON r.oid = p.relnamespace
                   WHERE c.relispartition AND p.oid = pg_catalog.pg_partition_root(c.oid))
           FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
           WHERE n.nspname = $1 AND c.relname = $2""",
        list(table or ("", "")),
    )
    kind, foreign, root = rows[0] if rows else (None, "f", None)
    if kind is not None:
        remedy = f"Name {root} instead: its partitions come under its name." if root else None
        yield warning("CDC-PG-139", f"{table} is {kind} and is left out", str(table), remedy)
    elif foreign != "t":
        yield warning("CDC-PG-138", f"nothing matches {pattern}")


def identity(table: Table, insert_only: frozenset[TableId]) -> Iterator[Finding]:
    """The one finding about a table whose updates and deletes nobody could follow."""
    if not table.identified and table.id not in insert_only:
        detail = f"{table.id} has no usable replica identity: give it one, or set insert_only for it under `rules:`"
        yield error("CDC-PG-132", detail, str(table.id), _full(table.id))


def _full(table: TableId) -> str:
    return f"ALTER TABLE {sql.qualified(table)} REPLICA IDENTITY FULL"


def _readable(session: Session, tables: Sequence[Table]) -> dict[int, tuple[bool, bool]]:
    rows = session.run(
        """SELECT c.oid, pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE'),
                  pg_catalog.has_table_privilege(c.oid, 'SELECT')
           FROM pg_catalog.pg_class c WHERE c.oid = ANY ($1::oid[])""",
        [sql.text_array(str(table.oid) for table in tables)],
    )
    return {int(oid or 0): (schema == "t", table == "t") for oid, schema, table in rows}


def _partitions(session: Session, plan: Plan) -> Iterator[Finding]:
    """A leaf has its own replica identity, which nothing keeps equal to the root's."""
    roots = {child[0]: table for table in plan.tables if table.id not in plan.insert_only for child in table.children}
    for oid, leaf in facts.by_oid(session, plan.publications, roots).items():
        root, where = roots[oid], str(leaf.id)
        if not leaf.identified:
            yield error(
                "CDC-PG-132", f"partition {where} of {root.id} has no usable replica identity", where, _full(leaf.id)
            )
        elif leaf.identity != "f" and (leaf.identity != root.identity or leaf.key(False) != root.key(False)):
            detail = f"the replica identity of partition {where} differs from that of {root.id}"
            yield error("CDC-PG-132", detail, where, _full(leaf.id))


def _publications(session: Session, plan: Plan) -> Iterator[Finding]:
    existing = slot.owned(session, plan.publications)
    for table in plan.tables:
        if table.filtered:
            named, only = sql.ident(plan.publications[table.id in plan.insert_only]), f"ONLY {sql.qualified(table.id)}"
            again = f"ALTER PUBLICATION {named} DROP TABLE {only}; ALTER PUBLICATION {named} ADD TABLE {only}"
            detail = f"a publication leaves out rows of {table.id}"
            yield error("CDC-PG-136", detail, str(table.id), f"BEGIN; {again}; COMMIT")
    may_create, *_ = session.run("SELECT has_database_privilege(current_database(), 'CREATE')")[0]
    foreign = _not_ours(session, plan.tables)
    for name, inserts in ((plan.publications.all, False), (plan.publications.inserts, True)):
        usable = [
            table for table in plan.tables if table.persistence != "u" and (table.id in plan.insert_only) == inserts
        ]
        missing = [table.id for table in usable if not (table.inserts if inserts else table.whole)]
        statement = slot.publish_statement(name, missing, inserts=inserts, exists=name in existing)
        named = ", ".join(map(str, missing))
        if name in existing and not existing[name]:
            if not inserts and (reason := slot.incomplete(session, name)):
                whole = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true"
                remedy = f"ALTER PUBLICATION {sql.ident(name)} SET ({whole})"
                yield error("CDC-PG-135", f"publication {name} belongs to another role and {reason}", name, remedy)
            if moved := [
                table.id for table in plan.tables if table.whole and table.id in plan.insert_only and not inserts
            ]:
                detail = f"publication {name} belongs to another role and sends more than the inserts of {', '.join(map(str, moved))}"
                yield error("CDC-PG-131", detail, name, slot.withdraw_statement(name, moved))
            if missing:
                yield error(
                    "CDC-PG-131", f"publication {name} belongs to another role and lacks {named}", name, statement
                )
        elif missing and name not in existing and may_create != "t":
            yield error(
                "CDC-PG-131", "the role may not create a publication: it lacks CREATE on the database", name, statement
            )
        elif others := [table for table in missing if table in foreign]:
            detail = f"the role may not publish {', '.join(map(str, others))}: only a table's owner may"
            yield error("CDC-PG-131", detail, name, statement)


def _not_ours(session: Session, tables: Sequence[Table]) -> set[TableId]:
    rows = session.run(
        "SELECT oid FROM pg_catalog.pg_class WHERE oid = ANY ($1::oid[]) AND NOT pg_catalog.pg_has_role(relowner, 'USAGE')",
        [sql.text_array(str(table.oid) for table in tables)],
    )
    oids = {int(row[0] or 0) for row in rows}
    return {table.id for table in tables if table.oid in oids}


def _retention(session: Session, plan: Plan) -> Iterator[Finding]:
    rows = session.run(
        """SELECT name, setting || coalesce(unit, '') FROM pg_catalog.pg_settings
           WHERE (name = 'max_slot_wal_keep_size' AND setting <> '-1') OR (name = 'idle_replication_slot_timeout' AND setting <> '0')"""
    )
    for name, value in rows:
        kept = name == "max_slot_wal_keep_size"
        if kept and (found := _small(session, plan)):
            yield found
            continue
        remedy = f"ALTER SYSTEM SET {name} = {-1 if kept else 0}; SELECT pg_reload_conf()"
        detail = f"{name} is {value}: the server gives up the slot of a capture that is away for long"
        yield warning("CDC-PG-140", detail, "", remedy)


def _small(session: Session, plan: Plan) -> Finding | None:
    """Is the limit less than what a load of all tables reads, by the planner's figures? They take no lock, which sizes would."""
    size, limit = session.run(
        """WITH RECURSIVE tree (oid) AS (
               SELECT unnest($1::oid[]) UNION SELECT i.inhrelid FROM tree JOIN pg_catalog.pg_class p ON p.oid = tree.oid
               JOIN pg_catalog.pg_inherits i ON i.inhparent = p.oid WHERE p.relkind = 'p')
           SELECT coalesce(sum(c.relpages::int8 + coalesce(t.relpages, 0)), 0)::int8 * current_setting('block_size')::int8,
               pg_catalog.pg_size_bytes((SELECT setting || unit FROM pg_catalog.pg_settings WHERE name = 'max_slot_wal_keep_size'))
           FROM tree JOIN pg_catalog.pg_class c ON c.oid = tree.oid LEFT JOIN pg_catalog.pg_class t ON t.oid = c.reltoastrelid""",
        [sql.text_array(str(table.oid) for table in plan.tables if table.persistence == "p")],
    )[0]
    expected_mb, limit_mb = int(size or 0) >> 20, int(limit or 0) >> 20
    if expected_mb <= limit_mb:
        return None
    detail = f"max_slot_wal_keep_size is {limit_mb} MB, and a load of the selected tables reads about {expected_mb} MB"
    remedy = f"ALTER SYSTEM SET max_slot_wal_keep_size = '{2 * expected_mb}MB'; SELECT pg_reload_conf()"
    return warning("CDC-PG-119", detail, "", remedy)


def _old_transactions(session: Session, _plan: Plan) -> Iterator[Finding]:
    for named in blockers.running(session, older_than=OLD_TRANSACTION):
        statement = named.rpartition(", which ")[2].removesuffix(" ends")
        yield warning("CDC-PG-141", f"open for more than {OLD_TRANSACTION}: {named}", "", statement)


def demand(findings: Iterable[Finding], passing: Sequence[str] = ()) -> None:
    """Raise the first error among them; one that passes by itself, or is one of `passing`, as such."""
    for finding in findings:
        if finding.severity == "error":
            passes = finding.code in passing or entry(finding.code).exit_code == EXIT_UNAVAILABLE
            kind = Unavailable if passes else CdcError
            raise kind(finding.code, finding.detail, where=finding.where or None, remedy=finding.remedy)
