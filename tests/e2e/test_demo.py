"""`cdc demo` as a stranger runs it: with and without a terminal, twice at once, interrupted, kept, as somebody without a home."""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from cdc.demo.binaries import FOLDERS, ServerUser, packaged
from cdc.errors import CdcError

RUN_S = 120.0
# Becomes the leader of a session whose terminal is its stdin, so that ^C and the terminal's end reach it as they reach a user's.
ON_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
EMPTY: Mapping[str, str] = {}
PROGRAM = (sys.executable, "-P", "-m", "cdc", "demo")


@pytest.fixture(autouse=True)
def _programs() -> None:
    try:
        for major in FOLDERS:
            packaged(major)
    except CdcError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture
def place() -> Iterator[Path]:
    """A temporary folder that every user may enter, for the demo's TMPDIR."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-test-"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class Demo:
    """A running `cdc demo` whose temporary folder is `place`. `output` is what it has written so far."""

    def __init__(
        self, place: Path, *options: str, terminal: bool = False, environ: Mapping[str, str] = EMPTY, **more: Any
    ) -> None:
        self.place, self.output = place, ""
        environment = {**os.environ, "TMPDIR": str(place), **environ}
        reading, writing = os.openpty() if terminal else os.pipe()
        command = (sys.executable, "-c", ON_TERMINAL, *PROGRAM) if terminal else PROGRAM
        self.process = subprocess.Popen(
            [*command, *options],
            stdin=writing if terminal else subprocess.DEVNULL,
            stdout=writing,
            stderr=writing,
            env=environment,
            start_new_session=True,
            **{"cwd": "/", **more},
        )
        os.close(writing)
        self.reading = reading
        self._reader = threading.Thread(target=self._read, daemon=True)  # a demo that nobody reads would wait for that
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # EIO: nobody has the terminal any more
            while data := os.read(self.reading, 65536):
                self.output += data.decode(errors="replace")

    def until(self, text: str) -> None:
        """Wait for it to say this."""
        deadline = time.monotonic() + RUN_S
        while text not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)

    def type(self, keys: bytes) -> None:
        os.write(self.reading, keys)

    def hang_up(self) -> None:
        """What happens when the window of the terminal is closed."""
        self.process.send_signal(signal.SIGHUP)

    def end(self) -> int:
        """Its exit code."""
        try:
            code = self.process.wait(RUN_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.output) from None
        self.close()
        return code

    def close(self) -> None:
        """Read the rest; what still runs after an asking is killed."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
            self.process.kill()
            self.process.wait()
        self._reader.join(10)
        if self.reading >= 0:
            os.close(self.reading)
            self.reading = -1

    def folders(self) -> list[str]:
        return [path.name for path in self.place.iterdir() if not path.name.startswith("penstock-cache")]


