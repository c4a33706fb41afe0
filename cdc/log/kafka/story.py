"""Reading the log's own story in `<pipeline>.checkpoints`: its end, and how it was at any checkpoint.

The invariant: a story is told from a base on, without a gap; what does not follow from it is an error, never passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple

from confluent_kafka import Message

from cdc.errors import CdcError, Unavailable
from cdc.log import Checkpoint, Intent, Mark, TableState
from cdc.log.checkpoint import Chain
from cdc.log.kafka.client import KafkaSettings
from cdc.log.kafka.partition import Partition, believed, offset_of
from cdc.log.kafka.records import BASE, CHECKPOINT, Birth, Intended, Record, State, Topic, from_record
from cdc.table import TableId

SETTLE_S = 1.0  # how long to wait for what was acknowledged to become visible; an open transaction takes longer
LINEAR = 256  # offsets that are read rather than halved again
STEP, STEP_MOST = 64, 4096  # offsets before the end that are read at once, from there backwards


class Found(NamedTuple):
    """A checkpoint, its offset, and the base that it names."""

    offset: int
    checkpoint: Checkpoint
    base: int


class Ended(NamedTuple):
    """The log's end. `next_offset` follows all that was read; `bytes_since_base` counts what came behind the base's own list."""

    chain: Chain
    birth: Birth
    topics: dict[TableId, Topic]
    intent: Intent | None
    base_offset: int
    next_offset: int
    bytes_since_base: int


class Place(NamedTuple):
    """The log as of a checkpoint. `next_offset` of the checkpoints topic is where to read on."""

    chain: Chain
    topics: dict[TableId, Topic]
    next_offset: int


class Story:
    """The checkpoints topic of a pipeline, read. Clients are made at first use; `close` them."""

    def __init__(self, settings: KafkaSettings, pipeline: str) -> None:
        self._partition = Partition(settings, pipeline, f"{pipeline}.checkpoints")
        self._transaction_s = settings.transaction_timeout_s

    def __enter__(self) -> Story:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._partition.close()

    # ------------------------------------------------------------------------------------------------------------ the end
    def end(self) -> Ended | None:
        """What a writer must know that has fenced all others: everything up to the high watermark as it is now. None without a log.

        Raises Unavailable when a transaction is still open after a transaction's longest time.
        """
        begin, end, stable = self._settled(2 * self._transaction_s)
        if not stable:
            raise Unavailable("CDC-KAFKA-101", f"the transaction at offset {end} stays open", where=self._topic)
        birth = self._born(begin, end)
        if birth is None:
            return None
        newest = self._newest(end)
        base = newest.base if newest else 0
        telling = self._tell(birth, base, end)
        return Ended(telling.chain, birth, telling.topics, telling.intent, base, end, telling.size_bytes)

    def seen(self) -> tuple[Birth, Place] | None:
        """The end as a reader sees it: an open transaction is not waited for. None without a log."""
        begin, end, _ = self._settled(SETTLE_S)
        birth = self._born(begin, end)
        if birth is None:
            return None
        newest = self._newest(end)
        telling = self._tell(birth, newest.base if newest else 0, end)
        return birth, Place(telling.chain, telling.topics, end)

    def last(self) -> Checkpoint | None:
        """The newest checkpoint that can be seen."""
        newest = self._newest(self._settled(SETTLE_S)[1])
        return newest.checkpoint if newest else None

    def birth(self) -> Birth | None:
        """Whose log this is; None when the topic is missing or holds nothing that is committed."""
        try:
            begin, end, _ = self._settled(SETTLE_S)
        except CdcError as error:
            if error.code != "CDC-KAFKA-201":
                raise
            return None
        return self._born(begin, end)

    # -------------------------------------------------------------------------------------------------------- a checkpoint
    def at(self, mark: Mark) -> Place:
        """The log as of `mark`. Raises R3 when that is not a checkpoint of this log that can be continued."""
        return believed(lambda: self._at(mark))

    def _at(self, mark: Mark) -> Place:
        begin, end, _ = self._settled(SETTLE_S)
        birth = self._born(begin, end)
        if birth is None:
            raise CdcError("CDC-LOG-101", "no log has been begun there", where=self._topic)
        if mark.number < 0:
            if mark != Mark(-1, birth.id):
                raise CdcError("CDC-LOG-106", f"it is of log {mark.id}, this is {birth.id}", where=self._topic)
            return Place(Chain(birth.id, dense=False), {}, 0)
        found = self._find(mark.number, end)
        if found is None:
            self.close()  # so that others are asked: of the end, this client knows one broker
            detail = f"it is at checkpoint {mark.number}, the log ends before it"
            raise CdcError("CDC-LOG-107", detail, where=self._topic)
        if found.checkpoint.id != mark.id:
            detail = f"checkpoint {mark.number} has the id {found.checkpoint.id}, the bookmark says {mark.id}"
            raise CdcError("CDC-LOG-106", detail, where=self._topic)
        telling = self._tell(birth, found.base, found.offset + 1)
        return Place(telling.chain, telling.topics, found.offset + 1)

    def find(self, number: int) -> Found | None:
        """Checkpoint `number`; None when it is not there."""
        return self._find(number, self._settled(SETTLE_S)[1])

    def _find(self, number: int, end: int) -> Found | None:
        """Numbers grow with offsets, which are not dense: halve, then read what is left."""
        begin = 0
        while end - begin > LINEAR:
            middle = (begin + end) // 2
            found = self._first(middle, end)
            if found is None or found.checkpoint.number > number:
                end = middle
            elif found.checkpoint.number < number:
                begin = found.offset + 1
            else:
                return found
        for message in self._partition.read(begin, end):
            if message.key() == CHECKPOINT:
                found = self._found(message)
                if found.checkpoint.number >= number:
                    return found if found.checkpoint.number == number else None
        return None

    def goes_on(self, begin: int, end: int) -> bool:
        """Whether anything is committed from `begin` on, before `end`, which must be stable."""
        return next(self._partition.read(begin, end), None) is not None

    def backwards(self) -> Iterator[Checkpoint]:
        """All checkpoints, the newest first."""
        for found in self._backwards(self._settled(SETTLE_S)[1]):
            yield found.checkpoint

    # ----------------------------------------------------------------------------------------------------------- internals
    @property
    def _topic(self) -> str:
        return self._partition.topic

    def _settled(self, wait_s: float) -> tuple[int, int, bool]:
        begin, end, stable = self._partition.settled(wait_s)
        if begin:
            detail = f"its records begin at offset {begin}, and nothing is ever deleted there"
            raise CdcError("CDC-KAFKA-203", detail, where=self._topic)
        return begin, end, stable

    def _born(self, begin: int, end: int) -> Birth | None:
        for message in self._partition.read(begin, end):
            record = self._record(message)
            if not isinstance(record, Birth):
                raise CdcError("CDC-KAFKA-207", "it does not begin with a log's birth", where=self._topic)
            return record
        return None

    def _newest(self, end: int) -> Found | None:
        """The last checkpoint before `end`. Behind it can be any number of aborted and control records, and intents."""
        return next(self._backwards(end), None)

    def _backwards(self, end: int) -> Iterator[Found]:
        step = STEP
        while end:
            begin = max(0, end - step)
            found = [message for message in self._partition.read(begin, end) if message.key() == CHECKPOINT]
            yield from map(self._found, reversed(found))
            end, step = begin, min(8 * step, STEP_MOST)

    def _first(self, begin: int, end: int) -> Found | None:
        for message in self._partition.read(begin, end):
            if message.key() == CHECKPOINT:
                return self._found(message)
        return None

    def _tell(self, birth: Birth, base: int, end: int) -> Telling:
        telling = Telling(Chain(birth.id, dense=False), listing=base > 0)
        for message in self._partition.read(base, end):
            try:
                telling.take(self._record(message), len(message.key() or b"") + len(message.value() or b""))
            except ValueError as error:
                raise CdcError("CDC-KAFKA-203", f"offset {message.offset()}: {error}", where=self._topic) from error
        return telling

    def _found(self, message: Message) -> Found:
        checkpoint = self._record(message)
        assert isinstance(checkpoint, Checkpoint)
        return Found(offset_of(message), checkpoint, base_of(message))

    def _record(self, message: Message) -> Record:
        return record_of(message, self._topic)


def record_of(message: Message, topic: str) -> Record:
    """Raises CDC-KAFKA-207 on what is none of ours: it is not skipped."""
    try:
        return from_record(message.key(), message.value())
    except ValueError as error:
        raise CdcError("CDC-KAFKA-207", f"offset {message.offset()}: {error}", where=topic) from error


def base_of(message: Message) -> int:
    """The base that a checkpoint names; the beginning when it names none."""
    headers = message.headers() or []
    assert not isinstance(headers, dict)
    return next((int(value) for name, value in headers if name == BASE and value is not None), 0)


@dataclass(slots=True)
class Telling:
    """What is known while a story is told. `listing`: it begins with a base's list, which the first checkpoint closes."""

    chain: Chain
    listing: bool
    topics: dict[TableId, Topic] = field(default_factory=dict)
    intent: Intent | None = None
    size_bytes: int = 0
    _states: dict[TableId, TableState] = field(default_factory=dict)

    def take(self, record: Record, size_bytes: int) -> None:
        """Raises ValueError when it does not follow."""
        listing = self.listing
        match record:
            case Topic():
                self.topics[record.table] = record
            case State(table, state):
                self._states[table] = state  # of any other base than the first it says nothing new
            case Intended():
                self.intent = record.intent
            case Checkpoint():
                self._checkpoint(record)
        if not listing:
            self.size_bytes += size_bytes

    def _checkpoint(self, checkpoint: Checkpoint) -> None:
        if checkpoint.log_id != self.chain.log_id:
            raise ValueError(f"checkpoint {checkpoint.number} is of log {checkpoint.log_id}")
        self.intent = None
        if not self.listing:
            self.chain.follow(checkpoint)
            return
        if not checkpoint.cut or checkpoint.ends is None:
            raise ValueError(f"checkpoint {checkpoint.number} closes a base and is not a cut that lists all ends")
        chain = self.chain
        # The list is of this checkpoint's own path, whatever it abandons.
        chain.ends, chain.tables, chain.cut_tables = dict(checkpoint.ends), self._states, self._states
        chain.tables = chain.cut_tables = self._states | chain.changes(checkpoint)
        chain.last = chain.cut = checkpoint
        self.listing = False
