"""The built-in registry in `<pipeline>.schemas` (protocol A8): every schema with its id, each version of each subject.

The invariant: an id is acknowledged by the brokers before it is returned, and never means two schemas.
"""

from __future__ import annotations

import json

from confluent_kafka import Message, Producer

from cdc.avro import canonical, schema_hash
from cdc.errors import CdcError
from cdc.log import Json
from cdc.log.kafka.client import KafkaSettings, producer
from cdc.log.kafka.partition import Partition, believed, send

_ID_MASK = 0x7FFFFFFF  # ids are 31 bits


class Schemas:
    """An id is the schema's hash, or the next free number when two schemas share one. One process registers, any number read."""

    def __init__(self, settings: KafkaSettings, pipeline: str) -> None:
        self._settings = settings
        self._partition = Partition(settings, pipeline, f"{pipeline}.schemas")
        self._producer: Producer | None = None
        self._next: int | None = None  # the offset up to which everything was read
        self._bodies: dict[int, str] = {}
        self._parsed: dict[int, Json] = {}
        self._subjects: dict[str, list[int]] = {}
        self._ids: dict[tuple[str, str], int] = {}

    def close(self) -> None:
        self._partition.close()
        self._producer = None

    def register(self, subject: str, schema: Json, given: int | None = None) -> int:
        """The id, acknowledged with the subject's version before it is returned. `given` is what an external registry gave. Raises
        CDC-REG-301 when that is another schema's here."""
        body = canonical(schema)
        known = self._ids.get((subject, body))
        if known is not None and given in (None, known):
            return known
        if self._next is None:
            self._catch_up()
            return self.register(subject, schema, given)
        schema_id = self._place(schema_hash(schema) if given is None else given, body)
        if given not in (None, schema_id):
            raise CdcError("CDC-REG-301", f"id {given}, given for {subject}", where=self._partition.topic)
        version = len(self._subjects.get(subject, ())) + 1
        record = {"id": schema_id, "subject": subject, "version": version, "schema": schema}
        if self._producer is None:
            self._producer = producer(self._settings, linger_ms=0)
        try:
            send(
                self._producer,
                self._partition.topic,
                subject.encode(),
                json.dumps(record, separators=(",", ":")).encode(),
            )
        except BaseException:
            self._producer = None  # whether it was written is read before the next one
            self._next = None
            raise
        self._take(schema_id, subject, schema)
        return schema_id

    def schema(self, schema_id: int) -> Json:
        """Raises CDC-LOG-402 for an unknown id."""
        if schema_id not in self._bodies:
            believed(lambda: self._find(schema_id))
        if schema_id not in self._parsed:
            self._parsed[schema_id] = json.loads(self._bodies[schema_id])
        return self._parsed[schema_id]

    def _find(self, schema_id: int) -> None:
        self._catch_up()
        if schema_id not in self._bodies:
            raise CdcError("CDC-LOG-402", f"schema {schema_id}", where=self._partition.topic)

    def subjects(self) -> dict[str, list[int]]:
        """The ids of each subject's versions, in order."""
        self._catch_up()
        return {subject: list(self._subjects[subject]) for subject in sorted(self._subjects)}

    def topics(self) -> list[str]:
        """One of the topics that subjects are named after, if there is any."""
        return sorted(self.subjects())[:1]

    def _place(self, schema_id: int, body: str) -> int:
        while self._bodies.get(schema_id, body) != body:
            schema_id = schema_id + 1 & _ID_MASK
        return schema_id

    def _catch_up(self) -> None:
        """Read to the end. No consumer stays open: schemas are rare."""
        begin, end, _ = self._partition.settled(0)
        if begin:
            detail = f"its records begin at offset {begin}, and nothing is ever deleted there"
            raise CdcError("CDC-KAFKA-203", detail, where=self._partition.topic)
        for message in self._partition.read(self._next or 0, end):
            self._take(*self._read(message))
        self._next = end
        self._partition.close()

    def _read(self, message: Message) -> tuple[int, str, Json]:
        try:
            data = json.loads(message.value() or b"")
            return int(data["id"]), str(data["subject"]), data["schema"]
        except (KeyError, TypeError, ValueError) as error:
            detail = f"offset {message.offset()}: not a schema of ours: {error!r}"
            raise CdcError("CDC-KAFKA-207", detail, where=self._partition.topic) from error

    def _take(self, schema_id: int, subject: str, schema: Json) -> None:
        """What is there already says nothing new: it was sent again after a failure."""
        body = canonical(schema)
        if self._bodies.setdefault(schema_id, body) != body:
            raise CdcError("CDC-KAFKA-207", f"schema id {schema_id} means two schemas", where=self._partition.topic)
        versions = self._subjects.setdefault(subject, [])
        if schema_id not in versions:
            versions.append(schema_id)
        self._ids[subject, body] = schema_id
