"""Python source that reads one row and leaves its columns as Avro: the inner part of every function that `codec` compiles.

Three wire forms share it, so that one row gives the same bytes however it came (rule R7): `binary` and `text` tuples of the
stream (https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html, TupleData) and binary `copy` tuples
(https://www.postgresql.org/docs/current/sql-copy.html, Binary Format).

Generated code knows `m` (the bytes), `end` (their length) and `p` (the place of the next field). Column i becomes the parts
that `parts_of` names, joined later; the first part of an UNCHANGED column is None. Anything unexpected raises one of MALFORMED.
A run of fixed-width columns and the head of the field after it are one struct, verified whole; when one of them is NULL, they
are read one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from struct import Struct
from struct import error as struct_error
from typing import Any, NamedTuple

from cdc.avro import CONTINUED, INT64_MAX, INT64_MIN, VARINT, unsigned
from cdc.postgres import forms, values
from cdc.postgres.calendar import DAY_US, EPOCH_2000_US
from cdc.postgres.values import NULL, SOME
from cdc.table import Column, TableSchema

MALFORMED = (struct_error, ValueError, IndexError, KeyError, OverflowError)

BINARY, TEXT, COPY = "binary", "text", "copy"
_FIXED = values.FIXED
_INTEGERS = ("int16", "int32", "int64")
INLINE_COLUMNS = 100

# By the name of each `other` column of a binary stream: its text from its binary form; None where the server sends text even there.
Printers = Mapping[str, forms.Form | None]


def _prefixed(compute: Callable[[int], bytes], prefix: bytes) -> values.Memo:
    return values.Memo(lambda number: prefix + compute(number))


def _constants() -> dict[str, Any]:
    """The globals of generated code. K_ names are for key columns; N_ names, for all others, include the union's branch."""
    found: dict[str, Any] = {
        "NULL": NULL,
        "C": CONTINUED,
        "V": VARINT,
        "unsigned": unsigned,
        "far_us": values.far_us,
        "exact_ms": values.exact_ms,
        "binary_ms": values.binary_ms,
        "infinite": values.infinite,
        "binary_numeric": values.binary_numeric,
        "SECONDS": values.ISO_SECONDS,
        "THOUSANDS": values.THOUSANDS,
        "THOUSANDS_Z": values.THOUSANDS_Z,
        "U4": Struct(">I").unpack_from,
        "K_PACK32": Struct("<f").pack,
        "K_PACK64": Struct("<d").pack,
        "N_PACK32": Struct("<Bf").pack,
        "N_PACK64": Struct("<Bd").pack,
        **{f"binary_{kind}": form for kind, form in values.BINARY_FORMS.items()},
        **{f"text_{kind}": form for kind, form in values.TEXT_FORMS.items()},
    }
    for side, prefix in (("K", b""), ("N", SOME)):
        found |= {
            f"{side}_": prefix,
            f"{side}_V": tuple(prefix + varint for varint in VARINT),
            f"{side}_C": tuple(prefix + varint for varint in CONTINUED),
            f"{side}_BOOL": (prefix + b"\x00", prefix + b"\x01"),
            f"{side}_TEXT_BOOL": {b"f": prefix + b"\x00", b"t": prefix + b"\x01"},
            f"{side}_DATE": _prefixed(values.binary_date, prefix),
            f"{side}_DAY": _prefixed(values.iso_day, prefix),
            f"{side}_NAN32": prefix + values.NAN32,
            f"{side}_NAN64": prefix + values.NAN64,
        }
    return found


CONSTANTS = _constants()


class Field(NamedTuple):
    """Column `number` (from 0) of a row. `side` is K for a key column, which is never NULL, else N. `kind` is the logical one, or
    `called` where a function makes the whole column, or `unsent`: text, in a binary stream too."""

    number: int
    kind: str
    side: str


def _after(prefix: bytes, form: forms.Form) -> forms.Form:
    return (lambda data: prefix + form(data)) if prefix else form


