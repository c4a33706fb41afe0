"""Time by stage: capture, then apply, of one backlog inside this process, with clocks around the calls of each stage.

A clock counts its own stage only: what an inner one takes is not the outer one's. Encoding happens inside the loop that receives,
row by row, where a clock would cost more than the row; it is measured beside it, on the same rows, and taken off.
"""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks import codec, rig
from benchmarks.rig import Figure, Rig
from cdc.capture import capture
from cdc.log import Checkpoint
from cdc.log.embedded import EmbeddedLog
from cdc.log.segment import Segment
from cdc.log.writer import Writer
from cdc.postgres.source import PostgresSource
from cdc.postgres.stream import Stream
from cdc.records import Batch
from sinks.apply import apply
from sinks.changes import Changes
from sinks.postgres.plan import Plan
from sinks.postgres.session import Session
from sinks.postgres.sink import PostgresSink


class Clocks:
    """Seconds by stage, of `time.perf_counter`, each without those of the stages that it called."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + took - self._inner.pop()
            self._inner[-1] += took

    @contextmanager
    def around(self, owner: type, method: str, name: Callable[[tuple[Any, ...]], str] | str) -> Iterator[None]:
        """Count the calls of a method as a stage, for the time being."""
        real = getattr(owner, method)

        def counted(*args: Any, **more: Any) -> Any:
            with self.stage(name if isinstance(name, str) else name(args)):
                return real(*args, **more)

        setattr(owner, method, counted)
        try:
            yield
        finally:
            setattr(owner, method, real)

    @contextmanager
    def around_blocks(self, owner: type, method: str, name: str) -> Iterator[None]:
        """The same for a method that gives its results one by one."""
        real = getattr(owner, method)

        def counted(*args: Any, **more: Any) -> Iterator[Any]:
            blocks = real(*args, **more)
            while True:
                with self.stage(name):
                    block = next(blocks, None)
                if block is None:
                    return
                yield block

        setattr(owner, method, counted)
        try:
            yield
        finally:
            setattr(owner, method, real)


def stages(on: Rig, args: Namespace) -> list[Figure]:
    """µs per row of each stage, beside what the same takes at its simplest."""
    rows = args.rows // 2
    clocks, (encode, bare, row_bytes) = Clocks(), encoding()
    with on.database("stages") as (source, target):
        with EmbeddedLog(on.folder / "stages.log") as log:
            rig.insert(source, 0, rows)
            captured(source, log, rows)
            applied(target, log)
            rig.update(source, 0, rows)
            with ExitStack() as stack:
                stack.enter_context(clocks.around(PostgresSource, "poll", "receive"))
                stack.enter_context(clocks.around(Stream, "wait", "wait for the source"))
                stack.enter_context(clocks.around(Writer, "_frames", "append: frames"))
                stack.enter_context(clocks.around(EmbeddedLog, "append", "append: SQLite, synced"))
                captured(source, log, rows)
            rig.second_table(target)
            rig.tidied(target)
            with ExitStack() as stack:
                stack.enter_context(clocks.around(Segment, "look", "read"))
                stack.enter_context(clocks.around(Segment, "batch", "read"))
                stack.enter_context(clocks.around(Changes, "add", "collapse"))
                stack.enter_context(clocks.around_blocks(Plan, "lines", "decode"))
                stack.enter_context(clocks.around(Session, "copy", "COPY, less decoding"))
                stack.enter_context(clocks.around(Session, "execute", _statement))
                stack.enter_context(clocks.around(Session, "commit", "commit"))
                applied(target, log)
        written = bare_file(on.folder / "bare", rows, row_bytes)
        copied, upserted, committed = rig.plainly_merged(source, target)
    us = {name: seconds / rows * 1e6 for name, seconds in clocks.seconds.items()}
    us = {"encode": encode, **us, "receive": us["receive"] - encode}
    limits = {
        "encode": ("fastavro's bare row", bare),
        "append: SQLite, synced": ("the bytes in a file, synced", written / rows * 1e6),
        "COPY, less decoding": ("COPY from memory", copied / rows * 1e6),
        "merge": ("the same statement", upserted / rows * 1e6),
        "commit": ("one COMMIT", committed / rows * 1e6),
    }
    order = ["wait for the source", "receive", "encode", "append: frames", "append: SQLite, synced"]
    order += ["read", "collapse", "decode", "COPY, less decoding", "merge", "other statements", "commit"]
    return [Figure("stages", name, [us.get(name, 0.0)], "µs/row", limit=limits.get(name)) for name in order]


def _statement(args: tuple[Any, ...]) -> str:
    return "merge" if "ON CONFLICT (" in args[1] and "bench" in args[1] else "other statements"


def captured(source: str, log: EmbeddedLog, rows: int) -> None:
    """Capture until the log has this many records more, up to a cut, and nothing loads."""
    seen, settled = 0, False

    def observe(checkpoint: Checkpoint, _batch: Batch) -> None:
        nonlocal seen, settled
        seen += rig.rows_of(checkpoint)
        settled = checkpoint.cut and not checkpoint.position.load["loading"]

    with closing(PostgresSource(source, pipeline="stages", register=log.register)) as origin:
        capture(origin, log, lambda: seen >= rows and settled, observe=observe)


def applied(target: str, log: EmbeddedLog) -> None:
    """Apply until the sink has taken the log's end."""
    last, at = log.last_checkpoint(), -1
    assert last is not None

    def observe(checkpoint: Checkpoint, _rows: int) -> None:
        nonlocal at
        at = checkpoint.number

    with closing(PostgresSink("main", target, pipeline="stages", schemas=log.schema)) as sink:
        apply(sink, log, lambda: at >= last.number, observe=observe)


def encoding() -> tuple[float, float, int]:
    """µs per row of the codec and of fastavro's bare writer, and the bytes of a record."""
    made = [codec.fields(i) for i in range(500_000, 520_000)]
    found = codec.best({"ours": codec.stream(made).run, "bare": codec.bare_writer(made).run}, len(made))
    records = codec.streamed(made[:100])
    return found["ours"], found["bare"], sum(map(len, records.values)) // 100 + len(records.keys[0] or b"")


def bare_file(path: Path, rows: int, row_bytes: int) -> float:
    """Seconds to write that many rows' bytes to a file, synced after each batch."""
    block = os.urandom(rig.BATCH_ROWS * row_bytes)
    with path.open("wb", buffering=0) as file:
        began = time.perf_counter()
        for _ in range(rows // rig.BATCH_ROWS):
            file.write(block)
            os.fdatasync(file.fileno())
        return time.perf_counter() - began
