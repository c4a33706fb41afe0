"""Rules switched off, one at a time: each must be noticed by some seed.

A mutant names what is replaced in the loops under test or in a fake; `without` puts it back afterwards. Those of the second group
bring back defects that the simulation has found, and so are the regression tests of their repair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from cdc import capture
from cdc.errors import CdcError
from cdc.load import Load
from sinks import apply, changes, horizon, joining
from tests.simulation.log import FakeLog
from tests.simulation.source import FakeSource
from tests.simulation.target import FakeSink
from tests.simulation.world import Violation, World

Patches = list[Any]
MUTANTS: dict[str, Callable[[], Patches]] = {}


def mutant(make: Callable[[], Patches]) -> Callable[[], Patches]:
    MUTANTS[make.__name__.replace("_", "-")] = make
    return make


@contextmanager
def without(name: str) -> Iterator[None]:
    """The rule is off within."""
    patches = MUTANTS[name]()
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def often(**settings: Any) -> Any:
    """What must happen often for this to be noticed soon."""
    return patch.object(World, "focus", settings)


def off(owner: Any, name: str, value: Any = False) -> Any:
    return patch.object(owner, name, value)


def cut(*, ignoring: str) -> Patches:
    parts = [part for part in ("open", "awaiting", "owed") if part != ignoring]
    return [off(Load, "at_cut", property(lambda load: not any(getattr(load, part) for part in parts)))]


def state_without(**fields: Any) -> Patches:
    state = Load.state
    return [off(Load, "state", lambda load: state(load) | fields)]


REPAIRS = often(request=0.08, reloads=0.01, mix=["insert", "move", "move", "move"], killed=0.008, silents=0, alters=0)


# ---------------------------------------------------------------------------------------------------------------- the rules
@mutant
def settled() -> Patches:
    """C2: a chunk's snapshot sees every delivered transaction."""
    return [off(FakeSource, "settled_rule")]


@mutant
def unseen_in_the_position() -> Patches:
    """C2: delivered transactions not yet seen visible are part of the position."""
    return [off(FakeSource, "persist_unseen")]


@mutant
def durable_mark() -> Patches:
    """D3: the mark is durable before the chunks are written."""
    return [off(FakeSource, "durable_mark")]


@mutant
def mark_session() -> Patches:
    """C1: the mark is committed on a session opened before the first read."""
    return [off(FakeSource, "mark_session"), often(crash=0.03)]


@mutant
def cut_awaits_marks() -> Patches:
    """B1: no cut before the marks came back."""
    return cut(ignoring="awaiting")


@mutant
def cut_outside_transactions() -> Patches:
    """B1: no cut inside a source transaction."""
    return cut(ignoring="open")


@mutant
def cut_awaits_owed() -> Patches:
    """B1: no cut while a live table is owed a re-read."""
    return [*cut(ignoring="owed"), REPAIRS]


@mutant
def reread_moves() -> Patches:
    """C4: key changes with UNCHANGED columns are read again."""
    return [off(Load, "_must_reread", lambda _load, _move: False)]


@mutant
def reread_repaired() -> Patches:
    """C4: those of a row under repair count too."""
    saw = Load.saw

    def forgetful(load: Load, run: Any) -> None:
        load.repaired.clear()
        saw(load, run)

    return [off(Load, "saw", forgetful), REPAIRS]


@mutant
def reread_owed() -> Patches:
    """C4: ... and those of a key that is itself owed its re-read."""
    must = Load._must_reread

    def forgetful(load: Load, move: Any) -> bool:
        owed, load.owed = load.owed, set()
        answer = must(load, move)
        load.owed |= owed
        return answer

    return [off(Load, "_must_reread", forgetful), REPAIRS]


@mutant
def queue_in_the_position() -> Patches:
    """C4: the re-read queue is part of the position."""
    return state_without(queue=[])


@mutant
def repaired_in_the_position() -> Patches:
    """C4: so are the keys under repair."""
    return [*state_without(repaired=[]), REPAIRS]


@mutant
def owed_in_the_position() -> Patches:
    """C4: so are the keys that a re-read is owed."""
    return [*state_without(owed=[]), REPAIRS]


@mutant
def open_in_the_position() -> Patches:
    """B1: a restart inside a source transaction knows that it is inside."""
    return state_without(open=False)


