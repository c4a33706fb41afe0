"""Values in the text that Postgres reads (DateStyle ISO), from their forms on the wire (cdc.avro). Pure functions."""

from __future__ import annotations

import json
import re
import struct
from datetime import date
from decimal import Decimal

from cdc.avro import INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN

_EPOCH = date(1970, 1, 1).toordinal()
_DAYS_OF_400_YEARS = 146_097
_DAY_MICROS = 86_400_000_000
_SPECIAL = re.compile(r"[\\\n\r\t]")
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_UNESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_ZONED = re.compile(r"([+-]?\d{4,})(-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?)(Z|[+-]\d\d:\d\d(?::\d\d)?)\Z")
_DAYS_KEPT = 100_000
_SCALE_MAX = 1 << 18


def escaped(value: str) -> str:
    """A field of text COPY."""
    return _SPECIAL.sub(lambda found: _ESCAPES[found[0]], value)


def unescaped(field: str) -> str:
    """The inverse of `escaped`."""
    return _ESCAPED.sub(lambda found: _UNESCAPES.get(found[1], found[1]), field) if "\\" in field else field


def _calendar(days: int) -> tuple[str, str]:
    """Days since 1970-01-01 as a date and an era (empty, or " BC"). Beyond `datetime.date` by whole cycles of 400 years."""
    ordinal = days + _EPOCH
    cycles = 0 if 1 <= ordinal <= date.max.toordinal() else (ordinal - 1) // _DAYS_OF_400_YEARS - 1
    day = date.fromordinal(ordinal - cycles * _DAYS_OF_400_YEARS)
    year = day.year + cycles * 400
    era = "" if year > 0 else " BC"
    return f"{year if year > 0 else 1 - year:04d}-{day.month:02d}-{day.day:02d}", era


class _Days(dict[int, str]):
    """Days since 1970-01-01 → date, remembered: few different dates make up most of any table."""

    def __missing__(self, days: int) -> str:
        if days in (INT32_MAX, INT32_MIN):
            return "infinity" if days > 0 else "-infinity"
        if len(self) >= _DAYS_KEPT:
            self.clear()
        self[days] = shown = "".join(_calendar(days))
        return shown


DAYS = _Days()


def time_us(micros: int) -> str:
    """Time of day; 24:00:00 is a time to Postgres."""
    seconds, micros = divmod(micros, 1_000_000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}.{micros:06d}"


def timestamp_us(micros: int) -> str:
    """Microseconds since 1970-01-01 00:00, without zone. Postgres' last 30 years lie above 2^63 and go on above -2^63."""
    if micros in (INT64_MAX, INT64_MIN):
        return "infinity" if micros > 0 else "-infinity"
    if micros < -(1 << 62):  # no timestamp is that far in the past
        micros += (1 << 64) - 2
    days, micros = divmod(micros, _DAY_MICROS)
    shown = DAYS[days]
    if shown.endswith(" BC"):
        return f"{shown[:-3]} {time_us(micros)} BC"
    return f"{shown} {time_us(micros)}"


def _wrapped(micros: int) -> int:
    return micros if micros < INT64_MAX else micros - (1 << 64) + 2


def timestamp_ms(millis: int) -> str:
    """Milliseconds since 1970-01-01 00:00, without zone."""
    return timestamp_us(millis) if millis in (INT64_MAX, INT64_MIN) else timestamp_us(_wrapped(millis * 1000))


def timestamptz(value: str) -> str:
    """ISO 8601 with astronomical years (0000 is 1 BC, +12345 has a sign) as Postgres writes it; infinities as they are.
    Raises ValueError for anything else."""
    if value in ("infinity", "-infinity"):
        return value
    if not (found := _ZONED.match(value)):
        raise ValueError("not an instant")
    year = int(found[1])
    return f"{year if year > 0 else 1 - year:04d}{found[2]}{found[3]}{'' if year > 0 else ' BC'}"


def decimal(unscaled: int, scale: int) -> str:
    """An exact decimal with `scale` digits after the point; a negative scale stands for zeros before it."""
    if not -_SCALE_MAX <= scale <= _SCALE_MAX:
        raise ValueError("a scale that no database has")
    if scale <= 0:
        return _digits(unscaled * 10**-scale)
    digits = _digits(abs(unscaled)).rjust(scale + 1, "0")
    return f"{'-' if unscaled < 0 else ''}{digits[:-scale]}.{digits[-scale:]}"


def _digits(number: int) -> str:
    # Python refuses to print integers of more than 4,300 digits; Postgres has numerics of 131,072.
    return str(number) if number.bit_length() < 14_000 else str(Decimal(number))


def numeric(unscaled: bytes, scale: int) -> str:
    """A variable-scale decimal; an empty value with scale 0, 1 or -1 is NaN, Infinity or -Infinity."""
    if not unscaled:
        return {0: "NaN", 1: "Infinity", -1: "-Infinity"}[scale]
    return decimal(int.from_bytes(unscaled, "big", signed=True), scale)


_single = struct.Struct("<f")


def single(value: float) -> str:
    """The shortest text that reads back as the same single-precision number."""
    for digits in (6, 7, 8, 9):
        shown = f"{value:.{digits}g}"
        try:
            if _single.unpack(_single.pack(float(shown)))[0] == value:
                return shown
        except OverflowError:  # rounded up beyond the largest one: more digits will do
            continue
    return repr(value)


def bits(value: bytes, count: int) -> str:
    """`count` bits of little-endian bytes, the highest first."""
    number = int.from_bytes(value, "little")
    if number.bit_length() > count:
        raise ValueError("more bits than the type has")
    return f"{number:0{count}b}" if count else ""


def hstore(pairs: list[tuple[str, str | None]]) -> str:
    """Keys and values as hstore prints them."""
    return ", ".join(f"{_in_quotes(key)}=>{'NULL' if value is None else _in_quotes(value)}" for key, value in pairs)


def _in_quotes(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def json_object(pairs: list[tuple[str, str | None]]) -> str:
    """Keys and values as an object of JSON. What is not ASCII stays as it is."""
    return json.dumps(dict(pairs), ensure_ascii=False)
