"""What an embedded log holds, for status and `cdc tail`: read beside a running capture, without taking the log over.

The invariant: nothing here writes or locks, so looking at a pipeline never disturbs it.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from cdc.errors import CdcError
from cdc.log import Checkpoint, Mark, Survey
from cdc.log.checkpoint import LISTED_EVERY
from cdc.log.folder import Folder
from cdc.log.segment import Segment
from cdc.table import TableId


class FolderSurveyor:
    """See `cdc.log.Surveyor`: looks at the log in `path`; close it. Raises CDC-LOG-101 when there is none."""

    def __init__(self, path: Path) -> None:
        self._folder, self._stack = Folder(path), ExitStack()
        if not self._folder.exists():
            raise CdcError("CDC-LOG-101", "nothing is there", where=str(path))
        self._firsts = self._folder.firsts()
        self._opened: dict[int, Segment] = {}
        self.log_id = self._segment(self._firsts[-1]).log_id()

    def __enter__(self) -> FolderSurveyor:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _segment(self, first: int) -> Segment:
        if first not in self._opened:
            self._opened[first] = self._stack.enter_context(Segment(self._folder.segment(first), None))
        return self._opened[first]

    def _holder(self, number: int) -> tuple[int, Segment]:
        """The segment that holds checkpoint `number`, or the first one."""
        first = self._firsts[max(0, bisect.bisect(self._firsts, number) - 1)]
        return first, self._segment(first)

    def _checkpoint(self, number: int) -> Checkpoint | None:
        stored, _ = self._holder(number)[1].look(number)
        return stored.checkpoint if stored else None

    def last(self) -> Checkpoint | None:
        """The newest checkpoint."""
        for first in reversed(self._firsts):
            if (stored := self._segment(first).last()) is not None:
                return stored.checkpoint
        return None

    def written_ms(self, number: int) -> int | None:
        """When checkpoint `number` was written; None when it is not there."""
        checkpoint = self._checkpoint(number)
        return checkpoint.written_ms if checkpoint else None

    def survey(self) -> Survey:
        """All of it. Reads at most as many checkpoints as lie between two that list every partition's end."""
        last = self.last()
        if last is None:
            return Survey(None, {}, {})
        first, segment = self._holder(last.number)
        events: dict[TableId, int] = {}
        for number in range(max(first, last.number // LISTED_EVERY * LISTED_EVERY), last.number + 1):
            if (checkpoint := self._checkpoint(number)) is not None:
                events.update((table, end) for table, (end,) in (checkpoint.ends or {}).items())
                events.update((table, span.end) for table, (span,) in checkpoint.spans.items())
        return Survey(last, segment.states(last.number), events)

    def mark_before(self, number: int) -> Mark:
        """The mark to read from so that checkpoint `number`, or the earliest that is left, comes first."""
        first, segment = self._holder(max(number, self._firsts[0]))
        if number <= first:
            return segment.edges().previous
        identity = segment.id_of(number - 1)
        if identity is None:
            raise CdcError("CDC-LOG-107", f"the log ends before checkpoint {number - 1}", where=str(self._folder.path))
        return Mark(number - 1, identity)

    def mark_before_events(self, count: int, wanted: Callable[[TableId], bool]) -> Mark:
        """The mark to read from so that at least the last `count` events of these tables come, or all that are left."""
        last = self.last()
        if last is None:
            return Mark(-1, self.log_id)
        number = last.number + 1
        while count > 0 and number > self._firsts[0]:
            number -= 1
            if (checkpoint := self._checkpoint(number)) is not None:
                count -= sum(rows for table, rows in checkpoint.rows.items() if wanted(table))
        return self.mark_before(number)

    def backlog_bytes(self, after: int) -> int:
        """The size, as stored, of the records behind checkpoint `after`."""
        return sum(segment.bytes_after(after) for segment in self._behind(after))

    def _behind(self, after: int) -> Iterator[Segment]:
        begin = max(0, bisect.bisect(self._firsts, after) - 1)
        for first in self._firsts[begin:]:
            yield self._segment(first)
