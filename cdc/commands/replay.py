"""`cdc replay SINK`: rebuild a target from the log, and exchange it with the live tables, or keep it beside them as of a past place.

The invariant: the same command goes on with what it has begun, however it was ended, until it is done or `--discard` removes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cdc.commands import logs, wiring
from cdc.commands.confirm import confirmed
from cdc.commands.tail import printable
from cdc.config import Config, load
from cdc.errors import EXIT_OK, CdcError
from cdc.journal import bind
from cdc.log import Checkpoint, Log
from cdc.presentation import answer, say
from cdc.selection import TableFilter
from cdc.supervise import Stop, supervise
from cdc.table import TableId
from sinks.horizon import Moment, Number, Time
from sinks.replay import Plan, Rebuild, Replay, plan

Json = Any
EXIT_INTERRUPTED = 130
SAY_EVERY_S = 10.0


def run(
    *,
    name: str,
    file: Path,
    to: str | None,
    into: str | None,
    tables: Sequence[str],
    discard: bool,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Raises CDC-RPL-… for what cannot be replayed, and what ends it for good."""
    config = load(file)
    config.sink(name)
    bind(pipeline=config.pipeline, role=f"replay {name}")
    with closing(logs.open_log(config)) as log:
        rebuild = wiring.rebuild(config, name, log.schema, _picked(log, config, tables), into)
        if discard:
            return _discard(rebuild, log, name, dry_run, yes)
        if to is not None and into is None:
            raise CdcError("CDC-RPL-112", f"--to {to}", where=f"sink {name}")
        id, planned = plan(rebuild, log, None if to is None else moment(config, to), tuple(tables), to)
        say(described(config, name, planned, again=id is not None))
        if dry_run or not confirmed("Go ahead?", yes):
            _let_go(rebuild, log, id)
            return EXIT_OK
        if id is None:
            id = rebuild.begin(log.id, sorted(planned.start.begins), planned.to_json())
        result = _supervised(rebuild, log, id, planned)
    if result is None:
        say(f"{config.pipeline}: stopped; the same command goes on from here")
        return EXIT_INTERRUPTED
    result = {
        "sink": name,
        "to": to,
        "into": into,
        "reached": planned.horizon is None or planned.horizon.reached,
        **result,
    }
    print(answer("replay", result)) if as_json else say(summary(config, result))
    return EXIT_OK


def _let_go(rebuild: Rebuild, log: Log, id: str | None) -> None:
    """Nothing was begun: retention need not wait."""
    if id is None:
        log.forget(rebuild.sink.name)


def _discard(rebuild: Rebuild, log: Log, name: str, dry_run: bool, yes: bool) -> int:
    say(f"sink {name}: the tables that an unfinished replay has made, and where it was, are removed")
    if dry_run or not confirmed("Remove them?", yes):
        return EXIT_OK
    there = rebuild.discard()
    log.forget(rebuild.sink.name)
    if not there:
        raise CdcError("CDC-RPL-113", "none was found", where=f"sink {name}")
    say("✓ removed")
    return EXIT_OK


def _picked(log: Log, config: Config, texts: Sequence[str]) -> Callable[[TableId], bool]:
    """The tables that `--tables` names. Raises CDC-RUN-301 for a name or pattern that no table of the log has."""
    try:
        wanted = TableFilter.parse(texts)
    except ValueError as error:
        raise CdcError("CDC-CFG-103", str(error), where="--tables") from None
    with log.look() as surveyor:
        known = surveyor.survey().tables
    if unmatched := wanted.unmatched(known):
        raise CdcError(
            "CDC-RUN-301", f"no table of {config.pipeline} is {', '.join(map(printable, unmatched))}", where="--tables"
        )
    return wanted.matches


