"""The embedded log: a folder of SQLite files on a local disk, one writing process, any number of reading ones (protocol A7).

Durable means written and synced (`synchronous=FULL`) when the call returns; kill -9 at any moment leaves the log as it was after
some call, never between two. Only SQLite ever opens the files: see `cdc.log.database`. Not for use across a fork.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path

from cdc.errors import CdcError
from cdc.log import Checkpoint, Draft, Intent, Json, LogState, Mark, Signal
from cdc.log.folder import Folder, WriterLock
from cdc.log.reader import Reader
from cdc.log.segment import Segment, create_segment
from cdc.log.side_files import Hints, Schemas, Signals
from cdc.log.survey import FolderSurveyor
from cdc.log.writer import Limits, Writer
from cdc.records import Batch
from cdc.registry import Registrar
from cdc.table import TableId

SEGMENT_BYTES = 256 << 20
FRAME_BYTES = 64 << 20
RECORD_BYTES_MAX = 256 << 20
FREE_BYTES_MIN = 256 << 20
FOREVER, APPLIED = "forever", "applied"  # retention
NOBODY = ""  # stands in the fence of a log that no writer has opened yet


class EmbeddedLog:
    """See `cdc.log.Log`. One instance per process and role; reading and writing need not be the same instance.

    `retention`: `forever`, or `applied`: segments go once every reader that has reported is past them. `free_bytes_min` of the disk
    stay free. With `create` a log is made where none is; without it that is CDC-LOG-101. With a `registry` schemas get their ids from
    there; the log stores them all the same, and closes it.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        frame_bytes: int = FRAME_BYTES,
        record_bytes_max: int = RECORD_BYTES_MAX,
        free_bytes_min: int = FREE_BYTES_MIN,
        retention: str = FOREVER,
        create: bool = True,
        registry: Registrar | None = None,
    ) -> None:
        assert retention in (FOREVER, APPLIED), retention
        self._folder = Folder(Path(folder))
        self._limits = Limits(segment_bytes, frame_bytes, record_bytes_max, free_bytes_min)
        self._retention, self._registry = retention, registry
        if not self._folder.exists():
            if not create:
                raise CdcError("CDC-LOG-101", "nothing is there", where=str(self._folder.path))
            self._folder.create(lambda path, log_id: create_segment(path, log_id, 0, Mark(-1, log_id), NOBODY))
        with Segment(self._folder.segment(self._folder.firsts()[-1]), None) as segment:
            self.id = segment.log_id()
        self._lock = WriterLock(self._folder)
        self._writer: Writer | None = None
        self._readers: set[Reader] = set()
        self._schemas = Schemas(self._folder.path, self.id)
        self._signals = Signals(self._folder.path, self.id)
        self._hints = Hints(self._folder.path, self.id)

    def __enter__(self) -> EmbeddedLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pipeline(self) -> str | None:
        """The pipeline whose tables it holds, by the names of its topics; None before the first table."""
        return next((topic.partition(".")[0] for topic in self._schemas.topics()), None)

    def open_writer(self) -> LogState:
        """See `Log.open_writer`. Raises CDC-LOG-201, at once, while another process or instance is the writer."""
        self._close_writer()
        self._lock.acquire()
        self._writer = Writer(self._folder, self.id, self._limits)
        return self._writer.state

    def _writing(self) -> Writer:
        assert self._writer is not None, "open_writer comes first"
        return self._writer

    def intend(self, intent: Intent) -> None:
        self._writing().intend(intent)

    def append(self, batch: Batch, draft: Draft) -> Checkpoint:
        """See `Log.append`. After an error other than CDC-LOG-301 and CDC-LOG-401, whether the batch is in the log is known only to
        `open_writer`, which must come next."""
        return self._writing().append(batch, draft)

    def read(
        self, after: Mark, tables: Callable[[TableId], bool], idle_s: float
    ) -> Generator[tuple[Checkpoint, Batch] | None, None, None]:
        reader = Reader(self._folder, self.id)
        self._readers.add(reader)
        try:
            yield from reader.read(after, tables, idle_s)
        finally:
            self._readers.discard(reader)

    def last_checkpoint(self) -> Checkpoint | None:
        for first in reversed(self._folder.firsts()):
            with Segment(self._folder.segment(first), self.id) as segment:
                if (stored := segment.last()) is not None:
                    return stored.checkpoint
        return None

    def register(self, subject: str, schema: Json) -> int:
        given = self._registry.register(subject, schema) if self._registry else None
        return self._schemas.register(subject, schema, given)

    def schema(self, schema_id: int) -> Json:
        return self._schemas.schema(schema_id)

    def subjects(self) -> Mapping[str, Sequence[int]]:
        return self._schemas.subjects()

    def look(self) -> FolderSurveyor:
        return FolderSurveyor(self._folder.path)

    def signal(self, kind: str, details: Json) -> int:
        return self._signals.add(kind, details)

    def signals(self, after: int) -> list[Signal]:
        return self._signals.after(after)

    def report(self, reader: str, mark: Mark) -> None:
        self._hints.put(reader, mark)

    def expect(self, readers: Iterable[str]) -> None:
        """Retention waits for these readers, too, though they may not have reported yet: sinks that are yet to start (A9)."""
        self._hints.expect(readers, Mark(-1, self.id))

    def forget(self, reader: str) -> None:
        """Retention need not wait for this reader any more: its sink was dropped."""
        self._hints.remove(reader)

    def retain(self) -> None:
        if self._retention == APPLIED:
            self._writing().retain(self._hints.marks())

    def status(self) -> Mapping[str, Json]:
        """`size_bytes` and `free_bytes` on disk, numbers of the `first` and `last` checkpoint (None without one), `segments`."""
        firsts, last = self._folder.firsts(), self.last_checkpoint()
        return {
            "size_bytes": self._folder.size_bytes(),
            "free_bytes": self._folder.free_bytes(),
            "first": firsts[0] if last else None,
            "last": last.number if last else None,
            "segments": len(firsts),
        }

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def close(self) -> None:
        """Close everything, readings included, and let another writer in. May be called twice."""
        for reader in list(self._readers):
            reader.close()
        self._close_writer()
        for file in (self._schemas, self._signals, self._hints):
            file.close()
        if self._registry is not None:
            self._registry.close()
        self._lock.release()
