"""Writing an embedded log: take over, append, roll, retain. For the one process that holds the writer's lock.

One invariant: after any failure the writer is void. What the disk holds then is unknown, so it is read anew by another `Writer`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import pairwise

from cdc.errors import CdcError, Unavailable
from cdc.log import Checkpoint, Draft, Intent, LogState, Mark
from cdc.log.checkpoint import LISTED_EVERY, Chain, random_id, table_text
from cdc.log.database import remove_file, sync_folder
from cdc.log.folder import Folder
from cdc.log.frames import Frame, RecordTooLargeError, pack
from cdc.log.reader import open_at
from cdc.log.segment import Segment, create_segment
from cdc.records import Batch
from cdc.table import TableId


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes in bytes. A segment is sealed when it is at least `segment` large; a frame holds `frame` unless one record is larger;
    a record above `record` is an error; appends stop when less than `free` of the disk would be left."""

    segment: int
    frame: int
    record: int
    free: int


class Writer:
    """The end of the log, owned. Construction fences all others and verifies the end; `state` says what was found."""

    def __init__(self, folder: Folder, log_id: str, limits: Limits) -> None:
        self._folder, self._limits, self._id = folder, limits, random_id()
        self._chain = Chain(log_id)
        self._fresh, self._void = True, False  # nothing appended yet; a change failed
        folder.tidy()
        self._segment = self._take_over()
        try:
            self.state = self._find_state()
            self._first, self._next_frame = self._segment.edges().first, self._segment.next_frame()
        except BaseException:
            self._segment.close()
            raise

    def close(self) -> None:
        self._segment.close()

    # ---------------------------------------------------------------------------------------------------------- take over
    def _take_over(self) -> Segment:
        """Fence the newest segment, then finish a roll that a crash interrupted. The fence comes first: afterwards nobody else can
        append, so that what is read is the end."""
        firsts = self._folder.firsts()
        segment = Segment(self._folder.segment(firsts[-1]), self._chain.log_id)
        try:
            following = segment.fence(self._id)
            if following is not None:
                raise CdcError("CDC-LOG-104", "the log goes on there", where=str(self._folder.segment(following)))
            edges = segment.edges()
            if edges.first != firsts[-1]:
                raise segment.damaged(f"it begins with checkpoint {edges.first}")
            for first, after in pairwise(firsts):
                self._check_joined(first, after, edges.previous if after == firsts[-1] else None)
        except BaseException:
            segment.close()
            raise
        return segment

    def _check_joined(self, first: int, after: int, previous: Mark | None) -> None:
        """That segment `first` is followed by `after`. The last but one may not be sealed yet; then it is, now."""
        with Segment(self._folder.segment(first), self._chain.log_id) as segment:
            following = segment.edges().next
            if (
                following is None
                and previous is not None
                and previous == Mark(after - 1, segment.id_of(after - 1) or "")
            ):
                segment.fence(self._id)
                with segment.transaction(self._id):
                    segment.seal(after)
                segment.fold()
            elif following != after:
                missing = self._folder.segment(after if following is None else following)
                raise CdcError("CDC-LOG-104", f"segment {first} is not followed by {after}", where=str(missing))

    def _find_state(self) -> LogState:
        """What is at the end: the last checkpoint, the last cut, the ends, the tables. Verified since the ends were listed last."""
        chain, edges = self._chain, self._segment.edges()
        with ExitStack() as stack:
            opened = [self._segment]
            for first in reversed(self._folder.firsts()[:-1]):
                if opened[-1].last_cut() is not None:
                    break
                opened.append(stack.enter_context(Segment(self._folder.segment(first), chain.log_id)))
            last = next((stored for segment in opened if (stored := segment.last())), None)
            cut = next((stored for segment in opened if (stored := segment.last_cut())), None)
            number = last.checkpoint.number if last else -1
            if number != edges.previous.number and number < edges.first:
                raise self._segment.damaged(f"the log ends at {number}, it begins after {edges.previous.number}")
            intent = next((found for segment in opened if (found := segment.intent_after(number))), None)
            for segment in opened:
                if segment.last() is not None:
                    self._count(segment, number)
                    break
        chain.last, chain.cut = last and last.checkpoint, cut and cut.checkpoint
        chain.tables, chain.cut_tables = self._segment.states(number), self._segment.states(chain.cut_mark.number)
        return LogState(chain.last, chain.cut, intent, chain.tables)

    def _count(self, segment: Segment, last: int) -> None:
        """The ends, from the checkpoint of this segment that listed them last; a segment's first one does. Its records and those of
        later checkpoints must be what these say."""
        first = max(segment.edges().first, last // LISTED_EVERY * LISTED_EVERY)
        for number in range(first, last + 1):
            stored, _ = segment.look(number)
            if stored is None:
                raise segment.damaged(f"checkpoint {number} is missing")
            segment.verify(stored)
            try:
                if number == first:
                    self._chain.ends = dict(stored.checkpoint.ends or {})
                else:
                    self._chain.count(stored.checkpoint)
            except ValueError as error:
                raise segment.damaged(str(error)) from error

    # -------------------------------------------------------------------------------------------------------------- write
    def intend(self, intent: Intent) -> None:
        """See `Log.intend`."""
        with self._changing(), self._segment.transaction(self._id):
            self._segment.add_intent(self._chain.mark.number, intent)

    def append(self, batch: Batch, draft: Draft) -> Checkpoint:
        """See `Log.append`. What is wrong with the batch itself is raised before anything is written."""
        frames = self._frames(batch)
        self._check_room(sum(len(frame.body) for _, frame in frames))
        self._check_current()
        with self._changing():
            if self._segment.size_bytes() >= self._limits.segment and self._chain.mark.number >= self._first:
                self._roll()
            chain = self._chain
            checkpoint = chain.make(self._id, batch, draft, self._fresh or chain.mark.number + 1 == self._first)
            counted = Counter[TableId]()
            for table, frame in frames:
                counted[table] += frame.size
            assert counted == checkpoint.rows
            placed = [(table_text(table), checkpoint.spans[table][0].begin, frame) for table, frame in frames]
            with self._segment.transaction(self._id):
                self._segment.add(checkpoint, self._next_frame, placed, chain.changes(checkpoint))
            self._check_current()
            self._next_frame += len(frames)
            chain.follow(checkpoint)
            self._fresh = False
        return checkpoint

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Void, until the change is known to be durable."""
        assert not self._void, "a writer whose last change failed must not be used again: open_writer"
        self._void = True
        yield
        self._void = False

    def _frames(self, batch: Batch) -> list[tuple[TableId, Frame]]:
        frames = []
        for table, records in batch.items():
            if not records.values:
                continue
            try:
                frames += [(table, frame) for frame in pack(records, self._limits.frame, self._limits.record)]
            except RecordTooLargeError as error:
                key = records.keys[error.index]
                named = "without a key" if key is None else f"with the framed key {key[:256].hex()}"
                detail = f"a record {named} has {error.size_bytes} bytes; {self._limits.record} are allowed"
                raise CdcError("CDC-LOG-401", detail, where=str(table)) from error
        return frames

    def _check_current(self) -> None:
        """A file that has lost its name, to a copy of the folder for one, goes on taking writes that nobody will ever read."""
        if not self._segment.is_current():
            detail = "the segment that is being written has left the folder"
            raise CdcError("CDC-LOG-109", detail, where=str(self._segment.path))

    def _check_room(self, size_bytes: int) -> None:
        free_bytes = self._folder.free_bytes()
        # What is appended is on disk twice until SQLite has moved it from its write-ahead log into the file.
        if free_bytes - 2 * size_bytes < self._limits.free:
            detail = f"{free_bytes} bytes are free, {self._limits.free} must stay so, {size_bytes} are to be written"
            raise Unavailable("CDC-LOG-301", detail, where=str(self._folder.path))

    def _roll(self) -> None:
        """Seal the segment and go on in a new one, which exists before anything refers to it."""
        number = self._chain.mark.number + 1
        path = self._folder.segment(number)
        with self._segment.transaction(self._id):
            states = self._segment.carried(self._chain.cut_mark.number)
            if not create_segment(path, self._chain.log_id, number, self._chain.mark, self._id, states):
                raise self._segment.damaged(f"{path.name} exists already")
            self._segment.seal(number)
        following = Segment(path, self._chain.log_id)
        sealed, self._segment, self._first, self._next_frame = self._segment, following, number, 1
        with closing(sealed):
            sealed.fold()

    def retain(self, marks: Mapping[str, Mark]) -> None:
        """Unlink segments that no reader needs, up to the one that holds the last cut. Without a known reader, none.

        A hint that names no checkpoint of this log counts as one that needs everything.
        """
        keep = min((self._needed(mark) for mark in marks.values()), default=-1)
        cut = self._chain.cut_mark.number
        firsts = self._folder.firsts()
        gone = [first for first, following in pairwise(firsts) if following - 1 <= keep and following <= cut]
        for first in gone:
            remove_file(self._folder.segment(first))
        if gone:
            sync_folder(self._folder.segments)

    def _needed(self, mark: Mark) -> int:
        try:
            open_at(self._folder, self._chain.log_id, mark).close()
        except CdcError:
            return -1
        return mark.number
