"""What the tests of single protocol rules share: a rule with its scenario and its switch, and the world that scenarios run in.

A scenario plays the schedule that a rule is there for, on real servers, and returns whether the data is right at the end. It runs
twice: as the product is, when it must be right, and with the rule switched off by the smallest change that does so, when it must
be wrong. So no assertion here can be one that never fails, and no rule one that nothing needs.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cdc.avro import ChangeEvent, decode_event, schema_id
from cdc.log import Begun
from cdc.table import TableId
from tests.fakes import MemoryLog
from tests.integration.pg_source import Capture
from tests.servers import Database, Server

Row = Mapping[str, Any]
Scenario = Callable[["World"], bool]
Off = Callable[[pytest.MonkeyPatch], object]


class Rule(NamedTuple):
    """`off` switches it off until the test ends."""

    scenario: Scenario
    off: Off


class Rules(dict[str, Rule]):
    """The rules of one module, by name."""

    def __call__(self, name: str, off: Off) -> Callable[[Scenario], Scenario]:
        """Decorates the scenario of a rule."""

        def add(scenario: Scenario) -> Scenario:
            assert name not in self
            self[name] = Rule(scenario, off)
            return scenario

        return add

    def cases(self) -> list[Any]:
        """(rule, is it upheld) for parametrize."""
        return [
            pytest.param(rule, upheld, id=f"{name}-{'upheld' if upheld else 'off'}")
            for name, rule in self.items()
            for upheld in (True, False)
        ]


def swap(owner: Any, name: str, value: Any) -> Off:
    """Switches off by putting `value` in the place of an attribute."""
    return lambda patch: patch.setattr(owner, name, value)


class Crashable:
    """A server to crash, and to let commits hang on: it waits for a synchronous standby that is not there."""

    def __init__(self, server: Server) -> None:
        assert server.process is not None
        self.server, self._process = server, server.process

    @contextmanager
    def hanging(self, act: Callable[[], object]) -> Iterator[Callable[[], None]]:
        """Within, `act`'s commit hangs; it comes to its end at the latest afterwards, or when what is given is called."""
        self._standby("nobody")
        time.sleep(0.5)  # until the checkpointer has told the others
        thread = threading.Thread(target=act, daemon=True)
        thread.start()
        try:
            hung = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            until(lambda: self.server.execute(hung), "a commit that hangs")
            yield lambda: self._standby("")
        finally:
            self._standby("")
            thread.join(30)

    def _standby(self, names: str) -> None:
        self.server.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        self.server.execute("SELECT pg_reload_conf()")

    def lazy(self, database: Database, sql: str) -> None:
        """Commit without waiting for the disk, which nothing reaches before somebody waits for it."""
        ((walwriter,),) = self.server.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'")
        os.kill(walwriter, signal.SIGSTOP)
        database.execute(f"SET synchronous_commit = off; {sql}")

    def crash(self) -> None:
        """As a power cut; returns when it is back."""
        self._process.kill9()
        self._process.start()


class World:
    """Where a scenario plays. `database` makes one; `folder` is empty. All that is made here ends with the test."""

    def __init__(self, make_database: Callable[[], Database], folder: Path) -> None:
        self.database, self.folder = make_database, folder
        self._captures: list[Capture] = []

    def capture(self, database: Database, *tables: str, url: str | None = None, **options: Any) -> Capture:
        """A capture driven by hand, started."""
        names = [f"public.{table}" for table in tables] or ["public.*"]
        made = Capture(url or database.grant_source(), tables=names, **options)
        self._captures.append(made)
        return made.start()

    def close(self) -> None:
        for capture in self._captures:
            capture.source.close()


def until(claim: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
    """Wait for a truthy value."""
    deadline = time.monotonic() + timeout_s
    while not (value := claim()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)
    return value


# -------------------------------------------------------------------------------------------------------------- comparison
def rows(database: Database, table: str) -> list[Row]:
    """A table as it is, in any one order."""
    return _sorted(row for (row,) in database.execute(f"SELECT to_jsonb(t) FROM {table} AS t"))


def image(events: Iterable[ChangeEvent], table: str) -> list[Row]:
    """A table as its events make it, as a sink without any finesse would."""
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.table.id.name != table:
            continue
        if event.op == "t":
            found.clear()
        elif event.op == "d":
            found.pop(repr(event.key), None)
        else:
            assert event.after is not None
            found.setdefault(repr(event.key), {}).update(event.after)
    return _sorted(found.values())


def equal(capture: Capture, database: Database, *tables: str) -> bool:
    """Does what was captured make these tables what they are?"""
    return all(image(capture.events, table) == rows(database, table) for table in tables)


def logged(log: MemoryLog) -> Iterator[Begun | ChangeEvent]:
    """All of a log in order: the beginnings of loads, and events."""
    for number in sorted(log.storage.items):
        checkpoint, batch = log.storage.items[number]
        yield from checkpoint.begun
        events = [
            decode_event(log.schema(schema_id(value)), value, None if key is None else log.schema(schema_id(key)), key)
            for records in batch.values()
            for key, value in zip(records.keys, records.values, strict=True)
        ]
        yield from sorted(events, key=lambda event: int(event.source["sequence"]))


def values(row: Row | None) -> list[tuple[Any, ...]]:
    """A row without its column names; nothing for none."""
    return [tuple(row.values())] if row else []


def _sorted(found: Iterable[Row]) -> list[Row]:
    return sorted(found, key=lambda row: json.dumps(row, sort_keys=True, default=str))


def named(table: str) -> TableId:
    """A table of the schema that the scenarios use."""
    return TableId("public", table)
