"""Tables as capture saw them: names, columns, logical types, key. One `TableSchema` is one version of one table, immutable.

The logical types are the hub between engines: a source maps its types to them, a target maps them to its own, and the
verbatim source type rides along for the way home. The forms on the wire are in `cdc.avro`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

# kind -> what it holds. Parameters in brackets are `precision`, `scale`.
LOGICAL_KINDS = {
    "boolean": "true or false",
    "int16": "-2^15 … 2^15-1",
    "int32": "-2^31 … 2^31-1",
    "int64": "-2^63 … 2^63-1",
    "uint32": "0 … 2^32-1",
    "float32": "IEEE 754 single, NaN and infinities included",
    "float64": "IEEE 754 double, NaN and infinities included",
    "decimal": "exact decimal (precision, scale), 0 <= scale <= precision; NaN has a form of its own",
    "numeric": "exact decimal of any precision and scale, the scale kept per value; NaN, ±Infinity",
    "text": "Unicode text",
    "bytes": "bytes",
    "date": "calendar date, proleptic Gregorian, BC included; ±infinity",
    "time_ms": "time of day, milliseconds",
    "time_us": "time of day, microseconds",
    "timetz": "time of day with its offset from UTC, microseconds",
    "timestamp_ms": "date and time without zone, milliseconds; ±infinity",
    "timestamp_us": "date and time without zone, microseconds; ±infinity",
    "timestamptz": "an instant, microseconds; ±infinity",
    "interval": "a span of months, days and microseconds, the three kept apart; ±infinity",
    "money": "a count of hundredths, -2^63 … 2^63-1",
    "bit": "one bit",
    "bits": "`precision` bits",
    "uuid": "UUID",
    "json": "JSON text, key order and number spelling kept",
    "xml": "XML text",
    "tsvector": "a text search vector's text",
    "ltree": "a label tree's path",
    "hstore": "text keys, each with a text or NULL",
    "point": "a point of a plane, two float64",
    "enum": "one of `labels`",
    "array": "values of `element`, NULLs among them, of any number of dimensions and any lower bounds",
    "other": "the source's own text form of any other type",
}

_PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_$]*\Z")
_PART = re.compile(r'"((?:[^"]|"")*)"|([^."]+)')


class TableId(NamedTuple):
    """A table's name at the source. `str()` quotes a part that is not a plain lower-case name, so that it parses back.

    What is no table of a source but has events like one has an empty schema (`MESSAGES`): nothing loads it, and no sink takes it."""

    schema: str
    name: str

    def __str__(self) -> str:
        return ".".join(_quoted(part) for part in self)

    @classmethod
    def parse(cls, text: str) -> TableId:
        """The inverse of `str()`. Raises ValueError when `text` is not schema.table."""
        parts, at = [], 0
        while found := _PART.match(text, at):
            parts.append(found[2] or found[1].replace('""', '"'))
            at = found.end() + 1
            if found.end() == len(text):
                break
            if text[found.end()] != ".":
                raise ValueError(f"not a table name: {text!r}")
        if len(parts) != 2 or not parts[1]:
            raise ValueError(f"not a table name of the form schema.table: {text!r}")
        return cls(parts[0], parts[1])


MESSAGES = TableId("", "message")
"""Messages that a source's applications write into its log (op `m`); the topic is `<pipeline>.message`, as Debezium's."""


def _quoted(part: str) -> str:
    return part if _PLAIN_NAME.match(part) else '"' + part.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True)
class LogicalType:
    """`kind` is in LOGICAL_KINDS; precision and scale belong to `decimal`, precision to `bits`, labels to `enum`, and `element`,
    which is itself no array, to `array`."""

    kind: str
    precision: int | None = None
    scale: int | None = None
    labels: tuple[str, ...] = ()
    element: LogicalType | None = None

    def __post_init__(self) -> None:
        assert self.kind in LOGICAL_KINDS, self.kind
        assert (self.kind == "array") == (self.element is not None and self.element.kind != "array"), self


@dataclass(frozen=True, slots=True)
class Column:
    """One column: `type` is its logical type, `source_type` the source's own words (`numeric(12,2)`), verbatim."""

    name: str
    type: LogicalType
    source_type: str
    nullable: bool = True


@dataclass(frozen=True, slots=True)
class TableSchema:
    """One version of one table. `key` names the columns of the record key, in key order; () when the table has none."""

    id: TableId
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ()
    by_name: dict[str, Column] = field(init=False, repr=False, compare=False, hash=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.by_name.update((column.name, column) for column in self.columns)
        assert len(self.by_name) == len(self.columns), f"two columns of one name in {self.id}"
        assert all(name in self.by_name for name in self.key), f"key of {self.id} is not among its columns"

    @property
    def key_columns(self) -> tuple[Column, ...]:
        return tuple(self.by_name[name] for name in self.key)
