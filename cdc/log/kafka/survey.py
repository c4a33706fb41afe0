"""What a Kafka log holds, for status and `cdc tail`: read beside a running capture, without taking the log over.

The invariant: nothing here writes, so looking at a pipeline never disturbs it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from confluent_kafka import TopicPartition

from cdc.errors import CdcError
from cdc.log import Checkpoint, Mark, Survey
from cdc.log.kafka.client import KafkaSettings, admin, consumer, group_of, translating
from cdc.log.kafka.partition import begins_of_log, know, take
from cdc.log.kafka.story import Place, Story
from cdc.table import TableId

SAMPLE = 8  # partitions whose newest records say how large a record is
SAMPLE_RECORDS = 100  # of each
SAMPLE_S = 2.0


def everything(_: TableId) -> bool:
    """All tables."""
    return True


class KafkaSurveyor:
    """See `cdc.log.Surveyor`. Raises CDC-LOG-101 when there is no log of this pipeline."""

    def __init__(self, settings: KafkaSettings, pipeline: str) -> None:
        self._settings, self._pipeline = settings, pipeline
        self._story = Story(settings, pipeline)
        birth = self._story.birth()
        if birth is None:
            self._story.close()
            raise CdcError("CDC-LOG-101", "nothing is there", where=f"{pipeline}.checkpoints")
        self.log_id = birth.id
        self._begins: dict[tuple[str, int], int] | None = None  # each partition's first offset
        self._topics: dict[TableId, str] = {}

    def __enter__(self) -> KafkaSurveyor:
        return self

    def __exit__(self, *_: object) -> None:
        self._story.close()

    def last(self) -> Checkpoint | None:
        """The newest checkpoint."""
        return self._story.last()

    def written_ms(self, number: int) -> int | None:
        """When checkpoint `number` was written; None when it is not there."""
        found = self._story.find(number)
        return found.checkpoint.written_ms if found else None

    def survey(self) -> Survey:
        """All of it. Reads from the last base on. `events` counts offsets, of which transactions take some."""
        chain = self._place().chain
        return Survey(chain.last, chain.tables, {table: sum(ends) for table, ends in chain.ends.items()})

    def mark_before(self, number: int) -> Mark:
        """The mark to read from so that checkpoint `number`, or the earliest that is left, comes first."""
        number = max(number, self._first_left())
        if number == 0:
            return Mark(-1, self.log_id)
        before = self._checkpoint(number - 1)
        if before is None:
            detail = f"the log ends before checkpoint {number - 1}"
            raise CdcError("CDC-LOG-107", detail, where=f"{self._pipeline}.checkpoints")
        return before.mark

    def mark_before_events(self, count: int, wanted: Callable[[TableId], bool]) -> Mark:
        """The mark to read from so that at least the last `count` events of these tables come, or all that there are."""
        for checkpoint in self._story.backwards():
            if count <= 0 or not self._is_left(checkpoint, wanted):
                return checkpoint.mark
            count -= sum(rows for table, rows in checkpoint.rows.items() if wanted(table))
        return Mark(-1, self.log_id)

    def backlog_bytes(self, after: int) -> int:
        """About the size of the records behind checkpoint `after`: their number, times what the newest of them have on average."""
        place, before = self._place(), self._ends(after)
        behind: dict[tuple[str, int], tuple[int, int]] = {}
        for table, ends in place.chain.ends.items():
            begins = before.get(table, (0,) * len(ends))
            for partition, (begin, end) in enumerate(zip(begins, ends, strict=True)):
                if end > begin:
                    behind[place.topics[table].name, partition] = begin, end
        return round(sum(end - begin for begin, end in behind.values()) * self._mean_bytes(behind)) if behind else 0

    def _checkpoint(self, number: int) -> Checkpoint | None:
        found = self._story.find(number)
        return found.checkpoint if found else None

    def _first_left(self) -> int:
        """The number of the first checkpoint from which on all records are left; 0 when nothing was deleted.

        Not found by looking at single checkpoints: one that has no records is not gone, and later ones may be."""
        chain, begins = self._place().chain, self._kept()
        # Deleting ends behind a control record, too: no more is needed than there was.
        needed = {
            (table, partition): min(begins.get((self._topics[table], partition), 0), end)
            for table, ends in chain.ends.items()
            for partition, end in enumerate(ends)
        }
        needed = {place: offset for place, offset in needed.items() if offset}
        if not needed or chain.last is None:
            return 0
        first, end = 0, chain.last.number + 1
        while first < end:
            middle = (first + end) // 2
            ends = self._ends(middle - 1)
            if all(table in ends and ends[table][at] >= offset for (table, at), offset in needed.items()):
                end = middle
            else:
                first = middle + 1
        return first

    def _ends(self, number: int) -> Mapping[TableId, tuple[int, ...]]:
        """Where partitions ended as of a checkpoint."""
        found = self._story.find(number) if number >= 0 else None
        return self._story.at(found.checkpoint.mark).chain.ends if found else {}

    def _kept(self) -> dict[tuple[str, int], int]:
        """The first offset of each partition, asked once."""
        if self._begins is None:
            place = self._place()
            places = [(topic.name, i) for topic in place.topics.values() for i in range(topic.partitions)]
            with translating(self._pipeline):
                found = begins_of_log(admin(self._settings), [TopicPartition(*place) for place in places])
            self._begins = dict(zip(places, found, strict=True))
            self._topics = {table: topic.name for table, topic in place.topics.items()}
        return self._begins

    def _is_left(self, checkpoint: Checkpoint, wanted: Callable[[TableId], bool]) -> bool:
        """Whether retention has left all records of these tables in this checkpoint."""
        begins = self._kept()
        return all(
            span.begin >= begins.get((self._topics[table], partition), 0)
            for table, spans in checkpoint.spans.items()
            if wanted(table)
            for partition, span in enumerate(spans)
            if span.count
        )

    def _place(self) -> Place:
        seen = self._story.seen()
        assert seen is not None, "a log that was there"
        return seen[1]

    def _mean_bytes(self, behind: dict[tuple[str, int], tuple[int, int]]) -> float:
        """Of key and value, by looking at the ends of the partitions that have most."""
        most = sorted(behind.items(), key=lambda item: item[1][0] - item[1][1])[:SAMPLE]
        sizes: list[int] = []
        with translating(self._pipeline):
            reading = consumer(self._settings, group_of(self._pipeline), enable_partition_eof=True)
            try:
                know(reading, [topic for (topic, _), _ in most])
                reading.assign(
                    [TopicPartition(*place, max(begin, end - SAMPLE_RECORDS)) for place, (begin, end) in most]
                )
                ended = 0
                while ended < len(most) and (messages := take(reading, SAMPLE_S)):
                    for message in messages:
                        if message.error() is None:
                            sizes.append(len(message.value() or b"") + len(message.key() or b""))
                        else:
                            ended += 1
            finally:
                reading.close()
        return sum(sizes) / len(sizes) if sizes else 0.0
