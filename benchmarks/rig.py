"""What the cells stand on: two Postgres servers with fsync on, pipelines of real processes, and meters that look from outside.

A process's CPU time and memory are read from /proc; when a batch became durable, from the log's own checkpoints; when rows were
committed, from the servers' commit timestamps. Nothing is measured by the code that is measured.
"""

from __future__ import annotations

import bisect
import io
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import psycopg2

from cdc.commands.logs import look, open_log
from cdc.config import load as configuration
from cdc.demo.postgres import EmbeddedPostgres
from cdc.errors import CdcError, Unavailable
from cdc.log import Checkpoint, Log, Mark
from cdc.table import TableId
from tests.e2e.pipeline import Pipeline, until

if TYPE_CHECKING:
    from benchmarks.debezium import Debezium

TABLE = TableId("public", "bench")
COLUMNS = ("id", "a", "b", "c", "d", "e", "f", "g", "h", "i")
DDL = """CREATE TABLE bench (
    id bigint PRIMARY KEY, a integer NOT NULL, b bigint, c numeric(12,2), d double precision, e boolean,
    f timestamptz, g date, h text, i jsonb)"""
ROW = """{i}, {i} % 1000, {i} * 7, ({i} % 100000) / 100.0, {i} / 3.0, {i} % 2 = 0, now() - {i} * interval '1 second',
    date '2020-01-01' + ({i} % 1000)::int, 'text value number ' || {i} || ' ' || repeat('x', ({i} % 40)::int),
    jsonb_build_object('k', {i}, 'tags', array['a', 'b'])"""
BATCH_ROWS = 5_000  # rows per transaction of a backlog
SETTINGS = {
    "shared_buffers": "256MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "track_commit_timestamp": "on",
    "autovacuum": "off",  # each cell vacuums where it matters, so that no worker runs in only one half of a comparison
}


class Rig:
    """A source server and a target server, and a folder for pipelines. Each cell has databases of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self.source_server = self._stack.enter_context(EmbeddedPostgres(settings=SETTINGS))
        self.target_server = self._stack.enter_context(EmbeddedPostgres(settings=SETTINGS))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def database(self, name: str) -> Iterator[tuple[str, str]]:
        """Databases of this name at source and target, their URLs; the source's has the bench table."""
        servers = (self.source_server, self.target_server)
        for server in servers:
            run(server.url(), f"CREATE DATABASE {name}")
        source, target = (server.url(name) for server in servers)
        run(source, DDL)
        try:
            yield source, target
        finally:
            drop_slots(source)
            for server in servers:
                run(server.url(), f"DROP DATABASE {name} WITH (FORCE)")

    @cached_property
    def debezium(self) -> Debezium:
        """Kafka, and Debezium on it, from now on until the end. Raises tests.servers.Missing where there is no Java or no Maven."""
        from benchmarks.debezium import Debezium

        debezium = Debezium()
        self._stack.callback(debezium.close)
        return debezium

    @contextmanager
    def targets(self, *names: str) -> Iterator[list[str]]:
        """Further databases at the target, their URLs."""
        for name in names:
            run(self.target_server.url(), f"CREATE DATABASE {name}")
        try:
            yield [self.target_server.url(name) for name in names]
        finally:
            for name in names:
                run(self.target_server.url(), f"DROP DATABASE {name} WITH (FORCE)")

    @contextmanager
    def pipeline(
        self, name: str, source: str, sinks: str | Mapping[str, str], log: Mapping[str, Any] | None = None, **more: Any
    ) -> Iterator[Pipeline]:
        """`log` None is an embedded one; `more` are further keys of the pipeline file."""
        (folder := self.folder / name).mkdir()
        sinks = {"main": sinks} if isinstance(sinks, str) else sinks
        pipeline = Pipeline(folder, name, source, sinks, **({"log": log} if log else {}), **more)
        try:
            yield pipeline
        finally:
            pipeline.close()


