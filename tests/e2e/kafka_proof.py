"""A Kafka log read with nothing of ours but its documented layout: is every committed record where a checkpoint says, once?

A raw consumer that reads committed records, JSON, and fastavro.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import fastavro
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from tests.servers.kafka import Kafka, KafkaCluster

Schema = Any


class Proof(NamedTuple):
    """What was read and found right. `orphans` are committed records that no checkpoint names (protocol A2)."""

    checkpoints: int
    records: int
    orphans: int


def prove(kafka: Kafka | KafkaCluster, pipeline: str) -> Proof:
    """Asserts that ranges hold each of their records, in order, that no two of them meet, and that `source.sequence` grows over the
    whole log, so that nothing is in it twice."""
    schemas = {
        record["id"]: fastavro.parse_schema(plain(record["schema"]))
        for record in (json.loads(message.value() or b"") for message in committed(kafka, f"{pipeline}.schemas"))
    }
    checkpoints, topics = [], dict[str, dict[str, Any]]()
    for message in committed(kafka, f"{pipeline}.checkpoints"):
        data = json.loads(message.value() or b"")
        if message.key() == b"checkpoint":
            checkpoints.append(data)
        elif message.key() == b"topic":
            topics[data["table"]] = data
    data = {
        (table, partition): {message.offset() or 0: message for message in committed(kafka, topic["name"], partition)}
        for table, topic in topics.items()
        for partition in range(topic["partitions"])
    }
    read = sum(map(len, data.values()))
    sequence = ranged = 0
    for number, checkpoint in enumerate(checkpoints):
        assert checkpoint["number"] == number, f"checkpoint {checkpoint['number']} stands at place {number}"
        found: list[int] = []
        for table, spans in checkpoint["spans"].items():
            for partition, (begin, end, count) in enumerate(spans):
                assert end - begin == count, (number, table, partition)
                # A record that a second range names is gone here; one that is not committed never was.
                numbers = [sequence_of(data[table, partition].pop(offset), schemas) for offset in range(begin, end)]
                assert numbers == sorted(set(numbers)), f"checkpoint {number}: {table}[{partition}] is out of order"
                found += numbers
        assert sum(sum(ops.values()) for ops in checkpoint["counts"].values()) == len(found), number
        assert len(set(found)) == len(found), f"checkpoint {number} has a sequence twice"
        assert not found or min(found) > sequence, f"checkpoint {number} repeats what is before it"
        sequence, ranged = max([sequence, *found]), ranged + len(found)
    return Proof(len(checkpoints), ranged, read - ranged)


def committed(kafka: Kafka | KafkaCluster, topic: str, partition: int = 0) -> Iterator[Message]:
    """All that is committed now."""
    settings = {"group.id": "proof", "isolation.level": "read_committed", "enable.partition.eof": True}
    own = {"auto.offset.reset": "earliest", "enable.auto.commit": False}
    consumer = Consumer({**kafka.client(), **settings, **own})
    try:
        consumer.assign([TopicPartition(topic, partition, 0)])
        while True:
            first = consumer.consume(1, 10.0)  # of more it would wait for the last one, though there is no more
            for message in first + consumer.consume(1000, 0):
                if (error := message.error()) is None:
                    yield message
                    continue
                assert error.code() == KafkaError._PARTITION_EOF, error
                return
    finally:
        consumer.close()


def plain(schema: Schema) -> Schema:
    """Without logical types: not every value of a database fits into one of Python's."""
    if isinstance(schema, list):
        return [plain(item) for item in schema]
    if isinstance(schema, dict):
        return {name: plain(value) for name, value in schema.items() if name != "logicalType"}
    return schema


def sequence_of(message: Message, schemas: Mapping[int, Schema]) -> int:
    """By the framing that schema registries use: a zero, and the schema's id in four bytes."""
    value = message.value() or b""
    assert value[:1] == b"\0", message.offset()
    row: Any = fastavro.schemaless_reader(io.BytesIO(value[5:]), schemas[int.from_bytes(value[1:5], "big")], None)
    return int(row["source"]["sequence"])
