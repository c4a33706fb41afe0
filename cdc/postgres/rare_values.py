"""One value of a rarer type: Postgres' binary or text form → Avro. Such a column costs a call per value.

As in `cdc.postgres.values`, both forms of one value give the same bytes (rule R7), and malformed input raises ValueError and its like.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from struct import Struct

from cdc.avro import INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, decimal_bytes, string, unsigned, zigzag
from cdc.postgres.values import ISO_SECONDS, NULL, SOME, text_us

_UINT32, _INT64, _TIMETZ, _INTERVAL = (
    Struct(">I").unpack,
    Struct(">q").unpack,
    Struct(">qi").unpack,
    Struct(">qii").unpack,
)
_SIZE = Struct(">i").unpack_from


def binary_uint32(data: bytes) -> bytes:
    return unsigned(_UINT32(data)[0] << 1)


def text_uint32(text: bytes) -> bytes:
    return unsigned(int(text) << 1)


# --------------------------------------------------------------------------------------------------------- times and spans
def _timetz(us: int, east_s: int) -> bytes:
    seconds, us = divmod(us, 1_000_000)
    time = ISO_SECONDS[seconds] if seconds < 86_400 else b"24:00:00."
    sign, offset_s = (b"-", -east_s) if east_s < 0 else (b"+", east_s)
    minutes, rest_s = divmod(offset_s, 60)
    rest = b":%02d" % rest_s if rest_s else b""
    return string(b"%b%06d%b%02d:%02d%b" % (time, us, sign, *divmod(minutes, 60), rest))


def binary_timetz(data: bytes) -> bytes:
    """Microseconds of the day, and seconds west of Greenwich."""
    us, west_s = _TIMETZ(data)
    if not 0 <= us <= 86_400_000_000:
        raise ValueError("no time")
    return _timetz(us, -west_s)


_ZONED = re.compile(rb"([\d:.]+)([+-])(\d\d)(?::(\d\d))?(?::(\d\d))?\Z")


def text_timetz(text: bytes) -> bytes:
    if not (found := _ZONED.match(text)):
        raise ValueError("no time with a zone")
    offset_s = (int(found[3]) * 60 + int(found[4] or 0)) * 60 + int(found[5] or 0)
    return _timetz(text_us(found[1]), -offset_s if found[2] == b"-" else offset_s)


def _toward_zero(number: int, unit: int) -> tuple[int, int]:
    """Quotient and rest, both of the sign of `number`."""
    whole, rest = divmod(abs(number), unit)
    return (-whole, -rest) if number < 0 else (whole, rest)


def _interval(months: int, days: int, us: int) -> bytes:
    """Every part is there, zeros too, and has a sign of its own, as in Debezium's mode `string`."""
    years, months = _toward_zero(months, 12)
    minutes, rest_us = _toward_zero(us, 60_000_000)
    hours, minutes = _toward_zero(minutes, 60)
    seconds, fraction = divmod(abs(rest_us), 1_000_000)
    shown = f"{'-' if rest_us < 0 else ''}{seconds}" + (f".{fraction:06}".rstrip("0") if fraction else "")
    return string(f"P{years}Y{months}M{days}DT{hours}H{minutes}M{shown}S".encode())


_ENDS = {(INT32_MAX, INT32_MAX, INT64_MAX): b"infinity", (INT32_MIN, INT32_MIN, INT64_MIN): b"-infinity"}


def binary_interval(data: bytes) -> bytes:
    us, days, months = _INTERVAL(data)
    if end := _ENDS.get((months, days, us)):  # of version 17 and later
        return string(end)
    return _interval(months, days, us)


_SPAN = re.compile(
    rb"(?:([+-]?\d+) years?)? ?(?:([+-]?\d+) mons?)? ?(?:([+-]?\d+) days?)? ?(?:([+-]?)(\d+):(\d\d):(\d\d)(?:\.(\d{1,6}))?)?\Z"
)


def text_interval(text: bytes) -> bytes:
    """IntervalStyle postgres: `1 year -2 mons +3 days -04:05:06.7`."""
    if text in _ENDS.values():
        return string(text)
    found = _SPAN.match(text)
    if not found or not text:
        raise ValueError("the session's IntervalStyle is not postgres")
    years, months, days = (int(found[i] or 0) for i in (1, 2, 3))
    hours, minutes, seconds = (int(found[i] or 0) for i in (5, 6, 7))
    us = ((hours * 60 + minutes) * 60 + seconds) * 1_000_000 + int((found[8] or b"").ljust(6, b"0"))
    return _interval(years * 12 + months, days, -us if found[4] == b"-" else us)


# ------------------------------------------------------------------------------------------------------------- money, bits
def binary_money(data: bytes) -> bytes:
    return string(decimal_bytes(_INT64(data)[0]))


