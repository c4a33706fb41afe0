"""A seeded, concurrent workload of everything that a replication gets wrong, and the comparison that tells.

Writers run beside each other, one connection each; what a seed fixes is what each of them tries, not how they interleave.
Bank transfers keep the sum of all balances, so any snapshot of a target that has all accounts shows whether a transaction was torn.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
from psycopg2 import errors

ACCOUNTS, BALANCE = 40, 1_000
TABLES = ("bank", "registry", "documents", "seats", "parents", "children", "keyless", "bin", "bulk", "mixed")

SCHEMA = """
CREATE TABLE bank (id int PRIMARY KEY, balance bigint NOT NULL);
CREATE TABLE registry (k bigint PRIMARY KEY, version bigint NOT NULL, note text);
CREATE TABLE documents (id int PRIMARY KEY, version int NOT NULL, big text, small text);
ALTER TABLE documents ALTER COLUMN big SET STORAGE EXTERNAL;
CREATE TABLE seats (id int PRIMARY KEY, seat int NOT NULL UNIQUE, name text);
CREATE TABLE parents (id int PRIMARY KEY, name text);
CREATE TABLE children (id int PRIMARY KEY, parent int NOT NULL REFERENCES parents ON DELETE CASCADE, amount numeric(12,2));
CREATE TABLE keyless (a int, b text);
CREATE TABLE bin (id int PRIMARY KEY, v text);
CREATE TABLE bulk (id bigint PRIMARY KEY, payload text);
CREATE TABLE mixed (id uuid PRIMARY KEY, i2 smallint, r real, d double precision, n numeric, b boolean, y bytea, day date,
    t time, ts timestamp, tz timestamptz, j jsonb, s varchar(40));
"""
IDENTITY = "ALTER TABLE keyless REPLICA IDENTITY FULL;"

ROWS = f"""
INSERT INTO bank SELECT i, {BALANCE} FROM generate_series(1, {ACCOUNTS}) i;
INSERT INTO registry SELECT i, 0, 'first ' || i FROM generate_series(1, 3000) i;
INSERT INTO documents SELECT i, 0, repeat(md5(i::text), 100), 'small' FROM generate_series(1, 60) i;
INSERT INTO seats SELECT i, i, 'guest ' || i FROM generate_series(1, 50) i;
INSERT INTO parents SELECT i, 'parent ' || i FROM generate_series(1, 40) i;
INSERT INTO children SELECT i, 1 + i % 40, i / 7.0 FROM generate_series(1, 400) i;
INSERT INTO keyless SELECT i % 20, 'b' || i % 7 FROM generate_series(1, 300) i;
INSERT INTO bin SELECT i, 'v' FROM generate_series(1, 30) i;
INSERT INTO bulk SELECT i, repeat('x', 50) FROM generate_series(1, 20000) i;
INSERT INTO mixed SELECT gen_random_uuid(), i % 100, i / 3.0, i / 7.0, i::numeric / 9, i % 2 = 0, decode(md5(i::text), 'hex'),
    '2000-01-01'::date + i, '00:00'::time + i * interval '1 second', now(), now(), jsonb_build_object('k', i), 'é' || i
    FROM generate_series(1, 500) i;