def cdc(*words: str | Path) -> str:
    """What a verb prints."""
    done = subprocess.run(
        [sys.executable, "-m", "cdc", *words], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout or done.stderr


def leftovers(place: Path) -> list[str]:
    """Processes that were started with this TMPDIR, or name it on their command line."""
    marker, found = os.fsencode(place), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (process / "environ").read_bytes() or marker in (process / "cmdline").read_bytes():
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.fixture
def demos(place: Path) -> Iterator[Any]:
    """Starts demos, and ends what a failed test leaves of them."""
    started: list[Demo] = []

    def start(*options: str, **more: Any) -> Demo:
        started.append(Demo(place, *options, **more))
        return started[-1]

    yield start
    for demo in started:
        demo.close()


@pytest.mark.slow
def test_two_at_once_on_a_terminal_and_without_with_a_port_taken(demos: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = ("--port", str(min(taken.getsockname()[1], 65_000)))
        seen = demos(
            "--seconds",
            "3",
            *port,
            terminal=True,
            environ={"NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "90", "LINES": "50"},
        )
        # Variables of the user's that speak of other servers change nothing.
        plain = demos(
            "--seconds", "3", *port, environ={"PYTHONIOENCODING": "ascii", "PGSSLMODE": "verify-full", "PGPORT": "1"}
        )
        assert (plain.end(), seen.end()) == (0, 0), plain.output + seen.output
    assert leftovers(seen.place) == []
    assert seen.folders() == []
    for demo in (seen, plain):
        assert "Equal, row for row" in demo.output
        assert "5 kills survived" in demo.output
        assert "never torn" in demo.output
        assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", demo.output), "colour"
    assert plain.output.isascii()
    assert "\x1b" not in plain.output
    assert "page_views" in seen.output


@pytest.mark.parametrize("how", ["keys", "terminate", "hang up"])
def test_interrupted_at_any_moment_it_leaves_nothing(demos: Any, how: str) -> None:
    moment = random.SystemRandom().uniform(0.3, 9.0)
    print(f"after {moment:.2f} s")
    demo = demos("--seconds", "30", terminal=True)
    demo.until("Penstock")
    deadline = time.monotonic() + moment
    while time.monotonic() < deadline:
        time.sleep(0.05)
    match how:
        case "keys":
            demo.type(b"\x03")
            time.sleep(0.05)
            demo.type(b"\x03")  # impatience does not stop the tidying up
        case "terminate":
            demo.process.terminate()
        case _:
            demo.hang_up()
    began = time.monotonic()
    code = demo.end()
    assert code == {"keys": 130, "terminate": 128 + signal.SIGTERM, "hang up": 128 + signal.SIGHUP}[how], demo.output
    assert time.monotonic() - began < 30
    assert leftovers(demo.place) == []
    assert demo.folders() == []
    assert how == "hang up" or "nothing is left" in demo.output


@pytest.mark.slow
def test_a_difference_is_found_and_its_folder_can_be_looked_at(demos: Any) -> None:
    demo = demos("--seconds", "1")
    demo.until("rows have arrived")
    (name,) = demo.folders()
    folder = demo.place / name
    url = shlex.split((folder / "psql-replica").read_text())[2]
    with closing(psycopg2.connect(url)) as connection:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO page_views VALUES ('2000-01-01', '/nobody/was/here')")
        connection.commit()
    assert demo.end() == 4, demo.output
    assert "page_views: 0 rows missing or different, 1 that the source has not" in demo.output
    assert "/nobody" not in demo.output, "a value that is no key"
    assert f"The folder is kept: {folder}" in demo.output
    for line in (folder / "pgpass").read_text().splitlines():
        assert line.rpartition(":")[2] not in demo.output + (folder / "demo.yaml").read_text(), "a password"
    again = subprocess.Popen(["sh", folder / "servers"], stdout=subprocess.PIPE, text=True)
    try:
        assert again.stdout is not None
        assert "PostgreSQL 16" in again.stdout.readline()
        assert "PostgreSQL 18" in again.stdout.readline()
        asked = subprocess.run(
            ["sh", folder / "psql-replica", "-Atc", "SELECT count(*) FROM page_views WHERE path = '/nobody/was/here'"],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert asked.stdout.strip() == "1", asked.stderr
        assert "replica" in cdc("status", folder / "demo.yaml")
    finally:
        again.terminate()
        assert again.wait(60) == 0
        assert again.stdout is not None
        again.stdout.close()
    assert len(cdc("tail", folder / "demo.yaml").splitlines()) == 20
    assert leftovers(demo.place) == []


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_user_without_a_home_in_a_folder_that_is_not_his(demos: Any, place: Path) -> None:
    user: dict[str, Any] = {"user": 4242, "group": 4242, "extra_groups": []}
    environ = {"HOME": "/nonexistent", "XDG_CACHE_HOME": ""}
    needed = (Path(sys.executable).parent, Path(sys.executable).resolve().parent, Path(__file__).parent)
    if not all(ServerUser(4242, 4242).may_enter(place) for place in needed):
        pytest.skip("this Python or this checkout is closed to other users")
    demo = demos("--seconds", "1", "--keep", environ=environ, cwd="/proc", **user)
    assert demo.end() == 0, demo.output
    assert leftovers(place) == []
    (name,) = demo.folders()
    kept = place / name
    assert kept.stat().st_uid == 4242
    assert kept.stat().st_mode & 0o077 == 0
    assert f"rm -r {kept}" in demo.output
