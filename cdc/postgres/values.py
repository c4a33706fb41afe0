"""One column's value: Postgres' binary or text form → Avro. What generated code calls where it has no shorter way.

Both forms of one value give the same bytes (rule R7), so floats, times and numerics have one Avro form each, NaN included.
Malformed input raises ValueError, IndexError, KeyError, OverflowError or struct.error; the codec turns them into a CdcError
without their texts, which can hold values (rule R10).
"""

from __future__ import annotations

import math
from binascii import hexlify, unhexlify
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache
from struct import Struct, unpack_from
from typing import Any

from cdc.avro import INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, VARINT, decimal_bytes, string, unsigned, zigzag
from cdc.postgres.calendar import DAY_US, EPOCH_2000_DAYS, EPOCH_2000_US, date_of, days_of
from cdc.postgres.types import wrapped

NULL, SOME = b"\x00", b"\x02"  # the branches of a nullable field's union
MEMO_MAX = 1 << 16

# Timestamps between these (exclusive, from 2000) are finite; the last that Postgres has ends the year 294276.
TIMESTAMP_MIN, TIMESTAMP_MAX = -211_813_488_000_000_001, 9_223_371_331_200_000_000
_DATE_DAYS = range(-2_451_545, 2_145_031_949)


class Memo(dict[int, bytes]):
    """Computed once per number; emptied when it has grown to MEMO_MAX entries."""

    def __init__(self, compute: Callable[[int], bytes]) -> None:
        self.compute = compute

    def __missing__(self, number: int) -> bytes:
        if len(self) >= MEMO_MAX:
            self.clear()
        self[number] = value = self.compute(number)
        return value


# --------------------------------------------------------------------------------------------------------- dates and times
def binary_date(days: int) -> bytes:
    """Days since 2000-01-01, or an infinity."""
    if days in _DATE_DAYS:
        return zigzag(days + EPOCH_2000_DAYS)
    if days in (INT32_MIN, INT32_MAX):
        return zigzag(days)
    raise ValueError("no date")


def far_us(us: int) -> int:
    """Microseconds since 2000 that `+ EPOCH_2000_US` does not bring into a long: infinities and the last 30 years."""
    return us if us in (INT64_MIN, INT64_MAX) else wrapped(us + EPOCH_2000_US)


def binary_ms(us: int) -> int:
    """Microseconds since 2000 → milliseconds since 1970, exactly; infinities stay."""
    if us in (INT64_MIN, INT64_MAX):
        return us
    return exact_ms(us + EPOCH_2000_US)


def exact_ms(us: int) -> int:
    """A column of precision 0 to 3 holds whole milliseconds."""
    ms, rest = divmod(us, 1000)
    if rest:
        raise ValueError("more digits than the type has")
    return ms


def iso_day(day: int) -> bytes:
    """The first part of a timestamptz: its Avro length and the date, `day` counted from 2000-01-01."""
    year, month, dom = date_of(day + EPOCH_2000_DAYS)
    shown = f"{year:04}" if 0 <= year <= 9999 else f"{year:+05}"
    date = b"%b-%02d-%02dT" % (shown.encode(), month, dom)
    return unsigned((len(date) + 16) << 1) + date


def infinite(us: int) -> bytes:
    """The whole of a timestamptz that is no date."""
    if us == INT64_MAX:
        return string(b"infinity")
    if us == INT64_MIN:
        return string(b"-infinity")
    raise ValueError("no timestamp")


