"""Text of Python that reads values of Avro and turns them into fields of text COPY, for `codec` to compile.

In it `v` is a framed value, `s` the same bytes as a Latin-1 string, and `p` the place that is read; `u` and `q` are for a moment.
Invariant: code that reads a value moves `p` to its last byte, or raises IndexError, ValueError, KeyError or struct.error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from cdc.table import Column, LogicalType, TableSchema
from sinks.postgres import arrays, text

Json = Any
_FIXED_BYTES = {"boolean": 1, "float": 4, "double": 8}

# What each kind is on the wire, and the expression that turns `x` (an int, or the str of a string) into text.
_INTS = {
    "int16": "x",
    "int32": "x",
    "int64": "x",
    "uint32": "x",
    "date": "DAYS[x]",
    "time_ms": "time_us(x * 1000)",
    "time_us": "time_us(x)",
    "timestamp_ms": "timestamp_ms(x)",
    "timestamp_us": "timestamp_us(x)",
}
_STRINGS = frozenset(
    ("text", "json", "enum", "other", "uuid", "timetz", "interval", "xml", "tsvector", "ltree", "hstore", "point")
)
_ESCAPE = "x if '\\\\' not in x and '\\n' not in x and '\\t' not in x and '\\r' not in x else escaped(x)"
_BARE = frozenset(  # whose texts an array holds as they are
    (
        *("boolean", "int16", "int32", "int64", "uint32", "float32", "float64", "decimal", "numeric", "money"),
        *("bit", "bits"),
    )
)
_MONEY_SCALE = 2


class Taker(NamedTuple):
    """What of a target column decides how it reads: its type (no domain) as format_type prints it, and what stands between the
    elements of its arrays."""

    type: str = ""
    delimiter: str = ","


def taker_of(takers: Mapping[str, Taker], column: Column) -> Taker:
    """The column's; where it is not known or no array's, arrays are written as the source writes them."""
    found = takers.get(column.name, Taker())
    if column.type.kind == "array" and not found.type.endswith("[]"):
        return Taker(found.type, ";" if column.source_type == "box[]" else ",")
    return found


class Source:
    """Lines of Python at a depth of indentation."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._count = 0

    def add(self, depth: int, *lines: str) -> None:
        self.lines += ["    " * depth + line for line in lines]

    def name(self) -> str:
        """A name that no other part of the code uses."""
        self._count += 1
        return f"n{self._count}"

    def compile(self, name: str, **names: Any) -> Any:
        scope: dict[str, Any] = {**_SCOPE, **names}
        exec(compile("\n".join(self.lines), f"<{name}>", "exec"), scope)  # noqa: S102 - text of our own making
        return scope[name]


# ------------------------------------------------------------------------------------------------------------ primitives
def _varint(out: Source, depth: int, small: str = "") -> None:
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


def _length(out: Source, depth: int) -> None:
    """Code that reads the length of a string or of bytes at `p`: `p` is then its start, `q` its end."""
    out.add(depth, "u = v[p]", "if u < 128 and not u & 1:")
    out.add(depth + 1, "p += 1")
    out.add(depth, "else:")
    out.add(depth + 1, "u, p = varint(v, p)", "if u & 1: raise ValueError('a negative length')")
    out.add(depth, "q = p + (u >> 1)")


# ---------------------------------------------------------------------------------------------------------------- values
def read(out: Source, depth: int, logical: LogicalType, taker: Taker, to: str) -> None:
    """Code that reads a value that is present into `to`, as a field of COPY; an array as the list of its elements (`finish`)."""
    if logical.kind == "array":
        _elements(out, depth, logical, taker, to)
    elif logical.kind in _STRINGS:
        _raw(out, depth, logical, taker, "x")
        out.add(depth, f"{to} = {_ESCAPE}")
    elif logical.kind == "bytes":
        _length(out, depth)
        out.add(depth, f"{to} = '\\\\\\\\x' + v[p:q].hex()", "p = q")
    else:
        _raw(out, depth, logical, taker, to)


def finish(out: Source, depth: int, column: Column, taker: Taker, name: str, bounds: str) -> None:
    """Code that makes a field of the elements of an array; `bounds` is an expression: its shape, None where it is plain."""
    if column.type.kind == "array":
        out.add(depth, f"if {name}.__class__ is list:")
        out.add(depth + 1, f"x = array({name}, {bounds}, {taker.delimiter!r})", f"{name} = {_ESCAPE}")


