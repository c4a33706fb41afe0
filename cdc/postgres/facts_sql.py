"""The query behind `facts`: one JSON array per table, in the order of `facts.Table`.

The invariant: nothing in it costs more for each table the more tables there are.
"""

from __future__ import annotations

_TABLES = """
SELECT json_build_array(
    c.oid::int8, n.nspname, c.relname, c.relkind, c.relreplident, c.relpersistence, pg_catalog.pg_relation_filenode(c.oid)::int8,
    c.relrowsecurity AND pg_catalog.row_security_active(c.oid),
    (SELECT json_agg(json_build_array(a.attnum, a.attname, a.atttypid::int8, a.atttypmod,
                pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attgenerated, a.xmin::text, a.atthasmissing,
                CASE WHEN a.atttypid >= 16384 THEN ({parts}) END)
             ORDER BY a.attnum)
     FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
    (SELECT json_agg(a.attname ORDER BY k.place)
     FROM pg_catalog.pg_index i, unnest(i.indkey) WITH ORDINALITY AS k (number, place), pg_catalog.pg_attribute a
     WHERE i.indrelid = c.oid AND i.indisprimary AND i.indisvalid AND (i.indimmediate OR c.relreplident = 'f')
         AND k.place <= i.indnkeyatts AND a.attrelid = c.oid AND a.attnum = k.number),
    (SELECT json_agg(a.attname ORDER BY k.place)
     FROM pg_catalog.pg_index i, unnest(i.indkey) WITH ORDINALITY AS k (number, place), pg_catalog.pg_attribute a
     WHERE i.indrelid = c.oid AND i.indisreplident AND i.indisvalid
         AND k.place <= i.indnkeyatts AND a.attrelid = c.oid AND a.attnum = k.number),
    CASE WHEN c.relkind = 'p' THEN
        (SELECT json_agg(json_build_array(t.relid::pg_catalog.oid::int8, pg_catalog.pg_relation_filenode(t.relid)::int8,
                    (SELECT string_agg(h.inhparent::pg_catalog.oid || '.' || h.xmin, ' ' ORDER BY h.inhrelid::pg_catalog.oid)
                     FROM pg_catalog.pg_partition_ancestors(t.relid) AS a JOIN pg_catalog.pg_inherits h ON h.inhrelid = a.relid))
                 ORDER BY t.relid::pg_catalog.oid)
         FROM pg_catalog.pg_partition_tree(c.oid) AS t WHERE t.isleaf AND t.relid <> c.oid) END,
    (SELECT json_agg(json_build_array(b.oid::int8, b.xmin::text, coalesce(r.oid::int8, {by_schema}, 0)) ORDER BY b.oid)
     FROM pg_catalog.pg_publication b
     LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = b.oid AND r.prrelid = c.oid WHERE b.pubname = ANY (p.names)),
    (SELECT json_agg(DISTINCT a.attname) FROM pg_catalog.pg_attribute a, json_array_elements(p.lists) AS l
     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
         AND CASE WHEN json_typeof(l->'listed') = 'null' THEN a.attgenerated = '' OR a.attgenerated::text = l->>'generated'
             ELSE a.attnum = ANY ((l->>'listed')::int2vector) END),
    coalesce(p.filtered, false), coalesce(p.whole, false), coalesce(p.inserts, false))
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL ({published}) AS p
WHERE c.relkind IN ('r', 'p') AND {which}
"""
# Which of our publications send a table under its own name, and what of it: pg_publication_tables for one table, since that view
# lists all of them for each that is looked up. A leaf is sent under its root's name, where that is published by the root.
_PUBLISHED = """
SELECT array_agg(b.pubname) AS names, json_agg(json_build_object('listed', {listed}, 'generated', {generated})) AS lists,
       bool_or({filter} IS NOT NULL) AS filtered, bool_or(b.pubname = ($1::text[])[1]) AS whole,
       bool_or(b.pubname = ($1::text[])[2]) AS inserts
FROM pg_catalog.pg_publication b
LEFT JOIN pg_catalog.pg_publication_rel r ON r.prpubid = b.oid AND r.prrelid = c.oid
WHERE b.pubname = ANY ($1::text[]) AND c.relpersistence = 'p' AND (b.puballtables OR r.oid IS NOT NULL OR {by_schema} IS NOT NULL)
    AND (c.relkind <> 'p' OR b.pubviaroot)
    AND NOT (c.relispartition AND b.pubviaroot AND (b.puballtables OR EXISTS (
        SELECT FROM pg_catalog.pg_partition_ancestors(c.oid) AS u
        WHERE u.relid <> c.oid AND (
            EXISTS (SELECT FROM pg_catalog.pg_publication_rel v WHERE v.prpubid = b.oid AND v.prrelid = u.relid)
            OR {above_by_schema}))))
"""
_ABOVE_BY_SCHEMA = """
EXISTS (SELECT FROM pg_catalog.pg_publication_namespace s JOIN pg_catalog.pg_class k ON k.oid = u.relid
        WHERE s.pnpubid = b.oid AND s.pnnspid = k.relnamespace)
"""
# What a type's values consist of, through domains, arrays, ranges and composites.
_PARTS = """
WITH RECURSIVE within (oid) AS (
    SELECT a.atttypid
    UNION
    SELECT inner_type.oid FROM within w JOIN pg_catalog.pg_type t ON t.oid = w.oid CROSS JOIN LATERAL (
        VALUES (t.typbasetype), (t.typelem)
        UNION ALL SELECT g.rngsubtype FROM pg_catalog.pg_range g WHERE t.oid = g.rngtypid OR t.oid = g.rngmultitypid
        UNION ALL SELECT m.atttypid FROM pg_catalog.pg_attribute m
                  WHERE t.typtype = 'c' AND m.attrelid = t.typrelid AND m.attnum > 0 AND NOT m.attisdropped) AS inner_type (oid)
    WHERE inner_type.oid >= 16384)
SELECT json_object_agg(part.place, part.text) FROM (
    SELECT 'enum ' || e.oid, e.enumlabel::text FROM within w JOIN pg_catalog.pg_enum e ON e.enumtypid = w.oid
    UNION ALL
    SELECT 'composite ' || w.oid, string_agg(m.attnum || ' ' || m.atttypid, ', ' ORDER BY m.attnum)
    FROM within w JOIN pg_catalog.pg_type t ON t.oid = w.oid AND t.typtype = 'c'
    JOIN pg_catalog.pg_attribute m ON m.attrelid = t.typrelid AND m.attnum > 0 AND NOT m.attisdropped GROUP BY w.oid
) AS part (place, text)
"""
_BY_SCHEMA = """
(SELECT s.oid::int8 FROM pg_catalog.pg_publication_namespace s WHERE s.pnpubid = b.oid AND s.pnnspid = c.relnamespace)
"""


def tables(which: str, server_version: int) -> str:
    """The query for the tables that the condition `which` takes, on `pg_class c` and `pg_namespace n`. $1 are the names of our
    publications, $2 is for `which`."""
    lists = server_version >= 150000
    by_schema = _BY_SCHEMA if lists else "NULL"
    published = _PUBLISHED.format(
        listed="r.prattrs::text" if lists else "NULL",
        generated="b.pubgencols" if server_version >= 180000 else "NULL",
        filter="r.prqual" if lists else "NULL",
        by_schema=by_schema,
        above_by_schema=_ABOVE_BY_SCHEMA if lists else "false",
    )
    return _TABLES.format(which=which, published=published, by_schema=by_schema, parts=_PARTS)
