"""The topics that `cdc capture` writes, read by Debezium's JDBC sink unchanged: with a real registry, and with ours alone.

What that sink cannot take is written out here, and in docs/how-to/read-topics.md; everything else is equal, row for row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import psycopg2
import pytest

from cdc.avro import UNAVAILABLE
from tests.e2e.foreign import KEYLESS, PAGE, JdbcSinks, events, own_registry
from tests.e2e.pipeline import Pipeline, until
from tests.e2e.workload import differences
from tests.servers import Database, execute
from tests.servers.connect import Connect, ConnectorFailed, avro
from tests.servers.kafka import Kafka
from tests.servers.registry import SchemaRegistry

WITHIN_S = 60

SCHEMA = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy, very'); CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN price AS numeric(8, 2);
CREATE TABLE kinds (id bigint PRIMARY KEY, i2 smallint, i4 int, i8 bigint, yes boolean, n52 numeric(5,2), n numeric, f4 real,
    f8 double precision, t text, vc varchar(20), ch char(5), by_ bytea, d date, t3 time(3), t6 time, ts3 timestamp(3), ts6 timestamp,
    tz timestamptz, u uuid, j json, jb jsonb, e mood, dom positive, pr price, ta text[], ia int[]);
INSERT INTO kinds VALUES (1, -2, 4, 9007199254740993, true, -1.25, 3.14159, 1.1, 0.1, 'ä', 'vc', 'ch', '\\x0102ff', '2024-02-03',
    '01:02:03.456', '01:02:03.456789', '2024-02-03 04:05:06.789', '1969-12-31 23:59:59.999999', '2024-02-03 04:05:06.789012+02',
    'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"b" : 1,  "a": 1.50}', '{"b": [1]}', 'happy, very', 5, 9.5, '{a,b}', '{1,2}'),
    (2, 32767, -2147483648, -9223372036854775808, false, 999.99, -0.001, '-Infinity', 'NaN', '', '''"\\', '', '', '0044-03-15 BC',
    '23:59:59.999', '00:00', '1500-01-01', '0044-03-15 12:00 BC', '0044-03-15 12:00+00 BC', '00000000-0000-0000-0000-000000000000',
    'null', '"x"', 'sad', 1, -99999.99, '{}', '{1,NULL,4}');
INSERT INTO kinds (id) VALUES (3);
CREATE TABLE documents (id int PRIMARY KEY, n int, big text, doc jsonb);
ALTER TABLE documents REPLICA IDENTITY FULL; ALTER TABLE documents ALTER big SET STORAGE EXTERNAL, ALTER doc SET STORAGE EXTERNAL;
INSERT INTO documents SELECT i, i, repeat('z', 5000), to_json(repeat('y', 5000)) FROM generate_series(1, 3) i;
CREATE TABLE wide (a uuid, "Weird Name" numeric(8,3), "select" text, z timestamptz, v text,
    PRIMARY KEY (a, "Weird Name", "select", z));
INSERT INTO wide SELECT 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', i / 2.0, 'x''y', '2024-02-03 04:05:06.7+00', 'v'
    FROM generate_series(1, 4) i;
CREATE TABLE lines (t text); ALTER TABLE lines REPLICA IDENTITY FULL; INSERT INTO lines VALUES ('a'), ('a'), (NULL);
"""
CHANGES = """
INSERT INTO kinds (id, i4, t, f4, f8, n) VALUES (4, 1, 'new', 'NaN', 'Infinity', 0), (5, 2, 'gone', 0, 0, 1);
UPDATE kinds SET t = 'it''s', n52 = NULL, yes = NULL, jb = NULL WHERE id = 1;
UPDATE kinds SET i4 = 0, u = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', e = 'ok', ta = '{"x y",NULL}' WHERE id = 3;
DELETE FROM kinds WHERE id = 5;
UPDATE kinds SET id = 40 WHERE id = 4;
UPDATE documents SET n = 10 WHERE id = 1;
UPDATE documents SET id = 20 WHERE id = 2;
UPDATE wide SET v = NULL WHERE "Weird Name" = 1; DELETE FROM wide WHERE "Weird Name" = 2;
UPDATE wide SET "select" = '' WHERE "Weird Name" = 0.5;
INSERT INTO lines VALUES ('b');
"""
TABLES = ["kinds", "documents", "wide", "lines"]


