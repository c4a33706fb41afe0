"""The cells over Kafka: ours beside Debezium and its JDBC sink, both warm, on one broker, in one run and in turn (A B B A).

kafka-drain    the same backlog into topics: ours, Debezium in Avro, and pg_recvlogical to nowhere
kafka-apply    the topics into Postgres: rows into an empty table, then a change of each of them
kafka-latency  commit at the source → visible in the target, single-row transactions at a fixed rate
kafka-fanout   what a capture costs with one sink and with eight
"""

from __future__ import annotations

import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

import psycopg2

from benchmarks import rig
from benchmarks.debezium import Debezium, Growth, topic
from benchmarks.pipeline import ROUNDS, Peer, assert_equal, commits, equal_count, lateness, quantile
from benchmarks.rig import Cell, Figure, Meter, Rig, Sides, run
from cdc.log import Checkpoint
from tests.e2e.pipeline import Pipeline, until

APPLY_ROUNDS = 3
LATENCY_S = 10
PATIENCE_S = 600  # with a machine that has other work
SINKS, PACED_S, PACED_ROWS, PACED_EVERY_S = 8, 10, 40, 0.02
Measured = defaultdict[str, list[float]]


# ---------------------------------------------------------------------------------------------------------------- drain
def drain(on: Rig, args: Namespace) -> Sequence[Figure | Sides]:
    """Rows per second and CPU while the topic grows by a backlog; start-up is not in it. Cold: the first backlog of a fresh worker."""
    debezium, name, found = on.debezium, "debezium_drain", Measured(list)
    with on.database("kdrain") as (source, target), on.pipeline("kdrain", source, target, debezium.log) as pipeline:
        debezium.begin(name, source)
        pipeline.start("capture")
        rig.loaded(pipeline)
        rig.stop(pipeline, "capture")
        rig.insert(source, 0, args.rows)
        ours_drained(debezium, pipeline, args.rows)
        is_cold = debezium.source_rows == 0
        cold = debezium_drained(debezium, name, source, args.rows)
        peer = Peer(on, source)
        for number, order in enumerate(ROUNDS):
            peer.settle()
            rig.insert(source, (1 + number) * args.rows, args.rows)
            run(source, "CHECKPOINT")
            lsn = rig.head(source)
            sides = [
                lambda: keep(found, "ours", ours_drained(debezium, pipeline, args.rows)),
                lambda: keep(found, "debezium", debezium_drained(debezium, name, source, args.rows)),
            ]
            for side in sides if order == "ours first" else reversed(sides):
                side()
                if side is sides[0]:
                    found["text"].append(args.rows / peer.drain("text", lsn))
        rows = sum(map(rig.rows_of, rig.checkpoints(pipeline)))
        assert rows == 1 + (1 + len(ROUNDS)) * args.rows, f"the log has {rows} rows"
    ratios = [ours / text for ours, text in zip(found["ours"], found["text"], strict=True)]
    figures = [
        Sides("kafka-drain", "into topics, Avro", found["ours"], found["debezium"], "rows/s", 2.0),
        Sides(
            "kafka-drain",
            "CPU of capture, and of Connect",
            found["ours CPU"],
            found["debezium CPU"],
            "µs/row",
            1 / 3,
            True,
        ),
        Figure("kafka-drain", "Penstock to pg_recvlogical, text", ratios, "x", 0.6),
        Figure("kafka-drain", "pg_recvlogical, text", found["text"], "rows/s"),
    ]
    if is_cold:
        figures.append(Figure("kafka-drain", "Debezium, cold", [cold[0]], "rows/s"))
        figures.append(Figure("kafka-drain", "Connect's CPU, cold", [cold[1]], "µs/row"))
    return figures


def keep(found: Measured, name: str, measured: tuple[float, float]) -> None:
    found[name].append(measured[0])
    found[f"{name} CPU"].append(measured[1])


def ours_drained(debezium: Debezium, pipeline: Pipeline, rows: int) -> tuple[float, float]:
    """Rows per second and CPU µs per row of a capture that finds this backlog."""
    with Growth(debezium.kafka, topic(pipeline.name)) as growth:
        process = pipeline.start("capture")
        with Meter(process.pid) as meter:
            grown = growth.wait(rows, PATIENCE_S, pipeline.alive)
        rig.stop(pipeline, "capture")
    return grown.rate, meter.cpu_s(grown.begin, grown.end) / grown.rows * 1e6


def debezium_drained(debezium: Debezium, name: str, source: str, rows: int) -> tuple[float, float]:
    """The same of Debezium; CPU is that of the worker."""
    with Growth(debezium.kafka, topic(name)) as growth, Meter(debezium.pid) as meter:
        debezium.start_source(name, source)
        grown = growth.wait(rows, PATIENCE_S, lambda: debezium.check(name))
        debezium.stop_source(name)
    assert growth.records == rows, f"{growth.records} records of {rows} rows"
    debezium.source_rows += rows
    return grown.rate, meter.cpu_s(grown.begin, grown.end) / grown.rows * 1e6