@mutant
def awaiting_in_the_position() -> Patches:
    """B1: a restart knows the marks that have not come back."""
    return state_without(awaiting=[])


@mutant
def finish_after_rereads() -> Patches:
    """C4: a load ends after its re-reads."""

    def finish(load: Load) -> Any:
        queue, load.queue = load.queue, {}
        finished = real(load)
        load.queue = queue
        return finished

    real = Load.finish
    return [off(Load, "finish", finish)]


@mutant
def queue_bound_restarts() -> Patches:
    """C4: beyond the bound the table's load starts anew."""
    must = Load._must_reread

    def dropping(load: Load, move: Any) -> bool:
        answer = must(load, move)
        load._restart_now.clear()
        return answer

    return [off(Load, "_must_reread", dropping)]


@mutant
def missing_is_deleted() -> Patches:
    """C3: a requested key that the source no longer has is written as a delete."""
    real = FakeSource._requested

    def present(self: Any, table: Any, version: int, keys: list[int], rows: Any) -> Any:
        return real(self, table, version, [key for key in keys if key in rows], rows)

    return [off(FakeSource, "_requested", present)]


@mutant
def begin_after_mark() -> Patches:
    """C3: a load whose reason was not read from the stream begins when a mark came back that is later than the reason."""
    asked = Load.asked

    def at_once(load: Load, facts: Any, mark: str) -> None:
        asked(load, facts, mark)
        for request in load._requests:
            request.back = True

    return [off(Load, "asked", at_once)]


@mutant
def generation_deletes() -> Patches:
    """C3: the end of a load deletes what it has not written."""
    return [off(FakeSink, "delete_unseen")]


@mutant
def stale_collision() -> Patches:
    """B6: of two rows with one unique value the stale one goes."""
    return [off(FakeSink, "_collide", lambda *_: {})]


@mutant
def keyless_filter() -> Patches:
    """D8: events that the keyless snapshot sees are dropped."""
    return [off(FakeSource, "keyless_filter")]


@mutant
def keyless_until_the_mark() -> Patches:
    """D8: ... until the mark behind it came back."""

    def drops(load: Load, table: Any, loading: Any) -> bool:
        return load.tables[table].keyless and not loading.read

    return [off(Load, "_drops", drops)]


@mutant
def keyless_snapshot_in_the_position() -> Patches:
    """D8: the snapshot is in the position until then."""
    state = Load.state

    def forgetful(load: Load) -> Any:
        data = state(load)
        for _, loading in data["loading"]:
            if loading.get("snapshot"):
                loading["snapshot"] = [0, []]
        return data

    return [off(Load, "state", forgetful)]


@mutant
def keyless_void() -> Patches:
    """C3: an interrupted keyless load begins anew."""
    init = Load.__init__

    def going_on(load: Load, *args: Any) -> None:
        init(load, *args)
        load._restart_now.clear()

    return [off(Load, "__init__", going_on)]


@mutant
def append_after_mark() -> Patches:
    """C1: the chunks are appended after the round's mark is durable at the source."""

    def load_round(source: Any, load: Load, tail: Any) -> bool:
        late = Late(source)
        done = real(late, load, tail)
        late.pay()
        return done

    class Late:
        def __init__(self, source: Any) -> None:
            self.source, self.marks = source, list[str]()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.source, name)

        def mark(self) -> str:
            tx_mark = f"mark {self.source.db.new()}"
            self.marks.append(tx_mark)
            return tx_mark

        def pay(self) -> None:
            for mark in self.marks:
                self.source._called("mark")
                self.source.db.commit_mark(name=mark)

    real = capture.load_round
    return [off(capture, "load_round", load_round)]


@mutant
def nothing_within_a_round() -> Patches:
    """C1: no batch of the stream between the first read and the last chunk."""

    def load_round(source: Any, load: Load, tail: Any) -> bool:
        def mark() -> str:
            run = source.poll(0, load.filter)
            load.saw(run)
            if run.moved_on:
                tail.append(run.records, stream=run.stream, sequence=run.sequence)
            return str(type(source).mark(source))

        source.mark = mark
        done = real(source, load, tail)
        del source.mark
        return done

    real = capture.load_round
    return [off(capture, "load_round", load_round), off(World, "check_numbers")]


