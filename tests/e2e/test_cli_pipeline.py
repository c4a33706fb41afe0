"""The operational verbs on real servers, as real processes: run, watch, reload, stop, drop, copy."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from tests.e2e.pipeline import Pipeline, until
from tests.servers import Database, Server, execute

SCHEMA = """
CREATE TABLE customers (id int PRIMARY KEY, name text, since timestamptz DEFAULT now());
CREATE TABLE orders (id bigint PRIMARY KEY, customer int REFERENCES customers, total numeric(12,2), note text);
INSERT INTO customers SELECT g, 'customer ' || g FROM generate_series(1, 200) g;
INSERT INTO orders SELECT g, 1 + g % 200, g * 1.25, NULL FROM generate_series(1, 3000) g;
"""
TABLES = ("customers", "orders")
CHANGES = """
UPDATE orders SET note = 'changed' WHERE id % 10 = 0;
DELETE FROM orders WHERE id % 10 = 1;
INSERT INTO customers (id, name) VALUES (-1, 'late');
"""


def rows(database: Database, table: str) -> list[tuple[object, ...]]:
    """All rows of a table that may not exist yet."""
    url = database.admin_url
    if not execute(url, "SELECT 1 FROM pg_tables WHERE schemaname = 'public' AND tablename = %s", [table]):
        return []
    return execute(url, f"SELECT * FROM {table} ORDER BY 1")


def equal(source: Database, target: Database) -> bool:
    return all(rows(source, table) == rows(target, table) for table in TABLES)


class Running:
    """A verb as a process; its stderr goes to a file."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.output = folder / f"{words[0]}-{time.monotonic_ns()}.out"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cdc", *words],
                stdout=output,
                stderr=output,
                cwd=folder,
                stdin=subprocess.DEVNULL,
            )

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def pids(self) -> dict[str, int]:
        """The newest process of each role that `cdc run` says it started."""
        events = [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]
        found = [
            (event["service"], re.search(r"as process (\d+)", event["event"])) for event in events if "service" in event
        ]
        return {service: int(match[1]) for service, match in found if match}

    def addresses(self) -> dict[str, str]:
        events = [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]
        return {event["role"]: event["address"] for event in events if event["event"] == "listening"}

    def wait(self, timeout_s: float) -> int:
        return self.process.wait(timeout_s)

    def alive(self) -> None:
        assert self.process.poll() is None, f"it ended by itself with {self.process.returncode}: {self.said()[-3000:]}"


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts verbs as processes; kills what a failed test leaves."""
    started: list[Running] = []

    def starting(*words: str) -> Running:
        started.append(Running(tmp_path, *words))
        return started[-1]

    yield starting
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
        running.wait(10)


@pytest.fixture
def pipeline(tmp_path: Path, database: Database, target: Database) -> Iterator[Pipeline]:
    database.execute(SCHEMA)
    made = Pipeline(
        tmp_path,
        "shop",
        database.grant_source(),
        {"warehouse": target.grant_sink()},
        tables=["public.*"],
        server={"bind": "127.0.0.1:0"},
    )
    yield made
    made.close()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def state(pipeline: Pipeline) -> str:
    return str(pipeline.status()["result"]["state"])


def test_from_check_to_drop(pipeline: Pipeline, start: Start, database: Database, target: Database) -> None:
    file = str(pipeline.file)
    assert "0 errors" in pipeline.cdc("check", file).stdout
    checked = json.loads(pipeline.cdc("check", file, "--json").stdout)
    assert (checked["command"], checked["ok"], checked["error"]) == ("check", True, None)
    assert pipeline.cdc("status", file, check=False).returncode == 4

    running = start("run", file)
    until(lambda: equal(database, target), 30, "the load", alive=running.alive)
    database.execute(CHANGES)
    until(lambda: equal(database, target), 20, "the changes", alive=running.alive)

    until(lambda: state(pipeline) == "live", 20, "a live pipeline", alive=running.alive)
    status = pipeline.status()
    assert status["ok"]
    assert {table["table"]: table["state"] for table in status["result"]["tables"]} == {
        "public.customers": "live",
        "public.orders": "live",
    }
    [sink] = status["result"]["sinks"]
    assert (sink["name"], sink["lag_checkpoints"], sink["problem"]) == ("warehouse", 0, None)
    assert "public.orders" in pipeline.cdc("status", file).stdout

    events = [
        json.loads(line)
        for line in pipeline.cdc("tail", file, "public.orders", "-n", "5", "--json").stdout.splitlines()
    ]
    assert [event["op"] for event in events] == ["d"] * 5
    assert events[-1]["key"] == {"id": 2991}
    assert 'name="late"' in pipeline.cdc("tail", file, "-n", "1").stdout
    unknown = pipeline.cdc("tail", file, "public.order", check=False)
    assert unknown.returncode == 1
    assert "CDC-RUN-301" in unknown.stderr
    assert 'did you mean "public.orders"' in unknown.stderr

    addresses = running.addresses()
    for role in ("capture", "sink warehouse"):
        for path in ("/healthz", "/readyz", "/metrics"):
            with urlopen(addresses[role] + path, timeout=5) as answer:
                assert answer.status == 200, (role, path)
                body = answer.read().decode()
        assert "cdc_pipeline_state" in body

    assert "nothing" not in pipeline.cdc("reload", file, "public.orders", "--dry-run").stderr
    pipeline.reload("public.orders")
    until(lambda: generations(pipeline)["public.orders"] == 2 and state(pipeline) == "live", 20, "the reload")
    assert equal(database, target)
    assert pipeline.cdc("drop", file, "--yes", check=False).returncode == 1  # a capture is at work

    running.process.send_signal(signal.SIGTERM)
    assert running.wait(10) == 0
    stopped = pipeline.cdc("status", file, "--json", check=False)
    assert (stopped.returncode, json.loads(stopped.stdout)["result"]["state"]) == (4, "stopped")

    assert pipeline.cdc("drop", file, check=False).returncode == 1  # nobody to ask
    assert "slot" in pipeline.cdc("drop", file, "--dry-run").stderr
    assert database.slots() == ["cdc_shop"]
    pipeline.cdc("drop", file, "--yes")
    assert database.slots() == []
    assert not pipeline.log.exists()
    assert not target.execute("SELECT 1 FROM pg_namespace WHERE nspname = '_cdc'")
    assert equal(database, target)


def generations(pipeline: Pipeline) -> dict[str, int]:
    return {table["table"]: table["generation"] for table in pipeline.status()["result"]["tables"]}


def test_a_killed_service_comes_back_and_a_second_signal_ends_all_at_once(
    pipeline: Pipeline, start: Start, database: Database, target: Database
) -> None:
    running = start("run", str(pipeline.file))
    until(lambda: equal(database, target), 30, "the load", alive=running.alive)
    before = running.pids()
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    database.execute(CHANGES)
    until(lambda: equal(database, target), 30, "the changes", alive=running.alive)
    after = running.pids()
    assert not set(before.values()) & set(after.values())

    for pid in after.values():  # they cannot drain now
        os.kill(pid, signal.SIGSTOP)
    running.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    running.alive()
    running.process.send_signal(signal.SIGTERM)
    assert running.wait(3) == 128 + signal.SIGTERM
    until(lambda: all(map(gone, after.values())), 5, "the children to die with it")


def test_children_die_with_a_killed_run(pipeline: Pipeline, start: Start, database: Database, target: Database) -> None:
    running = start("run", str(pipeline.file))
    until(lambda: equal(database, target), 30, "the load", alive=running.alive)
    pids = running.pids()
    running.process.kill()
    until(lambda: all(map(gone, pids.values())), 5, "the children to die with it")


def test_a_service_that_cannot_be_helped_stops_the_pipeline(
    tmp_path: Path, start: Start, database: Database, target: Database
) -> None:
    database.execute(SCHEMA)
    wrong = re.sub(r":[^:@/]+@", ":wrong@", target.grant_sink())
    pipeline = Pipeline(tmp_path, "shop", database.grant_source(), {"warehouse": wrong}, server={"bind": "127.0.0.1:0"})
    running = start("run", str(pipeline.file))
    code = running.wait(30)
    assert code in (1, 2), running.said()
    assert "CDC-TGT-102" in running.said()
    assert "wrong" not in running.said().replace("wrong password", "")
    check = pipeline.cdc("check", str(pipeline.file), check=False)
    assert check.returncode == 4
    assert "CDC-TGT-102" in check.stdout


def test_a_sink_waits_for_the_log(pipeline: Pipeline, database: Database, target: Database) -> None:
    pipeline.start("warehouse")
    until(lambda: "CDC-RUN-304" in pipeline.tail("warehouse"), 10, "the sink to wait", alive=pipeline.alive)
    pipeline.start("capture")
    until(lambda: equal(database, target), 40, "the load", alive=pipeline.alive)
    assert pipeline.terminate("warehouse", 10) == 0
    assert pipeline.terminate("capture", 10) == 0


def test_two_captures_and_two_sinks_of_one_name(
    pipeline: Pipeline, start: Start, database: Database, target: Database
) -> None:
    pipeline.start_all()
    until(lambda: equal(database, target), 30, "the load", alive=pipeline.alive)
    second = start("capture", str(pipeline.file), "--bind", "127.0.0.1:0")
    assert second.wait(20) == 1
    assert "CDC-LOG-201" in second.said()

    younger = start("sink", "warehouse", str(pipeline.file), "--bind", "127.0.0.1:0")

    def older_ended() -> bool:
        database.execute("INSERT INTO customers SELECT max(id) + 1, 'another' FROM customers")
        return pipeline.processes["warehouse"].poll() is not None

    until(older_ended, 20, "the older sink to notice")
    assert pipeline.processes["warehouse"].returncode == 1
    assert "CDC-TGT-113" in pipeline.tail("warehouse")
    until(lambda: equal(database, target), 20, "the younger to go on", alive=younger.alive)
    younger.process.send_signal(signal.SIGTERM)
    assert younger.wait(10) == 0


def test_a_taken_port_is_named(pipeline: Pipeline) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = pipeline.cdc("capture", str(pipeline.file), "--bind", address, check=False)
    assert done.returncode == 1
    assert "CDC-RUN-201" in done.stderr
    assert address in done.stderr


def test_a_lost_slot_is_mended_by_a_new_epoch(pipeline: Pipeline, database: Database, target: Database) -> None:
    pipeline.start_all()
    until(lambda: equal(database, target), 30, "the load", alive=pipeline.alive)
    pipeline.cdc("reload", str(pipeline.file), "--new-epoch", "--yes")  # a running capture takes it, too
    until(lambda: database.slots() == ["e1_cdc_shop"], 20, "the new epoch's slot", alive=pipeline.alive)
    until(lambda: state(pipeline) == "live", 20, "a live pipeline", alive=pipeline.alive)
    assert pipeline.terminate("capture", 10) == 0
    database.drop_slots()
    database.execute(CHANGES)  # nobody will ever stream these
    pipeline.start("capture")
    assert pipeline.wait("capture", 20) == 1
    assert "CDC-PG-120" in pipeline.tail("capture")
    pipeline.cdc("reload", str(pipeline.file), "--new-epoch", "--yes")
    pipeline.start("capture")
    until(lambda: equal(database, target), 40, "the new epoch's load", alive=pipeline.alive)
    until(lambda: state(pipeline) == "live", 20, "a live pipeline", alive=pipeline.alive)


class Copy:
    """`cdc copy` between the two databases, below one folder."""

    def __init__(self, folder: Path, start: Start, source_url: str, target_url: str) -> None:
        self.folder, self._start, self.urls = folder / "penstock", start, (source_url, target_url)

    def start(self, *options: str) -> Running:
        return self._start("copy", *self.urls, *options)

    @property
    def logs(self) -> list[Path]:
        return list(self.folder.glob("*.log"))


@pytest.fixture
def copy(tmp_path: Path, start: Start, database: Database, target: Database) -> Copy:
    database.execute(SCHEMA)
    return Copy(tmp_path, start, database.grant_source(), target.grant_sink())


def nothing_left(copy: Copy, database: Database, target: Database) -> bool:
    bookkeeping = target.execute("SELECT 1 FROM pg_namespace WHERE nspname = '_cdc'")
    publications = database.execute("SELECT 1 FROM pg_publication")
    return not (database.slots() or bookkeeping or publications or list(copy.folder.iterdir()))


def test_copy(copy: Copy, database: Database, target: Database) -> None:
    planned = copy.start("--dry-run")
    assert planned.wait(20) == 0
    assert not copy.folder.exists()
    running = copy.start()
    assert running.wait(60) == 0, running.said()
    assert equal(database, target)
    assert nothing_left(copy, database, target)
    assert "2 tables, 3,200 rows" in running.said()
    for url in copy.urls:
        password = re.search(r":([^:@/]+)@", url)
        assert password
        assert password[1] not in running.said()

    database.execute(CHANGES)  # again, onto what is there: rows that the source lost meanwhile go
    assert copy.start().wait(60) == 0
    assert equal(database, target)
    assert nothing_left(copy, database, target)


def test_copy_goes_on_after_kill_9(copy: Copy, database: Database, target: Database) -> None:
    database.execute("INSERT INTO orders SELECT g, 1, g, repeat('x', 200) FROM generate_series(10001, 120000) g")
    first = copy.start()
    until(lambda: len(rows_counted(target)) > 0, 30, "some rows at the target", every_s=0.02)
    first.process.kill()
    first.wait(5)
    assert len(copy.logs) == 1
    second = copy.start()
    assert second.wait(90) == 0, second.said()
    assert "goes on where it was" in second.said()
    assert equal(database, target)
    assert nothing_left(copy, database, target)


def rows_counted(target: Database) -> list[tuple[object, ...]]:
    return rows(target, "customers")[:1]


def test_copy_follows_until_it_is_stopped(copy: Copy, database: Database, target: Database) -> None:
    running = copy.start("--follow", "--name", "moving", "--tables", "public.*")
    until(lambda: equal(database, target), 40, "the load", alive=running.alive)
    database.execute(CHANGES)
    until(lambda: equal(database, target), 20, "the changes", alive=running.alive)
    running.process.send_signal(signal.SIGINT)
    assert running.wait(10) == 0, running.said()
    assert "cdc drop" in running.said()
    assert database.slots() == ["cdc_moving"]
    last = copy.start("--name", "moving", "--tables", "public.*")
    assert last.wait(60) == 0, last.said()
    assert nothing_left(copy, database, target)
    assert equal(database, target)


def test_copy_says_what_stands_against_it(copy: Copy, target: Database) -> None:
    copy.urls = (re.sub(r":[^:@/]+@", ":wrong@", copy.urls[0]), copy.urls[1])
    running = copy.start()
    assert running.wait(20) in (1, 2)
    assert "CDC-PG-102" in running.said()
    assert not copy.logs


def test_status_names_what_keeps_a_new_table_from_being_loaded(
    pipeline: Pipeline, database: Database, target: Database
) -> None:
    pipeline.start_all()
    until(lambda: equal(database, target), 30, "the load", alive=pipeline.alive)
    assert pipeline.terminate("capture", 10) == 0
    database.execute("CREATE TABLE late (id int PRIMARY KEY)")
    with closing(database.connect()) as idle, idle.cursor() as cursor:
        cursor.execute("INSERT INTO late VALUES (1)")  # and then somebody went home
        pid = idle.info.backend_pid
        pipeline.start("capture")
        until(
            lambda: any(f"pid {pid}" in problem for problem in problems(pipeline)),
            20,
            "the blocker",
            alive=pipeline.alive,
        )
        tables = {table["table"]: table["state"] for table in pipeline.status()["result"]["tables"]}
        assert tables["public.late"] == "queued"
        database.execute("INSERT INTO customers (id, name) VALUES (-2, 'meanwhile')")
        until(lambda: equal(database, target), 20, "everything else to go on", alive=pipeline.alive)
        idle.commit()
    until(lambda: rows(target, "late") == [(1,)], 20, "the new table", alive=pipeline.alive)
    until(lambda: state(pipeline) == "live", 20, "a live pipeline", alive=pipeline.alive)


def problems(pipeline: Pipeline) -> list[str]:
    return list(pipeline.status()["result"]["problems"])


def test_health_is_bad_while_the_target_is_away(
    tmp_path: Path, private_postgres: Callable[..., Server], start: Start, database: Database
) -> None:
    database.execute(SCHEMA)
    server = private_postgres(16)
    assert server.process is not None
    with server.database("target") as target:
        pipeline = Pipeline(tmp_path, "shop", database.grant_source(), {"warehouse": target.grant_sink()})
        capture = start("capture", str(pipeline.file), "--bind", "127.0.0.1:0")
        sink = start("sink", "warehouse", str(pipeline.file), "--bind", "127.0.0.1:0")
        until(lambda: equal(database, target), 30, "the load", alive=sink.alive)
        address = sink.addresses()["sink warehouse"]
        assert status_of(address + "/healthz") == status_of(address + "/readyz") == 200
        server.process.stop("immediate")
        database.execute(CHANGES)
        until(lambda: status_of(address + "/healthz") == 503, 10, "bad health", alive=sink.alive)
        assert status_of(address + "/readyz") == 503
        assert not pipeline.status()["ok"]
        server.process.start()
        until(lambda: equal(database, target), 40, "the changes", alive=sink.alive)
        until(lambda: status_of(address + "/healthz") == 200, 10, "good health", alive=sink.alive)
        for running in (capture, sink):
            running.process.send_signal(signal.SIGTERM)
            assert running.wait(10) == 0


def status_of(url: str) -> int:
    try:
        with urlopen(url, timeout=5) as answer:
            return int(answer.status)
    except HTTPError as error:
        with error:
            return error.code


def test_check_finds_a_target_table_of_another_shape_and_prints_grants(pipeline: Pipeline, target: Database) -> None:
    target.execute("CREATE TABLE orders (id int PRIMARY KEY, something text NOT NULL)")
    done = pipeline.cdc("check", str(pipeline.file), check=False)
    assert done.returncode == 4, done.stdout
    assert "sink warehouse" in done.stdout
    assert "public.orders" in done.stdout
    statements = pipeline.cdc("check", str(pipeline.file), "--grants").stdout
    assert "REPLICATION" in statements
    assert "<password>" in statements


def test_drop_removes_a_damaged_log_and_refuses_a_folder_that_is_none(
    pipeline: Pipeline, database: Database, target: Database
) -> None:
    pipeline.start_all()
    until(lambda: equal(database, target), 30, "the load", alive=pipeline.alive)
    for role in ("warehouse", "capture"):
        assert pipeline.terminate(role, 10) == 0
    kept = pipeline.folder / "kept"
    pipeline.log.rename(kept)
    pipeline.log.mkdir()
    (pipeline.log / "precious.txt").write_text("not a log")
    refused = pipeline.cdc("drop", str(pipeline.file), "--yes", check=False)
    assert refused.returncode == 1
    assert "CDC-LOG-102" in refused.stderr
    assert database.slots() == ["cdc_shop"]
    (pipeline.log / "precious.txt").unlink()
    (pipeline.log / "writer.lock").unlink(missing_ok=True)
    pipeline.log.rmdir()
    kept.rename(pipeline.log)
    for segment in (pipeline.log / "segments").iterdir():
        segment.write_bytes(b"damaged")
    pipeline.cdc("drop", str(pipeline.file), "--yes")
    assert database.slots() == []
    assert not pipeline.log.exists()
