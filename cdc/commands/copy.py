"""`cdc copy SRC DST`: a migration with no file. Capture and sink run as two processes under this one, over a log of their own.

Without `--follow` it ends when the target has everything up to a place in the source's log that was taken after the last load had
finished; then it removes slot, publication, log and bookkeeping. The invariant: the same command finds its pipeline again and goes
on, whenever it was interrupted. What it is called by is in `<folder>/<name>.yaml`, for `cdc status`, `cdc tail` and `cdc drop`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cdc.children import Line, Role
from cdc.commands import check, drop, live
from cdc.commands.picture import LEFT, LIVE, Picture
from cdc.commands.run import Speakers, supervised
from cdc.commands.tail import printable
from cdc.config import Config
from cdc.errors import EXIT_OK, entry
from cdc.presentation import finding_text, say, speak_of
from cdc.secrets import Url

SINK = "target"
HEARTBEAT_S = 1  # the end is noticed when the source's log has moved on past it
LINES_EVERY_S = 10.0
SOURCE_VARIABLE, TARGET_VARIABLE = "CDC_COPY_SOURCE_URL", "CDC_COPY_TARGET_URL"
ANY_PORT = "127.0.0.1:0"
WAITS = "CDC-RUN-304"  # the sink waits for the log: every copy begins so


def run(
    *,
    source_url: str,
    target_url: str,
    follow: bool,
    tables: Sequence[str],
    name: str | None,
    folder: Path,
    dry_run: bool,
) -> int:
    """The exit code of the service that failed, or 0."""
    config = Config.for_copy(source_url, target_url, name, tables, folder)
    file, finished = folder / f"{config.pipeline}.yaml", folder / f"{config.pipeline}.done"
    if finished.exists() and not dry_run:
        say(f"{config.pipeline}: the last copy was complete; what it made is removed first")
        _remove(config, file, finished)
    speak_of(file)
    again = config.log.path.exists()
    say(_plan(config, file, again=again, follow=follow))
    found = check.findings(config)
    for finding in found:
        say(finding_text(finding))
    errors = [finding for finding in found if finding.severity == "error"]
    if errors:
        return entry(errors[0].code).exit_code
    if dry_run:
        return EXIT_OK
    _write(config, file)
    began, end = time.monotonic(), End(follow=follow)
    with progress(config, end) as speakers:
        environment = {
            **os.environ,
            SOURCE_VARIABLE: config.source.url.reveal(),
            TARGET_VARIABLE: _target(config).reveal(),
        }
        code = supervised(_roles(file), speakers, done=end.reached, environment=environment)
    if code != EXIT_OK or not end.reached():
        _say_how_to_go_on(config, file, code)
        return code
    finished.touch(mode=0o600)
    _remove(config, file, finished)
    say(f"✓ {end.summary()} in {live.duration(time.monotonic() - began)}; nothing is left at the source")
    return EXIT_OK


class End:
    """Is the copy complete? Three steps, each seen in a later picture than the one before: all tables are loaded, and the end of
    the source's log is noted; a cut of our log has come that far; the target has committed that cut."""

    def __init__(self, *, follow: bool) -> None:
        self._follow = follow
        self._tables: frozenset[str] | None = None
        self._head: int | None = None
        self._checkpoint: int | None = None
        self._reached = False
        self._last: Picture | None = None

    def reached(self) -> bool:
        return self._reached

    def see(self, now: Picture) -> None:
        """Take the next picture in."""
        self._last = now
        if self._follow or now.head is None or now.done is None:
            return
        if self._tables is None:  # those that exist when the copy begins; later ones are not waited for
            self._tables = frozenset(table.table for table in now.tables)
        if self._head is None:
            live_tables = {table.table for table in now.tables if table.state == LIVE}
            if live_tables >= self._tables:
                self._head = now.head
        elif self._checkpoint is None:
            if now.done >= self._head and now.log["cut"]:
                self._checkpoint = now.log["last"]
        else:
            # A table that the target had to leave alone meanwhile is loaded anew before the end.
            mine = [table for table in now.tables if table.table in self._tables and table.state != LEFT]
            loaded = all(table.state == LIVE for table in mine)
            self._reached = loaded and all(
                (sink.checkpoint or -1) >= self._checkpoint
                and all(sink.tables.get(table.table, LIVE) == LIVE for table in mine)
                for sink in now.sinks
            )

    def summary(self) -> str:
        """What was copied."""
        tables = [table for table in self._last.tables if table.state == LIVE] if self._last else []
        events = sum(table.events for table in tables)
        return f"{len(tables)} table{'' if len(tables) == 1 else 's'}, {events:,} rows and changes"


