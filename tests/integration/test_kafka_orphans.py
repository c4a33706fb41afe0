"""A late EndTxn, as a client's internal retry can send it, commits half of the next transaction: what it leaves is nobody's loss (A2).

It is injected by a request of our own, with the writer's producer id and epoch, between a transaction's records and its checkpoint.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

from cdc.errors import Unavailable
from cdc.log import Checkpoint, Mark
from cdc.log.kafka.client import group_of
from cdc.log.kafka.log import KafkaLog
from cdc.log.kafka.reader import Reader
from cdc.log.kafka.records import Topic
from cdc.log.kafka.writer import Writer
from cdc.records import Records
from cdc.table import TableId
from tests.e2e.pipeline import until
from tests.integration.test_kafka_writer import A, B, Pipeline, draft, everything, rows
from tests.servers.kafka import Kafka

Inject = Callable[[pytest.MonkeyPatch, Pipeline], None]
END_TXN, DESCRIBE_TRANSACTIONS = 26, 65


@pytest.fixture
def pipeline(kafka: Kafka) -> Iterator[Pipeline]:
    with closing(Pipeline(kafka)) as made:
        yield made


def ask(kafka: Kafka, api: int, version: int, body: bytes, *, flexible: bool) -> bytes:
    """One request of Kafka's protocol; what follows the answer's header."""
    header = struct.pack(">hhih", api, version, 1, 1) + b"t" + (b"\0" if flexible else b"")
    with socket.create_connection(("127.0.0.1", kafka.port), timeout=10) as connection:
        connection.sendall(struct.pack(">i", len(header) + len(body)) + header + body)
        with connection.makefile("rb") as answer:
            (size,) = struct.unpack(">i", answer.read(4))
            return bytes(answer.read(size)[5 if flexible else 4 :])


def described(kafka: Kafka, name: str) -> tuple[str, int, int]:
    """A transactional id's state, its producer's id and epoch."""
    text = name.encode()
    found = ask(kafka, DESCRIBE_TRANSACTIONS, 0, bytes([2, len(text) + 1]) + text + b"\0", flexible=True)
    at = 4 + 1 + 2  # throttling, how many, error
    at += found[at]  # the id
    state, at = found[at + 1 : at + found[at]].decode(), at + found[at]
    return (state, *struct.unpack_from(">qh", found, at + 4 + 8))  # behind timeout and start


def end_transaction(kafka: Kafka, name: str) -> None:
    """Commit what the current producer of this transactional id has open; every partition has its marker when this returns."""
    _, producer, epoch = described(kafka, name)
    body = struct.pack(">h", len(name)) + name.encode() + struct.pack(">qhb", producer, epoch, 1)
    _, error = struct.unpack_from(">ih", ask(kafka, END_TXN, 1, body, flexible=False))
    assert error == 0, KafkaError(error)
    until(lambda: described(kafka, name)[0] == "CompleteCommit", 10, "the markers", every_s=0.02)


def before_the_checkpoint(monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline) -> None:
    """Once: the transaction ends when its data has been acknowledged. The checkpoint then goes into one of its own."""
    flush = Writer._flush

    def injected(writer: Writer) -> None:
        flush(writer)
        monkeypatch.setattr(Writer, "_flush", flush)
        end_transaction(pipeline.broker, group_of(pipeline.name))

    monkeypatch.setattr(Writer, "_flush", injected)


def between_records(monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline) -> None:
    """Once: the transaction ends when three of its records have been acknowledged. The brokers refuse the others."""
    send = Writer._send

    def injected(writer: Writer, topic: Topic, records: Records) -> Any:
        send(writer, topic, Records(records.keys[:3], records.values[:3]))
        writer._flush()
        monkeypatch.setattr(Writer, "_send", send)
        end_transaction(pipeline.broker, group_of(pipeline.name))
        return send(writer, topic, Records(records.keys[3:], records.values[3:]))

    monkeypatch.setattr(Writer, "_send", injected)


def persist(log: KafkaLog, act: Callable[[], Checkpoint], last: int) -> None:
    """As a supervisor and a capture do: after a failure the log says whether it is to be done again."""
    for _ in range(5):
        try:
            act()
            return
        except Unavailable:
            state = log.open_writer()
            if state.last is not None and state.last.number > last:
                return
    raise AssertionError("it never came through")


def committed(pipeline: Pipeline, table: TableId) -> int:
    """Records of the table that any reader of committed ones sees."""
    own = {"group.id": "x", "isolation.level": "read_committed", "auto.offset.reset": "earliest"}
    with closing(Consumer({**pipeline.broker.client(), **own, "enable.partition.eof": True})) as consumer:
        consumer.assign([TopicPartition(pipeline.topic(table), 0, 0)])
        count = 0
        while (message := consumer.poll(10)) is not None and message.error() is None:
            count += 1
        return count


@pytest.mark.parametrize("table", [A, B], ids=["known", "new"])
@pytest.mark.parametrize(("early", "orphans"), [(before_the_checkpoint, 0), (between_records, 3)])
def test_what_a_late_end_of_transaction_commits_is_passed_over(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, table: TableId, early: Inject, orphans: int
) -> None:
    """In a table's very first transaction, too."""
    log = pipeline.writer()
    log.append({A: rows(0, 10)}, draft())
    written = 10
    for at in range(2):
        early(monkeypatch, pipeline)
        batch = rows(100 * (at + 1), 7)
        persist(log, lambda batch=batch, at=at: log.append({table: batch}, draft(at + 1)), at)  # type: ignore[misc]
        written += 7
    log.append({A: rows(5_000, 5), B: rows(6_000, 5)}, draft(50))
    written += 10
    reader, found = Reader(pipeline.settings, pipeline.name, log.id), list[bytes]()
    with closing(reader.read(Mark(-1, log.id), everything, 0)) as items:
        for item in items:
            if item is None:
                break
            found += [value[9:17] for records in item[1].values() for value in records.values]
    assert len(found) == len(set(found)) == written
    assert reader.orphans == committed(pipeline, A) + committed(pipeline, B) - written == 2 * orphans
