"""How much a table costs: a start with a thousand of them (`--full`: ten thousand), one change in each, and events over all of them.

    python -m benchmarks --only scale [--full]

Seconds are the wall's, from the start of both processes until every row is at the target, and CPU beside them: a start is the work of
capture, sink and two servers at once. µs per event are CPU of capture alone, in transactions of ten rows of one table each, with what a
table costs once after a start: a catalog query and a codec.
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import rig
from benchmarks.pipeline import drained
from benchmarks.rig import Figure, Meter, Rig, run
from cdc.commands.logs import look
from cdc.config import load as configuration
from tests.e2e.pipeline import Pipeline, until

ROWS = 3  # of each table, before the start
START_S = {1_000: 20.0, 10_000: 120.0}
MEMORY_MB = 400.0
EVENTS, ROUNDS = 100_000, 3
TRANSACTION_ROWS = 10


def scale(on: Rig, args: Namespace) -> list[Figure]:
    """Every cell of it."""
    figures = []
    for tables in (1_000, 10_000) if args.full else (1_000,):
        figures += _start(on, tables)
    return figures + _events(on, 1_000)


def _start(on: Rig, tables: int) -> list[Figure]:
    name = f"scale{tables}"
    with on.database(name) as (source, target), on.pipeline(name, source, target) as pipeline:
        _make(source, tables)
        began = time.monotonic()
        with _metered(pipeline) as (capture, sink):
            checkpoint = _loaded(pipeline, tables + 1)
            loaded_s = time.monotonic() - began
            rig.applied(pipeline, target, checkpoint, 600)
            started_s, span = time.monotonic() - began, (time.time() - (time.monotonic() - began), time.time())
            cpu_s = {"capture": capture.cpu_s(*span), "sink": sink.cpu_s(*span)}
            began = time.monotonic()
            _change_each(source, tables)
            rig.applied(pipeline, target, rig.captured(pipeline, rig.head(source), 600), 600)
            changed_s = time.monotonic() - began
        _assert_equal(source, target, tables)
        status_s = _status_s(pipeline)
        rig.stop(pipeline, "capture")
        again_s = _again(pipeline, source)
    what = f"{tables:,} tables"
    return [
        Figure("scale", f"start with {what}, until applied", [started_s], "s", START_S[tables], True),
        Figure("scale", f"start with {what}, until in the log", [loaded_s], "s"),
        *(Figure("scale", f"start with {what}, {who}'s CPU", [cpu], "s") for who, cpu in cpu_s.items()),
        Figure("scale", f"a change in each of {what}, until applied", [changed_s], "s"),
        Figure("scale", f"capture's peak memory, {what}", [capture.peak_mb], "MB", MEMORY_MB, True),
        Figure("scale", f"sink's peak memory, {what}", [sink.peak_mb], "MB", MEMORY_MB, True),
        Figure("scale", f"capture's second start, {what}", [again_s], "s"),
        Figure("scale", f"cdc status, {what}", [status_s], "s"),
    ]


def _make(source: str, tables: int) -> None:
    """In batches: one transaction may not hold the locks of all."""
    body = (
        "EXECUTE format('CREATE TABLE t%s (id bigint PRIMARY KEY, a integer, b text, c timestamptz, d numeric(12,2))', i);"
        f" EXECUTE format('INSERT INTO t%s SELECT g, g, ''text'', now(), g FROM generate_series(1, {ROWS}) g', i);"
    )
    for first in range(0, tables, 500):
        run(source, f"DO $$ BEGIN FOR i IN {first}..{min(tables, first + 500) - 1} LOOP {body} END LOOP; END $$")


def _change_each(source: str, tables: int) -> None:
    update = "EXECUTE format('UPDATE t%s SET a = a + 1 WHERE id = 1', i); COMMIT;"
    run(source, f"DO $$ BEGIN FOR i IN 0..{tables - 1} LOOP {update} END LOOP; END $$")


@contextmanager
def _metered(pipeline: Pipeline) -> Iterator[tuple[Meter, Meter]]:
    capture, sink = (pipeline.start(role).pid for role in ("capture", "main"))
    with Meter(capture) as of_capture, Meter(sink) as of_sink:
        yield of_capture, of_sink


def _loaded(pipeline: Pipeline, tables: int) -> rig.Checkpoint:
    def there() -> rig.Checkpoint | None:
        if rig.last(pipeline) is None:
            return None
        with look(configuration(pipeline.file)) as surveyor:
            found, states, _ = surveyor.survey()
        whole = sum(state.loaded is not None for state in states.values())
        return found if found and found.cut and whole >= tables else None

    checkpoint: rig.Checkpoint = until(there, 600, f"{tables} loads", every_s=0.5, alive=pipeline.alive)
    return checkpoint


def _assert_equal(source: str, target: str, tables: int) -> None:
    digest = "SELECT sum(hashtextextended(q.x, 0)) FROM ({}) q (x)"
    for first in range(0, tables, 500):
        every = range(first, min(tables, first + 500))
        text = digest.format(" UNION ALL ".join(f"SELECT '{i} ' || t::text FROM t{i} t" for i in every))
        assert run(source, text) == run(target, text), f"tables {first} … differ"


def _status_s(pipeline: Pipeline) -> float:
    began = time.monotonic()
    assert pipeline.status()["result"]["tables"]
    return time.monotonic() - began


def _again(pipeline: Pipeline, source: str) -> float:
    """Until a capture that knows all tables has read what is new."""
    lsn = rig.head(source)
    began = time.monotonic()
    pipeline.start("capture")
    rig.captured(pipeline, lsn, 600)
    return time.monotonic() - began


# --------------------------------------------------------------------------------------------------------------- events
def _events(on: Rig, tables: int) -> list[Figure]:
    found: dict[int, list[float]] = {1: [], tables: []}
    with on.database("events") as (source, target):
        _make(source, tables)
        with (
            on.pipeline("one", source, target, tables=["public.t0"]) as one,
            on.pipeline("many", source, target, tables=["public.t*"]) as many,
        ):
            of = {1: one, tables: many}
            for count, pipeline in of.items():
                pipeline.start("capture")
                _loaded(pipeline, count)
                rig.stop(pipeline, "capture")
            for number in range(2 * ROUNDS):
                count = (1, tables, tables, 1)[number % 4]
                _insert(source, count, number)
                _, cpu_us = drained(of[count], rig.head(source))
                found[count].append(cpu_us)
    ratios = [b / a for a, b in zip(found[1], found[tables], strict=True)]
    return [
        Figure("scale", f"CPU per event over {tables:,} tables, to that in one", ratios, "x", 1.1, True),
        *(Figure("scale", f"capture's CPU, events over {count:,}", us, "µs/event") for count, us in found.items()),
    ]


def _insert(source: str, tables: int, number: int) -> None:
    """Transactions of a few rows of one table each, over the tables in turn."""
    transactions, first = EVENTS // TRANSACTION_ROWS, (number + 1) * EVENTS
    rows = f"SELECT %s::bigint * {TRANSACTION_ROWS} + g, g, ''text'', now(), g FROM generate_series(0, {TRANSACTION_ROWS - 1}) g"
    insert = f"EXECUTE format('INSERT INTO t%s {rows}', n % {tables}, n); COMMIT;"
    run(source, f"DO $$ BEGIN FOR n IN {first}..{first + transactions - 1} LOOP {insert} END LOOP; END $$")


CELLS: dict[str, rig.Cell] = {"scale": scale}
