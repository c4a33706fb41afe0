"""Transactions larger than memory pass through capture and sink: both stay small, and the target never shows a part of one.

100,000 rows in `make test`, 1,000,000 in `make test-full` (PENSTOCK_FULL=1): the bound is the same, so memory is flat (rule R9)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
import pytest

from tests.e2e.pipeline import Pipeline, until
from tests.servers import Database, execute

FULL = bool(os.environ.get("PENSTOCK_FULL"))
ROWS = 1_000_000 if FULL else 100_000
PASS_S = 900 if FULL else 120
PEAK_MB = 250

SCHEMA = "CREATE TABLE wide (id bigint PRIMARY KEY, version int NOT NULL, n numeric, at timestamptz, j jsonb, big text)"
INSERT = f"""INSERT INTO wide SELECT i, 0, i / 7.0, now(), jsonb_build_object('k', i), repeat(md5(i::text), 20)
    FROM generate_series(1, {ROWS}) i"""
STATE = "SELECT count(*), min(version), max(version) FROM public.wide"


def peak_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


@contextmanager
def watching(target: Database) -> Iterator[list[tuple[int, int | None, int | None]]]:
    """Every state of the target's table that anybody could have seen, in order."""
    states: list[tuple[int, int | None, int | None]] = []
    end = threading.Event()

    def watch() -> None:
        with closing(psycopg2.connect(target.admin_url)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            while not end.wait(0.05):
                cursor.execute(STATE)
                found = cursor.fetchone()
                if found is not None and found not in states[-1:]:
                    states.append(found)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield states
    finally:
        end.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.timeout(2 * PASS_S + 120)
def test_a_large_transaction_is_atomic_and_needs_little_memory(
    database: Database, target: Database, tmp_path: Path
) -> None:
    database.execute(SCHEMA)
    pipeline = Pipeline(tmp_path, "memory", database.grant_source(), {"main": target.grant_sink()})
    try:
        processes = {role: pipeline.start(role) for role in pipeline.roles}
        there = "SELECT to_regclass('public.wide') IS NOT NULL"
        database.execute("INSERT INTO wide VALUES (0, 0)")
        until(lambda: execute(target.admin_url, there) == [(True,)], 60, "the table", alive=pipeline.alive)
        until(lambda: execute(target.admin_url, STATE) == [(1, 0, 0)], 60, "the first row", alive=pipeline.alive)
        # From here on the table is live, and what it shows is a state that the source had.
        until(lambda: pipeline.status()["result"]["tables"][0]["state"] == "live", 60, "live", alive=pipeline.alive)
        with watching(target) as states:
            for statement, state in ((INSERT, (ROWS + 1, 0, 0)), ("UPDATE wide SET version = 1", (ROWS + 1, 1, 1))):
                began = time.monotonic()
                database.execute(statement)
                until(lambda state=state: states[-1:] == [state], PASS_S, str(state), alive=pipeline.alive)
                print(f"{statement[:6]} of {ROWS} rows: {time.monotonic() - began:.1f} s")
        assert states == [(1, 0, 0), (ROWS + 1, 0, 0), (ROWS + 1, 1, 1)]
        peaks = {role: peak_mb(process.pid) for role, process in processes.items()}
        print({role: f"{peak:.0f} MB" for role, peak in peaks.items()})
        assert max(peaks.values()) < PEAK_MB, peaks
    finally:
        pipeline.close()
