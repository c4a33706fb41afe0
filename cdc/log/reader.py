"""Reading an embedded log: from a mark on, for ever, across segments, beside a writer in another process.

One invariant: no read transaction is open while the caller works, and nothing is delivered whose number was not verified.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Generator

from cdc.errors import CdcError
from cdc.log import Checkpoint, Mark
from cdc.log.folder import Folder
from cdc.log.segment import Segment
from cdc.records import Batch
from cdc.table import TableId

# A poll costs 15 µs. After commits it is frequent, so that latency stays far below a commit's own; a silent log costs nearly nothing.
POLL_S, POLL_MOST_S, POLL_GROWTH = 0.003, 0.02, 1.02
CURRENT_EVERY_S = 1.0  # how often an idle reader looks whether the folder is still the same


class Reader:
    """One reading of a log. `close` may be called at any time, more than once."""

    def __init__(self, folder: Folder, log_id: str) -> None:
        self._folder, self._log_id = folder, log_id
        self._segment: Segment | None = None
        self._wait_s, self._check_at = POLL_S, 0.0

    def close(self) -> None:
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def read(
        self, after: Mark, wanted: Callable[[TableId], bool], idle_s: float
    ) -> Generator[tuple[Checkpoint, Batch] | None, None, None]:
        """See `Log.read`."""
        try:
            self._segment = open_at(self._folder, self._log_id, after)
            number, wait_s = after.number + 1, 0.0
            while True:
                found = self._next(number, wanted, time.monotonic() + wait_s)
                number, wait_s = (number, idle_s) if found is None else (number + 1, 0.0)
                yield found
        finally:
            self.close()

    def _next(self, number: int, wanted: Callable[[TableId], bool], deadline: float) -> tuple[Checkpoint, Batch] | None:
        """Checkpoint `number` with its records, or None at the deadline."""
        while True:
            assert self._segment is not None, "this reading was closed"
            stored, following = self._segment.look(number)
            if stored is not None:
                if stored.checkpoint.log_id != self._log_id:
                    raise self._segment.damaged(f"checkpoint {number} is of log {stored.checkpoint.log_id}")
                self._wait_s = POLL_S
                return stored.checkpoint, self._segment.batch(stored, wanted)
            if following is not None:
                self._move(following, number)
                continue
            now = time.monotonic()
            if now >= self._check_at:
                self._check_current(self._segment)
                self._check_at = now + CURRENT_EVERY_S
            if now >= deadline:
                return None
            time.sleep(min(self._wait_s, deadline - now))
            self._wait_s = min(self._wait_s * POLL_GROWTH, POLL_MOST_S)

    def _move(self, following: int, number: int) -> None:
        """To the next segment. A sealed one lacks a number only when it is damaged."""
        assert self._segment is not None
        if following != number:
            raise self._segment.damaged(f"checkpoint {number} is missing: it was sealed before {following}")
        last = Mark(number - 1, self._segment.id_of(number - 1) or "")
        path = self._folder.segment(following)
        if not path.exists():
            raise _gone(self._folder, following)
        segment = Segment(path, self._log_id)
        self._segment.close()
        self._segment = segment
        if segment.edges().previous != last:
            raise segment.damaged(f"it does not continue checkpoint {last.number}")

    def _check_current(self, segment: Segment) -> None:
        if not segment.is_current():
            raise CdcError("CDC-LOG-109", "the segment that is being read has left the folder", where=str(segment.path))


def open_at(folder: Folder, log_id: str, after: Mark) -> Segment:
    """The segment to read on in. Raises R3 when `after` is not a checkpoint of this log that can be continued."""
    number, where = after.number, str(folder.path)
    if number == -1 and after.id != log_id:
        raise CdcError("CDC-LOG-106", f"it is of log {after.id}, this is {log_id}", where=where)
    firsts = folder.firsts()
    if number + 1 in firsts:
        # The mark is just before this segment, which knows its id, even when the one that holds it is gone.
        segment = Segment(folder.segment(number + 1), log_id)
        found: str | None = segment.edges().previous.id
    elif number < firsts[0]:
        raise _gone(folder, number + 1)
    else:
        segment = Segment(folder.segment(firsts[bisect.bisect(firsts, number) - 1]), log_id)
        found = segment.id_of(number)
    if found == after.id:
        return segment
    following = segment.edges().next
    segment.close()
    if found is None and following is None:
        raise CdcError("CDC-LOG-107", f"it is at checkpoint {number}, the log ends before it", where=where)
    detail = f"checkpoint {number} has the id {found}, the bookmark says {after.id}"
    raise CdcError("CDC-LOG-106", detail, where=where)


def _gone(folder: Folder, number: int) -> CdcError:
    """Why the segment with checkpoint `number` is not there."""
    first = folder.firsts()[0]
    if first > number:
        return CdcError("CDC-LOG-108", f"checkpoint {number} is needed, {first} is the first", where=str(folder.path))
    return CdcError("CDC-LOG-104", "the log goes on there", where=str(folder.segment(number)))
