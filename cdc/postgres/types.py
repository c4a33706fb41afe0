"""Postgres types and logical types: what a column's catalogue entry means, and a wire value back as a literal.

A type has a logical one only when every value of it, extremes included, has an Avro form that holds all of it. Every other type is
`other`: the text that its output function prints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from cdc.avro import INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN
from cdc.postgres.calendar import DAY_US, date_of
from cdc.table import LogicalType

WireValue = Any
_BOUNDS = re.compile(r"\[(-?\d+):(-?\d+)\]")

NUMERIC_OID, TIME_OID, TIMESTAMP_OID, BIT_OID = 1700, 1083, 1114, 1560
# OIDs of built-in types are fixed: https://www.postgresql.org/docs/current/catalog-pg-type.html and pg_type.dat.
_KINDS = {
    16: "boolean",
    17: "bytes",
    19: "text",  # name
    20: "int64",
    21: "int16",
    23: "int32",
    25: "text",
    26: "uint32",  # oid
    114: "json",
    142: "xml",
    600: "point",
    700: "float32",
    701: "float64",
    790: "money",
    1042: "text",  # bpchar: its padding is part of the value
    1043: "text",  # varchar
    1082: "date",
    1184: "timestamptz",
    1186: "interval",
    1266: "timetz",
    2950: "uuid",
    3614: "tsvector",
    3802: "json",  # jsonb
}


# Types of extensions, by extension and name: their OIDs differ from database to database. The rest are `other`.
_EXTENSIONS = {"citext.citext": "text", "hstore.hstore": "hstore", "ltree.ltree": "ltree"}
_NEVER_KEYS = ("array", "hstore", "point")  # the record key has no form for them


class PgType(NamedTuple):
    """What the catalogue says about a column's type.

    `typtype` is pg_type's. For a domain, `base_oid` and `base_typmod` are those of the type below the last domain; for any other
    type they repeat `oid` and `typmod`. What follows is said of that base: `labels` in enumsortorder if it is an enum, else None;
    `base_typtype` is its typtype; `inner` is an array's element, or the subtype of a range or multirange; `extension` is
    `extension.type` if it belongs to one; `sends`: it has a binary form; `delimiter` separates its values in an array's text.
    """

    oid: int
    typmod: int
    typtype: str
    base_oid: int
    base_typmod: int
    labels: tuple[str, ...] | None = None
    base_typtype: str = "b"
    inner: PgType | None = None
    extension: str | None = None
    sends: bool = True
    delimiter: str = ","

    @property
    def is_array(self) -> bool:
        return self.inner is not None and self.base_typtype == "b"


def logical(pg_type: PgType, *, in_key: bool = False) -> LogicalType:
    """The logical type; `other` for every type without an exact form, and in the key for arrays, hstore and points."""
    found = _logical(pg_type)
    return LogicalType("other") if in_key and found.kind in _NEVER_KEYS else found


def _logical(pg_type: PgType) -> LogicalType:
    oid, typmod = pg_type.base_oid, pg_type.base_typmod
    if pg_type.labels is not None:
        return LogicalType("enum", labels=pg_type.labels)
    if pg_type.is_array:
        assert pg_type.inner is not None
        element = _logical(pg_type.inner)
        # Arrays of what has no logical type are text as a whole; so are arrays of a domain over arrays.
        no_array = element.kind in ("other", "array")
        return LogicalType("other") if no_array else LogicalType("array", element=element)
    if pg_type.extension is not None:
        return LogicalType(_EXTENSIONS.get(pg_type.extension, "other"))
    if oid == NUMERIC_OID:
        return _numeric(typmod)
    if oid == TIME_OID:
        return LogicalType("time_ms" if 0 <= typmod <= 3 else "time_us")
    if oid == TIMESTAMP_OID:
        return LogicalType("timestamp_ms" if 0 <= typmod <= 3 else "timestamp_us")
    if oid == BIT_OID and typmod > 0:
        return LogicalType("bit") if typmod == 1 else LogicalType("bits", typmod)
    return LogicalType(_KINDS.get(oid, "other"))


def _numeric(typmod: int) -> LogicalType:
    """numeric's modifier holds precision and scale; Postgres 15 made the scale a signed 11-bit number."""
    if typmod < 0:
        return LogicalType("numeric")
    precision, scale = typmod - 4 >> 16 & 0xFFFF, ((typmod - 4 & 0x7FF) ^ 0x400) - 0x400
    return LogicalType("decimal", precision, scale) if 0 <= scale <= precision else LogicalType("numeric")


