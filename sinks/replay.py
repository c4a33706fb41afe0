"""THE LOOP of a replay: the log again, into fresh tables beside the live ones, which are then exchanged or kept (DESIGN 8, B7).

    note the plan; apply from the last whole loads up to the horizon, or to where the live sink is; exchange, compare, commit

It is a sink like any other until the end, with a bookmark of its own, so a crash anywhere goes on from there. The invariant: the
live tables change in one transaction, from what the live sink had made of the log to what the log says, at a named checkpoint; the
live sink goes on from that checkpoint, so nothing is lost or doubled, whether it runs meanwhile or not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from cdc.errors import CdcError
from cdc.log import Checkpoint, Log, Mark
from cdc.table import TableId
from sinks import joining
from sinks.apply import Pace, Reading, follow
from sinks.horizon import Horizon, Moment, beyond_retention, find
from sinks.part import Part
from sinks.sink import Bookmark, Sink, Start

Json = Any
MEET_S = (
    10.0  # how long a live sink that is behind is waited for, so that both are at one checkpoint when they are compared
)
STILL_S = 3.0  # a bookmark that has not moved for so long belongs to no running sink
_LOOK_S = 0.1


def replay_name(sink: str) -> str:
    """The replaying sink's name in `_cdc` and among the log's readers. No name in a pipeline file has a colon."""
    return f"replay:{sink}"


class RebuildingSink(Sink, Protocol):
    """The sink that writes the fresh tables."""

    def unfinished(self) -> list[TableId]:
        """After `resume`: tables that this sink takes and that are not live."""


class Exchange(Protocol):
    """The live sink's bookmark, locked for as long as the exchange is open."""

    @property
    def live(self) -> Bookmark | None:
        """The live sink's bookmark."""

    def run(self, id: str, bookmark: Bookmark) -> Json:
        """Put the rebuilt rows, which are as of `bookmark`, in the place of the live ones, all or nothing, with what the live sink goes
        on from; remove the rebuilt tables. The result: per table rows and hash, those before, what was changed."""


class Rebuild(Protocol):
    """What a target supplies to a replay."""

    @property
    def sink(self) -> RebuildingSink:
        """Writes the fresh tables."""

    @property
    def into(self) -> str | None:
        """The schema to leave them in; None: they are exchanged with the live ones."""

    def found(self) -> tuple[str, str, Json] | None:
        """Id, log and plan of a replay that was begun and has not ended."""

    def begin(self, log_id: str, tables: list[TableId], plan: Json) -> str:
        """Note what is to be done; the replay's id. Raises CdcError when something is in the way."""

    def result(self, id: str) -> Json | None:
        """What a replay that has ended came to."""

    def live(self) -> Bookmark | None:
        """The live sink's bookmark, now."""

    def exchanging(self) -> AbstractContextManager[Exchange]:
        """Locks the live sink's bookmark."""

    def keep(self, id: str, bookmark: Bookmark) -> Json:
        """The rebuilt tables stay where they are. The result."""

    def discard(self) -> bool:
        """Remove what an unfinished replay left; False when there is none."""


class Plan(NamedTuple):
    """What was asked for, and what that means in this log."""

    tables: tuple[str, ...]
    to: str | None
    into: str | None
    start: Start
    horizon: Horizon | None

    def to_json(self) -> Json:
        begins = [[*table, number] for table, number in self.start.begins.items()]
        horizon = self.horizon and self.horizon.to_json()
        return {
            "tables": list(self.tables), "to": self.to, "into": self.into, "start": [*self.start.mark], "begins": begins,
            "horizon": horizon,
        }  # fmt: skip

    @classmethod
    def from_json(cls, data: Json) -> Plan:
        begins = {TableId(schema, name): number for schema, name, number in data["begins"]}
        horizon = None if data["horizon"] is None else Horizon.from_json(data["horizon"])
        start = Start(Mark(*data["start"]), begins)
        return cls(tuple(data["tables"]), data["to"], data["into"], start, horizon)

    def asks(self) -> str:
        """As it would be written."""
        words = [f"--to {self.to}"] * (self.to is not None) + [f"--into {self.into}"] * (self.into is not None)
        return " ".join([*words, *(f"--tables {text}" for text in self.tables)]) or "everything"


