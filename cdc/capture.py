"""THE LOOP of capture: source → log (protocols B1, C1, C7, G).

    drain the stream, append it; when a round may start: read chunks, mark, append them; stream on until the mark comes back

The invariant: a batch and the position after it are one log transaction, and the source is told to forget nothing that is not
behind a cut in the durable log (R1). Control never goes back up; every failure ends this attempt, and `cdc.supervise` makes the
next one from the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cdc import failpoints
from cdc.errors import CdcError
from cdc.journal import journal
from cdc.load import Limits, Load
from cdc.log import Checkpoint, Draft, Intent, Log, LogState, Mark
from cdc.position import Position
from cdc.records import Batch
from cdc.source import Restructured, Run, Source, Unsettled
from cdc.table import TableId

_log = journal("cdc.capture")

Observe = Callable[[Checkpoint, Batch], None]

POLL_S = 1.0  # the longest wait for the stream: signals and a stop are seen within it
UNSETTLED_S = 0.1  # the same while a chunk waits for transactions to end


class Tail:
    """The end of the log as this capture writes it: the position after the last checkpoint, and the last cut's."""

    def __init__(self, log: Log, state: LogState, position: Position, load: Load, observe: Observe) -> None:
        self.log, self.load, self.position, self._observe = log, load, position, observe
        # B4: the new epoch continues the last cut; what lies between is thereby abandoned. That cut's position is of a history
        # that the source no longer has, so it is not what may be confirmed.
        new_epoch = state.last is not None and state.last.epoch != position.epoch
        self._continues: Mark | None = state.cut.mark if new_epoch and state.cut else None
        self.cut = position if new_epoch or not state.cut else state.cut.position

    def append(
        self,
        batch: Batch,
        *,
        stream: Any = None,
        sequence: int | None = None,
        commit_ms: tuple[int, int] | None = None,
        begun: Mapping[TableId, Any] | None = None,
        facts: Mapping[TableId, Any] | None = None,
    ) -> bool:
        """One log transaction: records, begun (with their facts) and finished loads, position. True when its end is a cut."""
        begins = tuple(self.load.begin(begun or {}))
        cut, finished, before = self.load.at_cut, self.load.finish(), self.position
        position = Position(
            before.epoch,
            before.sequence if sequence is None else sequence,
            before.stream if stream is None else stream,
            self.load.state(),
        )
        draft = Draft(position, cut, begins, finished, commit_ms, {**(facts or {}), **(begun or {})}, self._continues)
        batch = {table: records for table, records in batch.items() if records}
        failpoints.hit("capture.decoded")
        checkpoint = self.log.append(batch, draft)
        failpoints.hit("capture.appended")
        self.position, self._continues = position, None
        if cut:
            self.cut = position
        self._observe(checkpoint, batch)
        return cut


def capture(
    source: Source,
    log: Log,
    stop: Callable[[], bool],
    limits: Limits | None = None,
    observe: Observe = lambda _checkpoint, _batch: None,
    notice: Callable[[Run], None] | None = None,
) -> None:
    """Capture until `stop()`; returns with everything that was polled in the log. Raises what ends the attempt. `notice` is told of
    each run, by default in the journal."""
    notice = notice or say
    load, tail = resume(source, log, limits, observe)
    unsettled = False
    while not stop():
        run = source.poll(UNSETTLED_S if unsettled else 0 if load.ready or load.unmarked else POLL_S, load.filter)
        load.saw(run)
        notice(run)
        again = load.restarted()
        if (run.moved_on or run.facts or again) and tail.append(
            run.records,
            stream=run.stream,
            sequence=run.sequence,
            commit_ms=run.commit_ms,
            begun=again,
            facts=run.facts,
        ):
            source.confirm(tail.position.stream)
            failpoints.hit("capture.confirmed")
        if (due := load.due()) is not None:
            tail.append({}, begun=due)
        if load.at_cut:
            load.take(log.signals(load.signals))
        if tables := load.unmarked:
            load.asked(source.include(tables), source.mark())
        unsettled = load.ready and not load_round(source, load, tail)


def say(run: Run) -> None:
    """What was noticed at the source, and is healed by itself (D9)."""
    for table, reason in {**run.altered, **run.left}.items():
        _log.warning("changed without events: it is loaded anew", table=str(table), reason=reason)
    for table in run.found:
        _log.info("taken in", table=str(table))


def load_round(source: Source, load: Load, tail: Tail) -> bool:
    """C1: read chunks, make what they saw durable at the source, append them with nothing in between. False: none was to be had."""
    chunks = []
    for spec in load.next_round():
        if spec.table in load.left:
            continue
        chunk = source.read_chunk(spec, tail.position.stream)
        if isinstance(chunk, Unsettled):
            if chunk.only_this:
                continue
            break  # C2: stream on, and try again
        if isinstance(chunk, Restructured):
            load.restructured(spec.table, gone=chunk.gone)
            continue
        failpoints.hit("capture.chunk_read")
        chunks.append(chunk)
        if not load.read(chunk):
            break
    if not chunks:
        return False
    load.marked(source.mark())
    failpoints.hit("capture.marked")
    stream = source.seen(tail.position.stream)
    for chunk in chunks:
        for piece in chunk.pieces:
            load.wrote(chunk, piece)
            tail.append({chunk.spec.table: piece.records}, stream=stream, sequence=piece.sequence)
    return True


def resume(source: Source, log: Log, limits: Limits | None, observe: Observe) -> tuple[Load, Tail]:
    """Protocol G: open log and source where they stand, or make the first start, or the new epoch that was asked for."""
    state = log.open_writer()
    asked = _new_epoch(log, state)
    if state.last is None or asked:
        position, load = _start(source, log, state, asked, limits)
    else:
        position, load = state.last.position, Load(state.last.position.load, state.tables, limits)
    tail = Tail(log, state, position, load, observe)
    source.open(position.stream, tail.cut.stream, position.sequence, position.epoch)
    load.select(tables := source.tables())
    # In a new epoch no target's table is what the log says of it from here on.
    begun = {table: load.tables[table].facts for table in tables if table in load.tables} if asked else load.restarted()
    tail.append({}, begun=begun)  # our name stands in the log from here on (A3, R12)
    load.take(log.signals(load.signals))
    return load, tail


def _new_epoch(log: Log, state: LogState) -> int:
    """The number of the request for a new epoch that has not been served, or 0."""
    taken = state.last.position.load.get("signals", 0) if state.last else 0
    return max((signal.number for signal in log.signals(taken) if signal.kind == "new-epoch"), default=0)


def _start(source: Source, log: Log, state: LogState, asked: int, limits: Limits | None) -> tuple[Position, Load]:
    """Make a start position at the source, with the intent in the log first (C7)."""
    intent, epoch = state.intent, state.last.epoch + 1 if state.last else 0
    if intent is not None and intent.epoch != epoch:
        raise CdcError("CDC-LOG-120", f"the intent is for epoch {intent.epoch}, the log is at epoch {epoch - 1}")
    resumed = intent is not None
    if intent is None:
        intent = Intent(epoch, source.intent(epoch))
        log.intend(intent)
        failpoints.hit("capture.intent_written")
    stream = source.start(intent.details, resumed)
    load = Load(state.last.position.load if state.last else None, state.tables, limits)
    if state.last:
        load.new_epoch(asked)
    return Position(epoch, state.last.position.sequence if state.last else 0, stream, load.state()), load