"""

Cursor = Any


class Workload:
    """Writers on `url` from `start` until `stop`. `committed` counts their transactions by kind."""

    def __init__(self, url: str, seed: int, writers: int = 4, pause_s: float = 0.002, bulk_rows: int = 3_000) -> None:
        self.url, self.seed, self.pause_s, self.bulk_rows = url, seed, pause_s, bulk_rows
        self.committed: Counter[str] = Counter()
        self.failures: list[BaseException] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._guarded, args=(n,), daemon=True) for n in range(writers)]

    @contextmanager
    def running(self) -> Iterator[Workload]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        if self.failures:
            raise self.failures[0]

    def _guarded(self, number: int) -> None:
        try:
            self._write(random.Random(f"{self.seed}/{number}"))
        except BaseException as error:
            self.failures.append(error)

    def _write(self, rng: random.Random) -> None:
        kinds: dict[str, tuple[int, Callable[[random.Random, Cursor], None]]] = {
            "transfer": (30, transfer),
            "registry": (20, registry),
            "document": (12, document),
            "swap": (8, swap_seats),
            "family": (10, family),
            "keyless": (10, keyless),
            "bin": (3, bin_),
            "mixed": (10, mixed),
            "bulk": (1, self._bulk),
        }
        names, weights = list(kinds), [weight for weight, _ in kinds.values()]
        with closing(psycopg2.connect(self.url)) as connection:
            while not self._stop.is_set():
                picked = rng.choices(names, weights, k=rng.choice((1, 1, 1, 2, 4)))
                try:
                    with connection.cursor() as cursor:
                        cursor.execute("SET LOCAL lock_timeout = '2s'")
                        if rng.random() < 0.1:
                            cursor.execute("SET LOCAL synchronous_commit = off")
                        for name in picked:
                            self._maybe_in_savepoint(rng, cursor, kinds[name][1])
                    if rng.random() < 0.07:
                        connection.rollback()
                    else:
                        connection.commit()
                        self.committed.update(picked)
                except (
                    errors.DeadlockDetected,
                    errors.LockNotAvailable,
                    errors.UniqueViolation,
                    errors.ForeignKeyViolation,
                ):
                    connection.rollback()
                self._stop.wait(self.pause_s * rng.random() * 2)

    @staticmethod
    def _maybe_in_savepoint(
        rng: random.Random, cursor: Cursor, change: Callable[[random.Random, Cursor], None]
    ) -> None:
        if rng.random() < 0.85:
            return change(rng, cursor)
        cursor.execute("SAVEPOINT s")
        change(rng, cursor)
        cursor.execute("ROLLBACK TO SAVEPOINT s" if rng.random() < 0.5 else "RELEASE SAVEPOINT s")
        return None

    def _bulk(self, rng: random.Random, cursor: Cursor) -> None:
        low, rows = rng.randrange(40_000), self.bulk_rows
        if rng.random() < 0.5:
            cursor.execute("UPDATE bulk SET payload = payload || 'y' WHERE id BETWEEN %s AND %s", (low, low + rows))
            cursor.execute("UPDATE bulk SET payload = left(payload, 60) WHERE length(payload) > 80")
        else:
            cursor.execute(
                "INSERT INTO bulk SELECT i, 'new' FROM generate_series(%s, %s) i ON CONFLICT (id) DO UPDATE SET payload = 'again'",
                (low, low + rows),
            )
            cursor.execute("DELETE FROM bulk WHERE id BETWEEN %s AND %s", (low + rows // 2, low + rows))


def transfer(rng: random.Random, cursor: Cursor) -> None:
    for _ in range(rng.choice((1, 1, 3))):
        amount, (payer, payee) = rng.randrange(1, 50), rng.sample(range(1, ACCOUNTS + 1), 2)
        cursor.execute("UPDATE bank SET balance = balance - %s WHERE id = %s", (amount, payer))
        cursor.execute("UPDATE bank SET balance = balance + %s WHERE id = %s", (amount, payee))


def registry(rng: random.Random, cursor: Cursor) -> None:
    """Inserts, deletes, re-inserts, and chains of key changes."""
    key = rng.randrange(1, 4000)
    match rng.randrange(5):
        case 0:
            cursor.execute("DELETE FROM registry WHERE k = %s", (key,))
        case 1:
            cursor.execute("DELETE FROM registry WHERE k = %s", (key,))
            cursor.execute("INSERT INTO registry VALUES (%s, %s, 'again')", (key, rng.randrange(1000)))
        case 2:
            for _ in range(rng.randrange(1, 4)):
                new = rng.randrange(1, 4000)
                cursor.execute(
                    "UPDATE registry SET k = %s WHERE k = %s AND NOT EXISTS (SELECT FROM registry WHERE k = %s)",
                    (new, key, new),
                )
                key = new if cursor.rowcount else key
        case _:
            cursor.execute(
                "INSERT INTO registry VALUES (%s, 0, %s) ON CONFLICT (k) DO UPDATE SET version = registry.version + 1",
                (key, rng.choice((None, "", "tab\t back\\slash\nline", "'\"%s"))),
            )


def document(rng: random.Random, cursor: Cursor) -> None:
    """Updates that leave the big column alone, key changes among them."""
    key = rng.randrange(1, 90)
    match rng.randrange(6):
        case 0:
            cursor.execute("UPDATE documents SET big = repeat(md5(random()::text), 120) WHERE id = %s", (key,))
        case 1:
            new = rng.randrange(1, 90)
            cursor.execute(
                "UPDATE documents SET id = %s WHERE id = %s AND NOT EXISTS (SELECT FROM documents WHERE id = %s)",
                (new, key, new),
            )
        case 2:
            cursor.execute("DELETE FROM documents WHERE id = %s", (key,))
            cursor.execute("INSERT INTO documents VALUES (%s, 0, repeat(md5(%s), 90), 'n')", (key, str(rng.random())))
            cursor.execute("UPDATE documents SET version = version + 1 WHERE id = %s", (key,))
        case _:
            cursor.execute(
                "UPDATE documents SET version = version + 1, small = %s WHERE id = %s", (str(rng.random()), key)
            )


def swap_seats(rng: random.Random, cursor: Cursor) -> None:
    """Two guests exchange a unique value, by way of a free one, as an application must."""
    one, other = rng.sample(range(1, 51), 2)
    cursor.execute("SELECT id, seat FROM seats WHERE id IN (%s, %s) ORDER BY id FOR UPDATE", (one, other))
    rows = cursor.fetchall()
    if len(rows) == 2:
        (a, seat_a), (b, seat_b) = rows
        cursor.execute("UPDATE seats SET seat = -%s WHERE id = %s", (a, a))
        cursor.execute("UPDATE seats SET seat = %s WHERE id = %s", (seat_a, b))
        cursor.execute("UPDATE seats SET seat = %s WHERE id = %s", (seat_b, a))


def family(rng: random.Random, cursor: Cursor) -> None:
    """Parents and children: adoption, cascades, a parent that dies after its children moved."""
    parent = rng.randrange(1, 60)
    match rng.randrange(4):
        case 0:
            cursor.execute("DELETE FROM parents WHERE id = %s", (parent,))
        case 1:
            cursor.execute("INSERT INTO parents VALUES (%s, 'new') ON CONFLICT DO NOTHING", (parent,))
            cursor.execute(
                "INSERT INTO children VALUES (%s, %s, 1) ON CONFLICT DO NOTHING", (rng.randrange(1000), parent)
            )
        case 2:
            cursor.execute("SELECT id FROM parents ORDER BY id LIMIT 1")
            if (first := cursor.fetchone()) and first[0] != parent:
                cursor.execute("UPDATE children SET parent = %s WHERE parent = %s", (first[0], parent))
                cursor.execute("DELETE FROM parents WHERE id = %s", (parent,))
        case _:
            cursor.execute("UPDATE children SET amount = amount + 0.01 WHERE parent = %s", (parent,))


def keyless(rng: random.Random, cursor: Cursor) -> None:
    value = rng.randrange(20)
    one = "ctid = (SELECT ctid FROM keyless WHERE a = %s LIMIT 1 FOR UPDATE SKIP LOCKED)"
    match rng.randrange(3):
        case 0:
            cursor.execute("INSERT INTO keyless VALUES (%s, %s)", (value, rng.choice((None, "b1", "b2"))))
        case 1:
            cursor.execute(f"DELETE FROM keyless WHERE {one}", (value,))
        case _:
            cursor.execute(f"UPDATE keyless SET b = %s WHERE {one}", (rng.choice(("b1", "u")), value))


def bin_(rng: random.Random, cursor: Cursor) -> None:
    if rng.random() < 0.15:
        cursor.execute("TRUNCATE bin")
    for _ in range(3):
        cursor.execute(
            "INSERT INTO bin VALUES (%s, 'w') ON CONFLICT (id) DO UPDATE SET v = bin.v || 'w'", (rng.randrange(60),)
        )
    cursor.execute("UPDATE bin SET v = 'w' WHERE length(v) > 30")


def mixed(rng: random.Random, cursor: Cursor) -> None:
    d, n = rng.choice(("NaN", "Infinity", "-0", "1e-300", "0.1")), rng.choice(("NaN", "Infinity", "1.10", "-1e40", "0"))
    ts = rng.choice(("infinity", "-infinity", "0044-03-15 12:00 BC", "99999-01-01", "2024-02-29 23:59:59.999999"))
    match rng.randrange(3):
        case 0:
            cursor.execute(
                "INSERT INTO mixed VALUES (gen_random_uuid(), %s, %s, %s, %s, NULL, %s, %s, '24:00', %s, %s, %s, %s)",
                (
                    rng.randrange(-9, 9),
                    d if d != "1e-300" else "0",
                    d,
                    n,
                    b"\0\\x\n",
                    ts,
                    ts,
                    ts,
                    '{"a": [1, null, "\\u00e9"]}',
                    "\t\\N",
                ),
            )
        case 1:
            cursor.execute(
                "DELETE FROM mixed WHERE id IN (SELECT id FROM mixed ORDER BY id LIMIT 1 OFFSET %s)",
                (rng.randrange(100),),
            )
        case _:
            cursor.execute(
                "UPDATE mixed SET d = %s, n = %s, ts = %s, j = NULL WHERE id IN (SELECT id FROM mixed ORDER BY id LIMIT 2 OFFSET %s)",
                (d, n, ts, rng.randrange(100)),
            )


# ------------------------------------------------------------------------------------------------------------ comparison
def rows_of(url: str, table: str) -> list[str]:
    """Every row as the server prints it, sorted: a multiset."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SET extra_float_digits = 3")
        cursor.execute(f"SELECT r::text FROM {table} r")
        return sorted(text for (text,) in cursor)


