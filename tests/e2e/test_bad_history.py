"""Bad history: a log that is damaged, foreign, missing, old or full; a slot or a server that is not what the log remembers.

Nothing starts over by itself (rule R3): each stops with its code, and the remedy, followed to the letter, ends with equal tables.
"""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from cdc.postgres.position import lsn_int
from tests.e2e.pipeline import Pipeline, until
from tests.e2e.scene import SCHEMA, Scene, alter
from tests.servers import Database, Server


def confirmed(scene: Scene) -> int:
    """How far the slot was told to forget."""
    rows = alter(
        scene.source, "SELECT max(confirmed_flush_lsn) FROM pg_replication_slots WHERE database = current_database()"
    )
    return lsn_int(rows[0][0])


def head(scene: Scene) -> int:
    return lsn_int(alter(scene.source, "SELECT pg_current_wal_insert_lsn()")[0][0])


def unseen(scene: Scene) -> None:
    """Changes that a lost slot or log would have shown."""
    scene.write()
    scene.source.execute("DELETE FROM t WHERE id <= 5; UPDATE t SET v = 'unseen' WHERE id = 6")


# ----------------------------------------------------------------------------------------------------------------- the log
def test_a_truncated_log(scene: Scene) -> None:
    scene.live()
    scene.terminate()
    log, copy = scene.pipeline.log, scene.folder / "copy"
    shutil.copytree(log, copy)
    [segment] = log.glob("segments/*.sqlite")

    def cut() -> None:
        with segment.open("r+b") as file:
            file.truncate(segment.stat().st_size - 3 * 8192)

    cut()
    scene.start()
    scene.stops("capture", "CDC-LOG-105", str(segment))
    scene.stops("main", "CDC-LOG-105", str(segment))
    shutil.rmtree(log)
    shutil.copytree(copy, log)  # "restore the file from a copy"
    unseen(scene)
    scene.live()
    scene.terminate()

    cut()
    scene.start("capture")
    unseen(scene)
    scene.follow(scene.stops("capture", "CDC-LOG-105").remedy)
    scene.live()


def test_a_foreign_log(scene: Scene) -> None:
    scene.live()
    scene.terminate()
    other = Pipeline(scene.folder, "other", scene.source_url, {"main": scene.sink_url})
    try:
        other.start("capture")
        until(lambda: other.log.exists() and list(other.log.glob("schemas.sqlite")), 20, "a log", alive=other.alive)
        assert other.terminate("capture") == 0
    finally:
        other.close()
    mine = scene.config["log"]
    scene.configure(log={"path": str(other.log)})
    scene.found("CDC-LOG-111")
    scene.start()
    for role in ("capture", "main"):
        scene.stops(role, "CDC-LOG-111", "other", str(other.log))
    scene.refused("drop", str(scene.pipeline.file), "--yes", code="CDC-LOG-111")
    scene.configure(
        log={"path": str(scene.folder / "new.log")}
    )  # a new one is not what the slot and the target remember
    scene.start("capture")
    scene.stops("capture", "CDC-PG-121", "cdc_bad")
    scene.start("capture", "main")
    scene.stops("capture", "CDC-PG-121", "cdc_bad")  # the second start is no wiser
    scene.stops("main", "CDC-TGT-111")
    scene.configure(log=mine)
    scene.live()


def test_a_missing_log(scene: Scene) -> None:
    scene.live()
    scene.terminate()
    kept = scene.pipeline.log.rename(scene.folder / "kept")
    unseen(scene)
    for _ in range(2):
        scene.start("capture")
        stopped = scene.stops("capture", "CDC-PG-121", "cdc_bad", "log")
    shutil.rmtree(scene.pipeline.log)
    kept.rename(scene.pipeline.log)  # "restore its folder"
    scene.live()
    scene.terminate()

    shutil.rmtree(scene.pipeline.log)
    unseen(scene)
    scene.follow(stopped.remedy)
    assert scene.source.slots() == []
    scene.live()


def test_a_log_of_which_only_parts_are_left(scene: Scene) -> None:
    scene.live()
    scene.terminate()
    shutil.rmtree(scene.pipeline.log / "segments")
    scene.start()
    for role in ("capture", "main"):
        scene.stops(role, "CDC-LOG-104")
    unseen(scene)
    scene.follow(scene.last_error("capture")[1])
    scene.live()


