"""Source and target compared row for row, every column of every row, in the text that the servers themselves print.

The invariant: tables are equal as multisets, which counts two equal rows of a table without a key as two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import psycopg2

from cdc.demo.stage import Target
from cdc.postgres.sql import columns, literal, qualified
from cdc.table import TableId

Cursor = Any
Row = tuple[str, str]  # its key and all of it; without a key, nothing and all of it
SHOWN = 3


class Difference(NamedTuple):
    """A table that differs. `keys` are some of the rows that do; values other than keys are not for messages."""

    table: str
    missing: int
    extra: int
    keys: tuple[str, ...]

    def __str__(self) -> str:
        named = f", for instance {', '.join(self.keys)}" if any(self.keys) else ""
        return f"{self.table}: {self.missing} rows missing or different, {self.extra} that the source has not{named}"


class Comparison(NamedTuple):
    """A target compared. Equal when there are no differences."""

    target: Target
    rows: int
    differences: tuple[Difference, ...]


def compare(source_url: str, target_url: str, target: Target, stop: Callable[[], bool]) -> Comparison:
    """Read all tables of both and compare them; less of them when told to stop. Nobody may be writing."""
    rows, found = 0, []
    with (
        closing(psycopg2.connect(source_url)) as source,
        closing(psycopg2.connect(target_url)) as there,
        source.cursor() as ours,
        there.cursor() as theirs,
    ):
        for cursor in (ours, theirs):
            cursor.execute("SET TimeZone = 'UTC'; SET extra_float_digits = 3; SET bytea_output = 'hex'")
        for table in target.tables:
            if stop():
                break
            names, key = shape(ours, TableId("public", table))
            here = all_rows(ours, TableId("public", table), names, key)
            copied = all_rows(theirs, target.place(table), names, key)
            rows += len(here)
            if difference := differing(table, here, copied):
                found.append(difference)
    return Comparison(target, rows, tuple(found))


def differing(table: str, ours: list[Row], theirs: list[Row]) -> Difference | None:
    """None when both hold the same rows, each as often."""
    here, there = Counter(ours), Counter(theirs)
    missing, extra = here - there, there - here
    if not missing and not extra:
        return None
    keys = sorted({key for key, _ in (*missing, *extra)})[:SHOWN]
    return Difference(table, missing.total(), extra.total(), tuple(keys))


def shape(cursor: Cursor, table: TableId) -> tuple[list[str], list[str]]:
    """The columns of a table, in order, and those of its primary key."""
    cursor.execute(
        "SELECT a.attname, coalesce(a.attnum = ANY (i.indkey), false) FROM pg_attribute a"
        " LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary"
        f" WHERE a.attrelid = {literal(qualified(table))}::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
    )
    found = cursor.fetchall()
    return [name for name, _ in found], [name for name, in_key in found if in_key]


def all_rows(cursor: Cursor, table: TableId, names: list[str], key: list[str]) -> list[Row]:
    """Every row as text, by these columns and in this order, wherever the table has them."""
    text = f"ROW({columns(key)})::text" if key else "''"
    cursor.execute(f"SELECT {text}, ROW({columns(names)})::text FROM {qualified(table)}")
    return list(cursor.fetchall())
