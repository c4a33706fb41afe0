"""Avro values → lines of text COPY, by functions generated once per schema version.

Text, not binary: the target column's own input function reads the value, whatever type an adopted table gave it. Lines are
built as Latin-1 strings (one character per byte), so UTF-8 passes through untouched and the server verifies it.

Invariant: a value is consumed to its last byte, or the function raises `CdcError`; no row is ever half read. `fastavro` is
the oracle in tests.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cdc.avro import HEADER_BYTES, frame
from cdc.errors import CdcError
from cdc.table import Column, TableSchema
from sinks.postgres import text

Json = Any
Lines = Callable[[Iterable[bytes]], bytes]
_FIXED_BYTES = {"boolean": 1, "float": 4, "double": 8}
_OPS = (b"\x02c", b"\x02u", b"\x02r")
_DIFFER = {"sequence": "string", "lsn": "long"}  # fields of the source block that are another in each event

# What each kind is on the wire, and the expression that turns `x` (an int, or the str of a string) into COPY text.
_INTS = {
    "int16": "x",
    "int32": "x",
    "int64": "x",
    "date": "DAYS[x]",
    "time_ms": "time_us(x * 1000)",
    "time_us": "time_us(x)",
    "timestamp_ms": "timestamp_ms(x)",
    "timestamp_us": "timestamp_us(x)",
}
_STRINGS = {
    "text": "escaped(x)",
    "json": "escaped(x)",
    "enum": "escaped(x)",
    "other": "escaped(x)",
    "uuid": "escaped(x)",
}
_ESCAPE = "x if '\\\\' not in x and '\\n' not in x and '\\t' not in x and '\\r' not in x else escaped(x)"


class _Source:
    """Lines of Python at a depth of indentation."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, depth: int, *lines: str) -> None:
        self.lines += ["    " * depth + line for line in lines]

    def compile(self, name: str, **names: Any) -> Any:
        scope: dict[str, Any] = {**_SCOPE, **names}
        exec(compile("\n".join(self.lines), f"<{name}>", "exec"), scope)  # noqa: S102 - text of our own making
        return scope[name]


# ------------------------------------------------------------------------------------------------------------ primitives
def _varint(out: _Source, depth: int, small: str = "") -> None:
    """Code that reads an unsigned varint at `p` into `u` and moves `p`.

    `small`: a statement for values below 2^14 instead, given `u`; then `u` is None unless the value is larger.
    """
    done = [small, "u = None"] if small else []
    out.add(depth, "u = v[p]", "if u < 128:")
    out.add(depth + 1, "p += 1", *done)
    out.add(depth, "else:")
    out.add(depth + 1, "a = v[p + 1]", "if a < 128:")
    out.add(depth + 2, "u += (a << 7) - 128", "p += 2", *done)
    out.add(depth + 1, "else:")
    out.add(depth + 2, "b = v[p + 2]", "if b < 128:")
    out.add(depth + 3, "u += (a << 7) + (b << 14) - 16512", "p += 3")
    out.add(depth + 2, "else:")
    out.add(depth + 3, "c = v[p + 3]", "if c < 128:")
    out.add(depth + 4, "u += (a << 7) + (b << 14) + (c << 21) - 2113664", "p += 4")
    out.add(depth + 3, "else:")
    out.add(depth + 4, "u, p = varint(v, p)")


def varint(v: bytes, p: int) -> tuple[int, int]:
    """The unsigned varint at `p` and the place after it. Raises IndexError at the end of `v`, ValueError beyond 64 bits."""
    u = shift = 0
    while (byte := v[p]) > 127:
        u |= (byte & 127) << shift
        p, shift = p + 1, shift + 7
        if shift > 63:
            raise ValueError("a varint of more than 64 bits")
    return u | byte << shift, p + 1


def _length(out: _Source, depth: int) -> None:
    """Code that reads the length of a string or of bytes at `p`: `p` is then its start, `q` its end."""
    out.add(depth, "u = v[p]", "if u < 128 and not u & 1:")
    out.add(depth + 1, "p += 1")
    out.add(depth, "else:")
    out.add(depth + 1, "u, p = varint(v, p)", "if u & 1: raise ValueError('a negative length')")
    out.add(depth, "q = p + (u >> 1)")


