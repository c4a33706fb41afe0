"""A piece's net changes merged set by set: stage, then delete, upsert and delete in the order that foreign keys allow.

What the target refuses is tried again in a form that asks less of it (protocol B6), each from the same savepoint:
1. upserts by key: right unless rows exchange values of another unique index;
2. the end state: the piece's keys are deleted and their rows inserted, where no trigger and no foreign key would notice; while a
   later generation loads, stale rows that collide go first;
3. the events one by one, in source order (`ordered`): at the source every prefix was valid. What fails here is Rejected.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

from cdc import failpoints
from cdc.errors import CdcError
from sinks.postgres import keyless, ordered
from sinks.postgres.bookkeeping import TableRow
from sinks.postgres.plan import Plan
from sinks.postgres.session import Refused, Session
from sinks.postgres.sql import ident, names
from sinks.postgres.staging import Staging, origin_names, plan_number
from sinks.postgres.target import UniqueIndex
from sinks.sink import Missed, Partial, TableChanges


@dataclass(slots=True)
class Group:
    """Partial rows with the same gaps: numbers [begin, end) of the staging table. `moved`: from another key."""

    unchanged: frozenset[str]
    moved: bool
    begin: int
    end: int


@dataclass(slots=True)
class Work:
    """One table of the piece: its changes sorted by what they need, and where they are staged."""

    plan: Plan
    row: TableRow
    changes: TableChanges
    whole: list[bytes] = field(default_factory=list)
    gone: list[bytes] = field(default_factory=list)
    partial: list[tuple[bytes, Partial]] = field(default_factory=list)
    direct: bool = False  # straight into the fresh target
    groups: list[Group] = field(default_factory=list)
    missed: list[bytes] = field(default_factory=list)
    lost: bool = False  # a keyless table that lacks a row
    rows: str = ""
    keys: str = ""
    gaps: str = ""
    images: str = ""

    @property
    def seen(self) -> str | None:
        return f"_cdc.{ident(self.row.seen)}" if self.row.tracked and self.row.seen is not None else None

    def gaps_of(self, group: Group, alias: str = "s") -> str:
        number = f"{alias}.{ident(plan_number(self.plan))}"
        return f"{number} >= {group.begin} AND {number} < {group.end}"


def sort(plan: Plan, row: TableRow, changes: TableChanges) -> Work:
    """The work that a table's changes make."""
    work = Work(plan, row, changes, direct=row.fresh and changes.only_reads)
    whole = work.whole.append
    for key, net in changes.net.items():
        if isinstance(net, bytes):
            whole(net)
        elif net is None:
            work.gone.append(key)
        else:
            work.partial.append((key, net))
    if work.gone or work.partial:
        work.direct = False
    return work


