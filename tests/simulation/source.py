"""A `Source` over the simulated database: what `cdc.postgres` does with a real one, in the same words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cdc.avro import HEADER_BYTES
from cdc.errors import CdcError, Superseded, Unavailable
from cdc.records import Records
from cdc.source import Chunk, ChunkSpec, Filter, Finding, Move, Piece, Restructured, Run, Unsettled
from cdc.table import TableId
from tests.simulation.database import Change, Snapshot, Transaction
from tests.simulation.rows import KEYLESS, UNCHANGED, key_bytes, key_of, value_bytes

if TYPE_CHECKING:
    from tests.simulation.world import World

Json = Any
FOREIGN = "CDC-PG-199"  # the source's history is not the one that was captured: a new epoch is the remedy


class FakeSource:
    connector = "postgresql"
    structure_rule = settled_rule = persist_unseen = durable_mark = keyless_filter = mark_session = (
        True  # switched off by mutants
    )

    def __init__(self, world: World, log: object) -> None:
        self.log = log  # of the same process
        self.world, self.db, self.rng = world, world.db, world.rng
        self.boot = self.db.boot
        self.place = self.ordinal = self.sequence = self.epoch = 0
        self.unseen: list[int] = []  # delivered, not yet seen visible
        self.watched: list[TableId] = []

    def _called(self, name: str, stream: bool = False) -> None:
        self.world.tick(name)
        if self.boot != self.db.boot or (stream and self.db.slot_owner is not self):
            raise Unavailable("CDC-PG-100", f"{name}: the connection is gone")
        if self.world.chance(self.world.odds_lost):
            raise Unavailable("CDC-PG-100", f"{name}: the connection was lost")

    def _not_overtaken(self) -> None:
        """Embedded, the log's lock keeps a second capture away; here one that is held up while another opens ends like this."""
        if self.world.storage.writer is not self.log:
            raise Superseded("CDC-LOG-103", "another capture has opened log and source meanwhile")

    # --------------------------------------------------------------------------------------------------------------- start
    def check(self) -> list[Finding]:
        return []

    def tables(self) -> list[TableId]:
        self.watched = list(self.world.selected)
        return self._existing(self.watched)

    def _existing(self, tables: Iterable[TableId]) -> list[TableId]:
        return [table for table in tables if self.db.structures[table].oid]

    def intent(self, epoch: int) -> Json:
        return {"slot": epoch}

    def start(self, intent: Json, resume: bool) -> Json:
        self._called("start")
        self._not_overtaken()
        epoch, db = intent["slot"], self.db
        history, at = db.slots.get(epoch, (None, None))
        if history is not db.history:
            in_doubt = [tx.xid for tx in db.running.values() if 0 < tx.place <= db.durable]
            at = {"epoch": epoch, "place": db.durable, "ordinal": 0, "unseen": in_doubt}
            db.slots[epoch], db.forgotten = (db.history, at), db.durable
            self.world.histories[epoch] = db.history
        elif not resume:
            self.world.fail("a start position is made a second time")
        self._called("started")
        return at

    def open(self, at: Json, confirmed: Json, sequence: int, epoch: int) -> None:
        self._called("open")
        self._not_overtaken()
        if self.world.histories[at["epoch"]] is not self.db.history:
            raise CdcError(FOREIGN, "another history")
        if at["epoch"] != epoch or confirmed["epoch"] != epoch:
            self.world.fail(f"epoch {epoch} is opened at {at} with {confirmed} confirmed")
        if not self.db.forgotten <= at["place"] <= self.db.durable or confirmed["place"] > at["place"]:
            self.world.fail(f"{at} cannot be resumed: {self.db.forgotten} forgotten, {confirmed} confirmed")
        self.place, self.ordinal, self.sequence, self.epoch = at["place"], at["ordinal"], sequence, epoch
        self.unseen = list(at["unseen"]) if self.persist_unseen else []
        self.db.slot_owner = self

    def include(self, tables: Iterable[TableId]) -> Mapping[TableId, Json]:
        self._called("include")
        for table in (tables := self._existing(tables)):
            self.db.publish(table)
        return {table: self._facts(table) for table in tables}

    def _facts(self, table: TableId) -> Json:
        return {
            "keyless": table == KEYLESS,
            "structure": list(self.db.structures[table]),
            "older": list(self.db.published[table][1]),
        }

    # -------------------------------------------------------------------------------------------------------------- stream
    def poll(self, timeout_s: float, drop: Filter) -> Run:
        self._called("poll", stream=True)
        run, before = Run({}, None, 0), (self.place, self.ordinal)
        if self.rng.random() < 0.1 or not self.world.chaos:
            self._prune(self.db.snapshot())
            self._watch(run, drop)
        budget = self.rng.randint(1, self.world.run_rows)
        commits, first = self.db.history.commits, self.place
        while budget and self.place < self.db.durable:
            tx = commits[self.place]
            if tx.mark:
                run.marks.append(tx.mark)
                self.place += 1
                break
            if tx.xid not in self.unseen:
                self.unseen.append(tx.xid)
            if tx.changes:
                change = tx.changes[self.ordinal]
                if not self._fits(run, tx, change):
                    break
                self._translate(run, tx, change, drop)
                self.ordinal, budget = self.ordinal + 1, budget - 1
            if self.ordinal == len(tx.changes):
                self.place, self.ordinal = self.place + 1, 0
        run.stream, run.sequence = self._stream(), self.sequence
        run.in_transaction, run.moved_on = self.ordinal > 0, (self.place, self.ordinal) != before
        run.commit_ms = (first, self.place) if self.place > first else None
        return run

    def _watch(self, run: Run, drop: Filter) -> None:
        """The heartbeat looks at the catalog (D9), which is ahead of the stream."""
        structures = self.db.structures
        run.altered = {
            table: "look" for table in drop.live if drop.begun[table]["structure"][2:] != list(structures[table])[2:]
        }
        run.found = [table for table in self._existing(self.watched) if table not in drop.begun]

    def _stream(self) -> Json:
        return {"epoch": self.epoch, "place": self.place, "ordinal": self.ordinal, "unseen": list(self.unseen)}

    def _fits(self, run: Run, tx: Transaction, change: Change) -> bool:
        """A TRUNCATE stands alone, and a run holds one schema per table."""
        if run.truncated:
            return change.op == "t"
        if change.op == "t":
            return not run.records
        records = run.records.get(change.table)
        return not records or records.values[0][:HEADER_BYTES] == self._value(tx, change.table, "t")[:HEADER_BYTES]

    def _value(self, tx: Transaction, table: TableId, op: str, *rest: Any) -> bytes:
        version = self.db.history.structures[tx.place][table].columns
        return value_bytes(table, version, op, *(rest or (None, None)))

    def _translate(self, run: Run, tx: Transaction, change: Change, drop: Filter) -> None:
        op, table, key, row, old = change
        if table not in drop.begun or table in tx.hidden or table in run.left:
            return
        structure, facts = list(self.db.history.structures[tx.place][table]), drop.begun[table]
        if structure[3:] != facts["structure"][3:] and self.structure_rule:
            run.left = {**run.left, table: "another structure"}
            return
        if table in drop.keyless and self.keyless_filter:
            snapshot = drop.keyless[table]
            if snapshot is None or Snapshot(snapshot[0], tuple(snapshot[1])).sees(tx.xid):
                return
        self.world.check_structure(table, facts["structure"], structure)
        if table in drop.live and facts["structure"][:2] != structure[:2]:
            run.facts = {**run.facts, table: {**facts, "structure": structure[:2] + facts["structure"][2:]}}
        records = run.records.setdefault(table, Records())
        if op == "t":
            run.truncated |= {table}
            self._add(records, None, self._value(tx, table, "t"))
        elif table == KEYLESS:
            self._add(records, None, self._value(tx, table, op, None, row, old))
        elif op == "m":
            self._add(records, key_bytes(table, old), self._value(tx, table, "d", old, None, None, key))
            if row.big is UNCHANGED:
                run.moves.append(Move(table, key_bytes(table, old), key_bytes(table, key), len(records)))  # type: ignore[arg-type]
            self._add(records, key_bytes(table, key), self._value(tx, table, "c", key, row, None, old))  # type: ignore[arg-type]
        else:
            self._add(records, key_bytes(table, key), self._value(tx, table, op, key, row))  # type: ignore[arg-type]

    def _add(self, records: Records, key: bytes | None, value: bytes) -> None:
        self.sequence += 1
        records.keys.append(key)
        records.values.append(value)

    def confirm(self, at: Json) -> None:
        self._called("confirm", stream=True)
        self.world.check_confirmed(at)
        self.db.forgotten = max(self.db.forgotten, at["place"])

    # -------------------------------------------------------------------------------------------------------------- chunks
    def _prune(self, snapshot: Snapshot) -> None:
        self.unseen = [xid for xid in self.unseen if not snapshot.sees(xid)]

    def read_chunk(self, spec: ChunkSpec, at: Json) -> Chunk | Unsettled | Restructured:
        self._called("read_chunk")
        db, table = self.db, spec.table
        if (at["place"], at["ordinal"]) != (self.place, self.ordinal):
            self.world.fail(f"a chunk is read at {at}, polled was up to {self.place}.{self.ordinal}")
        if (table, "*") in db.locks:
            return Unsettled("the lock waits", only_this=True)
        if not db.structures[table].oid:
            return Restructured(gone=True)
        if any(xid in db.running for xid in spec.facts["older"]):
            return Unsettled("older than the publication", only_this=True)
        if spec.facts["structure"] != list(db.structures[table]):
            return Restructured()
        snapshot = db.snapshot()
        self._prune(snapshot)
        if self.unseen and self.settled_rule:
            return Unsettled("not all that was delivered is visible")
        rows, version = db.visible[table], db.structures[table].columns
        if spec.keyless:
            return Chunk(spec, self._keyless_pieces(list(rows.values()), version), list(snapshot))
        if spec.keys:
            pieces = [self._requested(table, version, [key_of(key) for key in spec.keys], rows)]
        else:
            pieces = self._range(spec, version, rows)
        return Chunk(spec, pieces)

    def _requested(self, table: TableId, version: int, keys: list[int], rows: Mapping[int, Any]) -> Piece:
        records = Records()
        for key in keys:
            row = rows.get(key)
            value = value_bytes(table, version, "d" if row is None else "r", key, row)
            self._add(records, key_bytes(table, key), value)
        return Piece(records, None, True, False, self.sequence)

    def _range(self, spec: ChunkSpec, version: int, rows: Mapping[int, Any]) -> list[Piece]:
        after = -1 if spec.after is None else key_of(spec.after)
        left = sorted(key for key in rows if key > after)
        keys, pieces = left[: spec.rows_max], []
        step = self.rng.randint(1, 4)
        for start in range(0, max(1, len(keys)), step):
            records, part = Records(), keys[start : start + step]
            for key in part:
                self._add(records, key_bytes(spec.table, key), value_bytes(spec.table, version, "r", key, rows[key]))
            last = start + step >= len(keys)
            read = key_bytes(spec.table, part[-1]) if part else None
            pieces.append(Piece(records, read, last, len(keys) == len(left), self.sequence))
        return pieces

    def _keyless_pieces(self, values: list[Any], version: int) -> Iterator[Piece]:
        step = self.rng.randint(1, 4)
        for start in range(0, max(1, len(values)), step):
            self._called("keyless piece")
            records = Records()
            for value in values[start : start + step]:
                self._add(records, None, value_bytes(KEYLESS, version, "r", None, value))
            yield Piece(records, None, start + step >= len(values), start + step >= len(values), self.sequence)

    def seen(self, at: Json) -> Json:
        return {**at, "unseen": [xid for xid in at["unseen"] if xid in self.unseen]}

    def mark(self) -> str:
        if self.mark_session:
            self._called("mark")
        else:
            self.world.tick("mark")
        return self.db.commit_mark(self.durable_mark or not self.world.chaos)

    def status(self) -> Mapping[str, Json]:
        return {}

    def close(self) -> None:
        pass
