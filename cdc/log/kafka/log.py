"""Kafka as the log: one topic per table, and `<pipeline>.checkpoints`, whose transactions hold a batch and its checkpoint together.

Durable means acknowledged by the brokers as committed when the call returns. One process writes, by the fencing of one transactional
id; the others look and read, without disturbing it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

from cdc.errors import CdcError, Unavailable
from cdc.log import Checkpoint, Draft, Intent, Json, LogState, Mark, Signal
from cdc.log.checkpoint import random_id
from cdc.log.kafka.client import APPLIED, KafkaSettings, cluster_of, translating
from cdc.log.kafka.hints import Hints
from cdc.log.kafka.reader import Reader
from cdc.log.kafka.records import FORMAT, Birth, to_record
from cdc.log.kafka.schemas import Schemas
from cdc.log.kafka.signals import Signals
from cdc.log.kafka.story import Story
from cdc.log.kafka.survey import KafkaSurveyor
from cdc.log.kafka.topics import Topics, checkpoints_topic, verify_brokers
from cdc.log.kafka.writer import BASE_BYTES, THIS_PROCESS, Identity, Writer, transactional
from cdc.records import Batch
from cdc.registry import Registrar
from cdc.table import TableId


class KafkaLog:
    """See `cdc.log.Log`. One instance per process and role; reading and writing need not be the same instance.

    With `create` a log is begun where none is; without it that is CDC-LOG-101. With a `registry` schemas get their ids from it.
    `identity` is who writes, and what was acknowledged to it: it outlives a log that is opened again after a failure.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        pipeline: str,
        *,
        create: bool = True,
        registry: Registrar | None = None,
        identity: Identity = THIS_PROCESS,
        base_bytes: int = BASE_BYTES,
    ) -> None:
        self._settings, self._registry = settings, registry
        self._identity, self._base_bytes = identity, base_bytes
        self.pipeline: str | None = pipeline
        self._name, self._topic = pipeline, checkpoints_topic(pipeline)
        self._topics = Topics(settings, pipeline)
        self._story = Story(settings, pipeline)
        self._schemas = Schemas(settings, pipeline)
        self._signals = Signals(settings, pipeline)
        self._hints = Hints(settings, pipeline)
        self._readers: set[Reader] = set()
        self._writer: Writer | None = None
        try:
            self._birth = self._known(cluster_of(settings), create)
            self.id = self._birth.id
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> KafkaLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _known(self, cluster: str, create: bool) -> Birth:
        """Whose log it is. Raises R3 where what is there is not this pipeline's log in this cluster."""
        birth = self._story.birth()
        if birth is None and create:
            birth = self._begin(cluster)
        if birth is None:
            remedy = "Check the brokers under `log:` and the pipeline's name. Start the capture first if the pipeline is new."
            raise CdcError("CDC-LOG-101", "no log has been begun there", where=self._topic, remedy=remedy)
        if birth.format > FORMAT:
            raise CdcError("CDC-LOG-103", f"format {birth.format}; this version knows {FORMAT}", where=self._topic)
        if birth.pipeline != self._name:
            raise CdcError("CDC-LOG-111", f"it is the log of {birth.pipeline}", where=self._topic)
        if birth.cluster != cluster:
            raise CdcError("CDC-KAFKA-206", f"it is of cluster {birth.cluster}, this is {cluster}", where=self._topic)
        return birth

    def _begin(self, cluster: str) -> Birth | None:
        """Begin the log, unless somebody else does so at the same time: of two, one is fenced, and takes what the other wrote."""
        verify_brokers(self._settings)
        ids = self._topics.make_own()
        self._story.close()  # its client has learned that the topic is missing, and would go on saying so for a while
        producer = transactional(self._settings, self._name)
        if (birth := self._story.birth()) is not None:
            return birth
        self._topics.check_unused()
        birth = Birth(random_id() + random_id(), self._name, cluster, topics=ids)
        key, value = to_record(birth)
        try:
            with translating(self._topic):
                producer.begin_transaction()
                producer.produce(self._topic, value, key, 0)
                producer.commit_transaction(self._settings.transaction_timeout_s)
        except Unavailable:
            if (written := self._story.birth()) is None:
                raise
            return written
        return birth

    # -------------------------------------------------------------------------------------------------------------- write
    def open_writer(self) -> LogState:
        """See `Log.open_writer`. Others are fenced, not refused. Raises Superseded when one of them has written after this process."""
        self._close_writer()
        verify_brokers(self._settings)
        self._writer = Writer(
            self._settings,
            self._name,
            self._birth,
            topics=self._topics,
            identity=self._identity,
            base_bytes=self._base_bytes,
        )
        return self._writer.state

    def _writing(self) -> Writer:
        assert self._writer is not None, "open_writer comes first"
        return self._writer

    def intend(self, intent: Intent) -> None:
        self._writing().intend(intent)

    def append(self, batch: Batch, draft: Draft) -> Checkpoint:
        """See `Log.append`. After an error, whether the batch is in the log is known only to `open_writer`, which must come next.

        A writer that another one has fenced raises Unavailable: which of the two goes on is for `open_writer` to find (A3)."""
        return self._writing().append(batch, draft)

    # --------------------------------------------------------------------------------------------------------------- read
    def read(
        self, after: Mark, tables: Callable[[TableId], bool], idle_s: float
    ) -> Generator[tuple[Checkpoint, Batch] | None, None, None]:
        reader = Reader(self._settings, self._name, self.id)
        self._readers.add(reader)
        try:
            yield from reader.read(after, tables, idle_s)
        finally:
            self._readers.discard(reader)

    def last_checkpoint(self) -> Checkpoint | None:
        return self._story.last()

    def register(self, subject: str, schema: Json) -> int:
        given = None if self._registry is None else self._registry.register(subject, schema)
        return self._schemas.register(subject, schema, given)

    def schema(self, schema_id: int) -> Json:
        return self._schemas.schema(schema_id)

    def subjects(self) -> Mapping[str, Sequence[int]]:
        return self._schemas.subjects()

    def look(self) -> KafkaSurveyor:
        return KafkaSurveyor(self._settings, self._name)

    def signal(self, kind: str, details: Json) -> int:
        return self._signals.add(kind, details)

    def signals(self, after: int) -> list[Signal]:
        return self._signals.after(after)

    # ---------------------------------------------------------------------------------------------------------- retention
    def report(self, reader: str, mark: Mark) -> None:
        offset = next((at for reading in self._readers if (at := reading.offset_behind(mark.number)) is not None), None)
        if offset is None:
            found = self._story.find(mark.number) if mark.number >= 0 else None
            offset = 0 if found is None else found.offset + 1
        self._hints.put(reader, mark, offset)

    def expect(self, readers: Iterable[str]) -> None:
        """Retention waits for these readers, too, though they may not have reported yet: sinks that are yet to start (A9)."""
        self._hints.expect(readers, Mark(-1, self.id))

    def forget(self, reader: str) -> None:
        """Retention need not wait for this reader any more: its sink was dropped."""
        self._hints.remove(reader)

    def retain(self) -> None:
        if self._settings.retention == APPLIED:
            self._writing().retain(self._hints.marks())

    def status(self) -> Mapping[str, Json]:
        """Numbers of the `first` checkpoint whose records are all left and of the `last` one (None without one), `segments`: data
        topics. `size_bytes` and `free_bytes` are the brokers' to know: None."""
        with self.look() as surveyor:
            last = surveyor.last()
            first = surveyor.mark_before(0).number + 1 if last else None
            tables = surveyor.survey().events
        return {
            "size_bytes": None,
            "free_bytes": None,
            "first": first,
            "last": last.number if last else None,
            "segments": len(tables),
            "records": sum(tables.values()),
        }

    def _close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def close(self) -> None:
        """Close everything, readings included. May be called twice."""
        for reader in list(self._readers):
            reader.close()
        self._close_writer()
        for part in (self._story, self._schemas, self._signals, self._hints, self._topics):
            part.close()
        if self._registry is not None:
            self._registry.close()