def differences(source: str, target: str, tables: Sequence[tuple[str, str]]) -> list[str]:
    """What differs, row for row; [] when all tables are equal. `tables` are pairs of names at source and target."""
    found = []
    for here, there in tables:
        ours, theirs = Counter(rows_of(source, here)), Counter(rows_of(target, there))
        if ours != theirs:
            missing, extra = list((ours - theirs).elements()), list((theirs - ours).elements())
            found.append(f"{here}: {len(missing)} missing {missing[:3]}, {len(extra)} too many {extra[:3]}"[:600])
    return found


class BankWatch:
    """Looks at a target's bank all the time, in snapshots: once all accounts are there, their sum never changes."""

    def __init__(self, url: str, table: str = "bank") -> None:
        self.url, self.table, self.looks = url, table, 0
        self.torn: list[tuple[int, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        with closing(psycopg2.connect(self.url)) as connection:
            connection.autocommit = True
            while not self._stop.wait(0.03):
                try:
                    with connection.cursor() as cursor:
                        cursor.execute(f"SELECT count(*), sum(balance) FROM {self.table}")
                        count, total = cursor.fetchone()
                except errors.UndefinedTable:
                    time.sleep(0.1)
                    continue
                if count == ACCOUNTS:
                    self.looks += 1
                    if total != ACCOUNTS * BALANCE:
                        self.torn.append((count, total))

    def __enter__(self) -> BankWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