# ------------------------------------------------------------------------------------------------- wire values as literals
def wire_text(logical: LogicalType, value: WireValue, bounds: str = "") -> str:
    """The literal that Postgres reads as this wire value (`cdc.avro.decode_datum`'s form), never NULL.

    Cast to the column's type in a session of ours, it is the value that was captured. `bounds` are an array's, from `shapes`.
    """
    match logical.kind:
        case "boolean":
            return "true" if value else "false"
        case "float32" | "float64":
            return _float_text(value)
        case "decimal":
            return decimal_text(int.from_bytes(value, "big", signed=True), logical.scale or 0) if value else "NaN"
        case "numeric":
            return _numeric_text(value)
        case "bytes":
            return f"\\x{value.hex()}"
        case "date":
            return _infinite(value, INT32_MIN, INT32_MAX) or date_text(value, "")
        case "time_ms":
            return time_text(value * 1000)
        case "time_us":
            return time_text(value)
        case "timestamp_ms":
            return _infinite(value, INT64_MIN, INT64_MAX) or _timestamp_text(value * 1000)
        case "timestamp_us":
            return _infinite(value, INT64_MIN, INT64_MAX) or _timestamp_text(unwrapped(value))
        case "timestamptz":
            return _instant_text(value)
        case "money":
            return decimal_text(int.from_bytes(value, "big", signed=True), 2)
        case "bit":
            return "1" if value else "0"
        case "bits":
            return f"{int.from_bytes(value, 'little'):0{logical.precision}b}"
        case "point":
            return f"({_float_text(value['x'])},{_float_text(value['y'])})"
        case "hstore":
            pairs = ((_quoted(key), "NULL" if item is None else _quoted(item)) for key, item in value.items())
            return ", ".join(f"{key}=>{item}" for key, item in pairs)
        case "array":
            return _array_text(logical, value, bounds)
    return str(value)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _array_text(logical: LogicalType, value: Sequence[WireValue], bounds: str) -> str:
    assert logical.element is not None
    parts = ["NULL" if item is None else _quoted(wire_text(logical.element, item)) for item in value]
    sizes = [int(upper) - int(lower) + 1 for lower, upper in _BOUNDS.findall(bounds)] or [len(parts)]
    for size in reversed(sizes[1:]):
        parts = [f"{{{','.join(parts[i : i + size])}}}" for i in range(0, len(parts), size)]
    return f"{bounds}{'=' if bounds else ''}{{{','.join(parts)}}}"


def wrapped(us: int) -> int:
    """A long for any finite timestamp: Postgres' last 30 years (294247 to 294276) lie above 2^63 and continue above -2^63.

    No timestamp is that far in the past (4714 BC is -2.1 × 10^17), and the two infinities keep their forms.
    """
    return us if us < INT64_MAX else us - (1 << 64) + 2


def unwrapped(us: int) -> int:
    """The inverse of `wrapped`."""
    return us if us > -(1 << 62) else us + (1 << 64) - 2


def _infinite(value: int, lowest: int, highest: int) -> str:
    return {lowest: "-infinity", highest: "infinity"}.get(value, "")


def _float_text(value: float) -> str:
    text = repr(value)
    return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(text, text)


def _numeric_text(value: Mapping[str, WireValue]) -> str:
    if not value["value"]:
        return {0: "NaN", 1: "Infinity", -1: "-Infinity"}[value["scale"]]
    return decimal_text(int.from_bytes(value["value"], "big", signed=True), value["scale"])


def decimal_text(unscaled: int, scale: int) -> str:
    """unscaled × 10^-scale, with `scale` digits behind the point, as numeric's output function prints it."""
    # A numeric may have 131,072 digits before the point; str(int) refuses more than 4,300, Decimal does not.
    digits = str(Decimal(abs(unscaled)))
    sign = "-" if unscaled < 0 else ""
    if not scale:
        return sign + digits
    digits = digits.rjust(scale + 1, "0")
    return f"{sign}{digits[:-scale]}.{digits[-scale:]}"


def date_text(days: int, time: str) -> str:
    """The day `days` after 1970-01-01, then `time`, then the era if it is BC."""
    year, month, day = date_of(days)
    era = "" if year > 0 else " BC"
    return f"{year if year > 0 else 1 - year:04}-{month:02}-{day:02}{time}{era}"


def time_text(us: int) -> str:
    """Microseconds of a day, all six digits of the fraction."""
    seconds, us = divmod(us, 1_000_000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{us:06}"


def _timestamp_text(us: int) -> str:
    days, us = divmod(us, DAY_US)
    return date_text(days, f" {time_text(us)}")


def _instant_text(value: str) -> str:
    """ISO 8601 with a sign for years beyond 9999 and before 0 → Postgres' spelling, which has eras."""
    if value.endswith("infinity"):
        return value
    date, _, time = value.partition("T")
    sign = -1 if date.startswith("-") else 1
    year, month, day = date.lstrip("+-").split("-")
    era_year = sign * int(year)
    shown, era = (era_year, "") if era_year > 0 else (1 - era_year, " BC")
    return f"{shown:04}-{month}-{day} {time.removesuffix('Z')}+00{era}"
