"""What travels between a source and the log: framed keys and values, per table, in order. A row is only ever bytes."""

from __future__ import annotations

from cdc.table import TableId


class Records:
    """Records of one table: `keys[i]` (None in a keyless table) belongs to `values[i]`. Parallel lists, filled by appending.

    All values of one `Records` share one schema id: a source ends its run where a table's schema changes.
    """

    __slots__ = ("keys", "values")

    def __init__(self, keys: list[bytes | None] | None = None, values: list[bytes] | None = None) -> None:
        self.keys: list[bytes | None] = [] if keys is None else keys
        self.values: list[bytes] = [] if values is None else values

    def __len__(self) -> int:
        return len(self.values)

    def __repr__(self) -> str:
        return f"Records({len(self.values)})"


Batch = dict[TableId, Records]
"""The records of one checkpoint. The order across tables is `source.sequence`, inside the values."""


def size_bytes(batch: Batch) -> int:
    """Bytes of keys and values."""
    return sum(
        sum(map(len, records.values)) + sum(len(key) for key in records.keys if key is not None)
        for records in batch.values()
    )
