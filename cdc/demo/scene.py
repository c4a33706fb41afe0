"""The demo's picture of one moment, and how it looks: as a table that is drawn again and again, or as one line. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BEHIND_S = 1.0


class TableRow(NamedTuple):
    """A table: its rows at the source and in each target that takes it (None: not there yet), its events in the log, and those
    per second."""

    name: str
    source: int | None
    events: int | None
    rate: float | None
    targets: Mapping[str, int | None]


class ServiceRow(NamedTuple):
    """A service: its process (None while it is down), and, of a sink, how far its target is behind. `asked`: it may be down."""

    name: str
    pid: int | None
    lag_s: float | None
    asked: bool = False

    @property
    def state(self) -> str:
        return f"process {self.pid}" if self.pid else "ended" if self.asked else "down"


class Scene(NamedTuple):
    """Everything that is shown at one moment: `at_s` since the demo began, `elapsed_s` of `total_s` under load. `per_second` is
    None when nobody writes."""

    at_s: float
    elapsed_s: float
    total_s: float
    doing: str
    transactions: int
    per_second: float | None
    tables: tuple[TableRow, ...]
    services: tuple[ServiceRow, ...]
    looks: int
    torn: int


def lag(seconds: float | None) -> str:
    """A lag for people; nothing when it is not known."""
    if seconds is None:
        return ""
    if seconds < 0.001:
        return "up to date"
    return f"{seconds * 1000:.0f} ms behind" if seconds < BEHIND_S else f"{seconds:.1f} s behind"


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def view(scene: Scene) -> RenderableType:
    """For a terminal."""
    return Group(Text(), _head(scene), Text(), _tables(scene), Text(), _services(scene), Text(), _money(scene))


def _head(scene: Scene) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    done = min(scene.elapsed_s, scene.total_s)
    pace = "" if scene.per_second is None else f"{scene.per_second:,.0f} transactions/s"
    grid.add_row(
        Text(scene.doing, style="bold"),
        ProgressBar(scene.total_s, done, width=24, complete_style="cyan", finished_style="cyan"),
        Text(f"{done:.0f} of {scene.total_s:.0f} s", style="dim"),
        Text(pace),
        Text(f"{scene.transactions:,} in all", style="dim"),
    )
    return grid


def _tables(scene: Scene) -> RenderableType:
    targets = list(dict.fromkeys(name for row in scene.tables for name in row.targets))
    grid = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    grid.add_column("table")
    for title in ("source", "log events", "per s", *targets):
        grid.add_column(title, justify="right", min_width=9)
    for row in scene.tables:
        copied = [
            number(row.targets[name]) if name in row.targets else Text("not taken", style="dim") for name in targets
        ]
        grid.add_row(row.name, number(row.source), number(row.events), Text(number(row.rate), style="cyan"), *copied)
    return grid


def _services(scene: Scene) -> RenderableType:
    grid = Table.grid(padding=(0, 3))
    for service in scene.services:
        state = Text(service.state, style="bold red" if service.state == "down" else "dim")
        late = service.lag_s is not None and service.lag_s >= BEHIND_S
        grid.add_row(service.name, state, Text(lag(service.lag_s), style="yellow" if late else "green"))
    return grid


def _money(scene: Scene) -> Text:
    if scene.torn:
        return Text(f"money in the targets: TORN in {scene.torn:,} of {scene.looks:,} looks", style="bold red")
    if not scene.looks:
        return Text()
    return Text(f"money in the targets: all there in each of {scene.looks:,} looks, while it moves", style="dim")


def line(scene: Scene) -> str:
    """For where there is no terminal."""
    rows = sum(row.source or 0 for row in scene.tables)
    events = sum(row.events or 0 for row in scene.tables)
    parts = [f"{scene.transactions:,} transactions", f"source {rows:,} rows", f"log {events:,} events"]
    for service in scene.services:
        state = "up" if service.pid else service.state
        parts.append(f"{service.name} {state}{', ' * (service.lag_s is not None)}{lag(service.lag_s)}")
    return "; ".join([*parts, f"money {'TORN' if scene.torn else 'whole'} in {scene.looks:,} looks"])
