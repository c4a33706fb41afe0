"""What a seed did, in lines: for `--trace`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cdc.log import Checkpoint
from cdc.records import Batch
from tests.simulation.rows import Row, decode

if TYPE_CHECKING:
    from tests.simulation.target import Content

Say = Callable[..., None]


def appended(say: Say, checkpoint: Checkpoint, batch: Batch) -> None:
    stream, load = checkpoint.position.stream, checkpoint.position.load
    place = f"{stream['epoch']}: {stream['place']}.{stream['ordinal']}"
    say("append", checkpoint.number, "cut" * checkpoint.cut, place, "unseen", *stream["unseen"])
    for begun in checkpoint.begun:
        say("    begun", begun.table.name, begun.generation)
    for table, records in batch.items():
        for value in records.values:
            event = decode(value)
            key = "" if event.key is None else event.key
            moved = "" if event.moved is None else f"moved {event.moved}"
            say("   ", table.name, event.op, key, _plain(event.row), moved)
    for table in checkpoint.finished:
        say("    finished", table.name)
    say("   ", *(f"{part}={value}" for part, value in load.items() if value))


def committed(say: Say, content: Content, cut: Checkpoint) -> None:
    say("commit", cut.number)
    for table, rows in content.rows.items():
        loading = f"loading, wrote {sorted(content.written[table])}" if table in content.written else ""
        say("   ", table.name, loading, *(f"{key}: {_plain(row)}" for key, row in sorted(rows.items())))


def _plain(row: object) -> object:
    return tuple(row) if isinstance(row, Row) else "" if row is None else row
