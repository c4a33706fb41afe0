"""Where the demo speaks: on a terminal, lines with a table below them that is always up to date; elsewhere a line now and then.

Colours and characters are what the terminal can show (NO_COLOR, ASCII). The invariant: every line has been redacted (rule R10).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from cdc.demo import scene
from cdc.demo.scene import Scene
from cdc.presentation import for_stream, say
from cdc.secrets import redact

DRAW_EVERY_S, LINE_EVERY_S = 0.25, 5.0


class Screen(Protocol):
    """What the play needs of it."""

    def say(self, text: str, style: str = "") -> None:
        """Write a line that stays."""

    def show(self, now: Scene, *, last: bool = False) -> None:
        """The picture has changed; as often as wanted. The `last` one stays, where it is a picture."""

    @contextmanager
    def live(self) -> Iterator[None]:
        """Within it pictures are shown."""


class Terminal:
    """A terminal on which lines can be drawn over."""

    def __init__(self, console: Console) -> None:
        self._console, self._live, self._drawn_s = console, Live(console=console, auto_refresh=False), 0.0

    def say(self, text: str, style: str = "") -> None:
        self._console.print(Text(for_stream(redact(text), self._console.file), style=style))  # type: ignore[arg-type]

    def show(self, now: Scene, *, last: bool = False) -> None:
        if last or time.monotonic() - self._drawn_s >= DRAW_EVERY_S:
            self._drawn_s = time.monotonic()
            self._live.update(scene.view(now), refresh=True)

    @contextmanager
    def live(self) -> Iterator[None]:
        with self._live:
            yield


class Lines:
    """A file, a pipe, a log: lines only."""

    def __init__(self) -> None:
        self._due_s = time.monotonic() + LINE_EVERY_S

    def say(self, text: str, style: str = "") -> None:  # noqa: ARG002 - there are no styles here
        say(text, sys.stdout)

    def show(self, now: Scene, *, last: bool = False) -> None:
        if not last and time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + LINE_EVERY_S
            self.say(f"{now.at_s:6.1f} s  {scene.line(now)}")

    @contextmanager
    def live(self) -> Iterator[None]:
        yield


def screen() -> Screen:
    """The one for our stdout."""
    console = Console(markup=False, highlight=False, emoji=False)
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower()
    drawable = sys.stdout.isatty() and not console.is_dumb_terminal and encoding.startswith("utf")
    return Terminal(console) if drawable else Lines()
