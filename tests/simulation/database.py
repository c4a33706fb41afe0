"""The simulated source database: what Postgres promises of transactions, and nothing more.

A transaction is executed (it locks its rows), enters the stream, becomes durable and becomes visible in separate steps. One that
waits for a synchronous standby is streamed before it is visible; an asynchronous one is visible before it is durable, and a crash
takes it back and gives its number out again.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from cdc.table import TableId
from tests.simulation.rows import KEYED, KEYLESS, TABLES, UNCHANGED, VERSIONS, Row

KEYS, UNIQUES, KEYLESS_VALUES = 9, 8, 5  # keys in use: 6 to 9
Tables = dict[TableId, dict[int, Any]]


class Change(NamedTuple):
    """A raw event: c, u, d, t(runcate) or m(ove of a key). `row` as sent; in the keyless table `old` is the old value."""

    op: str
    table: TableId
    key: int | None = None
    row: Any = None
    old: Any = None


class Structure(NamedTuple):
    """What a load compares: TRUNCATE gives a new file, ALTER new columns, and what rewrites rows without events shows too. `key` is a
    structure that no event of the other fits; `oid` another table's of the same name, 0 where there is none."""

    file: int = 1
    columns: int = 0
    rewrites: int = 0
    key: int = 0
    oid: int = 1


class Snapshot(NamedTuple):
    next_xid: int
    running: tuple[int, ...]

    def sees(self, xid: int) -> bool:
        return xid < self.next_xid and xid not in self.running


@dataclass(slots=True)
class Transaction:
    xid: int
    synchronous: bool = True
    changes: list[Change] = field(default_factory=list)
    writes: list[tuple[TableId, int | None, Any]] = field(default_factory=list)  # key None: the table is emptied
    view: Tables = field(default_factory=dict)
    mark: str | None = None
    silent: TableId | None = None  # the table whose rows it changes without events
    altered: TableId | None = None
    rewrites: bool = False  # `silent` can be noticed at the source
    rekeyed: TableId | None = None
    made: int | None = None  # the table's oid from here on, 0: it is dropped
    place: int = 0  # in the stream, from 1; 0 = not committed
    hidden: frozenset[TableId] = frozenset()  # tables that were not published when it wrote them (D6)


@dataclass(slots=True)
class History:
    """The stream, and what the database held after each number of commits. A failover begins another history."""

    commits: list[Transaction]
    states: list[Tables]
    silent: list[dict[TableId, int]]  # place of each table's last change without events
    structures: list[dict[TableId, Structure]]

    def upto(self, place: int) -> History:
        end = place + 1
        return History(self.commits[:place], self.states[:end], self.silent[:end], self.structures[:end])


def written(tables: Tables, writes: list[tuple[TableId, int | None, Any]]) -> Tables:
    tables = {**tables, **{table: dict(tables[table]) for table in {table: None for table, _, _ in writes}}}
    for table, key, row in writes:
        if key is None:
            tables[table].clear()
        elif row is None:
            tables[table].pop(key, None)
        else:
            tables[table][key] = row
    return tables