@contextmanager
def progress(config: Config, end: End) -> Iterator[Speakers]:
    """Bars on a terminal, else a line per table now and then. Of the services' lines only those that matter are shown."""
    if sys.stderr.isatty():
        with live.status(config, lambda now, _rates: end.see(now), until=end.reached) as show:
            yield _speakers(show)
        return
    said_s = 0.0

    def on_picture(now: Picture, rates: live.Rates) -> None:
        nonlocal said_s
        end.see(now)
        if time.monotonic() - said_s >= LINES_EVERY_S:
            said_s = time.monotonic()
            for line in lines(now, rates):
                say(line)

    with live.Watcher(config, on_picture):
        yield _speakers(say)


def _speakers(show: live.Show) -> Speakers:
    def on_line(line: Line) -> None:
        quiet = line.fields is not None and (
            line.fields.get("level") in ("info", "debug") or line.fields.get("code") == WAITS
        )
        if not quiet:
            show(str(line))

    def on_event(role: str, words: str) -> None:
        if not words.startswith("started as"):
            show(f"{role} | {words}")

    return on_line, on_event


def lines(now: Picture, rates: live.Rates) -> list[str]:
    """The running loads, a line each; else how far the target is behind."""
    said = []
    for table in now.tables:
        if table.rows is not None:
            percent = "" if table.percent is None else f" of ~{table.estimate:,} ({table.percent:.0f} %)"
            rate, left = rates.rate(table), live.duration(rates.remaining_s(table))
            speed = "" if rate is None else f", {rate:,.0f} rows/s"
            said.append(
                f"{printable(table.table)}: {table.rows:,} rows{percent}{speed}{f', {left} left' if left else ''}"
            )
    behind = [
        f"{sink.lag_checkpoints} checkpoints, {live.size(sink.lag_bytes or 0)}"
        for sink in now.sinks
        if sink.lag_checkpoints
    ]
    if now.log.get("last") is None:
        return [*said, now.state]
    return [*said, f"{now.state}; the target is behind by {behind[0] if behind else 'nothing'}"]


def _target(config: Config) -> Url:
    return config.sinks[SINK].url


def _roles(file: Path) -> list[Role]:
    return [
        Role.of_cdc("capture", "capture", str(file), "--bind", ANY_PORT),
        Role.of_cdc("sink", "sink", SINK, str(file), "--bind", ANY_PORT),
    ]


def _plan(config: Config, file: Path, *, again: bool, follow: bool) -> str:
    found = "goes on where it was" if again else "is new"
    tables = f"tables: {config.tables}" if config.tables.patterns else "all tables"
    return "\n".join(
        [
            f"{config.pipeline}: {config.source.url.location} → {_target(config).location}, {tables}",
            f"    the pipeline {found}: {file}, with its log in {config.log.path}",
            "    it follows until it is stopped"
            if follow
            else "    it ends when the target has everything, and removes what it made",
        ]
    )


def _write(config: Config, file: Path) -> None:
    """The pipeline as a file, for the services and the other verbs. It holds no password: those come by the environment."""

    def written(url: Url, variable: str) -> str:
        hides = str(url) != url.reveal()
        return f"${{{variable}}}" if hides else url.reveal().replace("${", "$${")

    content = {
        "pipeline": config.pipeline,
        "source": {"url": written(config.source.url, SOURCE_VARIABLE), "heartbeat_s": HEARTBEAT_S},
        "tables": [pattern.text.replace("${", "$${") for pattern in config.tables.patterns],
        "log": {"path": str(config.log.path).replace("${", "$${"), "retention": config.log.retention},
        "sinks": {SINK: written(_target(config), TARGET_VARIABLE)},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    text = f"# The pipeline of a cdc copy. Look at it with: cdc status {file}\n" + json.dumps(content, indent=2) + "\n"
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(0o600)
    temporary.replace(file)


def _remove(config: Config, file: Path, finished: Path) -> None:
    """Everything that the copy made, the mark that it was complete last."""
    drop.remove(config, source=True, names=[SINK])
    file.unlink(missing_ok=True)
    finished.unlink(missing_ok=True)


def _say_how_to_go_on(config: Config, file: Path, code: int) -> None:
    hidden = [
        f"{variable}=…"
        for variable, url in ((SOURCE_VARIABLE, config.source.url), (TARGET_VARIABLE, _target(config)))
        if str(url) != url.reveal()
    ]
    prefix = "".join(f"{each} " for each in hidden)
    say(f"{config.pipeline}: stopped{'' if code == EXIT_OK else ' by an error'}. The same command goes on from here.")
    say(f"    The slot {config.source.slot} stays at the source and keeps its log. To give up: {prefix}cdc drop {file}")
