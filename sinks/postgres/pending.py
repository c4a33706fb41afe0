"""Checks that wait for COMMIT, made at once: a table with any of them takes no DDL (SQLSTATE 55006).

The sink defers all constraints that can be. The invariant: only those of the table in question are checked early, at places where
the source's own DDL on it, or a cut, says that they hold.
"""

from __future__ import annotations

from cdc.table import TableId
from sinks.postgres.session import Session
from sinks.postgres.sql import ident
from sinks.postgres.target import regclass


def check(session: Session, table: TableId) -> None:
    """Before DDL on `table`: make the checks of its deferred constraints that wait. Raises Refused when one does not hold."""
    oid = regclass(table)
    found = session.rows(
        "SELECT DISTINCT n.nspname, k.conname FROM pg_constraint k JOIN pg_namespace n ON n.oid = k.connamespace"
        f" WHERE k.condeferrable AND {oid} IN (k.conrelid, k.confrelid)"
    )
    if found:
        names = ", ".join(f"{ident(schema)}.{ident(name)}" for schema, name in found)
        session.execute(f"SET CONSTRAINTS {names} IMMEDIATE; SET CONSTRAINTS {names} DEFERRED")
