"""Quoting for Postgres. Every name and value that goes into SQL text passes through here: names from a source are hostile."""

from __future__ import annotations

from collections.abc import Iterable

from cdc.table import TableId


def ident(name: str) -> str:
    """A quoted identifier, whatever it holds; Postgres itself allows every character but NUL."""
    assert "\0" not in name
    return '"' + name.replace('"', '""') + '"'


def qualified(table: TableId) -> str:
    """The table's quoted name; the sessions' search_path is empty, so it is always complete."""
    return f"{ident(table.schema)}.{ident(table.name)}"


def literal(text: str) -> str:
    """A string constant, for statements that take no parameters (COPY, replication commands). Sessions set
    standard_conforming_strings, so only the quote is special."""
    assert "\0" not in text
    return "'" + text.replace("'", "''") + "'"


def columns(names: Iterable[str]) -> str:
    """A comma-separated list of quoted names."""
    return ", ".join(map(ident, names))


def text_array(items: Iterable[str]) -> str:
    """The text form of an array, to be passed as a parameter of type text[], oid[] or the like."""
    return "{" + ",".join('"' + item.replace("\\", "\\\\").replace('"', '\\"') + '"' for item in items) + "}"
