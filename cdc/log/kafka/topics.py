"""The topics of a log: their names, making them, and what must be true of them (protocol A4).

The invariant: a topic is written to only when it is the one that the log knows by its id, or holds no records at all, and when its
settings lose nothing.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from confluent_kafka import KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType, TopicDescription

from cdc.avro import topic_of
from cdc.errors import CdcError, Unavailable, entry
from cdc.journal import journal
from cdc.log.kafka.client import (
    MISSING,
    OVERHEAD_BYTES,
    RIGHTS,
    TIMEOUT_S,
    UNLED,
    KafkaSettings,
    admin,
    cluster_of,
    consumer,
    error_of,
    group_of,
    translating,
)
from cdc.log.kafka.partition import believed, ends_of_log, take, verify_ends
from cdc.log.kafka.records import Topic
from cdc.source import Finding
from cdc.table import TableId

AT_ONCE = 500  # topics in one request
PAUSE_S = 0.02
VERIFIES, REQUEST_BYTES = "transaction.partition.verification.enable", "socket.request.max.bytes"

_log = journal("log")


def checkpoints_topic(pipeline: str) -> str:
    return f"{pipeline}.checkpoints"


def own_topics(pipeline: str) -> tuple[str, ...]:
    """The topics that hold no table."""
    return checkpoints_topic(pipeline), f"{pipeline}.schemas", f"{pipeline}.signals"


def topic_name(settings: KafkaSettings, pipeline: str, table: TableId) -> str:
    return settings.topics.get(table) or topic_of(pipeline, table)


def described(client: AdminClient, names: Collection[str], where: str) -> dict[str, TopicDescription]:
    """Those of these topics that are there."""
    found, names = {}, list(names)
    for first in range(0, len(names), AT_ONCE):
        some = names[first : first + AT_ONCE]
        with translating(where):
            asked = client.describe_topics(TopicCollection(some), request_timeout=TIMEOUT_S)
        for name, future in asked.items():
            try:
                found[name] = future.result(2 * TIMEOUT_S)
            except KafkaException as error:
                if error.args[0].code() not in MISSING:
                    raise error_of(error, name) from error
    return found


def present(settings: KafkaSettings, names: Collection[str]) -> list[str]:
    """Those of these topics that are there."""
    client = admin(settings)
    found = described(client, names, settings.bootstrap)
    return [name for name in names if name in found]


def verify_ids(client: AdminClient, topics: Iterable[Topic]) -> None:
    """These are there, and the same as ever. Raises CDC-KAFKA-201, -202, -205."""
    known = {topic.name: topic for topic in topics}
    believed(lambda: _verify_ids(client, known))


def _verify_ids(client: AdminClient, known: Mapping[str, Topic]) -> None:
    found = described(client, known, "topics")
    for name, topic in known.items():
        there = found.get(name)
        if there is None:
            raise CdcError("CDC-KAFKA-201", f"the topic of {topic.table}", where=name)
        if str(there.topic_id) != topic.id:
            raise CdcError(
                "CDC-KAFKA-202", f"its id is {there.topic_id}, the log has written to {topic.id}", where=name
            )
        if len(there.partitions) < topic.partitions:
            detail = f"it has {len(there.partitions)} partitions, the log uses {topic.partitions}"
            raise CdcError("CDC-KAFKA-205", detail, where=name)


def _verify_id(name: str, known: str | None, there: TopicDescription) -> None:
    if known is not None and str(there.topic_id) != known:
        raise CdcError("CDC-KAFKA-202", f"its id is {there.topic_id}, the log has written to {known}", where=name)


class Topics:
    """The topics of one pipeline, looked after. A client is made at first use; `close` it."""

    def __init__(self, settings: KafkaSettings, pipeline: str) -> None:
        self._settings, self._pipeline = settings, pipeline
        self._made: AdminClient | None = None

    def close(self) -> None:
        self._made = None

    @property
    def client(self) -> AdminClient:
        if self._made is None:
            self._made = admin(self._settings)
        return self._made

    # ------------------------------------------------------------------------------------------------------------- making
    def make_own(self) -> dict[str, str]:
        """Make those that hold no table, as far as they are missing; their ids. Raises CDC-KAFKA-201 where only the checkpoints are
        missing: a log was there, and must not be replaced by an empty one."""
        names = own_topics(self._pipeline)
        there = described(self.client, names, self._settings.bootstrap)
        if names[0] not in there:
            self.check_unused(there)
        if missing := {name: 1 for name in names if name not in there}:
            self._create(missing)
        return {name: str(topic.topic_id) for name, topic in self._appeared(names).items()}

    def check_unused(self, names: Iterable[str] | None = None) -> None:
        """No schema and no signal, without a log. Raises CDC-KAFKA-201."""
        for name in own_topics(self._pipeline)[1:] if names is None else names:
            with translating(name):
                (end,) = ends_of_log(self.client, [TopicPartition(name, 0)])
            if end:
                detail = f"there are records in {name}, whose log is gone"
                raise CdcError("CDC-KAFKA-201", detail, where=checkpoints_topic(self._pipeline))

    def make(self, wanted: Mapping[TableId, int], known: Collection[Topic]) -> list[Topic]:
        """A topic for each of these tables, with so many partitions, or as many as an empty one that is there already has at least.

        Raises CDC-KAFKA-107 when names are the same to Kafka, CDC-KAFKA-207 when a topic holds records already."""
        names = {table: topic_name(self._settings, self._pipeline, table) for table in wanted}
        self._check_names(names, known)
        there = described(self.client, names.values(), self._settings.bootstrap)
        sizes = {names[table]: count for table, count in wanted.items()}
        if missing := {name: count for name, count in sizes.items() if name not in there}:
            self._create(missing)
        there = self._appeared(names.values())
        found = []
        for table, name in names.items():
            count = len(there[name].partitions)
            if count < wanted[table]:
                detail = f"it has {count} partitions, {wanted[table]} are configured"
                raise CdcError("CDC-KAFKA-205", detail, where=name)
            if name not in missing:
                self._check_empty(name, count)
                self._verify_settings([name])
            found.append(Topic(table, name, str(there[name].topic_id), wanted[table]))
        return found

    def _check_names(self, names: Mapping[TableId, str], known: Collection[Topic]) -> None:
        taken: dict[str, str] = {_canonical(name): f"the log's own {name}" for name in own_topics(self._pipeline)}
        taken |= {_canonical(topic.name): f"{topic.name} of {topic.table}" for topic in known}
        for table, name in names.items():
            if (other := taken.get(_canonical(name))) is not None:
                detail = f"{name} of {table}, and {other}"
                remedy = f"Give {table} another topic: `rules: {{'{table}': {{topic: …}}}}`."
                raise CdcError("CDC-KAFKA-107", detail, where=str(table), remedy=remedy)
            taken[_canonical(name)] = f"{name} of {table}"

    def _create(self, partitions: Mapping[str, int]) -> None:
        """Make these topics. One that somebody else makes at the same time is fine."""
        settings = self._settings
        with translating(settings.bootstrap):
            copies = settings.replication or min(3, len(self.client.list_topics(timeout=TIMEOUT_S).brokers))
        config = {**_wanted(settings), "min.insync.replicas": "2" if copies >= 3 else "1"}
        new = [NewTopic(name, count, copies, config=config) for name, count in partitions.items()]
        for first in range(0, len(new), AT_ONCE):
            with translating(settings.bootstrap):
                asked = self.client.create_topics(new[first : first + AT_ONCE], operation_timeout=TIMEOUT_S)
            for name, future in asked.items():
                try:
                    future.result(3 * TIMEOUT_S)
                except KafkaException as error:
                    if error.args[0].code() == error.args[0].TOPIC_EXCEPTION:
                        self._check_collision(name)
                    if error.args[0].code() != error.args[0].TOPIC_ALREADY_EXISTS:
                        raise error_of(error, name) from error

    def _check_collision(self, name: str) -> None:
        """Kafka calls a name that collides with another's invalid."""
        with translating(name):
            topics = self.client.list_topics(timeout=TIMEOUT_S).topics
        for other in topics:
            if other != name and _canonical(other) == _canonical(name):
                raise CdcError("CDC-KAFKA-107", f"{name}, and {other}, which is there already", where=name)

    def _appeared(self, names: Collection[str]) -> dict[str, TopicDescription]:
        """New topics, once their leaders answer: that takes a moment after they were made."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            found = described(self.client, names, self._settings.bootstrap)
            missing = next((name for name in names if name not in found), None)
            if missing is None and self._are_led(found):
                return found
            if time.monotonic() > deadline:
                detail = "it was made, and no broker leads it yet"
                raise Unavailable("CDC-KAFKA-101", detail, where=missing or next(iter(names)))
            time.sleep(PAUSE_S)

    def _are_led(self, topics: Mapping[str, TopicDescription]) -> bool:
        places = [TopicPartition(name, part.id) for name, topic in topics.items() for part in topic.partitions]
        try:
            ends_of_log(self.client, places)
        except KafkaException as error:
            if error.args[0].code() not in UNLED:
                raise error_of(error, self._settings.bootstrap) from error
            return False
        return True

    def _check_empty(self, name: str, partitions: int) -> None:
        """It holds no committed record. What an aborted transaction left is none."""
        places = [TopicPartition(name, n, 0) for n in range(partitions)]
        with translating(name):
            if not any(ends_of_log(self.client, places)):
                return
        reading = consumer(
            self._settings,
            group_of(self._pipeline),
            enable_partition_eof=True,
            auto_offset_reset="earliest",
        )
        ended, deadline = set[int | None](), time.monotonic() + 6 * TIMEOUT_S
        try:
            with translating(name):
                reading.assign(places)
                while len(ended) < partitions:
                    for message in take(reading, 1.0):
                        if (error := message.error()) is None:
                            detail = f"partition {message.partition()} holds records, offset {message.offset()} for one"
                            raise CdcError("CDC-KAFKA-207", detail, where=name)
                        if error.code() != error._PARTITION_EOF:
                            raise error_of(error, name)
                        ended.add(message.partition())
                    if time.monotonic() > deadline:
                        raise Unavailable("CDC-KAFKA-101", "whether it is empty cannot be read", where=name)
        finally:
            reading.close()

    # ---------------------------------------------------------------------------------------------------------- verifying
    def verify_own(self, ids: Mapping[str, str]) -> None:
        """Those that hold no table are there, and the same as ever. Raises CDC-KAFKA-201, -202, -204."""
        names = own_topics(self._pipeline)
        found = described(self.client, names, self._settings.bootstrap)
        for name in names:
            if name not in found:
                raise CdcError("CDC-KAFKA-201", "the log's own topic", where=name)
            _verify_id(name, ids.get(name), found[name])
        self._verify_settings(names)

    def verify(self, topics: Collection[Topic], ends: Mapping[TableId, tuple[int, ...]]) -> None:
        """The data topics are what the log says, and hold at least what it has written. Raises CDC-KAFKA-201 to -205."""
        verify_ids(self.client, topics)
        self._verify_settings([topic.name for topic in topics])
        needed = {
            (topic.name, partition): end
            for topic in topics
            for partition, end in enumerate(ends.get(topic.table, (0,) * topic.partitions))
        }
        verify_ends(self._settings, self.client, needed)

    def _verify_settings(self, names: Collection[str]) -> None:
        resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
        if not resources:
            return
        wrong, commands = dict[str, str](), list[str]()
        for resource, future in self.client.describe_configs(resources, request_timeout=TIMEOUT_S).items():
            try:
                entries = future.result(2 * TIMEOUT_S)
            except KafkaException as error:
                if error.args[0].code() not in RIGHTS:
                    raise error_of(error, resource.name) from error
                _log.warning("may not look at a topic's settings", topic=resource.name)
                continue
            found = {name: entry.value for name, entry in entries.items()}
            if change := _endangering(_wanted(self._settings), found):
                wrong[resource.name] = ", ".join(f"{name} is {found.get(name)}" for name in change)
                commands.append(
                    f"kafka-configs.sh --bootstrap-server {self._settings.bootstrap} --alter --entity-type topics "
                    f"--entity-name {resource.name} --add-config {','.join(f'{name}={v}' for name, v in change.items())}"
                )
        if wrong:
            (where, detail), *others = wrong.items()
            detail += f"; {len(others)} more topics are not as they should be" if others else ""
            raise CdcError("CDC-KAFKA-204", detail, where=where, remedy="\n".join(commands))


def _canonical(name: str) -> str:
    """Kafka's metrics write `_` for `.`, so it refuses topics that would share them."""
    return name.replace(".", "_")


