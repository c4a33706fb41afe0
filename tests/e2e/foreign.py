"""Readers of our topics that know nothing of us: Debezium's JDBC sink in Connect, and confluent-kafka's deserializer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

from tests.e2e.pipeline import Pipeline, until
from tests.servers import Database
from tests.servers.connect import Connect
from tests.servers.kafka import Kafka

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "read-topics.md"
KEYLESS = {"insert.mode": "insert", "delete.enabled": "false", "primary.key.mode": "none"}


def documented() -> dict[str, str]:
    """The connector of docs/how-to/read-topics.md, without its converters."""
    block = re.search(r"^```properties\n(name=.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert block
    config = dict(line.split("=", 1) for line in block[1].splitlines())
    return {name: value for name, value in config.items() if ".converter" not in name}


class JdbcSinks:
    """Debezium's JDBC sinks that a test starts; `close` takes them away."""

    def __init__(self, connect: Connect) -> None:
        self.connect = connect
        self.names: list[str] = []

    def put(
        self, name: str, topics: str, target: Database, converter: Mapping[str, str], more: Mapping[str, str] = {}
    ) -> None:
        """Start one as it is documented, on the topics that this expression matches as a whole."""
        url = urlsplit(target.admin_url)
        self.names.append(name)
        config = {
            **documented(),
            "topics.regex": topics,
            "connection.url": f"jdbc:postgresql://{url.hostname}:{url.port}/{target.name}",
            "connection.username": unquote(url.username or ""),
            "connection.password": unquote(url.password or ""),
            # A topic that is made later is seen after this, instead of 5 min.
            "consumer.override.metadata.max.age.ms": "1000",
        }
        self.connect.put(name, {**config, **converter, **more})

    def check(self) -> None:
        """Raise what one of them has failed with."""
        for name in self.names:
            self.connect.check(name)

    def close(self) -> None:
        while self.names:
            self.connect.delete(self.names.pop())


def address(pipeline: Pipeline, role: str = "capture") -> str:
    """Where a service of the pipeline listens, once it does: http://host:port."""
    found = re.compile(r'"address": "(http://[^"]+)"')
    until(lambda: found.search(pipeline.tail(role)), 30, f"{role} listens", alive=pipeline.alive)
    return str(found.findall(pipeline.tail(role))[-1])


def own_registry(pipeline: Pipeline) -> str:
    """The registry that the capture offers."""
    return f"{address(pipeline)}/registry"


def events(kafka: Kafka, topic: str, registry: str, count: int, timeout_s: float = 20.0) -> list[tuple[Any, Any]]:
    """Key and value of the first events of a topic, decoded by the schemas of a registry with Confluent's API."""
    consumer = Consumer({**kafka.client(), "group.id": topic, "isolation.level": "read_committed"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[tuple[Any, Any]] = []
    with closing(consumer), SchemaRegistryClient({"url": registry}) as client:
        read = AvroDeserializer(client)
        while len(found) < count:
            message = consumer.poll(timeout_s)
            assert message is not None, f"{len(found)} events in {topic}, not {count}"
            assert not message.error(), message.error()
            pair = (message.key(), MessageField.KEY), (message.value(), MessageField.VALUE)
            key, value = (read(data, SerializationContext(topic, side)) for data, side in pair)
            found.append((key, value))
    return found