def fields_of(schema: TableSchema, wire: str, printers: Printers) -> list[Field]:
    def kind(column: Column) -> str:
        if wire == BINARY and column.type.kind == "other":
            return "unsent" if printers[column.name] is None else "called"
        return "called" if _called(column.type.kind, wire) else column.type.kind

    return [Field(i, kind(c), "K" if c.name in schema.key else "N") for i, c in enumerate(schema.columns)]


def _called(kind: str, wire: str) -> bool:
    return kind in forms.CALLED or (kind == "tsvector" and wire == BINARY)  # in COPY it is text (codec.select_list)


def constants_of(schema: TableSchema, fields: Sequence[Field], wire: str, printers: Printers) -> dict[str, Any]:
    """The globals that belong to one table: its decimals, the forms that are called, and the structs of its runs."""
    found: dict[str, Any] = {}
    for field, column in zip(fields, schema.columns, strict=True):
        if field.kind == "decimal":
            assert column.type.scale is not None
            found[f"text_decimal{field.number}"] = values.text_decimal(column.type.scale)
            prefix = CONSTANTS[f"{field.side}_"]
            found[f"binary_decimal{field.number}"] = values.binary_decimal(column.type.scale, prefix)
        elif field.kind == "called":
            if printer := printers.get(column.name):
                form = forms.printed_form(printer)
            else:
                form = (forms.text_form if wire == TEXT else forms.binary_form)(column.type)
            is_array = column.type.kind == "array"
            found[f"form{field.number}"] = form if is_array else _after(CONSTANTS[f"{field.side}_"], form)
    for run, follower in _runs(fields, wire):
        if run:
            found[f"run{run[0].number}"] = _struct(run, follower, wire).unpack_from
            found |= {f"one{field.number}": _struct([field], None, wire).unpack_from for field in run}
    return found


# --------------------------------------------------------------------------------------------------------------- structure
def _runs(fields: Sequence[Field], wire: str) -> Iterator[tuple[list[Field], Field | None]]:
    """Runs of fixed-width fields, each with the field of varying width that follows it. Text has no fixed widths."""
    run: list[Field] = []
    for field in fields:
        if field.kind in _FIXED and wire != TEXT:
            run.append(field)
            continue
        yield run, field
        run = []
    if run:
        yield run, None


def _struct(run: Sequence[Field], follower: Field | None, wire: str) -> Struct:
    head = "I" if wire == COPY else "BI"
    return Struct(">" + "".join(head + _FIXED[field.kind][0] for field in run) + (head if follower else ""))


def parts_of(field: Field) -> list[str]:
    """The names whose bytes, joined, are the column."""
    i = field.number
    if field.kind in forms.TEXTUAL or field.kind in ("bytes", "unsent"):
        return [f"c{i}", f"t{i}"]
    if field.kind == "timestamptz":
        return [f"c{i}", f"s{i}", f"m{i}", f"u{i}"]
    return [f"c{i}"]


class Style(NamedTuple):
    """How a row is read. `unchanged` is the statement to run at an UNCHANGED field; None: there can be none. `inline` code is
    quick, and long: a call per value is for slow paths and for tables so wide that compiling would be the slow part."""

    wire: str
    unchanged: str | None
    inline: bool = True


def row_code(fields: Sequence[Field], style: Style) -> list[str]:
    """The lines that read a row's fields."""
    lines: list[str] = []
    if len(fields) > INLINE_COLUMNS:
        style = style._replace(inline=False)
    for run, follower in _runs(fields, style.wire):
        heads = _heads(follower, style.wire) if follower else []
        if run:
            lines += _run_code(run, follower, heads, style)
        else:
            lines += heads
        if follower:
            lines += _varying_code(follower, style)
    return lines


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def _run_code(run: Sequence[Field], follower: Field | None, heads: Sequence[str], style: Style) -> list[str]:
    struct = _struct(run, follower, style.wire)
    copy = style.wire == COPY
    names, checks = [], []
    for field in run:
        i, width = field.number, _FIXED[field.kind][1]
        names += [f"n{i}", f"v{i}"] if copy else [f"k{i}", f"n{i}", f"v{i}"]
        checks += [f"n{i} == {width}"] if copy else [f"k{i} == 98", f"n{i} == {width}"]
    if follower:
        names += ["n"] if copy else ["k", "n"]
    head_bytes = (4 if copy else 5) if follower else 0
    first = run[0].number
    lines = [
        f"if end - p >= {struct.size}:",
        f"    {', '.join(names)}, = run{first}(m, p)",
        "else:",
        f"    {names[0]} = -1",
        f"if {' and '.join(checks)}:",
        f"    p += {struct.size - head_bytes}",
        *_indented([line for field in run for line in _fixed_code(field, style)]),
        "else:",
    ]
    return lines + _indented([line for field in run for line in _single_code(field, style)] + list(heads))


