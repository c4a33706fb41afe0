"""`cdc demo`: everything at once, on servers of its own: a shop under load, two targets, kill -9 in the middle, proof at the end.

Exit code 0 when source and targets are equal row for row, 4 when they are not. The invariant: whatever ends it but kill -9, no
process and no folder of it is left, unless it was told to keep the folder or found something that somebody should look at.
"""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from cdc.demo import stage as stages
from cdc.demo.play import Interrupted, Outcome, Play
from cdc.demo.screen import Screen, screen
from cdc.demo.shop import TABLES
from cdc.errors import EXIT_FINDINGS, EXIT_OK, CdcError
from cdc.presentation import say
from cdc.supervise import Stop

WORTH_A_LOOK = ("CDC-RUN-102", "CDC-DEMO-105")
"""Errors after which the folder stays, with the services' log lines in it."""


def run(*, keep: bool, seconds: int, port: int | None) -> int:
    """Raises CDC-DEMO-101 to -105, and CDC-RUN-102 with the error that has ended a service."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]  # libpq's variables are about servers of the user's
    shown, code = screen(), EXIT_OK
    with Interrupt().by_signals() as stop:
        folder = stages.new_folder()
        try:
            code = perform(shown, folder, seconds, port, keep, stop)
            keep |= code == EXIT_FINDINGS
        except (Exception, Interrupted) as error:
            keep |= isinstance(error, CdcError) and error.code in WORTH_A_LOOK and not stop()
            if not stop():
                raise
        finally:
            leave(shown, folder, keep, interrupted=stop())
        return 128 + stop.number if stop() else code


class Interrupt(Stop):
    """Ctrl-C, SIGTERM and SIGHUP ask to stop, and no second one interrupts the tidying up, which is short."""

    number = 0

    @contextmanager
    def by_signals(self) -> Iterator[Interrupt]:
        """Within: the signals ask. One that the caller of this process has set to be ignored, as nohup does, stays so."""

        def handle(number: int, _frame: FrameType | None) -> None:
            self.number = self.number or number
            self.ask()

        numbers = [
            number
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN
        ]
        before = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def perform(shown: Screen, folder: Path, seconds: int, port: int | None, keep: bool, stop: Interrupt) -> int:
    """Set the stage, play, and say what came out."""
    began = time.monotonic()

    def done(what: str) -> None:
        shown.say(f"{time.monotonic() - began:6.1f} s  {what}")
        if stop():
            raise Interrupted

    shown.say("Penstock: a live database, replicated twice, exactly once, through kill -9.", "bold")
    shown.say("")
    with stages.servers(folder, port, in_order=keep) as stage:
        done(f"PostgreSQL {stage.source.major} (source) and {stage.targets.major} (targets) run, private to this demo")
        stage.build()
        done(f"a shop: {stage.rows():,} rows in {len(TABLES)} tables, and an application that writes")
        outcome = Play(stage, shown, seconds, stop, began).run()
    result(shown, outcome, time.monotonic() - began)
    return EXIT_OK if outcome.good else EXIT_FINDINGS


def result(shown: Screen, outcome: Outcome, seconds: float) -> None:
    """What the play has shown."""
    shown.say("")
    if outcome.good:
        shown.say("✓ Equal, row for row, every column.", "bold green")
    else:
        shown.say("✗ NOT as it should be. This is a bug: please report it.", "bold red")
    for found in outcome.comparisons:
        mark, tables = "✗" if found.differences else "✓", len(found.target.tables)
        shown.say(f"  {mark} {found.target.name:<10} {found.rows:>8,} rows in {tables} tables, {found.target.about}")
        for difference in found.differences:
            shown.say(f"      {difference}", "red")
    if outcome.torn:
        shown.say(f"  ✗ money in the targets was torn in {outcome.torn:,} of {outcome.looks:,} looks", "red")
    else:
        shown.say(f"  ✓ money in the targets was never torn: {outcome.looks:,} looks while it moved")
    shown.say(f"  ✓ {outcome.kills} kills survived; the targets were {outcome.lag_ms:.0f} ms behind (median)")
    shown.say(f"    {outcome.transactions:,} transactions, {outcome.events:,} events in the log, {seconds:.0f} s")


def leave(shown: Screen, folder: Path, keep: bool, *, interrupted: bool) -> None:
    """Remove the folder, or say how to look around in it. What is printed may find no terminal any more."""
    keep = keep and (folder / stages.PIPELINE_FILE).is_file()
    if not keep:
        stages.remove(folder)
    with suppress(OSError):
        if interrupted:
            say("interrupted: every process has ended" + ("" if keep else ", and nothing is left"))
        if keep:
            look_around(shown, folder)


def look_around(shown: Screen, folder: Path) -> None:
    """What is in a folder that is kept, and the commands for it."""
    cdc, file = stages.command(), shlex.quote(str(folder / stages.PIPELINE_FILE))

    def script(name: str) -> str:
        return f"sh {shlex.quote(str(folder / name))}"

    commands = (
        ("the events in the log", f"{cdc} tail {file}"),
        ("the servers again", script(stages.SERVERS_SCRIPT)),
        ("and, in another terminal:", ""),
        ("  SQL at the source", script("psql-source")),
        ("  SQL at the targets", f"{script('psql-replica')}"),
        ("", script("psql-analytics")),
        ("  the pipeline's state", f"{cdc} status {file}"),
        ("  the pipeline again", f"{cdc} run {file}"),
        ("remove it all", f"rm -r {shlex.quote(str(folder))}"),
    )
    shown.say("")
    shown.say(f"The folder is kept: {folder}. Nothing of it runs any more.", "bold")
    for title, command in commands:
        shown.say(f"  {title:<26} {command}".rstrip())
