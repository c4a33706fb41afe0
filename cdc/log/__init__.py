"""The log: what capture writes and sinks read. Two implementations behind one protocol: `cdc.log.embedded` and `cdc.log.kafka`.

One append is one log transaction: a batch of records and its checkpoint, all or nothing, durable when it returns. Protocol A.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from cdc.position import Position
from cdc.records import Batch
from cdc.table import TableId

Json = Any


class Mark(NamedTuple):
    """Names a checkpoint: its number and its random id. Number -1 with the log's UUID as id stands before the first one."""

    number: int
    id: str


@dataclass(frozen=True, slots=True)
class Span:
    """Where a checkpoint's records of one partition are: offsets [begin, end)."""

    begin: int
    end: int
    count: int


Spans = tuple[Span, ...]
"""Of a table, by partition: as many as the table has, empty where a checkpoint has nothing. In the embedded log it has one."""


class Begun(NamedTuple):
    """A load of `table` begins here: its `generation`, and whether it has a key (C3). `schema_id`: the value schema that the table has
    then, so that a sink makes a table of which no row is ever read; None in logs of versions that did not say it."""

    table: TableId
    generation: int
    keyless: bool
    schema_id: int | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The log's record of one batch (protocol A2).

    `previous` names the checkpoint that this one continues (A1): usually the one before; after an epoch change off a cut the last
    cut (B4). `cut`: no source transaction is open and no load round unfinished at its end (B1). `begun` takes effect before the
    batch's records, `finished` after them. `facts` is what the source says of tables that it describes here anew. `counts` is
    events per table and op. `ends` lists every partition's end, and `generations` every begun table's, in a capture's first
    checkpoint and each 256th; else None.
    """

    log_id: str
    number: int
    id: str
    previous: Mark
    writer: str
    position: Position
    cut: bool
    spans: Mapping[TableId, Spans] = field(default_factory=dict)
    counts: Mapping[TableId, Mapping[str, int]] = field(default_factory=dict)
    commit_ms: tuple[int, int] | None = None
    begun: tuple[Begun, ...] = ()
    finished: tuple[TableId, ...] = ()
    written_ms: int = 0
    facts: Mapping[TableId, Json] = field(default_factory=dict)
    ends: Mapping[TableId, tuple[int, ...]] | None = None
    generations: Mapping[TableId, int] | None = None

    @property
    def mark(self) -> Mark:
        return Mark(self.number, self.id)

    @property
    def rows(self) -> dict[TableId, int]:
        """Records of each table."""
        return {table: sum(span.count for span in spans) for table, spans in self.spans.items()}

    @property
    def epoch(self) -> int:
        return self.position.epoch


class Draft(NamedTuple):
    """What capture knows of a checkpoint before it is appended."""

    position: Position
    cut: bool
    begun: tuple[Begun, ...] = ()
    finished: tuple[TableId, ...] = ()
    commit_ms: tuple[int, int] | None = None
    facts: Mapping[TableId, Json] = {}
    continues: Mark | None = None  # default: the last checkpoint


class Intent(NamedTuple):
    """Written before the start position is made at the source, so that a crash in between is not a second start (C7)."""

    epoch: int
    details: Json


class Signal(NamedTuple):
    """A request to the running capture. `kind`: `reload` (tables), `reread` (one table, framed keys in hex), `new-epoch`."""

    number: int  # from 1, dense
    kind: str
    details: Json


class TableState(NamedTuple):
    """The newest of what checkpoints said of a table: its last `Begun` and `facts`; the numbers of the checkpoints in which that load
    began, and in which the last load that is finished had begun. Kept out of the position, which every checkpoint repeats, so
    that ten thousand tables cost a checkpoint nothing."""

    generation: int
    keyless: bool
    facts: Json
    begun: int = -1
    loaded: int | None = None


class LogState(NamedTuple):
    """What a capture finds when it opens the log: the last checkpoint, the last cut, an intent newer than both, if any, and the
    state of every table that has ever begun. With them it knows all that it knew before a crash."""

    last: Checkpoint | None
    cut: Checkpoint | None
    intent: Intent | None
    tables: Mapping[TableId, TableState]


class Survey(NamedTuple):
    """The log's end as a reader sees it. `events` counts what was ever written of a table (in Kafka, as far as its offsets tell)."""

    last: Checkpoint | None
    tables: Mapping[TableId, TableState]
    events: Mapping[TableId, int]


