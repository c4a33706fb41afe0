"""In-memory stand-ins for the simulation tests. `MemoryLog` passes the contract suite of the log (tests/contract/test_log.py)."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cdc.avro import canonical, schema_hash
from cdc.errors import CdcError, Superseded
from cdc.log import Checkpoint, Draft, Intent, Json, LogState, Mark, Signal, Survey, Surveyor
from cdc.log.checkpoint import Chain, random_id
from cdc.records import Batch, Records
from cdc.table import TableId


def _copy(batch: Batch) -> Batch:
    return {table: Records(list(r.keys), list(r.values)) for table, r in batch.items() if r.values}


@dataclass
class Storage:
    """What outlives the processes: the log itself."""

    chain: Chain = field(default_factory=lambda: Chain(str(uuid.uuid4())))
    items: dict[int, tuple[Checkpoint, Batch]] = field(default_factory=dict)
    fence: str = ""
    first: int = 0
    intents: list[tuple[int, Intent]] = field(default_factory=list)
    schemas: dict[int, tuple[str, Json]] = field(default_factory=dict)
    subjects: dict[str, list[int]] = field(default_factory=dict)
    signals: list[Signal] = field(default_factory=list)
    hints: dict[str, Mark] = field(default_factory=dict)


class MemorySurveyor:
    """A look at a `Storage`, as far as a sink that joins needs one."""

    def __init__(self, storage: Storage) -> None:
        self._storage, self.log_id = storage, storage.chain.log_id

    def last(self) -> Checkpoint | None:
        return self._storage.chain.last

    def survey(self) -> Survey:
        return Survey(self._storage.chain.last, dict(self._storage.chain.tables), {})

    def mark_before(self, number: int) -> Mark:
        before = self._storage.items.get(max(number, self._storage.first) - 1)
        return before[0].mark if before else Mark(-1, self.log_id)

    def written_ms(self, number: int) -> int | None:
        raise NotImplementedError

    def mark_before_events(self, count: int, wanted: Callable[[TableId], bool]) -> Mark:
        raise NotImplementedError

    def backlog_bytes(self, after: int) -> int:
        raise NotImplementedError


class MemoryLog:
    """One process's view of a `Storage`. `open_writer` fences the others at once; `read` never waits.

    `hook` is called as `append.before` and `append.after`: what it raises (a kill) leaves the log without or with the batch.
    """

    def __init__(
        self, storage: Storage | None = None, hook: Callable[[str], object] = lambda _: None, retention: str = "forever"
    ) -> None:
        self.storage = Storage() if storage is None else storage
        self.id = self.storage.chain.log_id
        self._hook, self._retention = hook, retention
        self._writer, self._fresh = "", True

    @property
    def pipeline(self) -> None:
        return None

    def open_writer(self) -> LogState:
        storage, chain = self.storage, self.storage.chain
        self._writer = storage.fence = random_id()
        self._fresh = True
        intent = next((i for after, i in reversed(storage.intents) if after == chain.mark.number), None)
        return LogState(chain.last, chain.cut, intent, chain.tables)

    def _check_fence(self) -> None:
        assert self._writer, "open_writer comes first"
        if self._writer != self.storage.fence:
            raise Superseded("CDC-LOG-202", f"writer {self.storage.fence} has taken over from {self._writer}")

    def intend(self, intent: Intent) -> None:
        self._check_fence()
        self.storage.intents.append((self.storage.chain.mark.number, intent))

    def append(self, batch: Batch, draft: Draft) -> Checkpoint:
        self._hook("append.before")
        self._check_fence()
        checkpoint = self.storage.chain.make(self._writer, batch, draft, self._fresh)
        self.storage.chain.follow(checkpoint)
        self.storage.items[checkpoint.number] = checkpoint, _copy(batch)
        self._fresh = False
        self._hook("append.after")
        return checkpoint

    def read(
        self, after: Mark, tables: Callable[[TableId], bool], idle_s: float
    ) -> Generator[tuple[Checkpoint, Batch] | None, None, None]:
        self._check_mark(after)
        number = after.number + 1
        while True:
            if number < self.storage.first:
                raise CdcError("CDC-LOG-108", f"checkpoint {number} is needed, {self.storage.first} is the first")
            if (item := self.storage.items.get(number)) is None:
                yield None
            else:
                number += 1
                yield item[0], _copy({table: records for table, records in item[1].items() if tables(table)})

    def _check_mark(self, after: Mark) -> None:
        storage = self.storage
        if after.number + 1 < storage.first:
            raise CdcError("CDC-LOG-108", f"checkpoint {after.number + 1} is needed, {storage.first} is the first")
        if after.number > storage.chain.mark.number:
            raise CdcError("CDC-LOG-107", f"it is at checkpoint {after.number}, the log ends before it")
        if after.number == -1 and after.id == self.id:
            return
        item = storage.items.get(after.number)
        if item is None or item[0].id != after.id:
            raise CdcError("CDC-LOG-106", f"checkpoint {after.number} has another id")

    def last_checkpoint(self) -> Checkpoint | None:
        return self.storage.chain.last

    def register(self, subject: str, schema: Json) -> int:
        body, schema_id = canonical(schema), schema_hash(schema)
        while (known := self.storage.schemas.get(schema_id)) is not None and known[0] != body:
            schema_id = schema_id + 1 & 0x7FFFFFFF
        self.storage.schemas[schema_id] = body, schema
        if schema_id not in (versions := self.storage.subjects.setdefault(subject, [])):
            versions.append(schema_id)
        return schema_id

    def subjects(self) -> Mapping[str, Sequence[int]]:
        return self.storage.subjects

    def schema(self, schema_id: int) -> Json:
        if schema_id not in self.storage.schemas:
            raise CdcError("CDC-LOG-402", f"schema {schema_id}")
        return self.storage.schemas[schema_id][1]

    @contextmanager
    def look(self) -> Iterator[Surveyor]:
        yield MemorySurveyor(self.storage)

    def signal(self, kind: str, details: Json) -> int:
        self.storage.signals.append(Signal(len(self.storage.signals) + 1, kind, details))
        return len(self.storage.signals)

    def signals(self, after: int) -> list[Signal]:
        return self.storage.signals[after:]

    def report(self, reader: str, mark: Mark) -> None:
        self.storage.hints[reader] = mark

    def expect(self, readers: Iterable[str]) -> None:
        for reader in readers:
            self.storage.hints.setdefault(reader, Mark(-1, self.id))

    def forget(self, reader: str) -> None:
        self.storage.hints.pop(reader, None)

    def retain(self) -> None:
        storage = self.storage
        if self._retention == "forever" or not storage.hints:
            return
        # The checkpoint before the first kept one stays, for its id.
        keep = min(*(mark.number for mark in storage.hints.values()), storage.chain.cut_mark.number)
        for number in range(storage.first - 1, keep):
            storage.items.pop(number, None)
        storage.first = max(storage.first, keep + 1)

    def status(self) -> Mapping[str, Json]:
        last = self.storage.chain.last
        first = self.storage.first if last else None
        return {"size_bytes": 0, "free_bytes": 0, "first": first, "last": last and last.number, "segments": 1}

    def close(self) -> None:
        pass
