"""Postgres types and logical types: what a column's catalogue entry means, and a wire value back as a literal.

A type is exact only when every value of it, extremes included, has an Avro form that holds all of it. Every other type is
`other`: the text that its output function prints. The binary stream has no form for those (`is_exact`).
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from cdc.avro import INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN
from cdc.postgres.calendar import DAY_US, date_of
from cdc.table import LogicalType

WireValue = Any

NUMERIC_OID, TIME_OID, TIMESTAMP_OID = 1700, 1083, 1114
# OIDs of built-in types are fixed: https://www.postgresql.org/docs/current/catalog-pg-type.html and pg_type.dat.
_KINDS = {
    16: "boolean",
    17: "bytes",
    19: "text",  # name
    20: "int64",
    21: "int16",
    23: "int32",
    25: "text",
    114: "json",
    700: "float32",
    701: "float64",
    1042: "text",  # bpchar: its padding is part of the value
    1043: "text",  # varchar
    1082: "date",
    1184: "timestamptz",
    2950: "uuid",
    3802: "json",  # jsonb
}


class PgType(NamedTuple):
    """What the catalogue says about a column's type.

    `typtype` is pg_type's. For a domain, `base_oid` and `base_typmod` are those of the type below the last domain; for any other
    type they repeat `oid` and `typmod`. `labels`: in enumsortorder if the base is an enum, else None.
    """

    oid: int
    typmod: int
    typtype: str
    base_oid: int
    base_typmod: int
    labels: tuple[str, ...] | None = None


def logical(pg_type: PgType) -> LogicalType:
    """The logical type; `other` for every type without an exact form."""
    oid, typmod = pg_type.base_oid, pg_type.base_typmod
    if pg_type.labels is not None:
        return LogicalType("enum", labels=pg_type.labels)
    if oid == NUMERIC_OID:
        return _numeric(typmod)
    if oid == TIME_OID:
        return LogicalType("time_ms" if 0 <= typmod <= 3 else "time_us")
    if oid == TIMESTAMP_OID:
        return LogicalType("timestamp_ms" if 0 <= typmod <= 3 else "timestamp_us")
    return LogicalType(_KINDS.get(oid, "other"))


def _numeric(typmod: int) -> LogicalType:
    """numeric's modifier holds precision and scale; Postgres 15 made the scale a signed 11-bit number."""
    if typmod < 0:
        return LogicalType("numeric")
    precision, scale = typmod - 4 >> 16 & 0xFFFF, ((typmod - 4 & 0x7FF) ^ 0x400) - 0x400
    return LogicalType("decimal", precision, scale) if 0 <= scale <= precision else LogicalType("numeric")


def is_exact(logical: LogicalType) -> bool:
    """Can the binary stream carry it? One column that it cannot carry puts the whole stream in text mode."""
    return logical.kind != "other"


# ------------------------------------------------------------------------------------------------- wire values as literals
def wire_text(logical: LogicalType, value: WireValue) -> str:
    """The literal that Postgres reads as this wire value (`cdc.avro.decode_datum`'s form), never NULL.

    Cast to the column's type, it is the value that was captured, whatever the session's settings.
    """
    match logical.kind:
        case "boolean":
            return "true" if value else "false"
        case "float32" | "float64":
            return _float_text(value)
        case "decimal":
            return _decimal_text(int.from_bytes(value, "big", signed=True), logical.scale or 0) if value else "NaN"
        case "numeric":
            return _numeric_text(value)
        case "bytes":
            return f"\\x{value.hex()}"
        case "date":
            return _infinite(value, INT32_MIN, INT32_MAX) or _date_text(value, "")
        case "time_ms":
            return _time_text(value * 1000)
        case "time_us":
            return _time_text(value)
        case "timestamp_ms":
            return _infinite(value, INT64_MIN, INT64_MAX) or _timestamp_text(value * 1000)
        case "timestamp_us":
            return _infinite(value, INT64_MIN, INT64_MAX) or _timestamp_text(unwrapped(value))
        case "timestamptz":
            return _instant_text(value)
        case "int16" | "int32" | "int64":
            return str(value)
    return str(value)


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
    return _decimal_text(int.from_bytes(value["value"], "big", signed=True), value["scale"])


def _decimal_text(unscaled: int, scale: int) -> str:
    # A numeric may have 131,072 digits before the point; str(int) refuses more than 4,300, Decimal does not.
    digits = str(Decimal(abs(unscaled)))
    sign = "-" if unscaled < 0 else ""
    if not scale:
        return sign + digits
    digits = digits.rjust(scale + 1, "0")
    return f"{sign}{digits[:-scale]}.{digits[-scale:]}"


def _date_text(days: int, time: str) -> str:
    year, month, day = date_of(days)
    era = "" if year > 0 else " BC"
    return f"{year if year > 0 else 1 - year:04}-{month:02}-{day:02}{time}{era}"


def _time_text(us: int) -> str:
    seconds, us = divmod(us, 1_000_000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{us:06}"


def _timestamp_text(us: int) -> str:
    days, us = divmod(us, DAY_US)
    return _date_text(days, f" {_time_text(us)}")


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
