"""A Kafka log written by hand, so that it can hold what no writer of ours would leave: orphans, holes, checkpoints before their data.

The topics of one pipeline are made for one test and dropped after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from secrets import token_hex
from typing import Any

from confluent_kafka import Message, Producer, TopicPartition

from cdc.avro import encode_datum, frame, schemas_of
from cdc.log import Checkpoint, Draft, Mark, Span, Spans
from cdc.log.checkpoint import Chain
from cdc.log.kafka.client import KafkaSettings
from cdc.log.kafka.reader import Reader
from cdc.log.kafka.records import BASE, Birth, Intended, Record, State, Topic, to_record
from cdc.log.kafka.schemas import Schemas
from cdc.position import Position
from cdc.records import Batch, Records
from cdc.table import Column, LogicalType, TableId, TableSchema
from tests.servers.kafka import Kafka

A, B, C = TableId("public", "a"), TableId("public", "b"), TableId("public", "c")
Item = tuple[Checkpoint, Batch]


def value(op: str, payload: bytes = b"") -> bytes:
    """Bytes that begin as an event does."""
    return b"\x00\x00\x00\x00\x07\x02" + op.encode() + b"\x00\x00" + payload


def rows(*payloads: bytes, op: str = "c") -> Records:
    """A record for each payload."""
    return Records([b"\x00\x00\x00\x00\x08" + p[:8] for p in payloads], [value(op, p) for p in payloads])


def everything(_: TableId) -> bool:
    return True


class Written:
    """A log and its one writer. `chain` is what was appended; `at(table, partition)` where the next record would lie."""

    def __init__(self, kafka: Kafka, *, settings: Mapping[str, Any] | None = None) -> None:
        self.kafka, self.pipeline = kafka, f"t{token_hex(5)}"
        self.settings = KafkaSettings(kafka.bootstrap, replication=1, **(settings or {}))
        self.checkpoints = f"{self.pipeline}.checkpoints"
        self.chain = Chain(token_hex(8), dense=False)
        self.topics: dict[TableId, Topic] = {}
        self.base = self.next_offset = 0
        for name in ("checkpoints", "schemas", "signals"):
            kafka.make_topic(f"{self.pipeline}.{name}")
        self.producer = self.new_producer()

    def close(self) -> None:
        self.producer = None  # type: ignore[assignment]
        self.kafka.drop_topics(f"{self.pipeline}.")

    def new_producer(self, name: str = "writer", **more: Any) -> Producer:
        """A transactional one; another `name` is another session, which fences nobody."""
        own = {"transactional.id": f"{self.pipeline}.{name}", "linger.ms": 2, "log_level": 0}
        producer = Producer({**self.kafka.client(), **own, **more})
        producer.init_transactions(30)
        return producer

    # ------------------------------------------------------------------------------------------------------------ writing
    def begin(self) -> Written:
        """The log's birth."""
        self.story(Birth(self.chain.log_id, self.pipeline, "cluster"))
        return self

    def story(self, *records: Record, producer: Producer | None = None) -> None:
        """Records of the checkpoints topic, in a transaction of their own."""
        with self.transaction(producer) as transaction:
            for record in records:
                transaction.tell(record)

    def make(self, table: TableId, partitions: int = 1) -> Topic:
        """A data topic, and its id; nothing is told of it."""
        name = f"{self.pipeline}.{table.schema}.{table.name}"
        self.kafka.make_topic(name, partitions)
        self.topics[table] = Topic(table, name, topic_id(self.kafka, name), partitions)
        return self.topics[table]

    def transaction(self, producer: Producer | None = None) -> Transaction:
        return Transaction(self, producer or self.producer)

    def append(self, batch: Batch, cut: bool = True, *, base: bool = False, **draft: Any) -> Checkpoint:
        """One checkpoint with its records, all in one transaction, as the log's writer does. A record's partition is its key's
        last byte modulo their number."""
        with self.transaction() as transaction:
            for table in batch:
                if table not in self.topics:
                    transaction.tell(self.make(table))
            for table, records in batch.items():
                transaction.put(table, records)
            made = transaction.checkpoint(batch, cut, base=base, **draft)
        self.chain.follow(made)
        return made

    def orphans(self, table: TableId, *payloads: bytes, commit: bool = True, partition: int = 0) -> None:
        """Records that are committed, or aborted, without a checkpoint: another session's."""
        with self.transaction(self.new_producer("other")) as transaction:
            transaction.put(table, rows(*payloads), partition)
            transaction.commits = commit

    # ------------------------------------------------------------------------------------------------------------ reading
    def reader(self) -> Reader:
        return Reader(self.settings, self.pipeline, self.chain.log_id)

    @property
    def start(self) -> Mark:
        return Mark(-1, self.chain.log_id)

    def available(
        self,
        after: Mark | None = None,
        wanted: Callable[[TableId], bool] = everything,
        reader: Reader | None = None,
        count: int = 0,
        within_s: float = 10.0,
    ) -> list[Item]:
        """What can be read now; `count` of them, if that is given, within that time."""
        found: list[Item] = []
        deadline = time.monotonic() + within_s
        with closing((reader or self.reader()).read(after or self.start, wanted, 0.05)) as items:
            for item in items:
                if item is not None:
                    found.append(item)
                elif not count or time.monotonic() > deadline:
                    break
                if count and len(found) == count:
                    break
        return found