# --------------------------------------------------------------------------------------------------------------- columns
def _read(out: _Source, depth: int, column: Column, to: str) -> None:
    """Code that reads a value that is present into `to`, as text or an int."""
    kind = column.type.kind
    if kind in _INTS:
        plain = _INTS[kind] == "x"
        _varint(out, depth, f"{to} = SMALL[u]" if plain else "")
        inner = depth + 1 if plain else depth
        if plain:
            out.add(depth, "if u is not None:")
        out.add(inner, "x = u >> 1 ^ -(u & 1)", f"{to} = {_INTS[kind]}")
    elif kind == "boolean":
        out.add(depth, f"{to} = BOOLEAN[v[p]]", "p += 1")
    elif kind in ("float32", "float64"):
        size, name = (4, "float32") if kind == "float32" else (8, "float64")
        out.add(depth, f"(x,) = {name}(v, p)", f"p += {size}")
        shown = "repr(x)" if kind == "float64" else "single(x)"
        out.add(depth, f"{to} = {shown} if x - x == 0 else FLOATS[repr(x)]")
    elif kind == "decimal":
        _length(out, depth)
        _decimal(out, depth, to, column.type.scale or 0)
    elif kind == "numeric":
        _varint(out, depth)
        out.add(depth, "scale = u >> 1 ^ -(u & 1)")
        _length(out, depth)
        out.add(depth, f"{to} = numeric(v[p:q], scale)", "p = q")
    elif kind == "bytes":
        _length(out, depth)
        out.add(depth, f"{to} = '\\\\\\\\x' + v[p:q].hex()", "p = q")
    elif kind == "timestamptz":
        _length(out, depth)
        out.add(
            depth, "x = s[p:q]", f"{to} = x if u == 54 and x > '0001' and x[26] == 'Z' else timestamptz(x)", "p = q"
        )
    else:
        assert kind in _STRINGS, kind
        _length(out, depth)
        out.add(depth, "x = s[p:q]", f"{to} = {_ESCAPE}", "p = q")


def _decimal(out: _Source, depth: int, to: str, scale: int) -> None:
    out.add(depth, "x = number(v[p:q], 'big', signed=True)")
    if scale:
        # At least one digit before the point: the fast path. The rest is padded, very long, or a NaN.
        out.add(depth, f"if {10**scale} <= x < {10**4000}:" if scale < 4000 else "if False:")
        out.add(depth + 1, "x = str(x)", f"{to} = x[:-{scale}] + '.' + x[-{scale}:]")
        out.add(depth, "else:")
        out.add(depth + 1, f"{to} = decimal(x, {scale}) if p < q else 'NaN'")
    else:
        out.add(depth, f"{to} = decimal(x, 0) if p < q else 'NaN'")
    out.add(depth, "p = q")


def _skip(out: _Source, depth: int, avro: Json, named: dict[str, Json]) -> None:
    """Code that moves `p` over a datum of an Avro schema."""
    form = avro["type"] if isinstance(avro, dict) else avro
    if isinstance(avro, str) and avro in named:
        _skip(out, depth, named[avro], named)
    elif isinstance(avro, list):
        _varint(out, depth)
        for index, branch in enumerate(avro):
            out.add(depth, f"{'el' * bool(index)}if u == {index * 2}:")
            out.add(depth + 1, "pass")
            _skip(out, depth + 1, branch, named)
        out.add(depth, "else: raise ValueError('no such branch')")
    elif form == "record":
        named[".".join(filter(None, (avro.get("namespace"), avro["name"])))] = named[avro["name"]] = avro
        for field in avro["fields"]:
            _skip(out, depth, field["type"], named)
    elif form == "array":
        _varint(out, depth)
        out.add(depth, "while u:", "    count = u >> 1", "    if u & 1: raise ValueError('a sized block')")
        out.add(depth + 1, "for _ in range(count):")
        _skip(out, depth + 2, avro["items"], named)
        _varint(out, depth + 1)
    elif isinstance(form, dict):
        _skip(out, depth, form, named)
    elif form in ("string", "bytes"):
        _length(out, depth)
        out.add(depth, "p = q")
    elif form in ("int", "long"):
        _varint(out, depth)
    elif form != "null":
        out.add(depth, f"p += {_FIXED_BYTES[form]}")