class Merge:
    """Merges the works of one piece inside the session's open transaction."""

    def __init__(self, session: Session, staging: Staging, works: list[Work]) -> None:
        self._session, self._staging, self.works = session, staging, works
        self._keyed = [work for work in works if work.plan.key]
        self._keyless = [work for work in works if not work.plan.key]

    def run(self) -> list[Missed]:
        """Apply; keys of live tables whose row is missing. Raises Rejected naming a row."""
        self._reserve()
        self._session.execute("SAVEPOINT piece")
        try:
            self._stage_and_merge()
        except Refused:
            self._session.execute("ROLLBACK TO SAVEPOINT piece")
            for work in self.works:
                work.missed.clear()
            try:
                ordered.apply(self._session, self.works)
            except CdcError:
                self._session.execute("ROLLBACK TO SAVEPOINT piece")
                raise
        self._session.execute("RELEASE SAVEPOINT piece")
        failpoints.hit("sink.merged")
        return [
            Missed(work.plan.table, tuple(work.missed))
            for work in self.works
            if (work.missed or work.lost) and not work.row.loading
        ]

    def _stage_and_merge(self) -> None:
        try:
            self._stage()
        except Refused:
            if not any(work.direct for work in self.works):
                raise
            # A row that is already there: the table is not what a load finds at first.
            self._session.execute("ROLLBACK TO SAVEPOINT piece")
            for work in self.works:
                work.direct = False
            self._stage()
        failpoints.hit("sink.staged")
        self._session.execute("SAVEPOINT staged")
        try:
            self._upsert_sets()
        except Refused:
            self._session.execute("ROLLBACK TO SAVEPOINT staged")
            for work in self._keyed:
                work.missed.clear()
            self._replace_sets()
        self._session.execute("RELEASE SAVEPOINT staged")

    # -------------------------------------------------------------------------------------------------------------- stage
    def _reserve(self) -> None:
        """Make or empty the temporary tables, outside the savepoints: what is made inside would vanish with them."""
        for work in self._keyed:
            if work.whole or work.partial:
                work.rows = self._staging.table(work.plan, "rows")
            if work.gone:
                work.keys = self._staging.table(work.plan, "gone")
            if work.partial:
                work.gaps = self._staging.table(work.plan, "partial")
        for work in self._keyless:
            if not work.changes.only_reads:
                work.images = self._staging.table(work.plan, "images")

    def _stage(self) -> None:
        for work in self._keyed:
            work.groups.clear()
            plan, into = work.plan, work.plan.ref if work.direct else work.rows
            if work.whole:
                self._copy(plan.copy_into(into), plan.lines(work.whole), len(work.whole), plan)
            if work.gone:
                self._copy(plan.copy_into(work.keys, plan.key), plan.key_lines(work.gone), len(work.gone), plan)
            if work.seen is not None and work.whole:
                columns = names(plan.key)
                self._session.execute(
                    f"INSERT INTO {work.seen} ({columns}) SELECT {columns} FROM {work.rows} ON CONFLICT DO NOTHING"
                )
            if work.partial:
                self._stage_partial(work)

    def _copy(self, statement: str, lines: Iterable[bytes], rows: int, plan: Plan) -> None:
        copied = self._session.copy(statement, lines)
        assert copied == rows, f"{copied} rows of {plan.table} were staged, not {rows}"

    def _stage_partial(self, work: Work) -> None:
        """Rows with gaps, numbered, by the set of their gaps; rows that moved are filled from where they were, now, before anything
        is deleted, and are whole from then on."""
        grouped: dict[tuple[frozenset[str], bool], list[int]] = {}
        for index, (key, partial) in enumerate(work.partial):
            grouped.setdefault((partial.unchanged, partial.origin != key), []).append(index)
        order = [index for indexes in grouped.values() for index in indexes]
        work.partial = [work.partial[index] for index in order]
        plan, begin = work.plan, 0
        for (unchanged, moved), indexes in grouped.items():
            group = Group(unchanged, moved, begin, begin + len(indexes))
            members = work.partial[group.begin : group.end]
            sent = [name for name in plan.columns if name not in unchanged]
            rows = b"".join(plan.lines((partial.value for _, partial in members), sent)).split(b"\n")
            origins = b"".join(plan.key_lines(partial.origin for _, partial in members)).split(b"\n")
            blob = b"".join(
                b"%s\t%d\t%s\n" % (row, begin + index, origin)
                for index, (row, origin) in enumerate(zip(rows[:-1], origins[:-1], strict=True))
            )
            columns = (*sent, plan_number(plan), *origin_names(plan))
            self._copy(plan.copy_into(work.gaps, columns), [blob], len(members), plan)
            work.groups.append(group)
            begin = group.end
        for group in work.groups:
            if group.moved:
                self._fill(work, group)

    def _fill(self, work: Work, group: Group) -> None:
        """Turn partial rows into whole ones; those whose origin is not there are missed."""
        plan = work.plan
        origin = plan.same_key("t", "s", origin_names(plan))
        columns = ", ".join(f"{'t' if name in group.unchanged else 's'}.{ident(name)}" for name in plan.columns)
        filled = self._session.execute(
            f"INSERT INTO {work.rows} ({names(plan.columns)}) SELECT {columns} FROM {work.gaps} AS s"
            f" JOIN {plan.ref} AS t ON {origin} WHERE {work.gaps_of(group)}"
        )
        if filled != group.end - group.begin:
            self._miss(work, group, origin)

    def _miss(self, work: Work, group: Group, condition: str) -> None:
        found = self._session.rows(
            f"SELECT s.{ident(plan_number(work.plan))} FROM {work.gaps} AS s WHERE {work.gaps_of(group)}"
            f" AND NOT EXISTS (SELECT 1 FROM {work.plan.ref} AS t WHERE {condition})"
        )
        work.missed += [work.partial[number][0] for (number,) in found]

    # ------------------------------------------------------------------------------------------------------------ rung one
    def _upsert_sets(self) -> None:
        parents_first = _parents_first(self._keyed)
        keyless.delete(self._session, self._keyless)
        for work in parents_first:
            if work.gone and not work.plan.target.referenced:
                self._session.execute(work.plan.delete(work.keys))
        for work in parents_first:
            self._upsert(work)
            for group in work.groups:
                if not group.moved:
                    self._update(work, group)
        keyless.insert(self._session, self._keyless)
        for work in reversed(parents_first):
            if work.gone and work.plan.target.referenced:
                self._delete_unless_written(work)

    def _upsert(self, work: Work) -> None:
        if work.rows and not work.direct:
            self._session.execute(work.plan.upsert(f"SELECT {names(work.plan.columns)} FROM {work.rows}"))

    def _delete_unless_written(self, work: Work) -> None:
        """A key that was written under an equal spelling stays."""
        condition = ""
        if work.rows:
            condition = f" AND NOT EXISTS (SELECT 1 FROM {work.rows} AS w WHERE {work.plan.same_key('w', 's')})"
        self._session.execute(work.plan.delete(work.keys, condition))

    def _update(self, work: Work, group: Group) -> None:
        """Rows with gaps are never inserted, and their gaps never written."""
        plan = work.plan
        sets = [name for name in plan.rewritten if name not in group.unchanged]
        same = plan.same_key("t", "s")
        updated = self._session.execute(
            f"UPDATE {plan.ref} AS t SET {', '.join(f'{ident(name)} = s.{ident(name)}' for name in sets)}"
            f" FROM {work.gaps} AS s WHERE {same} AND {work.gaps_of(group)}"
            if sets
            else f"SELECT 1 FROM {plan.ref} AS t JOIN {work.gaps} AS s ON {same} WHERE {work.gaps_of(group)}"
        )
        assert updated <= group.end - group.begin, f"an update of {plan.table} hit {updated} rows"
        if updated < group.end - group.begin:
            self._miss(work, group, same)

    # ------------------------------------------------------------------------------------------------------------ rung two
    def _replace_sets(self) -> None:
        """The end state, by delete and insert where nothing but the key's own rows would notice."""
        parents_first = _parents_first(self._keyed)
        keyless.delete(self._session, self._keyless)
        for work in parents_first:
            self._remove_stale(work)
        quiet = {id(w) for w in self._keyed if not (w.plan.target.referenced or w.plan.target.triggers or w.direct)}
        for work in parents_first:
            if id(work) in quiet:
                for group in work.groups:
                    if not group.moved:
                        self._fill(work, group)
        for work in parents_first:
            if id(work) in quiet:
                for staged in filter(None, (work.keys, work.rows)):
                    self._session.execute(work.plan.delete(staged))
            elif work.gone and not work.plan.target.referenced:
                self._session.execute(work.plan.delete(work.keys))
        for work in parents_first:
            if id(work) in quiet:
                if work.rows:
                    self._session.execute(work.plan.insert(f"SELECT {names(work.plan.columns)} FROM {work.rows}"))
                continue
            self._upsert(work)
            for group in work.groups:
                if not group.moved:
                    self._update(work, group)
        keyless.insert(self._session, self._keyless)
        for work in reversed(parents_first):
            if work.gone and work.plan.target.referenced:
                self._delete_unless_written(work)

    def _remove_stale(self, work: Work) -> None:
        """Rows that the loading generation has not written and that stand in the way of one that it has: their chunk brings them
        back, if the source still has them."""
        if work.seen is not None and work.rows:
            for unique in work.plan.secondary_uniques:
                self._session.execute(stale(work.plan, unique, work.rows, work.seen))


