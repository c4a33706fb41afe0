"""THE LOOP of a sink: log → target (protocols A1, B1–B4).

    read up to a cut; collapse; one target transaction of rows and bookmark; again

The invariant: rows and the checkpoint that they came from commit together, and only at cuts, so the target always equals the
source as of some committed source transaction. What does not fit in memory until the cut is merged piece by piece inside the
same open transaction (B3). Every failure ends this attempt; `cdc.supervise` makes the next one from the bookmark.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, NamedTuple, Protocol

from cdc.avro import Schema
from cdc.errors import CdcError
from cdc.log import Checkpoint, Log, Mark
from cdc.records import Batch
from cdc.table import TableId
from sinks.changes import Changes
from sinks.joining import start
from sinks.sink import Bookmark, Sink

Observe = Callable[[Checkpoint, int], None]


class Reading(Protocol):
    """What the loop needs of a `Log`: all of one, or a part of it."""

    def read(
        self, after: Mark, tables: Callable[[TableId], bool], idle_s: float
    ) -> Generator[tuple[Checkpoint, Batch] | None, None, None]:
        """See Log.read; a part of a log ends."""

    def schema(self, schema_id: int) -> Any:
        """See Log.schema."""

    def signal(self, kind: str, details: Any) -> int:
        """See Log.signal."""

    def report(self, reader: str, mark: Mark) -> None:
        """See Log.report."""


class Pace(NamedTuple):
    """What is in the log is applied without waiting for more, and together: what came while a commit took its time is one batch,
    up to `batch_bytes`, so that a sink falls no further behind than a commit or two. `bytes_max` bounds what is in memory;
    `idle_s` is how often a silent log is left, to see whether to stop."""

    idle_s: float = 0.1
    batch_bytes: int = 8 << 20
    bytes_max: int = 32 << 20


def apply(
    sink: Sink,
    log: Log,
    stop: Callable[[], bool],
    pace: Pace | None = None,
    observe: Observe = lambda _checkpoint, _rows: None,
) -> None:
    """Apply until `stop()`; returns at a committed batch. Raises what ends the attempt."""
    bookmark, abandoned = sink.resume(log.id, lambda: start(log, sink.name, sink.wants)), set[Mark]()
    log.report(sink.name, bookmark.mark)
    if tables := sink.suspended():  # not at the next event alone: there may be none for days
        log.signal("reload", {"tables": [list(table) for table in tables]})
    while not stop():
        bookmark = follow(sink, log, bookmark, abandoned, stop, pace or Pace(), observe)


def follow(
    sink: Sink,
    log: Reading,
    bookmark: Bookmark,
    abandoned: set[Mark],
    stop: Callable[[], bool],
    pace: Pace,
    observe: Observe,
) -> Bookmark:
    """Read on from the bookmark; returns it when told to stop, at the end of a part, or when checkpoints that were read turn out
    to be abandoned."""
    transaction = Transaction(sink, log, bookmark, pace.bytes_max, observe)
    path, cut = [bookmark.mark], None
    with closing(log.read(bookmark.mark, sink.wants, pace.idle_s)) as items:
        for item in items:
            if stop():
                break
            if item is not None:
                checkpoint, batch = item
                if checkpoint.mark in abandoned:
                    continue
                if checkpoint.previous != path[-1]:
                    abandoned.update(_dropped(path, checkpoint))
                    break
                if cut is not None and not checkpoint.cut:
                    # A long transaction begins: what is whole does not wait for it.
                    transaction.commit(cut)
                    path, cut = [cut.mark], None
                path.append(checkpoint.mark)
                transaction.add(checkpoint, batch)
                cut = checkpoint if checkpoint.cut else None
                if transaction.work.full and cut is None:
                    transaction.merge(checkpoint)
            if cut is not None and (item is None or transaction.work.size_bytes >= pace.batch_bytes):
                transaction.commit(cut)
                path, cut = [cut.mark], None
    transaction.forget()
    return transaction.bookmark


def _dropped(path: list[Mark], checkpoint: Checkpoint) -> list[Mark]:
    """The checkpoints of `path` that the newest one does not continue (A1, B4)."""
    if checkpoint.previous not in path:
        raise CdcError(
            "CDC-LOG-110",
            f"checkpoint {checkpoint.number} continues {checkpoint.previous.number}, which is not what was applied",
            where=f"bookmark {path[0].number}",
        )
    return path[path.index(checkpoint.previous) + 1 :]


class Transaction:
    """The target transaction in progress, if any, and what waits for it."""

    def __init__(self, sink: Sink, log: Reading, bookmark: Bookmark, bytes_max: int, observe: Observe) -> None:
        def schemas(schema_id: int) -> Schema:
            schema: Schema = log.schema(schema_id)
            return schema

        self.sink, self.log, self.bookmark, self._observe = sink, log, bookmark, observe
        self.work = Changes(schemas, bytes_max)
        self._open, self._rows = False, 0

    def add(self, checkpoint: Checkpoint, batch: Batch) -> None:
        """One checkpoint, without what is not yet, or no longer, for its table (B5)."""
        begins = self.bookmark.begins

        def wants(table: TableId) -> bool:
            return checkpoint.number >= begins.get(table, -1) and self.sink.wants(table)

        if begins:
            batch = {table: records for table, records in batch.items() if wants(table)}
        self.work.add(checkpoint, batch, wants)
        self._rows += sum(map(len, batch.values()))

    def merge(self, checkpoint: Checkpoint) -> None:
        """Merge what was read, in the open transaction."""
        if not self._open:
            self.sink.begin(self.bookmark, checkpoint)
            self._open = True
        for piece in self.work.pieces:
            for missed in self.sink.merge(piece):  # B9: asked for before the commit, so that a crash cannot forget it
                if missed.keys:
                    keys = [key.hex() for key in missed.keys]
                    self.log.signal("reread", {"table": list(missed.table), "keys": keys})
                else:
                    self.log.signal("reload", {"tables": [list(missed.table)]})
        self.work.clear()

    def commit(self, cut: Checkpoint) -> Bookmark:
        """Rows and bookmark together."""
        self.merge(cut)
        self.bookmark = self.sink.commit(cut)
        self._open = False
        self.log.report(self.sink.name, self.bookmark.mark)
        self._observe(cut, self._rows)
        self._rows = 0
        return self.bookmark

    def forget(self) -> None:
        """Nothing of an uncommitted transaction remains."""
        self.sink.rollback()
        self.work.clear()
        self._open = False
