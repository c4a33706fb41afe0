"""Kill -9 at random moments and at every failpoint, under a concurrent workload with loads running: nothing lost, doubled or torn.

`make test` hits each failpoint at least once and kills for KILL_S seconds; `make test-full` (PENSTOCK_FULL=1) counts: 200 kills, each
failpoint at least 5 times. The seed is printed; PENSTOCK_SEED repeats it.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from cdc import failpoints
from cdc.commands import wiring
from cdc.config import load
from tests.e2e.pipeline import Pipeline, until
from tests.e2e.workload import IDENTITY, ROWS, SCHEMA, TABLES, BankWatch, Workload, differences, rows_of
from tests.servers import Database, execute
from tests.verification import FULL, record

KILLS, HITS = (200, 5) if FULL else (0, 1)
KILL_S = 60.0

# Only these arise by themselves; those of a load need one to run, which a reload asks for.
LOADS = ("capture.chunk_read", "capture.marked")


def states(pipeline: Pipeline) -> list[str]:
    """The state of each table that the log knows: one whose load has begun there, which is its first generation at least."""
    result = pipeline.status()["result"]
    return [table["state"] for table in result["tables"] if table["generation"]] if result else []


def killed_at_the_intent(pipeline: Pipeline, hits: Counter[str]) -> None:
    pipeline.start("capture", "capture.intent_written:1")
    assert pipeline.wait("capture", 60) == -9, pipeline.tail("capture")
    hits["capture.intent_written"] += 1


def settled(pipeline: Pipeline, source: Database, target: Database, pairs: list[tuple[str, str]]) -> None:
    """Everything written so far has arrived: a last row, committed after all others, is there, and no table loads."""
    source.execute("INSERT INTO registry VALUES (-1, 0, 'the last row')")
    there = dict(pairs)["registry"]

    def arrived() -> bool:
        return bool(execute(target.admin_url, f"SELECT 1 FROM {there} WHERE k = -1"))

    until(arrived, 120, "the last row", alive=pipeline.alive)

    def at_rest() -> bool:
        """Every request was taken, nothing loads, and the sink has it all. `live` alone says what the log has."""
        with closing(wiring.open_log(load(pipeline.file))) as log:
            last, asked = log.last_checkpoint(), len(log.signals(0))
        assert last is not None
        [sink] = pipeline.status()["result"]["sinks"]
        state = last.position.load
        return last.cut and not state["loading"] and state["signals"] == asked and sink["checkpoint"] >= last.number

    until(at_rest, 120, "all tables live, and the sink at the end", every_s=0.5, alive=pipeline.alive)
    assert states(pipeline) == ["live"] * len(TABLES)


@pytest.mark.slow
@pytest.mark.timeout(7200 if FULL else 420)
def test_nothing_is_lost_doubled_or_torn_through_kills(database: Database, target: Database, tmp_path: Path) -> None:
    seed = int(os.environ.get("PENSTOCK_SEED") or random.SystemRandom().randrange(10**6))
    rng, hits = random.Random(seed), Counter[str]()
    print(f"PENSTOCK_SEED={seed}")
    database.execute(SCHEMA + IDENTITY + ROWS)
    source_url, sink_url = database.grant_source(), target.grant_sink(adopts=True)
    # The target's application has constraints of its own on some tables: they are adopted. The others the sink makes.
    for statement in SCHEMA.split(";\n"):
        if any(f"CREATE TABLE {name} " in statement for name in ("seats", "parents", "children")):
            target.execute(statement)
    pairs = [(name, f"public.{name}") for name in TABLES]
    pipeline = Pipeline(tmp_path, "kills", source_url, {"main": sink_url}, load={"rows_max": 700})
    workload = Workload(database.url, seed)
    try:
        with workload.running(), BankWatch(target.admin_url, "public.bank") as bank:
            for extra in range(HITS - 1):  # an intent is written once in a pipeline's life, so each hit needs one
                other = Pipeline(tmp_path, f"intent{extra}", source_url, {"main": sink_url})
                killed_at_the_intent(other, hits)
                other.cdc("drop", str(other.file), "--yes")
            killed_at_the_intent(pipeline, hits)
            pipeline.start("main")
            pipeline.start("capture")
            until(lambda: len(states(pipeline)) == len(TABLES), 60, "all tables known", alive=pipeline.alive)
            names = [name for name in failpoints.NAMES if name != "capture.intent_written"] * HITS
            for name in rng.sample(names, len(names)):
                role = "capture" if name.startswith("capture") else "main"
                pipeline.kill(role)
                pipeline.start(role, f"{name}:{1 if name in LOADS else rng.randrange(1, 12)}")
                if name in LOADS:
                    pipeline.reload(*(f"public.{table}" for table in rng.sample(TABLES, 3)))
                assert pipeline.wait(role, 90) == -9, f"{name}: {pipeline.tail(role)}"
                assert f"failpoint {name}" in pipeline.tail(role)
                hits[name] += 1
                pipeline.start(role)
            until_s, kills = time.monotonic() + KILL_S, 0
            while time.monotonic() < until_s or kills < KILLS:
                time.sleep(rng.choice((0.1, 0.5, 1.0, 1.5, 2.5)))
                if rng.random() < 0.2:
                    pipeline.reload(*(f"public.{table}" for table in rng.sample(TABLES, 2)))
                for role in rng.choice((["capture"], ["main"], ["capture", "main"])):
                    pipeline.kill(role)
                    kills += 1
                pipeline.start_all()
            workload.stop()
            settled(pipeline, database, target, pairs)
        found = differences(database.admin_url, target.admin_url, pairs)
        print(
            f"kills {kills}, failpoints {dict(hits)}, transactions {dict(workload.committed)}, looks at the bank {bank.looks}"
        )
        assert not found, f"seed {seed}: {found}"
        assert not bank.torn, f"seed {seed}: {bank.torn[:5]}"
        assert bank.looks > 50
        assert all(hits[name] >= HITS for name in failpoints.NAMES)
        record(
            "Kills, Postgres to Postgres over the embedded log",
            {
                "seed": seed,
                "kill -9 at random moments": kills,
                "hits of each failpoint": ", ".join(f"{name} {count}" for name, count in sorted(hits.items())),
                "transactions committed by the workload": sum(workload.committed.values()),
                "rows compared": sum(len(rows_of(target.admin_url, there)) for _, there in pairs),
                "rows that differ": 0,
                "snapshots of the target in which money was whole": bank.looks,
                "of which torn": 0,
            },
        )
    finally:
        pipeline.close()