_MONEY = re.compile(rb"(-?)\$([\d,]+)\.(\d\d)\Z")


def text_money(text: bytes) -> bytes:
    """`-$1,234.50`, as lc_monetary C has it."""
    if not (found := _MONEY.match(text)):
        raise ValueError("the session's lc_monetary is not C")
    cents = int(found[2].replace(b",", b"") + found[3])
    return string(decimal_bytes(-cents if found[1] else cents))


def binary_bit(data: bytes) -> bytes:
    return {b"\x00\x00\x00\x01\x00": b"\x00", b"\x00\x00\x00\x01\x80": b"\x01"}[data]


def text_bit(text: bytes) -> bytes:
    return {b"0": b"\x00", b"1": b"\x01"}[text]


def binary_bits(count: int) -> Callable[[bytes], bytes]:
    """The bits as one number, the last of them its lowest, in little-endian bytes, as Debezium has it."""
    size, spare = (count + 7) // 8, -count % 8

    def form(data: bytes) -> bytes:
        if len(data) != 4 + size or _SIZE(data)[0] != count:
            raise ValueError("not as many bits as the type has")
        return string((int.from_bytes(data[4:], "big") >> spare).to_bytes(size, "little"))

    return form


def text_bits(count: int) -> Callable[[bytes], bytes]:
    def form(text: bytes) -> bytes:
        if len(text) != count:
            raise ValueError("not as many bits as the type has")
        return string(int(text, 2).to_bytes((count + 7) // 8, "little"))

    return form


# ------------------------------------------------------------------------------------------------------- values of parts
_POINT, _DOUBLES = Struct(">dd").unpack, Struct("<dd").pack
_WKB_POINT = b"\x01\x01\x00\x00\x00"  # little-endian, a point


def _point(x: float, y: float) -> bytes:
    both = _DOUBLES(*(math.nan if math.isnan(part) else part for part in (x, y)))
    return both + SOME + string(_WKB_POINT + both) + NULL


def binary_point(data: bytes) -> bytes:
    return _point(*_POINT(data))


def text_point(text: bytes) -> bytes:
    if text[:1] != b"(" or text[-1:] != b")":
        raise ValueError("no point")
    x, y = text[1:-1].split(b",")
    return _point(float(x), float(y))


def _map(pairs: list[tuple[bytes, bytes | None]]) -> bytes:
    if not pairs:
        return b"\x00"
    items = (string(key) + (NULL if value is None else SOME + string(value)) for key, value in pairs)
    return zigzag(len(pairs)) + b"".join(items) + b"\x00"


def binary_hstore(data: bytes) -> bytes:
    """Pairs in the server's own order, which is that of the text form."""
    (count,), at, pairs = _SIZE(data), 4, []
    for _ in range(count):
        parts: list[bytes | None] = []
        for _ in range(2):
            (size,), at = _SIZE(data, at), at + 4
            parts.append(None if size < 0 else data[at : at + size])
            at += max(size, 0)
        key, value = parts
        if key is None:
            raise ValueError("a NULL key")
        pairs.append((key, value))
    if at != len(data):
        raise ValueError("not as long as its pairs")
    return _map(pairs)


_PAIR = re.compile(rb'(?:, )?"((?:[^"\\]|\\.)*)"=>(?:"((?:[^"\\]|\\.)*)"|NULL)', re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)


def unescaped(quoted: bytes) -> bytes:
    """What stands between quotes, without its backslashes."""
    return _ESCAPED.sub(rb"\1", quoted) if b"\\" in quoted else quoted


def text_hstore(text: bytes) -> bytes:
    at, pairs = 0, []
    while at < len(text):
        if not (found := _PAIR.match(text, at)):
            raise ValueError("no hstore")
        key, value = found.group(1, 2)
        pairs.append((unescaped(key), None if value is None else unescaped(value)))
        at = found.end()
    return _map(pairs)


def printed_tsvector(data: bytes) -> bytes:
    """What tsvector's output function prints, from its binary form: lexemes, each with its positions and their weights."""
    (count,), at, shown = _SIZE(data), 4, []
    for _ in range(count):
        end = data.index(b"\x00", at)
        lexeme = data[at:end].replace(b"\\", b"\\\\").replace(b"'", b"''")
        places = int.from_bytes(data[end + 1 : end + 3], "big")
        at = end + 3 + 2 * places
        numbers = (int.from_bytes(data[i : i + 2], "big") for i in range(end + 3, at, 2))
        marks = b",".join(b"%d%b" % (number & 0x3FFF, (b"", b"C", b"B", b"A")[number >> 14]) for number in numbers)
        shown.append(b"'%b'%b%b" % (lexeme, b":" if marks else b"", marks))
    if at != len(data):
        raise ValueError("not as long as its lexemes")
    return b" ".join(shown)
