"""Changes that leave no event, and settings of sessions (protocol D): right as it is, wrong with the rule off.

| rule | scenario | switched off by |
|---|---|---|
| D9 … | each change of rows without events | not comparing the table with what the log knows |
| D10 row_security | a policy that comes between the preflight and the chunk | the server's default |
| D10 … | settings of the role that change the text of values | the role's own, one setting at a time |
| D10 generated | a stored generated column, and an update | reading all of the table's columns in chunks |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cdc.errors import CdcError
from cdc.postgres import facts, session
from cdc.postgres.facts import Table
from tests.integration.protocol_rules import Off, Rule, Rules, World, equal, image, rows, swap, values
from tests.servers import Database

RULES = Rules()


@pytest.fixture
def world(make_database: Callable[[], Database], tmp_path: Path) -> Iterator[World]:
    with closing(World(make_database, tmp_path)) as world:
        yield world


# -------------------------------------------------------------------------------------------------------------------- D9
ALTERED = swap(facts, "altered", lambda _then, _now: None)
UNTOLD = {
    "leaf TRUNCATE": "TRUNCATE p1",
    "ATTACH": """CREATE TABLE p2 (id int PRIMARY KEY); INSERT INTO p2 VALUES (11);
                 ALTER TABLE p ATTACH PARTITION p2 FOR VALUES FROM (10) TO (20)""",
    "DETACH": "ALTER TABLE p DETACH PARTITION p1",
    "ADD COLUMN DEFAULT": "ALTER TABLE t ADD COLUMN c int DEFAULT 5",
    "type rewrite": "ALTER TABLE t ALTER v TYPE int USING v + 1",
    "made again": "DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (2, 2)",
}


def _untold(ddl: str) -> Callable[[World], bool]:
    def scenario(world: World) -> bool:
        database = world.database()
        database.execute(
            """CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
               CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); INSERT INTO t VALUES (1, 1); INSERT INTO p VALUES (1)"""
        )
        capture = world.capture(database, "t", "p", heartbeat_s=0.01)
        for table in ("t", "p"):
            capture.events += capture.rows(capture.chunk(f"public.{table}"))
        capture.until_mark()
        assert equal(capture, database, "t", "p")
        database.execute(ddl)
        capture.source._next_look = 0
        runs = capture.until_mark()
        return any(run.altered for run in runs) or equal(capture, database, "t", "p")

    return scenario


for name, ddl in UNTOLD.items():
    RULES(f"D9 {name}", ALTERED)(_untold(ddl))


# ------------------------------------------------------------------------------------------------------------------- D10
def _without(setting: str) -> Off:
    return swap(session, "SETTINGS", {name: value for name, value in session.SETTINGS.items() if name != setting})


@RULES("D10 row_security", _without("row_security"))
def d10_row_security(world: World) -> bool:
    """All rows or none, never the three that the policy shows."""
    database = world.database()
    database.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 10)")
    capture = world.capture(database)
    database.execute(
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; CREATE POLICY few ON t USING (id <= 3)"
    )
    try:
        read = capture.rows(capture.chunk("public.t"))
    except CdcError as stopped:
        return stopped.code == "CDC-PG-104"
    return len(read) == 10


ROLE = {
    "IntervalStyle": "iso_8601",
    "DateStyle": "German",
    "TimeZone": "Asia/Tokyo",
    "bytea_output": "escape",
    "extra_float_digits": "-5",
}


def d10_text(world: World) -> bool:
    """A row has one text, by chunk and by stream, whatever the role was given."""
    database = world.database()
    database.execute("CREATE TYPE whole AS (i interval, d daterange, z tstzrange, b bytea[], f float8[])")
    database.execute("CREATE TABLE t (id int PRIMARY KEY, w whole)")  # a composite travels as text
    url = database.grant_source()
    for name, value in ROLE.items():
        database.server.execute(f"ALTER ROLE \"{database.roles[-1]}\" SET {name} = '{value}'")
    capture = world.capture(database, url=url)
    row = "ROW('1 day', '[2026-01-02,2026-02-03)', '[2026-01-02 03:04+00,)', '{{\\\\x00ff}}', '{{1.2345678901234}}')"
    database.execute(f"INSERT INTO t VALUES (1, {row}); INSERT INTO t VALUES (2, {row})")
    expected = database.execute(
        """SET IntervalStyle = postgres; SET DateStyle = ISO; SET TimeZone = UTC; SET bytea_output = hex; SET extra_float_digits = 3;
           SELECT w::text FROM t"""
    )
    capture.until_mark()
    events = capture.events + capture.rows(capture.chunk("public.t"))
    return [text for event in events for _, *text in values(event.after)] == [list(row) for row in expected * 2]


for name in ROLE:
    RULES(f"D10 {name}", _without(name))(d10_text)


@RULES("D10 generated", swap(Table, "streamed", property(lambda table: table.attributes)))
def d10_generated(world: World) -> bool:
    """Before version 18 a generated column is in COPY alone. What a target has of a row is as the source has it."""
    database = world.database()
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v int, g int GENERATED ALWAYS AS (v * 2) STORED)")
    database.execute("INSERT INTO t VALUES (1, 1), (2, 2)")
    capture = world.capture(database)
    capture.events += capture.rows(capture.chunk("public.t"))
    database.execute("UPDATE t SET v = 5 WHERE id = 1")
    capture.until_mark()
    found, there = image(capture.events, "t"), rows(database, "t")
    return len(found) == 2 and all(row.items() <= whole.items() for row, whole in zip(found, there, strict=True))


@pytest.mark.parametrize(("rule", "upheld"), RULES.cases())
def test_rule(rule: Rule, upheld: bool, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    if not upheld:
        rule.off(monkeypatch)
    assert rule.scenario(world) is upheld