def _single_code(field: Field, style: Style) -> list[str]:
    """A fixed-width field by itself, as it may be NULL."""
    i, (_, width) = field.number, _FIXED[field.kind]
    copy = style.wire == COPY
    if copy:
        present, names = "U4(m, p)[0] != 4294967295", f"n{i}, v{i}"
    else:
        present, names = "m[p] == 98", f"_, n{i}, v{i}"
    return [
        f"if {present}:",
        f"    {names} = one{i}(m, p)",
        f"    if n{i} != {width}: raise ValueError",
        f"    p += {width + (4 if copy else 5)}",
        *_indented(_fixed_code(field, style)),
        *_absent_code(field, style),
    ]


def _mark(field: Field, wire: str) -> int:
    """What precedes a value in the stream: t for text, b for a binary form."""
    return 116 if wire == TEXT or field.kind == "unsent" else 98


def _heads(field: Field, wire: str) -> list[str]:
    """Read the head of a field of varying width."""
    if wire == COPY:
        return ["(n,) = U4(m, p)"]
    return ["k = m[p]", f"if k == {_mark(field, wire)}: (n,) = U4(m, p + 1)"]


def _absent_code(field: Field, style: Style) -> list[str]:
    """The branches for NULL and UNCHANGED, after an `if` for a value."""
    parts = parts_of(field)
    null = [f"{parts[0]} = NULL", *(f"{part} = b''" for part in parts[1:])]
    if style.wire == COPY:
        return ["else:", *_indented([*null, "p += 4"] if field.side == "N" else ["raise ValueError"])]
    lines = ["elif m[p] == 110:", *_indented([*null, "p += 1"])] if field.side == "N" else []
    if style.unchanged is not None:
        lines += ["elif m[p] == 117:", *_indented([f"{parts[0]} = None", style.unchanged, "p += 1"])]
    return [*lines, "else: raise ValueError"]


def _varying_code(field: Field, style: Style) -> list[str]:
    """A field of varying width: `n`, and in the stream `k`, are its head."""
    present = "n != 4294967295" if style.wire == COPY else f"k == {_mark(field, style.wire)}"
    as_text = style.wire == TEXT and field.kind not in forms.TEXTUAL and field.kind != "called"
    value = _text_code(field, style) if as_text else _bytes_code(field)
    body = [f"p += {4 if style.wire == COPY else 5}", "q = p + n", *value, "p = q"]
    return [f"if {present}:", *_indented(body), *_absent_code(field, style)]


# ------------------------------------------------------------------------------------------------------------------ values
def _zigzag_code(field: Field, width: int) -> list[str]:
    """z → c: one look-up per 14 bits (cdc.avro.unsigned, unrolled to the width that the type can have)."""
    side, lines, low = field.side, [], ""
    terms = [f"{side}_V[z] if z < 16384"]
    for bits in (14, 28, 42):
        if bits >= width:
            break
        low += f"{side}_C[z & 16383] + " if bits == 14 else f"C[z >> {bits - 14} & 16383] + "
        terms.append(f"{low}V[z >> {bits}] if z < {1 << bits + 14}")
    lines.append(f"c{field.number} = {' else '.join(terms)} else {side}_ + unsigned(z)")
    return lines


