"""Quoting: every name and value that goes into SQL text passes through here, since every name from a source is hostile.

Statements that hold names are executed without driver parameters (psycopg2 would take a `%` of a name for a placeholder);
their values are literals made here. Sessions set standard_conforming_strings, so in a literal only the quote is special.
"""

from __future__ import annotations

from collections.abc import Iterable

from cdc.table import TableId


def ident(name: str) -> str:
    """A quoted identifier. Postgres allows every character but NUL."""
    assert "\0" not in name
    return '"' + name.replace('"', '""') + '"'


def relation(table: TableId) -> str:
    """A qualified table name: search_path is empty."""
    return f"{ident(table.schema)}.{ident(table.name)}"


def literal(value: str | int | bool | None) -> str:
    """A constant; text stays of unknown type, so that the column it meets decides."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    assert "\0" not in value
    return "'" + value.replace("'", "''") + "'"


def names(columns: Iterable[str], prefix: str = "") -> str:
    """`prefix."a", prefix."b"`."""
    return ", ".join(f"{prefix}.{ident(column)}" if prefix else ident(column) for column in columns)
