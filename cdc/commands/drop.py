"""`cdc drop`: remove what a pipeline made: slots and publications at the source, bookkeeping in the targets, the log.

Tables and rows at the targets stay. The invariant: nothing is taken from under a running capture, whose lock is held meanwhile;
and the log goes last, so that what an interrupted drop left is found by the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NoReturn

from cdc.commands import logs, wiring
from cdc.commands.confirm import confirmed
from cdc.config import Config, load
from cdc.errors import EXIT_OK, CdcError
from cdc.presentation import say
from sinks.replay import replay_name


def run(*, file: Path, source: bool, sinks: Sequence[str], dry_run: bool, yes: bool) -> int:
    """Raises CDC-LOG-201 while a capture runs, CDC-PG-128 while the slot is in use. `source` and `sinks` choose a part."""
    config = load(file)
    everything = not source and not sinks
    names = list(config.sinks) if everything else [name for name in sinks if config.sink(name)]
    say(
        "\n".join(
            [f"{config.pipeline}: this removes", *(f"    {what}" for what in plan(config, source or everything, names))]
        )
    )
    if dry_run or not confirmed("Remove them?", yes):
        return EXIT_OK
    remove(config, source or everything, names)
    return EXIT_OK


def plan(config: Config, source: bool, names: Sequence[str]) -> list[str]:
    """What would be removed, in words."""
    lines = []
    if source:
        lines.append(
            f"at the source {config.source.url.location}: the slot {config.source.slot} with those of later epochs"
        )
        lines.append(
            f"at the source: the publication {config.source.publication} and its _inserts, if they are the pipeline's own"
        )
    lines += [
        f"at the target of sink {name}, {config.sinks[name].url.location}: its rows in the schema _cdc; tables and rows stay"
        for name in names
    ]
    if source:
        lines.append(f"the log in {config.log.where}, with all changes in it")
    return lines


def remove(config: Config, source: bool, names: Sequence[str]) -> None:
    """Do it, and say what was done."""
    with ExitStack() as stack:
        if source:
            stack.enter_context(logs.alone(config))
            logs.refuse_foreign(config)
            with closing(wiring.source(config)) as origin:
                for what in origin.drop():
                    say(f"✓ {what}")
        for name in names:
            wiring.rebuild(config, name, _no_schema, lambda _table: True, None).discard()
            with closing(wiring.sink(config, name)) as sink:
                sink.drop()
            if not source:
                _forget_reader(config, name)
            say(f"✓ bookkeeping of sink {name}")
        if source:
            for what in logs.remove(config):
                say(f"✓ {what}")


def _no_schema(_id: int) -> NoReturn:
    raise AssertionError("what is removed is not read")


def _forget_reader(config: Config, name: str) -> None:
    """Retention need not wait for a sink that is gone."""
    try:
        log = logs.open_log(config)
    except CdcError as error:
        if error.code == "CDC-LOG-101":
            return
        raise
    with closing(log):
        log.forget(name)
        log.forget(replay_name(name))
