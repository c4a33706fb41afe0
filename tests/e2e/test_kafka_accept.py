"""A pipeline on Kafka, put together from the pages alone: the file of kafka.md, a registry of registry.md, a sink that is added as
tables.md says, the replays of replay.md, and the connector of read-topics.md beside them. At the end all are equal."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any

import psycopg2
import pytest
from ruamel.yaml import YAML

from tests.e2e.foreign import JdbcSinks
from tests.e2e.pipeline import Pipeline, until
from tests.e2e.workload import differences
from tests.servers import Database, execute
from tests.servers.connect import Connect, avro
from tests.servers.kafka import Kafka
from tests.servers.registry import SchemaRegistry

PAGES = Path(__file__).parents[2] / "docs" / "how-to"
WITHIN_S = 60

SCHEMA = """
CREATE TABLE customers (id int PRIMARY KEY, name text NOT NULL, since date, data jsonb);
CREATE TABLE orders (id int PRIMARY KEY, customer int NOT NULL, total numeric(12, 2), note text, at timestamptz NOT NULL DEFAULT now());
CREATE TABLE orders_items (order_id int, line int, product text, count int, PRIMARY KEY (order_id, line));
INSERT INTO customers SELECT i, 'c' || i, date '2024-01-01' + i, json_build_object('i', i) FROM generate_series(1, 200) i;
INSERT INTO orders SELECT i, i % 200 + 1, i * 1.25, NULL FROM generate_series(1, 2000) i;
INSERT INTO orders_items SELECT i, 1, 'p', i % 7 FROM generate_series(1, 2000) i;
"""
CHANGES = """
UPDATE orders SET total = -total, note = 'turned' WHERE id % 5 = {};
DELETE FROM orders_items WHERE order_id % 11 = {}; INSERT INTO orders_items SELECT i, 2, 'q', NULL FROM generate_series(1, 50) i
    ON CONFLICT (order_id, line) DO UPDATE SET count = {};
