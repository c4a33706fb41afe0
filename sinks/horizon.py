"""A place in the log to stop at (protocol B10): what `--to` means in it, and where a replay to there begins.

`sinks.part` reads up to it. The invariant: what lies before a horizon is whole source transactions, and no table that is wanted is
being loaded there. Up to a cut all of it is; behind that, inside one stretch without a cut, the events before the first
transaction, in log order, that is later: these alone are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from cdc.avro import HEADER_BYTES, decode_datum, schema_id
from cdc.errors import CdcError
from cdc.log import Checkpoint, Log, Mark
from cdc.records import Batch
from cdc.table import TableId
from sinks.joining import checkpoints, cut_before
from sinks.sink import Start

Json = Any
Wants = Callable[[TableId], bool]


class Moment(Protocol):
    """What `--to` names."""

    @property
    def text(self) -> str:
        """As it was written."""

    def beyond(self, checkpoint: Checkpoint) -> bool:
        """May some event of this checkpoint be later?"""

    def later(self, source: Mapping[str, Json]) -> bool:
        """Is an event with this source block of a later transaction? Events of one transaction may differ: the first that is later
        ends what is before."""


class Number(NamedTuple):
    """Everything up to this checkpoint: what is whole there, which is the last cut at or before it."""

    number: int

    @property
    def text(self) -> str:
        return f"checkpoint:{self.number}"

    def beyond(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.number > self.number

    def later(self, source: Mapping[str, Json]) -> bool:  # noqa: ARG002
        return True


class Time(NamedTuple):
    """Transactions that were committed at or before this time (microseconds since 1970)."""

    time_us: int
    text: str

    def beyond(self, checkpoint: Checkpoint) -> bool:
        return checkpoint.commit_ms is not None and (checkpoint.commit_ms[1] + 1) * 1000 > self.time_us

    def later(self, source: Mapping[str, Json]) -> bool:
        return int(source["ts_us"]) > self.time_us


class Horizon(NamedTuple):
    """All up to the cut `cut`; then, up to checkpoint `last`, the events with numbers below `sequence`. `last` equals `cut` where
    nothing more is before it. `reached`: something later is in the log; else this is its end."""

    cut: Mark
    last: Mark
    sequence: int | None = None
    reached: bool = True

    def to_json(self) -> Json:
        return [list(self.cut), list(self.last), self.sequence, self.reached]

    @classmethod
    def from_json(cls, data: Json) -> Horizon:
        return cls(Mark(*data[0]), Mark(*data[1]), data[2], data[3])


@dataclass(slots=True)
class _Path:
    """The log's path as far as it has been read: the last cut, what follows it, and each table's loads as of the cut and now."""

    cut: Mark
    tail: list[Checkpoint] = field(default_factory=list)
    at_cut: dict[TableId, tuple[int, int | None]] = field(
        default_factory=dict
    )  # begun, and the begin of the last whole load
    now: dict[TableId, tuple[int, int | None]] = field(default_factory=dict)
    seen: set[TableId] = field(default_factory=set)

    def meet(self, checkpoint: Checkpoint) -> None:
        """Before what comes next: the checkpoints that it abandons (B4) are none."""
        if checkpoint.previous == self.cut:
            self.tail, self.now = [], dict(self.at_cut)

    def follow(self, checkpoint: Checkpoint) -> None:
        for begun in checkpoint.begun:
            self.now[begun.table] = checkpoint.number, self.now.get(begun.table, (0, None))[1]
        for table in checkpoint.finished:
            if table in self.now:
                self.now[table] = self.now[table][0], self.now[table][0]
        self.seen.update(checkpoint.spans)
        self.tail.append(checkpoint)
        if checkpoint.cut:
            self.cut, self.tail, self.at_cut = checkpoint.mark, [], dict(self.now)


def find(log: Log, wants: Wants, moment: Moment) -> tuple[Horizon, Start]:
    """Where to stop for `moment`, and where to begin. Reads all checkpoints up to there. Raises CDC-RPL-102 for one that is not in
    the log, 103 inside a load, 104 before any table, and CDC-LOG-108 where retention has removed what is needed."""
    with log.look() as surveyor:
        after = surveyor.mark_before(0)
        path = _Path(after)
        horizon = _horizon(log, wants, moment, path, after)
        states = {table: state for table, state in path.at_cut.items() if wants(table)}
        missing = {table for table in path.seen - states.keys() if wants(table)} if after.number >= 0 else set()
        if missing:
            raise beyond_retention(missing)
        _check_loads(states, moment)
        begins = {table: loaded for table, (_, loaded) in states.items() if loaded is not None}
        return horizon, Start(cut_before(log, surveyor, min(begins.values())) or after, begins)


def beyond_retention(tables: set[TableId] | tuple[TableId, ...]) -> CdcError:
    """The last whole load of these tables is not in the log any more."""
    names = " ".join(f"'{table}'" if '"' in str(table) else str(table) for table in sorted(tables))
    return CdcError(
        "CDC-LOG-108",
        f"the last load of {', '.join(map(str, sorted(tables)))} is no longer in the log",
        remedy=f"`cdc reload {names}`, and when `cdc status` shows it live, replay again, to a place after that load.",
    )


def _horizon(log: Log, wants: Wants, moment: Moment, path: _Path, after: Mark) -> Horizon:
    passed = False
    for checkpoint in checkpoints(log, after):
        path.meet(checkpoint)
        if moment.beyond(checkpoint):
            passed = True
            if isinstance(moment, Number):
                return Horizon(path.cut, path.cut)
            found = _first_later(log, wants, moment, path, checkpoint)
            if found is not None:
                return found
        path.follow(checkpoint)
    if isinstance(moment, Number) and (not path.tail and path.cut.number < moment.number):
        raise CdcError("CDC-RPL-102", f"{moment.text}: the log ends at checkpoint {path.cut.number}")
    return Horizon(path.cut, path.cut, reached=passed or isinstance(moment, Number))


def _first_later(log: Log, wants: Wants, moment: Moment, path: _Path, checkpoint: Checkpoint) -> Horizon | None:
    """The horizon, if the first later transaction begins between the last cut and the end of this checkpoint."""
    stretch = {each.number for each in path.tail} | {checkpoint.number}
    events = [
        (int(source["sequence"]), table, source)
        for each, batch in _between(log, path.cut, checkpoint.number)
        if each.number in stretch
        for table, source in _sources(log, batch)
    ]
    first = min((n for n, _, source in events if not _is_read(source) and moment.later(source)), default=None)
    if first is None:
        return None
    before = [(table, source) for number, table, source in events if number < first]
    if not before:
        return Horizon(path.cut, path.cut)
    loading = {begun.table for each in (*path.tail, checkpoint) for begun in each.begun}
    loading |= {table for table, source in before if _is_read(source)}
    if found := sorted(filter(wants, loading)):
        raise _inside_a_load(found, moment, path.cut.number)
    return Horizon(path.cut, checkpoint.mark, first)


def _check_loads(states: Mapping[TableId, tuple[int, int | None]], moment: Moment) -> None:
    loading = {table: begun for table, (begun, loaded) in states.items() if begun != loaded}
    if loading:
        raise _inside_a_load(sorted(loading), moment, min(loading.values()) - 1)
    if not states:
        raise CdcError("CDC-RPL-104", f"{moment.text}: no table that was asked for had begun to load")


def _inside_a_load(tables: list[TableId], moment: Moment, before: int) -> CdcError:
    return CdcError(
        "CDC-RPL-103",
        f"{moment.text}: {', '.join(map(str, tables))} {'was' if len(tables) == 1 else 'were'} being read from the source then",
        remedy=f"Choose --to checkpoint:{before} or earlier, a later place, or leave {'it' if len(tables) == 1 else 'them'} "
        "out with --tables.",
    )


def _between(log: Log, after: Mark, number: int) -> Iterator[tuple[Checkpoint, Batch]]:
    with closing(log.read(after, lambda _table: True, 0)) as items:
        for item in items:
            if item is None or item[0].number > number:
                return
            yield item


def _sources(log: Log, batch: Batch) -> Iterator[tuple[TableId, Mapping[str, Json]]]:
    for table, records in batch.items():
        for value in records.values:
            yield table, decode_datum(log.schema(schema_id(value)), value[HEADER_BYTES:])["source"]


def _is_read(source: Mapping[str, Json]) -> bool:
    return bool(source["snapshot"] == "true")