def run(url: str, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """SQL in autocommit, on a connection of its own."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return cursor.fetchall() if cursor.description else []


def insert(url: str, first: int, rows: int, batch: int = BATCH_ROWS) -> None:
    """Rows `first` … of the bench table, `batch` in a transaction."""
    select = f"SELECT {ROW.format(i='i')} FROM generate_series(n, least(n + {batch}, {first + rows}) - 1) i"
    _in_batches(url, first, rows, batch, f"INSERT INTO bench {select}")


def update(url: str, first: int, rows: int, batch: int = BATCH_ROWS) -> None:
    """Change those rows once."""
    statement = "UPDATE bench SET a = a + 1, c = c + 0.01, f = now(), h = h || '.'"
    _in_batches(url, first, rows, batch, f"{statement} WHERE id >= n AND id < least(n + {batch}, {first + rows})")


def _in_batches(url: str, first: int, rows: int, batch: int, statement: str) -> None:
    run(
        url,
        f"DO $$ BEGIN FOR n IN {first}..{first + rows - 1} BY {batch} LOOP {statement}; COMMIT; END LOOP; END $$",
    )


def plainly_merged(source: str, target: str) -> tuple[float, float, float]:
    """Seconds of COPY, INSERT … ON CONFLICT and COMMIT: the source's rows onto those of `bench_sql` in the target, by SQL alone."""
    blob = io.BytesIO()
    with closing(psycopg2.connect(source)) as connection, connection.cursor() as cursor:
        cursor.copy_expert("COPY bench TO STDOUT", blob)
    blob.seek(0)
    with closing(psycopg2.connect(target)) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE staged AS SELECT * FROM bench_sql WITH NO DATA")
        connection.commit()
        moments = [time.perf_counter()]
        cursor.copy_expert("COPY staged FROM STDIN", blob, 1 << 20)
        moments.append(time.perf_counter())
        cursor.execute(
            "INSERT INTO bench_sql SELECT * FROM staged ON CONFLICT (id) DO UPDATE SET "
            + ", ".join(f"{name} = excluded.{name}" for name in COLUMNS[1:])
        )
        moments.append(time.perf_counter())
        connection.commit()
        moments.append(time.perf_counter())
    return moments[1] - moments[0], moments[2] - moments[1], moments[3] - moments[2]


def second_table(target: str) -> None:
    """`bench_sql`, a copy of what the target has, for `plainly_merged`."""
    run(target, "CREATE TABLE bench_sql (LIKE bench INCLUDING ALL)")
    run(target, "INSERT INTO bench_sql SELECT * FROM bench")


def tidied(target: str) -> None:
    """Both tables without dead rows, and nothing to be written behind a measurement's back."""
    for statement in ("VACUUM bench", "VACUUM bench_sql", "CHECKPOINT"):
        run(target, statement)


def head(url: str) -> str:
    """The end of the server's log, on disk."""
    run(url, "SELECT pg_logical_emit_message(true, 'bench', '')")
    return str(run(url, "SELECT pg_current_wal_flush_lsn()")[0][0])


def drop_slots(url: str) -> None:
    for (name,) in run(url, "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"):
        until(lambda name=name: _dropped(url, name), 10, f"slot {name} free")


def _dropped(url: str, name: str) -> bool:
    try:
        run(url, "SELECT pg_drop_replication_slot(%s)", name)
    except psycopg2.errors.ObjectInUse:
        run(url, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s", name)
        return False
    except psycopg2.errors.UndefinedObject:
        return True
    return True


# ------------------------------------------------------------------------------------------------------------ processes
def stop(pipeline: Pipeline, role: str) -> None:
    """End it at a committed batch; that it is not alive is then no failure."""
    ended = pipeline.terminate(role)
    assert ended == 0, pipeline.tail(role)
    del pipeline.processes[role]


class Meter:
    """Samples a process's CPU seconds (user and system) in a thread, and its memory's high-water mark, until it is left."""

    def __init__(self, pid: int, every_s: float = 0.02) -> None:
        self._pid, self._every_s = pid, every_s
        self._samples: list[tuple[float, float]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.peak_mb = 0.0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self._every_s):
            try:
                self._samples.append((time.time(), cpu_s(self._pid)))
                self.peak_mb = peak_mb(self._pid)
            except (OSError, ValueError):  # it has ended
                return

    def cpu_s(self, begin: float, end: float) -> float:
        """CPU seconds between two moments of `time.time()`."""
        return self._at(end) - self._at(begin)

    def _at(self, moment: float) -> float:
        index = min(max(1, bisect.bisect(self._samples, (moment,))), len(self._samples) - 1)
        (t0, c0), (t1, c1) = self._samples[index - 1], self._samples[index]
        return c0 + (c1 - c0) * min(1.0, max(0.0, (moment - t0) / (t1 - t0)))


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


# ------------------------------------------------------------------------------------------------------------------ log
@contextmanager
def log_of(pipeline: Pipeline) -> Iterator[Log]:
    """A reader's look at the log, of whatever kind. Raises CDC-LOG-101 where there is none."""
    with closing(open_log(configuration(pipeline.file))) as log:
        yield log


def last(pipeline: Pipeline) -> Checkpoint | None:
    try:
        with log_of(pipeline) as log:
            return log.last_checkpoint()
    except CdcError as error:
        if error.code != "CDC-LOG-101" and not isinstance(error, Unavailable):
            raise
        return None  # capture has not made it yet, or is about to


def checkpoints(pipeline: Pipeline, after: Checkpoint | None = None) -> list[Checkpoint]:
    """Those behind `after`; records are not read."""
    with log_of(pipeline) as log:
        mark = after.mark if after else Mark(-1, log.id)
        with closing(log.read(mark, lambda _table: False, 0.0)) as items:
            return [item[0] for item in iter(lambda: next(items), None)]


def captured(pipeline: Pipeline, lsn: str, timeout_s: float = 120) -> Checkpoint:
    """Wait until everything up to `lsn` is in the log behind a cut."""

    def there() -> Checkpoint | None:
        found = last(pipeline)
        return found if found and found.cut and _lsn(found.position.stream["lsn"]) >= _lsn(lsn) else None

    checkpoint: Checkpoint = until(there, timeout_s, f"capture at {lsn}", every_s=0.1, alive=pipeline.alive)
    return checkpoint


def _lsn(text: str) -> int:
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)


def rows_of(checkpoint: Checkpoint) -> int:
    return sum(checkpoint.rows.values())


def loaded(pipeline: Pipeline, timeout_s: float = 120) -> Checkpoint:
    """Wait until the bench table's load is finished in the log."""

    def there() -> Checkpoint | None:
        if last(pipeline) is None:
            return None
        with look(configuration(pipeline.file)) as surveyor:
            found, tables, _ = surveyor.survey()
        return found if found and found.cut and TABLE in tables and not found.position.load["loading"] else None

    checkpoint: Checkpoint = until(there, timeout_s, "the load", every_s=0.1, alive=pipeline.alive)
    return checkpoint


def applied(pipeline: Pipeline, target: str, checkpoint: Checkpoint, timeout_s: float = 120) -> None:
    """Wait until the sink has committed everything up to this checkpoint."""

    def there() -> bool:
        if not run(target, "SELECT 1 WHERE to_regclass('_cdc.bookmark') IS NOT NULL"):
            return False
        return bool(run(target, "SELECT 1 FROM _cdc.bookmark WHERE number >= %s", checkpoint.number))

    until(there, timeout_s, f"sink at {checkpoint.number}", every_s=0.1, alive=pipeline.alive)


# -------------------------------------------------------------------------------------------------------------- figures
class Figure(NamedTuple):
    """One measured thing of a cell. `goal` is a least ratio or a largest value, as `at_most` says; None: for information."""

    cell: str
    name: str
    values: Sequence[float]  # one per round
    unit: str
    goal: float | None = None
    at_most: bool = False
    limit: tuple[str, float] | None = None  # what it is compared with, in the same unit

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def held(self) -> bool | None:
        if self.goal is None:
            return None
        return self.median <= self.goal if self.at_most else self.median >= self.goal

    def to_json(self) -> dict[str, Any]:
        return {
            "cell": self.cell, "name": self.name, "median": round(self.median, 4), "low": round(min(self.values), 4),
            "high": round(max(self.values), 4), "rounds": len(self.values), "unit": self.unit, "goal": self.goal,
            "goal_is": None if self.goal is None else "at most" if self.at_most else "at least", "held": self.held,
            "limit": self.limit and {"name": self.limit[0], "value": round(self.limit[1], 4)},
        }  # fmt: skip

    def __str__(self) -> str:
        goal = "" if self.goal is None else f"  goal {'≤' if self.at_most else '≥'} {form(self.goal)}"
        if self.limit is not None:
            goal += f"  {form(self.median / self.limit[1])} x {self.limit[0]}, {form(self.limit[1])}"
        return (
            f"  {MARKS[self.held]} {self.name:44} {form(self.median):>9}{spread(self.values):20} {self.unit:12}{goal}"
        )


class Sides(NamedTuple):
    """One measured thing of both sides, `ours` and the opponent's, in as many rounds of one run. `goal` is that of the ratio, ours to
    theirs, round by round: a least one, or a largest, as `at_most` says."""

    cell: str
    name: str
    ours: Sequence[float]
    theirs: Sequence[float]
    unit: str
    goal: float | None = None
    at_most: bool = False

    @property
    def ratio(self) -> Figure:
        ratios = [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]
        return Figure(self.cell, self.name, ratios, "x", self.goal, self.at_most)

    @property
    def held(self) -> bool | None:
        return self.ratio.held

    def to_json(self) -> dict[str, Any]:
        sides = {"ours": self.ours, "debezium": self.theirs}
        found = {side: Figure(self.cell, self.name, values, self.unit).to_json() for side, values in sides.items()}
        figures = {side: {name: figure[name] for name in ("median", "low", "high")} for side, figure in found.items()}
        return {**self.ratio.to_json(), "figures_in": self.unit, **figures}

    def __str__(self) -> str:
        goal = "" if self.goal is None else f"  goal {'≤' if self.at_most else '≥'} {form(self.goal)}"
        sides = "  ".join(f"{form(statistics.median(side)):>9}{spread(side):19}" for side in (self.ours, self.theirs))
        ratio = f"{form(self.ratio.median):>6} x{spread(self.ratio.values):16}"
        return f"  {MARKS[self.held]} {self.name:33} {self.unit:7} {sides} {ratio}{goal}"

    @staticmethod
    def heading() -> str:
        return f"    {'':41} {'Penstock':>9}{'':19}  {'Debezium':>9}"


MARKS = {None: " ", True: "✓", False: "✗"}


def spread(values: Sequence[float]) -> str:
    return f" ({form(min(values))}–{form(max(values))})" if len(values) > 1 else ""


def form(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


Cell = Callable[[Rig, Any], Sequence[Figure | Sides]]
