"""Tables as the stream and the chunks see them: schema, registered ids, compiled codec, one per version.

The invariant (rule R7): both sides build a table's schema here, from the same catalog rows, so the same row gives the same
bytes by either way. A type that the catalog does not explain is an error (rule R4).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cdc.avro import schemas_of, topic_of
from cdc.errors import CdcError
from cdc.postgres import codec, facts
from cdc.postgres.codec import ChunkCodec, StreamCodec
from cdc.postgres.facts import Table
from cdc.postgres.pgoutput import Relation
from cdc.postgres.printed import Printer, is_carried, printer_of
from cdc.postgres.rowcode import Printers
from cdc.postgres.session import Session
from cdc.postgres.slot import Publications
from cdc.postgres.type_catalog import Typed, types_of
from cdc.postgres.types import PgType, logical
from cdc.table import Column, TableId, TableSchema

Json = Any
Register = Callable[[str, Json], int]
Types = Mapping[Typed, tuple[PgType, str]]


def schema_of(
    types: Types,
    table: TableId,
    columns: Iterable[tuple[str, int, int]],
    nullable: Callable[[str], bool],
    key: tuple[str, ...],
) -> TableSchema:
    """One version of a table: `columns` are (name, type oid, typmod). Raises CDC-PG-161 for a type that is not among `types`."""
    built = []
    for name, oid, typmod in columns:
        if (oid, typmod) not in types:
            raise CdcError(
                "CDC-PG-161",
                f"column {name} of {table} has the unknown type {oid}",
                where=str(table),
                remedy=reload(table),
            )
        pg_type, verbatim = types[oid, typmod]
        built.append(Column(name, logical(pg_type, in_key=name in key), verbatim, name not in key and nullable(name)))
    return TableSchema(table, tuple(built), key)


def reload(table: TableId) -> str:
    """The remedy for a table whose rows changed without events."""
    return f"cdc reload {table}"


def from_catalog(types: Types, table: Table, insert_only: bool) -> TableSchema:
    """The table's schema as the catalog has it now: what a chunk is read with."""
    not_null = {column.name for column in table.streamed if column.not_null}
    columns = [(column.name, column.type_oid, column.typmod) for column in table.streamed]
    return schema_of(types, table.id, columns, lambda name: name not in not_null, table.key(insert_only))


def typed(tables: Iterable[Table]) -> set[Typed]:
    return {(column.type_oid, column.typmod) for table in tables for column in table.streamed}


def from_stream(session: Session, relation: Relation, table: Table | None, insert_only: bool) -> TableSchema:
    """The schema of a Relation message. What the message does not say comes from the catalog, which can be ahead of it: columns
    dropped since are nullable, and the key is the message's where the two differ."""
    sent = {column.name for column in relation.columns if column.in_identity}
    key = table.key(insert_only) if table else ()
    if relation.identity in "di" and (set(key) != sent):
        key = tuple(column.name for column in relation.columns if column.in_identity)
    names = {column.name for column in relation.columns}
    key = key if set(key) <= names else ()
    not_null = {column.name for column in table.attributes if column.not_null} if table else set()
    columns = [(column.name, column.type_oid, column.typmod) for column in relation.columns]
    id_ = TableId(relation.schema, relation.name)
    types = types_of(session, [(oid, typmod) for _, oid, typmod in columns])
    return schema_of(types, id_, columns, lambda name: name not in not_null, key)


class NotBinary(Exception):
    """A table has a column that the binary stream cannot carry: the stream must begin again in text mode."""


class Known(NamedTuple):
    """A Relation message, and what it means now; `codec` is None while the table is not captured."""

    relation: Relation
    id: TableId
    schema: TableSchema | None
    codec: StreamCodec | None


class SchemaIds(NamedTuple):
    """`key` is None for a keyless table."""

    key: int | None
    value: int


class Relations:
    """Schemas registered and codecs compiled, once per version. `control` is the session that looks into the catalog."""

    def __init__(
        self,
        control: Session,
        pipeline: str,
        register: Register,
        publications: Publications,
        insert_only: frozenset[TableId],
    ) -> None:
        self._control, self._pipeline, self._register = control, pipeline, register
        self._publications, self._insert_only = publications, insert_only
        self._ids: dict[TableSchema, SchemaIds] = {}
        self._chunk_codecs: dict[TableSchema, ChunkCodec] = {}

    def table(self, oid: int) -> Table | None:
        """The table as the catalog has it now, None when it is gone."""
        return facts.by_oid(self._control, self._publications, [oid]).get(oid)

    def facts(self, table: Table) -> Json:
        """The table's facts, without waits."""
        return table.facts(table.id in self._insert_only)

    def described(self, tables: Iterable[Table], waits: Sequence[int]) -> dict[TableId, Json]:
        """The facts that a load of each table begins with, the id of its value schema among them."""
        tables = list(tables)
        types, found = types_of(self._control, typed(tables)), dict[TableId, Json]()
        for table in tables:
            insert_only = table.id in self._insert_only
            schema_id = self.ids(from_catalog(types, table, insert_only)).value
            found[table.id] = {**table.facts(insert_only, waits), "schema": schema_id}
        return found

    def streamed(self, relation: Relation, table: Table | None) -> TableSchema:
        """The schema of a Relation message."""
        return from_stream(self._control, relation, table, TableId(relation.schema, relation.name) in self._insert_only)

    def printers(self, relation: Relation, schema: TableSchema) -> Printers | None:
        """What the columns of a Relation message that are text to us are printed with, from a binary stream; None if it cannot carry
        one of them."""
        others = {column.name for column in schema.columns if column.type.kind == "other"}
        wanted = {column.name: (column.type_oid, column.typmod) for column in relation.columns if column.name in others}
        types = types_of(self._control, wanted.values()) if wanted else {}
        found: dict[str, Printer | None] = {}
        for name, typed_as in wanted.items():
            pg_type, _ = types.get(typed_as, (None, ""))
            if pg_type is None or not is_carried(pg_type):
                return None
            found[name] = printer_of(pg_type) if pg_type.sends else None
        return found

    def stream_codec(self, relation: Relation, schema: TableSchema, printers: Printers | None) -> StreamCodec:
        """A codec of its own for each Relation message: it is bound to the records of a run. Without `printers` the stream is text."""
        ids = self.ids(schema)
        full = relation.identity == "f"
        return codec.compile_stream(
            schema, ids.key, ids.value, identity_full=full, binary=printers is not None, printers=printers
        )

    def chunked(self, session: Session, table: Table) -> tuple[TableSchema, ChunkCodec]:
        """Schema and codec of a chunk, from the catalog as the chunk's own session sees it."""
        schema = from_catalog(types_of(session, typed([table])), table, table.id in self._insert_only)
        if schema not in self._chunk_codecs:
            ids = self.ids(schema)
            self._chunk_codecs[schema] = codec.compile_chunk(schema, ids.key, ids.value)
        return schema, self._chunk_codecs[schema]

    def ids(self, schema: TableSchema) -> SchemaIds:
        """The registered ids of the table's key and value schemas."""
        if schema not in self._ids:
            made, topic = schemas_of(self._pipeline, schema, "postgresql"), topic_of(self._pipeline, schema.id)
            key = None if made.key is None else self._register(f"{topic}-key", made.key)
            self._ids[schema] = SchemaIds(key, self._register(f"{topic}-value", made.value))
        return self._ids[schema]
