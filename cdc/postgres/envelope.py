"""The parts of a value that a transaction's events share: the source block and the times, as Avro bytes.

A value is head bytes, row, `Transaction.head`, the sequence, `times`, the table's name, `xid`, the LSN, `tail`: nothing that is
constant is encoded twice. Field order is that of cdc.avro and schemas/source_postgresql.avsc; a test decodes it with both.
"""

from __future__ import annotations

from typing import NamedTuple

from cdc.avro import string, zigzag

_NONE, _SOME = b"\x00", b"\x02"


class Transaction(NamedTuple):
    """Between its parts stand, in this order: sequence, schema and table, LSN."""

    head: bytes  # version … db, and the branch of sequence
    times: bytes  # ts_us, ts_ns
    xid: bytes  # txId, and the branch of lsn
    tail: bytes  # xmin, origin, origin_lsn, epoch, transaction, ts_ms, ts_us, ts_ns


class Origin:
    """What all events of one connection share. `clock` says when they are processed, once per run: `now_ms` is that as `ts_ms`.
    `source_end` is the part of `tail` before the times."""

    def __init__(self, pipeline: str, database: str, epoch: int, version: str) -> None:
        names = (version, "postgresql", pipeline)
        self._names = b"".join(string(name.encode()) for name in names)
        # The union of `snapshot` has its string first.
        self._streamed = _NONE + string(b"false") + string(database.encode()) + _SOME
        self._read = _NONE + string(b"true") + string(database.encode()) + _SOME
        self.source_end = _NONE * 3 + _SOME + zigzag(epoch) + _NONE
        self.now_ms = _NONE
        self._tail = self.source_end + _NONE * 3

    def clock(self, now_us: int) -> None:
        """Events are processed at `now_us` (Unix time) from here on."""
        self.now_ms = _SOME + zigzag(now_us // 1000)
        self._tail = self.source_end + self.now_ms + b"".join(_SOME + zigzag(t) for t in (now_us, now_us * 1000))

    def transaction(self, xid: int, commit_us: int) -> Transaction:
        """A streamed transaction, committed at `commit_us` (Unix time)."""
        times = _SOME + zigzag(commit_us) + _SOME + zigzag(commit_us * 1000)
        head = self._names + zigzag(commit_us // 1000) + self._streamed
        return Transaction(head, times, _SOME + zigzag(xid) + _SOME, self._tail)

    def reading(self, read_us: int) -> Transaction:
        """Rows read by a load at `read_us` (Unix time); no transaction wrote them."""
        times = _SOME + zigzag(read_us) + _SOME + zigzag(read_us * 1000)
        head = self._names + zigzag(read_us // 1000) + self._read
        return Transaction(head, times, _NONE + _SOME, self._tail)
