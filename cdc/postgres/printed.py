"""What a type's output function prints, from the value's binary form: so that a binary stream can carry types that are text to us.

The invariant: a printer gives the very text that the server prints under our session's settings (rule R7), or there is none for the
type, and the stream goes in text mode. There is none for composites, object names (regclass and its like), tsquery, and types of
extensions but for those whose binary form is text.
"""

from __future__ import annotations

import math
import re
from binascii import hexlify
from collections.abc import Mapping
from decimal import Decimal
from struct import Struct, unpack_from

from cdc.avro import INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN
from cdc.postgres.arrays import elements_of
from cdc.postgres.calendar import DAY_US, EPOCH_2000_DAYS, EPOCH_2000_US
from cdc.postgres.forms import Form, without_version
from cdc.postgres.rare_values import printed_tsvector
from cdc.postgres.types import PgType, date_text, decimal_text, logical, time_text
from cdc.postgres.values import scaled

Printer = Form
_SIZE = Struct(">i").unpack_from


# ----------------------------------------------------------------------------------------------------------------- numbers
def _integer(code: str) -> Printer:
    unpack = Struct(f">{code}").unpack
    return lambda data: b"%d" % unpack(data)[0]


def _float(number: float) -> bytes:
    """The fewest digits that read back the same, as the server spells them: with an exponent from 1e+15 on, and below 1e-04."""
    text = repr(number)
    if abs(number) >= 2**53 and math.isfinite(number):
        text = _between_neighbours(number, text)
    if text in ("nan", "inf", "-inf"):
        return {"nan": b"NaN", "inf": b"Infinity", "-inf": b"-Infinity"}[text]
    if "e" not in text:
        text = text.removesuffix(".0")
        sign, digits = ("-", text[1:]) if text[:1] == "-" else ("", text)
        whole, _, fraction = digits.partition(".")
        if len(whole) == 16:
            short = f"{whole}{fraction}".rstrip("0")
            text = f"{sign}{short[0]}{'.' if len(short) > 1 else ''}{short[1:]}e+15"
    return text.encode()


def _between_neighbours(number: float, text: str) -> str:
    """`text`, or more digits where it is just halfway to a neighbour: Python reads that by the even bit, the server does not write it.
    Below 2^53 no such half has so few digits."""
    exact, digits = int(number), len(text.partition("e")[0].lstrip("-").replace(".", ""))
    while digits < 17:
        written = int(Decimal(text))
        neighbour = math.nextafter(number, math.copysign(math.inf, written - exact))
        if written == exact or math.isinf(neighbour) or written * 2 != exact + int(neighbour):
            break
        text, digits = f"{number:.{digits}e}", digits + 1
    return text


def _floats(data: bytes, at: int, count: int) -> list[bytes]:
    if len(data) != at + 8 * count:
        raise ValueError("not as long as its numbers")
    return [_float(number) for number in unpack_from(f">{count}d", data, at)]


def _numeric(data: bytes) -> bytes:
    number = scaled(data)
    if isinstance(number, int):
        return (b"NaN", b"Infinity", b"-Infinity")[number]
    return decimal_text(*number).encode()


# ------------------------------------------------------------------------------------------------------------ days and times
def _date(data: bytes) -> bytes:
    (days,) = Struct(">i").unpack(data)
    if days in (INT32_MIN, INT32_MAX):
        return b"infinity" if days > 0 else b"-infinity"
    return date_text(days + EPOCH_2000_DAYS, "").encode()


def _timestamp(zone: str) -> Printer:
    def printer(data: bytes) -> bytes:
        (us,) = Struct(">q").unpack(data)
        if us in (INT64_MIN, INT64_MAX):
            return b"infinity" if us > 0 else b"-infinity"
        days, us = divmod(us + EPOCH_2000_US, DAY_US)
        return date_text(days, f" {time_text(us).rstrip('0').rstrip('.')}{zone}").encode()

    return printer


# ----------------------------------------------------------------------------------------------------------------- networks
def _network(data: bytes) -> bytes:
    """inet and cidr: a cidr always says how many bits count, an inet only when not all do."""
    family, bits, is_cidr, size = data[:4]
    address = data[4:]
    if (family, size, len(address)) not in ((2, 4, 4), (3, 16, 16)):
        raise ValueError("no address")
    shown = b"%d.%d.%d.%d" % tuple(address) if family == 2 else _ipv6(address)
    return shown if bits == size * 8 and not is_cidr else b"%b/%d" % (shown, bits)


