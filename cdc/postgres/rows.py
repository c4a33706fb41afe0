"""Keys and values of one table from columns that are Avro already: the slow path, for what is not a plain row.

Its values are laid out exactly as those that generated code joins; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence

from cdc.avro import UNAVAILABLE, frame, string, zigzag
from cdc.errors import CdcError
from cdc.postgres import forms
from cdc.postgres.arrays import shapes_field
from cdc.postgres.envelope import Transaction
from cdc.postgres.position import lsn_text
from cdc.postgres.values import NULL, SOME
from cdc.table import TableSchema

_STRINGS = forms.TEXTUAL | {"uuid", "timestamptz", "timetz", "interval"}
_VARINTS = frozenset(
    ("int16", "int32", "int64", "uint32", "date", "time_ms", "time_us", "timestamp_ms", "timestamp_us")
)
_BYTES = {"boolean": 1, "bit": 1, "float32": 4, "float64": 8}


Columns = Sequence[bytes | None]  # Avro with the union's branch; None: not sent


class Rows:
    """Values from columns that are Avro already. None is a column that the source did not send."""

    def __init__(self, schema: TableSchema, key_id: int | None, value_id: int) -> None:
        assert (key_id is None) == (not schema.key), schema.id
        self.schema = schema
        self.value_frame = frame(value_id)
        self.key_frame = None if key_id is None else frame(key_id)
        names = [column.name for column in schema.columns]
        self.key_indexes = [names.index(name) for name in schema.key]
        self.other_indexes = [i for i in range(len(names)) if i not in self.key_indexes]
        self.array_indexes = [i for i, column in enumerate(schema.columns) if column.type.kind == "array"]
        self.array_names = [names[i] for i in self.array_indexes]
        self.table = string(schema.id.schema.encode()) + string(schema.id.name.encode())
        self.transaction = Transaction(b"", b"", b"", b"")
        self._nulls = [NULL] * len(names)
        placeholder = SOME + string(UNAVAILABLE.encode())
        self._placeholders = [
            placeholder if column.type.kind in _STRINGS or column.type.kind == "bytes" else NULL
            for column in schema.columns
        ]

    def malformed(self, lsn: int) -> CdcError:
        detail = f"a row does not have the form of the table's {len(self.schema.columns)} columns"
        return CdcError("CDC-PG-151", detail, where=f"{self.schema.id} at {lsn_text(lsn)}")

    def key(self, columns: Columns) -> bytes | None:
        """The framed key. Raises ValueError when a key column was not sent."""
        if self.key_frame is None:
            return None
        parts = [columns[i] for i in self.key_indexes]
        if None in parts:
            raise ValueError
        return self.key_frame + b"".join(part for part in parts if part is not None)

    def _row(self, columns: Columns | None, absent: Sequence[bytes]) -> bytes:
        """`before` or `after`; `absent` stands for columns that were not sent."""
        if columns is None:
            return NULL
        return SOME + b"".join(
            other if column is None else column for column, other in zip(columns, absent, strict=True)
        )

    def unchanged(self, columns: Columns) -> bytes:
        """The envelope's `unchanged`: the names of the columns that were not sent."""
        names = [name.name for name, column in zip(self.schema.columns, columns, strict=True) if column is None]
        if not names:
            return NULL
        return SOME + zigzag(len(names)) + b"".join(string(name.encode()) for name in names) + b"\x00"

    def value(
        self,
        op: bytes,
        sequence: int,
        lsn: int,
        *,
        unchanged: bytes = NULL,
        moved: bytes = NULL,
        before: Columns | None = None,
        after: Columns | None = None,
    ) -> bytes:
        """A framed value. A column that was not sent is null in `before`; in `after` it is what foreign readers know as unavailable."""
        head, times, xid, tail = self.transaction
        counted = string(b"%d" % sequence)
        row = (
            self.value_frame,
            op,
            unchanged,
            moved,
            self._row(before, self._nulls),
            self._row(after, self._placeholders),
            head,
            counted,
            times,
            self.table,
            xid,
            zigzag(lsn),
            tail,
            self._shapes(before, after),
        )
        return b"".join(row)

    def _shapes(self, before: Columns | None, after: Columns | None) -> bytes:
        """The last field, of tables with arrays alone."""
        if not self.array_indexes:
            return b""
        images = [("before", before), ("after", after)]
        arrays = [(image, [columns[i] for i in self.array_indexes]) for image, columns in images if columns is not None]
        return shapes_field(self.array_names, arrays)

    def row_of_key(self, body: bytes) -> Columns:
        """The row that has a key's columns and nothing else."""
        columns: list[bytes | None] = [None] * len(self.schema.columns)
        at = 0
        for i in self.key_indexes:
            end = _end_of(self.schema.columns[i].type.kind, body, at)
            columns[i] = body[at:end]
            at = end
        if at != len(body):
            raise ValueError
        return columns


def _varint_end(body: bytes, at: int) -> int:
    while body[at] & 0x80:
        at += 1
    return at + 1


def _end_of(kind: str, body: bytes, at: int) -> int:
    """Where the Avro of one key column ends."""
    if kind in _BYTES:
        return at + _BYTES[kind]
    if kind == "numeric":
        at = _varint_end(body, at)
    elif kind in _VARINTS:
        return _varint_end(body, at)
    end = _varint_end(body, at)
    size = sum((byte & 0x7F) << 7 * i for i, byte in enumerate(body[at:end])) >> 1
    return end + size
