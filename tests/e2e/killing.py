"""One pipeline killed again and again under a concurrent workload with loads running, and compared with its source at the end.

First each failpoint, then random moments. What else is broken meanwhile is the caller's: `disturb`.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from cdc import failpoints
from cdc.commands import logs
from cdc.config import load
from tests.e2e.pipeline import Pipeline, until
from tests.e2e.workload import IDENTITY, ROWS, SCHEMA, TABLES, BankWatch, Workload, differences, rows_of
from tests.servers import Database, execute
from tests.verification import FULL

KILLS, HITS = (200, 5) if FULL else (0, 1)

# Only these arise by themselves; those of a load need one to run, which a reload asks for.
LOADS = ("capture.chunk_read", "capture.marked")

Disturb = Callable[[random.Random], bool]


def seeded() -> int:
    """The seed of this run, printed; PENSTOCK_SEED repeats it."""
    seed = int(os.environ.get("PENSTOCK_SEED") or random.SystemRandom().randrange(10**6))
    print(f"PENSTOCK_SEED={seed}")
    return seed


class Killing:
    """A pipeline between two databases. `log` is the pipeline file's, by default a folder; `load` is how much the workload does.
    Close it."""

    def __init__(
        self, source: Database, target: Database, folder: Path, seed: int, log: Any = None, **load: Any
    ) -> None:
        self.source, self.target, self.seed = source, target, seed
        self.rng, self.hits, self.kills = random.Random(seed), Counter[str](), 0
        source.execute(SCHEMA + IDENTITY + ROWS)
        self._folder, self._log = folder, log
        self._urls = source.grant_source(), target.grant_sink(adopts=True)
        # The target's application has constraints of its own on some tables: they are adopted. The others the sink makes.
        for statement in SCHEMA.split(";\n"):
            if any(f"CREATE TABLE {name} " in statement for name in ("seats", "parents", "children")):
                target.execute(statement)
        self.pairs = [(name, f"public.{name}") for name in TABLES]
        self.pipeline = self._pipeline("kills", load={"rows_max": 700})
        self.workload = Workload(source.url, seed, **load)
        self.bank = BankWatch(target.admin_url, "public.bank")

    def close(self) -> None:
        self.pipeline.close()

    def run(self, kill_s: float, disturb: Disturb = lambda _rng: False) -> dict[str, object]:
        """All of it: at least `kill_s` of random kills, and in a full run KILLS. `disturb` is called between two of them, and says
        whether it has to be called again. The figures; asserts that nothing is lost, doubled or torn."""
        pipeline = self.pipeline
        with self.workload.running(), self.bank:
            self._kill_at_intents()
            pipeline.start("main")
            pipeline.start("capture")
            until(lambda: len(states(pipeline)) == len(TABLES), 60, "all tables known", alive=pipeline.alive)
            self._kill_at_failpoints()
            self._kill_at_random(kill_s, disturb)
            self.workload.stop()
            settled(pipeline, self.source, self.target, self.pairs)
        return self._compared()

    def _pipeline(self, name: str, **more: Any) -> Pipeline:
        source_url, sink_url = self._urls
        return Pipeline(self._folder, name, source_url, {"main": sink_url}, self._log, **more)

    def _kill_at_intents(self) -> None:
        for extra in range(HITS - 1):  # an intent is written once in a pipeline's life, so each hit needs one
            other = self._pipeline(f"intent{extra}")
            self._kill_at_the_intent(other)
            other.cdc("drop", str(other.file), "--yes")
        self._kill_at_the_intent(self.pipeline)

    def _kill_at_the_intent(self, pipeline: Pipeline) -> None:
        pipeline.start("capture", "capture.intent_written:1")
        assert pipeline.wait("capture", 60) == -9, pipeline.tail("capture")
        self.hits["capture.intent_written"] += 1

    def _kill_at_failpoints(self) -> None:
        pipeline, rng = self.pipeline, self.rng
        names = [name for name in failpoints.NAMES if name != "capture.intent_written"] * HITS
        for name in rng.sample(names, len(names)):
            role = "capture" if name.startswith("capture") else "main"
            pipeline.kill(role)
            pipeline.start(role, f"{name}:{1 if name in LOADS else rng.randrange(1, 12)}")
            if name in LOADS:
                pipeline.reload(*(f"public.{table}" for table in rng.sample(TABLES, 3)))
            assert pipeline.wait(role, 90) == -9, f"{name}: {pipeline.tail(role)}"
            assert f"failpoint {name}" in pipeline.tail(role)
            self.hits[name] += 1
            pipeline.start(role)

    def _kill_at_random(self, kill_s: float, disturb: Disturb) -> None:
        pipeline, rng = self.pipeline, self.rng
        until_s, disturbing = time.monotonic() + kill_s, False
        while time.monotonic() < until_s or self.kills < KILLS or disturbing:
            time.sleep(rng.choice((0.1, 0.5, 1.0, 1.5, 2.5)))
            if rng.random() < 0.2:
                pipeline.reload(*(f"public.{table}" for table in rng.sample(TABLES, 2)))
            self.kill()
            disturbing = disturb(rng)

    def kill(self) -> None:
        """One or both of the processes, at once started again."""
        for role in self.rng.choice((["capture"], ["main"], ["capture", "main"])):
            self.pipeline.kill(role)
            self.kills += 1
        self.pipeline.start_all()

    def _compared(self) -> dict[str, object]:
        seed, bank, hits, workload = self.seed, self.bank, self.hits, self.workload
        found = differences(self.source.admin_url, self.target.admin_url, self.pairs)
        print(
            f"kills {self.kills}, failpoints {dict(hits)}, transactions {dict(workload.committed)}, looks at the bank {bank.looks}"
        )
        assert not found, f"seed {seed}: {found}"
        assert not bank.torn, f"seed {seed}: {bank.torn[:5]}"
        assert bank.looks > 50
        assert all(hits[name] >= HITS for name in failpoints.NAMES)
        return {
            "seed": seed,
            "kill -9 at random moments": self.kills,
            "hits of each failpoint": ", ".join(f"{name} {count}" for name, count in sorted(hits.items())),
            "transactions committed by the workload": sum(workload.committed.values()),
            "rows compared": sum(len(rows_of(self.target.admin_url, there)) for _, there in self.pairs),
            "rows that differ": 0,
            "snapshots of the target in which money was whole": bank.looks,
            "of which torn": 0,
        }


def states(pipeline: Pipeline) -> list[str]:
    """The state of each table that the log knows: one whose load has begun there, which is its first generation at least."""
    result = pipeline.status()["result"]
    return [table["state"] for table in result["tables"] if table["generation"]] if result else []


def settled(pipeline: Pipeline, source: Database, target: Database, pairs: list[tuple[str, str]]) -> None:
    """Everything written so far has arrived: a last row, committed after all others, is there, and no table loads."""
    source.execute("INSERT INTO registry VALUES (-1, 0, 'the last row')")
    there = dict(pairs)["registry"]

    def arrived() -> bool:
        return bool(execute(target.admin_url, f"SELECT 1 FROM {there} WHERE k = -1"))

    until(arrived, 120, "the last row", alive=pipeline.alive)

    def at_rest() -> bool:
        """Every request was taken, nothing loads, and the sink has it all. `live` alone says what the log has."""
        with closing(logs.open_log(load(pipeline.file))) as log:
            last, asked = log.last_checkpoint(), len(log.signals(0))
        assert last is not None
        [sink] = pipeline.status()["result"]["sinks"]
        state = last.position.load
        return last.cut and not state["loading"] and state["signals"] == asked and sink["checkpoint"] >= last.number

    until(at_rest, 120, "all tables live, and the sink at the end", every_s=0.5, alive=pipeline.alive)
    assert (found := states(pipeline)) == ["live"] * len(TABLES), found