@pytest.mark.parametrize("forgotten", [False, True], ids=["kept", "forgotten"])
def test_a_log_restored_from_an_old_copy(scene: Scene, forgotten: bool) -> None:
    """What the slot still has is captured again, what it has forgotten takes a new epoch; the target is of another log either way."""
    scene.live()
    scene.terminate()
    shutil.copytree(scene.pipeline.log, old := scene.folder / "old")
    scene.live()
    unseen(scene)
    scene.arrives()
    scene.terminate()
    shutil.rmtree(scene.pipeline.log)
    old.rename(scene.pipeline.log)
    scene.start("main")
    scene.stops("main", "CDC-LOG-107")
    if forgotten:
        alter(scene.source, "SELECT pg_replication_slot_advance('cdc_bad', pg_current_wal_lsn())")
        scene.start("capture")
        scene.follow(scene.stops("capture", "CDC-PG-126").remedy)
    scene.start("capture", "main")
    unseen(scene)
    ended = lambda: scene.pipeline.processes["main"].poll() is not None  # noqa: E731
    until(ended, 20, "the sink's end")
    code, text = scene.last_error("main")
    assert code in ("CDC-LOG-106", "CDC-LOG-107", "CDC-LOG-110")
    scene.follow(text)
    scene.live()


def test_a_bookmark_that_was_deleted(scene: Scene) -> None:
    scene.live()
    delete = "DELETE FROM _cdc.bookmark"
    alter(scene.target, delete)
    scene.write()
    scene.stops("main", "CDC-TGT-110", "main", "bad")
    scene.start("main")
    stopped = scene.stops("main", "CDC-TGT-110", "main", "bad")
    scene.source.execute("DELETE FROM t WHERE id < 10")
    scene.follow(stopped.remedy)
    scene.live()


# ---------------------------------------------------------------------------------------------------------------- the disk
def test_less_free_space_than_has_to_stay(scene: Scene) -> None:
    scene.live()
    scene.terminate("capture")
    log = scene.config["log"]
    scene.configure(log={**log, "free_bytes_min": 1 << 60})
    scene.found("CDC-LOG-301")
    before = confirmed(scene)
    unseen(scene)
    scene.start("capture")
    waits = scene.waits("capture", "CDC-LOG-301")
    assert str(scene.pipeline.log) in waits["where"]
    assert confirmed(scene) == before
    scene.configure(log=log)
    scene.terminate("capture")
    scene.live()


def test_a_full_disk_that_is_mended(scene: Scene) -> None:
    """The files of the log cannot grow. Nothing is confirmed beyond what they hold; with room again capture goes on by itself."""
    scene.live()
    pid = scene.pipeline.processes["capture"].pid
    [wal] = scene.pipeline.log.glob("segments/*.sqlite-wal")
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (wal.stat().st_size, resource.RLIM_INFINITY))
    begun = head(scene)
    scene.source.execute("INSERT INTO t SELECT i, repeat(md5(i::text), 30) FROM generate_series(200000, 202000) i")
    until(lambda: scene.said("capture", "CDC-LOG-302") or scene.said("capture", "CDC-LOG-303"), 20, "the full disk")
    time.sleep(1)
    assert confirmed(scene) <= begun
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    scene.arrives()


# ------------------------------------------------------------------------------------------------------------- two of a kind
def test_two_captures(scene: Scene) -> None:
    scene.live()
    pid = scene.pipeline.processes["capture"].pid
    scene.refused(
        "capture", str(scene.pipeline.file), "--bind", "127.0.0.1:0", code="CDC-LOG-201", has=(f"process {pid} ",)
    )
    scene.arrives()


def test_two_sinks_of_one_name(scene: Scene) -> None:
    scene.live()
    older = scene.pipeline.processes.pop("main")
    scene.start("main")

    def ended() -> bool:
        scene.write()
        return older.poll() is not None

    until(ended, 20, "the older one's end")
    assert older.returncode == 1
    assert "CDC-TGT-113" in scene.pipeline.tail("main")
    scene.arrives()


