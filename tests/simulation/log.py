"""An in-memory `Log`: positions go through JSON, so that what is not serialisable is not remembered; records stay as they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cdc.errors import Superseded
from cdc.log import Checkpoint, Draft, Intent, LogState, Mark, Signal, Survey, Surveyor, TableState
from cdc.position import Position
from cdc.records import Batch, Records
from cdc.table import TableId
from tests.simulation import trace
from tests.simulation.rows import SCHEMAS

if TYPE_CHECKING:
    from tests.simulation.world import World

Json = Any
LOG_ID = "the log"


class Storage:
    """What is durable, and who may write."""

    def __init__(self) -> None:
        self.checkpoints: list[tuple[Checkpoint, Batch]] = []
        self.intent: Intent | None = None
        self.tables: dict[TableId, TableState] = {}
        self.signals: list[Signal] = []
        self.writer: object = None
        self.cut: Checkpoint | None = None
        self.hints: dict[str, Mark] = {}
        self.first = 0  # what is before it, retention has taken away

    @property
    def last(self) -> Checkpoint | None:
        return self.checkpoints[-1][0] if self.checkpoints else None


class Look:
    """A look at it, for a sink that has no bookmark."""

    log_id = LOG_ID

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def last(self) -> Checkpoint | None:
        return self.storage.last

    def survey(self) -> Survey:
        return Survey(self.storage.last, dict(self.storage.tables), {})

    def mark_before(self, number: int) -> Mark:
        number = max(number, self.storage.first)
        return self.storage.checkpoints[number - 1][0].mark if number else Mark(-1, LOG_ID)

    def written_ms(self, number: int) -> int | None:
        raise NotImplementedError

    def mark_before_events(self, count: int, wanted: Callable[[TableId], bool]) -> Mark:
        raise NotImplementedError

    def backlog_bytes(self, after: int) -> int:
        raise NotImplementedError


class FakeLog:
    """One process's handle of the log."""

    id = LOG_ID

    def __init__(self, world: World, storage: Storage) -> None:
        self.world, self.storage = world, storage

    def open_writer(self) -> LogState:
        self.world.tick("open log")
        stored = self.storage
        stored.writer = self
        return LogState(stored.last, stored.cut, stored.intent, dict(stored.tables))

    def _fenced(self) -> None:
        if self.storage.writer is not self:
            raise Superseded("CDC-LOG-201", "another capture writes")

    def intend(self, intent: Intent) -> None:
        self.world.tick("intend")
        self._fenced()
        self.storage.intent = intent
        self.world.tick("intended")

    def append(self, batch: Batch, draft: Draft) -> Checkpoint:
        self.world.tick("append")
        stored, position = self.storage, draft.position
        self._fenced()
        last, number = stored.last, len(stored.checkpoints)
        position = Position(
            position.epoch, position.sequence, *json.loads(json.dumps([position.stream, position.load]))
        )
        checkpoint = Checkpoint(
            LOG_ID,
            number,
            self.world.new_id(),
            draft.continues or (last.mark if last else Mark(-1, LOG_ID)),
            "",
            position,
            draft.cut,
            counts={table: _counts(records) for table, records in batch.items()},
            commit_ms=draft.commit_ms,
            begun=draft.begun,
            finished=draft.finished,
            facts=draft.facts,
        )
        self.world.check_append(last, checkpoint, batch)
        kept = {table: Records(list(records.keys), list(records.values)) for table, records in batch.items()}
        stored.checkpoints.append((checkpoint, kept))
        stored.intent, stored.cut = None, checkpoint if draft.cut else stored.cut
        for begun in draft.begun:
            loaded = stored.tables[begun.table].loaded if begun.table in stored.tables else None
            stored.tables[begun.table] = TableState(begun.generation, begun.keyless, None, number, loaded)
        for table in draft.finished:
            stored.tables[table] = stored.tables[table]._replace(loaded=stored.tables[table].begun)
        for table, facts in draft.facts.items():
            stored.tables[table] = stored.tables[table]._replace(facts=json.loads(json.dumps(facts)))
        if self.world.trace:
            trace.appended(self.world.say, checkpoint, kept)
        self.world.tick("appended")
        return checkpoint

    def read(
        self, after: Mark, tables: Callable[[TableId], bool], idle_s: float
    ) -> Generator[tuple[Checkpoint, Batch] | None, None, None]:
        at = after.number + 1
        checkpoints = self.storage.checkpoints
        if at < self.storage.first:
            self.world.fail(f"checkpoint {at} is needed, {self.storage.first} is the first")
        if at and (at > len(checkpoints) or checkpoints[at - 1][0].mark != after):
            self.world.fail(f"a bookmark {after} that is not in the log")
        while True:
            if at == len(checkpoints) or self.world.chance(self.world.odds_slow):
                yield None
                continue
            checkpoint, batch = checkpoints[at]
            at += 1
            yield checkpoint, {table: records for table, records in batch.items() if tables(table)}

    def last_checkpoint(self) -> Checkpoint | None:
        return self.storage.last

    def register(self, subject: str, schema: Json) -> int:
        raise NotImplementedError

    def schema(self, schema_id: int) -> Json:
        return SCHEMAS[schema_id]

    def signal(self, kind: str, details: Json) -> int:
        self.storage.signals.append(Signal(len(self.storage.signals) + 1, kind, details))
        return len(self.storage.signals)

    def signals(self, after: int) -> list[Signal]:
        self.world.tick("signals")
        return self.storage.signals[after:]

    @contextmanager
    def look(self) -> Iterator[Surveyor]:
        yield Look(self.storage)

    def report(self, reader: str, mark: Mark) -> None:
        self.storage.hints[reader] = mark

    def retain(self) -> None:
        stored = self.storage
        if self.world.retention and stored.cut is not None:
            needed = min((mark.number for mark in stored.hints.values()), default=-1)
            stored.first = max(stored.first, min(needed + 1, stored.cut.number))

    def status(self) -> Mapping[str, Json]:
        return {}

    def close(self) -> None:
        pass


def _counts(records: Records) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value in records.values:
        op = chr(value[6])
        counts[op] = counts.get(op, 0) + 1
    return counts
