"""Schema changes at the source under a running pipeline: one of each kind by itself, and all of them at random under load and kills.

Nobody does anything: what changed without events is noticed and loaded anew (D9), and source and target end equal, row for row, in
the columns that both have. A column that was dropped at the source stays at the target.
"""

from __future__ import annotations

import random
import time
from typing import Any

import psycopg2
import pytest

from tests.e2e.ddl_workload import SCHEMA, DdlWorkload
from tests.e2e.killing import seeded
from tests.e2e.pipeline import until
from tests.e2e.scene import Make, Scene, alter
from tests.verification import FULL, record

WIDE = """
CREATE TABLE t (id int PRIMARY KEY, v text, n int NOT NULL DEFAULT 3, s varchar(20));
CREATE TABLE u (id int PRIMARY KEY, n int);
CREATE TABLE f (a int NOT NULL, b text);
ALTER TABLE f REPLICA IDENTITY FULL;
CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);
CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (1000000000);
INSERT INTO u SELECT i, i FROM generate_series(1, 40) i;
INSERT INTO t (id, v) SELECT i, 'row ' || i FROM generate_series(1, 50) i;
INSERT INTO f SELECT i, 'row ' || i FROM generate_series(1, 30) i;
INSERT INTO p SELECT i * 10, 'row ' || i FROM generate_series(1, 30) i;
"""


def settled(scene: Scene, timeout_s: float = 25.0) -> None:
    """Twice equal with a look at the catalog in between, and nothing left to do: no change that is not noticed yet."""
    for _ in range(2):
        arrived(scene, timeout_s)
        time.sleep(0.5)
    until(lambda: not busy(scene), timeout_s, "an end of the loads", alive=scene.pipeline.alive)
    arrived(scene, timeout_s)


def arrived(scene: Scene, timeout_s: float) -> None:
    until(lambda: common(scene), timeout_s, "equal tables", every_s=0.1, alive=scene.pipeline.alive)


def busy(scene: Scene) -> list[Any]:
    tables = scene.pipeline.status()["result"]["tables"]
    return [table for table in tables if table["state"] in ("queued", "loading")]


COLUMNS = """SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
             WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
             AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attname"""


def common(scene: Scene) -> bool:
    """Is every table of the source at the target, equal in the columns that the source has?"""
    return not differing(scene)


def differing(scene: Scene) -> list[str]:
    columns: dict[str, list[str]] = {}
    for table, name in alter(scene.source, COLUMNS):
        columns.setdefault(table, []).append(name)
    found = []
    for table, names in columns.items():
        listed = ", ".join(f'"{name}"::text' for name in names)
        text = f'SELECT {listed} FROM public."{table}"'
        try:
            here, there = (sorted(map(str, alter(side, text))) for side in (scene.source, scene.target))
        except psycopg2.Error as error:  # a table or column that is not there yet, or not any more
            found.append(f"{table}: {error}")
            continue
        if here != there:
            found.append(f"{table}: {len(here)} and {len(there)} rows; {sorted(set(here) ^ set(there))[:6]}")
    return found


