"""`Load`: loads in rounds, generations, re-reads and cuts, as a state machine without I/O (protocols B1, C1–C4, D8).

A chunk of existing rows is read after everything that precedes it in the log and written before everything that follows it.
`cdc.capture` asks what to read, tells what was read and written, and shows each run of the stream; this module answers when a
round may start, which tables begin and finish, and whether the end of the log is a cut. Engines know nothing of it, and it
knows nothing of engines: keys are framed bytes, facts and snapshots the source's own JSON.

The invariant: `state()` and the table states in the log are all that a restarted capture needs; nothing else is remembered,
but for requests whose reload has not begun, which are asked for again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cdc import progress
from cdc.errors import Unavailable
from cdc.log import Begun, Signal, TableState
from cdc.progress import Key, Limits, Loading, Request, holds, without
from cdc.source import Chunk, ChunkSpec, Filter, Finding, Move, Piece, Run, dropped
from cdc.table import TableId

Json = Any

__all__ = ["Limits", "Load"]


class Load:
    """See the module. `state` is `state()` of the last checkpoint, or None; `tables` what the log knows of each begun table."""

    def __init__(self, state: Json, tables: Mapping[TableId, TableState], limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.tables = dict(tables)
        state = state or {}
        self.loading = {TableId(*t): progress.loading(data) for t, data in state.get("loading", ())}
        self.awaiting: set[str] = set(state.get("awaiting", ()))
        self.repaired: set[Key] = set(progress.keys(state.get("repaired", ())))
        self.queue: dict[Key, None] = dict.fromkeys(progress.keys(state.get("queue", ())))
        self.owed: set[Key] = set(progress.keys(state.get("owed", ())))
        self.left = {TableId(*table) for table in state.get("left", ())}
        self.why = {TableId(*table): str(reason) for table, reason in state.get("why", ())}
        self.signals: int = state.get("signals", 0)
        self.open: bool = state.get("open", False)
        self._requests: list[Request] = []
        self._refused: Sequence[Finding] = ()
        self._restart_now: dict[TableId, None] = {}
        self._filter: Filter | None = None
        self._round_mark: str | None = None
        self._round_bytes = 0
        # A keyless copy that was interrupted is void: its snapshot is gone, and nobody knows which pieces were written (C3).
        for table, load in self.loading.items():
            if self.tables[table].keyless and load.snapshot is not None and not load.read:
                self._restart_now[table] = None

    def state(self) -> Json:
        """JSON for the position. Sorted, so that equal states are equal text."""
        return {
            "loading": [[list(table), progress.loading_json(load)] for table, load in self.loading.items()],
            "awaiting": sorted(self.awaiting),
            "repaired": progress.keys_json(self.repaired),
            "queue": progress.keys_json(self.queue),
            "owed": progress.keys_json(self.owed),
            "left": [list(table) for table in sorted(self.left)],
            "why": progress.reasons_json(self.why),
            "refused": [list(finding) for finding in self._refused[: progress.REFUSED_MAX]],
            "signals": self.signals,
            "open": self.open,
        }

    # ------------------------------------------------------------------------------------------------------- the stream
    @property
    def at_cut(self) -> bool:
        """B1: no source transaction is open, every written chunk's mark came back, no live row is owed its re-read."""
        return not (self.open or self.awaiting or self.owed)

    @property
    def filter(self) -> Filter:
        """What the next `poll` leaves out."""
        if self._filter is None:
            self._filter = Filter(
                {table: state.facts for table, state in self.tables.items() if table not in self.left},
                {table: load.snapshot for table, load in self.loading.items() if self._drops(table, load)},
                frozenset(self.tables.keys() - self.left - self.loading.keys() - self._asked),
            )
        return self._filter

    def _drops(self, table: TableId, load: Loading) -> bool:
        # D8: everything until the snapshot; what it sees until the mark behind it came back.
        return self.tables[table].keyless and (load.snapshot is None or load.mark in self.awaiting or not load.read)

    def saw(self, run: Run) -> None:
        """A run of the stream, before it is appended: unlinks key changes (C4), takes marks that came back."""
        unlinked: dict[TableId, list[int]] = {}
        for move in run.moves:
            if self._must_reread(move):
                unlinked.setdefault(move.table, []).append(move.index)
        for table, indexes in unlinked.items():
            dropped(run.records[table], indexes)
        for mark in run.marks:
            self.awaiting.discard(mark)
            if not self.awaiting:
                self.repaired.clear()
            for request in self._requests:
                request.back = request.back or request.mark == mark
        for table, facts in run.facts.items():
            self.tables[table] = self.tables[table]._replace(facts=facts)
        if run.marks or run.facts:
            self._filter = None
        self.open = run.in_transaction
        self._noticed(run)

    def _noticed(self, run: Run) -> None:
        """D9: what changed without events is loaded anew, by itself. Each time it is judged by the facts that are in the log, so
        nothing is forgotten by a crash; but a table whose events were left out is remembered as one that left. What is asked for
        already is taken from `found`."""
        for table in run.left:
            self._leave(table)
        self.why |= {**run.altered, **run.left}
        asked = self._asked
        run.found = [t for t in run.found if t not in asked and (t not in self.tables or t in self.left)]
        self.want(table for table in (*run.left, *run.altered, *run.found) if table not in asked)
        self._refused = self._refused if run.refused is None else run.refused

    def _must_reread(self, move: Move) -> bool:
        """C4: is the new row to be read anew, since what it keeps of the old one may not be in the target?"""
        new, loading = (move.table, move.new), move.table in self.loading
        if (
            not loading
            and not holds(self.repaired, move.table, move.old)
            and not holds(self.owed, move.table, move.old)
        ):
            return False
        self.queue[new] = None
        if not loading:
            self.owed.add(new)
        if len(self.queue) > self.limits.queue_keys:
            self._forget(move.table)
            self._restart_now[move.table] = None
        return True

    def _forget(self, table: TableId) -> None:
        """Drop what is queued for a table whose load starts anew."""
        self.queue = dict.fromkeys(without(self.queue, table))
        self.owed, self.repaired = set(without(self.owed, table)), set(without(self.repaired, table))

    def _leave(self, table: TableId) -> None:
        """What happens to the table from here on is in no log, until a new load of it begins."""
        self._forget(table)
        if (load := self.loading.pop(table, None)) and load.mark:
            self.awaiting.discard(load.mark)
        self._restart_now.pop(table, None)
        self.left.add(table)
        self._filter = None

    # --------------------------------------------------------------------------------------------------------- requests
    def select(self, tables: Sequence[TableId]) -> None:
        """These tables are captured from now on. One that is not begun is loaded; one that left is remembered, since what
        happens to it meanwhile is in no log, and loaded anew when it comes back."""
        for table in self.tables.keys() - set(tables):
            self._leave(table)
        self._filter = None
        self.want(table for table in tables if table not in self.tables or table in self.left)

    def want(self, tables: Iterable[TableId], signal: int = 0) -> None:
        """Load these tables (anew). `signal` is the request's number, taken when their generation begins."""
        # A mark that is already committed may be older than this reason, and a signal must not count as taken before its begin.
        asked = {table for request in self._requests if request.mark is None for table in request.tables}
        if fresh := [table for table in tables if signal or table not in asked]:
            self._requests.append(Request(fresh, signal))
            self._filter = None

    @property
    def _asked(self) -> set[TableId]:
        return {table for request in self._requests for table in request.tables}

    def take(self, signals: Sequence[Signal]) -> None:
        """Requests from outside, in order. One reload is in hand at a time, so that `signals` stays one number. A table that is not
        captured any more is passed over.

        Raises Unavailable for a new epoch: it is taken where the source is opened, and must not count as taken here."""
        waiting = [signal for signal in signals if signal.number > self.signals]
        for signal in waiting:
            if any(request.signal for request in self._requests):
                break
            if signal.kind == "new-epoch":
                raise Unavailable(
                    "CDC-LOG-121", "the source is opened again, in a new epoch", where=f"request {signal.number}"
                )
            if signal.kind == "reload":
                wanted = [TableId(*table) for table in signal.details["tables"]]
                if wanted := [table for table in wanted if table not in self.left or table in self._asked]:
                    self.want(wanted, signal.number)
                else:
                    self.signals = signal.number
            elif signal.kind == "reread":
                table = TableId(*signal.details["table"])
                if table in self.tables and table not in self.left and not self.tables[table].keyless:
                    self.queue |= dict.fromkeys((table, bytes.fromhex(key)) for key in signal.details["keys"])
                self.signals = signal.number
            else:
                self.signals = signal.number

    @property
    def unmarked(self) -> list[TableId]:
        """Requested tables that wait for their facts and a mark; [] when there are none."""
        requests = [request for request in self._requests if request.mark is None]
        return list(dict.fromkeys(table for request in requests for table in request.tables))

    def asked(self, facts: Mapping[TableId, Json], mark: str) -> None:
        """The `unmarked` tables are streamed and described, and a mark was committed after that."""
        for request in self._requests:
            if request.mark is None:
                request.mark = mark
                request.facts = {table: facts[table] for table in request.tables if table in facts}

    def restarted(self) -> dict[TableId, Json]:
        """Facts of tables whose load begins anew at once, before the records of the next append: a queue that ran over, or
        (with no records) a keyless copy that a crash interrupted."""
        facts = {table: self.tables[table].facts for table in self._restart_now}
        self._restart_now.clear()
        return facts

    def due(self) -> dict[TableId, Json] | None:
        """Facts of requested tables whose mark came back, at a cut: they begin with an append of their own. A keyless table's
        beginning empties it, so no record that was polled before may stand behind it. None when no request ends now."""
        facts: dict[TableId, Json] = {}
        if not (back := [request for request in self._requests if request.back and self.at_cut]):
            return None
        for request in back:
            self._requests.remove(request)
            self._filter = None
            self.signals = max(self.signals, request.signal)
            self.left -= request.facts.keys()
            facts |= request.facts
            for table in request.tables:
                if table in self.tables and table not in request.facts:
                    self._leave(table)  # it was dropped, or cannot be captured as it is
        return facts

    def begin(self, facts: Mapping[TableId, Json]) -> list[Begun]:
        """The loads of these tables begin with the next append."""
        return [self._begin(table, fact) for table, fact in facts.items()]

    def _begin(self, table: TableId, facts: Json) -> Begun:
        before, keyless = self.tables.get(table), bool(facts["keyless"])
        generation = before.generation + 1 if before else 1
        if (load := self.loading.pop(table, None)) and load.mark:
            self.awaiting.discard(load.mark)  # nothing of that copy counts any more
        self._forget(table)
        self.tables[table], self.loading[table] = TableState(generation, keyless, facts), Loading()
        self._filter = None
        return Begun(table, generation, keyless, facts.get("schema"))

    # ----------------------------------------------------------------------------------------------------------- rounds
    @property
    def busy(self) -> bool:
        """Is there anything to load, to wait for or to begin?"""
        return bool(self.loading or self.queue or self.awaiting or self._requests or self._restart_now)

    @property
    def ready(self) -> bool:
        """May a round start? Not inside a source transaction, and not before the last round's mark came back."""
        return not self.open and not self.awaiting and bool(self._wanted() or self._unread())

    def _wanted(self) -> list[Key]:
        # What is owed is read even so: the request waits for a cut.
        asked = self._asked
        return [key for key in self.queue if key[0] not in asked or key in self.owed]

    def _unread(self) -> list[TableId]:
        asked = self._asked
        return [table for table, load in self.loading.items() if not load.read and table not in asked]

    def next_round(self) -> list[ChunkSpec]:
        """What to read now. A keyless copy is a round of its own: the stream waits for it (D8)."""
        assert self.ready
        self._round_mark, self._round_bytes = None, 0
        limits, keys = self.limits, dict[TableId, list[bytes]]()
        for table, key in self._wanted():
            if len(wanted := keys.setdefault(table, [])) < limits.reread_keys:
                wanted.append(key)
        specs = [ChunkSpec(table, self.tables[table].facts, keys=tuple(wanted)) for table, wanted in keys.items()]
        for table in self._unread():
            keyless = self.tables[table].keyless
            if len(specs) >= limits.round_chunks or (keyless and specs):
                break
            facts, after = self.tables[table].facts, self.loading[table].after
            specs.append(
                ChunkSpec(table, facts, after, (), keyless, rows_max=limits.chunk_rows, bytes_max=limits.chunk_bytes)
            )
            if keyless:
                break
        return specs

    def read(self, chunk: Chunk) -> bool:
        """A chunk of the round was read; False when the round is full."""
        if not chunk.spec.keyless:
            self._round_bytes += sum(sum(map(len, piece.records.values)) for piece in chunk.pieces)
        return self._round_bytes < self.limits.round_bytes

    def restructured(self, table: TableId, *, gone: bool = False) -> None:
        """The table is gone, or not what it was when its load began: the load starts anew (D1). What is queued for it waits for
        that, in the position: nothing of it is forgotten by a crash. A live table that is owed a re-read must load at once,
        since the request would wait for the cut, and the cut for the re-read."""
        if gone:
            self._leave(table)
        elif any(key[0] == table for key in self.owed):
            self._restart_now[table] = None
        self.want([table])

    def marked(self, mark: str) -> None:
        """The round's mark is durable at the source: what its chunks saw cannot be taken back (C1, D3)."""
        self._round_mark = mark

    def wrote(self, chunk: Chunk, piece: Piece) -> None:
        """The next append holds this piece."""
        assert self._round_mark is not None, "a chunk is written only after the round's mark"
        table, mark = chunk.spec.table, self._round_mark
        self.awaiting.add(mark)
        if chunk.spec.keys:
            done = {(table, key) for key in chunk.spec.keys}
            self.queue = {key: None for key in self.queue if key not in done}
            self.owed -= done
            self.repaired |= done
            return
        load = self.loading[table]
        load.rows += len(piece.records)
        if chunk.spec.keyless:
            load.snapshot, load.mark, load.read = chunk.snapshot, mark, piece.last
            self._filter = None
        else:
            load.after = piece.after if piece.after is not None else load.after
            load.read = piece.last and piece.end_of_table

    def finish(self) -> tuple[TableId, ...]:
        """Tables whose load ends with this append; only at a cut, and after their re-reads (C4)."""
        if not self.at_cut:
            return ()
        queued = {table for table, _ in self.queue}
        finished = tuple(table for table, load in self.loading.items() if load.read and table not in queued)
        for table in finished:
            del self.loading[table]
            self.why.pop(table, None)
            self._filter = None
        return finished

    def new_epoch(self, signal: int) -> None:
        """History was cut: nothing that was in flight counts, and every table is loaded anew (R5, B4): as one that had left, so
        that a crash cannot forget it, and after a mark, since its facts are newer than the start position (C3)."""
        self.loading, self.awaiting, self.repaired, self.queue, self.owed = {}, set(), set(), {}, set()
        self.open, self._restart_now = False, {}
        self.left |= self.tables.keys()
        self.signals = max(self.signals, signal)
        self._filter = None
