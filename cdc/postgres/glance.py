"""What status shows of a source beside its capture: places in its log, the planner's row counts, and who is in the way.

Reads the catalog only, on connections of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

from cdc.postgres import blockers, facts, slot, sql
from cdc.postgres.position import lsn_int
from cdc.postgres.relations import from_catalog, typed
from cdc.postgres.session import Session
from cdc.postgres.type_catalog import types_of
from cdc.selection import TableFilter
from cdc.table import TableId, TableSchema

Json = Any
APPLICATION = "penstock-status"
LOCKED_FOR = "5 seconds"

# A partition root has no rows of its own; -1 is a table that was never analysed. pg_partition_tree would wait for locks.
_ESTIMATES = """
WITH RECURSIVE tree (schema, name, root, oid) AS (
    SELECT n.nspname, c.relname, c.relkind, c.oid
    FROM json_array_elements($1::json) AS e
    JOIN pg_catalog.pg_namespace n ON n.nspname = e->>0
    JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = e->>1
    UNION ALL
    SELECT schema, name, root, i.inhrelid FROM tree JOIN pg_catalog.pg_inherits i ON i.inhparent = tree.oid WHERE root = 'p')
SELECT schema, name, sum(l.reltuples)::bigint
FROM tree JOIN pg_catalog.pg_class l ON l.oid = tree.oid AND l.relkind <> 'p'
WHERE l.reltuples >= 0 GROUP BY 1, 2
"""


def tables(url: str, wanted: TableFilter) -> list[TableId]:
    """The selected tables, those included that are locked just now."""
    with closing(Session(url, APPLICATION)) as session:
        return [table for table in facts.names(session) if wanted.matches(table)]


def row_estimates(url: str, tables: Iterable[TableId]) -> dict[TableId, int]:
    """Only tables with an estimate are in the answer."""
    wanted = json.dumps([list(table) for table in tables])
    with closing(Session(url, APPLICATION)) as session:
        rows = session.run(_ESTIMATES, [wanted], doing="reading row estimates")
    return {TableId(schema or "", name or ""): int(count or 0) for schema, name, count in rows}


def places(status: Mapping[str, Json], stream: Json) -> tuple[int | None, int | None]:
    """The end of the server's log, and how far the stream position `stream` is in it; None for what is not known."""
    head = status.get("head")
    return head and lsn_int(head), stream and lsn_int(stream["lsn"])


def waits(url: str, tables: Mapping[TableId, Sequence[int]]) -> list[str]:
    """The transactions still running among those that tables wait for, in words."""
    xids = sorted({xid for each in tables.values() for xid in each})
    if not xids:
        return []
    with closing(Session(url, APPLICATION)) as session:
        return blockers.running(session, xids)


def locks(url: str, tables: Sequence[TableId]) -> list[str]:
    """Who keeps these tables from being read, in words, and not only for a moment."""
    if not tables:
        return []
    with closing(Session(url, APPLICATION)) as session:
        return blockers.locking(session, tables, older_than=LOCKED_FOR)


def owners(url: str, publication: str, wanted: TableFilter) -> dict[TableId, str]:
    """The selected tables, each with the role that owns it."""
    with closing(Session(url, APPLICATION)) as session:
        found = facts.candidates(session, slot.Publications.named(publication))
        chosen = {table.oid: table.id for table in found if wanted.matches(table.id) and table.persistence == "p"}
        rows = session.run(
            "SELECT oid, pg_catalog.pg_get_userbyid(relowner) FROM pg_catalog.pg_class WHERE oid = ANY ($1::oid[])",
            [sql.text_array(map(str, chosen))],
        )
    return {chosen[int(oid or 0)]: owner or "" for oid, owner in rows}


def schemas(url: str, publication: str, wanted: TableFilter, insert_only: Iterable[TableId]) -> list[TableSchema]:
    """The selected tables as their loads would read them, for the targets' preflight."""
    with closing(Session(url, APPLICATION)) as session:
        found = facts.candidates(session, slot.Publications.named(publication))
        chosen = [table for table in found if wanted.matches(table.id) and table.persistence == "p"]
        types, inserts = types_of(session, typed(chosen)), set(insert_only)
        return [from_catalog(types, table, table.id in inserts) for table in chosen]
