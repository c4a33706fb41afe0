"""Rows and schema changes at random: writers that look at the catalog before each statement, and one thread that alters it.

Whatever the server refuses (a column that was dropped meanwhile, a lock that did not come) is rolled back and forgotten.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2

from tests.servers import ident

SCHEMA = """
CREATE TABLE d0 (id int PRIMARY KEY, c1 int, c2 text);
CREATE TABLE d1 (id int PRIMARY KEY, c1 text, c3 varchar(20));
CREATE TABLE d2 (id int NOT NULL, c1 int);
ALTER TABLE d2 REPLICA IDENTITY FULL;
CREATE TABLE d3 (id int PRIMARY KEY, c1 numeric, c4 text);
CREATE TABLE p (id int PRIMARY KEY, c1 text) PARTITION BY RANGE (id);
CREATE TABLE p_0 PARTITION OF p FOR VALUES FROM (0) TO (400);
CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (400) TO (100000);
INSERT INTO d0 SELECT i, i, repeat('x', 3000) FROM generate_series(1, 300) i;
INSERT INTO d1 SELECT i, 'row ' || i FROM generate_series(1, 300) i;
INSERT INTO d2 SELECT i % 50, i FROM generate_series(1, 300) i;
INSERT INTO d3 SELECT i, i FROM generate_series(1, 300) i;
INSERT INTO p SELECT i * 3, 'row' FROM generate_series(1, 250) i;
"""
KEYS, NAMES, COLUMNS = 800, 7, 7
ROOTS = """SELECT c.relname, c.relkind = 'p', EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
           FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition"""
ATTRIBUTES = """SELECT attname, format_type(atttypid, NULL), attgenerated <> '' FROM pg_attribute
                WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"""
PRIMARY_KEY = "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'p'"
LEAVES = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'public.p'::regclass"


class DdlWorkload:
    """`url` writes rows and owns the tables, `admin_url` alters the publication. `done` counts what succeeded, by kind."""

    def __init__(self, url: str, admin_url: str, publication: str, seed: int) -> None:
        self._url, self._admin_url, self._publication, self._seed = url, admin_url, publication, seed
        self._end, self.done = threading.Event(), Counter[str]()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Two writers, and one that alters; they have ended when this ends."""
        threads = [threading.Thread(target=self._write, args=(self._seed * 10 + i,), daemon=True) for i in range(2)]
        threads.append(threading.Thread(target=self._alter, daemon=True))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._end.set()
            for thread in threads:
                thread.join(60)

    # ---------------------------------------------------------------------------------------------------------------- rows
    def _write(self, seed: int) -> None:
        rng = random.Random(seed)
        with closing(psycopg2.connect(self._url, options="-c statement_timeout=5000")) as connection:
            while not self._end.wait(rng.choice((0.001, 0.01, 0.05))):
                try:
                    with connection, connection.cursor() as cursor:
                        for _ in range(rng.choice((1, 1, 2, 5))):
                            self._change(cursor, rng)
                        if rng.random() < 0.1:
                            self._end.wait(rng.random() / 2)
                    self.done["transactions"] += 1
                except psycopg2.Error:
                    self.done["refused"] += 1

    def _change(self, cursor: Any, rng: random.Random) -> None:
        cursor.execute(ROOTS)
        table = ident(rng.choice(sorted(cursor.fetchall()))[0])
        cursor.execute(ATTRIBUTES, (f"public.{table}",))
        columns = [(name, kind) for name, kind, generated in cursor.fetchall() if not generated]
        where, key = "WHERE id = %s", rng.randrange(KEYS)
        match rng.choice("iiuuuudm"):
            case "i":
                names = ", ".join(ident(name) for name, _ in columns)
                values = [key if name == "id" else value(rng, kind) for name, kind in columns]
                holes = ", ".join(["%s"] * len(values))
                conflict = "" if rng.random() < 0.05 else " ON CONFLICT DO NOTHING"
                cursor.execute(f"INSERT INTO {table} ({names}) VALUES ({holes}){conflict}", values)
            case "u" if others := [column for column in columns if column[0] != "id"]:
                name, kind = rng.choice(others)
                cursor.execute(f"UPDATE {table} SET {ident(name)} = %s {where}", (value(rng, kind), key))
            case "m":
                taken = f"AND NOT EXISTS (SELECT 1 FROM {table} WHERE id = %s)"
                new = rng.randrange(KEYS)
                cursor.execute(f"UPDATE {table} SET id = %s {where} {taken}", (new, key, new))
            case _:
                cursor.execute(f"DELETE FROM {table} {where}", (key,))

    # ------------------------------------------------------------------------------------------------------------- structure
    def _alter(self) -> None:
        rng = random.Random(self._seed)
        with (
            closing(psycopg2.connect(self._url, options="-c lock_timeout=700")) as owner,
            closing(psycopg2.connect(self._admin_url, options="-c lock_timeout=700")) as admin,
        ):
            while not self._end.wait(rng.choice((0.05, 0.2, 0.5, 1.0))):
                kind = rng.choice(KINDS)
                connection = admin if kind == "publication" else owner
                try:
                    with connection, connection.cursor() as cursor:
                        for statement in self._statements(cursor, rng, kind):
                            cursor.execute(statement)
                    self.done[kind] += 1
                except psycopg2.Error:
                    self.done["refused"] += 1

    def _statements(self, cursor: Any, rng: random.Random, kind: str) -> list[str]:
        cursor.execute(ROOTS)
        found = sorted(cursor.fetchall())
        tables = [ident(name) for name, partitioned, _ in found if not partitioned]
        keyed = {ident(name) for name, _, key in found if key}
        table = rng.choice(tables)
        cursor.execute(ATTRIBUTES, (f"public.{table}",))
        columns = cursor.fetchall()
        others = [ident(name) for name, _, generated in columns if name != "id" and not generated]
        generated = [ident(name) for name, _, is_generated in columns if is_generated]
        free = ident(f"c{rng.randrange(COLUMNS)}")
        name = ident(f"d{rng.randrange(NAMES)}")
        some = rng.choice(others) if others else free
        head = f"ALTER TABLE {table}"
        match kind:
            case "add column":
                end = rng.choice(
                    ("int", "text", "numeric", "int DEFAULT 7", "text DEFAULT 'd'", "text DEFAULT random()::text")
                )
                return [f"{head} ADD COLUMN {free} {end}"]
            case "drop column":
                return [f"{head} DROP COLUMN {some}"]
            case "drop and add column":
                return [f"{head} DROP COLUMN {some}", f"{head} ADD COLUMN {some} text"]
            case "rename column":
                return [f"{head} RENAME {some} TO {free}"]
            case "retype":
                return [f"{head} ALTER {some} TYPE {rng.choice(('text', 'text', 'numeric', 'bigint'))}"]
            case "defaults":
                return [f"{head} ALTER {some} SET DEFAULT NULL", f"{head} ALTER id SET NOT NULL"]
            case "not null":
                return (
                    [f"{head} ALTER {some} SET NOT NULL"]
                    if rng.random() < 0.3
                    else [f"{head} ALTER {some} DROP NOT NULL"]
                )
            case "generated":
                if generated:
                    return [f"{head} ALTER {generated[0]} DROP EXPRESSION"]
                return [f"{head} ADD COLUMN {free} bigint GENERATED ALWAYS AS (id * 2) STORED"]
            case "identity":
                return [f"{head} REPLICA IDENTITY {rng.choice(('FULL', 'DEFAULT')) if table in keyed else 'FULL'}"]
            case "key":
                if table in keyed:
                    cursor.execute(PRIMARY_KEY, (f"public.{table}",))
                    return [f"{head} REPLICA IDENTITY FULL", f"{head} DROP CONSTRAINT {ident(cursor.fetchone()[0])}"]
                return [
                    f"DELETE FROM {table} a USING {table} b WHERE a.id = b.id AND a.ctid > b.ctid",
                    f"{head} ADD PRIMARY KEY (id)",
                ]
            case "rename table":
                return [f"{head} RENAME TO {name}"]
            case "exchange tables":
                other = rng.choice(tables)
                return [
                    f"{head} RENAME TO aside",
                    f"ALTER TABLE {other} RENAME TO {table}",
                    f"ALTER TABLE aside RENAME TO {other}",
                ]
            case "make again":
                made = f"CREATE TABLE {table} (id int PRIMARY KEY, {free} {rng.choice(('int', 'text'))})"
                return [f"DROP TABLE {table}", made, f"INSERT INTO {table} SELECT i FROM generate_series(1, 50) i"]
            case "new table":
                return [f"CREATE TABLE {name} (id int PRIMARY KEY, c1 text)", f"INSERT INTO {name} VALUES (1, 'first')"]
            case "drop table":
                return [f"DROP TABLE {table}"] if len(tables) > 3 else []
            case "truncate":
                return [f"TRUNCATE {', '.join(rng.sample(tables, rng.choice((1, 2))))}"]
            case "partitions":
                return self._partitions(cursor, rng)
            case "publication":
                drop = f"ALTER PUBLICATION {ident(self._publication)} DROP TABLE {table}"
                change = f"UPDATE {table} SET id = id + 1000 WHERE id < 5"
                return rng.choice(([drop], [drop, change, drop.replace("DROP", "ADD")]))
        raise AssertionError(kind)

    @staticmethod
    def _partitions(cursor: Any, rng: random.Random) -> list[str]:
        cursor.execute(LEAVES)
        leaves = sorted(name for (name,) in cursor.fetchall())
        low = rng.randrange(200, 900) * 1000
        made = f"p_{low}"
        attach = [
            f"CREATE TABLE {made} (id int PRIMARY KEY, c1 text)",
            f"INSERT INTO {made} VALUES ({low}, 'came with it')",
            f"ALTER TABLE p ATTACH PARTITION {made} FOR VALUES FROM ({low}) TO ({low + 1000})",
        ]
        if not leaves:
            return attach
        leaf = rng.choice(leaves)
        detach = [f"ALTER TABLE p DETACH PARTITION {leaf}", f"DROP TABLE {leaf}"]
        return rng.choice(([f"TRUNCATE {leaf}"], attach, detach if len(leaves) > 2 else attach))


KINDS = [
    *(
        "add column",
        "drop column",
        "drop and add column",
        "rename column",
        "retype",
        "defaults",
        "not null",
        "generated",
    ),
    *(
        "identity",
        "key",
        "rename table",
        "exchange tables",
        "make again",
        "new table",
        "drop table",
        "truncate",
        "partitions",
        "publication",
    ),
]


def value(rng: random.Random, kind: str) -> Any:
    """Something for a column of this type; large text now and then, which an update of another column does not send."""
    number = rng.randrange(10**6)
    if kind in ("integer", "bigint", "numeric"):
        return number
    if kind == "text":
        return str(number) * (1500 if rng.random() < 0.1 else 1)
    return str(number)
