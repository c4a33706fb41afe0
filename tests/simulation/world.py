"""One seed: a database that is written to, captures and sinks that come and go, faults, and what must hold.

The loops under test are plain functions, so everything else happens inside their calls of the fakes: each call is a `tick`, in
which transactions take steps, requests arrive, processes of the other role (rarely of the same: a zombie is what waits) run for
a while, and the caller may be killed. `check_target` compares target and source at every commit; `finish` demands that all ends.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from cdc.capture import capture
from cdc.errors import CdcError, Superseded, Unavailable
from cdc.load import Limits
from cdc.log import Checkpoint, Mark
from cdc.records import Batch
from cdc.source import Run
from cdc.table import TableId
from sinks.apply import Pace, apply, follow
from sinks.horizon import Number, find
from sinks.part import Part
from tests.simulation import trace
from tests.simulation.database import KEYS, Database, History
from tests.simulation.log import LOG_ID, FakeLog, Storage
from tests.simulation.rows import KEYED, KEYLESS, TABLES, Row, key_bytes
from tests.simulation.source import FOREIGN, FakeSource
from tests.simulation.target import Content, FakeSink, Target

Json = Any


class Violation(AssertionError):
    """Something was lost, doubled, torn or resurrected, or never ends."""


class Killed(Exception):
    """kill -9."""


class Dice(random.Random):
    """Fast where it is asked most."""

    def choice(self, items: Any) -> Any:
        return items[int(self.random() * len(items))]

    def randint(self, least: int, most: int) -> int:
        return least + int(self.random() * (most + 1 - least))

    def randrange(self, end: int) -> int:  # type: ignore[override]
        return int(self.random() * end)


class World:
    focus: Mapping[str, Any] = {}  # settings that are not left to the seed
    check_numbers = True  # switched off by a mutant

    def __init__(self, seed: int, steps: int = 40, tracing: bool = False) -> None:
        self.rng, self.trace = Dice(seed), tracing
        rng = self.rng
        self.db, self.storage, self.target = Database(rng), Storage(), Target(LOG_ID)
        self.targets = [self.target]  # more sinks join on the way
        self.histories: dict[int, History] = {}
        self.depth, self.chaos, self.steps = 0, True, steps
        self.sink_depth: list[FakeSink] = []
        self.begins: dict[tuple[TableId, int], tuple[int, int]] = {}  # (table, generation) -> epoch and place
        self.selected = list(TABLES)
        self.left: list[tuple[int, TableId, int]] = []  # checkpoint, table and generation, when a table was deselected
        self.damaged: set[tuple[TableId, int]] = set()
        self.new_epochs: list[tuple[int, int]] = []  # asked for: the request's number, the epoch then
        self.run_rows = rng.choice((2, 4, 8))
        self.odds = {
            "killed": rng.choice((0, 0.003, 0.01)),
            "nested": rng.choice((0, 0.02, 0.06)),
            "request": rng.choice((0, 0.01, 0.04)),
            "crash": rng.choice((0, 0, 0.004)),
            "fail over": (fails := rng.choice((0, 0, 0, 0.001))),
            "new epoch": fails / 2,
            "select": rng.choice((0, 0, 0.002)),
            "join": rng.choice((0, 0.002, 0.01)),
        }
        self.retention = rng.random() < 0.3
        self.busy, self.reloads = rng.choice((1, 2, 4)), rng.choice((0.05, 0.3))
        for name, value in self.focus.items():
            if name in self.odds:
                self.odds[name] = value
            else:
                setattr(self if hasattr(self, name) else self.db, name, value)
        self.odds_any = sum(self.odds.values())
        self.odds_lost, self.odds_commit_lost = rng.choice((0, 0.002, 0.01)), rng.choice((0, 0.03))
        self.odds_slow = rng.choice((0, 0.2, 0.7))  # that a reader is told that there is nothing new, though there is
        self.limits = Limits(
            rng.choice((1, 2, 4)),
            1 << 20,
            rng.choice((1, 2, 3)),
            rng.choice((300, 1 << 20)),
            rng.choice((1, 3)),
            rng.choice((2, 100, 100)),
        )
        self.bytes_max = rng.choice((1, 600, 1 << 20, 1 << 20))

    # --------------------------------------------------------------------------------------------------------------- chance
    def chance(self, odds: float) -> bool:
        return self.chaos and odds > 0 and self.rng.random() < odds

    def new_id(self) -> str:
        return f"id {self.db.new()}"

    def fail(self, text: str) -> NoReturn:
        raise Violation(text)

    def say(self, *words: object) -> None:
        if self.trace:
            print("  " * self.depth, *words)

    # ----------------------------------------------------------------------------------------------------------------- tick
    def tick(self, where: str) -> None:
        """Anything may happen between any two calls."""
        if not self.chaos:
            return
        rng, db = self.rng, self.db
        for _ in range(rng.randrange(self.busy + 1)):
            db.step()
        if db.reloads:
            self.reload()
        if rng.random() < self.odds_any:
            self.befall(where)

    def befall(self, where: str) -> None:
        """One of the rarer things, by its odds."""
        rng = self.rng
        what = rng.choices(list(self.odds), list(self.odds.values()))[0]
        if what == "crash":
            self.say("source crashes")
            self.db.crash()
        elif what == "fail over":
            self.say("source fails over")
            self.db.fail_over()
        elif what == "request":
            self.request()
        elif what == "new epoch":
            self.ask_new_epoch()
        elif what == "select":
            self.selected = rng.sample(TABLES, rng.choice((2, 3, 3)))
            self.say("selected from the next start on:", *self.selected)
        elif what == "join" and len(self.targets) < 4:
            tables = rng.sample(TABLES, rng.randint(1, len(TABLES)))
            self.targets.append(Target(LOG_ID, f"sink {len(self.targets)}", tables))
            self.say(self.targets[-1].name, "may join with", *tables)
        elif what == "nested" and self.depth < 2:
            self.run_one(rng.randint(1, 12))
        elif what == "killed":
            self.say("killed in", where)
            raise Killed(where)

    def reload(self) -> None:
        while self.db.reloads:
            table = self.db.reloads.pop()
            self.say("rows of", table, "changed without events")
            self.signal("reload", {"tables": [list(table)]})

    def request(self) -> None:
        rng, table = self.rng, self.rng.choice(TABLES)
        if rng.random() < self.reloads:
            self.signal("reload", {"tables": [list(table) for table in rng.sample(TABLES, rng.randint(1, 2))]})
        elif table in KEYED:
            keys = [key_bytes(table, key).hex() for key in rng.sample(range(KEYS), 2)]
            self.signal("reread", {"table": list(table), "keys": keys})

    def signal(self, kind: str, details: Json) -> int:
        self.say("signal", kind, details)
        return FakeLog(self, self.storage).signal(kind, details)

    def ask_new_epoch(self) -> None:
        number = self.signal("new-epoch", {})
        self.new_epochs.append((number, self.storage.last.epoch if self.storage.last else 0))

    # ------------------------------------------------------------------------------------------------------------ processes
    def run_one(self, stops: int) -> None:
        if self.rng.random() < 0.6:
            self.run_capture(stops)
        else:
            self.run_sink(stops, self.rng.choice(self.targets))

    def _countdown(self, stops: int, meanwhile: Callable[[int], None] = lambda _left: None) -> Any:
        left = iter(range(stops))

        def stop() -> bool:
            number = next(left, None)
            if number is not None:
                meanwhile(number)
            return number is None

        return stop

    def run_capture(self, stops: int, meanwhile: Callable[[int], None] = lambda _left: None) -> None:
        """One capture process, from its start to its stop or its death."""
        self.say("capture starts")
        self.depth += 1
        log = FakeLog(self, self.storage)
        log.retain()
        try:
            capture(FakeSource(self, log), log, self._countdown(stops, meanwhile), self.limits, notice=self.noticed)
        except (Killed, Unavailable, Superseded) as end:
            self.say("capture ends:", repr(end))
        except CdcError as error:
            if error.code != FOREIGN:
                raise
            if not any(signal.kind == "new-epoch" for signal in self.untaken()):
                self.ask_new_epoch()
        finally:
            self.depth -= 1

    def noticed(self, run: Run) -> None:
        if run.altered or run.left or run.found:
            self.say("noticed: altered", *run.altered, "left", *run.left, "found", *run.found)

    def untaken(self) -> list[Any]:
        last = self.storage.last
        return self.storage.signals[last.position.load["signals"] if last else 0 :]

    def run_sink(self, stops: int, target: Target | None = None) -> None:
        self.say("sink starts", "" if target is None else target.name)
        pace = Pace(0, self.rng.choice((1, 500, 2000)), self.bytes_max)
        sink = FakeSink(self, target or self.target)
        self.depth += 1
        try:
            apply(sink, FakeLog(self, self.storage), self._countdown(stops), pace)
        except (Killed, Unavailable, Superseded) as end:
            self.say("sink ends:", repr(end))
        finally:
            self.depth -= 1
            sink.close()

    def run(self) -> None:
        for _ in range(self.steps):
            self.run_one(self.rng.choice((3, 10, 30)))
            if len(self.storage.checkpoints) > 80:
                break
        self.finish()

    # --------------------------------------------------------------------------------------------------------------- finish
    def finish(self) -> None:
        self.say("no more faults")
        self.chaos, self.selected = False, list(TABLES)
        self.db.settle()
        self.settle()
        table, keys = self.rng.choice(KEYED), self.rng.sample(range(KEYS), 2)
        content = self.target.content
        content.rows[table] = {k: row for k, row in content.rows[table].items() if k not in keys} | {
            keys[0]: Row(-1, -1, None)
        }
        self.damaged = {(table, key) for key in keys}
        signal = {"table": list(table), "keys": [key_bytes(table, key).hex() for key in keys]}
        self.signal("reread", signal)
        self.settle()
        self.damaged = set()
        self.remake()
        if self.rng.random() < 0.5:
            self.targets.append(Target(LOG_ID, "last"))
            asked = len(self.storage.signals)
            self.settle()
            if not self.storage.first and any(s.kind == "reload" for s in self.storage.signals[asked:]):
                self.fail("a sink that joined has its tables loaded anew")
        for target in self.targets:
            self.check_end(target)
        self.replay()

    def remake(self) -> None:
        """A table is dropped, or made again, while one capture runs: that one ends with what there is then."""
        table = self.rng.choice(TABLES)
        before = self.storage.tables[table].generation
        self.run_capture(60, lambda number: self.db.remake(table) if number in (3, 20) else None)
        last = self.storage.last
        assert last is not None
        left = list(table) in last.position.load["left"]
        if left == bool(self.db.structures[table].oid) or (
            not left and self.storage.tables[table].generation == before
        ):
            self.fail(f"{table} was made again, and the capture did not take it in")
        self.db.settle()
        self.settle()

    def replay(self) -> None:
        """Some of the past once more, into an empty target; each commit is compared with the source as of then."""
        last, log = self.storage.last, FakeLog(self, self.storage)
        assert last is not None
        tables = self.rng.sample(TABLES, self.rng.randint(1, len(TABLES)))
        target = Target(LOG_ID, "past", tables)
        sink = FakeSink(self, target)
        sink.requests_collided = False
        try:
            back = self.rng.randrange(self.rng.choice((40, last.number + 1)))
            horizon, start = find(log, sink.wants, Number(max(0, last.number - back)))
        except CdcError as error:
            if error.code not in ("CDC-RPL-103", "CDC-RPL-104", "CDC-LOG-108"):
                raise
            return
        bookmark, abandoned = sink.resume(LOG_ID, lambda: start), set[Mark]()
        while bookmark.mark != horizon.last:
            pace = Pace(0, self.rng.choice((1, 500)), self.bytes_max)
            bookmark = follow(sink, Part(log, horizon), bookmark, abandoned, lambda: False, pace, lambda *_: None)
        if set(target.content.rows) != set(start.begins) or target.content.written:
            self.fail(f"a replay of {horizon} ends with {target.content}")

    def settle(self) -> None:
        for _ in range(60):
            self.reload()
            self.run_capture(20)
            for target in self.targets:
                self.run_sink(len(self.storage.checkpoints) + 10, target)
            if not self.unsettled():
                return
        self.fail(f"does not end: {self.unsettled()}")

    def unsettled(self) -> list[Json]:
        last = self.storage.last
        if last is None:
            return ["no checkpoint"]
        stream, load = last.position.stream, last.position.load
        left = [load[part] for part in ("loading", "awaiting", "queue", "owed", "left") if load[part]]
        if self.histories[last.epoch] is not self.db.history or stream["place"] < self.db.durable:
            left.append(stream)
        marks = [target.content.bookmark.mark for target in self.targets]
        return left + [mark for mark in marks if mark != last.mark] + self.untaken()

    def check_end(self, target: Target) -> None:
        last = self.storage.last
        assert last is not None
        self.check_target(target.content, last)
        if target.content.bookmark.mark != last.mark:
            self.fail(f"the target is at {target.content.bookmark}")
        if set(target.content.rows) != set(target.tables):
            self.fail(f"{target.name} has {set(target.content.rows)}")
        for table in target.tables:
            if table in target.content.written or table not in target.content.finished:
                self.fail(f"{table} never ends loading")
            if self.stale(target.content, table, last):
                self.fail(f"{table} is stale in the end")
        for number, epoch in self.new_epochs:
            if last.epoch <= epoch:
                self.fail(f"request {number} for a new epoch, made in epoch {epoch}, is forgotten")

    # --------------------------------------------------------------------------------------------------------------- checks
    def check_structure(self, table: TableId, begun: Json, now: Json) -> None:
        """No event gets into a load that it does not fit."""
        if begun[3:] != now[3:]:
            self.fail(f"an event of {table} as {now} in a load that began as {begun}")

    def check_confirmed(self, at: Json) -> None:
        """R1, and D4: only up to the last cut."""
        cut = self.storage.cut
        if cut is None or at["epoch"] != cut.epoch or at["place"] > cut.position.stream["place"]:
            self.fail(f"R1: {at} is confirmed, the last cut is at {cut and cut.position.stream}")

    def check_append(self, last: Checkpoint | None, checkpoint: Checkpoint, batch: Batch) -> None:
        position, stream = checkpoint.position, checkpoint.position.stream
        if checkpoint.begun:
            for begun in checkpoint.begun:
                # What counts is the position before: the records of this checkpoint are already of the new load.
                before = last.position.stream if last and last.epoch == position.epoch else stream
                reason = before["epoch"], before["place"]
                if last and last.epoch == position.epoch and not last.cut:
                    # A load that starts anew within a round: a sink may count what came just before it as written by it.
                    reason = self.begins[begun.table, begun.generation - 1]
                self.begins[begun.table, begun.generation] = reason
        left_before = last.position.load["left"] if last else ()
        for name in position.load["left"]:
            if name not in left_before:
                table = TableId(*name)
                self.left.append((checkpoint.number, table, self.storage.tables[table].generation))
        if last is None or last.epoch != position.epoch:
            return
        before = last.position.stream
        if (stream["place"], stream["ordinal"]) < (before["place"], before["ordinal"]):
            self.fail(f"the position goes back: {before} {stream}")
        if self.check_numbers and position.sequence - last.position.sequence < sum(map(len, batch.values())):
            self.fail("more records than numbers")

    def silent(self, table: TableId, cut: Checkpoint) -> tuple[int, int]:
        """Epoch and place of the last change without events; an epoch's beginning is one."""
        return cut.epoch, self.histories[cut.epoch].silent[cut.position.stream["place"]].get(table, 0)

    def stale(self, content: Content, table: TableId, cut: Checkpoint) -> bool:
        loaded = content.finished.get(table)
        if self.has_left(table, loaded or 0, cut):
            return True
        return self.silent(table, cut) > (self.begins[table, loaded] if loaded else (0, 0))

    def has_left(self, table: TableId, generation: int, cut: Checkpoint) -> bool:
        """Was the table deselected since this generation began? What happened to it then is in no log."""
        return any(left[1] == table and left[0] <= cut.number and generation <= left[2] for left in self.left)

    def check_target(self, content: Content, cut: Checkpoint) -> None:
        if self.trace:
            trace.committed(self.say, content, cut)
        expected = self.histories[cut.epoch].states[cut.position.stream["place"]]
        for table in KEYED:
            if table not in content.rows:
                continue
            rows, loading = content.rows[table], table in content.written
            self.check_unique(table, rows)
            if self.stale(content, table, cut):
                generation = content.generations[table]
                covered = (
                    loading
                    and self.silent(table, cut) <= self.begins[table, generation]
                    and not self.has_left(table, generation, cut)
                )
                rows = {key: rows[key] for key in content.written[table] if key in rows} if covered else {}
            elif not loading and rows != expected[table] and not self.damaged:
                self.fail(f"{table} at checkpoint {cut.number}: {rows} instead of {expected[table]}")
            for key, row in rows.items():
                if expected[table].get(key) != row and (table, key) not in self.damaged:
                    self.fail(f"{table}[{key}] at checkpoint {cut.number}: {row} instead of {expected[table].get(key)}")
        if KEYLESS in content.rows and not self.keyless_stale(content, cut):
            bag, wanted = content.rows[KEYLESS], Counter(expected[KEYLESS].values())
            if bag - wanted or (KEYLESS not in content.written and wanted - bag):
                self.fail(f"{KEYLESS} at checkpoint {cut.number}: {bag} instead of {wanted}")

    def keyless_stale(self, content: Content, cut: Checkpoint) -> bool:
        generation = content.generations[KEYLESS]
        return self.has_left(KEYLESS, generation, cut) or self.silent(KEYLESS, cut) > self.begins[KEYLESS, generation]

    def check_unique(self, table: TableId, rows: dict[int, Row]) -> None:
        uniques = [row.unique for row in rows.values() if row.unique is not None]
        if len(set(uniques)) != len(uniques):
            self.fail(f"a unique value of {table} is there twice: {rows}")
