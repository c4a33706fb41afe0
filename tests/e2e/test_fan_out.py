"""Several sinks on one pipeline, over both logs: each with its own tables, names and pace; one joins later, and none that is slow,
stopped or failing holds back the capture or another."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from cdc.commands import logs
from cdc.commands.capture import RETAIN_EVERY_S
from cdc.config import load
from tests.e2e.pipeline import Pipeline, until
from tests.e2e.workload import IDENTITY, ROWS, SCHEMA, TABLES, Workload, differences
from tests.servers import Database, Server, execute

SOME = ("bank", "documents", "seats", "keyless")


@pytest.fixture
def databases(make_database: Callable[[], Database]) -> list[Database]:
    return [make_database() for _ in range(3)]


@pytest.fixture(params=["embedded", "kafka"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The pipeline file's `log`."""
    if request.param == "embedded":
        return {"path": str(tmp_path / "fan.log"), "segment_bytes": 1 << 20}
    return {"url": f"kafka://{request.getfixturevalue('kafka').bootstrap}"}


@pytest.fixture
def name() -> str:
    """The pipeline's: two of them may not share a broker."""
    return f"fan-{token_hex(4)}"


@pytest.fixture
def pipeline(
    database: Database, databases: list[Database], tmp_path: Path, log: dict[str, Any], name: str
) -> Iterator[Pipeline]:
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
    made = Pipeline(tmp_path, name, source, sinks, log, load={"rows_max": 700})
    yield made
    made.close()


def add(pipeline: Pipeline, name: str, sink: object) -> None:
    """Into the file; nothing is restarted."""
    edit(pipeline, lambda config: config["sinks"].update({name: sink}))


