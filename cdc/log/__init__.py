"""The log: what capture writes and sinks read. Two implementations behind one protocol: `cdc.log.embedded`, later Kafka.

One append is one log transaction: a batch of records and its checkpoint, all or nothing, durable when it returns. Protocol A.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
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
    """Where a checkpoint's records of one partition are: offsets [begin, end). In the embedded log a table is a partition."""

    begin: int
    end: int
    count: int


class Begun(NamedTuple):
    """A load of `table` begins here: its `generation`, and whether it has a key (C3)."""

    table: TableId
    generation: int
    keyless: bool


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
    spans: Mapping[TableId, Span] = field(default_factory=dict)
    counts: Mapping[TableId, Mapping[str, int]] = field(default_factory=dict)
    commit_ms: tuple[int, int] | None = None
    begun: tuple[Begun, ...] = ()
    finished: tuple[TableId, ...] = ()
    written_ms: int = 0
    facts: Mapping[TableId, Json] = field(default_factory=dict)
    ends: Mapping[TableId, int] | None = None
    generations: Mapping[TableId, int] | None = None

    @property
    def mark(self) -> Mark:
        return Mark(self.number, self.id)

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
    """The newest of what checkpoints said of a table: its last `Begun` and `facts`. Kept out of the position, which every
    checkpoint repeats, so that ten thousand tables cost a checkpoint nothing."""

    generation: int
    keyless: bool
    facts: Json


class LogState(NamedTuple):
    """What a capture finds when it opens the log: the last checkpoint, the last cut, an intent newer than both, if any, and the
    state of every table that has ever begun. With them it knows all that it knew before a crash."""

    last: Checkpoint | None
    cut: Checkpoint | None
    intent: Intent | None
    tables: Mapping[TableId, TableState]


class Log(Protocol):
    """One log. A writer calls `open_writer` first; readers need nothing. Raises CDC-LOG-… errors (rule R3 among them)."""

    id: str

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

    def signal(self, kind: str, details: Json) -> int:
        """Leave a request for the capture, durably; its number. Any process may call it."""

    def signals(self, after: int) -> list[Signal]:
        """Requests with numbers above `after`, in order."""

    def report(self, reader: str, mark: Mark) -> None:
        """A reader's hint that it needs nothing up to and including `mark`; retention honours the least of them (A9)."""

    def retain(self) -> None:
        """Drop what retention allows. Called by the writer now and then."""

    def status(self) -> Mapping[str, Json]:
        """Size, first and last number, free space: for status and metrics."""

    def close(self) -> None: ...
