"""`cdc replay` beside a running pipeline: under load and through kills to the present, and to past places in a schema of its own."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from cdc.failpoints import REPLAY_NAMES
from tests.e2e.pipeline import Pipeline, until
from tests.e2e.workload import IDENTITY, ROWS, SCHEMA, TABLES, BankWatch, Workload, differences, rows_of
from tests.servers import Database, execute

PAST = ("bank", "registry", "seats", "children", "keyless", "documents")
PREFIX = 'shop."the ""'


def there(name: str) -> str:
    return f'{PREFIX}{name}"""'


@pytest.fixture
def seed() -> int:
    number = int(os.environ.get("PENSTOCK_SEED") or random.SystemRandom().randrange(10**6))
    print(f"PENSTOCK_SEED={number}")
    return number


@pytest.fixture
def second(make_database: Callable[[], Database]) -> Database:
    return make_database()


@pytest.fixture(params=["embedded", "kafka"])
def log(request: pytest.FixtureRequest) -> Any:
    """The pipeline file's `log`; the embedded one where the file says nothing."""
    return {"url": f"kafka://{request.getfixturevalue('kafka').bootstrap}"} if request.param == "kafka" else None


@pytest.fixture
def pipeline(database: Database, target: Database, second: Database, tmp_path: Path, log: Any) -> Iterator[Pipeline]:
    database.execute(SCHEMA + IDENTITY + ROWS)
    sinks = {
        "main": {"url": target.grant_sink(), "rename": {"public[.](.*)": f'{PREFIX}\\1"""'}},
        "second": second.grant_sink(),
    }
    source = {"url": database.grant_source(), "heartbeat_s": 0.3}
    name = f"again-{database.unique}"  # of its own on the broker
    made = Pipeline(tmp_path, name, source, sinks, log, tables=["public.*"], load={"rows_max": 2000})
    yield made
    made.close()


def live(target: Database) -> bool:
    found = execute(target.admin_url, "SELECT to_regclass('_cdc.tables') IS NOT NULL")
    states = execute(target.admin_url, "SELECT state FROM _cdc.tables") if found[0][0] else []
    return len(states) >= len(TABLES) and {state for (state,) in states} == {"live"}


def replay(pipeline: Pipeline, *words: str, failpoint: str | None = None) -> subprocess.Popen[str]:
    command = [*pipeline.command("main")[:3], "replay", "main", str(pipeline.file), "--yes", "--json", *words]
    environment = {**os.environ, **({"CDC_FAILPOINT": failpoint} if failpoint else {})}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=pipeline.folder
    )


def finished(process: subprocess.Popen[str], timeout_s: float = 120) -> Any:
    output, errors = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, output + errors
    return json.loads(output)["result"]


def arrived(database: Database, targets: list[tuple[Database, str]], number: int = -1) -> None:
    database.execute(f"INSERT INTO bank VALUES ({number}, 0)")
    for target, table in targets:
        until(
            lambda target=target, table=table: execute(target.admin_url, f"SELECT 1 FROM {table} WHERE id = {number}"),
            60,
            table,
        )


@pytest.mark.timeout(400)
def test_a_replay_under_load_ends_equal_through_kills(
    pipeline: Pipeline, database: Database, target: Database, second: Database, seed: int
) -> None:
    rng, kills, hits = random.Random(seed), 0, Counter[str]()
    with Workload(database.url, seed, writers=3, pause_s=0.01, bulk_rows=500).running() as workload:
        pipeline.start_all()
        until(lambda: live(target) and live(second), 90, "both live", every_s=0.5, alive=pipeline.alive)
        execute(
            target.admin_url,
            f"DELETE FROM {there('bulk')} WHERE id % 7 = 0; UPDATE {there('bin')} SET v = 'wrong';"
            f"INSERT INTO {there('bulk')} SELECT -i, 'not there' FROM generate_series(1, 500) i;"
            f"DELETE FROM {there('bank')} WHERE id < 9",
        )
        with BankWatch(second.admin_url, "public.bank") as bank:
            while kills < 3:
                process = replay(pipeline)
                time.sleep(rng.uniform(0.5, 1.6))
                if process.poll() is None:
                    process.kill()
                    kills += 1
                process.communicate()
            for name in REPLAY_NAMES:
                process = replay(pipeline, failpoint=name)
                output, errors = process.communicate(timeout=120)
                assert process.returncode == -9, output + errors
                hits[name] += 1
            pipeline.kill("main")
            pipeline.start("main")
            result = finished(replay(pipeline))
        workload.stop()
    assert not bank.torn
    arrived(database, [(target, there("bank")), (second, "bank")])
    pipeline.alive()
    assert not differences(database.admin_url, target.admin_url, [(name, there(name)) for name in TABLES])
    assert not differences(database.admin_url, second.admin_url, [(name, f"public.{name}") for name in TABLES])
    tables = {table["table"]: table for table in result["tables"]}
    assert set(tables) == {f"public.{name}" for name in TABLES}
    assert all(len(table["hash"]) == 16 and table["rows"] >= 0 for table in tables.values())
    assert execute(target.admin_url, "SELECT count(*) FROM _cdc.replays WHERE ended_at IS NULL") == [(0,)]
    assert execute(target.admin_url, "SELECT nspname FROM pg_namespace WHERE nspname LIKE '%replay%'") == []
    print(f"kills {kills}, failpoints {dict(hits)}, transactions {dict(workload.committed)}")


