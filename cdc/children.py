"""The processes of a pipeline on one machine: one child per role, started again when it crashes, drained together.

A child that was killed, or that ended because a dependency was away, starts again after a pause; a child that ended with any other
error ends the pipeline with that error's exit code. The invariant: no child outlives this process, not even when it is killed
with -9 (Linux); and a child that is killed loses nothing, since each starts from its bookmark.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from cdc.demo import launch
from cdc.errors import EXIT_OK, EXIT_UNAVAILABLE, CdcError
from cdc.supervise import BackOff, Stop

TICK_S = 0.1
DRAIN_S = 30.0  # how long a child may take to reach a committed batch; it loses nothing when it is killed then


class Role(NamedTuple):
    """A child's name and its command."""

    name: str
    command: tuple[str, ...]

    @classmethod
    def of_cdc(cls, name: str, *arguments: str) -> Role:
        """The role whose process is `cdc` with these arguments, from the same installation as ours. -P: a folder named `cdc`
        in the working directory is not taken for it."""
        return cls(name, (sys.executable, "-P", "-m", "cdc", *arguments, "--log-format", "json"))


class Line(NamedTuple):
    """One log line of a child: its fields when it is one of ours, else `text` alone."""

    role: str
    text: str
    fields: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        """For people: time, level, role, event, fields. For machines (see `plain`) the line is left as it is."""
        if self.fields is None:
            return f"{self.role} | {self.text}"
        fields = dict(self.fields)
        when, level = str(fields.pop("ts", ""))[11:19], str(fields.pop("level", ""))
        event = str(fields.pop("event", ""))
        rest = " ".join(f"{name}={_short(value)}" for name, value in fields.items() if name not in ("pipeline", "role"))
        return f"{when} {level:<7} {self.role} | {event}{'  ' if rest else ''}{rest}"

    @property
    def plain(self) -> str:
        """The line as the child wrote it; with its role in front where it does not say it itself."""
        return self.text if self.fields is not None and "role" in self.fields else f"{self.role} | {self.text}"


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


class Child:
    """One role's process. Start it from a thread that lives as long as the child shall: the kernel watches that thread."""

    def __init__(self, role: Role, environment: Mapping[str, str], on_line: Callable[[Line], None]) -> None:
        self.role, self._environment, self._on_line = role, environment, on_line
        self.process: subprocess.Popen[bytes] | None = None
        self.failures, self.started, self.due = 0, 0.0, 0.0
        self._reader: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """The process while it runs."""
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    def start(self) -> None:
        launcher = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), str(os.geteuid()), str(os.getegid())]
        try:
            # A group of its own: Ctrl-C reaches us alone, and we drain the children in order.
            self.process = subprocess.Popen(
                [*launcher, str(int(signal.SIGKILL)), *self.role.command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=dict(self._environment),
                start_new_session=True,
            )
        except OSError as error:
            raise CdcError("CDC-RUN-103", f"{self.role.name}: {error.strerror}") from error
        self.started = time.monotonic()
        self._reader = threading.Thread(
            target=self._read, args=(self.process,), name=f"{self.role.name} log", daemon=True
        )
        self._reader.start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for raw in lines:
                text = raw.decode(errors="replace").rstrip("\n")
                fields = None
                if text.startswith("{"):
                    with suppress(ValueError):
                        fields = json.loads(text)
                self._on_line(Line(self.role.name, text, fields if isinstance(fields, dict) else None))

    def signal(self, number: signal.Signals) -> None:
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def finished(self) -> None:
        """After its end: all of its lines have been passed on."""
        if self._reader is not None:
            self._reader.join(2.0)


class Children:
    """All roles; the first is drained first. `on_event` hears of starts, crashes and ends, in words, with the role's name."""

    def __init__(
        self,
        roles: Sequence[Role],
        *,
        on_line: Callable[[Line], None],
        on_event: Callable[[str, str], None] = lambda _role, _words: None,
        environment: Mapping[str, str] | None = None,
        back_off: BackOff | None = None,
    ) -> None:
        inherited = dict(os.environ if environment is None else environment)
        self.children = [Child(role, inherited, on_line) for role in roles]
        self._on_event, self._back_off = on_event, back_off or BackOff()

    def start(self) -> None:
        for child in self.children:
            child.start()
            self._on_event(child.role.name, f"started as process {child.pid}")

    def tick(self) -> int | None:
        """Start again what crashed. The exit code of a child that ended for good, else None."""
        for child in self.children:
            if child.process is None:
                if time.monotonic() >= child.due:
                    child.start()
                    self._on_event(child.role.name, f"started again as process {child.pid}")
                continue
            code = child.process.poll()
            if code is None:
                continue
            child.finished()
            if code > 0 and code != EXIT_UNAVAILABLE:
                self._on_event(child.role.name, f"ended for good with exit code {code}")
                return code
            lived = time.monotonic() - child.started
            child.failures = 1 if lived >= self._back_off.healthy_s else child.failures + 1
            pause = self._back_off.pause_s(child.failures)
            child.process, child.due = None, time.monotonic() + pause
            words = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            self._on_event(child.role.name, f"{words}; it starts again in {pause:.1f} s")
        return None

    def watch(self, stop: Stop, done: Callable[[], bool] = lambda: False) -> int:
        """Until told to stop, or `done`, or a child ends for good: its exit code, else 0. Call `drain` after it."""
        while not stop() and not done():
            if (code := self.tick()) is not None:
                return code
            stop.wait(TICK_S)
        return EXIT_OK

    def drain(self, timeout_s: float = DRAIN_S) -> int:
        """Let each child end at a committed batch, in order; kill what does not in time. The first exit code that is an error."""
        worst = EXIT_OK
        for child in self.children:
            child.signal(signal.SIGTERM)
            if child.process is None:
                continue
            try:
                code = child.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._on_event(
                    child.role.name, f"did not end within {timeout_s:.0f} s and is killed; nothing is lost by it"
                )
                child.process.kill()
                child.process.wait()
                code = EXIT_OK
            child.finished()
            worst = worst or max(code, EXIT_OK)
        return worst

    def kill(self) -> None:
        """All at once, now."""
        for child in self.children:
            child.signal(signal.SIGKILL)
