"""What the tests of the Postgres source share: a source with a log that is a list, and events as plain tuples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest

from cdc.avro import ChangeEvent, decode_event, schema_id
from cdc.postgres.source import PostgresSource
from cdc.records import Batch, Records
from cdc.source import Chunk, ChunkSpec, Filter, Run
from cdc.table import TableId


class Registry:
    """`Log.register` without a log."""

    def __init__(self) -> None:
        self.schemas: list[Any] = []

    def __call__(self, _subject: str, schema: Any) -> int:
        if schema not in self.schemas:
            self.schemas.append(schema)
        return self.schemas.index(schema) + 1

    def decode(self, value: bytes, key: bytes | None) -> ChangeEvent:
        key_schema = None if key is None else self.schemas[schema_id(key) - 1]
        return decode_event(self.schemas[schema_id(value) - 1], value, key_schema, key)

    def events(self, records: Records) -> list[ChangeEvent]:
        return [self.decode(value, key) for key, value in zip(records.keys, records.values, strict=True)]


class Capture:
    """Drives a source by hand. `events` is everything that was read, in order; `at` the position after it."""

    def __init__(self, url: str, registry: Registry | None = None, pipeline: str = "p", **options: Any) -> None:
        self.url, self.pipeline, self.options = url, pipeline, options
        self.registry = registry or Registry()
        self.source = self.make()
        self.events: list[ChangeEvent] = []
        self.facts: Mapping[TableId, Any] = {}
        self.filter = Filter()
        self.sequence = 0
        self.at: Any = None
        self.cut: Any = None

    def make(self) -> PostgresSource:
        return PostgresSource(self.url, pipeline=self.pipeline, register=self.registry, **self.options)

    def start(self) -> Capture:
        self.at = self.cut = self.source.start(self.source.intent(0), False)
        return self.open(include=True)

    def open(self, include: bool = False) -> Capture:
        self.source.open(self.at, self.cut, self.sequence, 0)
        if include:
            self.facts = self.source.include(self.source.tables())
            self.filter = Filter(self.facts, {}, frozenset(self.facts))
        return self

    def reopen(self) -> Capture:
        """As after a kill: nothing but the last position is left."""
        self.source.close()
        self.source = self.make()
        return self.open()

    def poll(self, timeout_s: float = 0.2) -> Run:
        run = self.source.poll(timeout_s, self.filter)
        self.took(run.records)
        self.at, self.sequence = run.stream, run.sequence
        if not run.in_transaction:
            self.cut = run.stream
        return run

    def took(self, batch: Batch) -> None:
        events = [event for records in batch.values() for event in self.registry.events(records)]
        self.events += sorted(events, key=lambda event: int(event.source["sequence"]))

    def until_mark(self, mark: str | None = None) -> list[Run]:
        """Poll until everything committed before now has been read."""
        mark, runs = mark or self.source.mark(), []
        for _ in range(10_000):
            runs.append(self.poll(5.0))
            if mark in runs[-1].marks:
                return runs
        pytest.fail("the mark does not come back")

    def chunk(self, table: str, **spec: Any) -> Any:
        id_ = TableId.parse(table)
        return self.source.read_chunk(ChunkSpec(id_, self.facts[id_], **spec), self.at)

    def rows(self, chunk: Chunk) -> list[ChangeEvent]:
        assert isinstance(chunk, Chunk), chunk
        found: list[ChangeEvent] = []
        for piece in chunk.pieces:
            found += self.registry.events(piece.records)
            self.sequence = max(self.sequence, piece.sequence)
        return found


def brief(events: Iterable[ChangeEvent]) -> list[tuple[Any, ...]]:
    """(op, table, row) with the row that matters: after, or before for a delete."""
    return [
        (
            event.op,
            event.table.id.name,
            tuple(((event.after if event.after is not None else event.before) or {}).values()),
        )
        for event in events
    ]
