"""`Sink`: what a target supplies to `sinks.apply`, and the net changes it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from cdc.log import Begun, Checkpoint, Mark
from cdc.source import Finding
from cdc.table import TableId


class Partial(NamedTuple):
    """The end of a key whose row lacks columns: `value` over the row that was at `origin` (a framed key) before the merge.

    `unchanged` names the columns to keep from the row at `origin`. `origin` equals the key itself unless the row moved.
    """

    origin: bytes
    value: bytes
    unchanged: frozenset[str]


Net = bytes | Partial | None
"""The end of a key: a framed value with a whole row, a Partial, or None (gone)."""


@dataclass(slots=True)
class TableChanges:
    """Changes of one table within a piece: one schema id for all values.

    `emptied`: the table was truncated (or, keyless, a load began) before them. `net`: keyed tables, the end of each key.
    `events`: the framed values in order (keyless tables need no more; keyed ones fall back to them), with their keys.
    `only_reads`: every event is `r`.
    """

    schema_id: int
    emptied: bool = False
    net: dict[bytes, Net] = field(default_factory=dict)
    keys: list[bytes | None] = field(default_factory=list)
    events: list[bytes] = field(default_factory=list)
    only_reads: bool = True


@dataclass(slots=True)
class Piece:
    """A stretch between barriers. `begun` comes first, then `tables`, then `finished`. At most one schema per table."""

    begun: list[Begun] = field(default_factory=list)
    tables: dict[TableId, TableChanges] = field(default_factory=dict)
    finished: list[TableId] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.begun or self.tables or self.finished)


class Start(NamedTuple):
    """Where a sink without a bookmark begins (B5): after `mark`. `begins` are the checkpoints in which its tables' loads begin, all
    behind it; `missing` tables' loads are no longer in the log, and are asked for."""

    mark: Mark
    begins: Mapping[TableId, int] = {}
    missing: tuple[TableId, ...] = ()


class Bookmark(NamedTuple):
    """Where this sink is: the checkpoint whose changes are the last in the target, and the log it belongs to. `begins`: what happens
    to these tables before these checkpoints, all behind the mark, is not for it (B5)."""

    log_id: str
    mark: Mark
    begins: Mapping[TableId, int] = {}


class Evolution(NamedTuple):
    """What a sink does when a table changes at the source; `stop` is an error with a remedy, before anything is written.

    A column that was `dropped` stays by default, for the target's readers; `drop` takes it away where the sink made the table. A column
    that was `retyped` gets a type that holds the old values and the new ones. A relaxed NOT NULL is always followed."""

    added: Literal["add", "stop"] = "add"
    dropped: Literal["keep", "drop", "stop"] = "keep"
    retyped: Literal["widen", "stop"] = "widen"
    rekeyed: Literal["follow", "stop"] = "follow"


class Missed(NamedTuple):
    """Keys of a live table whose row the target lacks though an update needed it (B9): requested for re-read before the commit.
    No keys: the whole table, which this sink has never loaded, or which is not what the log says, and which it suspends."""

    table: TableId
    keys: tuple[bytes, ...]


class Sink(Protocol):
    """One target. One transaction at a time: `begin`, any number of `merge`, `commit` or `rollback`."""

    name: str

    def check(self) -> list[Finding]:
        """Preflight of the target; reads only."""

    def wants(self, table: TableId) -> bool:
        """Does this sink take the table?"""

    def resume(self, log_id: str, start: Callable[[], Start] | None = None) -> Bookmark:
        """Claim the bookmark for this process and return it; a new target gets the one that `start` gives, by default before the log's
        first checkpoint. Raises CdcError when the bookmark is of another log (R3), Superseded when a successor holds it."""

    def suspended(self) -> list[TableId]:
        """After `resume`: tables that this sink takes and whose load it waits for, as after they had left its selection, or when the
        log did not reach back to it. Each is named once by a process."""

    def begin(self, bookmark: Bookmark, checkpoint: Checkpoint) -> None:
        """Start the transaction. Its first statement locks the bookmark, compares it with `bookmark` and this process's claim, and
        writes `checkpoint` (B2). Raises Superseded if a successor claimed it, Unavailable if it moved on by itself."""

    def merge(self, piece: Piece) -> list[Missed]:
        """Apply one piece inside the transaction. Raises Rejected naming table and key of a row that the target refuses."""

    def commit(self, checkpoint: Checkpoint) -> Bookmark:
        """Rows and bookmark, all or nothing; `checkpoint` is a cut."""

    def rollback(self) -> None:
        """Forget the open transaction, if any."""

    def status(self) -> Mapping[str, object]:
        """Tables with state and generation, as the target's own bookkeeping has them."""

    def close(self) -> None: ...