# ---------------------------------------------------------------------------------------------------------------- apply
def apply(on: Rig, args: Namespace) -> Sequence[Figure | Sides]:
    """Rows per second between the first and the last commit: of the same rows into a new empty table, then of a change of each.

    Each round has a sink and a table of its own, that of ours in a database of its own; what was captured is captured once."""
    rows, found = args.rows, Measured(list)
    sinks = [f"round{number}" for number in range(APPLY_ROUNDS)]
    with on.database("kapply") as (source, target), on.targets(*sinks) as urls:
        rig.insert(source, 0, rows)
        with (
            on.pipeline("kapply", source, dict(zip(sinks, urls, strict=True)), on.debezium.log) as pipeline,
            debezium_captures(on.debezium, "debezium_apply", source, rows) as name,
        ):
            pipeline.start("capture")
            checkpoint = rig.loaded(pipeline)
            theirs = (on.debezium, name, target)
            for mode in ("insert", "upsert"):
                if mode == "upsert":
                    with Growth(on.debezium.kafka, topic(name)) as growth:
                        rig.update(source, 0, rows)
                        growth.wait(rows, PATIENCE_S, lambda: on.debezium.check(name))
                    checkpoint = rig.captured(pipeline, rig.head(source))
                debezium_applied(*theirs, "warm", mode, rows)
                for sink, url, order in zip(sinks, urls, ROUNDS[:APPLY_ROUNDS], strict=True):
                    if order == "ours first":
                        keep(found, f"ours, {mode}", ours_applied(pipeline, sink, url, checkpoint, rows))
                    keep(found, f"theirs, {mode}", debezium_applied(*theirs, sink, mode, rows))
                    if order != "ours first":
                        keep(found, f"ours, {mode}", ours_applied(pipeline, sink, url, checkpoint, rows))
                    assert_equal(source, url)
                    assert_equal(source, target, sink)
    figures = []
    for mode, what, goal in (("upsert", "onto existing rows", 1.5), ("insert", "into an empty table", 3.0)):
        ours, theirs_ = f"ours, {mode}", f"theirs, {mode}"
        figures += [
            Sides("kafka-apply", what, found[ours], found[theirs_], "rows/s", goal),
            Sides("kafka-apply", f"{what}, CPU", found[f"{ours} CPU"], found[f"{theirs_} CPU"], "µs/row"),
        ]
    return figures


@contextmanager
def debezium_captures(debezium: Debezium, name: str, source: str, rows: int) -> Iterator[str]:
    """A source connector of this name that has read the existing rows, and runs on."""
    debezium.prepare(name, source)
    with Growth(debezium.kafka, topic(name)) as growth:
        debezium.start_source(name, source, "initial")
        growth.wait(rows, PATIENCE_S, lambda: debezium.check(name))
    try:
        yield name
    finally:
        debezium.stop_source(name)


def ours_applied(pipeline: Pipeline, sink: str, target: str, checkpoint: Checkpoint, rows: int) -> tuple[float, float]:
    """Rows per second and CPU µs per row of a sink that finds these rows in the log."""
    tidied(target, "bench")
    process = pipeline.start(sink)
    with Meter(process.pid) as meter:
        rig.applied(pipeline, target, checkpoint)
    rig.stop(pipeline, sink)
    return commits(target, rows, meter)


def debezium_applied(
    debezium: Debezium, name: str, target: str, table: str, mode: str, rows: int
) -> tuple[float, float]:
    """The same of the JDBC sink, into a table that is made with its primary key, as its own would be; CPU is that of the worker."""
    if mode == "insert":
        run(target, rig.DDL.replace("bench", table))
    tidied(target, table)
    written = "SELECT n_tup_ins + n_tup_upd FROM pg_stat_user_tables WHERE relname = %s"
    before = run(target, written, table)[0][0]
    with Meter(debezium.pid) as meter:
        debezium.start_sink(name, target, table, mode)
        until(
            lambda: run(target, written, table)[0][0] >= before + rows,
            PATIENCE_S,
            f"{rows} rows in {table}",
            every_s=0.1,
            alive=lambda: debezium.check(name, table),
        )
        debezium.stop_sink(name, table)
    debezium.sink_rows += rows
    return commits(target, rows, meter, table)


def tidied(target: str, table: str) -> None:
    """Without dead rows, and nothing to be written behind a measurement's back."""
    if run(target, "SELECT 1 WHERE to_regclass(%s) IS NOT NULL", table):
        run(target, f"VACUUM {table}")
    run(target, "CHECKPOINT")


