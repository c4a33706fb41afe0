"""The privileges of the role that capture connects as, as SQL that a DBA runs once: the documentation, `cdc check --grants` and the
tests take them from here, so that what is documented is what is tested.

The role is no superuser and writes no row of the source.
"""

from __future__ import annotations

from collections.abc import Sequence

from cdc.postgres.sql import ident, literal, qualified
from cdc.table import TableId


def source_grants(
    role: str,
    password: str,
    database: str,
    schemas: Sequence[str],
    owners: Sequence[str] = (),
    tables: Sequence[TableId] = (),
) -> list[str]:
    """Statements for a superuser, or an administrator with CREATEROLE, connected to `database`.

    `schemas` are read whole, tables that are made later included; of others only `tables` are. `owners` are the roles that own
    the tables. Membership in them lets capture make the publication and add tables to it, which Postgres allows to nobody but a
    table's owner. Without `owners` capture makes none: the DBA does, with `cdc.postgres.slot.publish_statement`."""
    reader = ident(role)
    single = [table for table in tables if table.schema not in schemas]
    statements = [
        f"CREATE ROLE {reader} LOGIN REPLICATION PASSWORD {literal(password)}",
        f"GRANT CONNECT ON DATABASE {ident(database)} TO {reader}",
    ]
    for schema in schemas:
        statements += [
            f"GRANT USAGE ON SCHEMA {ident(schema)} TO {reader}",
            f"GRANT SELECT ON ALL TABLES IN SCHEMA {ident(schema)} TO {reader}",
        ]
    statements += [
        f"GRANT USAGE ON SCHEMA {ident(schema)} TO {reader}" for schema in sorted({t.schema for t in single})
    ]
    statements += [f"GRANT SELECT ON TABLE {qualified(table)} TO {reader}" for table in single]
    for schema in schemas:
        # Tables that are made later: the default belongs to whoever makes them.
        statements += [
            f"ALTER DEFAULT PRIVILEGES FOR ROLE {ident(owner)} IN SCHEMA {ident(schema)} GRANT SELECT ON TABLES TO {reader}"
            for owner in owners
        ]
    if owners:
        statements.append(f"GRANT CREATE ON DATABASE {ident(database)} TO {reader}")
        statements += [f"GRANT {ident(owner)} TO {reader}" for owner in owners]
    return statements
