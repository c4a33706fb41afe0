"""The picture as people see it: tables for a terminal, and the live view that `run`, `copy` and `status --watch` share.

Rates and remaining times come from comparing pictures, so they appear with the second one.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cdc.commands import picture
from cdc.commands.picture import Picture, SinkView, TableView
from cdc.commands.tail import printable
from cdc.config import Config
from cdc.journal import journal
from cdc.secrets import redact

_log = journal("cdc.status")

Show = Callable[[str], None]

EVERY_S = 1.0
RATE_OVER_S = 60.0
TABLES_SHOWN = 30
COLOURS = {
    "live": "green",
    "loading": "cyan",
    "catching up": "cyan",
    "queued": "dim",
    "degraded": "red",
    "unknown": "red",
}


class Rates:
    """Rows per second of running loads, over the last minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, dict[tuple[str, int], int]]] = deque()

    def add(self, now_s: float, tables: Picture) -> None:
        rows = {(table.table, table.generation): table.rows for table in tables.tables if table.rows is not None}
        self._seen.append((now_s, rows))
        while len(self._seen) > 2 and now_s - self._seen[0][0] > RATE_OVER_S:
            self._seen.popleft()

    def rate(self, table: TableView) -> float | None:
        """None before two pictures of the same load are known."""
        found = [
            (at, rows[table.table, table.generation])
            for at, rows in self._seen
            if (table.table, table.generation) in rows
        ]
        if len(found) < 2 or found[-1][0] <= found[0][0]:
            return None
        return (found[-1][1] - found[0][1]) / (found[-1][0] - found[0][0])

    def remaining_s(self, table: TableView) -> float | None:
        """By the planner's estimate, which may be wrong; None when there is no telling."""
        rate = self.rate(table)
        if not rate or not table.estimate or table.rows is None or table.rows >= table.estimate:
            return None
        return (table.estimate - table.rows) / rate


def view(now: Picture, rates: Rates) -> RenderableType:
    """Everything, for a terminal."""
    parts: list[RenderableType] = [_head(now), _sinks(now), _tables(now, rates)]
    parts += [Text(f"✗ {printable(redact(problem))}", style="red") for problem in now.problems]
    return Group(*parts)


def _head(now: Picture) -> Text:
    head = Text.assemble((now.pipeline, "bold"), "  ", (now.state, COLOURS.get(now.state, "")))
    source, log = now.source, now.log
    facts = [
        f"source {source['url']}" if "url" in source else "",
        _part("behind", source.get("lag_bytes"), size),
        _kept(source),
        _part("checkpoint", log.get("last"), str),
        _part("log", log.get("size_bytes"), size),
    ]
    return head.append("   " + "   ".join(printable(fact) for fact in facts if fact), style="dim")


def _kept(source: Mapping[str, Any]) -> str:
    """What the source keeps for us, of how much, and for how long it can go on so."""
    if source.get("retained_bytes") is None:
        return ""
    limit, rate, left_s = (source.get(key) for key in ("limit_bytes", "wal_bytes_per_s", "until_loss_s"))
    parts = [f"kept there {size(source['retained_bytes'])} of {'unlimited' if limit is None else size(limit)}"]
    if rate is not None:
        parts.append(f"its log grows by {size(rate)}/s")
    elif limit is not None:
        parts.append("growth not known yet")
    if left_s is not None:
        parts.append(f"lost in {left_s / 3600:.1f} hours")
    return ", ".join(parts)


def _part(label: str, value: object, show: Callable[..., str]) -> str:
    return "" if value is None else f"{label} {show(value)}"


def _sinks(now: Picture) -> RenderableType:
    grid = Table(box=None, pad_edge=False)
    for title in ("sink", "target", "state", "checkpoint", "behind", "", ""):
        grid.add_column(title, justify="right" if title in ("checkpoint", "behind") else "left")
    for sink in now.sinks:
        grid.add_row(
            Text(sink.name), Text(printable(sink.target)), _state(sink.state), _number(sink.checkpoint), *_lag(sink)
        )
    return grid


def _lag(sink: SinkView) -> tuple[str, str, str]:
    if sink.lag_checkpoints is None:
        return "–", "", ""
    return f"{sink.lag_checkpoints:,}", f"{sink.lag_s or 0:.1f} s", size(sink.lag_bytes or 0)


def _tables(now: Picture, rates: Rates) -> RenderableType:
    grid = Table(box=None, pad_edge=False)
    for title, side in (("table", "left"), ("state", "left"), ("load", "left"), ("rows", "right"), ("rows/s", "right")):
        grid.add_column(title, justify=side)  # type: ignore[arg-type]
    for title in ("left", "events"):
        grid.add_column(title, justify="right")
    unfinished = [table for table in now.tables if table.state != picture.LIVE]
    rest = [table for table in now.tables if table.state == picture.LIVE]
    for table in (unfinished + rest)[:TABLES_SHOWN]:
        grid.add_row(Text(printable(table.table)), _state(table.state), *_load(table, rates), f"{table.events:,}")
    if len(now.tables) > TABLES_SHOWN:
        grid.add_row(Text(f"… and {len(now.tables) - TABLES_SHOWN} more", style="dim"))
    return grid


def _load(table: TableView, rates: Rates) -> tuple[RenderableType, str, str, str]:
    if table.rows is None:
        return "", f"~{table.estimate:,}" if table.estimate else "", "", ""
    rate, remaining = rates.rate(table), rates.remaining_s(table)
    estimate = f" / ~{table.estimate:,}" if table.estimate else ""
    bar: RenderableType = ProgressBar(100, table.percent, width=20) if table.percent is not None else ""
    return bar, f"{table.rows:,}{estimate}", "" if rate is None else f"{rate:,.0f}", duration(remaining)


def _state(word: str) -> Text:
    return Text(word, style=COLOURS.get(word, ""))


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def size(size_bytes: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def duration(seconds: float | None) -> str:
    """A time for people; nothing for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def console(*, stderr: bool = False) -> Console:
    """A console on which names and values are text and nothing more."""
    return Console(file=sys.stderr if stderr else sys.stdout, markup=False, highlight=False, emoji=False)


class Watcher:
    """Looks every second in a thread of its own, and shows each picture to `on_picture`."""

    def __init__(self, config: Config, on_picture: Callable[[Picture, Rates], None], every_s: float = EVERY_S) -> None:
        self._config, self._on_picture, self._every_s = config, on_picture, every_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        rates = Rates()
        while not self._end.is_set():
            try:
                now = picture.gather(self._config)
                rates.add(time.monotonic(), now)
                self._on_picture(now, rates)
            except Exception as error:  # noqa: BLE001 - nobody's pipeline stops because it cannot be looked at
                _log.warning("cannot look", reason=type(error).__name__)
                _log.debug("traceback", exc_info=error)
            self._end.wait(self._every_s)


@contextmanager
def status(
    config: Config,
    also: Callable[[Picture, Rates], None] = lambda _now, _rates: None,
    until: Callable[[], bool] = lambda: False,
) -> Iterator[Callable[[str], None]]:
    """The live view on stderr; what is given to the yielded function is printed above it. `also` sees each picture;
    when `until` is true the last one stays."""
    screen = console(stderr=True)
    settings = {"refresh_per_second": 4, "redirect_stdout": False, "redirect_stderr": False}
    with Live(Text("starting"), console=screen, **settings) as shown:  # type: ignore[arg-type]

        def show(now: Picture, rates: Rates) -> None:
            if not until():
                shown.update(view(now, rates))
            also(now, rates)

        with Watcher(config, show):
            yield lambda text: screen.print(Text(redact(text)))
