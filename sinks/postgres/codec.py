"""Avro values → lines of text COPY, by functions generated once per schema version.

Text, not binary: the target column's own input function reads the value, whatever type an adopted table gave it. Lines are
built as Latin-1 strings (one character per byte), so UTF-8 passes through untouched and the server verifies it.

Invariant: a value is consumed to its last byte, or the function raises `CdcError`; no row is ever half read. `fastavro` is
the oracle in tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cdc.avro import HEADER_BYTES, frame, has_arrays
from cdc.errors import CdcError
from cdc.table import TableSchema
from sinks.postgres import text
from sinks.postgres.fieldcode import Source, Taker, fields, finish, read, skip, taker_of, varint

Json = Any
Lines = Callable[[Iterable[bytes]], bytes]
_OPS = (b"\x02c", b"\x02u", b"\x02r")
_DIFFER = {"sequence": "string", "lsn": "long"}  # fields of the source block that are another in each event
_NO_TAKERS: Mapping[str, Taker] = {}


# ------------------------------------------------------------------------------------------------------------- functions
def compile_rows(
    table: TableSchema,
    value_schema: Json,
    schema_id: int,
    *,
    columns: frozenset[str] | None = None,
    image: str = "after",
    takers: Mapping[str, Taker] = _NO_TAKERS,
) -> Lines:
    """A function from framed values of this schema to COPY lines of `columns` (default: all), in table order.

    `image` is the row to take, `after` or `before`; `takers` are the target's columns by name. The result has one line per value.
    Raises CDC-TGT-132 for bytes that are not a value of this schema, or that lack the row.
    """
    wanted = frozenset(table.by_name) if columns is None else columns
    forms = {field["name"]: field["type"] for field in value_schema["fields"]}
    out, tail = Source(), _Tail(forms, shapes=has_arrays(table))
    out.add(0, "def rows(values, *, HEADS=HEADS, SMALL=SMALL, DAYS=DAYS, BOOLEAN=BOOLEAN, number=int.from_bytes,")
    out.add(3, "float64=float64, float32=float32, len=len, repr=repr, str=str):")
    out.add(1, "out = []", "line = out.append", "same = UNKNOWN")
    out.add(1, "try:")
    out.add(2, "for v in values:")
    out.add(3, "s = v.decode('latin-1')", "if v[:11] in HEADS: p = 11", "else: p = head(v)")
    names = fields(out, 3, table, wanted, takers)
    if image == "before":
        out.add(3, "p = skip_after(v, p)")
    tail.add(out, 3, image)
    for name, column in names:
        finish(out, 3, column, taker_of(takers, column), name, f"bounds.get({column.name!r})")
    out.add(3, _line([name for name, _ in names]))
    out.add(1, "except (IndexError, ValueError, KeyError, error) as broken:")
    out.add(2, "raise damaged(table, len(out)) from broken")
    out.add(1, "return ''.join(out).encode('latin-1')")
    return out.compile(  # type: ignore[no-any-return]
        "rows",
        table=str(table.id),
        damaged=_damaged,
        HEADS=frozenset(frame(schema_id) + op + b"\0\0\0\x02" for op in _OPS if image == "after"),
        head=_head(forms, schema_id, image),
        skip_after=_skipper("after", ["null", forms["before"][1]]),
        tail=tail.read,
        UNKNOWN=tail.unknown,
        NONE={},
    )


def _skipper(name: str, avro: Json) -> Callable[[bytes, int], int]:
    out = Source()
    out.add(0, f"def {name}(v, p):")
    skip(out, 1, avro, {})
    out.add(1, "return p")
    return out.compile(name)  # type: ignore[no-any-return]


def _line(names: Sequence[str]) -> str:
    return "line(f'" + "\\t".join(f"{{{name}}}" for name in names) + "\\n')"


def _head(forms: Json, schema_id: int, image: str) -> Callable[[bytes], int]:
    """The place of the row: over op, unchanged, moved and, for `after`, over `before`."""
    first = [forms["op"], forms["unchanged"], forms["moved"]]
    over = _skipper(
        "head",
        {"type": "record", "name": "Head", "fields": [{"name": str(i), "type": form} for i, form in enumerate(first)]},
    )
    before, framed = _skipper("before", forms["before"]), frame(schema_id)

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
    """What follows the rows of a value: the source block, the transaction and the times, and of a table with arrays their shapes.

    There the events of one transaction differ in a number or two, so that what stands between these is compared with the event
    before, and read only where it is another."""

    def __init__(self, forms: Json, *, shapes: bool) -> None:
        parts: list[list[Json]] = [[]]
        self._forms: list[str] = []
        self._shapes = shapes
        for field in forms["source"]["fields"]:
            if field["name"] in _DIFFER:
                self._forms.append(_DIFFER[field["name"]])
                parts.append([])
            parts[-1].append(field)
        parts[-1] += [{"name": name, "type": forms[name]} for name in ("transaction", "ts_ms", "ts_us", "ts_ns")]
        self._skips = [_skipper("part", {"type": "record", "name": "Part", "fields": part}) for part in parts]
        self.unknown = (b"\xff",) * len(parts)  # what no value has

    def add(self, out: Source, depth: int, image: str) -> None:
        """Code that verifies the tail at `p`; `same` is what `read` gave for an event before, or `unknown`. Of a table with arrays it
        sets `bounds`, those of `image`."""
        out.add(depth, "known, t = False, p")
        inner = depth
        for index, form in enumerate(self._forms):
            out.add(inner, f"if v.startswith(same[{index}], t):")
            inner += 1
            out.add(inner, f"t += len(same[{index}])")
            out.add(inner, *(["while v[t] > 127: t += 1", "t += 1"] if form == "long" else ["t += 1 + (v[t] >> 1)"]))
        last = f"same[{len(self._forms)}]"
        if not self._shapes:
            out.add(inner, f"known = v[t:] == {last}")
            out.add(depth, "if not known: same = tail(v, p)[0]")
            return
        out.add(inner, f"known = v.startswith({last}, t)", f"t += len({last})")
        out.add(depth, "if not known: same, t = tail(v, p)")
        out.add(depth, f"bounds = NONE if v[t:] == b'\\0' else shapes(v, t).get('{image}', NONE)")

    def read(self, v: bytes, p: int) -> tuple[tuple[bytes, ...], int]:
        """Verify the tail at `p`, to the value's last byte or to the shapes; the bytes that the next events probably share, and
        its end."""
        same, begin, known = [], p, True
        for index, over in enumerate(self._skips):
            if index:  # `p` is at a field that differs: its branch, then its value
                long = self._forms[index - 1] == "long"
                known = known and v[p] == 2 and (long or v[p + 1] < 127)
                same.append(v[begin : p + 1])
                begin = p + 1
                if known:
                    begin = varint(v, begin)[1] if long else begin + 1 + (v[begin] >> 1)
            p = over(v, p)
        if p != len(v) and not self._shapes:
            raise ValueError("bytes are left over or missing")
        return ((*same, v[begin:p]) if known else self.unknown), p


def compile_keys(table: TableSchema, takers: Mapping[str, Taker] = _NO_TAKERS) -> Lines:
    """A function from framed keys to COPY lines of the key columns, in key order. Raises CDC-TGT-132 for other bytes."""
    out = Source()
    out.add(0, "def keys(values, *, number=int.from_bytes):")
    out.add(1, "out = []", "line = out.append", "try:")
    out.add(2, "for v in values:")
    out.add(3, "s = v.decode('latin-1')", "p = 5", "if v[0]: raise ValueError('not framed')")
    names = [f"k{index}" for index in range(len(table.key))]
    for name, column in zip(names, table.key_columns, strict=True):
        assert column.type.kind != "array", f"the key of {table.id} has no shapes for an array"
        read(out, 3, column.type, taker_of(takers, column), name)
    out.add(3, "if p != len(v): raise ValueError('bytes are left over or missing')")
    out.add(3, _line(names))
    out.add(1, "except (IndexError, ValueError, KeyError, error) as broken:")
    out.add(2, "raise damaged(table, len(out)) from broken")
    out.add(1, "return ''.join(out).encode('latin-1')")
    return out.compile("keys", table=str(table.id), damaged=_damaged)  # type: ignore[no-any-return]


def _damaged(table: str, index: int) -> CdcError:
    return CdcError("CDC-TGT-132", f"record {index} of this piece is not a value of its schema", where=table)


def fields_of(line: bytes) -> list[str | None]:
    """The fields of one COPY line, unescaped: for statements with literals (errors, the ordered path)."""
    return [None if field == "\\N" else text.unescaped(field) for field in line.decode("utf-8")[:-1].split("\t")]