@mutant
def confirm_only_cuts() -> Patches:
    """B1: the source is told to forget only what is before a cut."""
    real = capture.Tail.append
    return [off(capture.Tail, "append", lambda *args, **more: real(*args, **more) or True)]


@mutant
def confirm_after_append() -> Patches:
    """R1: never confirm what the log does not hold."""

    def poll(self: Any, timeout_s: float, drop: Any) -> Any:
        run = real(self, timeout_s, drop)
        if not run.in_transaction:
            self.confirm(run.stream)
        return run

    real = FakeSource.poll
    return [off(FakeSource, "poll", poll)]


@mutant
def abandon_after_a_cut() -> Patches:
    """B4: a new epoch continues the last cut."""
    real = FakeLog.append
    append = lambda log, batch, draft: real(log, batch, draft._replace(continues=None))  # noqa: E731
    return [off(FakeLog, "append", append), often(**{"fail over": 0.003})]


@mutant
def commit_at_cuts() -> Patches:
    """B1: a sink commits only at cuts."""

    def merge(self: Any, checkpoint: Any) -> None:
        real(self, checkpoint)
        if not checkpoint.cut:
            self.bookmark = self.sink.commit(checkpoint)
            self._open = False

    real = apply.Transaction.merge
    return [off(apply.Transaction, "merge", merge), off(FakeSink, "check_cut")]


@mutant
def compare_the_bookmark() -> Patches:
    """B2: the first statement compares the bookmark."""
    return [off(FakeSink, "compare_bookmark")]


@mutant
def join_at_a_cut() -> Patches:
    """B5: a sink that joins begins at a cut, which no later epoch abandons."""

    def anywhere(log: Any, surveyor: Any, number: int) -> Any:
        return surveyor.mark_before(number)

    return [off(joining, "cut_before", anywhere), often(**{"join": 0.05, "fail over": 0.01, "new epoch": 0.01})]


@mutant
def join_from_the_last_whole_load() -> Patches:
    """B5: the load that is under way may end long after a sink has joined, or never: the one before it is whole."""

    def start(log: Any, name: str, wants: Any) -> Any:
        found = joining.start(log, name, wants)
        return found._replace(mark=log.storage.cut.mark if log.storage.cut else found.mark, begins={})

    return [off(apply, "start", start), often(join=0.05)]


@mutant
def join_each_table_at_its_own_load() -> Patches:
    """B5: what happens to a table before its own load begins is not for a sink that joins."""

    def start(log: Any, name: str, wants: Any) -> Any:
        return joining.start(log, name, wants)._replace(begins={})

    return [off(apply, "start", start), often(join=0.05)]


@mutant
def retention_waits_for_who_joins() -> Patches:
    """A9: retention waits for a sink from the moment on in which it looks for its place."""

    def report(log: Any, reader: str, mark: Any) -> None:
        if reader == "sink":  # only of the first one is known
            real(log, reader, mark)

    real = FakeLog.report
    return [off(FakeLog, "report", report), often(join=0.05, retention=True)]


@mutant
def replay_outside_of_loads() -> Patches:
    """B10: inside a load there is no state of a table."""

    def check(states: Any, moment: Any) -> None:
        if not any(loaded for _, loaded in states.values()):
            real(states, moment)

    real = horizon._check_loads
    return [off(horizon, "_check_loads", check), often(killed=0)]


@mutant
def begun_first() -> Patches:
    """C3: what came before a load's beginning is not written by it."""

    def add(self: Any, checkpoint: Any, batch: Any, wants: Any) -> None:
        self._at_cut = False
        real(self, checkpoint, batch, wants)

    real = changes.Changes.add
    return [off(changes.Changes, "add", add), often(silents=0.15, request=0.03)]


@mutant
def partial_keeps_its_origin() -> Patches:
    """C4, B6: a row that lacks columns keeps track of where they are."""

    def over(self: Any, schema: int, base: Any, row: bytes, unchanged: Any) -> Any:
        end = real(self, schema, base, row, unchanged)
        return row if isinstance(end, changes.Partial) else end

    real = changes.Changes._over
    return [off(changes.Changes, "_over", over)]


@mutant
def truncate_voids() -> Patches:
    """A TRUNCATE voids what came before it."""

    def truncate(self: Any, table: Any, found: Any, records: Any) -> None:
        found.emptied, found.only_reads = True, False

    return [off(changes.Changes, "_truncate", truncate)]