class Database:
    def __init__(self, rng: random.Random) -> None:
        self.rng, self.new = rng, itertools.count(1).__next__
        self.visible: Tables = {
            table: {key: Row(self.new(), self.new(), key + 1) for key in rng.sample(range(6), 4)} for table in KEYED
        }
        self.visible[KEYLESS] = {self.new(): rng.randrange(KEYLESS_VALUES) for _ in range(rng.randrange(8))}
        structures = dict.fromkeys(TABLES, Structure())
        self.history = History([], [self.visible], [{}], [structures])
        self.structures = structures  # as far as visible
        self.durable = self.forgotten = 0  # so many commits can be streamed; so many are no longer kept
        self.running: dict[int, Transaction] = {}  # executed, not yet visible
        self.locks: dict[tuple[TableId, object], int] = {}
        self.next_xid, self.boot = 1, 1
        self.published: dict[
            TableId, tuple[int, tuple[int, ...]]
        ] = {}  # oid, and the numbers that ran when it was added
        self.slots: dict[int, tuple[History, Any]] = {}  # epoch -> start
        self.slot_owner: object = None
        self.reloads: list[TableId] = []  # to be asked for: rows changed without events
        self.keys = rng.choice((6, 9))
        kinds = ("insert", "update", "update", "delete", "move", "swap", "transfer")
        self.mix = [*rng.choices(kinds, k=rng.randint(1, 6)), "insert", "move"]
        self.keyless_share, self.truncates = rng.choice((0.05, 0.2, 0.5)), rng.choice((0, 0.02, 0.05))
        self.alters, self.silents = rng.choice((0, 0, 0.03, 0.1)), rng.choice((0, 0, 0.04, 0.12))
        self.rekeys, self.remakes = rng.choice((0, 0, 0.03, 0.1)), rng.choice((0, 0, 0.03, 0.1))

    # ---------------------------------------------------------------------------------------------- life of a transaction
    def step(self) -> None:
        roll = self.rng.random()
        opened = [tx for tx in self.running.values() if not tx.place]
        if roll < 0.35 and len(opened) < 3:
            self._execute()
        elif roll < 0.6 and opened:
            tx = self.rng.choice(opened)
            self._commit(tx) if self.rng.random() < 0.9 else self._end(tx)
        elif roll < 0.75:
            self.durable = self.rng.randint(self.durable, len(self.history.commits))
        else:
            self._make_visible()

    def _commit(self, tx: Transaction) -> None:
        history = self.history
        history.commits.append(tx)
        tx.place = place = len(history.commits)
        history.states.append(written(history.states[-1], tx.writes) if tx.writes else history.states[-1])
        history.silent.append({**history.silent[-1], tx.silent: place} if tx.silent else history.silent[-1])
        history.structures.append(self._restructured(history.structures[-1], tx))

    def _restructured(self, structures: dict[TableId, Structure], tx: Transaction) -> dict[TableId, Structure]:
        new = {
            change.table: structures[change.table]._replace(file=tx.xid) for change in tx.changes if change.op == "t"
        }
        if tx.altered:
            old = structures[tx.altered]
            new[tx.altered] = old._replace(columns=(old.columns + 1) % VERSIONS)
        if tx.rekeyed:
            old = structures[tx.rekeyed]
            new[tx.rekeyed] = old._replace(key=1 - old.key)
        if tx.rewrites and tx.silent:
            old = structures[tx.silent]
            new[tx.silent] = old._replace(rewrites=tx.xid) if tx.made is None else old._replace(oid=tx.made)
        return {**structures, **new} if new else structures

    def _make_visible(self) -> None:
        ready = [tx for tx in self.running.values() if tx.place and (tx.place <= self.durable or not tx.synchronous)]
        if ready:
            tx = self.rng.choice(ready)
            self.visible = written(self.visible, tx.writes)
            self.structures = self._restructured(self.structures, tx)
            self._end(tx)

    def _end(self, tx: Transaction) -> None:
        del self.running[tx.xid]
        self.locks = {lock: xid for lock, xid in self.locks.items() if xid != tx.xid}
        if tx.silent and tx.place and not tx.rewrites:
            self.reloads.append(tx.silent)

    def crash(self) -> None:
        """What was not durable never happened, and its numbers are given out again; what was durable is visible."""
        self._restart_from(self.history.upto(self.durable))

    def fail_over(self) -> None:
        """A server takes over that lacks the end of the history, durable or not."""
        self._restart_from(self.history.upto(self.rng.randint(max(0, self.durable - 6), self.durable)))

    def _restart_from(self, history: History) -> None:
        lost = self.durable > len(history.commits)
        for tx in list(self.running.values()):
            if 0 < tx.place <= len(history.commits):
                self._end(tx)
        if lost:
            self.history = history
        else:  # the same history, so that positions in it stay good
            for part in ("commits", "states", "silent", "structures"):
                getattr(self.history, part)[:] = getattr(history, part)
        self.durable, self.visible = len(history.commits), history.states[-1]
        self.structures, self.running, self.locks = history.structures[-1], {}, {}
        self.next_xid = max((tx.xid for tx in history.commits), default=0) + 1
        self.boot += 1
        self.slot_owner = None

    def settle(self) -> None:
        """Everything that was begun ends."""
        for tx in [tx for tx in self.running.values() if not tx.place]:
            self._commit(tx)
        self.durable = len(self.history.commits)
        while self.running:
            self._make_visible()
        for table, structure in self.structures.items():
            if not structure.oid:
                self.remake(table)

    def remake(self, table: TableId) -> None:
        """Drop it, or make it, or both, at once."""
        tx = self.running[self.next_xid] = Transaction(self.next_xid)
        self.next_xid += 1
        self._remake(tx, table)
        self._commit(tx)
        self.durable = len(self.history.commits)
        self._make_visible()

    def snapshot(self) -> Snapshot:
        return Snapshot(self.next_xid, tuple(self.running))

    def commit_mark(self, durable: bool = True, name: str | None = None) -> str:
        tx = Transaction(self.next_xid, mark=name or f"mark {self.new()}")
        self.next_xid += 1
        self._commit(tx)
        if durable:
            self.durable = len(self.history.commits)
        assert tx.mark
        return tx.mark

    def publish(self, table: TableId) -> None:
        """D6: transactions that wrote to the table before are not streamed for it."""
        if not self.is_published(table):
            self.published[table] = self.structures[table].oid, tuple(self.running)
            for tx in self.running.values():
                tx.hidden |= {table}

    def is_published(self, table: TableId) -> bool:
        """One that is made again is not."""
        return table in self.published and self.published[table][0] == self.structures[table].oid

    # ------------------------------------------------------------------------------------------------------------- writing
    def _execute(self) -> None:
        rng = self.rng
        tx = self.running[self.next_xid] = Transaction(self.next_xid, synchronous=rng.random() < 0.5)
        tx.hidden = frozenset(table for table in TABLES if table in self.published and not self.is_published(table))
        self.next_xid += 1
        roll, table = rng.random(), rng.choice(KEYED)
        if roll < self.silents:
            if self._lock_table(tx, table):
                tx.silent, tx.synchronous, tx.rewrites = table, True, rng.random() < 0.5
                for kind in ("update", "delete", "swap"):
                    self._change(tx, table, kind)
                tx.changes.clear()
            return
        if roll < self.silents + self.remakes:
            self._remake(tx, rng.choice(TABLES))
            return
        roll -= self.silents + self.remakes
        if roll < self.alters + self.rekeys:
            table = rng.choice(TABLES)
            if self._lock_table(tx, table):
                if roll < self.alters:
                    tx.altered = table
                else:
                    tx.rekeyed, tx.synchronous = table, True
        for _ in range(rng.choice((1, 1, 2, 3, 4, 8))):
            roll = rng.random()
            if roll < self.truncates:
                for table in rng.sample(TABLES, rng.choice((1, 1, 2))):
                    if self._lock_table(tx, table):
                        self._rows(tx, table).clear()
                        tx.writes.append((table, None, None))
                        tx.changes.append(Change("t", table))
            elif roll < self.keyless_share:
                self._change_keyless(tx, rng.choice("cud"))
            else:
                self._change(tx, rng.choice(KEYED), rng.choice(self.mix))

    def _remake(self, tx: Transaction, table: TableId) -> None:
        """Drop the table, or make it, or both; no event shows it, nor its first rows."""
        exists = self.structures[table].oid
        if not self._lock_table(tx, table, gone=not exists):
            return
        tx.silent, tx.synchronous, tx.rewrites = table, True, True
        rows = self._rows(tx, table)
        rows.clear()
        tx.writes.append((table, None, None))
        tx.made = 0 if exists and self.rng.random() < 0.5 else tx.xid + 1
        for _ in range(self.rng.randrange(4) if tx.made else 0):
            if table == KEYLESS:
                self._put(tx, Change("c", table, self.new()), self.rng.randrange(KEYLESS_VALUES))
            else:
                self._change(tx, table, "insert")
        tx.changes.clear()

    def _lock(self, tx: Transaction, table: TableId, *wanted: object) -> bool:
        if not (self.structures[table].oid or tx.made):
            return False
        locks = [(table, what) for what in wanted]
        if any(self.locks.get(lock, tx.xid) != tx.xid for lock in [*locks, (table, "*")]):
            return False
        self.locks.update(dict.fromkeys(locks, tx.xid))
        return True

    def _lock_table(self, tx: Transaction, table: TableId, *, gone: bool = False) -> bool:
        others = any(lock[0] == table and xid != tx.xid for lock, xid in self.locks.items())
        if gone and not others:
            self.locks[table, "*"] = tx.xid
        return not others and (gone or self._lock(tx, table, "*"))

    def _rows(self, tx: Transaction, table: TableId) -> dict[int, Any]:
        if table not in tx.view:
            tx.view[table] = dict(self.visible[table])
        return tx.view[table]

    def _pick(self, tx: Transaction, table: TableId) -> tuple[int, Row] | None:
        """A row of the table, locked with its unique value."""
        rows = self._rows(tx, table)
        if not rows:
            return None
        key = self.rng.choice(sorted(rows))
        return (key, rows[key]) if self._lock(tx, table, key, f"unique {rows[key].unique or f'of {key}'}") else None

    def _free_unique(self, tx: Transaction, table: TableId) -> int | None:
        unique = self.rng.randint(1, UNIQUES)
        taken = any(row.unique == unique for row in self._rows(tx, table).values())
        return None if taken or not self._lock(tx, table, f"unique {unique}") else unique

    def _put(self, tx: Transaction, change: Change, row: Any) -> None:
        """`change` says what is sent, `row` what is stored."""
        rows = self._rows(tx, change.table)
        if change.op == "m":
            del rows[change.old]
            tx.writes.append((change.table, change.old, None))
        if row is None:
            del rows[change.key]  # type: ignore[arg-type]
        else:
            rows[change.key] = row  # type: ignore[index]
        tx.writes.append((change.table, change.key, row))
        tx.changes.append(change)

    def _change(self, tx: Transaction, table: TableId, kind: str) -> None:
        rng, key = self.rng, self.rng.randrange(self.keys)
        if kind == "insert":
            if key not in self._rows(tx, table) and self._lock(tx, table, key):
                row = Row(self.new(), self.new(), self._free_unique(tx, table))
                self._put(tx, Change("c", table, key, row), row)
            return None
        if not (found := self._pick(tx, table)):
            return None
        old, row = found
        if kind == "delete":
            return self._put(tx, Change("d", table, old), None)
        if kind in ("swap", "transfer"):  # two rows exchange their unique values, or two tables an amount
            return self._exchange(tx, table, kind, old, row)
        resent = rng.random() < 0.25
        row = row._replace(number=self.new(), big=self.new() if resent else row.big)
        if kind == "update":
            if rng.random() < 0.4:
                row = row._replace(unique=self._free_unique(tx, table))
            self._put(tx, Change("u", table, old, row if resent else row._replace(big=UNCHANGED)), row)
        elif key not in self._rows(tx, table) and self._lock(tx, table, key):
            self._put(tx, Change("m", table, key, row if resent else row._replace(big=UNCHANGED), old), row)
        return None

    def _exchange(self, tx: Transaction, table: TableId, kind: str, key: int, row: Row) -> None:
        there = table if kind == "swap" else self.rng.choice(KEYED)
        if not (found := self._pick(tx, there)) or (there, found[0]) == (table, key):
            return
        other_key, other = found
        if kind == "swap":  # as a deferrable constraint allows it: by way of NULL where it is not
            self._update(tx, table, key, row._replace(unique=None))
            self._update(tx, table, other_key, other._replace(unique=row.unique))
            self._update(tx, table, key, row._replace(unique=other.unique))
        else:
            self._update(tx, table, key, row._replace(number=row.number - 1))
            self._update(tx, there, other_key, other._replace(number=other.number + 1))

    def _update(self, tx: Transaction, table: TableId, key: int, row: Row) -> None:
        self._put(tx, Change("u", table, key, row._replace(big=UNCHANGED)), row)

    def _change_keyless(self, tx: Transaction, op: str) -> None:
        rows = self._rows(tx, KEYLESS)
        value = None if op == "d" else self.rng.randrange(KEYLESS_VALUES)
        row_id = self.new() if op == "c" else self.rng.choice(sorted(rows)) if rows else None
        if row_id is not None and self._lock(tx, KEYLESS, row_id):
            self._put(tx, Change(op, KEYLESS, row_id, value, rows.get(row_id)), value)