@pytest.fixture
def sinks(connect: Connect) -> Iterator[JdbcSinks]:
    with closing(JdbcSinks(connect)) as made:
        yield made


@pytest.fixture
def make(database: Database, kafka: Kafka, tmp_path: Path) -> Iterator[Callable[..., Pipeline]]:
    """A pipeline on the session's broker, whose name is no name in Avro."""
    made: list[Pipeline] = []

    def making(**more: Any) -> Pipeline:
        source = {"url": database.grant_source(), "heartbeat_s": 0.3, "messages": ["app"]}
        log = {"url": f"kafka://{kafka.bootstrap}"}
        made.append(Pipeline(tmp_path, f"for-{token_hex(4)}", source, {}, log, **more))
        return made[-1]

    yield making
    for pipeline in made:
        pipeline.close()
        kafka.drop_topics(pipeline.name)


def equal(source: Database, target: Database, tables: list[str]) -> bool:
    """`"Weird Name"` is called as in Avro there, which the comparison of whole rows does not see."""
    with suppress(psycopg2.errors.UndefinedTable, psycopg2.errors.UndefinedColumn):
        return not differences(source.admin_url, target.admin_url, [(name, name) for name in tables])
    return False


def arrives(source: Database, target: Database, sinks: JdbcSinks, pipeline: Pipeline, tables: list[str]) -> None:
    def alive() -> None:
        sinks.check()
        pipeline.alive()

    try:
        until(lambda: equal(source, target, tables), WITHIN_S, "equal tables", alive=alive)
    except AssertionError as error:
        found = differences(source.admin_url, target.admin_url, [(name, name) for name in tables])
        raise AssertionError(f"{error}: {found}") from None


@pytest.mark.parametrize("whose", ["apicurio", "ours"])
@pytest.mark.timeout(240)
def test_the_jdbc_sinks_tables_equal_the_source(
    whose: str,
    request: pytest.FixtureRequest,
    make: Callable[..., Pipeline],
    sinks: JdbcSinks,
    database: Database,
    target: Database,
    kafka: Kafka,
) -> None:
    database.execute(SCHEMA)
    if whose == "apicurio":
        external: SchemaRegistry = request.getfixturevalue("registry")
        pipeline = make(registry={"url": external.url})
        pipeline.start("capture")
        url, converter = external.url, avro(external)
    else:
        pipeline = make()
        pipeline.start("capture")
        url = own_registry(pipeline)
        converter = avro(url)
    name = pipeline.name
    sinks.put(f"{name}-keyed", rf"{name}\.public\.(?!lines$).*", target, converter)
    sinks.put(f"{name}-keyless", rf"{name}\.public\.lines", target, converter, KEYLESS)
    arrives(database, target, sinks, pipeline, TABLES)

    database.execute(CHANGES)
    arrives(database, target, sinks, pipeline, TABLES)
    database.execute("ALTER TABLE kinds ADD more text; INSERT INTO kinds (id, more) VALUES (6, 'm')")
    database.execute("BEGIN; TRUNCATE documents; INSERT INTO documents VALUES (9, 9, 'after', '{}'); COMMIT")
    database.execute("SELECT pg_logical_emit_message(true, 'app', 'content')")
    arrives(database, target, sinks, pipeline, TABLES)

    # Whoever reads by Confluent's API sees the same events, in the order of commits.
    topic = f"{name}.public.documents"
    found = [(value["op"], key) for key, value in events(kafka, topic, url, 8)]
    assert sorted(found[:3], key=str) == [("r", {"id": number}) for number in (1, 2, 3)]
    rest = [("u", {"id": 1}), ("d", {"id": 2}), ("c", {"id": 20}), ("t", None), ("c", {"id": 9})]
    assert found[3:] == rest
    ((key, message),) = events(kafka, f"{name}.message", url, 1)
    assert (key, message["op"], message["message"]) == (
        {"prefix": "app"},
        "m",
        {"prefix": "app", "content": b"content"},
    )


