"""One partition read by itself: where it begins and ends, and its committed records from any offset on.

What is read is complete: a range is left only when the broker has said that its end was reached, over aborted and control records.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec

from cdc.errors import CdcError, Unavailable
from cdc.log.kafka.client import MISSING, TIMEOUT_S, KafkaSettings, admin, consumer, error_of, group_of, translating

BLOCK = 10_000  # messages taken at once
FETCH_BYTES = 256 << 10
QUEUED_KBYTES = 4 << 10
POLL_S, POLL_MOST_S = 0.002, 0.05
BELIEVED_S, DOUBTED_EVERY_S = 5.0, 0.25
_ENDINGS = frozenset({"CDC-KAFKA-201", "CDC-KAFKA-203", "CDC-KAFKA-205", "CDC-KAFKA-209", "CDC-LOG-107", "CDC-LOG-402"})

T = TypeVar("T")


def believed(check: Callable[[], T]) -> T:
    """What `check` returns. That something is missing, or ends too early, is believed after it was said for BELIEVED_S: a broker
    that was frozen or cut off answers as the leader that it was, and one that has just come knows no new topic. `check` asks with
    clients of its own, which know nothing from before."""
    deadline = time.monotonic() + BELIEVED_S
    while True:
        try:
            return check()
        except CdcError as error:
            if error.code not in _ENDINGS or time.monotonic() > deadline:
                raise
        time.sleep(DOUBTED_EVERY_S)


def take(reading: Consumer, wait_s: float) -> list[Message]:
    """What has come; waits only for the first of it. `Consumer.consume` alone waits until as many are there as were asked for."""
    first = reading.consume(1, wait_s)
    return first + reading.consume(BLOCK, 0) if first else first


def offset_of(message: Message) -> int:
    """A record's offset; of the news that the end was reached, the end's."""
    offset = message.offset()
    assert offset is not None
    return offset


def ends_of_log(client: AdminClient, partitions: list[TopicPartition]) -> list[int]:
    """The end of each partition, with what is not committed. Raises a KafkaException."""
    return _offsets(client, partitions, OffsetSpec.latest())  # type: ignore[no-untyped-call]


def begins_of_log(client: AdminClient, partitions: list[TopicPartition]) -> list[int]:
    """The first offset of each partition. Raises a KafkaException."""
    return _offsets(client, partitions, OffsetSpec.earliest())  # type: ignore[no-untyped-call]


def _offsets(client: AdminClient, partitions: list[TopicPartition], spec: OffsetSpec) -> list[int]:
    if not partitions:
        return []
    asked = client.list_offsets(
        dict.fromkeys(partitions, spec),
        isolation_level=IsolationLevel.READ_UNCOMMITTED,
        request_timeout=TIMEOUT_S,
    )
    found = {(of.topic, of.partition): future.result(2 * TIMEOUT_S).offset for of, future in asked.items()}
    if min(found.values()) < 0:  # librdkafka calls that a success, when a leader goes while it asks
        raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE))
    return [found[partition.topic, partition.partition] for partition in partitions]


def extent(reading: Consumer, of: TopicPartition) -> tuple[int, int]:
    """The first offset, and the end of what is stable: no open transaction begins before it. Raises CDC-KAFKA-201 without the topic."""
    try:
        begin, end = reading.get_watermark_offsets(of, timeout=TIMEOUT_S)
    except KafkaException as error:
        raise why(reading, of.topic, error.args[0]) from error
    if min(begin, end) < 0:
        raise Unavailable("CDC-KAFKA-101", "the partition has no leader that answers", where=of.topic)
    return int(begin), int(end)


def verify_ends(settings: KafkaSettings, client: AdminClient, needed: Mapping[tuple[str, int], int]) -> None:
    """These partitions reach these offsets. Raises CDC-KAFKA-203, of the first that does not."""

    fresh = False

    def check() -> None:
        nonlocal fresh
        asked = admin(settings) if fresh else client
        fresh = True
        with translating(next((topic for topic, _ in needed), settings.bootstrap)):
            ends = ends_of_log(asked, [TopicPartition(*place) for place in needed])
        for ((topic, partition), offset), end in zip(needed.items(), ends, strict=True):
            if end < offset:
                detail = f"it ends at offset {end}, the log has written up to {offset}"
                raise CdcError("CDC-KAFKA-203", detail, where=f"{topic}[{partition}]")

    believed(check)


def why(reading: Consumer, topic: str, error: KafkaError) -> CdcError:
    """An error of a read. That a topic is unknown is also said while its brokers are away: then the cluster is asked."""
    if error.code() in MISSING:
        try:
            found = reading.list_topics(topic, timeout=TIMEOUT_S).topics[topic].error
        except KafkaException as away:
            return error_of(away, topic)
        if found is None:
            return Unavailable("CDC-KAFKA-101", "the topic has no leader that answers", where=topic)
        return error_of(found, topic)
    return error_of(error, topic)


def know(reading: Consumer, names: list[str]) -> None:
    """Let a consumer learn where these topics are. By itself it asks once a second only, which each new topic would wait for."""
    if len(names) == 1:
        reading.list_topics(names[0], timeout=TIMEOUT_S)
    else:
        reading.list_topics(timeout=TIMEOUT_S)


def send(producer: Producer, topic: str, key: bytes, value: bytes) -> int:
    """One record in partition 0, acknowledged; its offset. Raises, after which the producer must not be used again."""
    reports: list[tuple[KafkaError | None, int]] = []

    def report(error: KafkaError | None, message: Message) -> None:
        reports.append((error, int(message.offset() or 0)))

    with translating(topic):
        try:
            producer.produce(topic, value, key, partition=0, on_delivery=report)
            producer.flush(TIMEOUT_S)
        except SystemError as raised:
            # The binding calls our report while it raises a fatal error, and Python notices; sometimes the error is gone then.
            if isinstance(raised.__cause__, KafkaException):
                raise raised.__cause__ from None
            if not reports or reports[0][0] is None:
                raise Unavailable("CDC-KAFKA-101", "the producer failed for good", where=topic) from raised
        if not reports:
            raise Unavailable("CDC-KAFKA-101", f"nothing was acknowledged within {TIMEOUT_S:g} s", where=topic)
        ((error, offset),) = reports
        if error is not None:
            raise KafkaException(error)
    return offset


class Partition:
    """Partition 0 of `topic`. Clients are made at first use, and anew after `close`, which may be called at any time."""

    def __init__(self, settings: KafkaSettings, pipeline: str, topic: str, **own: object) -> None:
        self.topic = topic
        self._settings, self._group, self._own = settings, group_of(pipeline), own
        self._consumer: Consumer | None = None
        self._admin: AdminClient | None = None
        self.at: int | None = None  # what `more` comes to next

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = self._admin = self.at = None

    @property
    def _reading(self) -> Consumer:
        if self._consumer is None:
            own: dict[str, object] = {"enable_partition_eof": True, "fetch_message_max_bytes": FETCH_BYTES}
            own |= {"queued_max_messages_kbytes": QUEUED_KBYTES, **self._own}
            self._consumer = consumer(self._settings, self._group, **own)
        return self._consumer

    def extent(self) -> tuple[int, int]:
        """Its first offset, and the end of what is stable: no open transaction begins before it. Raises CDC-KAFKA-201 without it."""
        return extent(self._reading, TopicPartition(self.topic, 0))

    def settled(self, wait_s: float) -> tuple[int, int, bool]:
        """The extent, once everything is stable that is in the log now; after `wait_s` as far as it is. The third says which."""
        begin, end = self.extent()
        with translating(self.topic):
            if self._admin is None:
                self._admin = admin(self._settings)
            (high,) = ends_of_log(self._admin, [TopicPartition(self.topic, 0)])
        deadline, pause_s = time.monotonic() + wait_s, POLL_S
        while end < high and time.monotonic() < deadline:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, POLL_MOST_S)
            begin, end = self.extent()
        return begin, end, end >= high

    def read(self, begin: int, end: int) -> Iterator[Message]:
        """The committed records of [begin, end), which must be stable. Raises Unavailable when none come."""
        if begin >= end:
            return
        self._assign(begin)
        try:
            while True:
                for message in self._take(TIMEOUT_S, end):
                    if offset_of(message) >= end:
                        return
                    if message.error() is None:
                        yield message
        finally:
            if self._consumer is not None:
                self._consumer.unassign()  # else it would fetch on, for nobody

    def more(self) -> list[Message]:
        """What has come since the last time, from `at` on; at once."""
        assert self.at is not None, "begin_at comes first"
        found = [message for message in take(self._reading, 0) if not self._is_end(message)]
        if found:
            self.at = offset_of(found[-1]) + 1
        return found

    def begin_at(self, offset: int) -> None:
        """Where `more` begins."""
        self._assign(offset)
        self.at = offset

    def _assign(self, offset: int) -> None:
        with translating(self.topic):
            self._reading.assign([TopicPartition(self.topic, 0, offset)])

    def _take(self, wait_s: float, end: int) -> list[Message]:
        found = take(self._reading, wait_s)
        if not found:
            raise Unavailable(
                "CDC-KAFKA-101", f"no records came within {wait_s:g} s; {end} is the end", where=self.topic
            )
        for message in found:
            self._is_end(message)
        return found

    def _is_end(self, message: Message) -> bool:
        error = message.error()
        if error is None:
            return False
        if error.code() != KafkaError._PARTITION_EOF:
            raise why(self._reading, self.topic, error)
        return True
