"""The test servers around the broker: the schema registry, and Debezium in a Connect worker."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from secrets import token_hex
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

import pytest

from tests.servers import Database, execute
from tests.servers.connect import Connect, ConnectorFailed, avro
from tests.servers.kafka import Kafka
from tests.servers.registry import SchemaRegistry

JDBC_SINK = "io.debezium.connector.jdbc.JdbcSinkConnector"
POSTGRES_SOURCE = "io.debezium.connector.postgresql.PostgresConnector"


@pytest.fixture
def name() -> str:
    return f"servers_{token_hex(4)}"  # Also a namespace in Avro, which has no hyphens.


def ask(url: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/vnd.schemaregistry.v1+json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_a_registry_keeps_a_schema_and_nothing_over_a_restart(private_registry: Callable[[], SchemaRegistry]) -> None:
    registry = private_registry()
    schema = json.dumps({"type": "record", "name": "R", "fields": [{"name": "a", "type": "int"}]})
    stored = ask(f"{registry.url}/subjects/s-value/versions", {"schema": schema})
    assert json.loads(ask(f"{registry.url}/schemas/ids/{stored['id']}")["schema"]) == json.loads(schema)
    registry.stop()
    with pytest.raises(URLError):
        ask(f"{registry.url}/subjects")
    registry.start()
    with pytest.raises(HTTPError, match="404"):
        ask(f"{registry.url}/subjects/s-value/versions/latest")


def test_connect_has_debezium_and_refuses_what_it_does_not_have(connect: Connect, name: str) -> None:
    assert {JDBC_SINK, POSTGRES_SOURCE} <= set(connect.plugins())
    with pytest.raises(ConnectorFailed, match="NoSuchConnector"):
        connect.put(name, {"connector.class": "NoSuchConnector"})


def test_a_failed_task_is_an_error_with_its_stack(connect: Connect, name: str) -> None:
    with pytest.raises(ConnectorFailed, match=r"JdbcSinkConnectorTask\.start"):
        connect.put(
            name, {"connector.class": JDBC_SINK, "topics": name, "connection.url": "jdbc:postgresql://127.0.0.1:1/x"}
        )
    connect.delete(name)


@pytest.fixture
def replicated(
    connect: Connect, kafka: Kafka, registry: SchemaRegistry, database: Database, target: Database, name: str
) -> Iterator[Database]:
    """`target`, to which Debezium replicates the table `t` of `database`."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY, a numeric(12,2), b timestamptz)")
    database.execute("INSERT INTO t VALUES (1, 1.50, '2024-02-29 12:00:00.123456Z')")
    database.execute("CREATE PUBLICATION debezium FOR TABLE t")
    at = urlsplit(database.server.admin_url)
    for topic in (f"{name}.public.t", f"__debezium-heartbeat.{name}"):
        kafka.make_topic(topic)
    connect.put(
        "source",
        {
            "connector.class": POSTGRES_SOURCE,
            "database.hostname": str(at.hostname),
            "database.port": str(at.port),
            "database.user": str(at.username),
            "database.password": at.password or "",
            "database.dbname": database.name,
            "topic.prefix": name,
            "plugin.name": "pgoutput",
            "publication.name": "debezium",
            "publication.autocreate.mode": "disabled",
            "slot.name": name,
            "table.include.list": "public.t",
            "poll.interval.ms": "50",
            **avro(registry),
        },
    )
    connect.put(
        "sink",
        {
            "connector.class": JDBC_SINK,
            "topics": f"{name}.public.t",
            "connection.url": f"jdbc:postgresql://{at.hostname}:{at.port}/{target.name}",
            "connection.username": str(at.username),
            "connection.password": at.password or "",
            "insert.mode": "upsert",
            "delete.enabled": "true",
            "primary.key.mode": "record_key",
            "schema.evolution": "basic",
            "collection.name.format": "t",
            **avro(registry),
        },
    )
    yield target
    for connector in ("sink", "source"):
        with suppress(ConnectorFailed):
            connect.delete(connector)
    kafka.drop_topics(name)


def test_debezium_replicates_a_table(connect: Connect, database: Database, replicated: Database) -> None:
    database.execute("INSERT INTO t VALUES (2, NULL, NULL)")
    database.execute("UPDATE t SET a = -0.01 WHERE id = 1")
    wanted = database.execute("SELECT * FROM t ORDER BY id")
    deadline = time.monotonic() + 30
    found: list[tuple[Any, ...]] = []
    while found != wanted and time.monotonic() < deadline:
        for connector in ("source", "sink"):
            connect.check(connector)
        time.sleep(0.2)
        if execute(replicated.admin_url, "SELECT to_regclass('t')") != [(None,)]:
            found = execute(replicated.admin_url, "SELECT * FROM t ORDER BY id")
    assert found == wanted
