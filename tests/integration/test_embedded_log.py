"""The embedded log on a real disk: kills, other processes, damage, full disks. What every log promises is in tests/contract."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cdc.errors import CdcError, Unavailable
from cdc.log import Draft, Intent, Mark
from cdc.log.database import MAGIC
from cdc.log.embedded import EmbeddedLog
from cdc.log.segment import Segment
from cdc.position import Position
from cdc.records import Records
from cdc.table import TableId

A, B = TableId("public", "a"), TableId("public", "b")
VALUE = b"\x00\x00\x00\x00\x07\x02c\x00\x00"
POSITION = Position(0, 0, None, None)
ROOT = Path(__file__).parents[2]

PRELUDE = """
import os, sys, time
from tests.integration.test_embedded_log import *
"""


def opened(folder: Path, **options: object) -> EmbeddedLog:
    return EmbeddedLog(folder, **{"free_bytes_min": 0, "segment_bytes": 1 << 18, **options})  # type: ignore[arg-type]


def rows(n: int, size: int = 100) -> Records:
    return Records([b"\x00\x00\x00\x00\x08%d" % i for i in range(n)], [VALUE + os.urandom(size) for _ in range(n)])


def draft(cut: bool = True) -> Draft:
    return Draft(POSITION, cut)


def everything(_: TableId) -> bool:
    return True


def read_all(log: EmbeddedLog, after: Mark | None = None) -> list[int]:
    numbers = []
    with closing(log.read(after or Mark(-1, log.id), everything, 0)) as items:
        for item in items:
            if item is None:
                return numbers
            numbers.append(item[0].number)
    raise AssertionError


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(CdcError) as caught:
        act()
    return caught.value.code


def process(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "penstock" / "shop.log"


@pytest.fixture
def log(folder: Path) -> Iterator[EmbeddedLog]:
    with opened(folder) as log:
        yield log


# --------------------------------------------------------------------------------------------------------------- processes
WRITER = """
log = opened(sys.argv[1])
state = log.open_writer()
print("open", -1 if state.last is None else state.last.number, flush=True)
while True:
    n = log.append({A: rows(random.randrange(1, 60), 900), B: rows(random.randrange(3))}, draft(random.random() < 0.5)).number
    os.write(1, b"%d\\n" % n)
"""

READER = """
log = opened(sys.argv[1], create=False)
mark, last = Mark(-1, log.id), int(sys.argv[2])
with closing(log.read(mark, everything, 0.05)) as items:
    for item in items:
        if item is not None:
            checkpoint, batch = item
            assert checkpoint.number == mark.number + 1 and checkpoint.previous == mark, (checkpoint, mark)
            assert {t: len(r) for t, r in batch.items()} == checkpoint.rows
            mark = checkpoint.mark
        if os.path.exists(sys.argv[3]) and mark.number >= int(open(sys.argv[3]).read()):
            break