def _wanted(settings: KafkaSettings) -> dict[str, str]:
    return {
        "cleanup.policy": "delete",
        "retention.ms": "-1",
        "retention.bytes": "-1",
        "max.message.bytes": str(settings.message_bytes_max),
        "unclean.leader.election.enable": "false",
    }


def _endangering(wanted: Mapping[str, str], found: Mapping[str, Any]) -> dict[str, str]:
    """Settings that would lose records, or refuse them, with what they should be."""
    wrong = {name: value for name, value in wanted.items() if found.get(name, value) != value}
    if int(found.get("max.message.bytes") or 0) >= int(wanted["max.message.bytes"]):
        wrong.pop("max.message.bytes", None)
    return wrong


# ------------------------------------------------------------------------------------------------------------- the cluster
def verify_brokers(settings: KafkaSettings) -> list[Finding]:
    """Transactions are exact only where brokers verify them (A3). Raises CDC-KAFKA-104; a finding where that cannot be seen."""
    client = admin(settings)
    with translating(settings.bootstrap):
        brokers = client.list_topics(timeout=TIMEOUT_S).brokers
        resources = [ConfigResource(ResourceType.BROKER, str(number)) for number in brokers]
        # Each is asked for itself: librdkafka takes one broker a call.
        asked = [client.describe_configs([resource], request_timeout=TIMEOUT_S)[resource] for resource in resources]
    for resource, future in zip(resources, asked, strict=True):
        try:
            entries = future.result(2 * TIMEOUT_S)
        except KafkaException as error:
            if error.args[0].code() not in RIGHTS:
                raise error_of(error, f"broker {resource.name}") from error
            detail = f"may not look at the brokers' settings: {VERIFIES} must be true, and Kafka 3.6 or later"
            return [Finding("warning", "CDC-KAFKA-103", detail, settings.bootstrap, entry("CDC-KAFKA-103").remedy)]
        found = entries[VERIFIES].value if VERIFIES in entries else "not known to it"
        if found != "true":
            raise CdcError("CDC-KAFKA-104", f"{VERIFIES} is {found}", where=f"broker {resource.name}")
        _verify_request(settings, f"broker {resource.name}", entries)
    return []


def _verify_request(settings: KafkaSettings, broker: str, entries: Mapping[str, Any]) -> None:
    """A broker that is sent a larger request hangs up, and says nothing."""
    most = int(entries[REQUEST_BYTES].value) if REQUEST_BYTES in entries else settings.message_bytes_max
    if most < settings.message_bytes_max:
        detail = (
            f"{REQUEST_BYTES} is {most}, records of {settings.record_bytes_max} bytes need {settings.message_bytes_max}"
        )
        remedy = f"Lower `record_bytes_max` under `log:` to {max(0, most - OVERHEAD_BYTES)} at most, or raise {REQUEST_BYTES}."
        raise CdcError("CDC-KAFKA-104", detail, where=broker, remedy=remedy)


def check_cluster(settings: KafkaSettings) -> list[Finding]:
    """What stands against a log in this cluster. Raises the first error."""
    cluster_of(settings)
    return verify_brokers(settings)