def stale(plan: Plan, unique: UniqueIndex, written: str, seen: str) -> str:
    """SQL that deletes rows which collide with the relation `written` on `unique` and whose keys are neither in it nor in `seen`."""
    exprs = [f"{expression} AS e{index}" for index, expression in enumerate(unique.expressions)]
    where = f" WHERE {unique.predicate}" if unique.predicate else ""
    keys = ", ".join(f"{ident(name)} AS k{index}" for index, name in enumerate(plan.key))
    equal = " AND ".join(
        f"(a.e{i} {operator} b.e{i}{f' OR (a.e{i} IS NULL AND b.e{i} IS NULL)' if unique.nulls_equal else ''})"
        for i, operator in enumerate(unique.equal)
    )
    aliases = tuple(f"k{index}" for index in range(len(plan.key)))
    return (
        f"DELETE FROM {plan.ref} AS t USING (SELECT {keys}, {', '.join(exprs)} FROM {plan.ref}{where}) AS a,"
        f" (SELECT {', '.join(exprs)} FROM {written} AS x{where}) AS b"
        f" WHERE {plan.same_key('t', 'a', aliases)} AND {equal}"
        f" AND NOT EXISTS (SELECT 1 FROM {seen} AS s WHERE {plan.same_key('t', 's')})"
        f" AND NOT EXISTS (SELECT 1 FROM {written} AS w WHERE {plan.same_key('t', 'w')})"
    )


def _parents_first(works: list[Work]) -> list[Work]:
    """Referenced tables before those that refer to them; in a cycle, as they come (the ladder's last rung needs no order)."""
    here = {work.plan.target.id: work for work in works}
    graph = {name: (work.plan.target.refers & here.keys()) - {name} for name, work in here.items()}
    try:
        return [here[name] for name in TopologicalSorter(graph).static_order()]
    except CycleError:
        return works


def empty(session: Session, plans: list[Work]) -> None:
    """Tables that were truncated together, children first; DELETE, because TRUNCATE shows older snapshots an empty table (B7)."""
    for work in reversed(_parents_first(plans)):
        try:
            session.execute(f"DELETE FROM {work.plan.ref}")
            if work.seen is not None:
                session.execute(f"DELETE FROM {work.seen}")
        except Refused as error:
            raise CdcError(
                "CDC-TGT-133", f"the source truncated it: {error.cause}", where=str(work.plan.table)
            ) from None