def _fields(out: _Source, depth: int, table: TableSchema, columns: frozenset[str]) -> list[str]:
    """Code that reads a row; columns outside `columns` are decoded and left out. The names of the variables, in table order."""
    names = []
    for index, column in enumerate(table.columns):
        to = f"c{index}"
        if column.name in columns:
            names.append(to)
        if column.name in table.key:
            _read(out, depth, column, to)
            continue
        out.add(depth, "if v[p] == 2:")
        out.add(depth + 1, "p += 1")
        _read(out, depth + 1, column, to)
        out.add(depth, "elif v[p]: raise ValueError('no such branch')")
        out.add(depth, "else:")
        out.add(depth + 1, f"{to} = '\\\\N'", "p += 1")
    return names


def _line(names: Sequence[str]) -> str:
    return "line(f'" + "\\t".join(f"{{{name}}}" for name in names) + "\\n')"


# ------------------------------------------------------------------------------------------------------------- functions
def compile_rows(
    table: TableSchema,
    value_schema: Json,
    schema_id: int,
    *,
    columns: frozenset[str] | None = None,
    image: str = "after",
) -> Lines:
    """A function from framed values of this schema to COPY lines of `columns` (default: all), in table order.

    `image` is the row to take, `after` or `before`. The result has one line per value. Raises CDC-TGT-132 for bytes that are
    not a value of this schema, or that lack the row.
    """
    wanted = frozenset(table.by_name) if columns is None else columns
    fields = {field["name"]: field["type"] for field in value_schema["fields"]}
    out, tail = _Source(), _Tail(fields)
    out.add(0, "def rows(values, *, HEADS=HEADS, SMALL=SMALL, DAYS=DAYS, BOOLEAN=BOOLEAN, number=int.from_bytes,")
    out.add(3, "float64=float64, float32=float32, len=len, repr=repr, str=str):")
    out.add(1, "out = []", "line = out.append", "same = UNKNOWN")
    out.add(1, "try:")
    out.add(2, "for v in values:")
    out.add(3, "s = v.decode('latin-1')", "if v[:11] in HEADS: p = 11", "else: p = head(v)")
    names = _fields(out, 3, table, wanted)
    if image == "before":
        out.add(3, "p = skip_after(v, p)")
    tail.add(out, 3)
    out.add(3, _line(names))
    out.add(1, "except (IndexError, ValueError, KeyError, error) as broken:")
    out.add(2, "raise damaged(table, len(out)) from broken")
    out.add(1, "return ''.join(out).encode('latin-1')")
    return out.compile(  # type: ignore[no-any-return]
        "rows",
        table=str(table.id),
        HEADS=frozenset(frame(schema_id) + op + b"\0\0\0\x02" for op in _OPS if image == "after"),
        head=_head(fields, schema_id, image),
        skip_after=_skipper("after", ["null", fields["before"][1]]),
        tail=tail.read,
        UNKNOWN=tail.unknown,
    )


def _skipper(name: str, avro: Json) -> Callable[[bytes, int], int]:
    out = _Source()
    out.add(0, f"def {name}(v, p):")
    _skip(out, 1, avro, {})
    out.add(1, "return p")
    return out.compile(name)  # type: ignore[no-any-return]


def _head(fields: Json, schema_id: int, image: str) -> Callable[[bytes], int]:
    """The place of the row: over op, unchanged, moved and, for `after`, over `before`."""
    first = [fields["op"], fields["unchanged"], fields["moved"]]
    over = _skipper(
        "head",
        {"type": "record", "name": "Head", "fields": [{"name": str(i), "type": form} for i, form in enumerate(first)]},
    )
    before, framed = _skipper("before", fields["before"]), frame(schema_id)

    def head(v: bytes) -> int:
        if not v.startswith(framed):
            raise ValueError("a value of another schema")
        p = over(v, HEADER_BYTES)
        if image == "after":
            p = before(v, p)
        if v[p] != 2:
            raise ValueError(f"no {image} image")
        return p + 1

    return head