def moment(config: Config, text: str) -> Moment:
    """What `--to` says. Raises CDC-RPL-111."""
    kind, _, rest = text.partition(":")
    if kind == "checkpoint" and rest.isascii() and rest.isdigit():
        return Number(int(rest))
    if kind == "position" and rest:
        return wiring.place(config, rest)
    if kind == "time":
        try:
            at = datetime.fromisoformat(rest)
        except ValueError:
            raise CdcError("CDC-RPL-111", f"{text}: no time in ISO 8601", where="--to") from None
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        if at > datetime.now(UTC):
            raise CdcError("CDC-RPL-111", f"{text}: it is not that late yet", where="--to")
        since = at - datetime(1970, 1, 1, tzinfo=UTC)
        return Time((since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds, text)
    raise CdcError("CDC-RPL-111", printable(text), where="--to")


def _supervised(rebuild: Rebuild, log: Log, id: str, planned: Plan) -> Json | None:
    """One attempt after another, as a service's; None when it was told to stop."""
    said_s = time.monotonic()
    done: list[Json] = []

    def observe(cut: Checkpoint, _rows: int) -> None:
        nonlocal said_s
        if time.monotonic() - said_s >= SAY_EVERY_S:
            said_s = time.monotonic()
            last = planned.horizon.last.number if planned.horizon else (log.last_checkpoint() or cut).number
            say(f"    at checkpoint {cut.number} of {last}")

    with Stop().on_signals() as stop:

        def attempt() -> None:
            with closing(rebuild.sink):
                result = Replay(rebuild, log, id, planned, stop, lambda words: say(f"    {words}"), observe).run()
            if result is not None:
                done.append(result)
                stop.ask()

        supervise(attempt, stop=stop)
    return done[0] if done else None


# ------------------------------------------------------------------------------------------------------------------- words
def described(config: Config, name: str, planned: Plan, *, again: bool) -> str:
    """What is about to be done."""
    location = config.sink(name).url.location
    begins = planned.start.begins
    lines = [f"{config.pipeline}: {'goes on with the replay of' if again else 'replays'} sink {name}, {location}"]
    lines.append(f"    from checkpoint {planned.start.mark.number + 1} {_end(planned)}: {len(begins)} tables")
    lines += [
        f"        {printable(str(table))}, as loaded at checkpoint {number}" for table, number in sorted(begins.items())
    ]
    if planned.into is not None:
        lines.append(f"    into the schema {printable(planned.into)}; the live tables are not touched")
    else:
        lines.append("    into fresh tables, which are then exchanged with the live ones; the sink may run meanwhile")
    return "\n".join(lines)


def _end(planned: Plan) -> str:
    horizon = planned.horizon
    if horizon is None:
        return "to the end of the log"
    inside = (
        "" if horizon.last == horizon.cut else f" and a part of the transactions up to checkpoint {horizon.last.number}"
    )
    unreached = "" if horizon.reached else ", which is its end: nothing later is in the log yet"
    return f"to the cut at checkpoint {horizon.cut.number}{inside}{unreached}"


def summary(config: Config, result: Mapping[str, Json]) -> str:
    """What came of it, a line per table."""
    into = result["into"]
    exchanged = "rebuilt and exchanged" if into is None else f"rebuilt in the schema {printable(into)}"
    lines = [f"✓ {config.pipeline}: sink {result['sink']} {exchanged}, as of checkpoint {result['checkpoint']}"]
    for table in result["tables"]:
        line = f"    {printable(table['target'])}: {table['rows']:,} rows, hash {table['hash']}"
        if into is None:
            line += f"; {_difference(table)}"
        lines.append(line)
    if not result["reached"]:
        lines.append("    ! nothing later than what --to says is in the log yet: this is its end")
    return "\n".join(lines)


def _difference(table: Mapping[str, Json]) -> str:
    before = table["before"]
    changed = [f"{table[kind]:,} {kind}" for kind in ("updated", "inserted", "deleted") if table[kind]]
    if before is None:
        return f"the live table was not at this checkpoint: {', '.join(changed) or 'nothing changed'}"
    if before["hash"] == table["hash"] and before["rows"] == table["rows"]:
        return "the live table was equal"
    return f"the live table had {before['rows']:,} rows, hash {before['hash']}: {', '.join(changed)}"
