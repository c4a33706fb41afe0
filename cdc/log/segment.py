"""One segment of the embedded log: a SQLite file with frames, checkpoints, intents, the fence and the way to the next segment.

One invariant: what a segment holds is only ever added to, and a sealed segment never changes. Every read is a statement that is
finished before its result is used, so no read transaction outlives a call (an open one would let the write-ahead log grow).
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from cdc.errors import CdcError, Superseded
from cdc.log import Checkpoint, Intent, Mark, Span, TableState
from cdc.log.checkpoint import decode, encode, table_id, table_text
from cdc.log.database import PAGE_BYTES, create_file, open_file, sqlite_errors
from cdc.log.frames import Frame, unpack
from cdc.records import Batch, Records
from cdc.table import TableId

_TABLES = (
    "CREATE TABLE segment (first INTEGER, previous_number INTEGER, previous_id TEXT, next INTEGER)",
    "CREATE TABLE fence (writer TEXT)",
    "CREATE TABLE checkpoints (number INTEGER PRIMARY KEY, id TEXT, cut INTEGER, frames_begin INTEGER, frames_end INTEGER,"
    " crc INTEGER, body TEXT)",
    # `body` comes last: to look at the other columns SQLite does not follow a large row's overflow pages.
    "CREATE TABLE frames (id INTEGER PRIMARY KEY, partition TEXT, begin INTEGER, count INTEGER, crc INTEGER, body BLOB)",
    # One row each time that a checkpoint says something anew of a table; a new segment starts with those that still count.
    "CREATE TABLE states (partition TEXT, checkpoint INTEGER, generation INTEGER, keyless INTEGER, facts TEXT, begun INTEGER,"
    " loaded INTEGER, PRIMARY KEY (partition, checkpoint)) WITHOUT ROWID",
    "CREATE TABLE intents (id INTEGER PRIMARY KEY, after INTEGER, epoch INTEGER, details TEXT)",
)
_ADD_STATE = "INSERT INTO states VALUES (?, ?, ?, ?, ?, ?, ?)"
# SQLite takes the other columns from the row with the maximum.
_STATES = (
    "SELECT partition, max(checkpoint), generation, keyless, facts, begun, loaded FROM states"
    " WHERE checkpoint <= ? GROUP BY partition"
)

Row = tuple[object, ...]


class Stored(NamedTuple):
    """A checkpoint and where its frames are."""

    checkpoint: Checkpoint
    frames_begin: int
    frames_end: int


class Edges(NamedTuple):
    """Where a segment stands in the log. `previous` physically precedes `first`; `next` is None until it is sealed."""

    first: int
    previous: Mark
    next: int | None


def create_segment(
    path: Path, log_id: str, first: int, previous: Mark, writer: str, states: Sequence[Row] = ()
) -> bool:
    """Make an empty segment that goes on with the `states` of the one before. False when it exists already."""

    def fill(connection: sqlite3.Connection) -> None:
        for table in _TABLES:
            connection.execute(table)
        connection.execute("INSERT INTO segment VALUES (?, ?, ?, NULL)", (first, *previous))
        connection.execute("INSERT INTO fence VALUES (?)", (writer,))
        connection.executemany(_ADD_STATE, states)

    return create_file(path, "segment", log_id, fill)


class Segment:
    """An open segment. Raises coded errors; CDC-LOG-105 when contents contradict each other."""

    def __init__(self, path: Path, log_id: str | None) -> None:
        self.path = path
        self._connection = open_file(path, "segment", log_id)
        self._identity = os.stat(path)  # noqa: PTH116 (stat opens nothing)

    def close(self) -> None:
        with sqlite_errors(self.path):
            self._connection.close()

    def __enter__(self) -> Segment:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def is_current(self) -> bool:
        """Whether the file that is open is still the one that has its name."""
        try:
            return os.path.samestat(self._identity, self.path.stat())
        except OSError:
            return False

    def _rows(self, sql: str, *values: object) -> list[Row]:
        with sqlite_errors(self.path):
            return self._connection.execute(sql, values).fetchall()

    def damaged(self, detail: str) -> CdcError:
        return CdcError("CDC-LOG-105", detail, where=str(self.path))

    # ------------------------------------------------------------------------------------------------------------ reading
    def log_id(self) -> str:
        return str(self._rows("SELECT id FROM log")[0][0])

    def edges(self) -> Edges:
        rows = self._rows("SELECT first, previous_number, previous_id, next FROM segment")
        match rows:
            case [(int(first), int(number), str(identity), int() | None as following)]:
                return Edges(first, Mark(number, identity), following)
        raise self.damaged("its first page contradicts itself")

    def id_of(self, number: int) -> str | None:
        rows = self._rows("SELECT id FROM checkpoints WHERE number = ?", number)
        return str(rows[0][0]) if rows else None

    def look(self, number: int) -> tuple[Stored | None, int | None]:
        """Checkpoint `number`, if it is here, and `next`; both as of one instant."""
        [(following, *row)] = self._rows(
            "SELECT s.next, c.frames_begin, c.frames_end, c.crc, c.body"
            " FROM segment s LEFT JOIN checkpoints c ON c.number = ?",
            number,
        )
        match following, row:
            case int() | None, [int(begin), int(end), int(crc), str(body)]:
                return self._stored(number, begin, end, crc, body), following
            case int() | None, [None, None, None, None]:
                return None, following
        raise self.damaged(f"checkpoint {number} has a wrong form")

    def _stored(self, number: int, begin: int, end: int, crc: int, body: str) -> Stored:
        try:
            checkpoint = decode(body)
        except ValueError as error:
            raise self.damaged(f"checkpoint {number} cannot be read") from error
        if zlib.crc32(body.encode()) != crc or checkpoint.number != number:
            raise self.damaged(f"checkpoint {number} does not have its checksum")
        return Stored(checkpoint, begin, end)

    def last(self) -> Stored | None:
        """The newest checkpoint of this segment."""
        return self._newest("SELECT max(number) FROM checkpoints")

    def last_cut(self) -> Stored | None:
        return self._newest("SELECT number FROM checkpoints WHERE cut ORDER BY number DESC LIMIT 1")

    def _newest(self, sql: str) -> Stored | None:
        match self._rows(sql):
            case [(int(number),)]:
                return self.look(number)[0]
        return None

    def intent_after(self, number: int) -> Intent | None:
        """The newest intent that was written while checkpoint `number` was the last one."""
        match self._rows("SELECT epoch, details FROM intents WHERE after = ? ORDER BY id DESC LIMIT 1", number):
            case [(int(epoch), str(details))]:
                return Intent(epoch, json.loads(details))
        return None

    def states(self, number: int) -> dict[TableId, TableState]:
        """The state of every table that has begun, as of checkpoint `number`, which is the last cut or later."""
        found = {}
        for row in self._rows(_STATES, number):
            match row:
                case [str(text), _, int(generation), int(keyless), str(facts), int(begun), int() | None as loaded]:
                    state = TableState(generation, bool(keyless), json.loads(facts), begun, loaded)
                    found[table_id(text)] = state
                case _:
                    raise self.damaged("the state of a table has a wrong form")
        return found

    def bytes_after(self, number: int) -> int:
        """The size of the frames of this segment's checkpoints behind `number`. Their bodies are not read."""
        begin = "coalesce((SELECT max(frames_end) FROM checkpoints WHERE number <= ?), 0)"
        match self._rows(f"SELECT coalesce(sum(length(body)), 0) FROM frames WHERE id >= {begin}", number):
            case [(int(size_bytes),)]:
                return size_bytes
        return 0

    def next_frame(self) -> int:
        """The id that the next frame will have."""
        match self._rows("SELECT max(id) FROM frames"):
            case [(int(frame),)]:
                return frame + 1
        return 1

    def batch(self, stored: Stored, wanted: Callable[[TableId], bool]) -> Batch:
        """The records of the wanted tables, their number verified; frames of others are not read."""
        spans = {table: span for table, (span,) in stored.checkpoint.spans.items() if wanted(table)}
        if not spans:
            return {}
        frames: dict[TableId, list[int]] = {table: [] for table in spans}
        for frame, text in self._rows(
            "SELECT id, partition FROM frames WHERE id >= ? AND id < ?", stored.frames_begin, stored.frames_end
        ):
            if isinstance(frame, int) and (ids := frames.get(table_id(str(text)))) is not None:
                ids.append(frame)
        return {table: self._records(stored, table, span, frames[table]) for table, span in spans.items()}

    def _records(self, stored: Stored, table: TableId, span: Span, frames: list[int]) -> Records:
        records, where = Records(), f"checkpoint {stored.checkpoint.number}, {table}"
        for frame in frames:
            match self._rows("SELECT begin, count, crc, body FROM frames WHERE id = ?", frame):
                case [(int(begin), int(count), int(crc), bytes(body))] if begin == span.begin + len(records):
                    try:
                        unpack(body, count, crc, records)
                    except ValueError as error:
                        raise self.damaged(f"{where}: {error}") from error
                case _:
                    raise self.damaged(f"{where}: a frame is missing before {span.begin + len(records)}")
        if len(records) != span.count:
            raise self.damaged(f"{where}: {len(records)} records, not {span.count}")
        return records

    def verify(self, stored: Stored) -> None:
        """That a checkpoint's frames are what it says, without reading them."""
        found: dict[str, list[int]] = {}
        for text, begin, count in self._rows(
            "SELECT partition, begin, count FROM frames WHERE id >= ? AND id < ? ORDER BY id",
            stored.frames_begin,
            stored.frames_end,
        ):
            assert isinstance(begin, int)
            assert isinstance(count, int)
            span = found.setdefault(str(text), [begin, begin])
            span[1] += count
        expected = {table_text(table): [span.begin, span.end] for table, (span,) in stored.checkpoint.spans.items()}
        if found != expected:
            raise self.damaged(f"checkpoint {stored.checkpoint.number}: its ranges are not those of its records")

    # ------------------------------------------------------------------------------------------------------------ writing
    @contextmanager
    def transaction(self, writer: str | None) -> Iterator[None]:
        """A durable write transaction, all or nothing. Raises Superseded when the fence does not name `writer` (None: no check)."""
        with sqlite_errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                if writer is not None:
                    self._check_fence(writer)
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite has rolled back by itself after some errors
                    self._connection.execute("ROLLBACK")
                raise

    def _check_fence(self, writer: str) -> None:
        [(found,)] = self._connection.execute("SELECT writer FROM fence").fetchall()
        if found != writer:
            raise Superseded("CDC-LOG-202", f"writer {found} has taken over from {writer}", where=str(self.path))

    def fence(self, writer: str) -> int | None:
        """Make `writer` the only one, durably, and with it all that was committed before; `next` when it is sealed already."""
        with self.transaction(None):
            self._connection.execute("UPDATE fence SET writer = ?", (writer,))
            following = self._connection.execute("SELECT next FROM segment").fetchall()[0][0]
        return None if following is None else int(following)

    def add(
        self,
        checkpoint: Checkpoint,
        frames_begin: int,
        frames: list[tuple[str, int, Frame]],
        changes: Mapping[TableId, TableState],
    ) -> None:
        """Inside `transaction`: frames (partition, begin of the span, frame), their checkpoint, and the states that it changes."""
        body, number = encode(checkpoint), checkpoint.number
        if checkpoint.previous.number != number - 1:  # B4: what abandoned checkpoints said of tables is void
            self._connection.execute("DELETE FROM states WHERE checkpoint > ?", (checkpoint.previous.number,))
        self._connection.executemany(
            _ADD_STATE,
            [
                (table_text(table), number, s.generation, int(s.keyless), json.dumps(s.facts), s.begun, s.loaded)
                for table, s in changes.items()
            ],
        )
        self._connection.executemany(
            "INSERT INTO frames VALUES (?, ?, ?, ?, ?, ?)",
            (
                (frames_begin + i, text, begin + frame.offset, frame.size, frame.crc, frame.body)
                for i, (text, begin, frame) in enumerate(frames)
            ),
        )
        self._connection.execute(
            "INSERT INTO checkpoints VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                number,
                checkpoint.id,
                int(checkpoint.cut),
                frames_begin,
                frames_begin + len(frames),
                zlib.crc32(body.encode()),
                body,
            ),
        )

    def add_intent(self, after: int, intent: Intent) -> None:
        """Inside `transaction`."""
        self._connection.execute(
            "INSERT INTO intents (after, epoch, details) VALUES (?, ?, ?)",
            (after, intent.epoch, json.dumps(intent.details)),
        )

    def carried(self, cut: int) -> list[Row]:
        """Inside `transaction`: the rows that `states` needs from now on, the last cut being `cut`."""
        rows = self._connection.execute(_STATES, (cut,)).fetchall()
        return rows + self._connection.execute("SELECT * FROM states WHERE checkpoint > ?", (cut,)).fetchall()

    def seal(self, following: int) -> None:
        """Inside `transaction`."""
        self._connection.execute("UPDATE segment SET next = ?", (following,))

    def size_bytes(self) -> int:
        [(pages,)] = self._rows("PRAGMA page_count")
        assert isinstance(pages, int)
        return pages * PAGE_BYTES

    def fold(self) -> None:
        """Move everything from the write-ahead log into the file. A reader in the way leaves it for later: no error."""
        self._rows("PRAGMA wal_checkpoint(TRUNCATE)")
