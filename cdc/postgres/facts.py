"""What the catalog says of tables, and the noticing of changes that leave no event (protocols D1, D6, D9).

`Table` is one table as the catalog has it now. Its `facts` are the JSON that the log keeps per load. `altered` compares two of
them and answers why rows may have changed without events; the invariant: whatever is not known to be harmless is a reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from cdc.postgres import sql
from cdc.postgres.facts_sql import tables
from cdc.postgres.session import Session
from cdc.table import TableId

Json = Any


class Attribute(NamedTuple):
    """One column, from pg_attribute. `missing`: existing rows got a value of it without being rewritten. `parts` are the labels of
    the enums and the attributes of the composites that its type is made of, by their place in the catalog."""

    number: int
    name: str
    type_oid: int
    typmod: int
    source_type: str
    not_null: bool
    generated: str
    xmin: str
    missing: bool
    parts: dict[str, str] | None


class Table(NamedTuple):
    """`identity` is d, i, f or n (relreplident); `published` names the columns that our publications send, None when they
    do not hold the table; `links` says by which catalog rows they do, `whole` and `inserts` which of the two does; `filtered`: a
    publication leaves out rows of it. `children` are a partition root's leaves: oid, file, and who attached them and what they are in:
    a leaf that was detached and attached again may have changed meanwhile."""

    oid: int
    id: TableId
    kind: str
    identity: str
    persistence: str
    filenode: int | None
    row_security: bool
    attributes: tuple[Attribute, ...]
    primary_key: tuple[str, ...]
    identity_index: tuple[str, ...]
    children: tuple[tuple[int, int | None, str], ...]
    published: frozenset[str] | None
    links: tuple[tuple[int, str, int], ...]
    filtered: bool
    whole: bool
    inserts: bool

    def placed(self, insert_only: bool) -> bool:
        """Is it in the publication where it belongs? An insert-only table must not be in the other one as well: its updates would
        be sent, and fail at the application where it has no identity."""
        return self.inserts and not self.whole if insert_only else self.whole

    def key(self, insert_only: bool) -> tuple[str, ...]:
        """The record key (protocol D7); () for a keyless table."""
        if self.identity == "i":
            return self.identity_index
        if self.identity == "n" and not insert_only:
            return ()
        return self.primary_key

    @property
    def identified(self) -> bool:
        """Can an UPDATE or DELETE of it be published?"""
        return self.identity == "f" or bool({"d": self.primary_key, "i": self.identity_index}.get(self.identity))

    @property
    def streamed(self) -> tuple[Attribute, ...]:
        """The columns that the stream sends, so those that a chunk reads (C6). Generated ones are not sent unless published."""
        if self.published is not None:
            return tuple(column for column in self.attributes if column.name in self.published)
        return tuple(column for column in self.attributes if not column.generated)

    def facts(self, insert_only: bool, waits: Sequence[int] = ()) -> Json:
        """What the log keeps. `waits` are the transactions that the first chunk must outlive (D6)."""
        return {
            "keyless": not self.key(insert_only),
            "oid": self.oid,
            "filenode": self.filenode,
            "columns": [
                [
                    c.number,
                    c.name,
                    c.type_oid,
                    c.typmod,
                    c.not_null,
                    c.missing,
                    c.xmin,
                    c.parts or {},
                    c in self.streamed,
                ]
                for c in self.attributes
            ],
            "dropped": [],
            "stream": [[c.name, c.type_oid] for c in self.streamed],
            "key": list(self.key(insert_only)),
            "children": [list(child) for child in self.children],
            "published": [list(link) for link in self.links] if self.placed(insert_only) else [],
            "waits": list(waits),
        }


def restructured(then: Json, now: Json) -> bool:
    """Is this no longer the table that the load began with (D1)?"""
    if any(then[name] != now[name] for name in ("oid", "filenode", "key", "children", "published")):
        return True
    before, after = then["columns"], now["columns"]
    return [column[:6] for column in before] != [column[:6] for column in after] or any(map(_reworded, before, after))


def _reworded(then: Json, now: Json) -> bool:
    """Do stored values of this column have another text, since a label of an enum or an attribute of a composite changed? What is
    added to an enum is in no stored value."""
    return any(now[7].get(place) != text for place, text in then[7].items())


def noticed(then: Json, now: Json) -> Json:
    """`now`, and what only `then` knows: whom the first chunk waited for, the schema that the load began with, which columns the stream
    sent last, and the names of those dropped since the load began, whose values targets keep."""
    names = {column[1] for column in now["columns"]}
    dropped = {*then["dropped"], *(column[1] for column in then["columns"])} - names
    kept = {name: then[name] for name in ("waits", "schema", "stream") if name in then}
    return {**now, **kept, "dropped": sorted(dropped)}


def altered(then: Json, now: Json | None) -> str | None:
    """Why rows may have changed without events since `then`, or their events are missing; None when nothing of the kind did.

    VACUUM FULL, CLUSTER, SET TABLESPACE and the streamed TRUNCATE change the file alone. A rewrite by ALTER TABLE changes the
    file and a column's catalog row. A leaf's file counts by itself: its TRUNCATE is not streamed under the root's name.
    """
    if now is None:
        return "it was dropped or renamed"
    if now["oid"] != then["oid"]:
        return "it was dropped and made again"
    if not now["published"]:
        return "it is no longer published, or not as it should be"
    if not any(link in now["published"] for link in then["published"]):
        return "its publication was changed, and may have left out changes meanwhile"
    if now["key"] != then["key"]:
        return "its key changed"
    before, after = ({column[0]: column for column in facts["columns"]} for facts in (then, now))
    dropped = {*then["dropped"], *(column[1] for column in before.values())}
    for number, column in after.items():
        old = before.get(number)
        if old is None:
            if column[1] in dropped:
                return (
                    f"column {column[1]} was dropped and added again, and existing rows lost its values without events"
                )
            if column[5]:
                return f"column {column[1]} was added with a default, which existing rows got without events"
        elif _sent(column) and not _sent(old):
            return f"column {column[1]} was not sent before, and existing rows have values of it"
        elif old[1] != column[1]:
            return f"column {old[1]} was renamed to {column[1]}"
        elif old[2] != column[2] or (old[3] != column[3] and now["filenode"] != then["filenode"]):
            return f"the type of column {column[1]} changed"
        elif _reworded(old, column):
            return f"values of column {column[1]} read otherwise: a label of its enum, or an attribute of its type, changed"
    catalog_rows = [{(column[0], column[6]) for column in facts["columns"]} for facts in (then, now)]
    if now["filenode"] != then["filenode"] and catalog_rows[1] - catalog_rows[0]:
        return "it was rewritten"
    if [(child[0], child[2]) for child in then["children"]] != [(child[0], child[2]) for child in now["children"]]:
        return "partitions were attached or detached"
    if then["children"] != now["children"]:
        return "a partition was truncated or rewritten"
    return None


def _sent(column: Json) -> bool:
    """Does the stream send it? In facts of versions that did not say it, it did."""
    return bool(column[8]) if len(column) > 8 else True


Sent = Sequence[tuple[str, int]]  # the columns of a Relation message: name and type


def unlike(then: Json, sent: Sent, key: Sequence[str], now: Json | None) -> str | None:
    """Why rows that the stream sends with these columns and this key do not fit the load that began with `then`, or rows that it
    sent before do not any more; None when they do. `now` is the catalog, which is ahead of the stream: a column that it has again,
    or under another name, was away in between.
    """
    if list(key) != then["key"]:
        return "its key changed"
    before, after = dict(then.get("stream", sent)), dict(sent)
    for name in before.keys() & after.keys():
        if before[name] != after[name]:
            return f"the type of column {name} changed"
    gone, new = before.keys() - after.keys(), after.keys() - before.keys()
    columns = now["columns"] if now else []
    present = {column[1] for column in columns if _sent(column)}
    for name in sorted(gone):
        if name in present:
            return f"column {name} was dropped, renamed or not sent, and is there again"
    for name in sorted(new):
        if name in then["dropped"]:
            return f"column {name} was dropped and added again, and existing rows lost its values without events"
    numbers = {column[1]: column[0] for column in then["columns"]}
    if new and not all(name in numbers and numbers[name] not in {column[0] for column in columns} for name in gone):
        return f"column {min(gone)} was renamed"
    return None


def streamed(then: Json, sent: Sent) -> Json:
    """`then`, after rows with these columns."""
    names = {name for name, _ in sent}
    dropped = {*then["dropped"], *(name for name, _ in then.get("stream", ()))} - names
    now = {column[1] for column in then["columns"]}
    return {**then, "stream": [list(column) for column in sent], "dropped": sorted(dropped - now)}


def _select(session: Session, which: str, publications: Iterable[str], parameter: str) -> list[Table]:
    """`publications` are `slot.Publications`, in their order."""
    text = tables(which, session.server_version)
    rows = session.run(text, [sql.text_array(publications), parameter], doing="reading the catalog")
    return [_table(json.loads(row[0] or "")) for row in rows]


def _table(row: Json) -> Table:
    oid, schema, name, kind, identity, persistence, filenode, row_security, columns, primary, index, children, *rest = (
        row
    )
    links, published, filtered, whole, inserts = rest
    attributes = tuple(Attribute(*column) for column in columns or ())
    return Table(
        oid,
        TableId(schema, name),
        kind,
        identity,
        persistence,
        filenode,
        row_security,
        attributes,
        tuple(primary or ()),
        tuple(index or ()),
        tuple((child[0], child[1], child[2]) for child in children or ()),
        frozenset(published or ()) if links else None,
        tuple((link[0], link[1], link[2]) for link in links or ()),
        filtered,
        whole,
        inserts,
    )


_MEANT = """NOT c.relispartition AND n.nspname <> ALL ($2::text[]) AND n.nspname !~ '^pg_'
AND EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)"""
_NOT_MEANT = ("information_schema", "_cdc")


def candidates(session: Session, publications: Iterable[str]) -> list[Table]:
    """Every table that a user could mean: ordinary and partition roots, permanent or unlogged; not leaves, which come under
    their root's name, nor the system's, nor the bookkeeping of a sink that writes to this same database."""
    return _select(
        session,
        f"c.relpersistence <> 't' AND {_MEANT}",
        publications,
        sql.text_array(_NOT_MEANT),
    )


def names(session: Session) -> list[TableId]:
    """The names of the permanent tables among the `candidates`. Takes no lock, so that it waits for nobody's."""
    rows = session.run(
        f"""SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind IN ('r', 'p') AND c.relpersistence = $1 AND {_MEANT}""",
        ["p", sql.text_array(_NOT_MEANT)],
    )
    return [TableId(schema or "", name or "") for schema, name in rows]


