"""`Source`: what an engine supplies, and the values it exchanges with `cdc.capture` and `cdc.load`.

A source knows how to read its database's log and its rows, and what "settled" and "durable" mean there. It knows nothing of
rounds, generations, cuts or queues: those are `cdc.load`. It raises `CdcError`s and never retries (rule R12).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from cdc.records import Batch, Records
from cdc.table import TableId

Json = Any


class Finding(NamedTuple):
    """One result of a preflight. `severity` is `error` (the service does not start) or `warning`."""

    severity: str
    code: str
    detail: str
    where: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Move:
    """A key change whose row has UNCHANGED columns: the `d` of `old` and the `c` of `new` are in the run, the `c` at `index`."""

    table: TableId
    old: bytes  # framed keys
    new: bytes
    index: int


@dataclass(frozen=True, slots=True)
class Filter:
    """What `poll` leaves out (protocol C, D8), and what it watches (D9). Ordinals count before it (rule R2).

    `begun`: the captured tables, each with its facts (what `describe` said when its last load began, and what was noticed since);
    events of others are dropped. By its facts a table is known under whatever name the stream has for it. `keyless`: for these tables
    events are dropped: all of them (None), or those of transactions that this snapshot (the source's own form) sees. `live`: those
    of the begun that neither load nor wait for it, so that the source looks by timer whether their rows changed without events.
    """

    begun: Mapping[TableId, Json] = field(default_factory=dict)
    keyless: Mapping[TableId, Json] = field(default_factory=dict)
    live: frozenset[TableId] = frozenset()


@dataclass(slots=True)
class Run:
    """What `poll` returns: committed events in order, bounded in rows, bytes and time, and the stream position after them.

    An empty run may advance the position. A run ends after a transaction that holds one of our marks, before and after a
    TRUNCATE, and where a table's schema changes, so that a checkpoint holds one schema per table and a barrier stands alone.
    `commit_ms` is the range of commit times, None when no transaction ended in the run.

    Changes without events (D9), each with its reason: `altered` are tables whose rows, or place in the stream, changed at some time
    before now; their events go on as they are. From `left` on, within this run, a table's events are of another structure than its
    load began with: they are left out, and have to be until a new load begins. `found` are selected tables that are not captured
    and can be; `refused` those that cannot, as far as the source looked (None: it did not).
    """

    records: Batch
    stream: Json
    sequence: int
    in_transaction: bool = False
    marks: list[str] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    truncated: frozenset[TableId] = frozenset()
    commit_ms: tuple[int, int] | None = None
    facts: Mapping[TableId, Json] = field(default_factory=dict)  # tables that changed in a way that needs no reload
    moved_on: bool = False  # the stream position differs from the last run's
    altered: Mapping[TableId, str] = field(default_factory=dict)
    left: Mapping[TableId, str] = field(default_factory=dict)
    found: Sequence[TableId] = ()
    refused: Sequence[Finding] | None = None


class ChunkSpec(NamedTuple):
    """Rows to read: the range after `after` (a framed key; None = from the start), or exactly `keys`, or (keyless) all.

    `facts` is what `describe` gave when the load began. `rows_max` and `bytes_max` bound a range; it ends early at either.
    """

    table: TableId
    facts: Json
    after: bytes | None = None
    keys: tuple[bytes, ...] = ()
    keyless: bool = False
    rows_max: int = 50_000
    bytes_max: int = 16 << 20


class Piece(NamedTuple):
    """A batch of a chunk: records with op `r` (`d` for a requested key that is gone), the highest key read so far, the sequence."""

    records: Records
    after: bytes | None
    last: bool  # of the chunk
    end_of_table: bool  # the range reached the end of the table
    sequence: int


@dataclass(slots=True)
class Chunk:
    """Rows read in one settled snapshot. The pieces of a keyed chunk are in memory; those of a keyless one are read as they are
    iterated, in the chunk's snapshot, which `snapshot` describes in the source's own form."""

    spec: ChunkSpec
    pieces: Iterable[Piece]
    snapshot: Json = None


class Unsettled(NamedTuple):
    """The chunk's snapshot does not see what the stream has delivered (C2), or a lock or an older transaction is in the way of
    `only_this` table (D6)."""

    reason: str
    only_this: bool = False


class Restructured(NamedTuple):
    """The table is no longer what it was when its load began: the load starts anew (D1). `gone`: there is no such table."""

    gone: bool = False


class Source(Protocol):
    """One source database. All methods may raise `Unavailable` (retry from the bookmark) or `CdcError` (stop)."""

    connector: str
    """The name of the source block, schemas/source_<connector>.avsc."""

    def check(self) -> list[Finding]:
        """The preflight: settings, privileges, identity, replica identity, types. Reads only. The same code runs at every
        start and reconnect, from `open`, which raises the first error found."""

    def tables(self) -> list[TableId]:
        """The selected tables that exist, referenced tables before the tables that refer to them."""

    def intent(self, epoch: int) -> Json:
        """What `start` will create for this epoch (for Postgres the slot's name), for the log's intent record (C7)."""

    def start(self, intent: Json, resume: bool) -> Json:
        """Make the start position, once, after the intent is in the log; the stream position, which is never made again.

        `resume`: the intent was already there, so an untouched start position that it names is adopted (protocol G).
        Raises CdcError when one exists that is not ours."""

    def open(self, at: Json, confirmed: Json, sequence: int, epoch: int) -> None:
        """Stream from after `at`. `confirmed` is the last cut's position, `sequence` the last record's number.

        Verifies identity, history and reach first (R3, R5, D5)."""

    def include(self, tables: Iterable[TableId]) -> Mapping[TableId, Json]:
        """Make sure that these tables are streamed, and describe them: their `facts`, with a boolean `keyless` and the id of their
        value schema as `schema`.

        From the return on, every change of a transaction that began later is in the stream. A table that is gone, or cannot be captured
        as it is, is not described: `poll` tells of it in `found` when it can be."""

    def poll(self, timeout_s: float, drop: Filter) -> Run:
        """The next run; waits at most `timeout_s` for its first event. Sends feedback by timer."""

    def read_chunk(self, spec: ChunkSpec, at: Json) -> Chunk | Unsettled | Restructured:
        """Rows in one snapshot that sees all that the stream has delivered up to `at` (C2, D1, D2). Nothing is polled meanwhile."""

    def seen(self, at: Json) -> Json:
        """`at` with the transactions pruned that the last chunk's snapshot saw (C2); `at` itself when there are none."""

    def mark(self) -> str:
        """Commit a mark durably at the source, on the session opened before the first read of the round (C1, D3). It comes back in a
        run's `marks`. Raises Unavailable if that session was lost."""

    def confirm(self, at: Json) -> None:
        """The log holds everything up to `at`, a cut's position, durably: the source may forget it (R1)."""

    def status(self) -> Mapping[str, Json]:
        """For status and metrics: head, lag and retained bytes, blockers. Cheap."""

    def close(self) -> None: ...


def dropped(records: Records, indexes: Iterator[int] | Iterable[int]) -> None:
    """Remove records by index, in place."""
    for index in sorted(indexes, reverse=True):
        del records.keys[index], records.values[index]