KINDS = {
    "add column": "ALTER TABLE t ADD COLUMN w int; UPDATE t SET w = id WHERE id < 10",
    "add column with a default": "ALTER TABLE t ADD COLUMN w int DEFAULT 7; INSERT INTO t (id) VALUES (-1)",
    "add column with a volatile default": "ALTER TABLE t ADD COLUMN w text DEFAULT random()::text",
    "drop column": "ALTER TABLE t DROP COLUMN v; INSERT INTO t (id) VALUES (-1)",
    "drop and add column": "ALTER TABLE t DROP COLUMN v; ALTER TABLE t ADD COLUMN v text; INSERT INTO t (id, v) VALUES (-1, 'x')",
    "rename column": "ALTER TABLE t RENAME v TO w; UPDATE t SET w = 'new' WHERE id < 10",
    "rename column and back": """ALTER TABLE t RENAME v TO w; UPDATE t SET w = 'new' WHERE id < 10; ALTER TABLE t RENAME w TO v;
                                 UPDATE t SET v = 'newer' WHERE id < 5""",
    "exchange columns": """BEGIN; ALTER TABLE t RENAME v TO w; ALTER TABLE t RENAME s TO v; ALTER TABLE t RENAME w TO s; COMMIT;
                           UPDATE t SET v = 'new' WHERE id < 10""",
    "widen type": "ALTER TABLE t ALTER n TYPE bigint; UPDATE t SET n = 5000000000 WHERE id < 10",
    "retype": "ALTER TABLE t ALTER n TYPE text; UPDATE t SET n = 'many' WHERE id < 10",
    "retype the key": "ALTER TABLE t ALTER id TYPE bigint; UPDATE t SET id = id + 5000000000 WHERE id < 10",
    "wider varchar": "ALTER TABLE t ALTER s TYPE varchar(60); UPDATE t SET s = repeat('x', 50) WHERE id = 1",
    "default": "ALTER TABLE t ALTER v SET DEFAULT 'some'; INSERT INTO t (id) VALUES (-1)",
    "not null": """UPDATE t SET v = 'v' WHERE v IS NULL; ALTER TABLE t ALTER v SET NOT NULL; ALTER TABLE t ALTER n DROP NOT NULL;
                   INSERT INTO t VALUES (-1, 'v', NULL)""",
    "made again without key": """DROP TABLE t; CREATE TABLE t (x text); ALTER TABLE t REPLICA IDENTITY FULL;
                                 INSERT INTO t VALUES ('a'), ('a')""",
    "other key": "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id, n); UPDATE t SET n = 4 WHERE id < 10",
    "key added": "ALTER TABLE f ADD PRIMARY KEY (a); UPDATE f SET b = 'new' WHERE a < 10",
    "identity index": """ALTER TABLE t ADD CONSTRAINT by_n UNIQUE (id, n); ALTER TABLE t REPLICA IDENTITY USING INDEX by_n;
                         UPDATE t SET n = 4 WHERE id < 10; DELETE FROM t WHERE id = 12""",
    "key dropped": "ALTER TABLE t REPLICA IDENTITY FULL; ALTER TABLE t DROP CONSTRAINT t_pkey; UPDATE t SET v = 'new' WHERE id < 10",
    "identity full": "ALTER TABLE t REPLICA IDENTITY FULL; UPDATE t SET id = -id WHERE id < 10; DELETE FROM t WHERE id = 12",
    "generated column": "ALTER TABLE t ADD COLUMN g int GENERATED ALWAYS AS (id * 2) STORED; UPDATE t SET v = 'new' WHERE id < 10",
    "generated no more": """ALTER TABLE t ADD COLUMN g int GENERATED ALWAYS AS (id * 2) STORED; INSERT INTO t (id) VALUES (-1);
                            ALTER TABLE t ALTER g DROP EXPRESSION; UPDATE t SET g = 0 WHERE id < 10""",
    "identity column": "ALTER TABLE t ADD COLUMN g int GENERATED ALWAYS AS IDENTITY; INSERT INTO t (id) VALUES (-1)",
    "vacuum full": "VACUUM FULL t",
    "truncate": "TRUNCATE t; INSERT INTO t (id) VALUES (1)",
    "truncate two": "TRUNCATE t, f; INSERT INTO t (id) VALUES (1)",
    "made again": "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, x text, v int); INSERT INTO t VALUES (1, 'other', 2)",
    "new table": "CREATE TABLE fresh (id int PRIMARY KEY, v text); INSERT INTO fresh SELECT i, 'row' FROM generate_series(1, 9) i",
    "renamed table": "ALTER TABLE t RENAME TO t9; INSERT INTO t9 (id) VALUES (-1); UPDATE t9 SET v = 'new' WHERE id < 10",
    "exchanged tables": """BEGIN; ALTER TABLE t RENAME TO away; ALTER TABLE u RENAME TO t; ALTER TABLE away RENAME TO u; COMMIT;
                           INSERT INTO t VALUES (-1, 1); INSERT INTO u (id) VALUES (-1)""",
    "moved schema and back": """CREATE SCHEMA elsewhere; ALTER TABLE t SET SCHEMA elsewhere; INSERT INTO elsewhere.t (id) VALUES (-1);
                                ALTER TABLE elsewhere.t SET SCHEMA public; INSERT INTO t (id) VALUES (-2)""",
    "partition truncated": "TRUNCATE p1; INSERT INTO p VALUES (5, 'new')",
    "partition detached": "ALTER TABLE p DETACH PARTITION p1; INSERT INTO p1 VALUES (5, 'new')",
    "partition attached": """CREATE TABLE p3 (id int PRIMARY KEY, v text); INSERT INTO p3 VALUES (-5, 'x');
                             ALTER TABLE p ATTACH PARTITION p3 FOR VALUES FROM (-10) TO (0); UPDATE p SET v = 'y' WHERE id = -5""",
    "a captured table attached": """DELETE FROM u WHERE n IS NULL; CREATE TABLE q (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
                                    ALTER TABLE q ATTACH PARTITION u DEFAULT; INSERT INTO q VALUES (-1, 1)""",
    "partition dropped": "DROP TABLE p1",
}
AS_ADMIN = {
    "taken out of the publication": "ALTER PUBLICATION cdc_bad DROP TABLE t",
    "taken out and put back": "ALTER PUBLICATION cdc_bad DROP TABLE t; UPDATE t SET v = 'new'; ALTER PUBLICATION cdc_bad ADD TABLE t",
    "publishes less": "ALTER PUBLICATION cdc_bad SET (publish = 'insert'); UPDATE t SET v = 'untold'",
    "column list": "ALTER PUBLICATION cdc_bad SET TABLE t (id, v), u, f, p; UPDATE t SET v = 'new' WHERE id < 10",
    "row filter": """ALTER PUBLICATION cdc_bad SET TABLE t WHERE (id < 10), u, f, p; UPDATE t SET v = 'untold';
                     ALTER PUBLICATION cdc_bad SET TABLE t, u, f, p""",
}


