"""Tables with a column of every type through a whole pipeline: loaded, streamed, changed, found by their images, replayed.

Afterwards each column of each row has the same text at source and target, whether or not the target knows the source's types.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from tests.e2e.pipeline import until
from tests.e2e.scene import Make, Scene
from tests.integration.test_pg_wire import EXACT, EXTENDED, EXTENSIONS, OTHER, PRINTED, RARE, TYPES
from tests.servers import Database, execute, ident

Samples = dict[str, tuple[str, ...]]
STOCK: Samples = {**EXACT, **RARE, **PRINTED, **OTHER}
TABLES = ("keyed", "keyless", "renamed")


def tables(samples: Samples) -> str:
    """With a key, without one, and one whose key moves; big values of the last are not sent by every update."""
    listed = ", ".join(f"{ident(name)} {items[0]}" for name, items in samples.items())
    big = "".join(
        f" ALTER {ident(name)} SET STORAGE EXTERNAL," for name in ("txt", "ia", "ta", "hs") if name in samples
    )
    return (
        f"CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE keyed (id int PRIMARY KEY, {listed});"
        f"CREATE TABLE keyless (id int, {listed}); ALTER TABLE keyless REPLICA IDENTITY FULL;"
        f"CREATE TABLE renamed (id int PRIMARY KEY, {listed});"
        f"ALTER TABLE renamed{big} ALTER id SET NOT NULL;"
    )


def fill(url: str, samples: Samples, names: Sequence[str], first: int) -> int:
    """A row per sample, and one of nulls; the number of rows."""
    count = max(map(len, samples.values()))
    marks = ", ".join(["%s"] * (len(samples) + 1))
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        for name in names:
            for row in range(count):
                values = [items[row] if 0 < row < len(items) else None for items in samples.values()]
                cursor.execute(f"INSERT INTO {name} VALUES ({marks})", [first + row, *values])
    return count


def shown(url: str, table: str, expressions: dict[str, str]) -> list[dict[str, Any]]:
    """Each column's text, by row, sorted."""
    columns = ", ".join(f"format('%L', {expression})" for expression in expressions.values())  # by its output function
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SET extra_float_digits = 3")
        cursor.execute(f"SELECT id, {columns} FROM {table}")
        found = sorted(cursor.fetchall(), key=lambda row: (row[0], repr(row)))
    return [dict(zip(expressions, row[1:], strict=True)) for row in found]


def unequal(scene: Scene, samples: Samples, ours: dict[str, str]) -> list[str]:
    """Columns that differ; `ours` are expressions of the source where the target has another form."""
    theirs = {name: ident(name) for name in samples}
    found = []
    for table in TABLES:
        here = shown(scene.source.admin_url, table, theirs | ours)
        there = shown(scene.target.admin_url, table, theirs)
        found += [f"{table}: {len(here)} rows, not {len(there)}"] if len(here) != len(there) else []
        for one, other in zip(here, there, strict=False):
            found += [
                f"{table}.{name} {samples[name][0]}: {one[name]!r:.90} {other[name]!r:.90}"
                for name in samples
                if one[name] != other[name]
            ]
    return found


def through(scene: Scene, samples: Samples, ours: dict[str, str]) -> None:
    """Rows of all of `samples` at every stage; the two ends are equal after each."""

    def equal() -> None:
        scene.write()
        until(lambda: arrived(scene), 60, "the last row", every_s=0.2, alive=scene.pipeline.alive)
        assert unequal(scene, samples, ours) == []

    source = scene.source
    scene.pairs = [("public.t", "public.t")]
    count = fill(source.url, samples, TABLES, 0)
    scene.start()
    equal()
    fill(source.url, samples, TABLES, 1000)
    equal()
    source.execute(f"UPDATE keyed SET id = id + 5000 WHERE id < {count}")
    source.execute("UPDATE keyless SET id = -id WHERE id % 2 = 0")
    source.execute("DELETE FROM keyless WHERE id % 3 = 0; INSERT INTO keyless SELECT * FROM keyless WHERE id % 5 = 0")
    equal()
    source.execute("DELETE FROM keyless WHERE ctid IN (SELECT min(ctid) FROM keyless GROUP BY id HAVING count(*) > 1)")
    for name, big in (("txt", "repeat(md5('x'), 500)"), ("ia", "array_fill(7, ARRAY[2, 3000], ARRAY[0, 5])")):
        if name in samples:
            source.execute(f"UPDATE renamed SET {ident(name)} = {big} WHERE id % 2 = 0")
    source.execute(
        "UPDATE renamed SET id = -id WHERE id % 2 = 0; UPDATE renamed SET id = id - 1000000 WHERE id % 4 = 0"
    )
    equal()


def arrived(scene: Scene) -> bool:
    try:
        found = execute(scene.target.admin_url, "SELECT count(*) FROM t WHERE id = %s", [scene.next_id])
    except psycopg2.errors.UndefinedTable:
        return False
    return found == [(1,)]


def replayed(scene: Scene, samples: Samples, ours: dict[str, str]) -> None:
    """Replayed into fresh tables and exchanged, nothing is found to differ."""
    scene.pipeline.terminate("capture")
    before = execute(scene.target.admin_url, "SELECT count(*) FROM _cdc.bookmark")
    done = scene.pipeline.cdc("replay", "main", str(scene.pipeline.file), "--yes", "--json", timeout_s=120)
    result = json.loads(done.stdout)["result"]
    for table in result["tables"]:
        assert (table["updated"], table["inserted"], table["deleted"]) == (0, 0, 0), table
    assert execute(scene.target.admin_url, "SELECT count(*) FROM _cdc.bookmark") == before
    assert unequal(scene, samples, ours) == []


@pytest.mark.majors(18)
@pytest.mark.timeout(240)
def test_every_type_of_stock_postgres(make: Make, target: Database) -> None:
    """Enums, domains, composites and ranges of the source's own are there at the target, too."""
    target.execute(TYPES)
    scene = make(schema=TYPES + tables(STOCK))
    through(scene, STOCK, {})
    tail = scene.pipeline.cdc("tail", str(scene.pipeline.file), "public.keyed", "--json", "-n", "50")
    assert any('"ia": [[1, 2], [3, null]]' in line for line in tail.stdout.splitlines())
    replayed(scene, STOCK, {})


@pytest.mark.majors(16)
@pytest.mark.timeout(240)
def test_every_type_into_a_target_that_does_not_know_them(make: Make) -> None:
    scene = make(schema=TYPES + tables(STOCK))
    through(scene, STOCK, {})
    replayed(scene, STOCK, {})


@pytest.mark.majors(15)
@pytest.mark.timeout(240)
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_types_of_extensions_and_xml(make: Make, target: Database, known: bool) -> None:
    """hstore is json and ltree and citext are text where the target has no such extension."""
    if known:
        target.execute(EXTENDED)
    samples = {name: items for name, items in EXTENSIONS.items() if known or name != "hsa"}
    ours = {} if known else {name: f"hstore_to_json({ident(name)})" for name in ("hs", "dh")}
    scene = make(schema=EXTENDED + tables(samples))
    through(scene, samples, ours)
    replayed(scene, samples, ours)
