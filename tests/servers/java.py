"""Servers that run on a JVM: their jars, fetched once by Maven, and their processes.

Invariant: a folder of jars appears in the cache under its final name only when it is complete, and is named after the content of its
pom. A server gets SIGKILL from the kernel when the thread that started it ends, so none outlives the tests; see cdc/demo/launch.py.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from cdc.demo import launch
from cdc.demo.postgres import PORTS
from tests.servers import Missing

JAVA_MIN = 17
POMS = Path(__file__).with_name("poms")
FETCH_TIMEOUT_S = 280
START_ATTEMPTS = 3

SMALL = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
"""A JVM that starts fast beside others on few cores, rather than one that is fast after a minute."""


class StartFailed(Exception):
    """The server did not come up; the message ends with what its log says."""


def java() -> str:
    """The java program, of $JAVA_HOME or on the path. Raises Missing where there is none, or only an older one."""
    home = os.environ.get("JAVA_HOME")
    found = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if not found or not Path(found).exists():
        raise Missing(f"no java {JAVA_MIN} or later: install OpenJDK, or set JAVA_HOME")
    said = subprocess.run([found, "-version"], capture_output=True, text=True, timeout=60, check=False).stderr
    version = re.search(r'version "(\d+)', said)
    if not version or int(version[1]) < JAVA_MIN:
        raise Missing(f"java {JAVA_MIN} or later is needed, {found} is {version[1] if version else 'unknown'}")
    return found


def jars(name: str) -> Path:
    """The folder with the jars that `poms/{name}.xml` depends on, and its archives unpacked; fetched now if it is not there.

    A second process waits for the first. Raises Missing where there is no Maven, or it cannot fetch them."""
    pom = POMS / f"{name}.xml"
    configured = os.environ.get("XDG_CACHE_HOME", "")
    base = (Path(configured) if Path(configured).is_absolute() else Path.home() / ".cache") / "penstock"
    final = base / f"java-{name}-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"
    if final.is_dir():
        return final
    java()
    base.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (base / f".java-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # Given back by the kernel, however we end.
        if not final.is_dir():
            making = final.with_name(f".{final.name}.part")
            shutil.rmtree(making, ignore_errors=True)
            _fetch(pom, making)
            making.rename(final)
    return final


def _fetch(pom: Path, folder: Path) -> None:
    if not shutil.which("mvn"):
        raise Missing("no mvn on the path: install Maven, which fetches the test servers")
    command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
    options = ["-DincludeScope=runtime", f"-DoutputDirectory={folder}"]
    try:
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False, cwd=POMS
        )
    except subprocess.TimeoutExpired:
        raise Missing(f"mvn did not fetch {pom.name} within {FETCH_TIMEOUT_S} s") from None
    if done.returncode:
        raise Missing(f"mvn cannot fetch {pom.name}: {(done.stdout + done.stderr).strip()[-2000:]}")
    for archive in folder.glob("*.tar.gz"):
        with tarfile.open(archive) as members:
            members.extractall(folder, filter="data")
        archive.unlink()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now; somebody may before the server does."""
    found: list[int] = []
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise StartFailed("no free port on 127.0.0.1")


class JavaServer:
    """One server on loopback with its data in one temporary folder; `with Kafka() as kafka: …`.

    Subclasses say how it is prepared, started and seen to be ready. Its ports are chosen at the first start and kept."""

    name = "server"
    port_count = 1

    def __init__(self, heap_max_mb: int, jvm: Sequence[str] = SMALL) -> None:
        self._java = java()  # Before anything is made that would be left behind.
        self.folder = Path(tempfile.mkdtemp(prefix=f"penstock-{self.name}-"))
        self.log = self.folder / "server.log"
        self.ports: list[int] = []
        self._options = [f"-Xmx{heap_max_mb}m", *jvm]
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        atexit.register(self.close)

    def prepare(self) -> None:
        """Write configuration and data folder for `ports`; called once for each choice of them."""

    def arguments(self) -> list[str]:
        """What follows `java` and its own options."""
        raise NotImplementedError

    def is_ready(self, timeout_s: float) -> bool:
        """Ask once whether the server serves, for at most about this long."""
        raise NotImplementedError

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def port(self) -> int:
        """The port for clients, from the first start on."""
        return self.ports[0]

    def start(self, timeout_s: float = 60.0) -> None:
        """Start on the known ports, or the first time on free ones, and wait until it serves. Raises StartFailed, with the log."""
        deadline = time.monotonic() + timeout_s
        known = bool(self.ports)
        for attempt in range(START_ATTEMPTS):
            if not known:
                self.ports = free_ports(self.port_count)
                self.prepare()
            self.launch()
            if self.serves(deadline):
                return
            if "BindException" not in self.log_tail():
                break
            time.sleep(0.5 * attempt)  # Somebody was faster; or our predecessor's port is freed in a moment.
        raise StartFailed(f"{self.name} ended by itself:\n{self.log_tail()}")

    def stop(self, timeout_s: float = 30.0) -> None:
        """End it in good order, and by force what does not end in time."""
        process = self._process
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """Kill -9; its ports are refused when this returns."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Stop, if it runs, and start on the same ports with the same data."""
        self.stop()
        self.start()

    def suspend(self) -> None:
        """Freeze it: connections stay open, new ones are accepted by the kernel, nobody answers."""
        assert self._process is not None, f"{self.name} does not run"
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen one go on."""
        assert self._process is not None, f"{self.name} does not run"
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it at once and remove its folder. Does nothing the second time, or in a forked child."""
        if os.getpid() != self._owner:
            return
        atexit.unregister(self.close)
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def log_tail(self, chars_max: int = 3000) -> str:
        """The last error with its beginning, where the log tells errors, or else its end."""
        try:
            text = self.log.read_text(errors="replace").strip()
        except OSError as error:
            return f"(no log: {error.strerror})"
        last_error = text.rfind(" ERROR ")
        return text[-chars_max:] if last_error < 0 else text[text.rfind("\n", 0, last_error) + 1 :][:chars_max]

    def run_tool(self, program: str, *arguments: str, timeout_s: float = 60.0) -> None:
        """Run a program of the JVM's to its end: `java`, `keytool`. Raises StartFailed with what it said."""
        command = [str(Path(self._java).resolve().with_name(program)), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False, env=_environment()
        )
        if done.returncode:
            raise StartFailed(f"{self.name}: {(done.stdout + done.stderr).strip()[-3000:]}")

    def launch(self) -> None:
        """Begin the process, on known ports, and wait for nothing. The thread that does so must outlive it."""
        identity = [str(os.getpid()), str(os.geteuid()), str(os.getegid()), str(int(signal.SIGKILL))]
        launcher = [sys.executable, "-I", "-S", launch.__file__, *identity]
        with self.log.open("wb") as log:
            # A session of its own: Ctrl-C at the terminal is for the tests, which then end the server.
            self._process = subprocess.Popen(
                [*launcher, self._java, *self._options, *self.arguments()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
                env=_environment(),
            )

    def serves(self, deadline: float) -> bool:
        """Wait for what was launched: true when it serves, false when it ended by itself. Raises when the time is up."""
        process = self._process
        assert process is not None, f"{self.name} was not launched"
        while process.poll() is None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                self.kill()
                raise StartFailed(f"{self.name} does not serve in time; its log:\n{self.log_tail()}")
            if self._is_listening() and self.is_ready(left_s):
                return True
            time.sleep(0.05)
        self._process = None
        return False

    def _is_listening(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


def _environment() -> dict[str, str]:
    """Nothing of the caller's locale, time zone or JVM options reaches the server."""
    return {"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"}
