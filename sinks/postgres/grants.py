"""The privileges of the role that a sink connects as, as SQL that a DBA runs once: the documentation and the tests take them from here.

The role is no superuser; it owns what it makes, the bookkeeping in the schema `_cdc` included.
"""

from __future__ import annotations

from collections.abc import Sequence

from sinks.postgres.sql import ident, literal


def sink_grants(
    role: str, password: str, database: str, schemas: Sequence[str], owners: Sequence[str] = ()
) -> list[str]:
    """Statements for a superuser, or an administrator with CREATEROLE, connected to `database`.

    `schemas` are the existing ones that the sink writes to; others it makes itself. `owners` are the roles that own tables which
    it adopts: membership lets it add columns to them when the source does."""
    writer = ident(role)
    statements = [
        f"CREATE ROLE {writer} LOGIN PASSWORD {literal(password)}",
        f"GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {ident(database)} TO {writer}",
    ]
    for schema in schemas:
        statements += [
            f"GRANT USAGE, CREATE ON SCHEMA {ident(schema)} TO {writer}",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {ident(schema)} TO {writer}",
        ]
    return statements + [f"GRANT {ident(owner)} TO {writer}" for owner in owners]