def edit(pipeline: Pipeline, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads(pipeline.file.read_text(encoding="utf-8"))
    change(config)
    pipeline.file.write_text(json.dumps(config), encoding="utf-8")


def loads(pipeline: Pipeline) -> tuple[dict[str, int], bool, int]:
    """The newest load of each table in the log, whether all are finished, and how many requests the source has had. A load can
    begin anew by itself, so a second one need not be the last."""
    with closing(logs.open_log(load(pipeline.file))) as log, log.look() as surveyor:
        tables = surveyor.survey().tables
        newest = {str(table): state.generation for table, state in tables.items()}
        return newest, all(state.loaded == state.begun for state in tables.values()), len(log.signals(0))


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
        earlier = loads(pipeline)[0]
        pipeline.reload("public.bank", "public.keyless")

        def loaded() -> bool:
            newest, finished, _ = loads(pipeline)
            return finished and all(newest[name] > earlier[name] for name in ("public.bank", "public.keyless"))

        until(loaded, 90, "the loads to end", every_s=0.5, alive=pipeline.alive)
        until(lambda: live(first) and live(second), 90, "both live again", every_s=0.5, alive=pipeline.alive)
        before = loads(pipeline)
        print("loads", before)
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
    assert loads(pipeline) == before
    taken = execute(third.admin_url, "SELECT generation FROM _cdc.tables WHERE table_name = 'bank'")
    assert taken == [(before[0]["public.bank"],)]


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


@pytest.mark.timeout(200)
def test_a_sink_is_slow_another_stopped_and_a_third_ones_target_away(
    database: Database,
    databases: list[Database],
    private_postgres: Callable[..., Server],
    tmp_path: Path,
    log: dict[str, Any],
    name: str,
) -> None:
    """Each round reaches the healthy sink and the capture, before any of the others has it; at the end all are equal."""
    database.execute(SCHEMA + IDENTITY + ROWS)
    healthy, stopped, slow = databases
    server = private_postgres()
    process = server.process
    assert process is not None
    with server.database() as away:
        targets = {"healthy": healthy, "stopped": stopped, "slow": slow, "away": away}
        sinks = {
            role: {"url": target.grant_sink(), "rename": {"public[.](.*)": f"{role}.\\1"}}
            for role, target in targets.items()
        }
        source = {"url": database.grant_source(), "heartbeat_s": 0.3}
        with closing(Pipeline(tmp_path, name, source, sinks, log)) as pipeline:
            pipeline.start_all()
            until(lambda: all(live(target) for target in targets.values()), 90, "all live", alive=pipeline.alive)

            def has(role: str, number: int) -> bool:
                return bool(execute(targets[role].admin_url, f"SELECT 1 FROM {role}.bank WHERE id = {number}"))

            execute(slow.admin_url, SLOWS)
            pipeline.processes["stopped"].send_signal(signal.SIGSTOP)
            process.stop()
            for number in range(-1, -4, -1):
                database.execute(f"UPDATE bank SET balance = balance + 1; INSERT INTO bank VALUES ({number}, 0)")
                until(lambda number=number: has("healthy", number), 60, "the healthy one goes on", alive=pipeline.alive)
                (end,) = database.execute("SELECT pg_current_wal_lsn()::text")
                until(lambda end=end: confirmed(database, end[0]), 60, "the capture goes on", alive=pipeline.alive)
                assert not has("stopped", number)
            assert not has("slow", -3)
            pipeline.processes["stopped"].send_signal(signal.SIGCONT)
            process.start()
            execute(slow.admin_url, "UPDATE pace SET s = 0")
            database.execute("INSERT INTO bank VALUES (-4, 0)")
            for role in targets:
                until(lambda role=role: has(role, -4), 60, role, alive=pipeline.alive)
            for role, target in targets.items():
                pairs = [(table, f"{role}.{table}") for table in TABLES]
                assert not differences(database.admin_url, target.admin_url, pairs), role


SLOWS = """CREATE TABLE pace (s float8); INSERT INTO pace VALUES (0.5); GRANT SELECT ON pace TO public;
CREATE FUNCTION slows() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep((SELECT s FROM public.pace)); RETURN NEW; END';
CREATE TRIGGER slows BEFORE INSERT OR UPDATE ON slow.bank FOR EACH ROW EXECUTE FUNCTION slows()"""


def confirmed(database: Database, end: str) -> bool:
    """The capture has this in the log, and has told the source so."""
    sql = "SELECT bool_and(confirmed_flush_lsn >= %s::pg_lsn) FROM pg_replication_slots WHERE database = current_database()"
    return execute(database.admin_url, sql, [end]) == [(True,)]


@pytest.mark.timeout(200)
def test_a_log_that_keeps_what_is_not_applied(
    pipeline: Pipeline, database: Database, databases: list[Database]
) -> None:
    """A sink of the file that was not started yet finds all in the log. One that is added later asks for the tables that are gone."""
    first, second, third = databases
    edit(pipeline, lambda config: config["log"].update({"retention": "applied"}))
    pipeline.start("capture")
    pipeline.start("first")
    until(lambda: live(first), 90, "the first live", alive=pipeline.alive)
    database.execute("INSERT INTO bulk SELECT i, repeat('x', 1000) FROM generate_series(100000, 103000) i")
    with closing(logs.open_log(load(pipeline.file))) as looked:
        time.sleep(RETAIN_EVERY_S + 3)
        before = loads(pipeline)
        assert before[0] == {f"public.{table}": 1 for table in TABLES}
        pipeline.start("second")
        until(lambda: live(second), 60, "the second live", alive=pipeline.alive)
        assert loads(pipeline) == before

        def removed() -> bool:
            with looked.look() as surveyor:
                return surveyor.mark_before(0).number > 0

        database.execute("INSERT INTO bulk SELECT i, repeat('x', 1000) FROM generate_series(104000, 107000) i")
        until(removed, 60, "what all have applied is gone", alive=pipeline.alive)
    add(pipeline, "third", {"url": third.grant_sink(), "tables": ["public.bank", "public.keyless"]})
    pipeline.start("third")
    until(lambda: live(third), 60, "the third live", alive=pipeline.alive)
    arrived(database, [(first, "bank"), (second, 'copies."The ""bank"""'), (third, "bank")])
    assert not differences(database.admin_url, first.admin_url, [(table, f"public.{table}") for table in TABLES])
    assert not differences(database.admin_url, third.admin_url, [("bank", "bank"), ("keyless", "keyless")])
