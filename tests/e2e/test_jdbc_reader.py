"""Debezium's JDBC sink, configured as docs/how-to/read-topics.md says, beside a sink of ours: both targets equal the source."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import unquote, urlsplit

from psycopg2 import errors

from tests.e2e.pipeline import Pipeline
from tests.servers import Database, execute
from tests.servers.connect import Connect
from tests.servers.kafka import Kafka
from tests.servers.registry import SchemaRegistry

PAGE = Path(__file__).parents[2] / "docs/how-to/read-topics.md"
WITHIN_S = 90
ROWS = "SELECT id, name, price, weight, active, made, born, payload, raw FROM {} ORDER BY id"
TABLE = """CREATE TABLE item (id bigint PRIMARY KEY, name text NOT NULL, price numeric(12, 2), weight double precision,
    active boolean, made timestamptz, born date, payload jsonb, raw bytea)"""
ROW = """'item ' || n, n * 1.25, n / 3.0, n % 2 = 0, now() - n * interval '1 hour', date '2020-01-01' + n,
    json_build_object('n', n), '\\x00ff'"""


def documented() -> dict[str, str]:
    """The page's connector: its settings, with Apicurio's converter in place of Confluent's."""
    connector, converters = (
        dict(line.split("=", 1) for line in block.splitlines())
        for block in re.findall(r"```properties\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    )
    return {name: value for name, value in connector.items() if ".converter" not in name} | converters


def settled(query: str, url: str, expected: list[tuple[Any, ...]], check: Callable[[], None] = lambda: None) -> None:
    """The query gives this, soon."""
    deadline = time.monotonic() + WITHIN_S
    found: Any = None
    while time.monotonic() < deadline:
        check()
        try:
            found = execute(url, query)
        except (errors.UndefinedTable, errors.InvalidSchemaName) as error:  # nobody has made it yet
            found = error
        if found == expected:
            return
        time.sleep(0.3)
    differ = (
        [pair for pair in zip(found, expected, strict=False) if pair[0] != pair[1]]
        if isinstance(found, list)
        else found
    )
    raise AssertionError(f"not equal after {WITHIN_S} s: {differ}")


def test_the_documented_connector_builds_the_same_table(
    connect: Connect,
    kafka: Kafka,
    registry: SchemaRegistry,
    database: Database,
    target: Database,
    cdc_role: str,
    sink_role: str,
    tmp_path: Path,
) -> None:
    name = f"jdbc_{token_hex(4)}"
    database.execute(TABLE)
    database.execute(f"INSERT INTO item SELECT n, {ROW} FROM generate_series(1, 500) n")
    at = urlsplit(target.server.admin_url)
    theirs = documented() | {
        "name": name,
        "topics.regex": documented()["topics.regex"].replace("shop", name),
        "connection.url": f"jdbc:postgresql://{at.hostname}:{at.port}/{target.name}",
        "connection.username": unquote(str(at.username)),
        "connection.password": at.password or "",
        "key.converter.apicurio.registry.url": registry.native_url,
        "value.converter.apicurio.registry.url": registry.native_url,
    }
    ours = {"warehouse": {"url": sink_role, "rename": {"public.(.*)": "ours.\\1"}}}
    pipeline = Pipeline(
        tmp_path, name, cdc_role, ours, f"kafka://{kafka.bootstrap}", tables=["public.item"], registry=registry.url
    )
    with closing(pipeline):
        pipeline.start_all()
        settled("SELECT count(*) FROM ours.item", sink_role, [(500,)])
        connect.put(name, theirs)
        try:
            database.execute(f"INSERT INTO item SELECT n, {ROW} FROM generate_series(501, 600) n")
            database.execute(
                "UPDATE item SET price = -price, name = name || ' – sold', payload = NULL WHERE id % 7 = 0"
            )
            database.execute("DELETE FROM item WHERE id % 10 = 0")
            database.execute("UPDATE item SET id = id + 10000 WHERE id % 11 = 0")
            expected = database.execute(ROWS.format("item"))
            settled(ROWS.format("ours.item"), target.admin_url, expected)
            settled(ROWS.format("item"), target.admin_url, expected, lambda: connect.check(name))
        finally:
            connect.delete(name)
    kafka.drop_topics(f"{name}.")
