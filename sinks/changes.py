"""Collapse: checkpoints up to a cut become pieces, and in each piece a table's events become the net change of each key.

Applying a piece equals applying its events one by one, in order. Two things split pieces, and only between checkpoints: a load
that begins at a cut (what came before it does not count as written by it) and a new schema of a table. A TRUNCATE makes what
came before it void; it splits nothing, since in the middle of a load's round the rows of other tables are right only together.

A whole row replaces what its key held before, so the fast path looks at four bytes of a value and never decodes it. Rows with
UNCHANGED columns keep track of where those columns come from (`Partial.origin`), through chains of key changes.
"""

from __future__ import annotations

from collections.abc import Callable

from cdc.avro import HEADER_BYTES, PLAIN, Schema, read_header, schema_id
from cdc.errors import CdcError
from cdc.log import Checkpoint
from cdc.records import Batch, Records, size_bytes
from cdc.table import TableId
from sinks.sink import Net, Partial, Piece, TableChanges
from sinks.splice import WHOLE, Splicer

_TRUNCATE = ord("t")


class Changes:
    """What has been read and not yet merged. `schemas` gives a registered value schema by id."""

    def __init__(self, schemas: Callable[[int], Schema], bytes_max: int = 32 << 20) -> None:
        self._schemas, self._bytes_max = schemas, bytes_max
        self._splicers: dict[int, Splicer] = {}
        self.pieces: list[Piece] = []
        self.size_bytes = 0
        self._at_cut = True

    @property
    def full(self) -> bool:
        """Merge now, cut or not (B3)."""
        return self.size_bytes >= self._bytes_max

    def clear(self) -> None:
        self.pieces, self.size_bytes = [], 0

    def add(self, checkpoint: Checkpoint, batch: Batch, wants: Callable[[TableId], bool]) -> None:
        """One checkpoint's records of the wanted tables, in log order."""
        begun = [begin for begin in checkpoint.begun if wants(begin.table)]
        if not self.pieces or (begun and self._at_cut) or self.pieces[-1].finished or self._new_schema(batch):
            self.pieces.append(Piece())
        piece = self.pieces[-1]
        piece.begun += begun
        for begin in begun:
            if begin.keyless:  # its beginning empties the table: what was read of it before is void
                piece.tables.pop(begin.table, None)
        for table, records in batch.items():
            changes = piece.tables.get(table)
            if changes is None:
                changes = piece.tables[table] = TableChanges(schema_id(records.values[0]))
            if records.values[0][6] == _TRUNCATE:
                self._truncate(table, changes, records)
            else:
                self._collapse(table, changes, records, checkpoint)
        piece.finished += [table for table in checkpoint.finished if wants(table)]
        self._at_cut = checkpoint.cut
        self.size_bytes += size_bytes(batch)

    def _new_schema(self, batch: Batch) -> bool:
        tables = self.pieces[-1].tables
        return any(
            table in tables and tables[table].schema_id != schema_id(records.values[0])
            for table, records in batch.items()
        )

    def _truncate(self, table: TableId, changes: TableChanges, records: Records) -> None:
        if any(value[6] != _TRUNCATE for value in records.values):
            raise CdcError("CDC-LOG-130", "a TRUNCATE shares its checkpoint with other events", where=str(table))
        changes.emptied, changes.only_reads = True, False
        changes.net, changes.keys, changes.events = {}, [], []

    def _collapse(self, table: TableId, changes: TableChanges, records: Records, checkpoint: Checkpoint) -> None:
        changes.keys += records.keys
        changes.events += records.values
        if set(checkpoint.counts.get(table, ())) != {"r"}:
            changes.only_reads = False
        if records.keys[0] is None:
            return  # keyless: the sink counts images
        net, header = changes.net, changes.schema_id.to_bytes(4, "big")
        moving: dict[bytes, Net] = {}
        for key, value in zip(records.keys, records.values, strict=True):
            assert key is not None
            if value[1:5] != header:
                raise CdcError("CDC-LOG-131", "a checkpoint holds two schemas of one table", where=str(table))
            if value[5:9] in PLAIN:
                net[key] = value
            else:
                self._special(changes, moving, key, value)

    def _special(self, changes: TableChanges, moving: dict[bytes, Net], key: bytes, value: bytes) -> None:
        """A delete, a half of a key change, or a row with UNCHANGED columns."""
        net, head = changes.net, read_header(value)
        if head.op == "d":
            if head.moved is not None:  # the `c` that follows may need what was here
                moving[key] = self._at(changes, key)
            net[key] = None
            return
        if head.op not in ("c", "u", "r"):
            raise CdcError(
                "CDC-LOG-132", f"an event with op {head.op!r} has a key", where=f"schema {changes.schema_id}"
            )
        row = value[:HEADER_BYTES] + WHOLE + value[head.end :]
        if not head.unchanged:
            net[key] = row
            return
        origin = key if head.moved is None else key[:HEADER_BYTES] + head.moved
        base = self._at(changes, key) if head.moved is None else moving.pop(origin, None)
        if base is None and head.moved is not None:
            base = self._at(changes, key)
        net[key] = self._over(changes.schema_id, base, row, frozenset(head.unchanged))

    def _at(self, changes: TableChanges, key: bytes) -> Net:
        """What is at `key` before this event; a Partial without a value of its own is the target's row."""
        if key in changes.net:
            return changes.net[key]
        return None if changes.emptied else Partial(key, b"", frozenset())

    def _over(self, schema: int, base: Net, row: bytes, unchanged: frozenset[str]) -> Net:
        """`row`, whose columns `unchanged` are those of `base`."""
        if base is None:
            return None  # a row that is not there gets no update: the whole row comes by its chunk or its re-read
        if isinstance(base, bytes):
            return self._splicer(schema).splice(row, base, unchanged)
        if base.value:
            row = self._splicer(schema).splice(row, base.value, unchanged - base.unchanged)
            unchanged &= base.unchanged
        return Partial(base.origin, row, unchanged)

    def _splicer(self, schema: int) -> Splicer:
        if schema not in self._splicers:
            self._splicers[schema] = Splicer(self._schemas(schema))
        return self._splicers[schema]


def lag_s(checkpoint: Checkpoint, now_ms: float) -> float:
    """Seconds since the newest commit of a checkpoint; 0 when it holds none."""
    return max(0.0, now_ms - checkpoint.commit_ms[1]) / 1000 if checkpoint.commit_ms else 0.0
