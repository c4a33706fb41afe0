"""Several sinks on one pipeline: each with its own tables, names and pace; one joins later, and one that fails holds nobody back."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cdc.commands import wiring
from cdc.config import load
from cdc.log import Mark
from tests.e2e.pipeline import Pipeline, until
from tests.e2e.workload import IDENTITY, ROWS, SCHEMA, TABLES, Workload, differences
from tests.servers import Database, execute

SOME = ("bank", "documents", "seats", "keyless")


@pytest.fixture
def databases(make_database: Callable[[], Database]) -> list[Database]:
    return [make_database() for _ in range(3)]


@pytest.fixture
def pipeline(database: Database, databases: list[Database], tmp_path: Path) -> Iterator[Pipeline]:
    database.execute(SCHEMA + IDENTITY + ROWS)
    first, second, _ = databases
    sinks = {
        "first": first.grant_sink(),
        "second": {
            "url": second.grant_sink(),
            "tables": [f"public.{name}" for name in SOME],
            "rename": {"public[.](.*)": 'copies."The ""\\1"""'},
        },
    }
    source = {"url": database.grant_source(), "heartbeat_s": 0.3}
    made = Pipeline(tmp_path, "fan", source, sinks, load={"rows_max": 700})
    yield made
    made.close()


def add(pipeline: Pipeline, name: str, sink: object) -> None:
    """Into the file; nothing is restarted."""
    config = json.loads(pipeline.file.read_text(encoding="utf-8"))
    config["sinks"][name] = sink
    pipeline.file.write_text(json.dumps(config), encoding="utf-8")


def begun(pipeline: Pipeline) -> tuple[int, int]:
    """Loads that have begun in the log, and requests to the source."""
    with (
        closing(wiring.open_log(load(pipeline.file))) as log,
        closing(log.read(Mark(-1, log.id), lambda _: False, 0)) as items,
    ):
        loads = 0
        for item in items:
            if item is None:
                break
            loads += len(item[0].begun)
        return loads, len(log.signals(0))


def arrived(database: Database, targets: list[tuple[Database, str]]) -> None:
    database.execute("INSERT INTO bank VALUES (-1, 0)")
    for target, table in targets:
        until(
            lambda target=target, table=table: execute(target.admin_url, f"SELECT 1 FROM {table} WHERE id = -1"),
            90,
            table,
        )


def live(target: Database) -> bool:
    found = execute(target.admin_url, "SELECT to_regclass('_cdc.tables') IS NOT NULL")
    return bool(found[0][0]) and execute(target.admin_url, "SELECT bool_and(state = 'live') FROM _cdc.tables") == [
        (True,)
    ]


@pytest.mark.timeout(300)
def test_a_sink_that_is_added_to_a_running_pipeline_takes_all_from_the_log(
    pipeline: Pipeline, database: Database, databases: list[Database]
) -> None:
    seed = int(os.environ.get("PENSTOCK_SEED") or random.SystemRandom().randrange(10**6))
    print(f"PENSTOCK_SEED={seed}")
    first, second, third = databases
    with Workload(database.url, seed, writers=3, pause_s=0.01, bulk_rows=500).running() as workload:
        pipeline.start_all()
        until(lambda: live(first) and live(second), 90, "both live", every_s=0.5, alive=pipeline.alive)
        # Another load of some tables, so that not all are read from the beginning of the log.
        pipeline.reload("public.bank", "public.keyless")
        until(lambda: begun(pipeline)[0] == len(TABLES) + 2, 60, "the loads begun", alive=pipeline.alive)
        until(lambda: live(first) and live(second), 90, "both live again", every_s=0.5, alive=pipeline.alive)
        before = begun(pipeline)
        add(pipeline, "third", {"url": third.grant_sink(), "tables": ["public.*", "!public.bulk"]})
        pipeline.start("third")
        until(lambda: live(third), 90, "the third live", every_s=0.5, alive=pipeline.alive)
        pipeline.kill("third")
        pipeline.start("third")
        workload.stop()
    arrived(database, [(first, "bank"), (second, 'copies."The ""bank"""'), (third, "bank")])
    all_pairs = [(name, f"public.{name}") for name in TABLES]
    source = database.admin_url
    assert not differences(source, first.admin_url, all_pairs)
    assert not differences(source, second.admin_url, [(name, f'copies."The ""{name}"""') for name in SOME])
    assert not differences(source, third.admin_url, [pair for pair in all_pairs if pair[0] != "bulk"])
    assert begun(pipeline) == before
    assert execute(third.admin_url, "SELECT generation FROM _cdc.tables WHERE table_name = 'bank'") == [(2,)]


@pytest.mark.timeout(200)
def test_a_sink_that_fails_or_sleeps_holds_nobody_back(
    pipeline: Pipeline, database: Database, databases: list[Database]
) -> None:
    first, second, third = databases
    third.execute("CREATE TABLE bank (id int PRIMARY KEY, balance bigint NOT NULL CHECK (balance < 0))")
    add(pipeline, "third", {"url": third.grant_sink(adopts=True), "tables": ["public.bank"]})
    pipeline.start_all()
    assert pipeline.wait("third", 60) == 1, pipeline.tail("third")
    assert "CDC-TGT-130" in pipeline.tail("third")
    until(lambda: live(first) and live(second), 90, "both live", every_s=0.5)
    pipeline.terminate("second")
    database.execute("UPDATE bank SET balance = balance + 1")
    arrived(database, [(first, "bank")])
    pipeline.start("second")
    arrived_second = 'copies."The ""bank"""'
    until(lambda: execute(second.admin_url, f"SELECT 1 FROM {arrived_second} WHERE id = -1"), 60, "the second")
    third.execute("ALTER TABLE bank DROP CONSTRAINT bank_balance_check")
    pipeline.start("third")
    until(lambda: execute(third.admin_url, "SELECT 1 FROM bank WHERE id = -1"), 60, "the third", alive=pipeline.alive)
    for target, name in ((first, "bank"), (second, arrived_second), (third, "bank")):
        assert not differences(database.admin_url, target.admin_url, [("bank", name)])