UPDATE customers SET id = id + 1000 WHERE id = {} + 1; UPDATE customers SET data = NULL WHERE id % 13 = {};
"""
TABLES, ORDERS = ("customers", "orders", "orders_items"), ("orders", "orders_items")


def block(page: str, language: str, word: str) -> str:
    """The page's first block in this language that holds the word."""
    found = re.findall(
        rf"^```{language}\n(.*?)```", (PAGES / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    return str(next(text for text in found if word in text))


@pytest.fixture
def sinks(connect: Connect) -> Iterator[JdbcSinks]:
    with closing(JdbcSinks(connect)) as made:
        yield made


class Accept:
    """The documented pipeline under another name, on our servers."""

    def __init__(
        self, folder: Path, source: Database, targets: dict[str, Database], kafka: Kafka, registry: str
    ) -> None:
        self.source, self.targets = source, targets
        page = YAML(typ="safe").load(block("kafka.md", "yaml", "pipeline: shop"))
        assert (page.pop("pipeline"), page["log"]) == ("shop", "kafka://broker1:9092,broker2:9092")
        urls = {name: targets[name].grant_sink() for name in page["sinks"]}
        configured = {
            name: {**(sink if isinstance(sink, dict) else {}), "url": urls[name]}
            for name, sink in page["sinks"].items()
        }
        page |= {"source": source.grant_source(), "log": f"kafka://{kafka.bootstrap}", "sinks": configured}
        external = YAML(typ="safe").load(block("registry.md", "yaml", "registry:"))["registry"]
        assert set(external) == {"url", "options"}
        self.name = f"shop-{token_hex(4)}"
        self.pipeline = Pipeline(
            folder,
            self.name,
            page.pop("source"),
            page.pop("sinks"),
            page.pop("log"),
            registry={"url": registry},
            **page,
        )

    def cdc(self, words: str, **more: Any) -> str:
        """A command as a page writes it."""
        verb = words.replace("shop.yaml", str(self.pipeline.file)).split()
        assert verb.pop(0) == "cdc"
        return str(self.pipeline.cdc(*verb, **more).stdout)

    def equal(self) -> bool:
        return not any(self.differences().values())

    def differences(self) -> dict[str, list[str]]:
        found = {}
        for name, target in self.targets.items():
            pairs = [(table, table) for table in (ORDERS if name == "reporting" else TABLES)]
            try:
                found[name] = differences(self.source.admin_url, target.admin_url, pairs)
            except (psycopg2.errors.UndefinedTable, psycopg2.errors.UndefinedColumn) as error:
                found[name] = [str(error)]
        return found

    def arrives(self) -> None:
        try:
            until(self.equal, WITHIN_S, "all equal", alive=self.pipeline.alive)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.differences()}") from None


@pytest.mark.timeout(300)
def test_by_the_pages_alone(
    database: Database,
    make_database: Callable[[], Database],
    kafka: Kafka,
    registry: SchemaRegistry,
    sinks: JdbcSinks,
    tmp_path: Path,
) -> None:
    database.execute(SCHEMA)
    targets = {name: make_database() for name in ("warehouse", "reporting")}
    accept = Accept(tmp_path, database, targets, kafka, registry.url)
    with closing(accept.pipeline) as pipeline:
        try:
            walk(accept, pipeline, make_database, registry, sinks)
        finally:
            pipeline.close()
            sinks.close()
            kafka.drop_topics(accept.name)


def walk(
    accept: Accept,
    pipeline: Pipeline,
    make_database: Callable[[], Database],
    registry: SchemaRegistry,
    sinks: JdbcSinks,
) -> None:
    database, targets = accept.source, accept.targets
    # Capture and two sinks as services.
    accept.cdc("cdc check shop.yaml")
    pipeline.start_all()
    accept.arrives()
    change(database, 0)
    accept.arrives()

    # Debezium's JDBC sink beside them.
    targets["jdbc"] = make_database()
    sinks.put(f"{accept.name}-jdbc", rf"{accept.name}\.public\..*", targets["jdbc"], avro(registry))
    change(database, 1)
    accept.arrives()
    sinks.check()

    # A third sink, later.
    events = loads(accept)
    config = json.loads(pipeline.file.read_text(encoding="utf-8"))
    targets["third"] = make_database()
    config["sinks"]["third"] = targets["third"].grant_sink()
    pipeline.file.write_text(json.dumps(config), encoding="utf-8")
    assert pipeline.terminate("capture") == 0
    pipeline.start("capture")
    pipeline.start("third")
    accept.arrives()
    assert loads(accept) == events

    # A target as of a past time, while everything goes on.
    before = time_of(database)
    rows = {table: execute(database.admin_url, f"SELECT r::text FROM {table} r ORDER BY 1") for table in TABLES}
    change(database, 2)
    (command,) = (line for line in block("replay.md", "sh", "--into").splitlines() if "--into" in line)
    command = re.sub(r"--to \S+", f"--to time:{before}", command.partition("#")[0])
    said = json.loads(accept.cdc(f"{command} --yes --json"))["result"]
    assert said["reached"]
    for table in TABLES:
        found = execute(targets["warehouse"].admin_url, f"SELECT r::text FROM before_it.{table} r ORDER BY 1")
        assert found == rows[table], table

    # One that somebody has damaged.
    execute(targets["warehouse"].admin_url, "DELETE FROM orders WHERE id < 100; UPDATE customers SET name = 'wrong'")
    assert not accept.equal()
    accept.cdc("cdc replay warehouse shop.yaml --yes")
    change(database, 3)
    accept.arrives()
    sinks.check()
    status = json.loads(accept.cdc("cdc status shop.yaml --json"))["result"]
    assert not status["problems"]


def change(database: Database, number: int) -> None:
    database.execute(CHANGES.replace("{}", str(number)))


def time_of(database: Database) -> str:
    """Now, as the source has it, and a moment after it and before what comes."""
    time.sleep(0.02)
    ((now,),) = database.execute("SELECT clock_timestamp()")
    time.sleep(0.02)
    assert isinstance(now, datetime)
    return now.astimezone(UTC).isoformat().replace("+00:00", "Z")


def loads(accept: Accept) -> list[Any]:
    """How often each table was loaded, as `cdc status` has it."""
    tables = json.loads(accept.cdc("cdc status shop.yaml --json"))["result"]["tables"]
    return sorted((table["table"], table["generation"]) for table in tables)
