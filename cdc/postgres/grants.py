"""The privileges of the role that capture connects as, as SQL that a DBA runs once: the documentation, `cdc check --grants` and the
tests take them from here, so that what is documented is what is tested.

The role is no superuser and writes no row of the source.
"""

from __future__ import annotations

from collections.abc import Sequence


def source_grants(
    role: str, password: str, database: str, schemas: Sequence[str], owners: Sequence[str] = ()
) -> list[str]:
    """Statements for a superuser, or an administrator with CREATEROLE, connected to `database`.

    `owners` are the roles that own the tables. Membership in them lets capture make the publication and add tables to it, which
    Postgres allows to nobody but a table's owner. Without `owners` capture makes none: the DBA does, with `publication`."""
    reader = _ident(role)
    statements = [
        f"CREATE ROLE {reader} LOGIN REPLICATION PASSWORD {_literal(password)}",
        f"GRANT CONNECT ON DATABASE {_ident(database)} TO {reader}",
    ]
    for schema in schemas:
        statements += [
            f"GRANT USAGE ON SCHEMA {_ident(schema)} TO {reader}",
            f"GRANT SELECT ON ALL TABLES IN SCHEMA {_ident(schema)} TO {reader}",
        ]
        # Tables that are made later: the default belongs to whoever makes them.
        statements += [
            f"ALTER DEFAULT PRIVILEGES FOR ROLE {_ident(owner)} IN SCHEMA {_ident(schema)} GRANT SELECT ON TABLES TO {reader}"
            for owner in owners
        ]
    if owners:
        statements.append(f"GRANT CREATE ON DATABASE {_ident(database)} TO {reader}")
        statements += [f"GRANT {_ident(owner)} TO {reader}" for owner in owners]
    return statements


def publication(name: str, tables: Sequence[tuple[str, str]]) -> str:
    """The publication that a DBA makes for a capture that owns no table: `tables` are (schema, table)."""
    listed = ", ".join(f"{_ident(schema)}.{_ident(table)}" for schema, table in tables)
    return f"CREATE PUBLICATION {_ident(name)} FOR TABLE {listed} WITH (publish_via_partition_root = true)"


def _ident(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
