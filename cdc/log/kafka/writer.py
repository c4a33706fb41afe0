"""Writing a Kafka log: take over, append, begin a base, retain (protocols A2, A3, A5).

One invariant: after any failure the writer is void. What the log then holds is unknown until another producer has fenced this one and
the end was read anew, up to where the log really ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from cdc.errors import CdcError, Superseded, Unavailable
from cdc.log import Checkpoint, Draft, Intent, LogState, Mark, Span, Spans
from cdc.log.checkpoint import random_id
from cdc.log.kafka.client import TIMEOUT_S, KafkaSettings, error_of, group_of, producer, translating
from cdc.log.kafka.partition import believed
from cdc.log.kafka.partitioner import divided
from cdc.log.kafka.records import BASE, Birth, Intended, Record, State, Topic, to_record
from cdc.log.kafka.story import Ended, Story
from cdc.log.kafka.topics import Topics, checkpoints_topic
from cdc.records import Batch, Records
from cdc.table import TableId

BASE_BYTES = 1 << 20
BASE_FACTOR = 4  # a new base is due when the story behind the last one is so many times as long as the list


@dataclass(slots=True)
class Identity:
    """Who writes: one per process. `written` holds the last checkpoint that was acknowledged to it, by log."""

    id: str = field(default_factory=random_id)
    written: dict[str, Mark] = field(default_factory=dict)


THIS_PROCESS = Identity()


def transactional(settings: KafkaSettings, pipeline: str) -> Producer:
    """A producer that has fenced all others of this pipeline, and ended their transactions. Raises Unavailable."""
    timeout_ms = round(settings.transaction_timeout_s * 1000)
    made = producer(
        settings,
        transactional_id=group_of(pipeline),
        transaction_timeout_ms=timeout_ms,
        queue_buffering_max_messages=0,
        queue_buffering_max_kbytes=2**31 - 1,
    )
    with translating(checkpoints_topic(pipeline)):
        made.init_transactions(TIMEOUT_S + settings.transaction_timeout_s)
    return made


class _Sent:
    """The records of one partition on their way: how many, and the offsets of the first and the last."""

    __slots__ = ("count", "error", "offsets")

    def __init__(self, count: int) -> None:
        self.count, self.offsets = count, list[int]()
        self.error: KafkaError | None = None

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            offset = message.offset()
            self.offsets.append(-1 if offset is None else offset)
        else:
            self.error = error


class Writer:
    """The end of the log, owned. Construction fences all others and verifies the end; `state` says what was found.

    `base_bytes`: the length of the story at which a new base is thought of."""

    def __init__(
        self,
        settings: KafkaSettings,
        pipeline: str,
        birth: Birth,
        *,
        topics: Topics,
        identity: Identity = THIS_PROCESS,
        base_bytes: int = BASE_BYTES,
    ) -> None:
        self._settings, self._pipeline, self._identity = settings, pipeline, identity
        self._topic, self._timeout_s = checkpoints_topic(pipeline), settings.transaction_timeout_s
        self._made = topics
        self._fresh, self._void = True, False  # nothing appended yet; a change failed
        self._sure = False  # the end that was read has proved to be the end
        topics.verify_own(birth.topics)
        self._producer = transactional(settings, pipeline)
        ended = believed(lambda: self._end(birth.id))
        self._chain, self._topics = ended.chain, ended.topics
        topics.verify(ended.topics.values(), ended.chain.ends)
        self._next, self._base, self._story_bytes = ended.next_offset, ended.base_offset, ended.bytes_since_base
        self._base_bytes = self._base_at = base_bytes
        self._retained = -1
        self.state = LogState(self._chain.last, self._chain.cut, ended.intent, self._chain.tables)

    def close(self) -> None:
        """Let the producer go. A transaction that may be open is the next one's to end."""
        if self._void:
            self._producer.purge()
        del self._producer

    # ---------------------------------------------------------------------------------------------------------- take over
    def _end(self, log_id: str) -> Ended:
        """The end of the log, read after everybody else was fenced. Raises Superseded, R3."""
        with Story(self._settings, self._pipeline) as story:
            ended = story.end()
            if ended is None or ended.birth.id != log_id:
                found = "nothing" if ended is None else f"log {ended.birth.id}"
                raise CdcError("CDC-KAFKA-202", f"it was log {log_id}, now it holds {found}", where=self._topic)
            mine, last = self._identity.written.get(log_id), ended.chain.last
            if mine is None:
                return ended
            found_mine = story.find(mine.number)
        if last is None or found_mine is None or found_mine.checkpoint.mark != mine:
            raise CdcError("CDC-KAFKA-209", f"checkpoint {mine.number} ({mine.id}) is gone", where=self._topic)
        if last.writer != self._identity.id:
            detail = f"checkpoint {last.number} was written by {last.writer}, this is {self._identity.id}"
            raise Superseded("CDC-LOG-202", detail, where=self._topic)
        return ended

    # -------------------------------------------------------------------------------------------------------------- write
    def intend(self, intent: Intent) -> None:
        """See `Log.intend`."""
        with self._changing():
            self._producer.begin_transaction()
            sent = self._tell(Intended(self._chain.mark.number, intent))
            self._flush()
            self._commit(sent)

    def append(self, batch: Batch, draft: Draft) -> Checkpoint:
        """See `Log.append`. What is wrong with the batch itself is raised before anything is written."""
        self._check_sizes(batch)
        filled = {table: records for table, records in batch.items() if records.values}
        with self._changing(filled):
            if new := self._make_topics(filled, draft):
                self._tell_topics(new)
            self._producer.begin_transaction()
            sent = {table: self._send(self._topics[table], records) for table, records in filled.items()}
            self._flush()
            spans = {table: self._spans(self._topics[table], parts) for table, parts in sent.items()}
            due = draft.cut and self._story_bytes >= self._base_at
            checkpoint = self._chain.make(self._identity.id, batch, draft, self._fresh or due, spans)
            if due:
                self._begin_base(checkpoint)
            said = self._tell(checkpoint)
            self._flush()
            self._commit(said)
            self._chain.follow(checkpoint)
            self._identity.written[self._chain.log_id] = checkpoint.mark
            self._fresh = False
        return checkpoint

    @contextmanager
    def _changing(self, batch: Batch | None = None) -> Iterator[None]:
        """Void, until the change is known to be committed."""
        assert not self._void, "a writer whose last change failed must not be used again: open_writer"
        self._void = True
        try:
            yield
        except KafkaException as error:
            raise self._failed(error.args[0], batch or {}) from error
        except SystemError as error:
            # The binding calls our reports while it raises a fatal error, and Python notices; sometimes the error is gone then.
            known = error.__cause__
            fatal = known.args[0] if isinstance(known, KafkaException) else KafkaError(KafkaError._FATAL)
            raise self._failed(fatal, batch or {}) from error
        self._void = False

    def _failed(self, error: KafkaError, batch: Batch) -> CdcError:
        """Whatever it was: whether the change is in the log is known only to the next writer."""
        if error.code() in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE) and batch:
            return self._refused_size(batch, f"{error.name()}")
        found = error_of(error, self._topic)
        if found.code in ("CDC-KAFKA-201", "CDC-KAFKA-203"):  # for the next writer to find out
            return Unavailable(found.code, found.detail, where=found.where)
        return found

    # --------------------------------------------------------------------------------------------------------- the records
    def _make_topics(self, batch: Batch, draft: Draft) -> list[Topic]:
        """Make the topics of tables that are new. Nobody reads them before the log names them."""
        keyless = {begun.table: begun.keyless for begun in draft.begun}
        new = {
            table: 1 if self._is_keyless(table, keyless) else self._settings.partitions
            for table in {**batch, **keyless}
            if table not in self._topics
        }
        made = self._made.make(new, self._topics.values()) if new else []
        self._topics = self._topics | {topic.table: topic for topic in made}
        return made

    def _tell_topics(self, new: list[Topic]) -> None:
        """In a transaction of their own, before there is anything in them: what half of the next one leaves there, were it committed
        by a late end of this one, are orphans in topics that are known (A2), and not somebody else's records."""
        self._producer.begin_transaction()
        sent = [self._tell(topic) for topic in new]
        self._flush()
        self._offset(sent[0])
        self._commit(sent[-1])

    def _is_keyless(self, table: TableId, begun: Mapping[TableId, bool]) -> bool:
        known = self._chain.tables.get(table)
        return begun.get(table, known is not None and known.keyless)

    def _send(self, topic: Topic, records: Records) -> list[_Sent]:
        """Hand a table's records to the producer, which keeps their order."""
        sent, produce, name = [], self._producer.produce, topic.name
        assert len(records.keys) == len(records.values), f"{topic.table}: {records}, {len(records.keys)} keys"
        for partition, part in enumerate(divided(records, topic.partitions)):
            keys, values, last = part.keys, part.values, len(part.values) - 1
            report = _Sent(last + 1)
            sent.append(report)
            if last < 0:
                continue
            # A report costs more than the record. The first and the last one's tell the range, the rest is a matter of counting.
            produce(name, values[0], keys[0], partition, report)
            for key, value in zip(keys[1:last], values[1:last], strict=True):
                produce(name, value, key, partition)
            if last:
                produce(name, values[last], keys[last], partition, report)
        return sent

    def _spans(self, topic: Topic, sent: list[_Sent]) -> Spans:
        """Where the records are. Raises Unavailable when they are not in one piece behind all others, and R3 where they cannot be."""
        ends = self._chain.ends.get(topic.table, (0,) * topic.partitions)
        return tuple(
            self._span(f"{topic.name} partition {partition}", report, ends[partition])
            for partition, report in enumerate(sent)
        )

    def _span(self, where: str, report: _Sent, end: int) -> Span:
        if not report.count:
            return Span(end, end, 0)
        if report.error is not None:
            raise KafkaException(report.error)
        if len(report.offsets) != min(report.count, 2) or min(report.offsets) < 0:
            raise Unavailable("CDC-KAFKA-101", "records were not acknowledged", where=where)
        span = Span(report.offsets[0], report.offsets[-1] + 1, report.count)
        if span.begin < end:
            detail = f"records went to offset {span.begin}, the log has written up to {end}"
            raise CdcError("CDC-KAFKA-203", detail, where=where)
        if span.end - span.begin != span.count:
            detail = f"{span.count} records took the offsets from {span.begin} to {span.end}"
            raise Unavailable("CDC-KAFKA-109", detail, where=where)
        return span

    # ----------------------------------------------------------------------------------------------------------- the story
    def _begin_base(self, checkpoint: Checkpoint) -> None:
        """List all that is known before this cut, if the story since the last list is long enough for that."""
        states = self._chain.path(checkpoint)
        listed: list[Record] = [*self._topics.values(), *(State(table, state) for table, state in states.items())]
        records = [to_record(record) for record in listed]
        size = sum(len(key) + len(value) for key, value in records)
        if self._story_bytes < BASE_FACTOR * size:
            self._base_at = BASE_FACTOR * size
            return
        first = [self._put(key, value) for key, value in records][:1]
        self._flush()
        # Without a table the list is empty, and the base is the cut itself: nothing but what was aborted stands before it.
        self._base = self._offset(first[0]) if first else self._next
        self._story_bytes, self._base_at = 0, self._base_bytes

    def _tell(self, record: Record) -> _Sent:
        key, value = to_record(record)
        self._story_bytes += len(key) + len(value)
        return self._put(key, value)

    def _put(self, key: bytes, value: bytes) -> _Sent:
        report = _Sent(1)
        self._producer.produce(self._topic, value, key, 0, report, headers={BASE: b"%d" % self._base})
        return report

    def _offset(self, sent: _Sent) -> int:
        """Where this record of the story is. The first that a writer asks about is the first that it wrote."""
        offset = self._span(self._topic, sent, self._next).begin
        if not self._sure:
            self._check_end(offset)
        self._sure = True
        return offset

    def _check_end(self, offset: int) -> None:
        """Nobody else writes since the takeover. So what we write first follows what we read, but for control records; or we asked a
        broker that was frozen or cut off, and did not know that it led no more: then there are checkpoints that we have not read."""
        with Story(self._settings, self._pipeline) as story:
            if story.goes_on(self._next, offset):
                detail = f"its end was read at offset {self._next}, and there is more before {offset}"
                raise Unavailable("CDC-KAFKA-101", detail, where=self._topic)

    def _flush(self) -> None:
        if self._producer.flush(self._timeout_s):
            raise Unavailable("CDC-KAFKA-101", f"not acknowledged within {self._timeout_s:g} s", where=self._topic)

    def _commit(self, sent: _Sent) -> None:
        """Commit what ends with this record of the story."""
        offset = self._offset(sent)
        self._producer.commit_transaction(self._timeout_s)
        self._next = offset + 1

    # -------------------------------------------------------------------------------------------------------------- sizes
    def _check_sizes(self, batch: Batch) -> None:
        limit = self._settings.record_bytes_max
        for records in batch.values():
            keys = max((len(key) for key in records.keys if key is not None), default=0)
            if max(map(len, records.values), default=0) + keys > limit and _largest(records)[0] > limit:
                raise self._refused_size(batch, f"{limit} are allowed")

    def _refused_size(self, batch: Batch, why: str) -> CdcError:
        """Names the largest record."""
        table = max(batch, key=lambda table: _largest(batch[table])[0])
        size, key = _largest(batch[table])
        named = "without a key" if key is None else f"with the framed key {key[:256].hex()}"
        return CdcError("CDC-LOG-401", f"a record {named} has {size} bytes; {why}", where=str(table))

    # ------------------------------------------------------------------------------------------------------------- retain
    def retain(self, marks: Mapping[str, Mark]) -> None:
        """Delete records that no reader needs, up to the last cut. Without a known reader, none.

        A hint that names no checkpoint of this log counts as one that needs everything.
        """
        with Story(self._settings, self._pipeline) as story:
            keep = min((self._needed(story, mark) for mark in marks.values()), default=-1)
            keep = min(keep, self._chain.cut_mark.number)
            if keep <= self._retained or (found := story.find(keep)) is None:
                return
            ends = story.at(found.checkpoint.mark).chain.ends
        gone = [
            TopicPartition(self._topics[table].name, partition, end)
            for table, offsets in ends.items()
            for partition, end in enumerate(offsets)
            if end
        ]
        with translating(self._topic):
            for future in self._made.client.delete_records(gone).values() if gone else ():
                future.result(2 * TIMEOUT_S)
        self._retained = keep

    def _needed(self, story: Story, mark: Mark) -> int:
        found = story.find(mark.number) if mark.number >= 0 else None
        return mark.number if found is not None and found.checkpoint.id == mark.id else -1


def _largest(records: Records) -> tuple[int, bytes | None]:
    """The size and the key of the largest record."""
    pairs = zip(records.keys, records.values, strict=True)
    return max(
        ((len(value) + len(key or b""), key) for key, value in pairs), key=lambda found: found[0], default=(0, None)
    )
