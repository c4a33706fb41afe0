"""Requests to the capture in `<pipeline>.signals`: any process writes there, without transactions, so that numbers are dense.

The invariant: a signal's number is its offset + 1, acknowledged before it is returned.
"""

from __future__ import annotations

import json

from confluent_kafka import Message, Producer

from cdc.errors import CdcError
from cdc.log import Json, Signal
from cdc.log.kafka.client import KafkaSettings, producer
from cdc.log.kafka.partition import Partition, offset_of, send

FETCH_WAIT_MS = 500  # how long the brokers hold an empty answer back; a signal goes out at once


class Signals:
    """Numbered densely from 1."""

    def __init__(self, settings: KafkaSettings, pipeline: str) -> None:
        self._settings = settings
        self._partition = Partition(settings, pipeline, f"{pipeline}.signals", fetch_wait_max_ms=FETCH_WAIT_MS)
        self._producer: Producer | None = None
        self._found: list[Signal] = []

    def close(self) -> None:
        self._partition.close()
        self._found.clear()
        self._producer = None

    def add(self, kind: str, details: Json) -> int:
        """The number of the new request."""
        value = json.dumps({"kind": kind, "details": details}, separators=(",", ":")).encode()
        if self._producer is None:
            self._producer = producer(self._settings, linger_ms=0)
        try:
            return send(self._producer, self._partition.topic, kind.encode(), value) + 1
        except BaseException:
            self._producer = None
            raise

    def after(self, number: int) -> list[Signal]:
        """Requests above `number`. The first call reads all that there are now; later ones take what has come since, at no cost."""
        if self._partition.at is None:
            self._found.clear()
            begin, end, _ = self._partition.settled(0)
            self._found += map(self._read, self._partition.read(begin, end))
            self._partition.begin_at(end)
        self._found += map(self._read, self._partition.more())
        return [signal for signal in self._found if signal.number > number]

    def _read(self, message: Message) -> Signal:
        try:
            data = json.loads(message.value() or b"")
            return Signal(offset_of(message) + 1, str(data["kind"]), data["details"])
        except (KeyError, TypeError, ValueError) as error:
            detail = f"offset {message.offset()}: not a signal of ours: {error!r}"
            raise CdcError("CDC-KAFKA-207", detail, where=self._partition.topic) from error
