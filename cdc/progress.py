"""How far loads are, and what they still owe, as a position keeps it: the small values of `cdc.load` and their JSON.

The invariant: what is written comes back equal, and equal states are equal text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cdc.avro import HEADER_BYTES
from cdc.table import TableId

Json = Any
Key = tuple[TableId, bytes]

REFUSED_MAX = 20  # a position is in every checkpoint: the first few say enough


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a round and of the re-read queue."""

    chunk_rows: int = 50_000
    chunk_bytes: int = 16 << 20
    round_chunks: int = 16
    round_bytes: int = 32 << 20
    reread_keys: int = 1_000
    queue_keys: int = 10_000


@dataclass(slots=True)
class Loading:
    """A table's running load. `after`: keys up to it are written; `read`: to the table's end. The rest is for keyless tables:
    the snapshot that its copy is read in and the mark behind it (D8)."""

    after: bytes | None = None
    read: bool = False
    rows: int = 0
    snapshot: Json = None
    mark: str | None = None


@dataclass(slots=True)
class Request:
    """Tables to load anew for a reason that was not read from the stream: they begin when `mark` came back (C3)."""

    tables: list[TableId]
    signal: int = 0
    facts: dict[TableId, Json] = field(default_factory=dict)
    mark: str | None = None
    back: bool = False


def loading(data: Json) -> Loading:
    after = data.get("after")
    return Loading(after and bytes.fromhex(after), data["read"], data["rows"], data.get("snapshot"), data.get("mark"))


def loading_json(load: Loading) -> Json:
    data: dict[str, Json] = {"after": load.after and load.after.hex(), "read": load.read, "rows": load.rows}
    return data if load.mark is None else data | {"snapshot": load.snapshot, "mark": load.mark}


def holds(keys: Iterable[Key], table: TableId, key: bytes) -> bool:
    """Is the key among them, under whatever schema id it was written?"""
    return any(other == table and held[HEADER_BYTES:] == key[HEADER_BYTES:] for other, held in keys)


def keys(data: Iterable[Json]) -> Iterator[Key]:
    return ((TableId(*table), bytes.fromhex(key)) for table, key in data)


def keys_json(held: Iterable[Key]) -> Json:
    return [[list(table), key.hex()] for table, key in sorted(held)]


def reasons_json(reasons: Mapping[TableId, str]) -> Json:
    return [[list(table), reason] for table, reason in sorted(reasons.items())]


def without(held: Iterable[Key], table: TableId) -> Iterator[Key]:
    """All but this table's."""
    return (key for key in held if key[0] != table)
