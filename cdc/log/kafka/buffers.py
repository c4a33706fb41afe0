"""What a reader has of one data partition and has not delivered yet. Pure.

Records wait in parallel lists, in order of offset. Only those inside a checkpoint's range are ever given away: what lies between two
ranges was committed without a checkpoint, an orphan (protocol A2), and is dropped and counted.
"""

from __future__ import annotations

from bisect import bisect_left

from cdc.errors import CdcError
from cdc.log import Checkpoint, Span
from cdc.table import TableId

ROW_BYTES = 160  # what Python and the lists take for a record beside its bytes
TIDY_AT = 4096  # delivered entries that are kept before the lists are shortened


class Buffer:
    """Partition `partition` of `topic`, from offset `begin` on. Everything below `reached` has come, or is not to be seen: aborted
    records and control records. Below `low`, retention may have deleted."""

    __slots__ = ("_at", "_keys", "_offsets", "_values", "low", "partition", "reached", "size_bytes", "table", "topic")

    def __init__(self, table: TableId, topic: str, partition: int, begin: int) -> None:
        self.table, self.topic, self.partition = table, topic, partition
        self.reached, self.low, self.size_bytes = begin, 0, 0
        self._keys: list[bytes | None] = []
        self._values: list[bytes] = []
        self._offsets: list[int] = []
        self._at = 0  # the entries before it were given away

    @property
    def place(self) -> tuple[str, int]:
        """Topic and partition."""
        return self.topic, self.partition

    def extend(self, keys: list[bytes | None], values: list[bytes], offsets: list[int]) -> None:
        """Records that came next. Those that have come before, after a pause, are passed over."""
        if offsets[0] < self.reached:
            known = bisect_left(offsets, self.reached)
            keys, values, offsets = keys[known:], values[known:], offsets[known:]
            if not offsets:
                return
        self._keys += keys
        self._values += values
        self._offsets += offsets
        self.reached = offsets[-1] + 1
        self.size_bytes += _size_bytes(keys, values)

    def reach(self, offset: int) -> None:
        """There is nothing more to be seen before `offset`."""
        self.reached = max(self.reached, offset)

    def take(self, span: Span) -> tuple[list[bytes | None], list[bytes], int] | None:
        """The records of this range, and how many orphans lay before it. None when some of them are missing."""
        offsets, begin = self._offsets, bisect_left(self._offsets, span.begin, self._at)
        end = begin + span.count
        # Offsets only grow, and a range has as many records as offsets: when its first and last are there, all are.
        if end > len(offsets) or (offsets[begin], offsets[end - 1]) != (span.begin, span.end - 1):
            return None
        orphans, dropped = begin - self._at, self._values[self._at : begin]
        keys, values = self._keys[begin:end], self._values[begin:end]
        self.size_bytes -= _size_bytes(self._keys[self._at : begin], dropped) + _size_bytes(keys, values)
        self._at = end
        if end == len(offsets) or end >= max(TIDY_AT, len(offsets) // 2):
            del self._keys[:end], self._values[:end], offsets[:end]
            self._at = 0
        return keys, values, orphans


def _size_bytes(keys: list[bytes | None], values: list[bytes]) -> int:
    # A foreign producer's records, which are dropped later, may have no value.
    return sum(map(len, filter(None, values))) + sum(map(len, filter(None, keys))) + ROW_BYTES * len(values)


def missing(checkpoint: Checkpoint, buffer: Buffer, span: Span) -> CdcError:
    """Why a range is not whole, although all before its end has come."""
    where = f"{buffer.topic}[{buffer.partition}]"
    if span.begin < buffer.low:
        detail = f"checkpoint {checkpoint.number} needs offsets from {span.begin} on, {buffer.low} is the first"
        return CdcError("CDC-LOG-108", detail, where=where)
    detail = (
        f"checkpoint {checkpoint.number} has {span.count} records from offset {span.begin} on, not all are committed"
    )
    return CdcError("CDC-KAFKA-208", detail, where=where)
