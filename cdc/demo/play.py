"""The play: services start, the application writes, processes are killed, all comes to rest, and source and targets are compared.

It runs what `cdc run` runs: `cdc capture` and `cdc sink` as processes, started again by the same supervisor when they die. The
invariant: it ends with no service running, whichever way it ends.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from signal import SIGKILL
from statistics import median

import psycopg2

from cdc.children import Child, Children, Line
from cdc.commands import picture
from cdc.commands.run import roles
from cdc.config import Config, load
from cdc.demo import shop
from cdc.demo.comparison import Comparison, compare
from cdc.demo.scene import Scene, ServiceRow, TableRow
from cdc.demo.screen import Screen
from cdc.demo.stage import Stage, Target
from cdc.demo.watch import RATE_OVER_S, Watch
from cdc.errors import CdcError
from cdc.postgres.sql import qualified
from cdc.supervise import Stop

CAPTURE, REPLICA, ANALYTICS = "capture", "sink replica", "sink analytics"
KILLS = ((0.2, (REPLICA,)), (0.45, (CAPTURE,)), (0.7, (CAPTURE, REPLICA, ANALYTICS)))
"""When, as a part of the time under load, and who."""

REST_S, GATHER_EVERY_S = 60.0, 0.5
NEAR_S, OUTAGE_S = 0.3, 0.8
SERVICES_LOG = "services.log"


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


@dataclass
class Services:
    """The pipeline's processes, with what they say: each line goes to a file, an error is remembered. `tell` hears of what
    happens to them."""

    stage: Stage
    tell: Callable[[str], None]
    asked: bool = False
    errors: dict[str, Line] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config: Config = load(self.stage.file)
        self._writing = threading.Lock()
        chosen = roles(self.config, self.stage.file, None)
        self._children = Children(
            chosen, on_line=self._on_line, on_event=lambda role, words: self.tell(f"{role} {words}")
        )

    @contextmanager
    def running(self) -> Iterator[Services]:
        """All are started, and none is left at the end."""
        try:
            self._children.start()
            yield self
        finally:
            self._children.kill()
            for child in self._children.children:
                if child.process is not None:
                    child.process.wait()
                    child.finished()

    def _on_line(self, line: Line) -> None:
        with self._writing, (self.stage.folder / SERVICES_LOG).open("a", encoding="utf-8") as log:
            log.write(line.plain + "\n")
        if line.fields is None or line.fields.get("code"):
            self.errors[line.role] = line

    def tick(self) -> None:
        """Start again what has died. Raises CDC-RUN-102 when a service has ended for good, which it does only with an error."""
        if (code := self._children.tick()) is not None:
            self._failed(code)

    def drain(self) -> None:
        """Let all end at a committed batch."""
        self.asked = True
        if code := self._children.drain():
            self._failed(code)

    def _failed(self, code: int) -> None:
        said = "; ".join(f"{role}: {_words(line)}" for role, line in self.errors.items())
        raise CdcError(
            "CDC-RUN-102", f"exit code {code}: {said or 'without a word'}", where=str(self.stage.folder / SERVICES_LOG)
        )

    def named(self, name: str) -> Child:
        return next(child for child in self._children.children if child.role.name == name)

    def all(self) -> Iterator[tuple[str, int | None]]:
        """Each with its process, or None while it is down."""
        for child in self._children.children:
            yield child.role.name, child.pid


def _words(line: Line) -> str:
    return f"{line.fields.get('code')} {line.fields.get('detail', '')}" if line.fields else line.text


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

    def run(self) -> Outcome:
        """Raises Interrupted, and what ends a service or a connection of ours."""
        stage = self._stage
        services = Services(stage, self._happened)
        application = shop.Application(stage.shop_url)
        watch = Watch(stage, services.config.log.path)
        self._parts = services, application, watch
        with self._screen.live():
            with services.running(), watch:
                with application.running():
                    self._tell("capture and two sinks run, a process each")
                    self._until(lambda: all(watched.is_there for watched in watch.targets.values()), "the first load")
                    self._tell("existing rows have arrived, without a pause of the application")
                    self._under_load()
                self._rest(shop.last_customer(stage.source_url))
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
        services, application, watch = self._parts
        self._ask()
        services.tick()
        application.check()
        watch.check()
        self._screen.show(self._scene())
        self._stop.wait(0.1)

    def _until(self, claim: Callable[[], bool], what: str) -> None:
        """Raises CDC-DEMO-105 when it takes too long."""
        deadline = time.monotonic() + REST_S
        while not claim():
            if time.monotonic() > deadline:
                said = "; ".join(f"{role}: {_words(line)}" for role, line in self._parts[0].errors.items())
                raise CdcError(
                    "CDC-DEMO-105",
                    f"{what}, within {REST_S:.0f} s{'; ' if said else ''}{said}",
                    where=str(self._stage.folder),
                )
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
        victims = [self._parts[0].named(name) for name in names]
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
        """All run again, and no target is behind by more than a blink."""
        if self._recovering_s is None:
            return
        services, _, watch = self._parts
        outage = time.monotonic() - self._recovering_s
        lags = [watched.last.lag_s for watched in watch.targets.values() if watched.last is not None]
        near = all(lag is not None and lag < NEAR_S for lag in lags)
        if outage > OUTAGE_S and near and all(pid for _, pid in services.all()):
            self._tell(f"back and up to date, {outage:.1f} s later", "green")
            self._recovering_s = None

    # ------------------------------------------------------------------------------------------------------------ at rest
    def _rest(self, last: int) -> None:
        """Until what was committed last is in every target and no table is loading any more."""
        services, application, watch = self._parts
        application.check()
        self._doing = "settling"
        self._tell("the application has stopped")
        due = 0.0

        def arrived() -> bool:
            nonlocal due
            if time.monotonic() < due:
                return False
            due = time.monotonic() + GATHER_EVERY_S
            if not all(self._has(watched.target, last) for watched in watch.targets.values()):
                return False
            now = picture.gather(services.config)
            states = {table.state for table in now.tables} | {sink.state for sink in now.sinks}
            return states == {picture.LIVE}

        self._until(arrived, "not everything has arrived")

    def _has(self, target: Target, customer: int) -> bool:
        with closing(psycopg2.connect(self._stage.url(target))) as connection, connection.cursor() as cursor:
            try:
                cursor.execute(f"SELECT 1 FROM {qualified(target.place('customers'))} WHERE id = %s", (customer,))
            except psycopg2.errors.UndefinedTable:
                return False
            return cursor.fetchone() is not None

    # -------------------------------------------------------------------------------------------------------------- scene
    def _money(self) -> tuple[int, int]:
        watched = self._parts[2].targets.values()
        return sum(one.looks for one in watched), sum(one.torn for one in watched)

    def _per_second(self, committed: int) -> float:
        """Over the last seconds."""
        self._pace.append((time.monotonic(), committed))
        (then_s, then), (now_s, now) = self._pace[0], self._pace[-1]
        if now_s - then_s > RATE_OVER_S:
            self._pace.popleft()
        return (now - then) / (now_s - then_s) if now_s > then_s else 0.0

    def _scene(self) -> Scene:
        services, application, watch = self._parts
        rates = watch.rates()
        tables = tuple(
            TableRow(
                name, watch.source.get(name), watch.events.get(name), rates.get(name),
                {sink: one.rows.get(name) for sink, one in watch.targets.items() if name in one.target.tables},
            )
            for name in shop.TABLES
        )  # fmt: skip
        lags = {f"sink {name}": one.last.lag_s if one.last else None for name, one in watch.targets.items()}
        elapsed = time.monotonic() - self._live_s if self._doing != "loading" else 0.0
        return Scene(
            elapsed, self._seconds, self._doing, application.committed, self._per_second(application.committed), tables,
            tuple(ServiceRow(name, pid, lags.get(name), services.asked) for name, pid in services.all()), *self._money(),
        )  # fmt: skip
