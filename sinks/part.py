"""A log that ends at a horizon, as the loop reads it.

The invariant: nothing behind the horizon is delivered, and nothing is committed that lacks a row. While keys are read ahead of the
stream, in the middle of a round, an update can miss its row, and the live sink asks for it again; here a row must come by itself
before the cut, since a later answer lies behind the horizon.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from typing import Any

from cdc.avro import HEADER_BYTES, PLAIN, decode_datum, read_header, schema_id
from cdc.errors import CdcError
from cdc.log import Checkpoint, Log, Mark
from cdc.records import Batch, Records
from cdc.table import TableId
from sinks.apply import Reading
from sinks.horizon import Horizon

Json = Any
Key = tuple[TableId, bytes]  # the key's body: the same whatever schema id it was written with


class Part:
    """A log up to a horizon: its readings end there."""

    def __init__(self, log: Log, horizon: Horizon) -> None:
        self._log, self._horizon = log, horizon
        self._committed, self._cut = Mark(-1, log.id), -1  # what the sink has committed, and the last cut it was given
        self._missed: set[Key] = set()

    def read(
        self, after: Mark, tables: Callable[[TableId], bool], idle_s: float
    ) -> Generator[tuple[Checkpoint, Batch] | None, None, None]:
        """See Log.read. The last checkpoint of a horizon is a cut, whatever it was in the log. Raises CDC-RPL-105 before a cut at
        which a row would be lacking."""
        cut, last, sequence, _ = self._horizon
        self._committed, self._cut, self._missed = after, after.number, set()
        if after.number >= last.number:
            return
        with closing(self._log.read(after, tables, idle_s)) as items:
            for item in items:
                if item is None:
                    yield None
                    continue
                checkpoint, batch = item
                if checkpoint.number > cut.number:
                    assert sequence is not None, f"checkpoint {checkpoint.number} is behind the cut {cut.number}"
                    batch = {table: part for table, each in batch.items() if (part := self._kept(each, sequence))}
                    checkpoint = replace(checkpoint, cut=checkpoint.mark == last, begun=(), finished=())
                if checkpoint.cut:
                    self._cut = checkpoint.number
                    if self._missed:
                        self._check()
                yield checkpoint, batch
                if checkpoint.number >= cut.number:
                    yield None  # what is whole is committed
                    if checkpoint.number >= last.number:
                        return

    def _kept(self, records: Records, sequence: int) -> Records | None:
        kept = Records()
        for key, value in zip(records.keys, records.values, strict=True):
            if self._sequence(value) < sequence:
                kept.keys.append(key)
                kept.values.append(value)
        return kept if kept.values else None

    def _sequence(self, value: bytes) -> int:
        source = decode_datum(self._log.schema(schema_id(value)), value[HEADER_BYTES:])["source"]
        return int(source["sequence"])

    def schema(self, schema_id: int) -> Json:
        """See Log.schema."""
        return self._log.schema(schema_id)

    def signal(self, kind: str, details: Json) -> int:
        """Nothing is asked of the source. Raises CDC-RPL-105 for what lacks a row at the cut that was read."""
        if kind != "reread":
            raise _lacking({TableId(*table) for table in details["tables"]})
        table = TableId(*details["table"])
        self._missed |= {(table, bytes.fromhex(key)[HEADER_BYTES:]) for key in details["keys"]}
        if self._cut > self._committed.number:  # the loop commits a cut before it takes in what follows
            self._check()
        return 0

    def report(self, reader: str, mark: Mark) -> None:
        """See Log.report: `mark` is committed."""
        self._committed, self._missed = mark, set()
        self._log.report(reader, mark)

    def _check(self) -> None:
        """Of each key that was missed, the last event between the last commit and the last cut is a whole row, or says that there is
        none."""
        wanted, whole = {table for table, _ in self._missed}, set[Key]()
        with closing(self._log.read(self._committed, wanted.__contains__, 0)) as items:
            for item in items:
                if item is None or item[0].number > self._cut:
                    break
                for table, records in item[1].items():
                    for key, value in zip(records.keys, records.values, strict=True):
                        name = table, key[HEADER_BYTES:] if key is not None else b""
                        if name in self._missed and self._is_before(item[0], value):
                            (whole.add if _is_whole(value) else whole.discard)(name)
        if lacking := self._missed - whole:
            raise _lacking({table for table, _ in lacking})

    def _is_before(self, checkpoint: Checkpoint, value: bytes) -> bool:
        sequence = self._horizon.sequence
        return checkpoint.number <= self._horizon.cut.number or sequence is None or self._sequence(value) < sequence


def _is_whole(value: bytes) -> bool:
    if value[5:9] in PLAIN:
        return True
    head = read_header(value)
    return head.op == "d" or not head.unchanged


def _lacking(tables: set[TableId]) -> CdcError:
    return CdcError("CDC-RPL-105", f"rows of {', '.join(map(str, sorted(tables)))} that an update needs are not there")


_: type[Reading] = Part