print("read", mark.number)
"""


@pytest.mark.slow
def test_every_acknowledged_checkpoint_survives_kills_beside_readers(folder: Path, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    print("seed", seed)
    opened(folder).close()
    end = tmp_path / "end"
    readers = [process(READER, folder, 0, end) for _ in range(2)]
    acknowledged, kills = -1, 0
    try:
        for _ in range(10):
            with process(WRITER, folder) as writer:
                assert writer.stdout is not None
                found = int(writer.stdout.readline().split()[1])
                assert found in (acknowledged, acknowledged + 1), (
                    f"{acknowledged} was acknowledged, {found} is the last"
                )
                timer = threading.Timer(rng.random() * 0.6, writer.kill)
                timer.start()
                numbers = [int(line) for line in writer.stdout if line.endswith("\n")]
                timer.join()
                assert writer.wait() == -signal.SIGKILL
            assert numbers == list(range(found + 1, found + 1 + len(numbers)))
            acknowledged, kills = found + len(numbers), kills + 1
        with opened(folder) as log:
            state = log.open_writer()
            assert state.last is not None
            assert state.last.number in (acknowledged, acknowledged + 1)
            log.append({A: rows(3)}, draft())
            assert read_all(log) == list(range(state.last.number + 2))
            assert log.status()["segments"] > 1, "no roll was killed"
            (tmp_path / "end.new").write_text(str(state.last.number + 1))
            (tmp_path / "end.new").rename(end)
            for reader in readers:
                assert reader.communicate(timeout=60)[0] == f"read {state.last.number + 1}\n"
                assert reader.returncode == 0
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()
    assert kills == 10


def test_a_second_capture_is_refused_with_the_pid_of_the_first(folder: Path) -> None:
    opened(folder).close()
    with process(
        "log = opened(sys.argv[1]); log.open_writer(); print('up', flush=True); time.sleep(60)", folder
    ) as first:
        assert first.stdout is not None
        first.stdout.readline()
        with opened(folder) as second:
            with pytest.raises(CdcError) as caught:
                second.open_writer()
            assert caught.value.code == "CDC-LOG-201"
            assert f"process {first.pid} " in caught.value.detail
            first.kill()
            first.wait()
            second.open_writer()


def test_a_second_writer_in_this_process_is_refused_until_the_first_closes(log: EmbeddedLog, folder: Path) -> None:
    log.open_writer()
    log.open_writer()
    with opened(folder) as second:
        assert code_of(second.open_writer) == "CDC-LOG-201"
        log.close()
        second.open_writer()


def test_processes_that_make_a_log_at_once_make_one(folder: Path) -> None:
    code = "time.sleep(max(0, float(sys.argv[2]) - time.time())); print(opened(sys.argv[1]).id)"
    at = time.time() + 1.5
    made = [process(code, folder, at) for _ in range(4)]
    ids = {maker.communicate(timeout=60)[0] for maker in made}
    assert [maker.returncode for maker in made] == [0] * 4
    assert len(ids) == 1
    with opened(folder) as log:
        assert {log.id + "\n"} == ids
        log.open_writer()
    assert sorted(os.listdir(folder)) == ["segments", "writer.lock"]


# ---------------------------------------------------------------------------------------- A7: nobody opens a file but SQLite
SABOTAGED = """
log = opened(sys.argv[1])
log.open_writer()
for n in range(4):
    log.append({A: rows(1)}, draft())
    if n == 0 and sys.argv[2] == "sabotage":
        open(next((Path(sys.argv[1]) / "segments").glob("*.sqlite"))).close()
    print(n, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("way", ["ours", "sabotage"])
def test_a_reader_that_leaves_takes_no_commit_with_it(folder: Path, way: str) -> None:
    """The recipe of the loss that rule A7 prevents. With the rule broken on purpose synced commits are gone after a kill."""
    opened(folder).close()
    command = [sys.executable, "-c", PRELUDE + SABOTAGED, str(folder), way]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        for n in range(4):
            assert writer.stdout.readline() == f"{n}\n"
            reader = "log = opened(sys.argv[1]); print(read_all(log)); log.close()"
            with process(reader, folder) as other:
                other.communicate(timeout=60)
            if n < 3:
                writer.stdin.write("\n")
                writer.stdin.flush()
        writer.kill()
        writer.wait()
    with opened(folder) as log:
        found = read_all(log)
    assert (found == [0, 1, 2, 3]) == (way == "ours"), found


AUDITED = """
opens = []
sys.addaudithook(lambda event, args: opens.append(str(args[0])) if event == "open" else None)
log = opened(sys.argv[1], retention="applied")
log.open_writer()
log.intend(Intent(0, {}))
for n in range(60):
    mark = log.append({A: rows(20, 900)}, draft()).mark
log.register("s", {"type": "int"}); log.signal("reload", {}); log.signals(0); log.report("r", mark)
log.last_checkpoint(); read_all(log); log.status(); log.retain(); log.open_writer(); log.close()
assert any("writer.lock" in path for path in opens), "the hook is blind"
print([path for path in opens if ".sqlite" in path])
"""


def test_only_sqlite_opens_the_files(folder: Path) -> None:
    with process(AUDITED, folder) as audited:
        assert audited.communicate(timeout=60)[0] == "[]\n"


def test_a_slow_reader_does_not_make_the_log_grow(log: EmbeddedLog, folder: Path) -> None:
    """A7: a cursor left open while its caller works would keep the write-ahead log from being used again."""
    log.close()
    with opened(folder, segment_bytes=1 << 30) as log:
        log.open_writer()
        log.append({A: rows(1)}, draft())
        log.append({A: rows(1)}, draft())
        with closing(log.read(Mark(-1, log.id), everything, 0)) as items:
            next(items)
            for _ in range(60):
                log.append({A: rows(1000, 2000)}, draft())
            [wal] = (folder / "segments").glob("*-wal")
            assert wal.stat().st_size < 72 << 20  # of 120 MB
            next(items)


# ------------------------------------------------------------------------------------------------------------ crash points
def test_a_roll_that_was_interrupted_is_finished(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(folder) as log:
        log.open_writer()
        log.append({A: rows(400, 900)}, draft())

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Segment, "seal", killed)
        with pytest.raises(KeyboardInterrupt):
            log.append({A: rows(1)}, draft())
        monkeypatch.undo()
        assert log.status()["segments"] > 1
        assert log.last_checkpoint().number == log.open_writer().last.number  # type: ignore[union-attr]
        number = log.append({A: rows(1)}, draft()).number
        assert read_all(log) == list(range(number + 1))


def test_what_a_crash_left_is_removed(log: EmbeddedLog, folder: Path) -> None:
    left = [folder / "0123.tmp", folder / "segments" / "89ab.tmp", folder / "segments" / "0000000000000099.sqlite-wal"]
    (folder / "cdef.tmp").mkdir()
    for path in (*left, folder / "cdef.tmp" / "0000000000000000.sqlite"):
        path.write_bytes(b"x")
    for path in (*left, folder / "cdef.tmp"):
        os.utime(path, (0, 0))
    log.open_writer()
    assert not any(path.exists() for path in (*left, folder / "cdef.tmp"))
    assert log.append({}, draft()).number == 0


def test_what_a_reader_is_just_making_is_left_alone(log: EmbeddedLog, folder: Path) -> None:
    """Sinks and the capture start at once: the writer tidies while a reader makes its side file."""
    young = folder / "4567.tmp"
    young.write_bytes(b"")
    log.open_writer()
    assert young.exists()


def test_after_a_failed_change_the_end_is_read_anew(log: EmbeddedLog, monkeypatch: pytest.MonkeyPatch) -> None:
    log.open_writer()
    log.append({A: rows(1)}, draft())

    def full(*_: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_FULL, "SQLITE_FULL"
        raise error

    monkeypatch.setattr(Segment, "add", full)
    with pytest.raises(Unavailable) as caught:
        log.append({A: rows(5)}, draft())
    assert caught.value.code == "CDC-LOG-302"
    monkeypatch.undo()
    with pytest.raises(AssertionError):
        log.append({A: rows(5)}, draft())
    assert log.open_writer().last.number == 0  # type: ignore[union-attr]
    assert log.append({A: rows(5)}, draft()).spans[A][0].begin == 1


# ------------------------------------------------------------------------------------------------------------------- disks
def test_the_floor_of_free_space_stops_before_the_disk_is_full(folder: Path) -> None:
    with opened(folder, free_bytes_min=1 << 60) as log:
        log.open_writer()
        with pytest.raises(Unavailable) as caught:
            log.append({A: rows(1)}, draft())
        assert caught.value.code == "CDC-LOG-301"
        assert log.last_checkpoint() is None


LIMITED = """
import json, resource
log = opened(sys.argv[1], segment_bytes=1 << 30)
log.open_writer()
log.append({A: rows(1)}, draft())
resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, resource.RLIM_INFINITY))
done, code = 0, None
try:
    for n in range(100):
        done = log.append({A: rows(100, 1000)}, draft()).number
except Unavailable as error:
    code = error.code
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
last = log.open_writer().last.number
log.append({A: rows(1)}, draft())
print(json.dumps([code, done, last, read_all(log)[-1]]))
"""


def test_a_disk_that_takes_no_more_leaves_nothing_half_written(folder: Path) -> None:
    with process(LIMITED, folder) as limited:
        code, done, last, end = json.loads(limited.communicate(timeout=60)[0])
    assert code in ("CDC-LOG-302", "CDC-LOG-303")
    assert 0 < done <= last <= done + 1
    assert end == last + 1


def test_files_are_the_owners_alone(log: EmbeddedLog, folder: Path) -> None:
    log.open_writer()
    log.append({A: rows(1)}, draft())
    log.register("s", {"type": "int"})
    log.signal("reload", {})
    log.report("r", Mark(-1, log.id))
    for path in (folder, *folder.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_a_network_file_system_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc.log.folder.filesystem_type", lambda path, mounts: "nfs4")
    assert code_of(lambda: opened(folder)) == "CDC-LOG-306"


# ------------------------------------------------------------------------------------------------------------------ damage
def test_a_folder_without_a_log_is_not_made_into_one_unasked(folder: Path) -> None:
    assert code_of(lambda: EmbeddedLog(folder, create=False)) == "CDC-LOG-101"
    assert not folder.exists()


def test_a_folder_that_is_not_ours_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(folder).close()
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "file").write_text("")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    for name in ("link", "file", "photos"):
        assert code_of(lambda name=name: opened(tmp_path / name)) == "CDC-LOG-102"  # type: ignore[misc]
    owner = folder.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    assert code_of(lambda: opened(folder)) == "CDC-LOG-102"


def test_an_empty_folder_may_become_a_log(tmp_path: Path) -> None:
    (tmp_path / "mounted").mkdir()
    with opened(tmp_path / "mounted") as log:
        assert log.open_writer().last is None


@pytest.fixture
def full(folder: Path) -> Path:
    """A log of several segments with all its files."""
    with opened(folder) as log:
        log.open_writer()
        log.register("s", {"type": "int"})
        for _ in range(60):
            log.append({A: rows(20, 900)}, draft())
        assert log.status()["segments"] > 3
    return folder


def use(folder: Path) -> None:
    """As a capture and then a sink of a restarted pipeline do."""
    with opened(folder) as log:
        log.open_writer()
        read_all(log)
        log.register("s", {"type": "string"})


def segments(folder: Path) -> list[Path]:
    return sorted((folder / "segments").glob("*.sqlite"))


def overwrite(path: Path, at: int, body: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(body)


def header(path: Path, pragma: str, number: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA {pragma}={number}")


def execute(path: Path, sql: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(sql)


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "first segment missing": ("CDC-LOG-108", lambda f: segments(f)[0].unlink()),
    "middle segment missing": ("CDC-LOG-104", lambda f: segments(f)[1].unlink()),
    "last segment missing": ("CDC-LOG-104", lambda f: segments(f)[-1].unlink()),
    "all segments missing": ("CDC-LOG-104", lambda f: [path.unlink() for path in segments(f)]),
    "segments missing": ("CDC-LOG-104", lambda f: shutil.rmtree(f / "segments")),
    "last segment truncated": ("CDC-LOG-105", lambda f: os.truncate(segments(f)[-1], 65536)),
    "middle segment truncated": ("CDC-LOG-105", lambda f: os.truncate(segments(f)[1], 65536)),
    "last segment emptied": ("CDC-LOG-102", lambda f: os.truncate(segments(f)[-1], 0)),
    "not SQLite": ("CDC-LOG-102", lambda f: overwrite(segments(f)[-1], 0, b"#!/bin/sh\nexit 0")),
    "foreign SQLite": ("CDC-LOG-102", lambda f: header(segments(f)[-1], "application_id", 7)),
    "newer format": ("CDC-LOG-103", lambda f: header(segments(f)[-1], "user_version", 99)),
    "newer schemas": ("CDC-LOG-103", lambda f: header(f / "schemas.sqlite", "user_version", 99)),
    "segment of another log": ("CDC-LOG-102", lambda f: execute(segments(f)[0], "UPDATE log SET id = 'x'")),
    "schemas of another log": ("CDC-LOG-102", lambda f: execute(f / "schemas.sqlite", "UPDATE log SET id = 'x'")),
    "schemas as a segment": ("CDC-LOG-102", lambda f: shutil.copy(f / "schemas.sqlite", segments(f)[-1])),
    "a frame missing": ("CDC-LOG-105", lambda f: execute(segments(f)[1], "DELETE FROM frames WHERE id = 2")),
    "the last frame missing": (
        "CDC-LOG-105",
        lambda f: execute(segments(f)[-1], "DELETE FROM frames WHERE id = (SELECT max(id) FROM frames)"),
    ),
    "a byte of a frame": (
        "CDC-LOG-105",
        lambda f: execute(segments(f)[1], "UPDATE frames SET body = zeroblob(length(body)) WHERE id = 2"),
    ),
    "a checkpoint missing": (
        "CDC-LOG-105",
        lambda f: execute(
            segments(f)[-2], "DELETE FROM checkpoints WHERE number = (SELECT max(number) FROM checkpoints)"
        ),
    ),
    "a checkpoint changed": (
        "CDC-LOG-105",
        lambda f: execute(segments(f)[1], "UPDATE checkpoints SET body = replace(body, 'true', 'false')"),
    ),
    "a table missing": ("CDC-LOG-105", lambda f: execute(segments(f)[-1], "DROP TABLE frames")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_nothing_is_made_up(full: Path, damage: str) -> None:
    use(full)
    code, act = DAMAGE[damage]
    act(full)
    assert code_of(lambda: use(full)) == code


def test_a_lost_end_is_noticed_by_readers(full: Path, tmp_path: Path) -> None:
    """An older copy of the log is a whole log; that it is older is seen from the bookmarks."""
    shutil.copytree(full, tmp_path / "copy")
    with opened(full) as log:
        log.open_writer()
        mark = log.append({A: rows(1)}, draft()).mark
    with opened(tmp_path / "copy") as old:
        assert code_of(lambda: read_all(old, mark)) == "CDC-LOG-107"
        old.open_writer()
        old.append({A: rows(2)}, draft())
        assert code_of(lambda: read_all(old, mark)) == "CDC-LOG-106"


def test_a_folder_that_is_replaced_under_a_reader_is_noticed(full: Path) -> None:
    with opened(full) as log, closing(log.read(log.last_checkpoint().mark, everything, 0.01)) as items:  # type: ignore[union-attr]
        assert next(items) is None
        full.rename(full.with_name("moved"))
        opened(full).close()
        assert code_of(lambda: [next(items) for _ in range(300)]) == "CDC-LOG-109"


def test_a_folder_that_is_removed_under_a_writer_is_noticed(full: Path) -> None:
    with opened(full) as log:
        log.open_writer()
        shutil.rmtree(full)
        assert code_of(lambda: log.append({A: rows(1)}, draft())) == "CDC-LOG-109"


def test_a_folder_that_is_replaced_under_a_writer_is_noticed(full: Path) -> None:
    """SQLite goes on writing to a file that has lost its name; the capture would tell the source to forget what is in it."""
    with opened(full) as log:
        log.open_writer()
        log.append({A: rows(1)}, draft())
        full.rename(full.with_name("moved"))
        shutil.copytree(full.with_name("moved"), full)
        assert code_of(lambda: log.append({A: rows(1)}, draft())) == "CDC-LOG-109"


def test_the_magic_is_in_the_file(full: Path) -> None:
    for path in full.rglob("*.sqlite"):
        assert path.read_bytes()[68:72] == MAGIC.to_bytes(4, "big")


# ----------------------------------------------------------------------------------------------------------------- content
def test_large_batches_are_split_and_a_record_that_is_too_large_is_named(folder: Path) -> None:
    with opened(folder, frame_bytes=10_000, record_bytes_max=50_000) as log:
        log.open_writer()
        batch = {A: rows(100, 1000), B: Records([None, None], [VALUE + b"x" * 40_000, VALUE])}
        log.append(batch, draft())
        with closing(log.read(Mark(-1, log.id), everything, 0)) as items:
            _, read = next(items)  # type: ignore[misc]
        assert [(r.keys, r.values) for r in read.values()] == [(r.keys, r.values) for r in batch.values()]
        with pytest.raises(CdcError) as caught:
            log.append({A: rows(1), B: Records([b"\x00\x00\x00\x00\x08\xff"], [VALUE + b"x" * 50_000])}, draft())
        assert caught.value.code == "CDC-LOG-401"
        assert (caught.value.where, "0000000008ff" in caught.value.detail) == ("public.b", True)
        assert log.append({}, draft()).number == 1, "the writer goes on"


def test_retention_removes_files_with_their_companions(folder: Path) -> None:
    with opened(folder, retention="applied") as log:
        log.open_writer()
        for _ in range(100):
            mark = log.append({A: rows(20, 900)}, draft()).mark
        before = log.status()
        log.report("gone", Mark(3, "never existed"))
        log.report("sink", mark)
        log.retain()
        assert log.status()["segments"] == before["segments"], "a hint that names nothing keeps everything"
        log.forget("gone")
        log.retain()
        after = log.status()
        assert after["segments"] == 1 < before["segments"]
        assert after["size_bytes"] < before["size_bytes"] / 3
        assert {path.name.partition(".")[0] for path in (folder / "segments").iterdir()} == {segments(folder)[0].stem}


def test_status_may_be_asked_from_another_thread(log: EmbeddedLog) -> None:
    log.open_writer()
    found: list[object] = []

    def ask() -> None:
        for _ in range(50):
            try:
                found.append((log.status()["last"], log.last_checkpoint(), log.signals(0)))
            except BaseException as error:
                found.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    for _ in range(100):
        log.append({A: rows(20, 900)}, draft())
    asking.join()
    assert len(found) == 50
    assert not [error for error in found if isinstance(error, BaseException)]


def test_an_intent_survives_a_roll(folder: Path) -> None:
    with opened(folder) as log:
        log.open_writer()
        log.append({A: rows(400, 900)}, draft())
        log.intend(Intent(1, {"slot": "s"}))
        assert log.open_writer().intent == Intent(1, {"slot": "s"})
        log.append({}, draft())
        assert log.status()["segments"] == 2
        assert log.open_writer().intent is None
