"""What each reader no longer needs, as the offset of its consumer group, so that Kafka's own tools show how far it is behind.

The groups have no members: nobody is balanced by them. A hint that is lost only keeps more, so nothing waits for it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from typing import NamedTuple

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from cdc.log import Mark
from cdc.log.kafka.client import TIMEOUT_S, KafkaSettings, admin, group_of, translating

EVERY_S = 2.0
REFRESH_S = 86_400.0  # brokers forget a group whose offsets nobody commits; after a week, by default


class Hint(NamedTuple):
    """A reader needs the checkpoints topic from `offset` on, the checkpoints behind `mark`."""

    mark: Mark
    offset: int


class Hints:
    """Hints of any number of readers. A hint goes out at once when none did lately, else soon; at `close` at the latest."""

    def __init__(self, settings: KafkaSettings, pipeline: str) -> None:
        self._settings, self._pipeline, self._topic = settings, pipeline, f"{pipeline}.checkpoints"
        self._admin: AdminClient | None = None
        self._lock = threading.Lock()  # the timer sends beside the caller
        self._due: dict[str, Hint] = {}
        self._timer: threading.Timer | None = None
        self._sent_at = -EVERY_S
        self._sending: list[Future[ConsumerGroupTopicPartitions]] = []
        self._seen: dict[str, tuple[Hint, float]] = {}  # when each hint was first seen, or refreshed

    def put(self, reader: str, mark: Mark, offset: int) -> None:
        """The reader needs nothing before this offset, which stands just behind checkpoint `mark`. Costs no round trip."""
        with self._lock:
            self._due[reader] = Hint(mark, offset)
            if self._timer is not None:
                return
            rest_s = self._sent_at + EVERY_S - time.monotonic()
            if rest_s <= 0:
                self._send()
                return
            self._timer = threading.Timer(rest_s, self._send_late)
            self._timer.daemon = True
            self._timer.start()

    def expect(self, readers: Iterable[str], mark: Mark) -> None:
        """Readers that have not reported yet, as if they stood at `mark`, before the first checkpoint."""
        known = self._hints()
        missing = {reader: Hint(mark, 0) for reader in readers if reader not in known}
        with translating(self._topic):
            for future in self._commit(missing):
                for partition in future.result(2 * TIMEOUT_S).topic_partitions or ():
                    if partition.error is not None:  # else retention would not wait for this reader (A9)
                        raise KafkaException(partition.error)

    def remove(self, reader: str) -> None:
        """Nothing waits for this reader any more."""
        with self._lock:
            self._due.pop(reader, None)
        self._seen.pop(reader, None)
        with translating(self._topic):
            group = group_of(self._pipeline, reader)
            try:
                self._client().delete_consumer_groups([group], request_timeout=TIMEOUT_S)[group].result(2 * TIMEOUT_S)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:
                    raise

    def marks(self) -> dict[str, Mark]:
        """Every reader's, those included that this process has just put. One that it has seen stays, although the brokers may have
        forgotten its group (A9)."""
        self._settle()
        now, found = time.monotonic(), self._hints()
        self._seen = {
            reader: seen if (seen := self._seen.get(reader)) and seen[0] == hint else (hint, now)
            for reader, hint in {**{reader: hint for reader, (hint, _) in self._seen.items()}, **found}.items()
        }
        if old := {reader: hint for reader, (hint, at) in self._seen.items() if now - at > REFRESH_S}:
            with translating(self._topic):
                self._commit(old)
            self._seen |= {reader: (hint, now) for reader, hint in old.items()}
        return {reader: hint.mark for reader, (hint, _) in self._seen.items()}

    def close(self) -> None:
        """Send what is due, and wait for it, briefly: it is a hint."""
        self._settle()
        self._admin = None

    # ----------------------------------------------------------------------------------------------------------- internals
    def _settle(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._due:
                self._send()
            sending, self._sending = self._sending, []
        deadline = time.monotonic() + EVERY_S
        for future in sending:
            try:
                future.result(max(0.0, deadline - time.monotonic()))
            except (KafkaException, TimeoutError):
                continue

    def _client(self) -> AdminClient:
        if self._admin is None:
            self._admin = admin(self._settings)
        return self._admin

    def _send_late(self) -> None:
        with self._lock:
            if self._timer is not None:  # else it was closed meanwhile
                self._timer = None
                self._send()

    def _send(self) -> None:
        due, self._due = self._due, {}
        self._sent_at = time.monotonic()
        self._sending = [future for future in self._sending if not future.done()] + self._commit(due)

    def _commit(self, hints: dict[str, Hint]) -> list[Future[ConsumerGroupTopicPartitions]]:
        client, futures = self._client(), list[Future[ConsumerGroupTopicPartitions]]()
        for reader, hint in hints.items():
            of = TopicPartition(self._topic, 0, hint.offset, json.dumps(list(hint.mark)))
            asked = [ConsumerGroupTopicPartitions(group_of(self._pipeline, reader), [of])]
            futures += client.alter_consumer_group_offsets(asked, request_timeout=TIMEOUT_S).values()
        return futures

    def _hints(self) -> dict[str, Hint]:
        """Of all groups with our prefix that have an offset in our checkpoints: another pipeline's name may begin as ours does."""
        client, prefix = self._client(), group_of(self._pipeline, "")
        found = {}
        with translating(self._topic):
            listed = client.list_consumer_groups(request_timeout=TIMEOUT_S).result(2 * TIMEOUT_S)
            groups = [group.group_id for group in listed.valid or () if group.group_id.startswith(prefix)]
            for error in listed.errors or ():
                raise error
            for group in groups:
                asked = [ConsumerGroupTopicPartitions(group, [TopicPartition(self._topic, 0)])]
                (future,) = client.list_consumer_group_offsets(asked, request_timeout=TIMEOUT_S).values()
                (of,) = future.result(2 * TIMEOUT_S).topic_partitions
                if of.offset >= 0:
                    found[group[len(prefix) :]] = Hint(_mark(of.metadata), of.offset)
        return found


def _mark(metadata: str | None) -> Mark:
    """What was not committed by us, by a tool that moved the group for one, names no checkpoint: such a reader needs everything."""
    try:
        number, identity = json.loads(metadata or "")
        return Mark(int(number), str(identity))
    except (TypeError, ValueError):
        return Mark(-1, "")
