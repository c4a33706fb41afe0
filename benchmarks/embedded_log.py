"""The embedded log's speed: append with sync, read, one INSERT per row beside it, latency and idle cost. Ratios in one run, median.

python benchmarks/embedded_log.py [folder on the disk to measure]
"""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from cdc.log import Draft, Mark
from cdc.log.embedded import EmbeddedLog
from cdc.position import Position
from cdc.records import Records
from cdc.table import TableId

TABLE, ROWS, BATCHES, ROUNDS, VALUE_BYTES = TableId("public", "orders"), 10_000, 40, 5, 250
POSITION = Position(0, 0, {"lsn": "0/1A2B3C"}, {})


def batch(seed: int) -> Records:
    head = b"\x00\x00\x00\x00\x07\x02c\x00\x00"
    keys: list[bytes | None] = [b"\x00\x00\x00\x00\x08" + (seed * ROWS + i).to_bytes(4, "big") for i in range(ROWS)]
    return Records(keys, [head + os.urandom(VALUE_BYTES - len(head)) for _ in range(ROWS)])


def everything(_: TableId) -> bool:
    return True


class Timed:
    """Wall and CPU time of a block, in µs per row."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __enter__(self) -> Timed:
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall = (time.perf_counter() - self._wall) / self.rows * 1e6
        self.cpu = (time.process_time() - self._cpu) / self.rows * 1e6


def append(log: EmbeddedLog, batches: list[Records]) -> Timed:
    with Timed(ROWS * len(batches)) as timed:
        for records in batches:
            log.append({TABLE: records}, Draft(POSITION, True))
    return timed


def read(log: EmbeddedLog, after: Mark, batches: int) -> Timed:
    with closing(log.read(after, everything, 1.0)) as items, Timed(ROWS * batches) as timed:
        for _ in range(batches):
            assert next(items) is not None
    return timed


def insert_each(path: Path, batches: list[Records]) -> Timed:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS records (id INTEGER PRIMARY KEY, key BLOB, value BLOB)")
        with Timed(ROWS * len(batches)) as timed:
            for records in batches:
                connection.execute("BEGIN")
                connection.executemany(
                    "INSERT INTO records (key, value) VALUES (?, ?)", zip(records.keys, records.values, strict=True)
                )
                connection.execute("COMMIT")
    return timed


def bare_file(path: Path, batches: list[Records]) -> Timed:
    """What the disk takes: the same bytes, once, to the end of a file, synced."""
    with path.open("ab", buffering=0) as file, Timed(ROWS * len(batches)) as timed:
        for records in batches:
            file.write(b"".join(records.values))
            os.fdatasync(file.fileno())
    return timed


def follow(folder: str, count: int, results: multiprocessing.Queue[list[float]]) -> None:
    delays = []
    with (
        EmbeddedLog(folder, create=False) as log,
        closing(log.read(Mark(-1, log.id), everything, 1.0)) as items,
    ):
        for item in items:
            if item is not None and item[0].commit_ms is None:
                delays.append(time.time() - item[0].position.stream["sent"])
                if len(delays) == count:
                    break
    results.put(delays)


def latency(folder: str) -> list[float]:
    """Milliseconds from a commit's return to its arrival in another process, one commit every 30 ms."""
    count, context = 200, multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[list[float]] = context.Queue()
    with EmbeddedLog(folder) as log:
        log.open_writer()
        process = context.Process(target=follow, args=(folder, count, results))
        process.start()
        time.sleep(1.5)
        returned = []
        for _ in range(count):
            sent = time.time()
            log.append({}, Draft(Position(0, 0, {"sent": sent}, {}), True))
            returned.append(time.time() - sent)
            time.sleep(0.03)
        delays = results.get(timeout=60)
        process.join()
    return sorted((delay - took) * 1000 for delay, took in zip(delays, returned, strict=True))


def idle_cpu(log: EmbeddedLog, mark: Mark) -> float:
    """Share of one core that a reader of a silent log takes."""
    with closing(log.read(mark, everything, 0.1)) as items:
        for _ in range(15):
            next(items)  # until it polls slowly
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(20):
            next(items)
        return (time.process_time() - cpu) / (time.perf_counter() - wall)


def main() -> None:
    batches = [batch(i) for i in range(BATCHES)]
    appends, reads, inserts, files = list[Timed](), list[Timed](), list[Timed](), list[Timed]()
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        with EmbeddedLog(f"{folder}/log", free_bytes_min=0) as log:
            log.open_writer()
            mark = log.append({}, Draft(POSITION, True)).mark
            for _ in range(ROUNDS):
                appends.append(append(log, batches))
                files.append(bare_file(Path(folder) / "bare", batches))
                inserts.append(insert_each(Path(folder) / "each.sqlite", batches))
                reads.append(read(log, mark, BATCHES))
                last = log.last_checkpoint()
                assert last is not None
                mark = last.mark
            idle = idle_cpu(log, mark)
        delays = latency(f"{folder}/latency")
    print(f"{ROWS} rows of {VALUE_BYTES} bytes per checkpoint; µs per row, median of {ROUNDS} (least, most)")
    for name, timed in (
        ("append + sync", appends),
        ("bare file + sync", files),
        ("INSERT each + sync", inserts),
        ("read", reads),
    ):
        wall, cpu = sorted(t.wall for t in timed), statistics.median(t.cpu for t in timed)
        middle = statistics.median(wall)
        print(
            f"{name:20} {middle:6.3f} ({wall[0]:.3f}, {wall[-1]:.3f})  cpu {cpu:.3f}  {1 / middle * 1e6:12,.0f} rows/s"
        )
    ratio = statistics.median(i.wall / a.wall for i, a in zip(inserts, appends, strict=True))
    print(f"an INSERT per row takes {ratio:.1f} times as long")
    middle, late = delays[len(delays) // 2], delays[int(len(delays) * 0.99)]
    print(f"commit to read, other process: p50 {middle:.1f} ms, p99 {late:.1f} ms; idle reader {idle:.1%} of a core")


if __name__ == "__main__":
    main()
