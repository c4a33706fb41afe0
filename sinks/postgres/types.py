"""Types of target columns: what a column of the log becomes, and which type holds all values of which. Pure functions.

A Postgres source's own type is taken word for word where the target knows it; everything else has one form here. Nothing is
ever narrowed (rule R8): a type either includes all values of another, or the answer is no.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from cdc.table import Column, LogicalType

_FORMS = {
    "boolean": "boolean",
    "int16": "smallint",
    "int32": "integer",
    "int64": "bigint",
    "float32": "real",
    "float64": "double precision",
    "numeric": "numeric",
    "text": "text",
    "bytes": "bytea",
    "date": "date",
    "time_ms": "time(3) without time zone",
    "time_us": "time without time zone",
    "timestamp_ms": "timestamp(3) without time zone",
    "timestamp_us": "timestamp without time zone",
    "timestamptz": "timestamp with time zone",
    "uuid": "uuid",
    "json": "json",
    "enum": "text",
    "other": "text",
}
_MODIFIED = re.compile(r"(.*?)\((\d+)(?:,\s*(-?\d+))?\)(.*)\Z", re.DOTALL)
_INTEGERS = {"smallint": 5, "integer": 10, "bigint": 19}  # and their decimal digits
_TEXTS = ("text", "character varying", "character")
_NUMERIC_DIGITS = 131_072


class Shape(NamedTuple):
    """`numeric(12,2)` → numeric, (12, 2); `time(3) without time zone` → time without time zone, (3,)."""

    name: str
    modifiers: tuple[int, ...] = ()


def shape(type_text: str) -> Shape:
    """The shape of format_type's text."""
    if found := _MODIFIED.match(type_text):
        modifiers = tuple(int(item) for item in found.group(2, 3) if item is not None)
        return Shape((found[1] + found[4]).strip(), modifiers)
    return Shape(type_text)


def form_of(logical: LogicalType) -> str:
    """The type that a column of this logical type gets when the source's own is not known here."""
    if logical.kind == "decimal":
        return f"numeric({logical.precision},{logical.scale})"
    return _FORMS[logical.kind]


def includes(wide: str, narrow: str) -> bool:
    """Does `wide` hold every value of `narrow`, and their text forms read back the same? Both as format_type prints them."""
    if wide == narrow:
        return True
    w, n = shape(wide), shape(narrow)
    if w.name == "text" or (w.name == "character varying" and not w.modifiers):
        return True
    if w.name in _TEXTS:
        return w.name == n.name and bool(n.modifiers) and n.modifiers[0] <= w.modifiers[0] and w.name != "character"
    if w.name in _INTEGERS:
        return n.name in _INTEGERS and _INTEGERS[n.name] <= _INTEGERS[w.name]
    if w.name == "numeric":
        return _numeric_includes(w, n)
    if w.name == "double precision":
        return n.name == "real"
    if w.name == n.name:  # time(3) in time, timestamp(3) in timestamp, bit varying(3) in bit varying(5), …
        return w.name != "bit" and (not w.modifiers or (bool(n.modifiers) and n.modifiers[0] <= w.modifiers[0]))
    return False


def _numeric_includes(wide: Shape, narrow: Shape) -> bool:
    if narrow.name in _INTEGERS:
        digits, scale = _INTEGERS[narrow.name], 0
    elif narrow.name == "numeric":
        if not narrow.modifiers:
            return not wide.modifiers
        digits, scale = narrow.modifiers[0], (*narrow.modifiers, 0)[1]
    else:
        return False
    if not wide.modifiers:
        return True
    wide_digits, wide_scale = wide.modifiers[0], (*wide.modifiers, 0)[1]
    # A larger scale would show as zeros that the source does not have, which is the same number.
    return wide_scale >= scale and wide_digits - wide_scale >= digits - scale


def holds(target_type: str, is_enum: bool, column: Column, wanted: str) -> bool:
    """May an existing column of `target_type` take this column, for which `wanted` would have been made?"""
    if includes(target_type, wanted):
        return True
    if column.type.kind == "enum":
        return is_enum
    if column.type.kind == "json":  # jsonb forgets key order; a source that has json alone has no better word for it
        return target_type == "jsonb" and column.source_type != "json"
    # An extension's text (citext): the same values under another equality.
    return column.type.kind == "text" and target_type.rsplit(".", 1)[-1] == "citext"