def noticed(**instead: Any) -> Any:
    """Of what a source noticed, this is not seen."""
    real = Load._noticed
    return off(Load, "_noticed", lambda load, run: real(load, replace(run, **instead)))


@mutant
def altered_is_loaded_anew() -> Patches:
    """D9: rows that changed without events are read again."""
    return [noticed(altered={}), often(silents=0.1, remakes=0)]


@mutant
def found_is_taken_in() -> Patches:
    """D9: a table that is made while the capture runs is captured."""
    return [noticed(found=()), often(remakes=0.1)]


@mutant
def what_does_not_fit_is_left_out() -> Patches:
    """D9: no event of another structure gets into a load."""
    return [off(FakeSource, "structure_rule"), often(rekeys=0.1)]


@mutant
def left_until_the_next_load() -> Patches:
    """D9: a table whose events were left out is not captured again before a new load of it begins."""

    def forgiving(load: Load, run: Any) -> None:
        real(load, replace(run, left={}, altered={**run.altered, **run.left}))

    real = Load._noticed
    return [off(Load, "_noticed", forgiving), often(rekeys=0.15)]


@mutant
def left_in_the_position() -> Patches:
    """D9: ... and a restart knows of it, though the table may be again what it was."""
    return [*state_without(left=[]), often(rekeys=0.15, killed=0.01, select=0)]


# ----------------------------------------------------------------------------------------- defects that were found like this
@mutant
def old_cut_is_not_of_the_new_epoch() -> Patches:
    """R1: the source is not opened with the last cut of a history that was cut."""

    def init(self: Any, log: Any, state: Any, *rest: Any) -> None:
        real(self, log, state, *rest)
        self.cut = state.cut.position if state.cut else self.cut

    real = capture.Tail.__init__
    return [off(capture.Tail, "__init__", init)]


@mutant
def new_epoch_is_served() -> Patches:
    """A running capture must not count a request for a new epoch as taken."""

    def take(load: Load, signals: Any) -> None:
        real(load, [one._replace(kind="other") if one.kind == "new-epoch" else one for one in signals])

    real = Load.take
    return [off(Load, "take", take), often(**{"new epoch": 0.004})]


@mutant
def restructured_keeps_its_queue() -> Patches:
    """What is queued for a table waits until its new load begins."""

    def restructured(load: Load, table: Any, *, gone: bool = False) -> None:
        load._forget(table)
        load.want([table])

    return [off(Load, "restructured", restructured), often(alters=0.1, mix=["insert", "move", "move"], killed=0.005)]


@mutant
def request_has_its_own_mark() -> Patches:
    """C3: a request is not served by a mark that is older than its reason."""

    def want(load: Load, tables: Any, signal: int = 0) -> None:
        asked = {table for request in load._requests for table in request.tables}
        if fresh := [table for table in tables if table not in asked]:
            real(load, fresh, signal)
        elif signal:
            load.signals = max(load.signals, signal)

    real = Load.want
    return [off(Load, "want", want), often(silents=0.3, alters=0.1, busy=4)]


@mutant
def new_epoch_begins_after_a_mark() -> Patches:
    """C3: in a new epoch too, tables are loaded after a mark that is later than what was said of them."""

    def new_epoch(load: Load, signal: int) -> None:
        left = set(load.left)
        real(load, signal)
        load.left = left

    def resume(source: Any, log: Any, *rest: Any) -> Any:
        start = source.start
        known = log.storage.tables
        source.start = lambda *args: (start(*args), known.update(described(source, known)))[0]
        return real_resume(source, log, *rest)

    def described(source: Any, known: Any) -> Any:
        source._called("include")
        return {table: state._replace(facts=source._facts(table)) for table, state in known.items()}

    real, real_resume = Load.new_epoch, capture.resume
    often_cut = often(**{"new epoch": 0.004}, silents=0.3, busy=4)
    return [off(Load, "new_epoch", new_epoch), off(capture, "resume", resume), often_cut]


def killed_by(name: str, seeds: range, steps: int = 40) -> tuple[int, str] | None:
    """The first seed that notices the missing rule, and how."""
    with without(name):
        for seed in seeds:
            try:
                World(seed, steps).run()
            except (Violation, CdcError) as error:
                return seed, f"{type(error).__name__}: {error}"
    return None