ISO_SECONDS = tuple(b"%02d:%02d:%02d." % (s // 3600, s // 60 % 60, s % 60) for s in range(86_400))
THOUSANDS = tuple(b"%03d" % n for n in range(1000))
THOUSANDS_Z = tuple(b"%03dZ" % n for n in range(1000))


def iso(us: int) -> bytes:
    """Microseconds since 2000 → Avro of a timestamptz: always six digits of fraction, years as ISO 8601 counts them."""
    if not TIMESTAMP_MIN < us < TIMESTAMP_MAX:
        return infinite(us)
    day, us = divmod(us, DAY_US)
    second, us = divmod(us, 1_000_000)
    return iso_day(day) + ISO_SECONDS[second] + b"%06dZ" % us


def _text_days(text: bytes, bc: bool) -> int:
    """`2026-11-23`, with any number of year digits, → days since 1970-01-01."""
    year, month, day = map(int, text.split(b"-"))
    return days_of(1 - year if bc else year, month, day)


def text_us(text: bytes) -> int:
    """`15:31:00`, with or without a fraction → microseconds."""
    hours, minutes, seconds = text.split(b":")
    seconds, _, fraction = seconds.partition(b".")
    return (int(hours) * 3600 + int(minutes) * 60 + int(seconds)) * 1_000_000 + int(fraction.ljust(6, b"0"))


def _text_timestamp(text: bytes, zone: bytes = b"") -> int:
    """Microseconds since 2000, or an infinity."""
    if text.endswith(b"infinity"):
        return {b"infinity": INT64_MAX, b"-infinity": INT64_MIN}[text]
    plain = text.removesuffix(b" BC")
    if not plain.endswith(zone):
        raise ValueError("the session's TimeZone is not UTC")
    date, time = plain[: len(plain) - len(zone)].split(b" ")
    return _text_days(date, plain != text) * DAY_US + text_us(time) - EPOCH_2000_US


def text_date(text: bytes) -> bytes:
    if text.endswith(b"infinity"):
        return binary_date({b"infinity": INT32_MAX, b"-infinity": INT32_MIN}[text])
    plain = text.removesuffix(b" BC")
    return binary_date(_text_days(plain, plain != text) - EPOCH_2000_DAYS)


def text_time_ms(text: bytes) -> bytes:
    return zigzag(exact_ms(text_us(text)))


def text_time_us(text: bytes) -> bytes:
    return zigzag(text_us(text))


def text_timestamp_ms(text: bytes) -> bytes:
    return zigzag(binary_ms(_text_timestamp(text)))


def text_timestamp_us(text: bytes) -> bytes:
    return zigzag(far_us(_text_timestamp(text)))


def text_timestamptz(text: bytes) -> bytes:
    size = len(text)
    if 22 <= size <= 29 and text[10] == 32 and text.endswith(b"+00"):
        fraction = text[20:-3].ljust(6, b"0")
        return b"\x36%b\x54%b.%bZ" % (text[:10], text[11:19], fraction)
    return iso(_text_timestamp(text, b"+00"))


# ----------------------------------------------------------------------------------------------------------------- numbers
_FLOAT32, _FLOAT64 = Struct("<f").pack, Struct("<d").pack
NAN32, NAN64 = _FLOAT32(math.nan), _FLOAT64(math.nan)
_POWERS = tuple(10**n for n in range(64))
_SPECIALS = {b"NaN": 0, b"Infinity": 1, b"-Infinity": -1}
_SPECIAL_SIGNS = {0xC000: 0, 0xD000: 1, 0xF000: -1}
_NEGATIVE = 0x4000


def text_float32(text: bytes) -> bytes:
    """The nearest single. By way of a double that would be rounded twice, so the double is first rounded to odd: of the two
    around the exact decimal, the one with an odd last bit, which no second rounding takes for a tie."""
    number = float(text)
    if math.isfinite(number) and (exact := Decimal(text.decode())) != (near := Decimal(number)):
        even = not unpack_from("<q", _FLOAT64(number))[0] & 1
        if even:
            number = math.nextafter(number, math.inf if exact > near else -math.inf)
    return NAN32 if math.isnan(number) else _FLOAT32(number)


def text_float64(text: bytes) -> bytes:
    number = float(text)
    return NAN64 if math.isnan(number) else _FLOAT64(number)


def _integer(digits: str) -> int:
    # int(str) refuses more than 4,300 digits; a numeric can have 147,455, and Decimal reads them.
    return int(digits) if len(digits) < 4000 else int(Decimal(digits))


def scaled(data: bytes) -> tuple[int, int] | int:
    """A numeric's binary form (numeric_send): unscaled value and scale, or NaN as 0 and the infinities as 1 and -1."""
    count, weight, sign, scale = unpack_from(">HhHH", data)
    if len(data) != 8 + 2 * count:
        raise ValueError("not as long as its digits")
    if sign not in (0, _NEGATIVE):
        return _SPECIAL_SIGNS[sign]
    digits = unpack_from(f">{count}H", data, 8)
    unscaled = _integer("".join(map("%04d".__mod__, digits)) or "0")
    shift = 4 * (weight + 1 - count) + scale
    unscaled = unscaled * 10**shift if shift >= 0 else unscaled // 10**-shift
    return (-unscaled if sign else unscaled), scale


def _text_scaled(text: bytes) -> tuple[int, int] | int:
    if text in _SPECIALS:
        return _SPECIALS[text]
    whole, _, fraction = text.decode().partition(".")
    return _integer(whole + fraction), len(fraction)


def _variable(number: tuple[int, int] | int) -> bytes:
    """Avro of a `numeric`: the scale, the unscaled value."""
    if isinstance(number, int):
        return zigzag(number) + b"\x00"
    return zigzag(number[1]) + string(decimal_bytes(number[0]))


def _fixed(number: tuple[int, int] | int, scale: int) -> bytes:
    """Avro of a `decimal`: the unscaled value at the column's own scale."""
    if isinstance(number, int):
        if number:
            raise ValueError("a numeric with precision has no infinities")
        return b"\x00"
    unscaled, own = number
    if own <= scale:
        return string(decimal_bytes(unscaled * 10 ** (scale - own)))
    unscaled, rest = divmod(unscaled, 10 ** (own - scale))
    if rest:
        raise ValueError("more digits than the type has")
    return string(decimal_bytes(unscaled))


def binary_numeric(data: bytes) -> bytes:
    return _variable(scaled(data))


def text_numeric(text: bytes) -> bytes:
    return _variable(_text_scaled(text))


def text_decimal(scale: int) -> Callable[[bytes], bytes]:
    return lambda text: _fixed(_text_scaled(text), scale)


_HEADED = 1 << 21
_BYTES = tuple(bytes((byte,)) for byte in range(256))


@lru_cache
def _heads(prefix: bytes) -> tuple[bytes, ...]:
    """By `number >> 8`: `prefix` and the Avro of a decimal from 128 to _HEADED, without its last byte."""
    return tuple(prefix + string(decimal_bytes(head << 8 | 128))[:-1] for head in range(_HEADED >> 8))


def binary_decimal(scale: int, prefix: bytes) -> Callable[[bytes, int, int], bytes]:
    """Avro, after `prefix`, of the `size` bytes at `at`: quick for up to 12 digits and four before and after the point."""
    lengths = tuple(prefix + VARINT[size << 1] for size in range(16))
    heads = _heads(prefix)
    zero, one, two, three = (Struct(f">HhHH{count}H").unpack_from for count in range(4))

    def encode(message: bytes, at: int, size: int) -> bytes:
        if size == 12:
            count, weight, sign, own, high, low = two(message, at)
            unscaled, shift = high * 10_000 + low, 4 * weight - 4 + scale
        elif size == 10:
            count, weight, sign, own, unscaled = one(message, at)
            shift = 4 * weight + scale
        elif size == 14:
            count, weight, sign, own, high, middle, low = three(message, at)
            unscaled, shift = (high * 10_000 + middle) * 10_000 + low, 4 * weight - 8 + scale
        elif size == 8:
            count, weight, sign, own = zero(message, at)
            unscaled = shift = 0
        else:
            return prefix + _fixed(scaled(message[at : at + size]), scale)
        if own != scale or count << 1 != size - 8 or sign not in (0, _NEGATIVE) or not -12 <= shift <= 16:
            return prefix + _fixed(scaled(message[at : at + size]), scale)
        unscaled = unscaled * _POWERS[shift] if shift >= 0 else unscaled // _POWERS[-shift]
        if sign:
            unscaled = -unscaled
            length = (~unscaled).bit_length() // 8 + 1
        elif 128 <= unscaled < _HEADED:
            short: bytes = heads[unscaled >> 8] + _BYTES[unscaled & 255]
            return short
        else:
            length = unscaled.bit_length() // 8 + 1
        avro: bytes = lengths[length] + unscaled.to_bytes(length, "big", signed=True)
        return avro

    return encode


# -------------------------------------------------------------------------------------------------------------- other forms
def binary_uuid(data: bytes) -> bytes:
    text = hexlify(data)
    return b"\x48%b-%b-%b-%b-%b" % (text[:8], text[8:12], text[12:16], text[16:20], text[20:])


def text_uuid(text: bytes) -> bytes:
    if len(text) != 36:
        raise ValueError("no UUID")
    return b"\x48" + text


def text_bytes(text: bytes) -> bytes:
    if text[:2] != b"\\x":
        raise ValueError("the session's bytea_output is not hex")
    return string(unhexlify(text[2:]))


TEXT_FORMS: dict[str, Callable[[bytes], bytes]] = {
    "boolean": lambda text: {b"f": b"\x00", b"t": b"\x01"}[text],
    "int16": lambda text: zigzag(int(text)),
    "int32": lambda text: zigzag(int(text)),
    "int64": lambda text: zigzag(int(text)),
    "float32": text_float32,
    "float64": text_float64,
    "numeric": text_numeric,
    "date": text_date,
    "time_ms": text_time_ms,
    "time_us": text_time_us,
    "timestamp_ms": text_timestamp_ms,
    "timestamp_us": text_timestamp_us,
    "timestamptz": text_timestamptz,
    "uuid": text_uuid,
    "bytes": text_bytes,
}

FIXED = {  # kind: struct code, width
    "boolean": ("B", 1),
    "int16": ("h", 2),
    "int32": ("i", 4),
    "int64": ("q", 8),
    "float32": ("f", 4),
    "float64": ("d", 8),
    "date": ("i", 4),
    "time_ms": ("q", 8),
    "time_us": ("q", 8),
    "timestamp_ms": ("q", 8),
    "timestamp_us": ("q", 8),
    "timestamptz": ("q", 8),
    "uuid": ("16s", 16),
}

# From what the struct of a fixed-width type gives. Generated code has these inline where a row is likely to be in a hurry.
BINARY_FORMS: dict[str, Callable[[Any], bytes]] = {
    "boolean": lambda flag: (b"\x00", b"\x01")[flag],
    "int16": zigzag,
    "int32": zigzag,
    "int64": zigzag,
    "float32": lambda number: NAN32 if math.isnan(number) else _FLOAT32(number),
    "float64": lambda number: NAN64 if math.isnan(number) else _FLOAT64(number),
    "date": binary_date,
    "time_ms": lambda us: zigzag(exact_ms(us)),
    "time_us": zigzag,
    "timestamp_ms": lambda us: zigzag(binary_ms(us)),
    "timestamp_us": lambda us: zigzag(far_us(us)),
    "timestamptz": iso,
    "uuid": binary_uuid,
}
