"""Two processes of one sink: the one that came later has it, whatever happened to the earlier one meanwhile (B2)."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from subprocess import Popen

from tests.e2e.pipeline import Pipeline, until
from tests.servers import Database, execute

SUPERSEDED = "CDC-TGT-113"


def test_a_sink_that_was_asleep_does_not_take_the_bookmark_back(
    database: Database, target: Database, tmp_path: Path
) -> None:
    """Its connection is lost, which is no reason to end; and when it comes back, the bookmark names another."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    source = {"url": database.grant_source(), "heartbeat_s": 0.3}
    pipeline = Pipeline(tmp_path, "pair", source, {"main": target.grant_sink()})

    def held() -> tuple[str, int]:
        found: tuple[str, int] = execute(target.admin_url, "SELECT owner, pid FROM _cdc.bookmark")[0]
        return found

    def count() -> int:
        return int(execute(target.admin_url, "SELECT count(*) FROM t")[0][0])

    processes: list[Popen[bytes]] = []
    try:
        pipeline.start_all()
        until(
            lambda: execute(target.admin_url, "SELECT 1 FROM pg_tables WHERE tablename = 't'") and count(), 30, "a load"
        )
        older = pipeline.processes.pop("main")
        processes.append(older)
        older.send_signal(signal.SIGSTOP)
        (owner, pid), output = held(), pipeline.output("main").rename(tmp_path / "older.out")
        younger = pipeline.start("main")
        until(lambda: held()[0] != owner, 30, "the successor's claim")
        execute(target.admin_url, f"SELECT pg_terminate_backend({pid})")
        older.send_signal(signal.SIGCONT)
        assert older.wait(30) != 0
        assert SUPERSEDED in output.read_text(encoding="utf-8")
        database.execute("INSERT INTO t VALUES (2)")
        until(lambda: count() == 2, 30, "the successor's row")
        time.sleep(0.5)
        assert younger.poll() is None
    finally:
        for process in processes:
            process.kill()
            process.wait(30)
        pipeline.close()
