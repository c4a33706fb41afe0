"""What the demo looks at while it runs: rows everywhere, how far each target is behind, and whether its money is all there.

The invariant: a look is one statement, so one snapshot, of a target that is being written to at that moment. Lag is measured in
what arrived, and not in what any service says of itself: the newest payment at the source, less the newest one in the target.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, Self

import psycopg2
from psycopg2 import errors

from cdc.demo import shop
from cdc.demo.stage import ANALYTICS, REPLICA, Stage, Target
from cdc.errors import CdcError
from cdc.log.survey import FolderSurveyor
from cdc.postgres.sql import qualified
from cdc.table import TableId

LOOK_EVERY_S, COUNT_EVERY_S = 0.1, 1.0
RATE_OVER_S = 4.0

Counts = Mapping[str, int]
Cursor = Any


class Look(NamedTuple):
    """One snapshot of a target's accounts. `lag_s` is None until all of them are there."""

    at_s: float
    lag_s: float | None
    whole: bool


@dataclass
class Watched:
    """What is known of one target."""

    target: Target
    rows: Counts = field(default_factory=dict)
    last: Look | None = None
    looks: int = 0
    torn: int = 0
    lags_ms: list[float] = field(default_factory=list)

    def add(self, look: Look) -> None:
        self.last = look
        if look.lag_s is not None:
            self.looks += 1
            self.torn += not look.whole
            self.lags_ms.append(look.lag_s * 1000)

    @property
    def is_there(self) -> bool:
        """All accounts have arrived."""
        return self.looks > 0


class Watch:
    """Looks at everything, in threads: `with Watch(stage, log) as watch:`. `check` raises what has ended one of them."""

    def __init__(self, stage: Stage, log: Path) -> None:
        self._stage, self._log = stage, log
        self.source: Counts = {}
        self.events: Counts = {}
        self.targets = {target.name: Watched(target) for target in (REPLICA, ANALYTICS)}
        self._history: deque[tuple[float, Counts]] = deque()
        self._end = threading.Event()
        self._failure: BaseException | None = None
        jobs: list[Callable[[], None]] = [
            self._count,
            *(lambda w=watched: self._look(w) for watched in self.targets.values()),
        ]
        self._threads = [threading.Thread(target=self._guarded, args=(job,), name="watch", daemon=True) for job in jobs]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(10.0)

    def check(self) -> None:
        """Raise what has ended a thread."""
        if self._failure is not None:
            raise self._failure

    def rates(self) -> Mapping[str, float]:
        """Events per second of each table in the log, over the last seconds."""
        if len(self._history) < 2:
            return {}
        (then_s, then), (now_s, now) = self._history[0], self._history[-1]
        return {table: (count - then.get(table, 0)) / (now_s - then_s) for table, count in now.items()}

    def _guarded(self, job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - handed to whoever asks how we are
            if not self._end.is_set():
                self._failure = error

    def _count(self) -> None:
        while not self._end.is_set():
            self.count()
            self._end.wait(COUNT_EVERY_S)

    def count(self) -> None:
        """Count rows and events everywhere, once."""
        self.source = counts(self._stage.source_url, [(name, TableId("public", name)) for name in shop.TABLES])
        for watched in self.targets.values():
            target = watched.target
            watched.rows = counts(self._stage.url(target), [(name, target.place(name)) for name in target.tables])
        self._survey()

    def _survey(self) -> None:
        try:
            with FolderSurveyor(self._log) as surveyor:
                events = surveyor.survey().events
        except CdcError as error:
            if error.code != "CDC-LOG-101":  # the capture has not made it yet
                raise
            return
        self.events = {table.name: count for table, count in events.items()}
        self._history.append((time.monotonic(), self.events))
        while len(self._history) > 2 and self._history[-1][0] - self._history[0][0] > RATE_OVER_S:
            self._history.popleft()

    def _look(self, watched: Watched) -> None:
        accounts = qualified(watched.target.place("accounts"))
        with (
            closing(psycopg2.connect(self._stage.source_url)) as source,
            closing(psycopg2.connect(self._stage.url(watched.target))) as target,
        ):
            source.autocommit = target.autocommit = True
            with source.cursor() as here, target.cursor() as there:
                while not self._end.wait(LOOK_EVERY_S):
                    watched.add(look(here, there, accounts))


def look(source: Cursor, target: Cursor, accounts: str) -> Look:
    """One look at the target. The source is asked first, so that lag is never less than it is."""
    source.execute("SELECT max(touched) FROM public.accounts")
    (newest,) = source.fetchone()
    at_s, there = time.monotonic(), (0, None, None)
    with suppress(errors.UndefinedTable):
        target.execute(f"SELECT count(*), sum(balance), max(touched) FROM {accounts}")
        there = target.fetchone()
    return judged(at_s, newest, *there)


def judged(at_s: float, newest: datetime, count: int, money: Decimal | None, arrived: datetime | None) -> Look:
    """What a snapshot means. Before all accounts have been loaded it means nothing; from then on each one has to add up."""
    if count < shop.ACCOUNTS or arrived is None:
        return Look(at_s, None, True)
    return Look(at_s, max(0.0, (newest - arrived).total_seconds()), money == shop.MONEY)


def counts(url: str, tables: Iterable[tuple[str, TableId]]) -> Counts:
    """The rows of those tables that are there."""
    found: dict[str, int] = {}
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        for name, table in tables:
            with suppress(errors.UndefinedTable):
                cursor.execute(f"SELECT count(*) FROM {qualified(table)}")
                (found[name],) = cursor.fetchone() or (0,)
    return found
