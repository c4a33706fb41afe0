"""The preflight of a target: everything that would stop the sink later, found before it starts. Reads only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cdc.catalogue import CATALOGUE
from cdc.errors import CdcError
from cdc.source import Finding
from cdc.table import TableId, TableSchema
from sinks.postgres import shape
from sinks.postgres.bookkeeping import VERSION
from sinks.postgres.session import Session
from sinks.postgres.sql import ident, literal, relation
from sinks.postgres.target import describe, regclass

VERSION_MIN = 130000


def check(url: str, tables: Iterable[tuple[TableId, TableSchema]]) -> list[Finding]:
    """Findings about the server, the role's privileges, and each target table against the source's."""
    try:
        session = Session(url, "penstock-check")
    except CdcError as error:
        return [Finding("error", error.code, error.detail, "target", error.remedy or "")]
    try:
        return [*_server(session), *(found for target, table in tables for found in _table(session, target, table))]
    except CdcError as error:
        return [Finding("error", error.code, error.detail, error.where or "target", error.remedy or "")]
    finally:
        session.close()


def _error(code: str, detail: str, where: str, remedy: str = "") -> Finding:
    return Finding("error", code, detail, where, remedy or CATALOGUE[code].remedy)


def _server(session: Session) -> Iterator[Finding]:
    (found,) = session.rows(
        "SELECT current_database(), current_user, pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean,"
        " pg_encoding_to_char(encoding), has_database_privilege(oid, 'CREATE'), has_database_privilege(oid, 'TEMPORARY'),"
        " EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = '_cdc') FROM pg_database WHERE datname = current_database()"
    )
    database, role, read_only, encoding, create, temporary, booked = found
    if session.version < VERSION_MIN:
        yield _error("CDC-TGT-105", f"the server's version is {session.version}, 13 is the oldest", database)
    if encoding != "UTF8":
        yield _error("CDC-TGT-105", f"the database's encoding is {encoding}, not UTF8", database)
    if read_only:
        yield _error("CDC-TGT-104", "the server is a standby, or transactions are read-only by default", database)
    if not (create or booked):
        yield _error(
            *("CDC-TGT-103", f"{role} may not create the schema _cdc", database),
            f"GRANT CREATE ON DATABASE {ident(database)} TO {ident(role)}",
        )
    if not temporary:
        yield _error(
            *("CDC-TGT-103", f"{role} may not create temporary tables", database),
            f"GRANT TEMPORARY ON DATABASE {ident(database)} TO {ident(role)}",
        )
    if booked and session.rows("SELECT max(version) FROM _cdc.meta")[0][0] not in range(1, VERSION + 1):
        yield _error("CDC-TGT-112", "_cdc.meta holds another version", database)


def _table(session: Session, target: TableId, table: TableSchema) -> Iterator[Finding]:
    existing = describe(session, target)
    (role,) = session.rows("SELECT current_user")[0]
    if existing is None:
        allowed = session.rows(
            "SELECT has_schema_privilege(oid, 'CREATE') AND has_schema_privilege(oid, 'USAGE')"
            f" FROM pg_namespace WHERE nspname = {literal(target.schema)}"
        ) or session.rows("SELECT has_database_privilege(current_database(), 'CREATE')")
        if not allowed[0][0]:
            yield _error(
                *("CDC-TGT-103", f"{role} may not create {target}", str(target)),
                f"GRANT USAGE, CREATE ON SCHEMA {ident(target.schema)} TO {ident(role)}",
            )
        return
    (privileges,) = session.rows(
        "SELECT "
        + " AND ".join(
            f"has_table_privilege({regclass(target)}, '{privilege}')"
            for privilege in ("SELECT", "INSERT", "UPDATE", "DELETE")
        )
    )
    if not privileges[0]:
        yield _error(
            *("CDC-TGT-103", f"{role} may not write {target}", str(target)),
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON {relation(target)} TO {ident(role)}",
        )
    found = shape.differences(existing, table, shape.wanted_types(session, table, verbatim=True))
    if found:
        yield _error("CDC-TGT-120", "; ".join(found), str(target))
    (unowned,) = session.rows(
        "SELECT array_agg(DISTINCT pg_get_userbyid(c.relowner)::text) FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid"
        f" WHERE k.contype = 'f' AND k.conparentid = 0 AND {regclass(target)} IN (k.conrelid, k.confrelid)"
        " AND NOT pg_has_role(c.relowner, 'USAGE')"
    )
    for owner in unowned[0] or ():
        yield _error(
            *("CDC-TGT-122", f"foreign keys of or into {target} belong to {owner}", str(target)),
            f"GRANT {ident(owner)} TO {ident(role)}",
        )
