"""The generated functions of a codec: two templates, filled with a table's row code.

A template is Python in which a word in capitals on a line of its own is a block, and others are expressions. Nothing that comes
from a source is part of the text: names and values of tables are bytes among the globals.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from functools import lru_cache, partial
from types import CodeType
from typing import Any

from cdc.avro import zigzag
from cdc.postgres.arrays import shapes_field
from cdc.postgres.pgoutput import XLOGDATA_BYTES, lsn_of
from cdc.postgres.rowcode import (
    CONSTANTS,
    COPY,
    MALFORMED,
    Printers,
    Style,
    constants_of,
    fields_of,
    parts_of,
    row_code,
)
from cdc.postgres.rows import Rows

STREAM = """
def made():
    head = mid = tail = high = b''
    near, low = 0, V
    kappend = vappend = None

    def begin(transaction, append_key, append_value):
        nonlocal head, mid, tail, kappend, vappend
        head, times, xid, tail = transaction
        mid = times + TABLE + xid
        kappend, vappend = append_key, append_value

    def insert(frames, sequence):
        nonlocal near, low, high
        try:
            for m in frames:
                lsn, k, n = HEAD(m)
                if k != 78 or n != COUNT: raise ValueError
                p = AT_ROW; end = len(m)
                ROW
                if p != end: raise ValueError
                SEQUENCE_LSN
                vappend(join((INSERT, PARTS, head, V[len(digits) << 1], digits, mid, LSN, tail SHAPES)))
                kappend(KEY)
                sequence += 1
        except MALFORMED: raise malformed(m) from None
        return sequence

    def update(frames, sequence):
        nonlocal near, low, high
        try:
            for m in frames:
                lsn, k, n = HEAD(m)
                unchanged = k != 78
                if not unchanged:
                    if n != COUNT: raise ValueError
                    p = AT_ROW; end = len(m)
                    ROW_OR_UNCHANGED
                    if p != end: raise ValueError
                if unchanged:
                    sequence = changed(m, sequence, lsn)
                    continue
                SEQUENCE_LSN
                vappend(join((UPDATE, PARTS, head, V[len(digits) << 1], digits, mid, LSN, tail SHAPES)))
                kappend(KEY)
                sequence += 1
        except MALFORMED: raise malformed(m) from None
        return sequence

    def fields(m, p):
        if m[p:p + 2] != COUNT_BYTES: raise ValueError
        p += 2; end = len(m)
        OLD_ROW
        return [COLUMNS], p

    return insert, update, begin, fields
"""

CHUNK = """
def made():
    def encode(payloads, sequence, lsn, transaction, kappend, vappend):
        head, times, xid, tail = transaction
        mid = times + TABLE + xid + zigzag(lsn) + tail
        try:
            for m in payloads:
                p = 2; end = len(m)
                if m[:2] != COUNT_BYTES:
                    p = header(m)
                    if p is None: continue
                    if m[p:p + 2] != COUNT_BYTES: raise ValueError
                    p += 2
                ROW
                if p != end: raise ValueError
                digits = b'%d' % sequence
                vappend(join((READ, PARTS, head, V[len(digits) << 1], digits, mid SHAPES)))
                kappend(KEY)
                sequence += 1
        except MALFORMED: raise malformed_at(lsn) from None
        return sequence

    return (encode,)
"""

AT_TUPLE = XLOGDATA_BYTES + 5  # kind and relation precede what tells the tuples apart
AT_ROW = AT_TUPLE + 3  # and that, and the number of columns, precede the row
# Of a frame with a row: its LSN, the tuple's kind, the number of columns.
_HEAD = struct.Struct(f">xQ{AT_TUPLE - 9}xBH")
# An LSN's upper bits are the same for some kilobytes of WAL.
_SEQUENCE_LSN = [
    "digits = b'%d' % sequence",
    "z = lsn << 1",
    "if z >> 14 != near:",
    "    near = z >> 14",
    "    low, high = (C, unsigned(near)) if near else (V, b'')",
]


def compiled(template: str, rows: Rows, wire: str, printers: Printers, **names: Any) -> tuple[Any, ...]:
    """Fill a template with the table's row code and run it; its functions. The text holds numbers and our own names only: nothing
    from the source is ever part of it."""
    schema = rows.schema
    fields = fields_of(schema, wire, printers)
    columns = [" + ".join(parts_of(field)) for field in fields]
    key_parts = [part for i in rows.key_indexes for part in parts_of(fields[i])]
    key = "None"
    if rows.key_frame is not None:
        key = f"KEY_FRAME + {key_parts[0]}" if len(key_parts) == 1 else f"join((KEY_FRAME, {', '.join(key_parts)}))"
    note, stream = "unchanged = True", wire != COPY
    blocks = {
        "ROW_OR_UNCHANGED": row_code(fields, Style(wire, note)) if stream else [],
        "OLD_ROW": row_code(fields, Style(wire, "pass", inline=False)) if stream else [],
        "ROW": row_code(fields, Style(wire, None)),
        "SEQUENCE_LSN": _SEQUENCE_LSN,
    }
    inline = {
        "AT_ROW": str(AT_ROW),
        "COUNT": str(len(fields)),
        "PARTS": ", ".join(part for field in fields for part in parts_of(field)),
        "LSN": "low[z & 16383], high",
        "KEY": key,
        # A table without arrays has no such field.
        "SHAPES": f", shapes(({''.join(f'c{i}, ' for i in rows.array_indexes)}))" if rows.array_indexes else "",
        "COLUMNS": ", ".join(f"None if c{f.number} is None else {c}" for f, c in zip(fields, columns, strict=True)),
    }
    lines = []
    for line in template.splitlines():
        indent, word = line[: len(line) - len(line.lstrip())], line.strip()
        lines += [indent + inner for inner in blocks[word]] if word in blocks else [line]
    source = re.sub("|".join(rf"\b{word}\b" for word in inline), lambda found: inline[found[0]], "\n".join(lines))
    head = rows.value_frame
    scope = {
        **CONSTANTS,
        **constants_of(schema, fields, wire, printers),
        "shapes": partial(_shapes_after, rows.array_names),
        "join": b"".join,
        "zigzag": zigzag,
        "MALFORMED": MALFORMED,
        "malformed": lambda m: rows.malformed(lsn_of(m)),
        "malformed_at": rows.malformed,
        "HEAD": _HEAD.unpack_from,
        "COUNT_BYTES": len(fields).to_bytes(2, "big"),
        "KEY_FRAME": rows.key_frame,
        "TABLE": rows.table,
        # op; nothing unchanged, not moved, no before; an after follows.
        "INSERT": head + b"\x02c\x00\x00\x00\x02",
        "UPDATE": head + b"\x02u\x00\x00\x00\x02",
        "READ": head + b"\x02r\x00\x00\x00\x02",
        **names,
    }
    exec(_code(source), scope)  # noqa: S102
    made: tuple[Any, ...] = scope["made"]()
    return made


def _shapes_after(names: Sequence[str], columns: Sequence[bytes]) -> bytes:
    return shapes_field(names, [("after", columns)])


@lru_cache(maxsize=1024)
def _code(source: str) -> CodeType:
    """Tables of one shape share their code; what differs is among the globals."""
    return compile(source, "<codec>", "exec")