class _Tail:
    """What follows the rows of a value: the source block, the transaction and the times.

    There the events of one transaction differ in a number or two, so that what stands between these is compared with the event
    before, and read only where it is another."""

    def __init__(self, fields: Json) -> None:
        parts: list[list[Json]] = [[]]
        self._forms = []
        for field in fields["source"]["fields"]:
            if field["name"] in _DIFFER:
                self._forms.append(_DIFFER[field["name"]])
                parts.append([])
            parts[-1].append(field)
        parts[-1] += [{"name": name, "type": fields[name]} for name in ("transaction", "ts_ms", "ts_us", "ts_ns")]
        self._skips = [_skipper("part", {"type": "record", "name": "Part", "fields": part}) for part in parts]
        self.unknown = (b"\xff",) * len(parts)  # what no value has

    def add(self, out: _Source, depth: int) -> None:
        """Code that verifies the tail at `p`; `same` is what `read` gave for an event before, or `unknown`."""
        out.add(depth, "known, t = False, p")
        inner = depth
        for index, form in enumerate(self._forms):
            out.add(inner, f"if v.startswith(same[{index}], t):")
            inner += 1
            out.add(inner, f"t += len(same[{index}])")
            out.add(inner, *(["while v[t] > 127: t += 1", "t += 1"] if form == "long" else ["t += 1 + (v[t] >> 1)"]))
        out.add(inner, f"known = v[t:] == same[{len(self._forms)}]")
        out.add(depth, "if not known: same = tail(v, p)")

    def read(self, v: bytes, p: int) -> tuple[bytes, ...]:
        """Verify the tail at `p`, to the value's last byte; the bytes that the next events probably share."""
        same, begin, known = [], p, True
        for index, skip in enumerate(self._skips):
            if index:  # `p` is at a field that differs: its branch, then its value
                long = self._forms[index - 1] == "long"
                known = known and v[p] == 2 and (long or v[p + 1] < 127)
                same.append(v[begin : p + 1])
                begin = p + 1
                if known:
                    begin = varint(v, begin)[1] if long else begin + 1 + (v[begin] >> 1)
            p = skip(v, p)
        if p != len(v):
            raise ValueError("bytes are left over or missing")
        return (*same, v[begin:]) if known else self.unknown


def compile_keys(table: TableSchema) -> Lines:
    """A function from framed keys to COPY lines of the key columns, in key order. Raises CDC-TGT-132 for other bytes."""
    out = _Source()
    out.add(0, "def keys(values, *, number=int.from_bytes):")
    out.add(1, "out = []", "line = out.append", "try:")
    out.add(2, "for v in values:")
    out.add(3, "s = v.decode('latin-1')", "p = 5", "if v[0]: raise ValueError('not framed')")
    names = [f"k{index}" for index in range(len(table.key))]
    for name, column in zip(names, table.key_columns, strict=True):
        _read(out, 3, column, name)
    out.add(3, "if p != len(v): raise ValueError('bytes are left over or missing')")
    out.add(3, _line(names))
    out.add(1, "except (IndexError, ValueError, KeyError, error) as broken:")
    out.add(2, "raise damaged(table, len(out)) from broken")
    out.add(1, "return ''.join(out).encode('latin-1')")
    return out.compile("keys", table=str(table.id))  # type: ignore[no-any-return]


def _damaged(table: str, index: int) -> CdcError:
    return CdcError("CDC-TGT-132", f"record {index} of this piece is not a value of its schema", where=table)


def fields_of(line: bytes) -> list[str | None]:
    """The fields of one COPY line, unescaped: for statements with literals (errors, the ordered path)."""
    return [None if field == "\\N" else text.unescaped(field) for field in line.decode("utf-8")[:-1].split("\t")]


_SCOPE: dict[str, Any] = {
    "SMALL": tuple(str(u >> 1 ^ -(u & 1)) for u in range(1 << 14)),
    "BOOLEAN": {0: "f", 1: "t"},
    "FLOATS": {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"},
    "DAYS": text.DAYS,
    "damaged": _damaged,
    "decimal": text.decimal,
    "error": struct.error,
    "escaped": text.escaped,
    "float32": struct.Struct("<f").unpack_from,
    "float64": struct.Struct("<d").unpack_from,
    "numeric": text.numeric,
    "single": text.single,
    "time_us": text.time_us,
    "timestamp_ms": text.timestamp_ms,
    "timestamp_us": text.timestamp_us,
    "timestamptz": text.timestamptz,
    "varint": varint,
}
