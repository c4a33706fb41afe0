"""A log with events of our making in it, for tests of what reads one: no capture and no source is needed.

written = Written(folder)
written.load("public.a", 1, 1, 2)         # a load of generation 1 with the rows 1 and 2: two checkpoints
written.write(written.table("public.a").c(id=3, v="new"))
"""

from __future__ import annotations

from pathlib import Path

from cdc.log import Begun, Checkpoint, Draft, Mark
from cdc.log.embedded import FOREVER, EmbeddedLog
from cdc.position import Position
from cdc.postgres.position import lsn_text
from cdc.table import TableId
from tests.events import Event, Feed, Table, make_table


class Written:
    """A log with a writer of its own, a checkpoint per call."""

    def __init__(self, folder: Path, retention: str = FOREVER) -> None:
        self.log = EmbeddedLog(
            folder, segment_bytes=1, retention=retention
        )  # every checkpoint has a segment of its own
        self.log.open_writer()
        self.feed = Feed(log_id=self.log.id)
        self.schemas: dict[str, Table] = {}

    def table(self, name: str, *columns: str) -> Table:
        if name not in self.schemas or columns:
            made = make_table(name, *(columns or ("id int64 key", "v text")))
            if not made.schema.key:
                made.value_id = self.log.register(f"{name}-value", made.value_schema)
                self.schemas[name] = made
                return made
            made.value_id = self.log.register(f"{name}-value", made.value_schema)
            made.key_id = self.log.register(f"{name}-key", made.key_schema)
            self.schemas[name] = made
        return self.schemas[name]

    def write(
        self,
        *events: list[Event],
        begun: dict[str, int] | None = None,
        finished: tuple[str, ...] = (),
        cut: bool = True,
        continues: Mark | None = None,
    ) -> Checkpoint:
        flat = [event for group in events for event in group]
        _, batch = self.feed.checkpoint(flat)
        starts = tuple(
            Begun(TableId.parse(name), n, not self.table(name).schema.key) for name, n in (begun or {}).items()
        )
        # Events of the feed are written at 200 times their number.
        stream = {"lsn": lsn_text(self.feed.sequence * 200 + 100)}
        position = Position(1, self.feed.sequence, stream, {})
        draft = Draft(position, cut, starts, tuple(map(TableId.parse, finished)), continues=continues)
        return self.log.append(batch, draft)

    def load(self, name: str, generation: int, *ids: int) -> int:
        """A load of these rows; the number of the checkpoint in which it begins."""
        begun = self.write(begun={name: generation})
        self.write(*(self.table(name).r(id=i, v=f"{generation}") for i in ids), finished=(name,))
        return begun.number
