"""Types of target columns: what a column of the log becomes, and which type holds all values of which. Pure functions.

A Postgres source's own type is taken word for word where the target knows it; everything else has one form here. Nothing is
ever narrowed (rule R8): a type either includes all values of another, or the answer is no.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import NamedTuple

from cdc.table import Column, LogicalType

_FORMS = {
    "boolean": "boolean",
    "int16": "smallint",
    "int32": "integer",
    "int64": "bigint",
    "uint32": "bigint",
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
    "timetz": "time with time zone",
    "interval": "interval",
    "money": "money",
    "bit": "bit(1)",
    "xml": "xml",
    "tsvector": "tsvector",
    "ltree": "text",
    "hstore": "json",
    "point": "point",
    "uuid": "uuid",
    "json": "json",
    "enum": "text",
    "other": "text",
}
_MODIFIED = re.compile(r"(.*?)\((\d+)(?:,\s*(-?\d+))?\)(.*)\Z", re.DOTALL)
_INTEGERS = {"smallint": 5, "integer": 10, "bigint": 19}  # and their decimal digits
_UNSIGNED = ("oid", "xid", "cid")
_UNSIGNED_DIGITS = 10
_MONEY = 19, 2  # digits in all, and behind the point
_TEXTS = ("text", "character varying", "character")
# Types whose modifier is a limit: a larger one, or none, takes what a smaller one does.
_LIMITED = frozenset(
    (
        *("time without time zone", "time with time zone", "timestamp without time zone", "timestamp with time zone"),
        *("bit varying", "interval"),
    )
)
# Types whose values name objects of their server, or that no text is read as: what they print is kept.
_PRINTED = frozenset(
    (
        *("regclass", "regproc", "regprocedure", "regoper", "regoperator", "regtype", "regrole", "regnamespace"),
        *("regconfig", "regdictionary", "regcollation", "aclitem", "pg_node_tree", "pg_ndistinct", "pg_dependencies"),
        *("pg_mcv_list", "pg_brin_bloom_summary", "pg_brin_minmax_multi_summary", "gtsvector"),
    )
)
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


def is_printed(type_text: str) -> bool:
    """Is it a type, or arrays of one, whose values are kept as text?"""
    return type_text.removesuffix("[]") in _PRINTED


def form_of(logical: LogicalType, unread: Container[str] = ()) -> str:
    """The type that a column of this logical type gets when the source's own is not known here. `unread`: kinds that the target
    takes as text alone."""
    if logical.kind in unread:
        return "text"
    if logical.kind == "decimal":
        return f"numeric({logical.precision},{logical.scale})"
    if logical.kind == "bits":
        return f"bit({logical.precision})"
    if logical.element is not None:
        return f"{form_of(logical.element, unread)}[]"
    return _FORMS[logical.kind]


def includes(wide: str, narrow: str) -> bool:
    """Does `wide` hold every value of `narrow`, and their text forms read back the same? Both as format_type prints them."""
    if wide == narrow:
        return True
    w, n = shape(wide), shape(narrow)
    if w.name == "text" or (w.name == "character varying" and not w.modifiers):
        return True
    if wide.endswith("[]") or narrow.endswith("[]"):
        return wide.endswith("[]") and narrow.endswith("[]") and includes(wide[:-2], narrow[:-2])
    if w.name in _TEXTS:
        return w.name == n.name and bool(n.modifiers) and n.modifiers[0] <= w.modifiers[0] and w.name != "character"
    if w.name in _INTEGERS:
        digits = _INTEGERS[w.name]
        return _INTEGERS.get(n.name, digits + 1) <= digits or (w.name == "bigint" and n.name in _UNSIGNED)
    if w.name == "numeric":
        return _numeric_includes(w, n)
    if w.name == "double precision":
        return n.name == "real"
    if w.name == "interval" and not w.modifiers:
        return n.name.startswith("interval")
    if w.name == n.name or (w.name == "bit varying" and n.name == "bit"):
        return not w.modifiers or (w.name in _LIMITED and bool(n.modifiers) and n.modifiers[0] <= w.modifiers[0])
    return n.name.startswith(f"{w.name}(")  # an extension's modifiers: geometry takes what geometry(Point,4326) does


def _numeric_includes(wide: Shape, narrow: Shape) -> bool:
    if narrow.name in _INTEGERS:
        digits, scale = _INTEGERS[narrow.name], 0
    elif narrow.name in _UNSIGNED:
        digits, scale = _UNSIGNED_DIGITS, 0
    elif narrow.name == "money":
        digits, scale = _MONEY
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
    return includes(target_type, wanted) or takes(target_type, is_enum, column.type, column.source_type)


def takes(target_type: str, is_enum: bool, logical: LogicalType, source_type: str) -> bool:
    """Does the type hold every value of a logical type, or a kindred one under another equality?"""
    if includes(target_type, form_of(logical)):
        return True
    if logical.element is not None:
        inner = source_type.removesuffix("[]")
        return target_type.endswith("[]") and takes(target_type[:-2], is_enum, logical.element, inner)
    if logical.kind == "enum":
        return is_enum
    if logical.kind == "json":  # jsonb forgets key order; a source that has json alone has no better word for it
        return target_type == "jsonb" and source_type != "json"
    if logical.kind == "hstore" and target_type == "jsonb":
        return True
    # An extension's type, in whatever schema it is there; citext has the same values under another equality.
    name = {"text": "citext", "hstore": "hstore", "ltree": "ltree"}.get(logical.kind)
    return name is not None and target_type.rsplit(".", 1)[-1] == name