def _elements(out: Source, depth: int, logical: LogicalType, taker: Taker, to: str) -> None:
    """Code that reads an array's elements into a list `to`, each as the literal of an array spells it."""
    element = logical.element
    assert element is not None
    inner, count = Taker(taker.type.removesuffix("[]"), taker.delimiter), out.name()
    out.add(depth, f"{to} = []")
    for at in _blocks(out, depth, count):
        out.add(at, "if v[p] == 2:")
        out.add(at + 1, "p += 1")
        _raw(out, at + 1, element, inner, "x")
        shown = "str(x)" if element.kind in _INTS and _INTS[element.kind] == "x" else "x"
        out.add(at + 1, f"{to}.append({shown if element.kind in _BARE else f'quoted(x, {taker.delimiter!r})'})")
        out.add(at, "elif v[p]: raise ValueError('no such branch')", "else:")
        out.add(at + 1, f"{to}.append('NULL')", "p += 1")


def _blocks(out: Source, depth: int, count: str) -> Iterator[int]:
    """Code that goes through the blocks of an array or a map; what is added at the depth that comes reads an item."""
    _varint(out, depth)
    out.add(depth, "while u:", f"    {count} = u >> 1", "    if u & 1: raise ValueError('a sized block')")
    out.add(depth + 1, f"for _ in range({count}):")
    yield depth + 2
    _varint(out, depth + 1)


def _raw(out: Source, depth: int, logical: LogicalType, taker: Taker, to: str) -> None:
    """Code that reads a value into `to`: its text, before any escaping."""
    kind = logical.kind
    if kind in _INTS:
        plain = _INTS[kind] == "x"
        _varint(out, depth, f"{to} = SMALL[u]" if plain else "")
        inner = depth + 1 if plain else depth
        if plain:
            out.add(depth, "if u is not None:")
        out.add(inner, "x = u >> 1 ^ -(u & 1)", f"{to} = {_INTS[kind]}")
    elif kind in ("boolean", "bit"):
        out.add(depth, f"{to} = {'BOOLEAN' if kind == 'boolean' else 'BIT'}[v[p]]", "p += 1")
    elif kind in ("float32", "float64"):
        _float(out, depth, to, single=kind == "float32")
    elif kind in ("decimal", "money"):
        _length(out, depth)
        _decimal(out, depth, to, _MONEY_SCALE if kind == "money" else logical.scale or 0)
    elif kind == "numeric":
        _varint(out, depth)
        out.add(depth, "scale = u >> 1 ^ -(u & 1)")
        _length(out, depth)
        out.add(depth, f"{to} = numeric(v[p:q], scale)", "p = q")
    elif kind == "timestamptz":
        _length(out, depth)
        out.add(
            depth, "x = s[p:q]", f"{to} = x if u == 54 and x > '0001' and x[26] == 'Z' else timestamptz(x)", "p = q"
        )
    elif kind == "hstore":
        _pairs(out, depth, taker, to)
    elif kind == "point":
        _float(out, depth, "x", single=False)
        out.add(depth, "left = x")
        _float(out, depth, "x", single=False)
        out.add(depth, "right = x")
        skip(out, depth, ["null", "bytes"], {})
        skip(out, depth, ["null", "int"], {})
        out.add(depth, f"{to} = f'({{left}},{{right}})'")
    else:
        assert kind in _STRINGS or kind in ("bytes", "bits"), kind
        _length(out, depth)
        shown = {"bytes": "'\\\\x' + v[p:q].hex()", "bits": f"bits(v[p:q], {logical.precision})"}.get(kind, "s[p:q]")
        out.add(depth, f"{to} = {shown}", "p = q")


def _float(out: Source, depth: int, to: str, *, single: bool) -> None:
    out.add(depth, f"(x,) = {'float32' if single else 'float64'}(v, p)", f"p += {4 if single else 8}")
    out.add(depth, f"{to} = {'single(x)' if single else 'repr(x)'} if x - x == 0 else FLOATS[repr(x)]")


