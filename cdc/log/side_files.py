"""Schemas, signals and readers' hints of an embedded log: small files of their own, made at first use.

Other processes write signals and hints, so these are not in the segments: a writer there would meet `database is locked` (A7).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from cdc.avro import canonical, schema_hash
from cdc.errors import CdcError
from cdc.log import Json, Mark, Signal
from cdc.log.database import create_file, open_file, sqlite_errors

_ID_MASK = 0x7FFFFFFF  # ids are 31 bits


class _SideFile:
    """One file, made when it is first written, opened when it is first needed."""

    kind: str
    tables: tuple[str, ...]
    synchronous = "FULL"

    def __init__(self, folder: Path, log_id: str) -> None:
        self.path = folder / f"{self.kind}.sqlite"
        self._log_id = log_id
        self._connection: sqlite3.Connection | None = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _opened(self, create: bool) -> sqlite3.Connection | None:
        if self._connection is None:
            if not self.path.exists():
                if not create:
                    return None
                create_file(self.path, self.kind, self._log_id, self._fill)
            self._connection = open_file(self.path, self.kind, self._log_id, self.synchronous)
        return self._connection

    def _fill(self, connection: sqlite3.Connection) -> None:
        for table in self.tables:
            connection.execute(table)

    def rows(self, sql: str, *values: object) -> list[tuple[object, ...]]:
        """All rows of one statement; none when the file does not exist yet."""
        with sqlite_errors(self.path):
            connection = self._opened(create=False)
            return [] if connection is None else connection.execute(sql, values).fetchall()

    def begin(self) -> sqlite3.Connection:
        """A connection inside a write transaction, which `with connection:` ends."""
        connection = self._opened(create=True)
        assert connection is not None
        connection.execute("BEGIN IMMEDIATE")
        return connection


class Schemas(_SideFile):
    """The built-in registry (A8): an id is the schema's hash, or the next free number when two schemas share one."""

    kind = "schemas"
    tables = (
        "CREATE TABLE schemas (id INTEGER PRIMARY KEY, body TEXT NOT NULL)",
        "CREATE TABLE subjects (subject TEXT, version INTEGER, id INTEGER, PRIMARY KEY (subject, version))",
    )

    def __init__(self, folder: Path, log_id: str) -> None:
        super().__init__(folder, log_id)
        self._ids: dict[tuple[str, str], int] = {}
        self._schemas: dict[int, Json] = {}

    def register(self, subject: str, schema: Json, given: int | None = None) -> int:
        """The id, committed with the schema and the subject's version before it is returned. `given` is what an external registry
        gave. Raises CDC-REG-301 when that is another schema's here."""
        body = canonical(schema)
        known = self._ids.get((subject, body))
        if known is not None and given in (None, known):
            return known
        with sqlite_errors(self.path), self.begin() as connection:
            schema_id = self._place(connection, schema_hash(schema) if given is None else given, body)
            if given not in (None, schema_id):
                raise CdcError("CDC-REG-301", f"id {given}, given for {subject}", where=str(self.path))
            connection.execute(
                "INSERT INTO subjects SELECT ?1, 1 + coalesce((SELECT max(version) FROM subjects WHERE subject = ?1), 0), ?2"
                " WHERE NOT EXISTS (SELECT 1 FROM subjects WHERE subject = ?1 AND id = ?2)",
                (subject, schema_id),
            )
        self._ids[subject, body] = schema_id
        return schema_id

    def topics(self) -> list[str]:
        """One of the topics that subjects are named after, if there is any."""
        found = self.rows("SELECT subject FROM subjects ORDER BY subject LIMIT 1")
        return [str(subject) for (subject,) in found]

    def subjects(self) -> dict[str, list[int]]:
        """The ids of each subject's versions, in order."""
        found: dict[str, list[int]] = {}
        for subject, schema_id in self.rows("SELECT subject, id FROM subjects ORDER BY subject, version"):
            found.setdefault(str(subject), []).append(int(str(schema_id)))
        return found

    @staticmethod
    def _place(connection: sqlite3.Connection, schema_id: int, body: str) -> int:
        while found := connection.execute("SELECT body FROM schemas WHERE id = ?", (schema_id,)).fetchall():
            if found[0][0] == body:
                return schema_id
            schema_id = schema_id + 1 & _ID_MASK
        connection.execute("INSERT INTO schemas VALUES (?, ?)", (schema_id, body))
        return schema_id

    def schema(self, schema_id: int) -> Json:
        """Raises CDC-LOG-402 for an unknown id."""
        if schema_id not in self._schemas:
            match self.rows("SELECT body FROM schemas WHERE id = ?", schema_id):
                case [(str(body),)]:
                    self._schemas[schema_id] = json.loads(body)
                case _:
                    raise CdcError("CDC-LOG-402", f"schema {schema_id}", where=str(self.path))
        return self._schemas[schema_id]


class Signals(_SideFile):
    """Requests to the capture, numbered densely from 1."""

    kind = "signals"
    tables = ("CREATE TABLE signals (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, details TEXT NOT NULL)",)

    def add(self, kind: str, details: Json) -> int:
        with sqlite_errors(self.path), self.begin() as connection:
            [(number,)] = connection.execute("SELECT coalesce(max(number), 0) + 1 FROM signals").fetchall()
            connection.execute("INSERT INTO signals VALUES (?, ?, ?)", (number, kind, json.dumps(details)))
        return int(number)

    def after(self, number: int) -> list[Signal]:
        found = self.rows("SELECT number, kind, details FROM signals WHERE number > ? ORDER BY number", number)
        return [Signal(int(str(n)), str(kind), json.loads(str(details))) for n, kind, details in found]


class Hints(_SideFile):
    """What each reader no longer needs. A hint lost in a power cut only keeps more, so nothing waits for the disk."""

    kind = "readers"
    tables = ("CREATE TABLE readers (name TEXT PRIMARY KEY, number INTEGER NOT NULL, id TEXT NOT NULL)",)
    synchronous = "NORMAL"

    def put(self, reader: str, mark: Mark) -> None:
        with sqlite_errors(self.path), self.begin() as connection:
            connection.execute("INSERT OR REPLACE INTO readers VALUES (?, ?, ?)", (reader, *mark))

    def expect(self, readers: Iterable[str], mark: Mark) -> None:
        """Readers that have not reported yet, as if they stood at `mark`."""
        with sqlite_errors(self.path), self.begin() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO readers VALUES (?, ?, ?)", [(reader, *mark) for reader in readers]
            )

    def remove(self, reader: str) -> None:
        with sqlite_errors(self.path), self.begin() as connection:
            connection.execute("DELETE FROM readers WHERE name = ?", (reader,))

    def marks(self) -> dict[str, Mark]:
        found = self.rows("SELECT name, number, id FROM readers")
        return {str(name): Mark(int(str(number)), str(identity)) for name, number, identity in found}