class Surveyor(Protocol):
    """A look at a log beside its writer: nothing here writes or locks, so that looking at a pipeline never disturbs it."""

    log_id: str

    def last(self) -> Checkpoint | None:
        """The newest checkpoint."""

    def survey(self) -> Survey:
        """All of the log's end. Reads no more checkpoints than lie between two that list everything."""

    def written_ms(self, number: int) -> int | None:
        """When checkpoint `number` was written; None when it is not there."""

    def mark_before(self, number: int) -> Mark:
        """The mark to read from so that checkpoint `number`, or the earliest that is left, comes first."""

    def mark_before_events(self, count: int, wanted: Callable[[TableId], bool]) -> Mark:
        """The mark to read from so that at least the last `count` events of these tables come, or all that are left."""

    def backlog_bytes(self, after: int) -> int:
        """The size, as stored, of the records behind checkpoint `after`; in Kafka an estimate."""


class Log(Protocol):
    """One log. A writer calls `open_writer` first; readers need nothing. Raises CDC-LOG-… errors (rule R3 among them)."""

    id: str

    @property
    def pipeline(self) -> str | None:
        """The pipeline whose tables it holds; None while that cannot be told."""

    def open_writer(self) -> LogState:
        """Take the log over: fences every other writer, then reads the end. Raises CdcError if another writer is alive."""

    def intend(self, intent: Intent) -> None:
        """Store an intent durably."""

    def append(self, batch: Batch, draft: Draft) -> Checkpoint:
        """Batch and checkpoint in one durable transaction. Asserts that each partition continues (begin = its last end, end - begin =
        count). Raises Superseded when another writer took the log over."""

    def read(
        self, after: Mark, tables: Callable[[TableId], bool], idle_s: float
    ) -> Generator[tuple[Checkpoint, Batch] | None, None, None]:
        """Checkpoints after `after`, in order, each with its committed records of the wanted tables, counts verified; None when there
        are no more, and again each time that nothing new came within `idle_s`. Never ends by itself. Raises R3 (CDC-LOG-…)
        when `after` is not of this log, is ahead of it, or retention has passed it. Abandoned checkpoints (B4) come too: the
        reader follows `previous`."""

    def last_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint, without taking the log over (status)."""

    def register(self, subject: str, schema: Json) -> int:
        """The schema's id, the same each time; durable before it returns (A8)."""

    def schema(self, schema_id: int) -> Json:
        """A registered schema. Raises CdcError for an unknown id (R4)."""

    def subjects(self) -> Mapping[str, Sequence[int]]:
        """Every subject with the ids of its versions, from 1 on (the registry's read API)."""

    def look(self) -> AbstractContextManager[Surveyor]:
        """A look at what is in the log, for `with`."""

    def signal(self, kind: str, details: Json) -> int:
        """Leave a request for the capture, durably; its number. Any process may call it."""

    def signals(self, after: int) -> list[Signal]:
        """Requests with numbers above `after`, in order."""

    def report(self, reader: str, mark: Mark) -> None:
        """A reader's hint that it needs nothing up to and including `mark`; retention honours the least of them (A9)."""

    def expect(self, readers: Iterable[str]) -> None:
        """Retention waits for these readers, too, though they may not have reported yet: sinks that are yet to start (A9)."""

    def forget(self, reader: str) -> None:
        """Retention need not wait for this reader any more: its sink was dropped."""

    def retain(self) -> None:
        """Drop what retention allows. Called by the writer now and then."""

    def status(self) -> Mapping[str, Json]:
        """Size, first and last number, free space: for status and metrics."""

    def close(self) -> None: ...
