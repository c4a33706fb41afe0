"""A pipeline of real processes, as an operator runs them, for tests to kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class Pipeline:
    """`cdc capture` and `cdc sink` processes of one pipeline file; `close` ends what still runs. `log` is the file's, by default a
    folder beside it."""

    def __init__(
        self, folder: Path, name: str, source: Any, sinks: Mapping[str, Any], log: Any = None, **more: Any
    ) -> None:
        self.folder, self.name = folder, name
        self.file = folder / f"{name}.yaml"
        self.log = folder / f"{name}.log"
        config = {"pipeline": name, "source": source, "log": log or {"path": str(self.log)}, "sinks": sinks, **more}
        self.file.write_text(json.dumps(config, indent=1), encoding="utf-8")  # JSON is YAML
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.kills = 0

    @property
    def roles(self) -> list[str]:
        return ["capture", *json.loads(self.file.read_text(encoding="utf-8"))["sinks"]]

    def command(self, role: str) -> list[str]:
        words = ["capture"] if role == "capture" else ["sink", role]
        return [sys.executable, "-m", "cdc", *words, str(self.file), "--bind", "127.0.0.1:0"]

    def start(self, role: str, failpoint: str | None = None) -> subprocess.Popen[bytes]:
        assert role not in self.processes or self.processes[role].poll() is not None, f"{role} still runs"
        environment = {**os.environ, **({"CDC_FAILPOINT": failpoint} if failpoint else {})}
        with self.output(role).open("ab") as output:
            self.processes[role] = subprocess.Popen(
                self.command(role), stdout=output, stderr=output, env=environment, cwd=self.folder
            )
        return self.processes[role]

    def output(self, role: str) -> Path:
        return self.folder / f"{self.name}-{role}.out"

    def start_all(self) -> None:
        for role in self.roles:
            if role not in self.processes or self.processes[role].poll() is not None:
                self.start(role)

    def kill(self, role: str) -> None:
        """SIGKILL, in whatever it is doing."""
        process = self.processes[role]
        assert process.poll() is None, f"{role} ended by itself with {process.returncode}: {self.tail(role)}"
        process.kill()
        process.wait(30)
        self.kills += 1

    def terminate(self, role: str, timeout_s: float = 30) -> int:
        self.processes[role].send_signal(signal.SIGTERM)
        return self.processes[role].wait(timeout_s)

    def alive(self) -> None:
        """Every process that was started runs."""
        for role, process in self.processes.items():
            assert process.poll() is None, f"{role} ended by itself with {process.returncode}: {self.tail(role)}"

    def tail(self, role: str, bytes_max: int = 3000) -> str:
        return (
            self.output(role).read_bytes()[-bytes_max:].decode(errors="replace") if self.output(role).exists() else ""
        )

    def cdc(self, *words: str, timeout_s: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Any verb; its output."""
        done = subprocess.run(
            [sys.executable, "-m", "cdc", *words],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=self.folder,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"cdc {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    def reload(self, *tables: str) -> None:
        self.cdc("reload", str(self.file), *tables, "--yes")

    def status(self) -> dict[str, Any]:
        done = self.cdc("status", str(self.file), "--json", check=False)
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def wait(self, role: str, timeout_s: float) -> int:
        """Until it ends by itself; its exit code."""
        try:
            return self.processes[role].wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{role} still runs after {timeout_s} s: {self.tail(role)}") from None

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait(30)


def until(claim: Any, timeout_s: float, what: str, every_s: float = 0.2, alive: Any = None) -> Any:
    """Wait for a truthy value."""
    deadline = time.monotonic() + timeout_s
    while not (value := claim()):
        if alive is not None:
            alive()
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(every_s)
    return value


Words = Sequence[str]