def plan(
    rebuild: Rebuild, log: Log, moment: Moment | None, tables: tuple[str, ...] = (), to: str | None = None
) -> tuple[str | None, Plan]:
    """The plan, and the id of the unfinished replay that it is of. Raises CDC-RPL-101 when that one was asked for otherwise, and what
    `find` raises."""
    if (found := rebuild.found()) is not None:
        id, log_id, data = found
        unfinished = Plan.from_json(data)
        if log_id != log.id or (unfinished.tables, unfinished.to, unfinished.into) != (tables, to, rebuild.into):
            raise CdcError("CDC-RPL-101", f"it was begun with {unfinished.asks()}", where=f"log {log_id}")
        return id, unfinished
    log.report(rebuild.sink.name, Mark(-1, log.id))
    if moment is not None:
        horizon, start = find(log, rebuild.sink.wants, moment)
        return None, Plan(tables, to, rebuild.into, start, horizon)
    start = joining.start(log, rebuild.sink.name, rebuild.sink.wants)
    if start.missing:
        # Retention waits for the load that is to come: it must be in the log when this is tried again.
        log.report(rebuild.sink.name, start.mark)
        raise beyond_retention(start.missing)
    if not start.begins:
        raise CdcError("CDC-RPL-104", "no table that was asked for has begun to load")
    return None, Plan(tables, to, rebuild.into, start._replace(missing=()), None)


@dataclass
class Replay:
    """One attempt. `note` is told what is being done, `observe` each commit."""

    rebuild: Rebuild
    log: Log
    id: str
    plan: Plan
    stop: Callable[[], bool]
    note: Callable[[str], None] = lambda _words: None
    observe: Callable[[Checkpoint, int], None] = lambda _checkpoint, _rows: None
    pace: Pace = field(default_factory=Pace)

    def run(self) -> Json | None:
        """The result; None when it was told to stop before. Raises what ends the attempt."""
        if (done := self.rebuild.result(self.id)) is not None:  # a COMMIT whose outcome was not known
            return done
        self.abandoned, self.committed = set[Mark](), -1
        self.bookmark = self.rebuild.sink.resume(self.log.id, lambda: self.plan.start)
        self.log.report(self.rebuild.sink.name, self.bookmark.mark)
        if self.plan.horizon is not None:
            self._follow(Part(self.log, self.plan.horizon), self.plan.horizon.last.number)
        else:
            self._to_the_end()
        if self.stop():
            return None
        result = self._keep() if self.rebuild.into is not None else self._exchange()
        if result is not None:
            self.log.forget(self.rebuild.sink.name)
        return result

    def _keep(self) -> Json:
        self.note("counting and hashing")
        return self.rebuild.keep(self.id, self.bookmark)

    def _observed(self, cut: Checkpoint, rows: int) -> None:
        self.committed = cut.number
        self.observe(cut, rows)

    def _follow(self, log: Reading, number: int, enough: Callable[[], bool] = lambda: True) -> None:
        """Apply until the bookmark has come to checkpoint `number`, and enough is done."""
        self.committed = self.bookmark.mark.number

        def done() -> bool:
            return self.stop() or (self.committed >= number and enough())

        while not done():
            self.bookmark = follow(
                self.rebuild.sink, log, self.bookmark, self.abandoned, done, self.pace, self._observed
            )
            self.committed = self.bookmark.mark.number

    def _to_the_end(self) -> None:
        """To the log's last cut, as it is when we come there, with no table loading."""
        while not self.stop():
            end = self._last_cut()
            if self.bookmark.mark.number >= end and not self.rebuild.sink.unfinished():
                return
            if self.bookmark.mark.number >= end:
                self.note(f"waiting for the load of {', '.join(map(str, self.rebuild.sink.unfinished()))}")
            self._follow(self.log, end, enough=lambda: not self.rebuild.sink.unfinished())

    def _last_cut(self) -> int:
        last = self.log.last_checkpoint()
        if last is None or last.cut:
            return last.number if last else -1
        with self.log.look() as surveyor:
            cut = joining.cut_before(self.log, surveyor, last.number + 1)
        return cut.number if cut else -1

    # --------------------------------------------------------------------------------------------------------- the exchange
    def _exchange(self) -> Json | None:
        """At the checkpoint where the live sink is, if it runs; else where this one is."""
        while not self.stop():
            self._meet()
            self.note("comparing and exchanging")
            with self.rebuild.exchanging() as exchange:
                live = exchange.live
                if live is None or live.log_id != self.log.id:
                    raise CdcError(
                        "CDC-TGT-111",
                        f"the bookmark of the live sink is of log {live and live.log_id}, this log is {self.log.id}",
                    )
                if live.mark.number > self.bookmark.mark.number:
                    self._follow(Part(self.log, Horizon(live.mark, live.mark)), live.mark.number)
                if self.stop():
                    return None
                if not self.rebuild.sink.unfinished():
                    return exchange.run(self.id, self.bookmark)
            self._to_the_end()  # a load began on the last stretch
        return None

    def _meet(self) -> None:
        """Wait for a live sink that runs and is a little behind."""
        give_up, before, moved = time.monotonic() + MEET_S, -2, time.monotonic()
        while not self.stop() and (now := time.monotonic()) < give_up and now - moved < STILL_S:
            live = self.rebuild.live()
            number = live.mark.number if live else -1
            if number >= self.bookmark.mark.number:
                return
            before, moved = number, moved if number == before else now
            time.sleep(_LOOK_S)