# What: the table's columns, its row, what is changed later, what the sink's stack says when it stops, or else the row that it makes.
LIMITS: dict[str, tuple[str, str, str, str | None, str]] = {
    "NaN, Infinity in `numeric`": ("n numeric(5,2)", "'NaN'", "", "Zero length BigInteger", ""),
    "Infinity in `numeric`": ("n numeric", "'Infinity'", "", "Zero length BigInteger", ""),
    "`numeric` without precision": ("n numeric", "12345678901234567890.5", "", None, "(1,1.2345678901234567e+19)"),
    "infinite `date`": ("n date", "'infinity'", "", "date out of range", ""),
    "infinite `timestamp`": ("n timestamp", "'infinity'", "", None, '(1,"294247-01-10 04:00:54.775807")'),
    "24:00": ("n time", "'24:00'", "", "DateTimeException", ""),
    "placeholder": ("n text, m int", "repeat('z', 9000)", "UPDATE {} SET m = 1", None, f"(1,{UNAVAILABLE},1)"),
    "such as `jsonb`": ("n jsonb, m int", "to_json(repeat('z', 9000))", "UPDATE {} SET m = 1", "invalid input syntax", ""),
}  # fmt: skip


def test_the_page_tells_the_limits() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for what in LIMITS:
        assert what in text, what


@pytest.mark.timeout(240)
def test_what_the_jdbc_sink_cannot_take(
    make: Callable[..., Pipeline], sinks: JdbcSinks, database: Database, target: Database
) -> None:
    """What stops it, or becomes something else, so that the page says what is so."""
    for number, (columns, value, *_) in enumerate(LIMITS.values()):
        database.execute(f"CREATE TABLE limit{number} (id int PRIMARY KEY, {columns})")
        if "m int" in columns:
            database.execute(f"ALTER TABLE limit{number} ALTER n SET STORAGE EXTERNAL")
        database.execute(f"INSERT INTO limit{number} VALUES (1, {value})")
    pipeline = make()
    pipeline.start("capture")
    converter = avro(own_registry(pipeline))
    for number in range(len(LIMITS)):
        sinks.put(f"{pipeline.name}-{number}", rf"{pipeline.name}\.public\.limit{number}", target, converter)
    for number, (_, _, later, _, _) in enumerate(LIMITS.values()):
        if later:
            until(
                lambda number=number: rows(target, f"limit{number}"), WITHIN_S, f"limit{number}", alive=pipeline.alive
            )
            database.execute(later.replace("{}", f"limit{number}"))
    for number, (what, (_, _, _, stack, row)) in enumerate(LIMITS.items()):
        name = f"{pipeline.name}-{number}"
        if stack:
            assert stack in until(lambda name=name: failure(sinks, name), WITHIN_S, what), what
        else:
            until(lambda number=number, row=row: rows(target, f"limit{number}") == [row], WITHIN_S, what)


def rows(target: Database, table: str) -> list[str]:
    with suppress(psycopg2.errors.UndefinedTable):
        return [text for (text,) in execute(target.admin_url, f"SELECT r::text FROM {table} r")]
    return []


def failure(sinks: JdbcSinks, name: str) -> str:
    """The stack with which it has failed; empty while it runs."""
    try:
        sinks.connect.check(name)
    except ConnectorFailed as error:
        return str(error)
    return ""
