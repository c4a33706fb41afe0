"""`Plan`: one table of the log, one version of it, and the target table that takes it: codecs and SQL texts, made once.

In the texts `t` is the target. Keys are compared by the equality of the target's own key index, which may be coarser than
that of bytes (numeric 1.0 and 1.00, nondeterministic collations, citext).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

from cdc.table import TableId, TableSchema
from sinks.postgres.codec import Lines, compile_keys, compile_rows, fields_of
from sinks.postgres.fieldcode import Taker
from sinks.postgres.sql import ident, names, relation
from sinks.postgres.target import TargetTable, UniqueIndex

# Equal values of these types are the same bytes, so an upsert need not write them again.
_EXACT = frozenset(
    (
        *("smallint", "integer", "bigint", "uuid", "date", "boolean", "bytea", "time without time zone"),
        *("timestamp with time zone", "timestamp without time zone"),
    )
)
_BLOCK = 2000  # values per block of COPY: the server parses one while the next is made


class Plan:
    """What is known of one table version against its target. Immutable, but for codecs made on demand."""

    def __init__(
        self, table: TableId, schema_id: int, value_schema: Any, schema: TableSchema, target: TargetTable
    ) -> None:
        self.table, self.schema_id, self.schema, self.target = table, schema_id, schema, target
        self.value_schema = value_schema
        self._codecs: dict[tuple[frozenset[str], str], Lines] = {}
        self.ref = relation(target.id)
        self.key = schema.key
        self.columns = tuple(
            column.name for column in schema.columns if not target.columns[column.name].generated
        )  # generated columns are not written
        index = target.key_index(schema.key) if schema.key else None
        self.equal = dict(zip(index.columns or (), index.equal, strict=True)) if index else {}
        always = any(target.columns[name].identity == "a" for name in self.columns)
        self.overriding = " OVERRIDING SYSTEM VALUE" if always else ""
        self.others = tuple(name for name in self.columns if name not in schema.key)
        self._takers = {name: Taker(column.type, column.delimiter) for name, column in target.columns.items()}

    # -------------------------------------------------------------------------------------------------------------- codec
    def lines(
        self, values: Iterable[bytes], columns: Sequence[str] | None = None, image: str = "after"
    ) -> Iterator[bytes]:
        """Blocks of COPY lines of `columns` (default: all that are written), in the order of `self.columns`."""
        wanted = frozenset(self.columns if columns is None else columns)
        codec = self._codecs.get((wanted, image))
        if codec is None:
            codec = self._codecs[wanted, image] = compile_rows(
                self.schema, self.value_schema, self.schema_id, columns=wanted, image=image, takers=self._takers
            )
        rest = iter(values)
        while block := list(islice(rest, _BLOCK)):
            yield codec(block)

    @cached_property
    def _keys(self) -> Lines:
        return compile_keys(self.schema, self._takers)

    def key_lines(self, keys: Iterable[bytes]) -> Iterator[bytes]:
        """Blocks of COPY lines of the key columns, in key order."""
        rest = iter(keys)
        while block := list(islice(rest, _BLOCK)):
            yield self._keys(block)

    def key_texts(self, key: bytes) -> list[str | None]:
        """The values of one key as texts, in key order."""
        return fields_of(self._keys([key]))

    def shown(self, key: bytes) -> str:
        """`id = 5`: for errors, which may name keys."""
        return ", ".join(f"{name} = {value}" for name, value in zip(self.key, self.key_texts(key), strict=True))

    # ---------------------------------------------------------------------------------------------------------------- SQL
    def same_key(self, left: str, right: str, right_names: Sequence[str] | None = None) -> str:
        """A condition: the keys of two relations are equal."""
        return " AND ".join(
            f"{left}.{ident(name)} {self.equal[name]} {right}.{ident(other)}"
            for name, other in zip(self.key, right_names or self.key, strict=True)
        )

    @cached_property
    def rewritten(self) -> tuple[str, ...]:
        """Columns that an upsert sets: all but key columns whose equality is identity."""
        return tuple(
            name
            for name in self.columns
            if name not in self.key
            or not (self.target.columns[name].type in _EXACT or self.target.columns[name].identity == "a")
        )

    def upsert(self, source: str) -> str:
        """Insert the rows of `source`, or update the rows that have their keys."""
        sets = ", ".join(f"{ident(name)} = excluded.{ident(name)}" for name in self.rewritten)
        action = f"DO UPDATE SET {sets}" if sets else "DO NOTHING"
        return f"{self.insert(source)} ON CONFLICT ({names(self.key)}) {action}"

    def insert(self, source: str) -> str:
        columns = names(self.columns)
        return f"INSERT INTO {self.ref} AS t ({columns}){self.overriding} {source}"

    def delete(self, staged: str, condition: str = "") -> str:
        """Delete the rows that have the keys in `staged`."""
        return f"DELETE FROM {self.ref} AS t USING {staged} AS s WHERE {self.same_key('t', 's')}{condition}"

    def copy_into(self, target: str, columns: Sequence[str] | None = None) -> str:
        return f"COPY {target} ({names(self.columns if columns is None else columns)}) FROM STDIN"

    @property
    def secondary_uniques(self) -> list[UniqueIndex]:
        """Unique indexes other than the key's."""
        index = self.target.key_index(self.key)
        return [unique for unique in self.target.uniques if index is None or unique.name != index.name]