# -------------------------------------------------------------------------------------------------------------- latency
def latency(on: Rig, args: Namespace) -> Sequence[Figure | Sides]:
    """Capture and sink of one side run at a time. A row's way ends at the first look from another connection that sees it."""
    debezium, name, found = on.debezium, "debezium_latency", Measured(list)
    with on.database("klate") as (source, target), on.database("klate_peer") as (their_source, their_target):
        for url in (source, their_source):
            run(url, "CREATE SEQUENCE ids CACHE 100")
        run(their_target, rig.DDL)
        debezium.begin(name, their_source)
        with on.pipeline("klate", source, target, debezium.log) as pipeline:
            for order in ROUNDS:
                for side in ("ours", "theirs") if order == "ours first" else ("theirs", "ours"):
                    if side == "ours":
                        with running(pipeline, source, target):
                            late_ms, _ = lateness(on, source, target, "bench", LATENCY_S, pipeline.alive)
                    else:
                        with debezium_runs(debezium, name, their_source, their_target, args.rows):
                            check = lambda: debezium.check(name, "source", "bench")  # noqa: E731 - one line, named for what follows
                            late_ms, _ = lateness(on, their_source, their_target, "bench", LATENCY_S, check)
                    for quantity, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
                        found[f"{side}, {quantity}"].append(quantile(late_ms, share))
    return [
        Sides("kafka-latency", f"commit to visible, {name}", found[f"ours, {name}"], found[f"theirs, {name}"], "ms", goal, True)
        for name, goal in (("p50", 1.0), ("p99", 1.0), ("max", None))
    ]  # fmt: skip


@contextmanager
def running(pipeline: Pipeline, source: str, target: str) -> Iterator[None]:
    """Capture and sink, when they have nothing left to do."""
    for role in ("capture", "main"):
        pipeline.start(role)
    rig.loaded(pipeline)
    rig.applied(pipeline, target, rig.captured(pipeline, rig.head(source)))
    yield
    for role in ("main", "capture"):
        rig.stop(pipeline, role)


@contextmanager
def debezium_runs(debezium: Debezium, name: str, source: str, target: str, warm_rows: int) -> Iterator[None]:
    """Source and sink, when they have nothing left to do and the worker is warm."""
    cold = max(0, warm_rows - min(debezium.source_rows, debezium.sink_rows))
    if cold:
        rig.insert(source, -1 - cold, cold)
    debezium.start_source(name, source)
    debezium.start_sink(name, target, "bench", "upsert")
    check = lambda: debezium.check(name, "source", "bench")  # noqa: E731 - see above
    until(lambda: equal_count(source, target), PATIENCE_S, "Debezium's last row", alive=check)
    debezium.source_rows += cold
    debezium.sink_rows += cold
    yield
    debezium.stop_source(name)
    debezium.stop_sink(name, "bench")


# --------------------------------------------------------------------------------------------------------------- fanout
def fanout(on: Rig, _args: Namespace) -> Sequence[Figure | Sides]:
    """CPU per event of one capture at a steady rate that eight sinks can follow, while one or all of them do."""
    sinks = [f"fan{number}" for number in range(SINKS)]
    found, events = Measured(list), 0
    with on.database("kfan") as (source, _), on.targets(*sinks) as urls:
        targets = dict(zip(sinks, urls, strict=True))
        with on.pipeline("kfan", source, targets, on.debezium.log) as pipeline:
            process = pipeline.start("capture")
            rig.loaded(pipeline)
            for count in (1, SINKS, SINKS, 1):
                for sink in sinks[:count]:
                    pipeline.start(sink)
                checkpoint = rig.captured(pipeline, rig.head(source))
                for sink in sinks[:count]:
                    rig.applied(pipeline, targets[sink], checkpoint)
                with Meter(process.pid) as meter:
                    span, rows = paced(source, events)
                    events += rows
                    checkpoint = rig.captured(pipeline, rig.head(source))
                for sink in sinks[:count]:
                    rig.applied(pipeline, targets[sink], checkpoint)
                    rig.stop(pipeline, sink)
                found[str(count)].append(meter.cpu_s(*span) / rows * 1e6)
    ratios = [eight / one for one, eight in zip(found["1"], reversed(found[str(SINKS)]), strict=True)]
    return [
        Figure("kafka-fanout", f"capture's CPU, {SINKS} sinks to one", ratios, "x", 1.1, True),
        Figure("kafka-fanout", "capture's CPU, one sink", found["1"], "µs/event"),
        Figure("kafka-fanout", f"capture's CPU, {SINKS} sinks", found[str(SINKS)], "µs/event"),
        Figure("kafka-fanout", "events", [PACED_ROWS / PACED_EVERY_S], "rows/s"),
    ]


def paced(source: str, first: int) -> tuple[tuple[float, float], int]:
    """Transactions of some rows in equal steps; when that was, and how many rows."""
    began, rows = time.time(), 0
    with closing(psycopg2.connect(source)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        while (late_s := time.time() - began) < PACED_S:
            if late_s < rows / PACED_ROWS * PACED_EVERY_S:
                time.sleep(rows / PACED_ROWS * PACED_EVERY_S - late_s)
            low = first + rows
            ids = f"generate_series({low}, {low + PACED_ROWS - 1}) i"
            cursor.execute(f"INSERT INTO bench SELECT {rig.ROW.format(i='i')} FROM {ids}")
            rows += PACED_ROWS
    return (began, time.time()), rows


CELLS: dict[str, Cell] = {
    "kafka-drain": drain,
    "kafka-apply": apply,
    "kafka-latency": latency,
    "kafka-fanout": fanout,
}
