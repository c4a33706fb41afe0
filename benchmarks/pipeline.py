"""The pipeline's cells: real processes on real servers, each beside its own limit in the same run, in turn (A B B A).

drain    a backlog of transactions into the log, against pg_recvlogical
load     existing rows into the log, CPU per row, against a bare fastavro writer
apply    the log onto existing rows of a target, against COPY and INSERT … ON CONFLICT of the same rows
latency  commit at the source → visible in the target, single-row transactions at a fixed rate
memory   peak resident memory while large transactions and loads pass
stages   where the time of a row goes
"""

from __future__ import annotations

import subprocess
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import psycopg2

from benchmarks import codec, rig
from benchmarks.rig import Cell, Figure, Meter, Rig, run
from benchmarks.stages import stages
from cdc.log import Checkpoint
from tests.e2e.pipeline import Pipeline, until

ROUNDS = ("ours first", "limit first", "limit first", "ours first")
WARM_ROWS = 20_000
PEERS = ("text", "binary")
RATE, WARM_S, LATENCY_S, CLIENTS = 1_000, 5, 20, 4
MEMORY_MB = 250.0


# ---------------------------------------------------------------------------------------------------------------- drain
def drain(on: Rig, args: Namespace) -> list[Figure]:
    """Rows per second from the first to the last record checkpoint; for pg_recvlogical from start to end, less what a start takes."""
    found: dict[str, list[float]] = {name: [] for name in ("ours", "cpu", "text", "binary", "ratio", "binary ratio")}
    with on.database("drain") as (source, target), on.pipeline("drain", source, target) as pipeline:
        pipeline.start("capture")
        rig.loaded(pipeline)
        rig.insert(source, 0, WARM_ROWS)
        rig.captured(pipeline, rig.head(source))
        rig.stop(pipeline, "capture")
        peer = Peer(on, source)
        for number, order in enumerate(ROUNDS, 1):
            peer.settle()
            rig.insert(source, number * args.rows, args.rows)
            run(source, "CHECKPOINT")
            lsn = rig.head(source)
            if order == "limit first":
                found["text"].append(args.rows / peer.drain("text", lsn))
                found["binary"].append(args.rows / peer.drain("binary", lsn))
            rate, cpu_us = drained(pipeline, lsn)
            if order == "ours first":
                found["binary"].append(args.rows / peer.drain("binary", lsn))
                found["text"].append(args.rows / peer.drain("text", lsn))
            found["ours"].append(rate)
            found["cpu"].append(cpu_us)
            found["ratio"].append(rate / found["text"][-1])
            found["binary ratio"].append(rate / found["binary"][-1])
    return [
        Figure("drain", "ratio to pg_recvlogical, text", found["ratio"], "x", 0.75),
        Figure("drain", "ratio to pg_recvlogical, binary", found["binary ratio"], "x"),
        Figure("drain", "capture", found["ours"], "rows/s"),
        Figure("drain", "pg_recvlogical, text", found["text"], "rows/s"),
        Figure("drain", "pg_recvlogical, binary", found["binary"], "rows/s"),
        Figure("drain", "capture's CPU", found["cpu"], "µs/row"),
    ]


