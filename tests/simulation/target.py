"""A `Sink` into dictionaries: one transaction at a time, a bookmark that is compared, net changes as protocol B has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cdc.errors import Superseded, Unavailable
from cdc.log import Checkpoint, Mark
from cdc.source import Finding
from cdc.table import TableId
from sinks.sink import Bookmark, Missed, Net, Partial, Piece, Start, TableChanges
from tests.simulation.rows import KEYLESS, TABLES, Row, decode, key_bytes, key_of

if TYPE_CHECKING:
    from tests.simulation.world import World


@dataclass(slots=True)
class Content:
    """What the target holds. Tables and sets are replaced, never changed, so that a copy of the outer dictionaries is enough."""

    bookmark: Bookmark
    rows: dict[TableId, Any] = field(default_factory=dict)  # keyed: key -> Row; keyless: value -> count
    generations: dict[TableId, int] = field(default_factory=dict)  # the newest that began
    written: dict[TableId, frozenset[int]] = field(
        default_factory=dict
    )  # by the running load; absent when it has ended
    finished: dict[TableId, int] = field(default_factory=dict)  # the newest generation that ended

    def copy(self) -> Content:
        parts = (self.rows, self.generations, self.written, self.finished)
        return Content(self.bookmark, *map(dict, parts))


class Target:
    """The database, and who holds the bookmark. `tables` are what its sink takes. `joined`: the bookmark has been made; tables that
    the log no longer held then are `missing` until they begin."""

    def __init__(self, log_id: str, name: str = "sink", tables: Sequence[TableId] = TABLES) -> None:
        self.name, self.tables = name, tuple(tables)
        self.joined, self.missing = False, set[TableId]()
        self.content = Content(Bookmark(log_id, Mark(-1, log_id)))
        self.owner: FakeSink | None = None
        self.in_transaction: FakeSink | None = None


class FakeSink:
    """One sink process."""

    compare_bookmark = delete_unseen = check_cut = True  # switched off by mutants
    requests_collided = True  # rows kept aside are asked for too; a replay has nobody to ask, and finds them at the cut

    def __init__(self, world: World, target: Target) -> None:
        self.world, self.target, self.name = world, target, target.name
        self.work: Content | None = None
        self.aside: dict[TableId, dict[int, Row]] = {}  # rows that lost a collision in this transaction

    def check(self) -> list[Finding]:
        return []

    def wants(self, table: TableId) -> bool:
        return table in self.target.tables

    def resume(self, log_id: str, start: Callable[[], Start] | None = None) -> Bookmark:
        self.world.tick("resume")
        if (other := self.target.in_transaction) is not None:
            if self.world.chance(0.5):
                raise Unavailable("CDC-PG-100", "the bookmark is locked")
            other.rollback()  # its backend is ended
        if start is not None and not self.target.joined:
            mark, begins, missing = start()
            self.world.tick("join")
            if missing and not self.world.storage.first:
                self.world.fail(f"{missing} are in the log, and the source is asked for them")
            if not self.target.joined:
                self.target.content.bookmark = Bookmark(log_id, mark, begins)
                self.target.joined, self.target.missing = True, set(missing)
        self.target.owner = self
        return self.target.content.bookmark

    def suspended(self) -> list[TableId]:
        return sorted(self.target.missing - self.target.content.rows.keys())

    def begin(self, bookmark: Bookmark, checkpoint: Checkpoint) -> None:
        self.world.tick("begin")
        target = self.target
        if self.compare_bookmark:
            if target.owner is not self:
                raise Superseded("CDC-TGT-001", "a successor has the bookmark")
            if target.content.bookmark != bookmark:
                raise Unavailable("CDC-TGT-002", "the bookmark moved on")
        if target.in_transaction is not None:
            raise Unavailable("CDC-PG-100", "the bookmark is locked")
        self.work, target.in_transaction, self.aside = target.content.copy(), self, {}

    def _open(self) -> Content:
        if self.work is None or self.target.in_transaction is not self:
            raise Unavailable("CDC-PG-100", "the connection is gone")
        return self.work

    def merge(self, piece: Piece) -> list[Missed]:
        self.world.tick("merge")
        work, missed = self._open(), []
        for begun in piece.begun:
            if begun.generation <= work.generations.get(begun.table, 0):
                self.world.fail(f"{begun} after generation {work.generations[begun.table]}")
            work.generations[begun.table], work.written[begun.table] = begun.generation, frozenset()
            if begun.keyless:
                work.rows[begun.table] = Counter()
            else:
                work.rows.setdefault(begun.table, {})
        for table, changes in piece.tables.items():
            if table not in work.rows and table in self.target.missing:
                continue
            if table not in work.rows:
                self.world.fail(f"events of {table}, which never began")
            if changes.only_reads and any(decode(value).op != "r" for value in changes.events):
                self.world.fail("only_reads, and there are others")
            if table == KEYLESS:
                work.rows[table] = self._bag(work.rows[table], changes)
            elif keys := self._keyed(work, table, changes):
                missed.append(Missed(table, tuple(key_bytes(table, key) for key in keys)))
        for table in piece.finished:
            if table not in work.rows and table in self.target.missing:
                continue
            if table not in work.written:
                self.world.fail(f"a load of {table} ends that has not begun")
            written = work.written.pop(table)
            work.finished[table] = work.generations[table]
            if table != KEYLESS and self.delete_unseen:
                written -= self.aside.get(table, {}).keys()
                work.rows[table] = {key: row for key, row in work.rows[table].items() if key in written}
        return missed

    def _bag(self, bag: Counter[Any], changes: TableChanges) -> Counter[Any]:
        bag = Counter() if changes.emptied else Counter(bag)
        for event in map(decode, changes.events):
            if event.op in "du":
                bag[event.before] -= 1
                if bag[event.before] < 0:
                    self.world.fail(f"keyless row {event.before} to remove is not there")
            if event.op in "cur":
                bag[event.row] += 1
        return bag

    def _keyed(self, work: Content, table: TableId, changes: TableChanges) -> list[int]:
        """Apply the net changes; keys that lack what an update needs, or lost a collision, on a live table."""
        aside = self.aside.setdefault(table, {})
        if changes.emptied:
            aside.clear()
        old = aside if changes.emptied else {**aside, **work.rows[table]}
        net = {key_of(key): end for key, end in changes.net.items()}
        new, missed = {key: row for key, row in old.items() if key not in net}, []
        for key, end in net.items():
            if isinstance(end, bytes):
                new[key] = decode(end).row
            elif end is not None:
                base = old.get(key_of(end.origin))
                if base is None:
                    missed.append(key)
                else:
                    new[key] = self._over(end, base)
        self._check_collapse(table, changes, old, new)
        loading = table in work.written
        if loading:
            written = frozenset() if changes.emptied else work.written[table]
            whole = {key for key, end in net.items() if key in new and _is_whole(end, written)}
            work.written[table] = (written - net.keys()) | whole
        for key in aside.keys() - net.keys():
            del new[key]
        self.aside[table] = {key: aside[key] for key in aside.keys() - net.keys()}
        gone = self._collide(new, net)
        self.aside[table].update(gone)
        work.rows[table] = new
        return [] if loading else missed + list(gone) * self.requests_collided

    def _over(self, end: Partial, base: Row) -> Row:
        if end.unchanged != {"big"}:
            self.world.fail(f"a row over another without {set(end.unchanged)}")
        row: Row = decode(end.value).row
        return row._replace(big=base.big)

    def _collide(self, rows: dict[int, Row], net: Mapping[int, Net]) -> dict[int, Row]:
        """B6: of two rows with one unique value the one goes that is stale: what this merge wrote stays.

        Off a cut it may merely be behind a row that a chunk read ahead of the stream, and an update that needs it can follow:
        it is kept aside until the commit."""
        holders: dict[int, int] = {}
        gone = {}
        for key in sorted(rows, key=lambda key: key not in net):
            unique = rows[key].unique
            if unique is not None and holders.setdefault(unique, key) != key:
                gone[key] = rows[key]
        for key in gone:
            del rows[key]
        return gone

    def _check_collapse(
        self, table: TableId, changes: TableChanges, old: Mapping[int, Row], new: Mapping[int, Row]
    ) -> None:
        """The net changes are what the events do, one by one."""
        if len(changes.net) == len(changes.events):
            return
        rows, moving = dict(old), dict[int, Row | None]()
        for framed, event in zip(changes.keys, map(decode, changes.events), strict=True):
            if event.op == "t":
                continue  # the piece begins with it
            key = key_of(framed)  # type: ignore[arg-type]
            if event.op == "d":
                moving[key] = rows.pop(key, None)
            elif event.unchanged:
                base = rows.get(key) if event.moved is None else moving.get(event.moved)
                rows.pop(key, None)
                if base is not None:
                    rows[key] = event.row._replace(big=base.big)
            else:
                rows[key] = event.row
        if rows != new:
            self.world.fail(f"{table}: net changes give {new}, events one by one {rows}")

    def commit(self, checkpoint: Checkpoint) -> Bookmark:
        self.world.tick("commit")
        work = self._open()
        if not checkpoint.cut and self.check_cut:
            self.world.fail("a commit off a cut")
        if self.world.chance(self.world.odds_commit_lost):
            self.rollback()
            raise Unavailable("CDC-PG-100", "COMMIT did not arrive")
        for table, written in work.written.items():
            work.written[table] = written - self.aside.get(table, {}).keys()
        begins = {table: number for table, number in work.bookmark.begins.items() if number > checkpoint.number}
        work.bookmark = Bookmark(checkpoint.log_id, checkpoint.mark, begins)
        self.target.content = work
        self.rollback()
        self.world.check_target(self.target.content, checkpoint)
        if self.world.chance(self.world.odds_commit_lost):
            raise Unavailable("CDC-PG-100", "COMMIT did not answer")
        self.world.tick("committed")
        return self.target.content.bookmark

    def rollback(self) -> None:
        if self.target.in_transaction is self:
            self.target.in_transaction = None
        self.work = None

    def status(self) -> Mapping[str, object]:
        return {}

    def close(self) -> None:
        self.rollback()


def _is_whole(end: Net, written: frozenset[int]) -> bool:
    return isinstance(end, bytes) or (isinstance(end, Partial) and key_of(end.origin) in written)
