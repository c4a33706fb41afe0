"""The opponent: Debezium's Postgres source and its JDBC sink, warm, in one Kafka Connect worker, and the broker that ours uses too.

Both sides have the same broker, the same Avro, in Confluent's wire format, and the same compression; Debezium has the settings
that make it fast, ours those that it comes with. What is measured is seen from outside, the same way for both: how a topic grows,
what a process uses, what a target's commits say. Java's start-up and its compiler's first minute are in no figure that does not say
cold.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from benchmarks.rig import TABLE, insert, run
from tests.e2e.pipeline import until
from tests.servers.connect import Connect, avro
from tests.servers.kafka import Kafka
from tests.servers.registry import SchemaRegistry

WORKER = {
    "producer.compression.type": "lz4",
    "producer.linger.ms": "10",
    "producer.batch.size": "500000",
    "producer.buffer.memory": str(128 << 20),
    "offset.flush.interval.ms": "5000",
}
SOURCE = {
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "plugin.name": "pgoutput",
    "publication.name": "debezium",
    "publication.autocreate.mode": "disabled",
    "slot.name": "debezium",
    "table.include.list": "public.bench",
    "message.prefix.exclude.list": ".*",  # ours writes some into the source's log
    "decimal.handling.mode": "precise",
    "max.batch.size": "8192",
    "max.queue.size": "65536",
    "poll.interval.ms": "10",
}
SINK = {
    "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
    "primary.key.mode": "record_key",
    "schema.evolution": "none",
    "batch.size": "5000",
    "consumer.override.auto.offset.reset": "earliest",
    "consumer.override.max.poll.records": "5000",
}
WARM_TRANSACTIONS = 1_000


class Debezium:
    """A broker, a registry and a worker. `source_rows` and `sink_rows` have passed its connectors: how warm the worker is."""

    def __init__(self) -> None:
        self.source_rows = self.sink_rows = 0
        with ExitStack() as stack:
            self.kafka = stack.enter_context(Kafka(heap_max_mb=1024, jvm=()))
            self._registry = stack.enter_context(SchemaRegistry())
            worker = Connect(self.kafka, properties=WORKER, heap_max_mb=2048, jvm=("-Xms1g",))
            self._connect = stack.enter_context(worker)
            warm(self.kafka)
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    @property
    def log(self) -> dict[str, Any]:
        """The same broker as the log of a pipeline of ours, as it comes: lz4, batches of up to 1 MB."""
        return {"url": f"kafka://{self.kafka.bootstrap}"}

    @property
    def pid(self) -> int:
        """The worker's."""
        assert self._connect.pid is not None, self._connect.log_tail()
        return self._connect.pid

    def prepare(self, name: str, source: str) -> None:
        """What a source connector of this name needs: its publication and its topic."""
        run(source, "CREATE PUBLICATION debezium FOR TABLE bench")
        self.kafka.make_topic(topic(name))

    def begin(self, name: str, source: str) -> None:
        """Make a source connector that will go on from here. It remembers no place before it has sent a row, so it sends one."""
        self.prepare(name, source)
        with Growth(self.kafka, topic(name)) as growth:
            self.start_source(name, source)
            insert(source, -1, 1)
            growth.wait(1, 60, lambda: self.check(name))
            self.stop_source(name)

    def start_source(self, name: str, source: str, snapshot: str = "no_data") -> None:
        """Returns when it streams, or, with `snapshot` "initial", reads. It goes on where one of this name was."""
        at = urlsplit(source)
        config = {
            **SOURCE,
            "database.hostname": str(at.hostname),
            "database.port": str(at.port),
            "database.user": str(at.username),
            "database.password": at.password or "-",
            "database.dbname": at.path[1:],
            "topic.prefix": name,
            "snapshot.mode": snapshot,
            **avro(self._registry),
        }
        self._connect.put(f"{name}-source", config)
        made = "SELECT 1 FROM pg_replication_slots WHERE slot_name = 'debezium' AND database = current_database()"
        until(lambda: run(source, made), 60, "Debezium's slot", alive=lambda: self._connect.check(f"{name}-source"))

    def stop_source(self, name: str) -> None:
        self._connect.delete(f"{name}-source")

    def start_sink(self, name: str, target: str, table: str, mode: str) -> None:
        """A sink of `name`'s topic into this table of the target; it goes on where one of this table was."""
        at = urlsplit(target)
        config = {
            **SINK,
            "topics": topic(name),
            "connection.url": f"jdbc:postgresql://{at.hostname}:{at.port}{at.path}?reWriteBatchedInserts=true",
            "connection.username": str(at.username),
            "connection.password": at.password or "-",
            "collection.name.format": table,
            "insert.mode": mode,
            **avro(self._registry),
        }
        self._connect.put(f"{name}-{table}", config)

    def stop_sink(self, name: str, table: str) -> None:
        self._connect.delete(f"{name}-{table}")

    def check(self, name: str, *tables: str) -> None:
        """Raise if the source of this name, or the sinks of these tables, have failed."""
        for part in tables or ("source",):
            self._connect.check(f"{name}-{part}")


