"""The demo's services: what `cdc run` runs, `cdc capture` and `cdc sink` as processes, started again by the same supervisor.

The invariant: none of them is left when `running` ends, whichever way it ends.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cdc.children import Child, Children, Line
from cdc.commands.run import roles
from cdc.config import Config, load
from cdc.demo.stage import Stage
from cdc.errors import CdcError

SERVICES_LOG = "services.log"
LINES_MAX = 6


@dataclass
class Services:
    """The pipeline's processes, with what they say: each line goes to a file, an error is remembered. `tell` hears of what
    happens to them."""

    stage: Stage
    tell: Callable[[str], None]
    asked: bool = False
    errors: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config: Config = load(self.stage.file)
        self._writing = threading.Lock()
        chosen = roles(self.config, self.stage.file, None)
        self._children = Children(
            chosen, on_line=self._on_line, on_event=lambda role, words: self.tell(f"{role} {words}")
        )

    @contextmanager
    def running(self) -> Iterator[Services]:
        """All are started, and none is left at the end."""
        try:
            self._children.start()
            yield self
        finally:
            self._children.kill()
            for child in self._children.children:
                if child.process is not None:
                    child.process.wait()
                    child.finished()

    def _on_line(self, line: Line) -> None:
        with self._writing, (self.stage.folder / SERVICES_LOG).open("a", encoding="utf-8") as log:
            log.write(line.plain + "\n")
        if line.fields is not None and line.fields.get("code"):
            self.errors[line.role] = [f"{line.fields['code']} {line.fields.get('detail', '')}"]
        elif line.fields is None and line.text.startswith(" "):
            self.errors.setdefault(line.role, []).append(line.text)
        elif line.fields is None:  # the first line of what a process says at its end
            self.errors[line.role] = [line.text]

    def tick(self) -> None:
        """Start again what has died. Raises CDC-RUN-102 when a service has ended for good, which it does only with an error."""
        if (code := self._children.tick()) is not None:
            self._failed(code)

    def drain(self) -> None:
        """Let all end at a committed batch."""
        self.asked = True
        if code := self._children.drain():
            self._failed(code)

    def _failed(self, code: int) -> None:
        detail = "\n".join([f"exit code {code}", *self.complaints()])
        raise CdcError("CDC-RUN-102", detail, where=str(self.stage.folder / SERVICES_LOG))

    def complaints(self) -> list[str]:
        """The last error of each service that had one."""
        return [f"{role}: {line}" for role, lines in self.errors.items() for line in lines[:LINES_MAX]]

    def named(self, name: str) -> Child:
        return next(child for child in self._children.children if child.role.name == name)

    def all(self) -> Iterator[tuple[str, int | None]]:
        """Each with its process, or None while it is down."""
        for child in self._children.children:
            yield child.role.name, child.pid