# ---------------------------------------------------------------------------------------------------------------- the slot
@pytest.mark.parametrize(
    ("lost", "killed"),
    [("dropped", ""), ("advanced", ""), ("dropped", "capture.intent_written:1"), ("dropped", "capture.appended:3")],
)
def test_a_slot_that_is_not_where_it_was(scene: Scene, lost: str, killed: str) -> None:
    """A new epoch, taken up by the next capture even when it is killed in the middle; the sink serves on."""
    scene.live()
    scene.terminate("capture")
    unseen(scene)
    if lost == "dropped":
        scene.source.drop_slots()
    else:
        alter(scene.source, "SELECT pg_replication_slot_advance('cdc_bad', pg_current_wal_lsn())")
    scene.problem("slot") if lost == "dropped" else None
    scene.start("capture")
    stopped = scene.stops("capture", "CDC-PG-120" if lost == "dropped" else "CDC-PG-126", "cdc_bad")
    scene.follow(stopped.remedy)
    unseen(scene)
    if killed:
        scene.pipeline.start("capture", killed)
        assert scene.pipeline.wait("capture", 20) == -9
    scene.live()
    assert scene.source.slots() == ["e1_cdc_bad"]


def test_an_idle_transaction_keeps_a_new_table_waiting(scene: Scene) -> None:
    """Status names who, since when, and how to end it; then the table loads by itself. Of another role's session
    the time is hidden, and that is said."""
    scene.live()
    scene.source.execute("CREATE TABLE late (id int PRIMARY KEY, v text); INSERT INTO late VALUES (1, 'first')")
    scene.pairs.append(("public.late", "public.late"))
    with closing(scene.source.connect()) as idle, closing(psycopg2.connect(scene.source.admin_url)) as hidden:
        with hidden.cursor() as cursor:
            cursor.execute("INSERT INTO late VALUES (3, 'by a superuser')")
        with idle.cursor() as cursor:
            cursor.execute("SET application_name = 'forgotten shell'; SELECT pg_backend_pid()")
            pid = cursor.fetchone()[0]
            cursor.execute("INSERT INTO late VALUES (2, 'before it is published')")
        scene.terminate("capture")
        scene.start("capture")
        problem = scene.problem("public.late", f"pid {pid}", "forgotten shell", "since", f"pg_terminate_backend({pid})")
        assert "public.t" not in problem
        pairs, scene.pairs = scene.pairs, scene.pairs[:2]
        scene.arrives()  # the others are not kept waiting
        scene.pairs = pairs
        idle.commit()
        scene.problem("public.late", f"pid {hidden.info.backend_pid} ", "pg_read_all_stats", "pg_terminate_backend")
        hidden.commit()
        scene.arrives()


# ------------------------------------------------------------------------------------------------------------- the server
def test_another_server_behind_the_url(private_postgres: Callable[..., Server], scene: Scene) -> None:
    scene.live()
    scene.terminate("capture")
    with private_postgres().database("other") as other:
        other.execute(SCHEMA + "INSERT INTO t VALUES (-1, 'of the other server')")
        mine = scene.source_url
        scene.use_source(other.grant_source())
        scene.start("capture")
        stopped = scene.stops("capture", "CDC-PG-124", "system")
        scene.use_source(mine)
        scene.live()
        scene.terminate("capture")
        scene.use_source(other.grant_source())
        scene.follow(stopped.remedy)
        first, scene.source = scene.source, other
        scene.live()
        scene.terminate("capture")
        scene.source = first


def test_a_server_restored_from_a_copy(
    private_postgres: Callable[..., Server], tmp_path: Path, target: Database
) -> None:
    """The same system, an older state: the log is ahead of it; and once it has written past that, the last transaction that was
    captured is not found again."""
    server = private_postgres()
    process = server.process
    assert process is not None
    with server.database("restored") as source, closing(Scene(tmp_path, source, target)) as scene:
        scene.live()
        scene.terminate("capture")
        process.stop()
        copy = process.data.with_name("copy")
        shutil.copytree(process.data, copy, copy_function=shutil.copy2)
        give(process.data, copy)
        process.start()
        scene.live()
        scene.terminate("capture")

        process.stop()
        shutil.rmtree(process.data)
        copy.rename(process.data)
        process.start()
        scene.start("capture")
        scene.stops("capture", "CDC-PG-127")
        scene.source.execute("INSERT INTO t SELECT i, 'another history' FROM generate_series(300000, 300500) i")
        scene.source.execute("INSERT INTO u SELECT i, 0 FROM generate_series(300000, 320000) i")
        scene.start("capture")
        scene.follow(scene.stops("capture", "CDC-PG-129").remedy)
        scene.live()
        scene.terminate()


def give(model: Path, copied: Path) -> None:
    """The copy belongs to whom the model belongs."""
    owner = model.stat()
    for path in (copied, *copied.rglob("*")):
        shutil.chown(path, owner.st_uid, owner.st_gid)
    copied.chmod(0o700)