def warm(kafka: Kafka) -> None:
    """Let the broker compile what transactions need. It is a JVM, too, and a backlog has too few of them for that."""
    for name in ("warm.rows", "warm.ends"):
        kafka.make_topic(name)
    producer = Producer({**kafka.client(), "transactional.id": "benchmarks", "compression.type": "lz4"})
    producer.init_transactions(30)
    for _ in range(WARM_TRANSACTIONS):
        producer.begin_transaction()
        for name in ("warm.rows", "warm.ends"):
            producer.produce(name, b"warm")
            producer.flush()
        producer.commit_transaction(30)


def topic(name: str) -> str:
    """The bench table's topic, of a pipeline or of a connector of this name."""
    return f"{name}.{TABLE.schema}.{TABLE.name}"


class Grown(NamedTuple):
    """Between the first and the last look that saw a topic grow; `rows` came after the first."""

    rows: int
    begin: float
    end: float

    @property
    def rate(self) -> float:
        return self.rows / (self.end - self.begin)


class Growth:
    """Looks at the end of a topic of one partition every 20 ms, in a thread, until it is left.

    Offsets are counted, and a transaction's marker takes one: what is over when the topic rests is markers."""

    def __init__(self, kafka: Kafka, name: str, every_s: float = 0.02) -> None:
        self._consumer = Consumer({**kafka.client(), "group.id": "benchmarks", "log_level": 0})
        self._partition, self._every_s = TopicPartition(name, 0), every_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._looks: list[tuple[float, int]] = []

    def __enter__(self) -> Self:
        try:
            self._looks.append((time.time(), self._look()))
        except KafkaException:  # ours makes its topic with the first rows
            self._looks.append((time.time(), 0))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self._consumer.close()

    def wait(self, rows: int, timeout_s: float, alive: Any = None, rests_s: float = 0.5) -> Grown:
        """Until so many records more are there, and no other follows."""
        base = self._looks[0][1]

        def done() -> bool:
            moment, end = self._looks[-1]
            return end - base >= rows and time.time() - moment > rests_s

        until(done, timeout_s, f"{rows} records in {self._partition.topic}", every_s=0.05, alive=alive)
        begin, first = self._looks[1]
        return Grown(rows - (first - base), begin, self._looks[-1][0])

    @property
    def records(self) -> int:
        """How many offsets it has grown by."""
        return self._looks[-1][1] - self._looks[0][1]

    def _run(self) -> None:
        while not self._end.wait(self._every_s):
            try:
                end = self._look()
            except KafkaException:
                continue
            if end > self._looks[-1][1]:
                self._looks.append((time.time(), end))

    def _look(self) -> int:
        return int(self._consumer.get_watermark_offsets(self._partition, timeout=5, cached=False)[1])