def _pairs(out: Source, depth: int, taker: Taker, to: str) -> None:
    """Code that reads a map of texts: for a column of JSON an object, for every other an hstore's text."""
    pairs, name = out.name(), out.name()
    out.add(depth, f"{pairs} = []")
    for at in _blocks(out, depth, out.name()):
        _length(out, at)
        out.add(at, f"{name} = s[p:q]", "p = q", "if v[p] == 2:")
        out.add(at + 1, "p += 1")
        _length(out, at + 1)
        out.add(at + 1, f"{pairs}.append(({name}, s[p:q]))", "p = q")
        out.add(at, "elif v[p]: raise ValueError('no such branch')", "else:")
        out.add(at + 1, f"{pairs}.append(({name}, None))", "p += 1")
    out.add(depth, f"{to} = {'json_object' if taker.type in ('json', 'jsonb') else 'hstore'}({pairs})")


def _decimal(out: Source, depth: int, to: str, scale: int) -> None:
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


def skip(out: Source, depth: int, avro: Json, named: dict[str, Json]) -> None:
    """Code that moves `p` over a datum of an Avro schema."""
    form = avro["type"] if isinstance(avro, dict) else avro
    if isinstance(avro, str) and avro in named:
        skip(out, depth, named[avro], named)
    elif isinstance(avro, list):
        _varint(out, depth)
        for index, branch in enumerate(avro):
            out.add(depth, f"{'el' * bool(index)}if u == {index * 2}:")
            out.add(depth + 1, "pass")
            skip(out, depth + 1, branch, named)
        out.add(depth, "else: raise ValueError('no such branch')")
    elif form == "record":
        named[".".join(filter(None, (avro.get("namespace"), avro["name"])))] = named[avro["name"]] = avro
        for field in avro["fields"]:
            skip(out, depth, field["type"], named)
    elif form == "array":
        for at in _blocks(out, depth, out.name()):
            skip(out, at, avro["items"], named)
    elif form == "map":
        for at in _blocks(out, depth, out.name()):
            skip(out, at, "string", named)
            skip(out, at, avro["values"], named)
    elif isinstance(form, dict):
        skip(out, depth, form, named)
    elif form in ("string", "bytes"):
        _length(out, depth)
        out.add(depth, "p = q")
    elif form in ("int", "long"):
        _varint(out, depth)
    elif form != "null":
        out.add(depth, f"p += {_FIXED_BYTES[form]}")


def fields(
    out: Source, depth: int, table: TableSchema, columns: frozenset[str], takers: Mapping[str, Taker]
) -> list[tuple[str, Column]]:
    """Code that reads a row; columns outside `columns` are decoded and left out. The names of the variables, in table order."""
    names = []
    for index, column in enumerate(table.columns):
        to, taker = f"c{index}", taker_of(takers, column)
        if column.name in columns:
            names.append((to, column))
        if column.name in table.key:
            read(out, depth, column.type, taker, to)
            continue
        out.add(depth, "if v[p] == 2:")
        out.add(depth + 1, "p += 1")
        read(out, depth + 1, column.type, taker, to)
        out.add(depth, "elif v[p]: raise ValueError('no such branch')")
        out.add(depth, "else:")
        out.add(depth + 1, f"{to} = '\\\\N'", "p += 1")
    return names


_SCOPE: dict[str, Any] = {
    "SMALL": tuple(str(u >> 1 ^ -(u & 1)) for u in range(1 << 14)),
    "BOOLEAN": {0: "f", 1: "t"},
    "BIT": {0: "0", 1: "1"},
    "FLOATS": {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"},
    "DAYS": text.DAYS,
    "array": arrays.literal,
    "bits": text.bits,
    "decimal": text.decimal,
    "error": struct.error,
    "escaped": text.escaped,
    "float32": struct.Struct("<f").unpack_from,
    "float64": struct.Struct("<d").unpack_from,
    "hstore": text.hstore,
    "json_object": text.json_object,
    "numeric": text.numeric,
    "quoted": arrays.quoted,
    "shapes": arrays.shapes,
    "single": text.single,
    "time_us": text.time_us,
    "timestamp_ms": text.timestamp_ms,
    "timestamp_us": text.timestamp_us,
    "timestamptz": text.timestamptz,
    "varint": varint,
}
