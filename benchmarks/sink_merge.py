"""Log → Postgres upsert of existing rows, against the same rows by COPY to a temporary table and INSERT … ON CONFLICT.

    python -m benchmarks.sink_merge [--rows 200000] [--batch 20000] [--rounds 4]

Both sides in one run, alternating, on one server: the ratio is what counts. The sink's side is merge and commit of events that
are already read and collapsed, with the time by stage (decoding runs beside the server's COPY, so stages overlap).
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections import defaultdict
from contextlib import closing
from typing import Any

import psycopg2

from cdc.table import Column, LogicalType
from sinks.changes import Changes
from sinks.postgres import merge
from sinks.postgres.plan import Plan
from sinks.postgres.session import Session
from sinks.postgres.sink import PostgresSink
from sinks.sink import Piece
from tests.events import Feed, Table
from tests.servers import Database, server, stop_all

SECOND_US = 1_000_000
UPSERT = "INSERT INTO public.bench SELECT * FROM b ON CONFLICT (id) DO UPDATE SET " + ", ".join(
    f"{name} = excluded.{name}" for name in "abcdefghi"
)


def bench_table(feed: Feed) -> Table:
    """The ten mixed columns of the published comparison."""
    return feed.table(
        "public.bench", "id int64 key", "a int32 not null", "b int64", "c decimal(12,2)", "d float64", "e boolean", "f timestamptz",
        "g date", "h text", Column("i", LogicalType("json"), "jsonb"),
    )  # fmt: skip


def row(i: int, turn: int) -> dict[str, Any]:
    return {
        "id": i, "a": (i + turn) % 1000, "b": i * 7, "c": ((i + turn) % 100_000).to_bytes(4, "big"), "d": i / 3.0, "e": i % 2 == 0,
        "f": f"2026-11-23T15:{i // 60 % 60:02}:{i % 60:02}.{i % SECOND_US:06}Z", "g": 18_262 + i % 1000,
        "h": f"text value number {i} {'x' * (i % 40)}", "i": f'{{"k": {i}, "tags": ["a", "b"]}}',
    }  # fmt: skip


def work_of(feed: Feed, table: Table, rows: int, batch: int, turn: int) -> list[Piece]:
    """Updates of all rows, collapsed, in batches."""
    made = []
    for begin in range(0, rows, batch):
        checkpoint, records = feed.checkpoint(
            event for i in range(begin, begin + batch) for event in table.u(**row(i, turn))
        )
        changes = Changes(feed.schemas.__getitem__)
        changes.add(checkpoint, records, lambda _table: True)
        made += changes.pieces
    return made


def ours(feed: Feed, work: list[Piece]) -> float:
    started = time.perf_counter()
    for piece in work:
        checkpoint, _ = feed.checkpoint([])
        assert feed.bookmark is not None
        feed.sink.begin(feed.bookmark, checkpoint)
        feed.sink.merge(piece)
        feed.bookmark = feed.sink.commit(checkpoint)
    return time.perf_counter() - started


def limit(connection: Any, blobs: list[bytes]) -> float:
    started = time.perf_counter()
    with connection.cursor() as cursor:
        for blob in blobs:
            cursor.copy_expert("COPY b FROM STDIN", io.BytesIO(blob), 1 << 20)
            cursor.execute(UPSERT)
            connection.commit()
    return time.perf_counter() - started


def timed(stages: dict[str, float]) -> None:
    """Wrap the session's calls so that their time is counted by stage."""

    def wrap(owner: Any, name: str, stage: Any) -> None:
        real = getattr(owner, name)

        def counted(self: Any, *args: Any) -> Any:
            started = time.perf_counter()
            result = real(self, *args)
            stages[stage(args)] += time.perf_counter() - started
            return result

        setattr(owner, name, counted)

    wrap(Session, "execute", lambda args: "upsert" if "ON CONFLICT" in args[0] else "other statements")
    wrap(Session, "copy", lambda _args: "copy and decode")
    wrap(Session, "commit", lambda _args: "commit")
    real = Plan.lines

    def lines(self: Plan, *args: Any) -> Any:
        blocks = real(self, *args)
        while True:
            started = time.perf_counter()
            block = next(blocks, None)
            stages["of which decode"] += time.perf_counter() - started
            if block is None:
                return
            yield block

    Plan.lines = lines
    real_sort = merge.sort

    def sort(*args: Any) -> Any:
        started = time.perf_counter()
        result = real_sort(*args)
        stages["sort"] += time.perf_counter() - started
        return result

    merge.sort = sort


def run(database: Database, rows: int, batch: int, rounds: int) -> None:
    feed = Feed()
    feed.resume(PostgresSink("bench", database.admin_url, pipeline="bench", schemas=feed.schemas.__getitem__))
    table = bench_table(feed)
    feed.apply(*(table.r(**row(i, 0)) for i in range(rows)), begun=[table], finished=[table])
    plan = Plan(table.id, table.value_id, table.value_schema, table.schema, feed.sink._plans[table.id].target)
    stages: dict[str, float] = defaultdict(float)
    with closing(psycopg2.connect(database.admin_url)) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE b ON COMMIT DELETE ROWS AS SELECT * FROM public.bench WITH NO DATA")
        connection.commit()
        work = work_of(feed, table, rows, batch, 1)
        blobs = [b"".join(plan.lines(piece.tables[table.id].events)) for piece in work]
        timed(stages)
        ratios = []
        for turn in range(rounds):
            database.server.execute("CHECKPOINT")
            if turn % 2:
                theirs, mine = limit(connection, blobs), ours(feed, work)
            else:
                mine, theirs = ours(feed, work), limit(connection, blobs)
            ratios.append(theirs / mine)
            print(
                f"round {turn + 1}: sink {rows / mine:,.0f} rows/s, limit {rows / theirs:,.0f} rows/s, ratio {theirs / mine:.2f}"
            )
    print(f"median ratio {statistics.median(ratios):.2f} (range {min(ratios):.2f}–{max(ratios):.2f}), goal 0.55")
    for stage, seconds in sorted(stages.items(), key=lambda item: -item[1]):
        print(f"  {stage:18} {seconds / rounds / rows * 1e6:6.2f} µs per row")
    feed.sink.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    try:
        with server(16).database("bench") as database:
            run(database, args.rows, args.batch, args.rounds)
    finally:
        stop_all()


if __name__ == "__main__":
    main()
