"""`cdc run`: the capture and all sinks of one pipeline on this machine, one supervised process each.

Children's log lines come through on stderr, and on a terminal the live status stands below them. The first signal drains the
capture, then the sinks; a second one ends everything at once, and loses nothing by it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cdc.children import Children, Line, Role
from cdc.commands import live, wiring
from cdc.config import Config, load
from cdc.errors import EXIT_OK, CdcError
from cdc.journal import bind as bind_fields
from cdc.journal import journal
from cdc.supervise import Stop

_log = journal("cdc.run")


def run(*, file: Path, bind: str | None) -> int:
    """Until a signal asks to stop, or a service ends for good: then its exit code, and CDC-RUN-102 says which one it was."""
    config = load(file)
    if not config.sinks:
        raise CdcError("CDC-CFG-108", "there are no sinks to run: use cdc capture", where=str(file))
    bind_fields(pipeline=config.pipeline, role="run")
    with terminal(config) as speakers:
        return supervised(roles(config, file, bind), speakers)


def roles(config: Config, file: Path, bind: str | None) -> list[Role]:
    """One per service, the capture first. `bind` is the capture's address; the sinks get the ports after it."""

    base = wiring.listen(bind) if bind else config.server.bind

    def role(title: str, name: str, *verb: str) -> Role:
        return Role.of_cdc(title, *verb, str(file), "--bind", str(wiring.shifted(base, config, name)))

    sinks = [role(f"sink {name}", name, "sink", name) for name in config.sinks]
    return [role("capture", wiring.CAPTURE, "capture"), *sinks]


Speakers = tuple[Callable[[Line], None], Callable[[str, str], None]]


def supervised(
    chosen: list[Role],
    speakers: Speakers,
    *,
    done: Callable[[], bool] = lambda: False,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run these services until a signal, until `done`, or until one ends for good: then its exit code. `speakers` are told lines
    and events."""
    on_line, on_event = speakers
    children = Children(chosen, on_line=on_line, on_event=on_event, environment=environment)
    with Stop().on_signals(children.kill) as stop:
        try:
            children.start()
            code = children.watch(stop, done)
            drained = children.drain()
        finally:
            children.kill()
    if code == EXIT_OK == drained:
        return EXIT_OK
    failed = [child.role.name for child in children.children if child.process and (child.process.returncode or 0) > 0]
    on_event(", ".join(failed), str(CdcError("CDC-RUN-102", "everything was stopped; the error itself stands above")))
    return code or drained


@contextmanager
def terminal(config: Config) -> Iterator[Speakers]:
    """Where lines and events go: below each other into a log, or above the live status on a terminal."""
    if not sys.stderr.isatty():

        def plain(line: Line) -> None:
            sys.stderr.write(line.plain + "\n")
            sys.stderr.flush()

        yield plain, lambda role, words: _log.info(words, service=role)
        return
    with live.status(config) as show:
        yield lambda line: show(str(line)), lambda role, words: show(f"{role} | {words}")
