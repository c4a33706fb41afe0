"""The play: services start, the application writes, processes are killed, all comes to rest, and source and targets are compared.

The invariant: nobody writes and no service runs when the comparison begins, so that what it finds is what was replicated.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from signal import SIGKILL
from statistics import median

import psycopg2

from cdc.commands import picture
from cdc.demo import shop
from cdc.demo.comparison import Comparison, compare
from cdc.demo.scene import Scene, ServiceRow, TableRow
from cdc.demo.screen import Screen
from cdc.demo.services import Services
from cdc.demo.stage import Stage, Target
from cdc.demo.watch import RATE_OVER_S, Watch
from cdc.errors import CdcError
from cdc.postgres.sql import qualified
from cdc.supervise import Stop

CAPTURE, REPLICA, ANALYTICS = "capture", "sink replica", "sink analytics"
KILLS = ((0.2, (REPLICA,)), (0.45, (CAPTURE,)), (0.7, (CAPTURE, REPLICA, ANALYTICS)))
"""When, as a part of the time under load, and who."""

REST_S, GATHER_EVERY_S = 60.0, 0.5
NEAR_S, OUTAGE_S, PATIENCE_S = 0.3, 0.8, 8.0


class Interrupted(Exception):
    """Somebody asked to stop."""


@dataclass
class Outcome:
    """What the play has shown."""

    transactions: int
    events: int
    kills: int
    looks: int
    torn: int
    lag_ms: float
    comparisons: Sequence[Comparison]

    @property
    def good(self) -> bool:
        """Equal, row for row, and never torn."""
        return not self.torn and not any(comparison.differences for comparison in self.comparisons)


class Play:
    """One performance on a stage that is built. `run` once."""

    def __init__(self, stage: Stage, screen: Screen, seconds: float, stop: Stop, began_s: float) -> None:
        """`began_s` is what times are counted from."""
        self._stage, self._screen, self._seconds, self._stop = stage, screen, seconds, stop
        self._began = self._live_s = began_s
        self._pace: deque[tuple[float, int]] = deque()
        self._kills = list(KILLS)
        self.killed = 0
        self._recovering_s: float | None = None
        self._doing = "loading"
        self._services = Services(stage, self._happened)
        self._application = shop.Application(stage.shop_url)
        self._watch = Watch(stage, self._services.config.log.path)

    def run(self) -> Outcome:
        """Raises Interrupted, and what ends a service or a connection of ours."""
        services, application, watch = self._services, self._application, self._watch
        with self._screen.live():
            with services.running(), watch:
                with application.running():
                    self._tell("capture and two sinks run, a process each")
                    self._until(
                        lambda: all(watched.is_there for watched in watch.targets.values()),
                        "existing rows in every target",
                    )
                    self._tell("existing rows have arrived, without a pause of the application")
                    self._under_load()
                self._rest(shop.last_customer(self._stage.source_url))
                services.drain()
                self._tell("everything has arrived, and the services ended when asked")
            watch.count()
            self._doing = "at rest"
            self._screen.show(self._scene(), last=True)
        comparisons = [self._compare(watched.target) for watched in watch.targets.values()]
        self._ask()
        lags = [lag for watched in watch.targets.values() for lag in watched.lags_ms]
        looks, torn = self._money()
        return Outcome(
            application.committed, sum(watch.events.values()), self.killed, looks, torn,
            median(lags), comparisons,
        )  # fmt: skip

    def _compare(self, target: Target) -> Comparison:
        self._ask()
        return compare(self._stage.source_url, self._stage.url(target), target, self._stop)

    def _tell(self, text: str, style: str = "") -> None:
        self._screen.say(f"{time.monotonic() - self._began:6.1f} s  {text}", style)

    def _happened(self, words: str) -> None:
        """Something happened to a service. What we do to them is announced already."""
        if self._doing == "replicating" and self._recovering_s is None:
            self._tell(words)

    def _ask(self) -> None:
        if self._stop():
            raise Interrupted

    def _step(self) -> None:
        """A tenth of a second of everything."""
        self._ask()
        self._services.tick()
        self._application.check()
        self._watch.check()
        self._screen.show(self._scene())
        self._stop.wait(0.1)

    def _until(self, claim: Callable[[], bool], what: str) -> None:
        """Raises CDC-DEMO-105 when it takes too long."""
        deadline = time.monotonic() + REST_S
        while not claim():
            if time.monotonic() > deadline:
                detail = "\n".join([f"not within {REST_S:.0f} s: {what}", *self._services.complaints()])
                raise CdcError("CDC-DEMO-105", detail, where=str(self._stage.folder))
            self._step()

    # --------------------------------------------------------------------------------------------------------- under load
    def _under_load(self) -> None:
        self._doing, self._live_s = "replicating", time.monotonic()
        while time.monotonic() - self._live_s < self._seconds or self._kills or self._recovering_s is not None:
            self._kill_if_due()
            self._notice_recovery()
            self._step()

    def _kill_if_due(self) -> None:
        """Each kill waits for the victims to run, so that none is spent on a process that is dead already."""
        if not self._kills or self._recovering_s is not None:
            return
        part, names = self._kills[0]
        victims = [self._services.named(name) for name in names]
        if time.monotonic() - self._live_s < part * self._seconds or not all(victim.pid for victim in victims):
            return
        self._kills.pop(0)
        pids = " ".join(str(victim.pid) for victim in victims)
        self._recovering_s = time.monotonic()
        for victim in victims:
            victim.signal(SIGKILL)
            self.killed += 1
        self._tell(f"kill -9 {pids}   {', '.join(names)}", "bold yellow")

    def _notice_recovery(self) -> None:
        """All run again, and no target is behind by more than a blink; a machine that is too busy for that is not waited for."""
        if self._recovering_s is None:
            return
        outage = time.monotonic() - self._recovering_s
        lags = [watched.last.lag_s for watched in self._watch.targets.values() if watched.last is not None]
        near = all(lag is not None and lag < NEAR_S for lag in lags)
        if outage > OUTAGE_S and near and all(pid for _, pid in self._services.all()):
            self._tell(f"back and up to date, {outage:.1f} s later", "green")
            self._recovering_s = None
        elif outage > PATIENCE_S:
            self._tell("not up to date yet, because this machine is busy", "yellow")
            self._recovering_s = None

    # ------------------------------------------------------------------------------------------------------------ at rest
    def _rest(self, last: int) -> None:
        """Until what was committed last is in every target and no table is loading any more."""
        self._application.check()
        self._doing = "settling"
        self._tell("the application has stopped")
        due = 0.0

        def arrived() -> bool:
            nonlocal due
            if time.monotonic() < due:
                return False
            due = time.monotonic() + GATHER_EVERY_S
            if not all(self._has(watched.target, last) for watched in self._watch.targets.values()):
                return False
            now = picture.gather(self._services.config)
            states = {table.state for table in now.tables} | {sink.state for sink in now.sinks}
            return states == {picture.LIVE}

        self._until(arrived, "everything arrived")

    def _has(self, target: Target, customer: int) -> bool:
        with closing(psycopg2.connect(self._stage.url(target))) as connection, connection.cursor() as cursor:
            try:
                cursor.execute(f"SELECT 1 FROM {qualified(target.place('customers'))} WHERE id = %s", (customer,))
            except psycopg2.errors.UndefinedTable:
                return False
            return cursor.fetchone() is not None

    # -------------------------------------------------------------------------------------------------------------- scene
    def _money(self) -> tuple[int, int]:
        watched = self._watch.targets.values()
        return sum(one.looks for one in watched), sum(one.torn for one in watched)

    def _per_second(self, committed: int) -> float:
        """Over the last seconds."""
        self._pace.append((time.monotonic(), committed))
        (then_s, then), (now_s, now) = self._pace[0], self._pace[-1]
        if now_s - then_s > RATE_OVER_S:
            self._pace.popleft()
        return (now - then) / (now_s - then_s) if now_s > then_s else 0.0

    def _scene(self) -> Scene:
        services, application, watch = self._services, self._application, self._watch
        writing = self._doing in ("loading", "replicating")
        rates = watch.rates() if writing else {}
        tables = tuple(
            TableRow(
                name, watch.source.get(name), watch.events.get(name), rates.get(name),
                {sink: one.rows.get(name) for sink, one in watch.targets.items() if name in one.target.tables},
            )
            for name in shop.TABLES
        )  # fmt: skip
        lags = {f"sink {name}": one.last.lag_s if one.last else None for name, one in watch.targets.items()}
        pace = self._per_second(application.committed) if writing else None
        elapsed = time.monotonic() - self._live_s if self._doing != "loading" else 0.0
        return Scene(
            time.monotonic() - self._began, elapsed, self._seconds, self._doing, application.committed, pace, tables,
            tuple(ServiceRow(name, pid, lags.get(name), services.asked) for name, pid in services.all()), *self._money(),
        )  # fmt: skip