def _integer_code(field: Field, v: str, width: int) -> list[str]:
    return [f"z = {v} << 1 if {v} >= 0 else ~({v} << 1)", *_zigzag_code(field, width)]


def _called_code(field: Field, form: str) -> list[str]:
    rest = "".join(f"; {part} = b''" for part in parts_of(field)[1:])
    return [f"c{field.number} = {field.side}_ + {form}{rest}"]


def _fixed_code(field: Field, style: Style) -> list[str]:
    """v (as the struct read it) → parts."""
    i, side = field.number, field.side
    v, c = f"v{i}", f"c{i}"
    if not style.inline:
        return _called_code(field, f"binary_{field.kind}({v})")
    match field.kind:
        case "boolean":
            return [f"{c} = {side}_BOOL[{v}]"]
        case "int16" | "int32" | "int64":
            return _integer_code(field, v, {"int16": 16, "int32": 32, "int64": 64}[field.kind])
        case "float32" | "float64":
            bits, branch = field.kind[5:], "2, " if side == "N" else ""
            return [f"{c} = {side}_PACK{bits}({branch}{v}) if {v} == {v} else {side}_NAN{bits}"]
        case "date":
            return [f"{c} = {side}_DATE[{v}]"]
        case "time_ms":
            return [f"{v} = exact_ms({v})", *_integer_code(field, v, 32)]
        case "time_us":
            return _integer_code(field, v, 64)
        case "timestamp_ms":
            return [f"{v} = binary_ms({v})", *_integer_code(field, v, 64)]
        case "timestamp_us":
            low, high = INT64_MIN, INT64_MAX - EPOCH_2000_US
            return [
                f"{v} = {v} + {EPOCH_2000_US} if {low} < {v} < {high} else far_us({v})",
                *_integer_code(field, v, 64),
            ]
        case "timestamptz":
            return [
                f"if {values.TIMESTAMP_MIN} < {v} < {values.TIMESTAMP_MAX}:",
                f"    d, {v} = divmod({v}, {DAY_US})",
                f"    s, {v} = divmod({v}, 1000000)",
                f"    {c} = {side}_DAY[d]; s{i} = SECONDS[s]",
                f"    m{i} = THOUSANDS[{v} // 1000]; u{i} = THOUSANDS_Z[{v} % 1000]",
                "else:",
                f"    {c} = {side}_ + infinite({v}); s{i} = m{i} = u{i} = b''",
            ]
        case "uuid":
            return _called_code(field, f"binary_uuid({v})")
    raise AssertionError(field.kind)


def _bytes_code(field: Field) -> list[str]:
    """m[p:q], n bytes of a form that is the same in all wires, or of a binary form → parts."""
    i, side = field.number, field.side
    if field.kind == "called":
        return [f"c{i} = form{i}(m[p:q])"]
    if field.kind == "numeric":
        return [f"c{i} = {side}_ + binary_numeric(m[p:q])"]
    if field.kind == "decimal":
        return [f"c{i} = binary_decimal{i}(m, p, n)"]
    # See forms.without_version. A JSON text is never empty.
    version = {"json": ["if m[p] == 1: p += 1; n -= 1"], "ltree": ["if n and m[p] == 1: p += 1; n -= 1"]}
    return [
        *version.get(field.kind, ()),
        f"c{i} = {side}_V[n << 1] if n < 8192 else {side}_ + unsigned(n << 1)",
        f"t{i} = m[p:q]",
    ]


def _text_code(field: Field, style: Style) -> list[str]:
    """m[p:q], the text form of a type whose Avro form is another → parts."""
    i, side, kind = field.number, field.side, field.kind
    if kind == "boolean":
        return [f"c{i} = {side}_TEXT_BOOL[m[p:q]]"]
    if kind in _INTEGERS and style.inline:
        return ["v = int(m[p:q])", *_integer_code(field, "v", {"int16": 16, "int32": 32, "int64": 64}[kind])]
    return _called_code(field, f"text_decimal{i}(m[p:q])" if kind == "decimal" else f"text_{kind}(m[p:q])")
