"""What a source notices that the stream does not tell: tables that changed without events, came, went, or cannot be captured (D6, D9).

By timer the catalog is compared with the facts in the log; it is ahead of the stream, so what differs has happened, or will have
when the stream is where the catalog is now. A Relation message is compared with what the stream sent before: from there on a
table's rows are of this structure. The invariant: no row goes on that does not fit the load that its table is in, and whatever
is not known to be harmless is a reason to load the table anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cdc.errors import CdcError, Unavailable
from cdc.postgres import facts, preflight, slot, sql
from cdc.postgres.facts import Table
from cdc.postgres.pgoutput import Relation
from cdc.postgres.preflight import Plan
from cdc.postgres.relations import Relations
from cdc.postgres.session import Session, SqlFailed
from cdc.postgres.slot import Publications
from cdc.source import Filter, Finding
from cdc.table import TableId, TableSchema

Json = Any

# Findings that concern one table: it is left out, and everything else goes on.
OF_A_TABLE = frozenset(("CDC-PG-104", "CDC-PG-131", "CDC-PG-132", "CDC-PG-133", "CDC-PG-136"))


_CHANGED_MEANWHILE = ("42P01", "3F000", "42704", "42710")  # no such table, schema or object; it is a member already
LOOK_SHARE = 20  # a look at the catalog waits for so many times what the last one took


class Look(NamedTuple):
    """What a look at the catalog found: see `cdc.source.Run`."""

    altered: dict[TableId, str]
    facts: dict[TableId, Json]
    found: Sequence[TableId] = ()
    refused: Sequence[Finding] | None = None


class Watch:
    """What was noticed in a run: see `cdc.source.Run`. `begins` comes first in each."""

    def __init__(self, relations: Relations, insert_only: frozenset[TableId]) -> None:
        self._relations, self._insert_only = relations, insert_only
        self._drop, self._named = Filter(), dict[int, TableId]()
        self.altered, self.left = dict[TableId, str](), dict[TableId, str]()
        self.facts: dict[TableId, Json] = {}

    def begins(self, drop: Filter) -> None:
        """A run with this filter."""
        self.altered, self.left, self.facts = {}, {}, {}
        if drop is not self._drop:
            self._drop = drop
            self._named = {known["oid"]: id_ for id_, known in drop.begun.items()}

    def name(self, relation: Relation) -> TableId:
        """A table that has another name for a while is the same table: its changes are not to be missed meanwhile."""
        id_ = TableId(relation.schema, relation.name)
        return id_ if id_ in self._drop.begun else self._named.get(relation.oid, id_)

    def _then(self, id_: TableId) -> Json:
        return self.facts.get(id_, self._drop.begun[id_])

    def looked_at(self, id_: TableId, table: Table | None) -> None:
        """What the catalog says of a begun table now; None: that there is none of that name, or oid."""
        if id_ not in self._drop.live or id_ in self.left:
            return
        then, now = self._then(id_), None if table is None else self._relations.facts(table)
        finding = None if table is None else next(preflight.identity(table, self._insert_only), None)
        if reason := finding.detail if finding else facts.altered(then, now):
            self.altered[id_] = reason
        elif now is not None and (changed := facts.noticed(then, now)) != then:
            self.facts[id_] = changed

    def met(self, relation: Relation, id_: TableId) -> TableSchema | None:
        """The schema of the rows that follow a Relation message of a begun table; None where they do not fit."""
        if id_ in self.left:
            return None
        if relation.oid != self._then(id_)["oid"]:
            self.left[id_] = "it was dropped and made again"
            return None
        table = self._relations.table(relation.oid)
        self.looked_at(id_, table)
        try:
            schema = self._relations.streamed(relation._replace(schema=id_.schema, name=id_.name), table)
        except CdcError as error:
            if error.code != "CDC-PG-161":
                raise
            self.left[id_] = error.detail
            return None
        then, now = self._then(id_), None if table is None else self._relations.facts(table)
        sent = [(column.name, column.type_oid) for column in relation.columns]
        if reason := facts.unlike(then, sent, schema.key, now):
            self.left[id_] = reason
            return None
        if (changed := facts.streamed(then, sent)) != then:
            self.facts[id_] = changed
        return schema


def refused(control: Session, plan: Plan) -> dict[TableId, Finding]:
    """Why tables of the plan cannot be captured as they are, the first reason of each. Raises what concerns all of them."""
    if not _errors(control, plan):
        return {}
    return {t.id: found[0] for t in plan.tables if (found := _errors(control, plan._replace(tables=[t])))}


def _errors(control: Session, plan: Plan) -> list[Finding]:
    found = preflight.table_findings(control, plan) if plan.tables else []
    errors = [finding for finding in found if finding.severity == "error"]
    for finding in errors:
        if finding.code not in OF_A_TABLE:
            raise CdcError(finding.code, finding.detail, where=finding.where or None, remedy=finding.remedy)
    return errors


def publications(control: Session, names: Publications, streamed: Iterable[str]) -> None:
    """Those that the stream began with are still there, and ours send every change; others may have altered them. Raises
    CDC-PG-142."""
    existing = slot.owned(control, names)
    if gone := set(streamed) - existing.keys():
        raise CdcError("CDC-PG-142", f"there is no publication {min(gone)} any more", where=min(gone))
    if existing.get(names.all) and slot.incomplete(control, names.all):
        kinds = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true"
        control.run(f"ALTER PUBLICATION {sql.ident(names.all)} SET ({kinds})", doing=f"mending publication {names.all}")


def publish(control: Session, names: Publications, tables: Sequence[Table], insert_only: frozenset[TableId]) -> None:
    """See `slot.publish`. Raises Unavailable where a table went, or was published by others, since it was looked at."""
    try:
        slot.publish(control, names, tables, insert_only)
    except SqlFailed as error:
        if error.sqlstate not in _CHANGED_MEANWHILE:
            raise
        raise Unavailable("CDC-PG-101", error.detail) from None


def withdrawn(control: Session, names: Publications, found: Iterable[Table], why: Mapping[TableId, Finding]) -> None:
    """Take tables out of our publication that lost their replica identity: the application's own updates fail while they are in it."""
    unidentified = [t.id for t in found if t.whole and t.id in why and why[t.id].code == "CDC-PG-132"]
    if unidentified and slot.owned(control, names).get(names.all):
        control.run(slot.withdraw_statement(names.all, unidentified), doing=f"taking tables out of {names.all}")
