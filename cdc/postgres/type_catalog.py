"""What the catalog says of columns' types: through domains, and into arrays and ranges.

The invariant: a type of an extension is known by the extension that it belongs to, never by its name alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from cdc.postgres.session import Session
from cdc.postgres.types import PgType

Json = Any
Typed = tuple[int, int]  # a type's oid and a column's typmod

# `within` holds the types asked for and all that they are made of. A true array is one that array_out prints: int2vector and
# point have elements too, and forms of their own.
_TYPES = """
WITH RECURSIVE asked AS (SELECT (e->>0)::oid AS oid, (e->>1)::int4 AS typmod FROM json_array_elements($1::json) AS e),
within (oid) AS (
    SELECT oid FROM asked
    UNION
    SELECT part.oid FROM within w JOIN pg_catalog.pg_type t ON t.oid = w.oid CROSS JOIN LATERAL (
        VALUES (t.typbasetype), (CASE WHEN t.typoutput = 'pg_catalog.array_out'::pg_catalog.regproc THEN t.typelem END)
        UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)) AS part (oid)
    WHERE part.oid <> 0)
SELECT json_build_array(
    (SELECT json_agg(json_build_array(oid::int8, typmod, pg_catalog.format_type(oid, typmod))) FROM asked),
    (SELECT json_object_agg(t.oid::int8, json_build_array(
        t.typtype, t.typbasetype::int8, t.typtypmod,
        CASE WHEN t.typoutput = 'pg_catalog.array_out'::pg_catalog.regproc THEN t.typelem::int8 END,
        (SELECT r.rngsubtype::int8 FROM pg_catalog.pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)),
        (SELECT json_agg(l.enumlabel ORDER BY l.enumsortorder) FROM pg_catalog.pg_enum l WHERE l.enumtypid = t.oid),
        (SELECT x.extname || '.' || t.typname FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension x ON x.oid = d.refobjid
         WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.objid = t.oid AND d.deptype = 'e'
             AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass),
        t.typsend <> 0, t.typdelim))
     FROM within JOIN pg_catalog.pg_type t USING (oid)))
"""


def types_of(session: Session, wanted: Iterable[Typed]) -> dict[Typed, tuple[PgType, str]]:
    """What the catalog says of these types, and their verbatim names. A type that it does not have is not in the answer."""
    asked = json.dumps([list(item) for item in set(wanted)])
    ((text,),) = session.run(_TYPES, [asked], doing="reading types")
    names, rows = json.loads(text or "")
    return {
        (oid, typmod): (_described(oid, typmod, rows), name) for oid, typmod, name in names or () if str(oid) in rows
    }


def _described(oid: int, typmod: int, rows: Mapping[str, Json]) -> PgType:
    first = rows[str(oid)][0]
    base_oid, base_typmod = oid, typmod
    while rows[str(base_oid)][0] == "d":
        _, base_oid, base_typmod, *_ = rows[str(base_oid)]
    typtype, _, _, element, subtype, labels, extension, sends, delimiter = rows[str(base_oid)]
    inner = None
    if element:
        inner = _described(element, base_typmod, rows)  # an array's modifier is that of its elements
    elif subtype:
        inner = _described(subtype, -1, rows)
    return PgType(
        oid,
        typmod,
        first,
        base_oid,
        base_typmod,
        tuple(labels or ()) if typtype == "e" else None,
        typtype,
        inner,
        extension,
        sends,
        delimiter,
    )