@pytest.mark.timeout(200)
def test_a_damaged_target_is_right_and_compared_at_a_named_checkpoint(
    pipeline: Pipeline, database: Database, target: Database, second: Database
) -> None:
    """Idle, so that the live sink stands where the replay ends: both are hashed at one checkpoint, before and after."""
    pipeline.start_all()
    until(lambda: live(target), 90, "live", every_s=0.5, alive=pipeline.alive)
    damaged = there("bulk")
    execute(target.admin_url, f"DELETE FROM {damaged} WHERE id = 5; UPDATE {damaged} SET payload = 'x' WHERE id = 6")
    tables = {table["table"]: table for table in finished(replay(pipeline))["tables"]}
    bulk = tables.pop("public.bulk")
    assert (bulk["before"]["rows"], bulk["rows"], bulk["inserted"], bulk["updated"]) == (19_999, 20_000, 1, 1)
    assert all(table["before"] == {"rows": table["rows"], "hash": table["hash"]} for table in tables.values())
    pipeline.terminate("main")  # a replay needs no sink that runs, and moves it on
    database.execute("UPDATE bulk SET payload = 'moved on' WHERE id < 100; DELETE FROM registry WHERE k < 50")
    arrived(database, [(second, "bank")])
    finished(replay(pipeline, "--tables", "public.bulk"))
    finished(replay(pipeline))
    assert not differences(database.admin_url, target.admin_url, [(name, there(name)) for name in TABLES])
    pipeline.start("main")
    arrived(database, [(target, there("bank"))], -2)
    assert not differences(database.admin_url, target.admin_url, [(name, there(name)) for name in TABLES])


class Moment:
    """The source as it was: nobody was writing these tables."""

    def __init__(self, database: Database) -> None:
        with closing(psycopg2.connect(database.admin_url)) as connection, connection.cursor() as cursor:
            for attempt in range(20):
                try:
                    for name in sorted(TABLES):
                        cursor.execute(f"LOCK TABLE {name} IN SHARE MODE")
                    break
                except psycopg2.errors.DeadlockDetected:
                    connection.rollback()
                    assert attempt < 19
            # Where the next record will begin, and not how far records are written: some commits here do not wait for that.
            cursor.execute("SELECT pg_current_wal_insert_lsn(), clock_timestamp()")
            [(self.lsn, at)] = cursor.fetchall()
            self.time = at.astimezone(UTC).isoformat()
            self.content = {name: Counter(rows_of(database.admin_url, name)) for name in PAST}


@pytest.mark.timeout(300)
def test_past_places_are_what_the_source_held_then(
    pipeline: Pipeline, database: Database, target: Database, second: Database, seed: int
) -> None:
    moments: list[Moment] = []
    with Workload(database.url, seed, writers=4, pause_s=0.001, bulk_rows=200).running() as workload:
        pipeline.start_all()
        until(lambda: live(target), 90, "live", every_s=0.5, alive=pipeline.alive)
        for _ in range(4):
            time.sleep(0.7)
            moments.append(Moment(database))
        time.sleep(0.5)
        workload.stop()
    arrived(database, [(target, there("bank"))])
    last = Moment(database)
    number = json.loads(pipeline.cdc("status", str(pipeline.file), "--json", check=False).stdout)["result"]["log"][
        "last"
    ]
    database.execute("UPDATE bank SET balance = 0; DELETE FROM registry")
    arrived(database, [(target, there("bank")), (second, "bank")], -2)
    only = [word for name in PAST for word in ("--tables", f"public.{name}")]
    places = [(f"position:{moment.lsn}", moment) for moment in moments[:3]]
    places += [(f"time:{moment.time}", moment) for moment in moments[1:]]
    places += [(f"checkpoint:{number}", last)]
    for place, moment in places:
        result = finished(replay(pipeline, "--to", place, "--into", place, *only))
        assert result["reached"]
        for name in PAST:
            found = Counter(rows_of(target.admin_url, f'"{place}"."the ""{name}"""'))
            assert found == moment.content[name], (
                place,
                name,
                (found - moment.content[name]),
                moment.content[name] - found,
            )
    assert not differences(database.admin_url, target.admin_url, [(name, there(name)) for name in TABLES])
    pipeline.alive()


@pytest.mark.timeout(120)
def test_what_cannot_be_replayed_says_so(pipeline: Pipeline, database: Database, target: Database) -> None:
    def code(*words: str) -> str:
        done = pipeline.cdc("replay", "main", str(pipeline.file), "--yes", "--json", *words, check=False)
        answer = json.loads(done.stdout)
        assert not answer["ok"], answer
        assert answer["error"]["remedy"]
        return str(answer["error"]["code"])

    assert code() == "CDC-LOG-101"
    pipeline.start_all()
    until(lambda: live(target), 90, "live", every_s=0.5, alive=pipeline.alive)
    future = datetime.now(UTC).replace(year=2200).isoformat()
    assert code("--to", "checkpoint:5") == "CDC-RPL-112"
    assert code("--to", "checkpoint:99999", "--into", "x") == "CDC-RPL-102"
    assert code("--to", "checkpoint:0", "--into", "x") in ("CDC-RPL-103", "CDC-RPL-104")
    assert code("--to", "yesterday", "--into", "x") == "CDC-RPL-111"
    assert code("--to", "position:x", "--into", "x") == "CDC-RPL-111"
    assert code("--to", f"time:{future}", "--into", "x") == "CDC-RPL-111"
    assert code("--tables", "public.nothing") == "CDC-RUN-301"
    assert code("--into", "shop") == "CDC-RPL-108"
    assert code("--discard") == "CDC-RPL-113"
    done = pipeline.cdc("replay", "main", str(pipeline.file), "--dry-run")
    assert "public.bank, as loaded at checkpoint" in done.stderr
    done = pipeline.cdc("replay", "nobody", str(pipeline.file), "--yes", check=False)
    assert done.returncode == 2
    assert execute(target.admin_url, "SELECT count(*) FROM _cdc.replays") == [(0,)]