@pytest.mark.parametrize("kind", [*KINDS, *AS_ADMIN])
def test_a_change_of_this_kind(make: Make, kind: str) -> None:
    scene = make(schema=WIDE)
    scene.live()
    if kind in KINDS:
        run(scene, KINDS[kind])
    else:
        for statement in AS_ADMIN[kind].split("; "):
            alter(scene.source, statement)
    if kind == "column list":
        scene.source.execute("ALTER TABLE t DROP COLUMN s, DROP COLUMN n")  # what is not sent is not compared
    try:
        settled(scene)
    except AssertionError as error:
        said = scene.pipeline.tail("capture", 3000), scene.pipeline.tail("main", 3000)
        raise AssertionError("\n".join([str(error), *differing(scene), *said])) from None


def run(scene: Scene, script: str) -> None:
    """Statement by statement, each its own transaction where it does not say otherwise."""
    parts, block = [part.strip() for part in script.split(";") if part.strip()], list[str]()
    for part in parts:
        block.append(part)
        if block[0] != "BEGIN" or part == "COMMIT":
            scene.source.execute("; ".join(block))
            block.clear()


def test_a_table_that_is_dropped(make: Make) -> None:
    """Its events end, everything else goes on, and what the target has of it stays; one of its name is a new table."""
    scene = make(schema=WIDE)
    scene.live()
    kept = sorted(alter(scene.target, "SELECT * FROM u"))
    scene.source.execute("INSERT INTO t (id) VALUES (-1); DROP TABLE u")
    settled(scene)
    until(lambda: states(scene)["public.u"] == "left", 10, "u to be left out")
    assert sorted(alter(scene.target, "SELECT * FROM u")) == kept
    scene.source.execute("CREATE TABLE u (id int PRIMARY KEY, m numeric); INSERT INTO u VALUES (1, 1)")
    settled(scene)
    assert states(scene)["public.u"] == "live"


def states(scene: Scene) -> dict[str, str]:
    return {table["table"]: table["state"] for table in scene.pipeline.status()["result"]["tables"]}


DDL_S = 3600.0 if FULL else 60.0


@pytest.mark.slow
@pytest.mark.timeout(DDL_S + 400)
def test_random_changes_under_load_and_kills_end_equal(make: Make) -> None:
    seed = seeded()
    rng, scene = random.Random(seed), make(schema=SCHEMA)
    workload = DdlWorkload(scene.source.url, scene.source.admin_url, "cdc_bad", seed)
    scene.pipeline.start_all()
    ends_s, kills = time.monotonic() + DDL_S, 0
    with workload.running():
        while time.monotonic() < ends_s:
            time.sleep(rng.choice((0.3, 1.0, 2.0, 4.0)))
            for role in rng.choice((["capture"], ["main"], ["capture", "main"])):
                scene.pipeline.kill(role)
                kills += 1
            scene.pipeline.start_all()
    print(f"kills {kills}, {dict(workload.done)}")
    try:
        settled(scene, 120)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}\n" + "\n".join([*differing(scene), *tails(scene)])) from None
    rows = sum(
        len(alter(scene.source, f'SELECT 1 FROM public."{table}"'))
        for table in {t for t, _ in alter(scene.source, COLUMNS)}
    )
    record(
        "Random schema changes under load, with kills",
        {"seed": seed, "kills": kills, **workload.done, "rows compared": rows},
    )


def tails(scene: Scene) -> list[str]:
    return [scene.pipeline.tail(role) for role in scene.pipeline.processes]