def by_oid(session: Session, publications: Iterable[str], oids: Iterable[int]) -> dict[int, Table]:
    """The tables with these oids that still exist."""
    found = _select(session, "c.oid = ANY ($2::oid[])", publications, sql.text_array(map(str, oids)))
    return {table.oid: table for table in found}


def by_name(session: Session, publications: Iterable[str], ids: Iterable[TableId]) -> dict[TableId, Table]:
    """The tables with these names that exist."""
    wanted = json.dumps([list(table) for table in ids])
    found = _select(
        session,
        "(n.nspname, c.relname) IN (SELECT e->>0, e->>1 FROM json_array_elements($2::json) AS e)",
        publications,
        wanted,
    )
    return {table.id: table for table in found}


def references(session: Session) -> set[tuple[TableId, TableId]]:
    """Foreign keys as (referring, referenced) tables; a leaf's own are its root's business."""
    rows = session.run(
        """SELECT DISTINCT n.nspname, c.relname, m.nspname, d.relname FROM pg_catalog.pg_constraint f
           JOIN pg_catalog.pg_class c ON c.oid = f.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
           JOIN pg_catalog.pg_class d ON d.oid = f.confrelid JOIN pg_catalog.pg_namespace m ON m.oid = d.relnamespace
           WHERE f.contype = 'f' AND f.conrelid <> f.confrelid"""
    )
    return {(TableId(r[0] or "", r[1] or ""), TableId(r[2] or "", r[3] or "")) for r in rows}


def referenced_first(ids: Iterable[TableId], refers: set[tuple[TableId, TableId]]) -> list[TableId]:
    """By name, but referenced tables before those that refer to them; tables of a cycle in the order of their names."""
    ordered = sorted(ids)
    needs: dict[TableId, set[TableId]] = {table: set() for table in ordered}
    for referring, referenced in refers:
        if referring in needs and referenced in needs:
            needs[referring].add(referenced)
    done: list[TableId] = []
    while needs:
        ready = [table for table, waits in needs.items() if not waits] or [next(iter(needs))]
        done += ready
        for table in ready:
            del needs[table]
        for waits in needs.values():
            waits.difference_update(ready)
    return done