def _ipv6(address: bytes) -> bytes:
    """The first of the longest runs of zeros is `::`; what embeds an IPv4 address ends with it."""
    words = unpack_from(">8H", address)
    runs = [
        (len(run[0]), -run.start()) for run in re.finditer(b"0{2,}", bytes(48 if not word else 49 for word in words))
    ]
    length, start = max(runs, default=(0, 0))
    start = -start
    embeds = (length, start) == (6, 0) or ((length, start) == (5, 0) and words[5] == 0xFFFF)
    tail = b"%d.%d.%d.%d" % tuple(address[12:])
    parts = [b"%x" % word for word in words]
    if not length:
        return b":".join(parts)
    if embeds:
        return b"::" + b"".join(part + b":" for part in parts[length:6]) + tail
    return b":".join(parts[:start]) + b"::" + b":".join(parts[start + length :])


def _mac(size: int) -> Printer:
    def printer(data: bytes) -> bytes:
        if len(data) != size:
            raise ValueError("no MAC address")
        return hexlify(data, ":")

    return printer


# -------------------------------------------------------------------------------------------------------------- small types
def _char(data: bytes) -> bytes:
    (byte,) = data
    return b"\\%03o" % byte if byte > 127 else data if byte else b""


def _bits(data: bytes) -> bytes:
    (count,) = _SIZE(data)
    if len(data) != 4 + (count + 7) // 8:
        raise ValueError("not as many bits as it says")
    return f"{int.from_bytes(data[4:], 'big') >> -count % 8:0{count}b}".encode() if count else b""


def _lsn(data: bytes) -> bytes:
    return b"%X/%X" % Struct(">II").unpack(data)


def _tid(data: bytes) -> bytes:
    return b"(%d,%d)" % Struct(">IH").unpack(data)


def _snapshot(data: bytes) -> bytes:
    (count,) = _SIZE(data)
    xmin, xmax, *running = Struct(f">{count + 2}q").unpack(data[4:])
    return b"%d:%d:%b" % (xmin, xmax, b",".join(b"%d" % xid for xid in running))


def _uuid(data: bytes) -> bytes:
    text = hexlify(data)
    if len(text) != 32:
        raise ValueError("no UUID")
    return b"%b-%b-%b-%b-%b" % (text[:8], text[8:12], text[12:16], text[16:20], text[20:])


# ----------------------------------------------------------------------------------------------------------------- geometry
def _points(numbers: list[bytes]) -> bytes:
    return b",".join(b"(%b,%b)" % pair for pair in zip(numbers[::2], numbers[1::2], strict=True))


def _path(data: bytes) -> bytes:
    shown = _points(_floats(data, 5, 2 * _SIZE(data, 1)[0]))
    return b"(%b)" % shown if data[0] else b"[%b]" % shown


# ----------------------------------------------------------------------------------------------------------- ranges, arrays
_EMPTY, _LOWER_IN, _UPPER_IN, _LOWER_OPEN, _UPPER_OPEN = 1, 2, 4, 8, 16
_BOUND_QUOTED = re.compile(rb'[\s"\\()\[\],\x0b]')
_DOUBLED = re.compile(rb'(["\\])')


def _range(bound: Printer) -> Printer:
    def one(data: bytes, at: int) -> tuple[bytes, int]:
        (size,), at = _SIZE(data, at), at + 4
        text = bound(data[at : at + size])
        if not text or _BOUND_QUOTED.search(text):
            text = b'"%b"' % _DOUBLED.sub(rb"\1\1", text)
        return text, at + size

    def printer(data: bytes) -> bytes:
        flags, at, lower, upper = data[0], 1, b"", b""
        if not flags & (_EMPTY | _LOWER_OPEN):
            lower, at = one(data, at)
        if not flags & (_EMPTY | _UPPER_OPEN):
            upper, at = one(data, at)
        if at != len(data):
            raise ValueError("not as long as its bounds")
        if flags & _EMPTY:
            return b"empty"
        return b"%b%b,%b%b" % (b"[" if flags & _LOWER_IN else b"(", lower, upper, b"]" if flags & _UPPER_IN else b")")

    return printer


def _multirange(member: Printer) -> Printer:
    def printer(data: bytes) -> bytes:
        (count,), at, shown = _SIZE(data), 4, []
        for _ in range(count):
            (size,), at = _SIZE(data, at), at + 4
            shown.append(member(data[at : at + size]))
            at += size
        if at != len(data):
            raise ValueError("not as long as its ranges")
        return b"{%b}" % b",".join(shown)

    return printer


