"""Settings of a Kafka cluster as a log, the clients that they give, and what Kafka's errors are called here.

Two invariants: what the log's guarantees rest on is set by us and cannot be overridden; a librdkafka error becomes one of ours by its
code, never by its text.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from cdc.errors import CdcError, Unavailable
from cdc.secrets import redact, register
from cdc.table import TableId

FOREVER, APPLIED = "forever", "applied"  # retention
RECORD_BYTES_MAX = 16 << 20
OVERHEAD_BYTES = 64 << 10  # of a record batch with one record: headers, lengths, and what compression adds to noise
TIMEOUT_S = 10.0  # of one request that should take milliseconds
ASK_EVERY_S = 1.0
REPEATED_S = 30.0  # a line that librdkafka repeats at each attempt is logged once in this time

_OURS = frozenset(
    {
        "acks",
        "allow.auto.create.topics",
        "auto.commit.enable",
        "auto.offset.reset",
        "bootstrap.servers",
        "check.crcs",
        "delivery.report.only.error",
        "delivery.timeout.ms",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "enable.gapless.guarantee",
        "enable.idempotence",
        "enable.partition.eof",
        "fetch.message.max.bytes",
        "group.id",
        "group.instance.id",
        "group.protocol",
        "isolation.level",
        "log.queue",
        "max.partition.fetch.bytes",
        "max.in.flight",
        "max.in.flight.requests.per.connection",
        "message.max.bytes",
        "message.send.max.retries",
        "message.timeout.ms",
        "metadata.broker.list",
        "partitioner",
        "queuing.strategy",
        "request.required.acks",
        "retries",
        "transaction.timeout.ms",
        "transactional.id",
    }
)
_CALLBACK = re.compile(r".*_cb\Z|on_.*\Z|logger\Z")
_SECRET = re.compile(r"password|secret|key|jaas", re.IGNORECASE)

_log = logging.getLogger("kafka")


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """A cluster, and how a log is kept in it.

    `options` go to librdkafka as they are (security.protocol, sasl.*, ssl.*, tuning), those that the log depends on excepted: these
    are CDC-KAFKA-105. `replication` None: three, or as many as there are brokers. `partitions` is the number of a new data topic's;
    it is pinned when the topic is made. `retention`: `forever`, or `applied`: records go once every reader that has reported is past
    them. `topics` names the topics of tables explicitly. A capture that dies holds readers back for `transaction_timeout_s`.
    """

    bootstrap: str
    options: Mapping[str, str] = field(default_factory=dict)
    replication: int | None = None
    partitions: int = 1
    record_bytes_max: int = RECORD_BYTES_MAX
    retention: str = FOREVER
    topics: Mapping[TableId, str] = field(default_factory=dict)
    transaction_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        assert self.retention in (FOREVER, APPLIED), self.retention
        assert self.partitions > 0
        register(
            str(value)
            for name, value in self.options.items()
            if _SECRET.search(name) and not name.endswith(".location")
        )
        if taken := sorted(name for name in self.options if name in _OURS or _CALLBACK.match(name)):
            detail = f"{', '.join(taken)} cannot be chosen: the log depends on it"
            raise CdcError("CDC-KAFKA-105", detail, where=self.bootstrap)

    @property
    def message_bytes_max(self) -> int:
        """The largest record batch that brokers and clients must take."""
        return self.record_bytes_max + OVERHEAD_BYTES


def producer(settings: KafkaSettings, **own: object) -> Producer:
    """Idempotent. `own` are librdkafka's names with `_` for `.`; they stand above the options. Connects by itself, later."""
    tuning = {"linger.ms": 5, "compression.type": "lz4"}
    fixed = {"enable.idempotence": True, "acks": "all", "message.max.bytes": settings.message_bytes_max}
    with translating(settings.bootstrap):
        return Producer(_configuration(settings, tuning, fixed, own), logger=_log)


def consumer(settings: KafkaSettings, group: str, **own: object) -> Consumer:
    """Read committed, nothing committed by itself, an error where its offset is gone. See `producer`."""
    tuning = {"fetch.wait.max.ms": 20}
    fixed = {
        "group.id": group,
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "allow.auto.create.topics": False,
        "check.crcs": True,
    }
    with translating(settings.bootstrap):
        return Consumer(_configuration(settings, tuning, fixed, own), logger=_log)


def admin(settings: KafkaSettings) -> AdminClient:
    """An administrator's client. Keep it until its futures are done: they fail when it is collected."""
    with translating(settings.bootstrap):
        return AdminClient(_configuration(settings, {}, {}, {}), logger=_log)


def group_of(pipeline: str, reader: str | None = None) -> str:
    """The consumer group in which a reader's progress stands; without a reader, the name under which consumers of ours run."""
    return f"cdc.{pipeline}" if reader is None else f"cdc.{pipeline}.{reader}"


def _configuration(
    settings: KafkaSettings, tuning: Mapping[str, object], fixed: Mapping[str, object], own: Mapping[str, object]
) -> dict[str, Any]:
    return {
        "client.id": "penstock",
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        "error_cb": _ignored,
        **tuning,
        **settings.options,
        **fixed,
        **{name if name.endswith("_cb") else name.replace("_", "."): value for name, value in own.items()},
        "bootstrap.servers": settings.bootstrap,
    }


def _ignored(error: KafkaError) -> None:
    """What librdkafka reports beside calls repeats what its log lines and the calls themselves say."""


