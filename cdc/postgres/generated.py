"""The generated functions of a codec: two templates, filled with a table's row code.

A template is Python in which a word in capitals on a line of its own is a block, and others are expressions. Nothing that comes
from a source is part of the text: names and values of tables are bytes among the globals.
"""

from __future__ import annotations

import re
from functools import lru_cache
from types import CodeType
from typing import Any

from cdc.avro import zigzag
from cdc.postgres.rowcode import CONSTANTS, COPY, MALFORMED, Style, constants_of, fields_of, parts_of, row_code
from cdc.postgres.rows import Rows

STREAM = """
def made():
    head = mid = tail = b''
    kappend = vappend = None

    def begin(transaction, append_key, append_value):
        nonlocal head, mid, tail, kappend, vappend
        head, times, xid, tail = transaction
        mid = times + TABLE + xid
        kappend, vappend = append_key, append_value

    def insert(m, sequence, lsn):
        try:
            if m[AT:AT_TUPLE] != NEW: raise ValueError
            p = AT_TUPLE; end = len(m)
            ROW
            if p != end: raise ValueError
        except MALFORMED: raise malformed(lsn) from None
        SEQUENCE_LSN
        vappend(join((INSERT, PARTS, head, V[len(digits) << 1], digits, mid, LSN, tail)))
        kappend(KEY)

    def update(m, sequence, lsn):
        try:
            if m[AT:AT_TUPLE] != NEW: return changed(m, sequence, lsn)
            p = AT_TUPLE; end = len(m)
            unchanged = False
            ROW_OR_UNCHANGED
            if p != end: raise ValueError
        except MALFORMED: raise malformed(lsn) from None
        if unchanged: return changed(m, sequence, lsn)
        SEQUENCE_LSN
        vappend(join((UPDATE, PARTS, head, V[len(digits) << 1], digits, mid, LSN, tail)))
        kappend(KEY)

    def fields(m, p):
        if m[p:p + 2] != COUNT: raise ValueError
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
                if m[:2] != COUNT:
                    p = header(m)
                    if p is None: continue
                    if m[p:p + 2] != COUNT: raise ValueError
                    p += 2
                ROW
                if p != end: raise ValueError
                digits = b'%d' % sequence
                vappend(join((READ, PARTS, head, V[len(digits) << 1], digits, mid)))
                kappend(KEY)
                sequence += 1
        except MALFORMED: raise malformed(lsn) from None
        return sequence

    return (encode,)
"""


def compiled(template: str, rows: Rows, wire: str, start: int = 0, **names: Any) -> tuple[Any, ...]:
    """Fill a template with the table's row code and run it; its functions. The text holds numbers and our own names only: nothing
    from the source is ever part of it."""
    schema = rows.schema
    fields = fields_of(schema)
    count = len(fields).to_bytes(2, "big")
    columns = [" + ".join(parts_of(field)) for field in fields]
    key_parts = [part for i in rows.key_indexes for part in parts_of(fields[i])]
    key = "None"
    if rows.key_frame is not None:
        key = f"KEY_FRAME + {key_parts[0]}" if len(key_parts) == 1 else f"join((KEY_FRAME, {', '.join(key_parts)}))"
    note, stream = "unchanged = True", wire != COPY
    blocks = {
        "ROW_OR_UNCHANGED": row_code(schema, Style(wire, note)) if stream else [],
        "OLD_ROW": row_code(schema, Style(wire, "pass", inline=False)) if stream else [],
        "ROW": row_code(schema, Style(wire, None)),
        "SEQUENCE_LSN": ["digits = b'%d' % sequence", "z = lsn << 1"],
    }
    inline = {
        "AT_TUPLE": str(start + 8),
        "AT": str(start + 5),
        "PARTS": ", ".join(part for field in fields for part in parts_of(field)),
        "LSN": "C[z & 16383] + C[z >> 14 & 16383] + V[z >> 28] if 268435456 <= z < 4398046511104 else unsigned(z)",
        "KEY": key,
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
        **constants_of(schema, wire),
        "join": b"".join,
        "zigzag": zigzag,
        "MALFORMED": MALFORMED,
        "malformed": rows.malformed,
        "COUNT": count,
        "NEW": b"N" + count,
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


@lru_cache(maxsize=1024)
def _code(source: str) -> CodeType:
    """Tables of one shape share their code; what differs is among the globals."""
    return compile(source, "<codec>", "exec")
