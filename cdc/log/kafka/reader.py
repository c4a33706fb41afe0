"""Reading a Kafka log: from a mark on, for ever, beside its writer (protocols A1, A2, A6).

One consumer is assigned the checkpoints and the wanted tables' partitions once and reads ahead of what is delivered. One invariant: a
checkpoint is delivered with exactly the records of its ranges or not at all; what is missing is waited for only while it can come.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import NamedTuple, cast

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from confluent_kafka.admin import AdminClient

from cdc.errors import CdcError
from cdc.journal import journal
from cdc.log import Checkpoint, Mark, Span
from cdc.log.checkpoint import Chain
from cdc.log.kafka.buffers import Buffer, missing
from cdc.log.kafka.client import KafkaSettings, admin, consumer, group_of, translating
from cdc.log.kafka.order import merged
from cdc.log.kafka.partition import ends_of_log, extent, know, offset_of, take, verify_ends, why
from cdc.log.kafka.records import Birth, Intended, State, Topic
from cdc.log.kafka.schemas import Schemas
from cdc.log.kafka.story import SETTLE_S, Story, record_of
from cdc.log.kafka.topics import checkpoints_topic, verify_ids
from cdc.records import Batch, Records
from cdc.table import TableId

BUFFER_BYTES = 64 << 20  # above it, only what the next checkpoint needs is read
STORY_BYTES = 4 << 20  # of checkpoints, as stored, that wait to be delivered
QUEUED_KBYTES = 16 << 10  # of librdkafka's own queue
POLL_S = 0.1
LOST_EVERY_S = 0.2  # how often it is asked whether records that do not come are in the log at all
WAIT_S = 0.5  # how long the caller is left without an answer while records of a checkpoint are on their way
CURRENT_EVERY_S = 5.0  # how often an idle reader asks the brokers whether they and the topic are still there
VERIFY_EVERY_S = (
    15.0  # how often it does so for the data topics: of one that was deleted nothing comes, not even an error
)
OFFSETS_KEPT = 10_000

Place = tuple[str, int]

_value = cast(Callable[[Message], bytes], Message.value)
_offset = cast(Callable[[Message], int], Message.offset)

_log = journal("log")


class Part(NamedTuple):
    """What a checkpoint has in one partition."""

    buffer: Buffer
    span: Span


class Reader:
    """One reading of a log. `orphans` counts records that lay outside every checkpoint and were passed over (A2)."""

    def __init__(self, settings: KafkaSettings, pipeline: str, log_id: str) -> None:
        self._settings, self._pipeline, self._log_id = settings, pipeline, log_id
        self._topic = checkpoints_topic(pipeline)
        self._schemas = Schemas(settings, pipeline)
        self._consumer: Consumer | None = None
        self._admin: AdminClient | None = None
        self._chain = Chain(log_id, dense=False)
        self._topics: dict[TableId, Topic] = {}
        self._buffers: dict[Place, Buffer] = {}
        self._waiting = deque[tuple[int, int, Checkpoint]]()  # checkpoints to deliver: offset, size, itself
        self._waiting_bytes = self._held_bytes = 0
        self._fresh: list[Topic] = []  # that the story has told of, and that nobody has asked `wanted` about
        self._reached = self._at_least = (
            0  # of the checkpoints topic: where we are, and what is read before the first None
        )
        self._ended = False  # the broker has said so since the last record of the checkpoints topic
        self._paused: set[Place] = set()
        self._asked = self._progress = 0.0  # when the brokers were asked last; when something came, or the caller did
        self._verified = 0.0  # when the data topics were looked at last
        self._delivered = deque[tuple[int, int]](maxlen=OFFSETS_KEPT)
        self.orphans = 0

    def close(self) -> None:
        """May be called at any time, more than once."""
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = self._admin = None
        self._schemas.close()
        self._buffers.clear()
        self._waiting.clear()

    def offset_behind(self, number: int) -> int | None:
        """Of the checkpoints topic: where to read on after checkpoint `number`, if this reading delivered it lately."""
        return next((offset + 1 for known, offset in reversed(self._delivered) if known == number), None)

    def read(
        self, after: Mark, wanted: Callable[[TableId], bool], idle_s: float
    ) -> Generator[tuple[Checkpoint, Batch] | None, None, None]:
        """See `Log.read`. What was acknowledged before the call comes before the first None, unless an older transaction is open."""
        try:
            self._open(after, wanted)
            found = self._next(wanted, 0.0)
            while True:
                yield found
                found = self._next(wanted, idle_s if found is None else 0.0)
        finally:
            self.close()

    # ------------------------------------------------------------------------------------------------------------ opening
    def _open(self, after: Mark, wanted: Callable[[TableId], bool]) -> None:
        with Story(self._settings, self._pipeline) as story:
            self._chain, self._topics, begin = story.at(after)
        if self._chain.log_id != self._log_id:
            detail = f"it was log {self._log_id}, now it is {self._chain.log_id}"
            raise CdcError("CDC-KAFKA-202", detail, where=self._topic)
        self._consumer = consumer(
            self._settings,
            group_of(self._pipeline),
            enable_partition_eof=True,
            queued_max_messages_kbytes=QUEUED_KBYTES,
            fetch_queue_backoff_ms=5,
            max_poll_interval_ms=86_400_000,  # nothing is subscribed to; a long commit of the caller's is no failure
        )
        self._admin = admin(self._settings)
        self._reached, self._asked = begin, time.monotonic()
        self._verified = self._asked
        with translating(self._topic):
            (self._at_least,) = ends_of_log(self._admin, [TopicPartition(self._topic, 0)])
            know(self._consumer, [self._topic])
            self._consumer.assign([TopicPartition(self._topic, 0, begin)])
        self._assign(topic for table, topic in self._topics.items() if wanted(table))

    def _assign(self, topics: Iterable[Topic]) -> None:
        """Read these, too, from where they are as of the last checkpoint that was delivered."""
        topics = list(topics)
        if not topics:
            return
        assert self._consumer is not None
        assert self._admin is not None
        verify_ids(self._admin, topics)
        added = []
        for table, name, _, partitions in topics:
            for partition, begin in enumerate(self._chain.ends.get(table, (0,) * partitions)):
                self._buffers[name, partition] = Buffer(table, name, partition, begin)
                added.append(TopicPartition(name, partition, begin))
        with translating(self._topic):
            know(self._consumer, [topic.name for topic in topics])
            self._consumer.incremental_assign(added)

    def _drop(self, topic: Topic) -> None:
        assert self._consumer is not None
        gone = [place for partition in range(topic.partitions) if (place := (topic.name, partition)) in self._buffers]
        if not gone:
            return
        for place in gone:
            self._held_bytes -= self._buffers.pop(place).size_bytes
        self._paused.difference_update(gone)
        with translating(topic.name):
            self._consumer.incremental_unassign([TopicPartition(*place) for place in gone])

    # --------------------------------------------------------------------------------------------------------- delivering
    def _next(self, wanted: Callable[[TableId], bool], wait_s: float) -> tuple[Checkpoint, Batch] | None:
        """The next checkpoint with its records; None when nothing has come at the end of the log within `wait_s`."""
        self._progress = time.monotonic()
        deadline = self._progress + wait_s
        if not self._waiting:
            self._poll(0)
        while True:
            assert self._consumer is not None, "this reading was closed"
            if self._fresh:
                fresh, self._fresh = self._fresh, []
                self._assign(topic for topic in fresh if wanted(topic.table))
            needed = self._needed(wanted) if self._waiting else []
            absent = [part for part in needed if part.buffer.reached < part.span.end]
            if self._waiting and not absent:
                return self._deliver(needed)
            now = time.monotonic()
            if now >= deadline and self._in_vain(now):
                return None
            if absent:
                self._check_not_lost(absent, now)
            else:
                self._check_current(now)
            self._balance({part.buffer.place for part in absent} or {(self._topic, 0)})
            self._poll(min(deadline - now, POLL_S) if deadline > now else POLL_S)

    def _in_vain(self, now: float) -> bool:
        """Whether waiting on would keep the caller from what it has: at the end of the log, or when nothing has come for a while."""
        if self._waiting:
            return now >= self._progress + WAIT_S
        if self._reached < self._at_least:
            return now >= self._progress + SETTLE_S
        return self._at_end() or now >= self._progress + POLL_S

    def _at_end(self) -> bool:
        """Whether all that is in the checkpoints topic has come: the broker said so, or a control record alone can be left."""
        assert self._consumer is not None
        _, high = self._consumer.get_watermark_offsets(TopicPartition(self._topic, 0), cached=True)
        return self._ended or self._reached + 1 >= int(high)

    def _needed(self, wanted: Callable[[TableId], bool]) -> list[Part]:
        """What the next checkpoint has of the wanted tables, which may be others than before."""
        _, _, checkpoint = self._waiting[0]
        found = []
        for table, spans in checkpoint.spans.items():
            topic = self._topics.get(table)
            if topic is None or topic.partitions != len(spans):
                detail = f"checkpoint {checkpoint.number} has {len(spans)} partitions of {table}, which no topic has"
                raise CdcError("CDC-KAFKA-203", detail, where=self._topic)
            if not wanted(table):
                self._drop(topic)
                continue
            if (topic.name, 0) not in self._buffers:
                self._assign([topic])
            found += [Part(self._buffers[topic.name, i], span) for i, span in enumerate(spans) if span.count]
        return found

    def _deliver(self, needed: list[Part]) -> tuple[Checkpoint, Batch]:
        offset, size_bytes, checkpoint = self._waiting.popleft()
        self._waiting_bytes -= size_bytes
        if checkpoint.log_id != self._log_id:
            detail = f"checkpoint {checkpoint.number} is of log {checkpoint.log_id}"
            raise CdcError("CDC-KAFKA-207", detail, where=self._topic)
        try:
            self._chain.follow(checkpoint)
        except ValueError as error:
            raise CdcError("CDC-KAFKA-203", f"offset {offset}: {error}", where=self._topic) from error
        parts: dict[TableId, list[Records]] = {}
        for buffer, span in needed:
            before = buffer.size_bytes
            taken = buffer.take(span)
            if taken is None:
                raise missing(checkpoint, buffer, span)
            self._held_bytes += buffer.size_bytes - before
            keys, values, orphans = taken
            if orphans:
                self._pass_over(buffer, span, orphans)
            parts.setdefault(buffer.table, []).append(Records(keys, values))
        self._delivered.append((checkpoint.number, offset))
        return checkpoint, {
            table: found[0] if len(found) == 1 else merged(found, self._schemas.schema)
            for table, found in parts.items()
        }

    def _pass_over(self, buffer: Buffer, span: Span, orphans: int) -> None:
        self.orphans += orphans
        _log.warning(
            "passed over committed records that no checkpoint names",
            topic=buffer.topic,
            partition=buffer.partition,
            records=orphans,
            before_offset=span.begin,
        )

    # ------------------------------------------------------------------------------------------------------------ polling
    def _poll(self, wait_s: float) -> None:
        """Take in what has come."""
        assert self._consumer is not None
        messages = take(self._consumer, wait_s)
        if not any(map(Message.error, messages)):
            self._take_runs(messages)
            return
        begin = 0
        for at, message in enumerate(messages):
            if message.error() is not None:
                self._take_runs(messages[begin:at])
                self._take_error(message)
                begin = at + 1
        self._take_runs(messages[begin:])

    def _take_runs(self, messages: list[Message]) -> None:
        """Records of one partition mostly come together."""
        if not messages:
            return
        self._progress = time.monotonic()
        topics, partitions = list(map(Message.topic, messages)), list(map(Message.partition, messages))
        begin, count = 0, len(messages)
        if topics.count(topics[0]) == count == partitions.count(partitions[0]):
            self._take_run(_place(messages[0]), messages)
            return
        while begin < count:
            topic, partition, end = topics[begin], partitions[begin], begin + 1
            while end < count and topics[end] == topic and partitions[end] == partition:
                end += 1
            self._take_run(_place(messages[begin]), messages[begin:end])
            begin = end

    def _take_run(self, place: Place, run: list[Message]) -> None:
        if place[0] == self._topic:
            self._take_story(run)
        elif (buffer := self._buffers.get(place)) is not None:  # else it is no longer wanted
            before = buffer.size_bytes
            buffer.extend([*map(Message.key, run)], [*map(_value, run)], [*map(_offset, run)])
            self._held_bytes += buffer.size_bytes - before

    def _take_story(self, messages: list[Message]) -> None:
        self._ended = False
        for message in messages:
            offset = offset_of(message)
            if offset < self._reached:
                continue  # it came before a pause, too
            self._reached = offset + 1
            match record_of(message, self._topic):
                case Checkpoint() as checkpoint:
                    self._waiting.append((offset, len(message), checkpoint))
                    self._waiting_bytes += len(message)
                case Topic() as topic if self._topics.get(topic.table) != topic:
                    self._topics[topic.table] = topic
                    self._fresh.append(topic)
                case Topic() | Birth() | State() | Intended():
                    pass

    def _take_error(self, message: Message) -> None:
        error, place = message.error(), _place(message)
        assert error is not None
        buffer = self._buffers.get(place)
        if error.code() == KafkaError._PARTITION_EOF:
            if buffer is not None:
                buffer.reach(offset_of(message))
            elif place[0] == self._topic:
                self._reached, self._ended = max(self._reached, offset_of(message)), True
        elif buffer is not None and error.code() == KafkaError._AUTO_OFFSET_RESET:
            self._begin_later(buffer)
        elif buffer is not None or place[0] in ("", self._topic):  # else it is no longer wanted
            assert self._consumer is not None
            raise why(self._consumer, place[0] or self._topic, error)

    def _begin_later(self, buffer: Buffer) -> None:
        """The offset that was asked for is not there. What a checkpoint needs of what was deleted shows when that comes."""
        assert self._consumer is not None
        assert self._admin is not None
        of = TopicPartition(*buffer.place)
        low, high = extent(self._consumer, of)
        if high < buffer.reached:
            verify_ends(self._settings, self._admin, {buffer.place: buffer.reached})
        buffer.low = low
        buffer.reach(low)
        with translating(buffer.topic):
            self._consumer.incremental_unassign([of])
            self._consumer.incremental_assign([TopicPartition(*buffer.place, buffer.reached)])

    # ------------------------------------------------------------------------------------------------------------- checks
    def _check_not_lost(self, absent: list[Part], now: float) -> None:
        """Now and then: records that do not come must be in the log at least, if uncommitted; their checkpoint came after them."""
        if now < self._asked + LOST_EVERY_S:
            return
        assert self._admin is not None
        verify_ends(self._settings, self._admin, {part.buffer.place: part.span.end for part in absent})
        self._asked = time.monotonic()

    def _check_current(self, now: float) -> None:
        """Now and then: brokers that are away deliver nothing either, and neither does a topic that is not ours any more."""
        if now < self._asked + CURRENT_EVERY_S:
            return
        assert self._consumer is not None
        assert self._admin is not None
        _, end = extent(self._consumer, TopicPartition(self._topic, 0))
        if end < self._reached:
            verify_ends(self._settings, self._admin, {(self._topic, 0): self._reached})
        if now >= self._verified + VERIFY_EVERY_S:
            verify_ids(self._admin, [topic for topic in self._topics.values() if (topic.name, 0) in self._buffers])
            self._verified = time.monotonic()
        self._asked = time.monotonic()

    # ------------------------------------------------------------------------------------------------------------- memory
    def _balance(self, needed: set[Place]) -> None:
        """Above the bounds, only what the next checkpoint needs is read; below half of them, everything again. A pause costs what
        librdkafka has fetched already."""
        resumed = self._paused & needed
        story = (self._topic, 0)
        if self._waiting_bytes < STORY_BYTES // 2:
            resumed |= self._paused & {story}
        if self._held_bytes < BUFFER_BYTES // 2:
            resumed |= self._paused - {story}
        paused = set()
        if self._waiting_bytes > STORY_BYTES:
            paused.add(story)
        if self._held_bytes > BUFFER_BYTES:
            paused |= {place for place, buffer in self._buffers.items() if buffer.size_bytes}
        paused -= needed | self._paused
        self._paused = (self._paused - resumed) | paused
        assert self._consumer is not None
        with translating(self._topic):
            if resumed:
                self._consumer.resume([TopicPartition(*place) for place in resumed])
            if paused:
                self._consumer.pause([TopicPartition(*place) for place in paused])


def _place(message: Message) -> Place:
    """No topic: what is reported of the whole client."""
    return message.topic() or "", message.partition() or 0
