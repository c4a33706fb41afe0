"""`cdc reload`: ask the running capture to load tables anew, or to begin a new epoch after the source's history was cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from cdc.commands import logs
from cdc.commands.confirm import confirmed
from cdc.commands.tail import known_table, printable
from cdc.config import load
from cdc.errors import EXIT_OK
from cdc.log import TableState
from cdc.presentation import say
from cdc.table import TableId


def run(*, file: Path, tables: Sequence[str], all_tables: bool, new_epoch: bool, dry_run: bool, yes: bool) -> int:
    """Raises CDC-RUN-301 for a table that the log does not hold, CDC-LOG-101 when there is no log."""
    config = load(file)
    with logs.look(config) as surveyor:
        known = surveyor.survey().tables
    chosen = [] if new_epoch else selected(tables, all_tables, known)
    say(plan(config.pipeline, chosen, new_epoch))
    if dry_run or not confirmed("Go ahead?", yes):
        return EXIT_OK
    with closing(logs.open_log(config)) as log:
        details = {} if new_epoch else {"tables": [list(table) for table in chosen]}
        number = log.signal("new-epoch" if new_epoch else "reload", details)
    say(f"✓ request {number} is in the log: {after(new_epoch)}")
    return EXIT_OK


def selected(names: Sequence[str], all_tables: bool, known: Mapping[TableId, TableState]) -> list[TableId]:
    """The tables to load, each known to the log."""
    return sorted(known) if all_tables else list(dict.fromkeys(known_table(name, known) for name in names))


def plan(pipeline: str, tables: Sequence[TableId], new_epoch: bool) -> str:
    """What is about to be asked for."""
    if new_epoch:
        return (
            f"{pipeline}: a new epoch. A new slot is made at the source, and every table is loaded anew from there.\n"
            "    Use it when the source's history was cut: the slot was lost, the server was restored or replaced."
        )
    return "\n".join(
        [
            f"{pipeline}: {len(tables)} table{'' if len(tables) == 1 else 's'} to load anew, while everything keeps running:",
            *(f"    {printable(str(table))}" for table in tables),
        ]
    )


def after(new_epoch: bool) -> str:
    """What happens next."""
    if new_epoch:
        return "the capture takes it within seconds; start it if it has stopped. Sinks keep serving meanwhile"
    return "the capture takes it within seconds, or when it is started; cdc status shows the progress"