class Peer:
    """pg_recvlogical on slots of its own, one for each mode."""

    def __init__(self, on: Rig, source: str) -> None:
        self._server, self._source = on.source_server, source
        self._publication = run(source, "SELECT pubname FROM pg_publication")[0][0]
        for slot in PEERS:
            run(source, "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
        self._start_s = min(self._run(slot, self.settle()) for slot in PEERS * 3)

    def settle(self) -> str:
        """Let the server forget what the slots have behind them, or it decodes it again at the next start; where the log ends."""
        for _ in range(2):
            run(self._source, "SELECT pg_log_standby_snapshot()")
            lsn = rig.head(self._source)
            for slot in PEERS:
                run(self._source, "SELECT pg_replication_slot_advance(%s, %s)", slot, lsn)
        return lsn

    def drain(self, slot: str, lsn: str) -> float:
        """Seconds for what is in the slot up to `lsn`, less what it takes to read nothing."""
        return self._run(slot, lsn) - self._start_s

    def _run(self, slot: str, lsn: str) -> float:
        options = {
            "proto_version": "1",
            "publication_names": self._publication,
            "binary": str(slot == "binary").lower(),
        }
        command = [str(self._server.bin / "pg_recvlogical"), "-d", self._source, "-S", slot, "--start"]
        command += ["-f", "/dev/null", "--endpos", lsn, "--no-loop", "--fsync-interval", "0"]
        command += [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        began = time.perf_counter()
        subprocess.run(command, check=True, timeout=120, capture_output=True)
        return time.perf_counter() - began


def drained(pipeline: Pipeline, lsn: str) -> tuple[float, float]:
    """Rows per second, and CPU µs per row, of a capture that finds a backlog up to `lsn`."""
    before = rig.last(pipeline)
    process = pipeline.start("capture")
    with Meter(process.pid) as meter:
        rig.captured(pipeline, lsn)
    rig.stop(pipeline, "capture")
    return between(records(pipeline, before), meter)


def records(pipeline: Pipeline, after: Checkpoint | None) -> list[Checkpoint]:
    return [checkpoint for checkpoint in rig.checkpoints(pipeline, after) if rig.rows_of(checkpoint)]


def between(found: list[Checkpoint], meter: Meter) -> tuple[float, float]:
    """Rows per second and CPU µs per row from the first checkpoint to the last; the first one's rows do not count."""
    rows = sum(map(rig.rows_of, found[1:]))
    begin, end = found[0].written_ms / 1000, found[-1].written_ms / 1000
    return rows / (end - begin), meter.cpu_s(begin, end) / rows * 1e6


# ----------------------------------------------------------------------------------------------------------------- load
def load(on: Rig, args: Namespace) -> list[Figure]:
    """CPU from the checkpoint that begins the load to the one that finishes it, over all rows."""
    ours, bare, rates, peaks = [], [], [], []
    writer = codec.bare_writer([codec.fields(i) for i in range(500_000, 520_000)])
    with on.database("load") as (source, target):
        rig.insert(source, 0, args.rows)
        run(source, "VACUUM ANALYZE bench")
        for number in range(3):
            before = bare_us(writer)
            with on.pipeline(f"load{number}", source, target) as pipeline:
                process = pipeline.start("capture")
                with Meter(process.pid) as meter:
                    rig.loaded(pipeline)
                rig.stop(pipeline, "capture")
                found = rig.checkpoints(pipeline)
            begin = next(checkpoint.written_ms for checkpoint in found if checkpoint.begun) / 1000
            end = next(checkpoint.written_ms for checkpoint in found if checkpoint.finished) / 1000
            assert sum(map(rig.rows_of, found)) == args.rows
            rates.append(args.rows / (end - begin))
            ours.append(meter.cpu_s(begin, end) / args.rows * 1e6)
            bare.append((before + bare_us(writer)) / 2)
            peaks.append(meter.peak_mb)
    return [
        Figure("load", "CPU ratio to a bare fastavro writer", [a / b for a, b in zip(ours, bare, strict=True)], "x", 1.5, True),
        Figure("load", "capture's CPU", ours, "µs/row"),
        Figure("load", "bare fastavro.schemaless_writer", bare, "µs/row"),
        Figure("load", "capture", rates, "rows/s"),
        Figure("load", f"capture's peak memory, {args.rows:,} rows", peaks, "MB", MEMORY_MB, True),
    ]  # fmt: skip


def bare_us(writer: codec.Pass) -> float:
    """CPU µs per row; the least of a few passes."""
    found = []
    for _ in range(5):
        began = time.process_time()
        writer.run()
        found.append((time.process_time() - began) / writer.rows * 1e6)
    return min(found)


# ---------------------------------------------------------------------------------------------------------------- apply
def apply(on: Rig, args: Namespace) -> list[Figure]:
    """Rows per second from the sink's first commit to its last; for SQL the whole of COPY, INSERT and COMMIT."""
    ours, theirs, cpu, peaks = [], [], [], []
    with on.database("apply") as (source, target), on.pipeline("apply", source, target) as pipeline:
        rig.insert(source, 0, args.rows)
        pipeline.start_all()
        rig.applied(pipeline, target, rig.loaded(pipeline))
        rig.stop(pipeline, "main")
        rig.second_table(target)
        for order in ROUNDS:
            rig.update(source, 0, args.rows)
            checkpoint = rig.captured(pipeline, rig.head(source))
            rig.tidied(target)
            if order == "limit first":
                theirs.append(args.rows / sum(rig.plainly_merged(source, target)))
            process = pipeline.start("main")
            with Meter(process.pid) as meter:
                rig.applied(pipeline, target, checkpoint)
            rig.stop(pipeline, "main")
            rate, cpu_us = commits(target, args.rows, meter)
            ours.append(rate)
            cpu.append(cpu_us)
            peaks.append(meter.peak_mb)
            if order == "ours first":
                theirs.append(args.rows / sum(rig.plainly_merged(source, target)))
            assert_equal(source, target)
    return [
        Figure("apply", "ratio to COPY and INSERT … ON CONFLICT", [a / b for a, b in zip(ours, theirs, strict=True)], "x", 0.55),
        Figure("apply", "sink", ours, "rows/s"),
        Figure("apply", "COPY and INSERT … ON CONFLICT", theirs, "rows/s"),
        Figure("apply", "sink's CPU", cpu, "µs/row"),
        Figure("apply", "sink's peak memory", peaks, "MB", MEMORY_MB, True),
    ]  # fmt: skip


def commits(target: str, rows: int, meter: Meter, table: str = "bench") -> tuple[float, float]:
    """Rows per second and CPU µs per row between the target's first and last commit of a table, by its own clock."""
    moment = "extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8"
    found = run(target, f"SELECT {moment}, count(*) FROM {table} GROUP BY 1 ORDER BY 1")
    assert sum(count for _, count in found) == rows
    assert len(found) > 1, f"{rows} rows came in one commit, which tells no rate: take more"
    counted, (begin, end) = rows - found[0][1], (found[0][0], found[-1][0])
    return counted / (end - begin), meter.cpu_s(begin, end) / counted * 1e6


def assert_equal(source: str, target: str, table: str = "bench") -> None:
    digest = "SELECT count(*), sum(hashtextextended(t::text, 0)) FROM {} t"
    there = run(target, "SET TimeZone = 'UTC';" + digest.format(table))
    assert there == run(source, "SET TimeZone = 'UTC';" + digest.format("bench")), "source and target differ"


# -------------------------------------------------------------------------------------------------------------- latency
INSERT = f"INSERT INTO bench SELECT {rig.ROW.format(i='i')} FROM nextval('ids') i;"


def latency(on: Rig, _args: Namespace) -> list[Figure]:
    """From the source's commit record to the first look from another connection that sees the row in the target."""
    figures = []
    with on.database("latency") as (source, target), on.pipeline("latency", source, target) as pipeline:
        run(source, "CREATE SEQUENCE ids CACHE 100")
        processes = [pipeline.start(role) for role in ("capture", "main")]
        rig.applied(pipeline, target, rig.loaded(pipeline))
        with Meter(processes[0].pid) as capture, Meter(processes[1].pid) as sink:
            late_ms, span = lateness(on, source, target, "bench", LATENCY_S, pipeline.alive)
    quantiles = {"p50": (0.5, 50.0), "p90": (0.9, None), "p99": (0.99, 110.0), "max": (1.0, None)}
    for name, (share, goal) in quantiles.items():
        figures.append(Figure("latency", f"commit to visible, {name}", [quantile(late_ms, share)], "ms", goal, True))
    figures.append(Figure("latency", "changes", [len(late_ms) / LATENCY_S], "rows/s"))
    for name, meter in (("capture", capture), ("sink", sink)):
        figures.append(Figure("latency", f"{name}'s share of a core", [meter.cpu_s(*span) / LATENCY_S * 100], "%"))
    return figures


def lateness(
    on: Rig, source: str, target: str, table: str, seconds: int, alive: Callable[[], None]
) -> tuple[list[float], tuple[float, float]]:
    """How late rows come into `table` of the target, in ms, sorted, while the source commits RATE a second; and when it was."""
    with looking(target) as looks:
        began = time.time()
        generate(on, source, WARM_S + seconds)
        until(lambda: equal_count(source, target, table), 30, "the last row", alive=alive)
    span = began + WARM_S, began + WARM_S + seconds
    moment = "extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8"
    between = f"SELECT id, at FROM (SELECT id, {moment} AS at FROM bench) c WHERE at >= %s AND at < %s"
    committed = dict(run(source, between, *span))
    arrived = [
        (number, xid)
        for number, xid in run(target, f"SELECT id, xmin::text::bigint FROM {table}")
        if number in committed
    ]
    seen = visible(sorted({xid for _, xid in arrived}), looks)
    assert len(arrived) > RATE * seconds * 0.9, f"the source made {len(arrived) / seconds:.0f} changes a second"
    return sorted((seen[xid] - committed[number]) * 1000 for number, xid in arrived), span


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def generate(on: Rig, source: str, seconds: int) -> None:
    """Single-row transactions at RATE, whatever becomes of them: an open loop."""
    script = on.folder / "insert.sql"
    script.write_text(INSERT.replace("\n", " ") + "\n")
    command = [str(on.source_server.bin / "pgbench"), "-n", "-M", "prepared", "-f", str(script), "-R", str(RATE)]
    command += ["-c", str(CLIENTS), "-j", "1", "-T", str(seconds), source]
    subprocess.run(command, check=True, timeout=seconds + 30, capture_output=True)


@contextmanager
def looking(target: str) -> Iterator[list[tuple[float, str]]]:
    """Looks at the target's snapshot every 2 ms: which transactions are visible when."""
    looks: list[tuple[float, str]] = []
    end = threading.Event()

    def look() -> None:
        with closing(psycopg2.connect(target)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            while not end.wait(0.002):
                cursor.execute("SELECT pg_current_snapshot()::text")
                looks.append((time.time(), cursor.fetchone()[0]))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield looks
    finally:
        end.set()
        thread.join()


def visible(xids: list[int], looks: list[tuple[float, str]]) -> dict[int, float]:
    """When each of these transactions was first seen to be committed."""
    found: dict[int, float] = {}
    waiting = list(xids)
    for moment, text in looks:
        low, high, running = text.split(":")
        hidden = set(map(int, filter(None, running.split(","))))
        still = []
        for index, xid in enumerate(waiting):
            if xid >= int(high):
                still += waiting[index:]
                break
            if xid >= int(low) and xid in hidden:
                still.append(xid)
            else:
                found[xid] = moment
        waiting = still
    return found


def equal_count(source: str, target: str, table: str = "bench") -> bool:
    return run(source, "SELECT count(*) FROM bench") == run(target, f"SELECT count(*) FROM {table}")


# --------------------------------------------------------------------------------------------------------------- memory
def memory(on: Rig, args: Namespace) -> list[Figure]:
    """Peak resident memory of both processes, fresh for each size, while one transaction of that many rows passes."""
    sizes = (100_000, 1_000_000) if args.full else (100_000,)
    figures, peaks = [], dict[str, list[float]]()
    for rows in sizes:
        name = f"memory{rows}"
        with on.database(name) as (source, target), on.pipeline(name, source, target) as pipeline:
            processes = {role: pipeline.start(role) for role in ("capture", "main")}
            rig.applied(pipeline, target, rig.loaded(pipeline))
            rig.insert(source, 0, rows, batch=rows)
            rig.applied(pipeline, target, rig.captured(pipeline, rig.head(source), 300), 300)
            for role, label in (("capture", "capture"), ("main", "sink")):
                peak = rig.peak_mb(processes[role].pid)
                peaks.setdefault(label, []).append(peak)
                figures.append(
                    Figure("memory", f"{label}, transaction of {rows:,} rows", [peak], "MB", MEMORY_MB, True)
                )
    for label, found in peaks.items():
        if len(found) > 1:
            figures.append(Figure("memory", f"{label}, largest to smallest", [found[-1] / found[0]], "x", 1.25, True))
    return figures


CELLS: dict[str, Cell] = {
    "drain": drain,
    "load": load,
    "apply": apply,
    "latency": latency,
    "memory": memory,
    "stages": stages,
}
