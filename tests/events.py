"""Events and checkpoints for tests of sinks, built with fastavro: no capture and no source is needed.

feed = Feed(sink)                         # resumes the sink; one log, one checkpoint per `apply`
orders = feed.table("public.orders", "id int64 key", "note text")
feed.apply(orders.c(id=1, note="a"), orders.u(id=1, note="b"), begun=[orders])
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cdc.avro import avro_name, encode_datum, frame, has_arrays, schema_hash, schemas_of
from cdc.log import Begun, Checkpoint, Mark
from cdc.position import Position
from cdc.records import Batch, Records
from cdc.table import Column, LogicalType, TableId, TableSchema
from sinks.changes import Changes
from sinks.sink import Bookmark, Missed, Sink

SOURCE_TYPES = {
    "boolean": "boolean",
    "int16": "smallint",
    "int32": "integer",
    "int64": "bigint",
    "float32": "real",
    "float64": "double precision",
    "numeric": "numeric",
    "text": "text",
    "bytes": "bytea",
    "date": "date",
    "time_us": "time without time zone",
    "time_ms": "time(3) without time zone",
    "timestamp_us": "timestamp without time zone",
    "timestamp_ms": "timestamp(3) without time zone",
    "timestamptz": "timestamp with time zone",
    "uuid": "uuid",
    "json": "jsonb",
    "enum": "public.mood",
    "uint32": "oid",
    "timetz": "time with time zone",
    "interval": "interval",
    "money": "money",
    "bit": "bit(1)",
    "bits": "bit(11)",
    "xml": "xml",
    "tsvector": "tsvector",
    "ltree": "public.ltree",
    "hstore": "public.hstore",
    "point": "point",
    "other": "public.unknown",
}
GAP = "__debezium_unavailable_value"


@dataclass
class Event:
    """One event before it is encoded; `sequence` comes when it is fed. `shapes`: image → column → bounds of an array."""

    table: Table
    op: str
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    unchanged: tuple[str, ...] = ()
    moved: bytes | None = None
    shapes: Mapping[str, Mapping[str, str]] | None = None


@dataclass
class Table:
    """A table version and its encoders. Rows are keyword arguments of wire values; what is left out is null."""

    schema: TableSchema
    key_schema: Any = field(init=False)
    value_schema: Any = field(init=False)
    key_id: int = field(init=False)
    value_id: int = field(init=False)

    def __post_init__(self) -> None:
        self.key_schema, self.value_schema = schemas_of("shop", self.schema, "postgresql")
        self.key_id = schema_hash(self.key_schema) if self.key_schema else 0
        self.value_id = schema_hash(self.value_schema)

    @property
    def id(self) -> TableId:
        return self.schema.id

    def key(self, row: Mapping[str, Any]) -> bytes:
        """The framed key of a row."""
        datum = {avro_name(name): row[name] for name in self.schema.key}
        return frame(self.key_id) + encode_datum(self.key_schema, datum)

    def _row(self, row: Mapping[str, Any] | None) -> Any:
        assert row is None or row.keys() <= self.schema.by_name.keys(), row
        return row and {avro_name(column.name): row.get(column.name) for column in self.schema.columns}

    def value(self, event: Event, sequence: int) -> bytes:
        source = {
            "version": "0", "connector": "postgresql", "name": "shop", "ts_ms": 1, "snapshot": "false", "db": "app",
            "sequence": str(sequence), "ts_us": 1000, "ts_ns": 1000000, "schema": self.id.schema, "table": self.id.name,
            "txId": sequence // 3, "lsn": sequence * 200, "xmin": None, "epoch": 1,
        }  # fmt: skip
        datum = {
            "op": event.op, "unchanged": list(event.unchanged) or None, "moved": event.moved, "before": self._row(event.before),
            "after": self._row(event.after), "source": source, "transaction": None, "ts_ms": 5, "ts_us": 6, "ts_ns": 7,
        }  # fmt: skip
        if has_arrays(self.schema):
            datum["shapes"] = json.dumps(event.shapes, ensure_ascii=False) if event.shapes else None
        return frame(self.value_id) + encode_datum(self.value_schema, datum)

    def r(self, **row: Any) -> list[Event]:
        return [Event(self, "r", after=row)]

    def c(self, **row: Any) -> list[Event]:
        return [Event(self, "c", after=row)]

    def u(self, _unchanged: Iterable[str] = (), _before: Mapping[str, Any] | None = None, **row: Any) -> list[Event]:
        gaps = {name: GAP for name in _unchanged if self.schema.by_name[name].type.kind == "text"}
        return [Event(self, "u", before=_before, after=row | gaps, unchanged=tuple(_unchanged))]

    def d(self, **row: Any) -> list[Event]:
        return [Event(self, "d", before=row)]

    def move(self, old: Mapping[str, Any], _unchanged: Iterable[str] = (), **row: Any) -> list[Event]:
        """A key change: `d` of `old` and `c` of `row`, linked."""
        (whole,) = self.u(_unchanged, **row)
        return [
            Event(self, "d", before=old, moved=self.key(row)[5:]),
            replace(whole, op="c", moved=self.key(old)[5:]),
        ]

    def truncate(self) -> list[Event]:
        return [Event(self, "t")]


def make_table(name: str | TableId, *columns: str | Column, key: Iterable[str] | None = None) -> Table:
    """`"id int64 key"`, `"note text"`, `"price decimal(12,2) not null"`, `"tags text[]"`; a `Column` as it is."""
    made, keys = [], []
    for column in columns:
        if isinstance(column, Column):
            made.append(column)
            continue
        label, whole, *rest = column.split()
        form = whole.removesuffix("[]")
        kind, _, modifiers = form.partition("(")
        logical = LogicalType(kind)
        source_type = SOURCE_TYPES.get(kind, "")
        if kind == "decimal":
            precision, scale = (int(part) for part in modifiers[:-1].split(","))
            logical, source_type = LogicalType(kind, precision, scale), f"numeric({precision},{scale})"
        if kind == "bits":
            logical, source_type = LogicalType(kind, int(modifiers[:-1])), f"bit({modifiers[:-1]})"
        if whole != form:
            logical, source_type = LogicalType("array", element=logical), f"{source_type}[]"
        keys += [label] if "key" in rest else []
        made.append(Column(label, logical, source_type, "key" not in rest and "not" not in rest))
    id = TableId.parse(name) if isinstance(name, str) else name
    return Table(TableSchema(id, tuple(made), tuple(keys if key is None else key)))


class Feed:
    """Drives a sink as `sinks.apply` does: each `apply` is one checkpoint, a cut."""

    def __init__(self, sink: Sink | None = None, log_id: str | None = None) -> None:
        self.log_id = log_id or str(uuid.uuid4())
        self.schemas: dict[int, Any] = {}
        self.number, self.sequence = -1, 0
        self.bookmark: Bookmark | None = None
        if sink is not None:
            self.resume(sink)

    def resume(self, sink: Sink) -> Bookmark:
        self.sink = sink
        self.bookmark = sink.resume(self.log_id)
        return self.bookmark

    def table(self, name: str | TableId, *columns: str | Column, key: Iterable[str] | None = None) -> Table:
        table = make_table(name, *columns, key=key)
        self.schemas[table.value_id] = table.value_schema
        return table

    def checkpoint(
        self, events: Iterable[Event], begun: Iterable[Begun] = (), finished: Iterable[TableId] = (), cut: bool = True
    ) -> tuple[Checkpoint, Batch]:
        batch: Batch = {}
        counts: dict[TableId, dict[str, int]] = {}
        for event in events:
            self.sequence += 1
            records, table = batch.setdefault(event.table.id, Records()), event.table
            row = event.after if event.op != "d" else event.before
            records.keys.append(table.key(row) if table.schema.key and row is not None else None)
            records.values.append(table.value(event, self.sequence))
            of_table = counts.setdefault(table.id, {})
            of_table[event.op] = of_table.get(event.op, 0) + 1
        previous = Mark(self.number, f"id-{self.number}") if self.number >= 0 else Mark(-1, self.log_id)
        self.number += 1
        made = Checkpoint(
            self.log_id, self.number, f"id-{self.number}", previous, "writer", Position(1, self.sequence, {}, {}), cut,
            counts=counts, begun=tuple(begun), finished=tuple(finished),
        )  # fmt: skip
        return made, batch

    def apply(
        self,
        *events: list[Event],
        begun: Iterable[Table] = (),
        finished: Iterable[Table] = (),
        generation: int = 1,
    ) -> list[Missed]:
        """One checkpoint of these events, in one target transaction."""
        starts = [Begun(table.id, generation, not table.schema.key, table.value_id) for table in begun]
        flat = [event for group in events for event in group]
        return self.commit(*self.checkpoint(flat, starts, [table.id for table in finished]))

    def commit(self, checkpoint: Checkpoint, batch: Batch) -> list[Missed]:
        changes = Changes(self.schemas.__getitem__)
        changes.add(checkpoint, batch, self.sink.wants)
        assert self.bookmark is not None
        self.sink.begin(self.bookmark, checkpoint)
        missed = [found for piece in changes.pieces for found in self.sink.merge(piece)]
        self.bookmark = self.sink.commit(checkpoint)
        return missed