class _Once(logging.Filter):
    """Of lines that differ only in numbers and in the client's name, one in a while: librdkafka logs each attempt to connect. None
    about options that concern other kinds of clients: all clients are given the same."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.getMessage().startswith("CONFWARN"):
            return False
        line, now = re.sub(r"\d+", "", record.getMessage()), time.monotonic()
        if now - self._seen.get(line, -REPEATED_S) < REPEATED_S:
            return False
        self._seen = {seen: at for seen, at in self._seen.items() if now - at < REPEATED_S} | {line: now}
        return True


_log.addFilter(_Once())


# ------------------------------------------------------------------------------------------------------------------ errors
_E = KafkaError
_LOGIN = frozenset(
    {
        _E._AUTHENTICATION,
        _E._SSL,
        _E.SASL_AUTHENTICATION_FAILED,
        _E.UNSUPPORTED_SASL_MECHANISM,
        _E.ILLEGAL_SASL_STATE,
    }
)
RIGHTS = frozenset(
    {
        _E.TOPIC_AUTHORIZATION_FAILED,
        _E.GROUP_AUTHORIZATION_FAILED,
        _E.CLUSTER_AUTHORIZATION_FAILED,
        _E.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        _E.SECURITY_DISABLED,
    }
)
_UNSUITABLE = frozenset(
    {_E.UNSUPPORTED_VERSION, _E._UNSUPPORTED_FEATURE, _E.UNSUPPORTED_FOR_MESSAGE_FORMAT, _E.INVALID_TRANSACTION_TIMEOUT}
)
_REFUSED_TOPIC = frozenset(
    {
        _E.TOPIC_EXCEPTION,
        _E.INVALID_PARTITIONS,
        _E.INVALID_REPLICATION_FACTOR,
        _E.INVALID_CONFIG,
        _E.POLICY_VIOLATION,
        _E.INVALID_REQUEST,
    }
)
MISSING = frozenset({_E.UNKNOWN_TOPIC_OR_PART, _E._UNKNOWN_TOPIC, _E._UNKNOWN_PARTITION, _E.UNKNOWN_TOPIC_ID})
UNLED = MISSING | {
    _E._NOENT,
    _E.FENCED_LEADER_EPOCH,
    _E.KAFKA_STORAGE_ERROR,
    _E.LEADER_NOT_AVAILABLE,
    _E.NOT_LEADER_FOR_PARTITION,
    _E.OFFSET_NOT_AVAILABLE,
    _E.UNKNOWN_LEADER_EPOCH,
}
"""What brokers answer while a partition has no leader that serves."""
_OUT_OF_RANGE = frozenset({_E.OFFSET_OUT_OF_RANGE, _E._AUTO_OFFSET_RESET})
_TAKEN_AWAY = frozenset(
    {
        _E._FATAL,
        _E._FENCED,
        _E.PRODUCER_FENCED,
        _E.INVALID_PRODUCER_EPOCH,
        _E.INVALID_PRODUCER_ID_MAPPING,
        _E.INVALID_TXN_STATE,
        _E.UNKNOWN_PRODUCER_ID,
    }
)
_CODES: Mapping[str, frozenset[int]] = {
    "CDC-KAFKA-102": _LOGIN,
    "CDC-KAFKA-103": RIGHTS,
    "CDC-KAFKA-104": _UNSUITABLE,
    "CDC-KAFKA-105": frozenset({_E._INVALID_ARG}),
    "CDC-KAFKA-106": _REFUSED_TOPIC,
    "CDC-KAFKA-201": MISSING,
    "CDC-KAFKA-203": _OUT_OF_RANGE,
    "CDC-LOG-401": frozenset({_E.MSG_SIZE_TOO_LARGE, _E.RECORD_LIST_TOO_LARGE}),
}
_AWAY = frozenset({_E._TRANSPORT, _E._ALL_BROKERS_DOWN, _E._TIMED_OUT, _E._RESOLVE, _E.REQUEST_TIMED_OUT})


def error_of(error: KafkaError | KafkaException, where: str) -> CdcError:
    """What librdkafka or a broker says, as one of ours. What is in no list of codes is Unavailable: trying again loses nothing."""
    reason: KafkaError = error.args[0] if isinstance(error, KafkaException) else error
    detail = f"{redact(reason.str())} ({reason.name()})"
    for code, codes in _CODES.items():
        if reason.code() in codes:
            return CdcError(code, detail, where=where)
    return Unavailable("CDC-KAFKA-108" if reason.code() in _TAKEN_AWAY else "CDC-KAFKA-101", detail, where=where)


@contextmanager
def translating(where: str) -> Iterator[None]:
    """A KafkaException inside becomes one of our errors."""
    try:
        yield
    except KafkaException as error:
        raise error_of(error, where) from error


def cluster_of(settings: KafkaSettings) -> str:
    """The cluster's id, by asking it. Raises Unavailable, at once where nobody listens, or why it cannot be reached, as far as the
    handshake tells."""
    reasons: list[KafkaError] = []
    with translating(settings.bootstrap):
        client = AdminClient(_configuration(settings, {}, {}, {"error_cb": reasons.append}), logger=_log)
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            found = client.list_topics(timeout=ASK_EVERY_S).cluster_id
        except KafkaException as error:
            client.poll(0)  # librdkafka tells why beside the call
            known = {reason.code(): reason for reason in reversed(reasons)}
            why = next((known[code] for code in known if code in _LOGIN), None)
            if why is None and error.args[0].code() in _AWAY:
                if _E._ALL_BROKERS_DOWN not in known and time.monotonic() < deadline:
                    continue
                why = next((reason for reason in reasons if reason.code() in _AWAY), None)
            raise error_of(why or error, settings.bootstrap) from error
        assert found is not None, "Kafka has named its clusters since 0.10.1"
        return str(found)
