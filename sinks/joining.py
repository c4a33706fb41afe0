"""Where a sink begins that has no bookmark yet (protocol B5): in the log, at its tables' last whole loads, and never at the source.

The invariant: the place is the log's own beginning or a cut, which no later epoch abandons (B4), and every table whose load begins
behind it is there whole. A table whose load's begin retention has taken away is named, so that only that one is loaded anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

from cdc.log import Checkpoint, Log, Mark, Surveyor
from cdc.table import TableId
from sinks.sink import Start

_STEP = 64  # checkpoints to look at for a cut at first; cuts are frequent


def start(log: Log, name: str, wants: Callable[[TableId], bool]) -> Start:
    """The start of a new sink of this name. Retention waits for it from here on."""
    log.report(name, Mark(-1, log.id))
    with log.look() as surveyor:
        survey = surveyor.survey()
        if survey.last is None:
            return Start(Mark(-1, log.id))
        begins = {
            table: state.begun if state.loaded is None else state.loaded
            for table, state in survey.tables.items()
            if wants(table)
        }
        floor = _floor(log, surveyor)
        there = {table: number for table, number in begins.items() if number > floor.number}
        least = min(there.values(), default=survey.last.number + 1)
        missing = tuple(sorted(begins.keys() - there.keys()))
        return Start(cut_before(log, surveyor, least) or floor, there, missing)


def checkpoints(log: Log, after: Mark) -> Iterator[Checkpoint]:
    """Those that are in the log now, without records."""
    with closing(log.read(after, lambda _table: False, 0)) as items:
        for item in items:
            if item is None:
                return
            yield item[0]


def cut_before(log: Log, surveyor: Surveyor, number: int) -> Mark | None:
    """The last cut before checkpoint `number`; None when there is none in what is left of the log."""
    step = _STEP
    while True:
        after = surveyor.mark_before(max(0, number - step))
        found = None
        for checkpoint in checkpoints(log, after):
            if checkpoint.number >= number:
                break
            found = checkpoint.mark if checkpoint.cut else found
        if found is not None or after.number < 0 or after.number >= number - step:
            return found
        step *= 8


def _floor(log: Log, surveyor: Surveyor) -> Mark:
    """The first place that can be read on from: the log's beginning or, where retention has taken that away, the first cut left."""
    after = surveyor.mark_before(0)
    if after.number < 0:
        return after
    return next((checkpoint.mark for checkpoint in checkpoints(log, after) if checkpoint.cut), after)