_BACKSLASHED = re.compile(rb'(["\\])')


def _array(element: Printer, delimiter: bytes) -> Printer:
    quoted = re.compile(rb'["\\{}\s\x0b' + re.escape(delimiter) + rb"]")

    def one(item: bytes | None) -> bytes:
        if item is None:
            return b"NULL"
        text = element(item)
        if not text or text.upper() == b"NULL" or quoted.search(text):
            return b'"%b"' % _BACKSLASHED.sub(rb"\\\1", text)
        return text

    def printer(data: bytes) -> bytes:
        items, bounds = elements_of(data)
        parts = [one(item) for item in items]
        if not parts:
            return b"{}"
        for _, size in reversed(bounds[1:]):
            parts = [b"{%b}" % delimiter.join(parts[i : i + size]) for i in range(0, len(parts), size)]
        if len(parts) != bounds[0][1]:
            raise ValueError("not as many elements as its dimensions say")
        plain = all(lower == 1 for lower, _ in bounds)
        said = b"" if plain else b"".join(b"[%d:%d]" % (lower, lower + size - 1) for lower, size in bounds) + b"="
        return b"%b{%b}" % (said, delimiter.join(parts))

    return printer


# ------------------------------------------------------------------------------------------------------------------- tables
def _same(data: bytes) -> bytes:
    return data


_BY_OID: Mapping[int, Printer] = {
    17: lambda data: b"\\x" + hexlify(data),
    18: _char,
    27: _tid,
    28: _integer("I"),  # xid
    29: _integer("I"),  # cid
    600: lambda data: _points(_floats(data, 0, 2)),
    601: lambda data: b"[%b]" % _points(_floats(data, 0, 4)),  # lseg
    602: _path,
    603: lambda data: _points(_floats(data, 0, 4)),  # box
    604: lambda data: b"(%b)" % _points(_floats(data, 4, 2 * _SIZE(data)[0])),  # polygon
    628: lambda data: b"{%b}" % b",".join(_floats(data, 0, 3)),  # line
    650: _network,
    718: lambda data: b"<(%b,%b),%b>" % tuple(_floats(data, 0, 3)),  # circle
    774: _mac(8),
    829: _mac(6),
    869: _network,
    1560: _bits,
    1562: _bits,
    1790: _same,  # refcursor
    2970: _snapshot,
    3220: _lsn,
    4072: without_version,  # jsonpath
    5038: _snapshot,
    5069: _integer("Q"),  # xid8
}
_BY_KIND: Mapping[str, Printer] = {
    "boolean": lambda data: {b"\x00": b"f", b"\x01": b"t"}[data],
    "int16": _integer("h"),
    "int32": _integer("i"),
    "int64": _integer("q"),
    "uint32": _integer("I"),
    "float64": lambda data: _floats(data, 0, 1)[0],
    "decimal": _numeric,
    "numeric": _numeric,
    "date": _date,
    "timestamp_ms": _timestamp(""),
    "timestamp_us": _timestamp(""),
    "timestamptz": _timestamp("+00"),
    "uuid": _uuid,
    "text": _same,
    "enum": _same,
    "xml": _same,
    "json": without_version,
    "ltree": without_version,
    "tsvector": printed_tsvector,
}
_BY_EXTENSION: Mapping[str, Printer] = {"ltree.lquery": without_version, "ltree.ltxtquery": without_version}


def printer_of(pg_type: PgType) -> Printer | None:
    """The printer of a type, None if it has none."""
    if pg_type.inner is not None:
        inner = printer_of(pg_type.inner) if pg_type.inner.sends else None
        if inner is None:
            return None
        match pg_type.base_typtype:
            case "r":
                return _range(inner)
            case "m":
                return _multirange(_range(inner))
        return _array(inner, pg_type.inner.delimiter.encode())
    if pg_type.extension is not None:
        return _BY_EXTENSION.get(pg_type.extension) or _BY_KIND.get(logical(pg_type).kind)
    if pg_type.base_typtype not in "be":
        return None
    return _BY_OID.get(pg_type.base_oid) or _BY_KIND.get(logical(pg_type).kind)


def is_carried(pg_type: PgType) -> bool:
    """Can a binary stream carry columns of this type? One that it cannot carry puts the whole stream in text mode."""
    return not pg_type.sends or logical(pg_type).kind != "other" or printer_of(pg_type) is not None
