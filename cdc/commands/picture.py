"""The picture of a pipeline, from what is durable: the log's end, the bookkeeping in the targets, the source's head and slot.

It needs no service to be up, and is right when none is. The invariant: what cannot be reached is shown as a problem, never as a
zero. `cdc status`, the live view of `cdc run` and the progress of `cdc copy` are this one picture.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cdc.commands import logs, wiring
from cdc.config import Config
from cdc.errors import CdcError
from cdc.health import LAG_MAX_S, source_problems
from cdc.log import Survey, TableState
from cdc.table import TableId

Json = Any
QUEUED, LOADING, LIVE, LEFT = "queued", "loading", "live", "left"
BEHIND = "behind"  # in a sink that has joined: its load begins later in the log


@dataclass(frozen=True, slots=True)
class TableView:
    """`rows` are those that the running load has written to the log, of `estimate` (the planner's); both None when not known.
    `events` counts all that the log was ever given, `reason` says why it is loaded anew, or left out, by the capture itself."""

    table: str
    state: str
    generation: int
    rows: int | None
    estimate: int | None
    events: int
    reason: str | None = None

    @property
    def percent(self) -> float | None:
        """How far the load is, below 100 until it is finished; None when there is no telling."""
        if self.rows is None or not self.estimate:
            return None
        return min(99.9, 100.0 * self.rows / self.estimate)


@dataclass(frozen=True, slots=True)
class SinkView:
    """`checkpoint` is the bookmark's. Lags are to the end of the log; `tables` are the states in the target's bookkeeping."""

    name: str
    target: str
    state: str
    checkpoint: int | None = None
    lag_checkpoints: int | None = None
    lag_s: float | None = None
    lag_bytes: int | None = None
    tables: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything at one moment. `problems` is empty when the pipeline is healthy. `head` and `done` are places in the source's
    log: its end, seen after the log of ours, and how far that one goes."""

    pipeline: str
    state: str
    problems: Sequence[str]
    source: Mapping[str, Json]
    log: Mapping[str, Json]
    tables: Sequence[TableView]
    sinks: Sequence[SinkView]
    head: int | None = None
    done: int | None = None

    @property
    def healthy(self) -> bool:
        return not self.problems

    def to_json(self) -> Json:
        """The `result` of `cdc status --json`, a stable contract."""
        tables = [{**asdict(table), "percent": table.percent} for table in self.tables]
        return {
            **{name: getattr(self, name) for name in ("pipeline", "state", "healthy", "problems", "source", "log")},
            "tables": tables,
            "sinks": [asdict(sink) for sink in self.sinks],
        }


def gather(config: Config) -> Picture:
    """Look everywhere once. Raises nothing for what is away; that is part of the picture."""
    problems: list[str] = []
    # Bookmarks before the log: a busy one is then never seen ahead of it.
    books = {name: _books(config, name) for name in config.sinks}
    log, survey = _log(config, problems)
    if survey.last is None and not problems:
        problems.append("nothing has been captured yet")
    source, seen = _source(config, survey, problems)
    tables = table_views(survey, seen.tables, seen.estimates) if seen else table_views(survey, (), {})
    problems += left_out(survey)
    sinks = [_sink(config, name, survey, book) for name, book in books.items()]
    problems += [f"sink {sink.name}: {sink.problem}" for sink in sinks if sink.problem]
    problems += [f"sink {s.name} is behind by {s.lag_s:.0f} s" for s in sinks if (s.lag_s or 0) > LAG_MAX_S]
    state = word(survey, tables, sinks, problems, capturing=bool(source.get("active", True)))
    places = (seen.head, seen.done) if seen else (None, None)
    return Picture(config.pipeline, state, tuple(problems), source, log, tables, sinks, *places)


def word(
    survey: Survey, tables: Iterable[TableView], sinks: Iterable[SinkView], problems: Sequence[str], *, capturing: bool
) -> str:
    """The pipeline in one word. `capturing`: a capture is connected, or nobody can tell."""
    if survey.last is None:
        return "not started"
    if not capturing:
        return "stopped"
    if problems:
        return "degraded"
    if any(table.state in (QUEUED, LOADING) for table in tables):
        return "loading"
    if any((sink.lag_s or 0) > 1 or sink.checkpoint is None for sink in sinks):
        return "catching up"
    return LIVE


def table_views(survey: Survey, selected: Iterable[TableId], estimates: Mapping[TableId, int]) -> tuple[TableView, ...]:
    """The tables of the log, and those selected at the source that have not begun."""
    load = survey.last.position.load if survey.last else {}
    loading = {TableId(*table): details for table, details in load.get("loading", ())}
    left = {TableId(*table) for table in load.get("left", ())}
    views = {
        table: _table(
            table, survey.tables.get(table), loading.get(table), estimates.get(table), survey.events.get(table, 0)
        )
        for table in sorted({*survey.tables, *selected})
    }
    for table, reason in load.get("why", ()):
        if (id_ := TableId(*table)) in views:
            views[id_] = replace(views[id_], reason=reason)
    return tuple(replace(view, state=LEFT) if table in left else view for table, view in views.items())


def left_out(survey: Survey) -> list[str]:
    """The selected tables that cannot be captured as they are, each with what mends it."""
    refused = survey.last.position.load.get("refused", ()) if survey.last else ()
    return [f"{where} is left out: {code} {detail} → {remedy}" for _, code, detail, where, remedy in refused]


def _table(table: TableId, state: TableState | None, loading: Json, estimate: int | None, events: int) -> TableView:
    if state is None:
        return TableView(str(table), QUEUED, 0, None, estimate, events)
    if loading is None:
        return TableView(str(table), LIVE, state.generation, None, estimate, events)
    begun = bool(loading["rows"] or loading["read"] or loading.get("after"))
    return TableView(str(table), LOADING if begun else QUEUED, state.generation, loading["rows"], estimate, events)


def _log(config: Config, problems: list[str]) -> tuple[Mapping[str, Json], Survey]:
    try:
        with logs.look(config) as surveyor, closing(logs.open_log(config)) as log:
            survey, status = surveyor.survey(), log.status()
    except CdcError as error:
        if error.code != "CDC-LOG-101":
            problems.append(_words("log", error))
        return {"where": config.log.where}, Survey(None, {}, {})
    last = survey.last
    found = {"where": config.log.where, **status, "age_s": None, "epoch": None, "cut": None}
    if last is not None:
        found |= {"age_s": time.time() - last.written_ms / 1000, "epoch": last.epoch, "cut": last.cut}
    return found, survey


def _source(config: Config, survey: Survey, problems: list[str]) -> tuple[Mapping[str, Json], wiring.Look | None]:
    found: dict[str, Json] = {"url": config.source.url.location}
    try:
        seen = wiring.look(config, survey)
    except CdcError as error:
        problems.append(_words("source", error))
        return found, None
    found |= seen.status
    if survey.last is None and found.get("exists") and found["blockers"]:
        problems.append(f"the first start waits for these to end: {'; '.join(found['blockers'])}")
    if survey.last is not None:
        problems += source_problems(found)
        if not found.get("exists"):
            problems.append(f"the slot {found.get('slot')} is gone from the source")
        elif not found.get("active"):
            problems.append("no capture is connected to the source")
        if seen.waits:
            tables = ", ".join(map(str, wiring.waiting_for(survey)))
            mend = "commit them, roll them back, or: SELECT pg_terminate_backend(pid)"
            problems.append(f"{tables} can be loaded only when these end: {'; '.join(seen.waits)} → {mend}")
        if seen.locks:
            problems.append(f"tables cannot be read or looked at, since they are locked by {'; '.join(seen.locks)}")
    return found, seen


def _books(config: Config, name: str) -> Mapping[str, Any] | CdcError:
    """What the target's bookkeeping says of the sink."""
    try:
        with closing(wiring.sink(config, name)) as sink:
            return sink.status()
    except CdcError as error:
        return error


def _sink(config: Config, name: str, survey: Survey, status: Mapping[str, Any] | CdcError) -> SinkView:
    target = config.sinks[name].url.location
    if isinstance(status, CdcError):
        return SinkView(name, target, "unknown", problem=f"{status.code} {status.detail}")
    bookmark, rows = status["bookmark"], status["tables"]
    if bookmark is None:
        return SinkView(name, target, "not started")
    number, log_id = bookmark["number"], bookmark["log_id"]
    tables = {row["table"]: row["state"] for row in rows}
    state = LOADING if {LOADING, BEHIND} & set(tables.values()) else LIVE
    last = survey.last
    if last is None:
        return SinkView(name, target, state, number, tables=tables)
    if log_id != last.log_id:
        return SinkView(
            name, target, state, number, tables=tables, problem=f"its bookmark is of log {log_id}, not of this one"
        )
    if number > last.number:
        detail = f"its bookmark is at checkpoint {number}, the log ends at {last.number}"
        return SinkView(name, target, state, number, tables=tables, problem=detail)
    with logs.look(config) as surveyor:
        due_ms, backlog = surveyor.written_ms(number + 1), surveyor.backlog_bytes(number)
    lag_s = max(0.0, time.time() - due_ms / 1000) if due_ms else 0.0
    return SinkView(
        name,
        target,
        state,
        number,
        last.number - number,
        lag_s,
        backlog,
        tables,
        _suspended(config, name, number, rows),
    )


def _suspended(config: Config, name: str, number: int, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Tables that the sink takes and does not apply: their load was asked for, and has not begun."""
    takes = config.sinks[name].tables.matches
    names = [
        row["table"]
        for row in rows
        if row["state"] == "suspended" or (row["state"] == BEHIND and row["from_number"] <= number)
        if takes(TableId.parse(row["table"]))
    ]
    return f"left alone until they are loaded anew, which was asked for: {', '.join(names)}" if names else None


def _words(what: str, error: CdcError) -> str:
    return f"{what}: {error.code} {error.detail}"
