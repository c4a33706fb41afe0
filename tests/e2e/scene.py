"""A source, a target and the pipeline between them, small enough that a test can break one thing and mend it in seconds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import psycopg2

from tests.e2e.pipeline import Pipeline, until
from tests.e2e.workload import differences
from tests.servers import Database, execute

ROWS = 50
SCHEMA = f"""
CREATE TABLE t (id int PRIMARY KEY, v text);
CREATE TABLE u (id int PRIMARY KEY, n numeric);
INSERT INTO t SELECT i, 'row ' || i FROM generate_series(1, {ROWS}) i;
INSERT INTO u SELECT i, i / 7.0 FROM generate_series(1, {ROWS}) i;
"""

_ERROR = re.compile(r"^[✗x] (CDC-[A-Z]+-\d+) (.*(?:\n {4}.*)*)", re.MULTILINE)


class Stopped(NamedTuple):
    """How a process ended, as its last words say it."""

    code: str
    text: str
    exit_code: int

    @property
    def remedy(self) -> str:
        """What it says to do; the last line that is marked so."""
        return re.split(r"→ |-> ", self.text)[-1].strip()


class Scene:
    """Two small tables at the source, one sink. `pairs` are the names that have to be equal at source and target.

    What is written to the source through `arrives` has to be at the target, row for row, when it returns."""

    def __init__(
        self,
        folder: Path,
        source: Database,
        target: Database,
        *,
        schema: str = SCHEMA,
        adopts: bool = False,
        **more: Any,
    ) -> None:
        self.folder, self.source, self.target = folder, source, target
        source.execute(schema)
        self.source_url, self.sink_url = source.grant_source(), target.grant_sink(adopts=adopts)
        self.pairs = [("public.t", "public.t"), ("public.u", "public.u")]
        self.next_id = 1_000_000
        origin = {"url": self.source_url, "heartbeat_s": 0.3}
        self.pipeline = Pipeline(folder, "bad", origin, {"main": self.sink_url}, **more)

    # ------------------------------------------------------------------------------------------------------------ the file
    @property
    def config(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.pipeline.file.read_text(encoding="utf-8"))
        return data

    def configure(self, **changes: Any) -> None:
        """Write these keys into the pipeline file; None takes one away."""
        data = {name: value for name, value in {**self.config, **changes}.items() if value is not None}
        self.pipeline.file.write_text(json.dumps(data, indent=1), encoding="utf-8")

    def use_source(self, url: str) -> None:
        self.configure(source={**self.config["source"], "url": url})

    def use_target(self, url: str) -> None:
        self.configure(sinks={"main": url})

    # ------------------------------------------------------------------------------------------------------------- running
    def start(self, *roles: str) -> None:
        for role in roles or ("capture", "main"):
            self.pipeline.start(role)

    def live(self) -> None:
        """Start what does not run, and wait until the target has everything."""
        self.pipeline.start_all()
        self.arrives()

    def arrives(self, timeout_s: float = 25.0, alive: bool = True) -> None:
        """Write a last row, and wait until source and target are equal."""
        self.write()
        try:
            until(self.equal, timeout_s, "equal tables", every_s=0.1, alive=self.pipeline.alive if alive else None)
        except AssertionError as error:
            said = [self.pipeline.tail(role) for role in self.pipeline.processes]
            raise AssertionError("\n".join([str(error), *self.differences(), *said])) from None

    def write(self, table: str = "t") -> None:
        self.next_id += 1
        self.source.execute(f"INSERT INTO {table} (id) VALUES ({self.next_id})")

    def equal(self) -> bool:
        return not self.differences()

    def differences(self) -> list[str]:
        try:
            return differences(self.source.admin_url, self.target.admin_url, self.pairs)
        except (psycopg2.errors.UndefinedTable, psycopg2.errors.UndefinedColumn) as error:
            return [str(error)]

    def terminate(self, *roles: str) -> None:
        for role in roles or list(self.pipeline.processes):
            assert self.pipeline.terminate(role) == 0, self.pipeline.tail(role)

    def stops(self, role: str, code: str, *words: str, exit_code: int = 1, timeout_s: float = 20.0) -> Stopped:
        """The role ends by itself with this error, whose text holds these words."""
        ended = self.pipeline.wait(role, timeout_s)
        return self._checked(Stopped(*self.last_error(role), ended), code, words, exit_code)

    def refused(self, *words: str, code: str, exit_code: int = 1, has: tuple[str, ...] = ()) -> Stopped:
        """A verb that ends with this error."""
        done = self.pipeline.cdc(*words, check=False)
        found = _ERROR.findall(done.stdout + done.stderr)
        assert found, done.stdout + done.stderr
        return self._checked(Stopped(found[-1][0], found[-1][1], done.returncode), code, has, exit_code)

    @staticmethod
    def _checked(stopped: Stopped, code: str, words: tuple[str, ...], exit_code: int) -> Stopped:
        assert (stopped.code, stopped.exit_code) == (code, exit_code), stopped
        assert stopped.remedy, stopped
        for word in words:
            assert word in stopped.text, (word, stopped)
        return stopped

    def last_error(self, role: str) -> tuple[str, str]:
        found = _ERROR.findall(self.pipeline.tail(role, 20_000))
        assert found, self.pipeline.tail(role)
        code, text = found[-1]
        return str(code), str(text)

    def waits(self, role: str, code: str, timeout_s: float = 20.0) -> dict[str, Any]:
        """The role goes on trying, and says why: its newest line with this code."""
        return dict(until(lambda: self.said(role, code), timeout_s, f"{role} to say {code}", alive=self.pipeline.alive))

    def said(self, role: str, code: str) -> dict[str, Any] | None:
        lines = [json.loads(line) for line in self.pipeline.tail(role, 50_000).splitlines() if line.startswith("{")]
        found = [line for line in lines if line.get("code") == code]
        assert all(line["detail"] and line["remedy"] for line in found)
        return found[-1] if found else None

    def found(self, code: str) -> dict[str, Any]:
        """`cdc check` finds this, as an error, and ends with 4."""
        done = self.pipeline.cdc("check", str(self.pipeline.file), "--json", check=False)
        findings = json.loads(done.stdout)["result"]["findings"]
        matching = [finding for finding in findings if finding["code"] == code]
        assert done.returncode == 4, done
        assert matching, findings
        assert matching[0]["severity"] == "error"
        assert matching[0]["remedy"]
        return dict(matching[0])

    def follow(self, remedy: str) -> None:
        """Do literally what a remedy says: the first command of ours in it, which names the pipeline file; NAME is the sink."""
        found = re.search(r"\bcdc ((?:reload|drop) \S+\.yaml(?: --new-epoch| --sink NAME| [\w.\"]+[\w\"])?)", remedy)
        assert found, remedy
        self.pipeline.cdc(*found[1].replace("NAME", "main").split(), "--yes")

    def problem(self, *words: str, timeout_s: float = 15.0) -> str:
        """`cdc status` ends with 4 and has a problem with all of these words."""

        def seen() -> str | None:
            problems = self.pipeline.status()["result"]["problems"]
            return next((text for text in problems if all(word in text for word in words)), None)

        return str(until(seen, timeout_s, f"a problem with {words}", alive=self.pipeline.alive))

    # ------------------------------------------------------------------------------------------------------------- secrets
    def outputs(self) -> str:
        """Everything that the processes have said."""
        return "".join(path.read_text(errors="replace") for path in self.folder.glob("*.out"))

    def close(self) -> None:
        self.pipeline.close()
        for url in (self.source_url, self.sink_url):
            assert unquote(urlsplit(url).password or "!") not in self.outputs()


def alter(database: Database, sql: str) -> list[tuple[Any, ...]]:
    """As the superuser, in this database."""
    return execute(database.admin_url, sql)


Make = Callable[..., Scene]