class Transaction:
    """For `with`: commits at the end, or aborts if `commits` is not set."""

    def __init__(self, log: Written, producer: Producer) -> None:
        self._log, self._producer, self.commits = log, producer, True
        self._placed: dict[tuple[str, int], list[int]] = {}
        self._told: list[int] = []

    def __enter__(self) -> Transaction:
        self._producer.begin_transaction()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.flush()
        if kind is None and self.commits:
            self._producer.commit_transaction(30)
        else:
            self._producer.abort_transaction(30)

    def flush(self) -> None:
        assert self._producer.flush(30) == 0

    def put(self, table: TableId, records: Records, partition: int | None = None) -> None:
        """Data, in this partition or where the key says."""
        topic = self._log.topics[table]
        for key, data in zip(records.keys, records.values, strict=True):
            to = (key or b"\x00")[-1] % topic.partitions if partition is None else partition
            self._producer.produce(topic.name, data, key, partition=to, on_delivery=self._report)

    def tell(self, record: Record, base: int | None = None) -> None:
        """One record of the story."""
        key, data = to_record(record)
        headers = {} if base is None else {BASE: str(base)}
        self._producer.produce(self._log.checkpoints, data, key, partition=0, headers=headers, on_delivery=self._report)

    def spans(self, tables: Iterable[TableId]) -> dict[TableId, Spans]:
        """Where the records are that were put here."""
        self.flush()
        found = {}
        for table in tables:
            topic = self._log.topics[table]
            ends = self._log.chain.ends.get(table, (0,) * topic.partitions)
            spans = []
            for partition in range(topic.partitions):
                offsets = self._placed.get((topic.name, partition))
                end = ends[partition]
                spans.append(Span(offsets[0], offsets[-1] + 1, len(offsets)) if offsets else Span(end, end, 0))
            found[table] = tuple(spans)
        return found

    def checkpoint(
        self,
        batch: Batch,
        cut: bool = True,
        *,
        base: bool = False,
        spans: dict[TableId, Spans] | None = None,
        **draft: Any,
    ) -> Checkpoint:
        """Tell a checkpoint; the caller lets the chain follow it."""
        log = self._log
        chain = log.chain
        placed = self.spans(table for table, records in batch.items() if len(records)) if spans is None else spans
        position = Position(draft.pop("epoch", 0), draft.pop("sequence", 0), {}, {})
        made = chain.make("writer", batch, Draft(position, cut, **draft), base or chain.last is None, spans=placed)
        if base:
            told = len(self._placed.get((log.checkpoints, 0), ()))
            for topic in log.topics.values():
                self.tell(topic)
            for table, state in (chain.path(made) | chain.changes(made)).items():
                self.tell(State(table, state))
            self.flush()
            log.base = self._placed[log.checkpoints, 0][told]
        self.tell(made, log.base)
        return made

    def intend(self, intended: Intended) -> None:
        self.tell(intended)

    def _report(self, error: object, message: Message) -> None:
        assert error is None, error
        place = message.topic() or "", message.partition() or 0
        self._placed.setdefault(place, []).append(message.offset() or 0)


def topic_id(kafka: Kafka, name: str) -> str:
    """Kafka's id of a topic."""
    from confluent_kafka import TopicCollection

    admin = kafka.admin()
    return str(admin.describe_topics(TopicCollection([name]))[name].result(10).topic_id)


def delete_records(kafka: Kafka, topic: str, before: int, partition: int = 0) -> None:
    """Delete what lies before this offset."""
    admin = kafka.admin()
    for future in admin.delete_records([TopicPartition(topic, partition, before)]).values():
        future.result(30)


def numbered(registry: Schemas, pipeline: str, table: TableId, numbers: Iterable[int]) -> Records:
    """Whole events with these sequences. Their rows hold what the source block begins with, as a hostile row might."""
    columns = (Column("id", LogicalType("int64"), "bigint", False), Column("t", LogicalType("text"), "text"))
    found = schemas_of(pipeline, TableSchema(table, columns, ("id",)), "postgresql")
    schema_id = registry.register(f"{pipeline}-value", found.value)
    records = Records()
    for n in numbers:
        source = dict.fromkeys(("ts_ms",), 0) | {"version": "1.2.3", "connector": "postgresql", "name": pipeline}
        source |= {"snapshot": "false", "db": "shop", "schema": "public", "table": "t", "sequence": str(n)}
        begin = b"\x0a1.2.3\x14postgresql" + bytes([2 * len(pipeline)]) + pipeline.encode()
        row = {"id": n, "t": begin.decode() * (n % 3) + "x" * (n % 200)}
        datum = {"op": "c", "after": row, "source": {**source, "ts_ms": 1_700_000_000_000 + n // 7}, "ts_ms": n}
        records.values.append(frame(schema_id) + encode_datum(found.value, datum))
        records.keys.append(frame(schema_id) + bytes([n >> 8, n & 0xFF]))
    return records


def payloads(batch: Batch) -> dict[TableId, list[bytes]]:
    """The payloads of `rows`."""
    return {table: [data[9:] for data in records.values] for table, records in batch.items()}
