"""Writing a Kafka log: kills, zombies, fences and broken brokers lose nothing and double nothing (protocols A2, A3), and what others
have done to its topics is noticed before anything is written (A4, A5). What every log promises is in tests/contract.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import (
    AclOperation,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourceType,
)

from cdc.avro import topic_of
from cdc.errors import CdcError, Superseded, Unavailable
from cdc.log import Begun, Checkpoint, Draft, Mark, Span
from cdc.log.kafka import log as log_module
from cdc.log.kafka import topics as topics_module
from cdc.log.kafka.client import KafkaSettings
from cdc.log.kafka.inventory import remove_topics
from cdc.log.kafka.log import KafkaLog
from cdc.log.kafka.partitioner import murmur2
from cdc.log.kafka.story import Story
from cdc.log.kafka.topics import check_cluster
from cdc.log.kafka.writer import Identity, Writer
from cdc.position import Position
from cdc.records import Records
from cdc.table import TableId
from tests.servers.kafka import Kafka, allow

A, B = TableId("public", "a"), TableId("public", "b")
ROOT = Path(__file__).parents[2]
T = TypeVar("T")
PRELUDE = """
import json, os, random, sys, time
from tests.integration.test_kafka_writer import *
settings = KafkaSettings(sys.argv[1], transaction_timeout_s=10)
"""


def value(number: int, size: int = 100) -> bytes:
    return b"\x00\x00\x00\x00\x07\x02c\x00\x00" + number.to_bytes(8, "big") + os.urandom(size)


def key(number: int, schema: bytes = b"\x00\x00\x00\x00\x08") -> bytes:
    return schema + number.to_bytes(4, "big")


def rows(first: int, count: int, size: int = 100) -> Records:
    """Numbered from `first` on."""
    numbers = range(first, first + count)
    return Records([key(n) for n in numbers], [value(n, size) for n in numbers])


def draft(sequence: int = 0, cut: bool = True, **more: Any) -> Draft:
    return Draft(Position(0, sequence, None, None), cut, **more)


def everything(_: TableId) -> bool:
    return True


def read_all(log: KafkaLog, after: Mark | None = None) -> tuple[list[Checkpoint], list[int]]:
    """The checkpoints, and the numbers of A's records."""
    checkpoints, numbers = [], []
    with closing(log.read(after or Mark(-1, log.id), everything, 0)) as items:
        for item in items:
            if item is None:
                return checkpoints, numbers
            checkpoints.append(item[0])
            numbers += [int.from_bytes(v[9:17], "big") for v in item[1].get(A, Records()).values]
    raise AssertionError


def stopped(act: Callable[[], object], code: str, kind: type[CdcError] = CdcError) -> CdcError:
    """The error that this raises, exactly of this kind, with a remedy."""
    with pytest.raises(kind) as caught:
        act()
    error = caught.value
    assert (type(error), error.code) == (kind, code), error
    assert error.remedy
    return error


class Pipeline:
    """A pipeline of its own on a broker. Each `open` is another process's view, with an identity of its own."""

    def __init__(self, broker: Kafka, **settings: Any) -> None:
        self.broker, self.name = broker, f"w{uuid4().hex[:12]}"
        self.settings = KafkaSettings(broker.bootstrap, **settings)
        self.opened = list[KafkaLog]()

    def open(self, **options: Any) -> KafkaLog:
        return self.open_with({}, **options)

    def open_with(self, settings: dict[str, Any], **options: Any) -> KafkaLog:
        made = KafkaSettings(**{name: getattr(self.settings, name) for name in asdict(self.settings)} | settings)
        log = KafkaLog(made, self.name, **{"identity": Identity(), **options})
        self.opened.append(log)
        return log

    def writer(self, **options: Any) -> KafkaLog:
        log = self.open(**options)
        log.open_writer()
        return log

    def topic(self, table: TableId = A) -> str:
        return topic_of(self.name, table)

    def drop(self, topic: str) -> None:
        admin = self.broker.admin()
        admin.delete_topics([topic])[topic].result(10)
        while topic in admin.list_topics(timeout=10).topics:
            time.sleep(0.02)

    def configure(self, topic: str, **values: str) -> None:
        entries = [
            ConfigEntry(name.replace("_", "."), text, incremental_operation=AlterConfigOpType.SET)
            for name, text in values.items()
        ]
        admin, resource = self.broker.admin(), ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        admin.incremental_alter_configs([resource])[resource].result(10)

    def write(self, topic: str, count: int = 1) -> None:
        """As somebody else who knows nothing of us."""
        producer = Producer({**self.broker.client(), "log_level": 0})
        for _ in range(count):
            producer.produce(topic, b"x", b"k", 0)
        assert producer.flush(10) == 0

    def process(self, code: str, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", PRELUDE + code, self.broker.bootstrap, self.name, *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def close(self) -> None:
        for log in self.opened:
            log.close()
        if self.broker.pid is not None:
            self.broker.drop_topics(self.name)


@pytest.fixture
def pipeline(kafka: Kafka) -> Iterator[Pipeline]:
    with closing(Pipeline(kafka)) as made:
        yield made


def waited_for(act: Callable[[], T], within_s: float = 20.0) -> T:
    """Do this as a supervisor would: again and again while it is Unavailable."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return act()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


# --------------------------------------------------------------------------------------------------------- kills, zombies
WRITER = """
log = KafkaLog(settings, sys.argv[2])
state = log.open_writer()
at = state.last.position.sequence if state.last else 0
print("open", -1 if state.last is None else state.last.number, at, flush=True)
while True:
    count = random.choice([0, 1, 7, 300])
    try:
        made = log.append({A: rows(at, count), B: rows(0, random.randrange(3))}, draft(at + count, random.random() < 0.7))
    except CdcError as error:
        print("failed", type(error).__name__, error.code, flush=True)
        break
    at += count
    os.write(1, b"%d %d\\n" % (made.number, at))
try:
    log.open_writer()
except CdcError as error:
    print("reopened", type(error).__name__, error.code, flush=True)
"""


def started(process: subprocess.Popen[str]) -> tuple[int, int]:
    assert process.stdout is not None
    word, number, at = process.stdout.readline().split()
    assert word == "open"
    return int(number), int(at)


def acknowledged(process: subprocess.Popen[str], found: tuple[int, int]) -> tuple[int, int]:
    """What the process was told, in the end."""
    assert process.stdout is not None
    last = found
    for line in process.stdout:
        if line.endswith("\n"):
            number, at = map(int, line.split())
            assert number == last[0] + 1
            last = number, at
    return last


@pytest.mark.slow
def test_every_acknowledged_checkpoint_survives_kills(pipeline: Pipeline) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    print("seed", seed)
    known = -1, 0
    for _ in range(10):
        with pipeline.process(WRITER) as writer:
            found = started(writer)
            assert found == known or found[0] == known[0] + 1, f"{known} was acknowledged, {found} is the last"
            timer = threading.Timer(rng.random() * 0.5, writer.kill)
            timer.start()
            known = acknowledged(writer, found)
            timer.join()
            assert writer.wait() == -signal.SIGKILL
    log = pipeline.open()
    state = log.open_writer()
    assert state.last is not None
    end = state.last.position.sequence
    assert state.last.number in (known[0], known[0] + 1)
    log.append({A: rows(end, 3)}, draft(end + 3))
    checkpoints, numbers = read_all(log)
    assert [c.number for c in checkpoints] == list(range(state.last.number + 2))
    assert numbers == list(range(end + 3))


def test_a_stopped_writer_that_wakes_up_writes_nothing(pipeline: Pipeline) -> None:
    with pipeline.process(WRITER) as zombie:
        started(zombie)
        assert zombie.stdout is not None
        zombie.stdout.readline()  # it has written, so that it gives way when it finds another's checkpoint
        time.sleep(random.random() * 0.3)
        zombie.send_signal(signal.SIGSTOP)
        log = pipeline.open()
        state = log.open_writer()
        at = state.last.position.sequence if state.last else 0
        made = [log.append({A: rows(at + n, 1)}, draft(at + n + 1)) for n in range(3)]
        zombie.send_signal(signal.SIGCONT)
        output, _ = zombie.communicate(timeout=60)
    failed, reopened = output.splitlines()[-2:]
    assert failed.split()[:2] == ["failed", "Unavailable"]
    assert reopened == "reopened Superseded CDC-LOG-202"
    checkpoints, numbers = read_all(log)
    assert checkpoints[-3:] == made
    assert numbers == list(range(at + 3))
    # It has fenced us, to find out; that is no reason to stop.
    stopped(lambda: log.append({}, draft()), "CDC-KAFKA-108", Unavailable)
    assert log.open_writer().last == made[-1]
    log.append({}, draft())


def test_of_two_writers_the_older_one_ends(pipeline: Pipeline) -> None:
    """Whoever has written before and finds another's checkpoint at the end gives way; who has never written does not."""
    older, newer = pipeline.writer(), pipeline.writer()
    stopped(lambda: older.append({}, draft()), "CDC-KAFKA-108", Unavailable)
    older.open_writer()
    older.append({}, draft())
    stopped(lambda: newer.append({}, draft()), "CDC-KAFKA-108", Unavailable)
    newer.open_writer()
    made = newer.append({}, draft())
    stopped(lambda: older.append({}, draft()), "CDC-KAFKA-108", Unavailable)
    stopped(older.open_writer, "CDC-LOG-202", Superseded)
    stopped(lambda: newer.append({}, draft()), "CDC-KAFKA-108", Unavailable)
    assert newer.open_writer().last == made


def test_a_transaction_that_outlives_its_timeout_is_no_rival(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = pipeline.open_with({"transaction_timeout_s": 1.0})
    log.open_writer()
    kept = log.append({A: rows(0, 1)}, draft())
    flush = Writer._flush

    def late(writer: Writer) -> None:
        flush(writer)
        time.sleep(4)

    monkeypatch.setattr(Writer, "_flush", late)
    with pytest.raises(Unavailable):
        log.append({A: rows(1, 5)}, draft())
    monkeypatch.undo()
    assert log.open_writer().last == kept
    log.append({A: rows(1, 1)}, draft())
    assert read_all(log)[1] == [0, 1]


def test_a_writer_that_has_failed_is_void(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    log = pipeline.writer()
    kept = log.append({A: rows(0, 1)}, draft())

    def fails(_: Writer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "_flush", fails)
    with pytest.raises(KeyboardInterrupt):
        log.append({A: rows(1, 5)}, draft())
    monkeypatch.undo()
    with pytest.raises(AssertionError, match="open_writer"):
        log.append({}, draft())
    assert log.open_writer().last == kept
    log.append({A: rows(1, 1)}, draft())
    assert read_all(log)[1] == [0, 1]


def test_a_writer_whose_own_end_is_gone_stops(pipeline: Pipeline) -> None:
    identity = Identity()
    log = pipeline.writer(identity=identity)
    made = log.append({}, draft())
    for mark in (Mark(made.number + 1, made.id), Mark(made.number, "f" * 16)):
        identity.written[log.id] = mark
        stopped(log.open_writer, "CDC-KAFKA-209")
    identity.written[log.id] = made.mark
    log.open_writer()


def test_processes_that_begin_a_log_at_once_begin_one(pipeline: Pipeline) -> None:
    code = """
time.sleep(max(0, float(sys.argv[3]) - time.time()))
for _ in range(40):
    try:
        print(KafkaLog(settings, sys.argv[2]).id)
        break
    except Unavailable:
        time.sleep(0.2)
"""
    at = time.time() + 2
    made = [pipeline.process(code, at) for _ in range(3)]
    ids = {process.communicate(timeout=60)[0] for process in made}
    assert [process.returncode for process in made] == [0] * 3
    assert ids == {pipeline.open().id + "\n"}


# --------------------------------------------------------------------------------------------------------------- the broker
def test_a_broker_that_is_killed_and_frozen_loses_nothing(private_kafka: Callable[..., Kafka]) -> None:
    broker = private_kafka()
    with closing(Pipeline(broker, transaction_timeout_s=5.0)) as pipeline:
        log = pipeline.writer()
        at, known, failures = 200, log.append({A: rows(0, 200)}, draft(200)).number, 0
        for fault in (broker.kill, broker.kill, broker.suspend):
            timer = threading.Timer(random.uniform(0.1, 0.4), fault)
            timer.start()
            repaired = False
            until = time.monotonic() + 1.0
            while time.monotonic() < until or not repaired:
                try:
                    made = log.append({A: rows(at, 200)}, draft(at + 200))
                    at, known = at + 200, made.number
                except Unavailable:
                    failures += 1
                    timer.join()
                    broker.start() if broker.pid is None else broker.resume()
                    repaired = True
                    last = waited_for(log.open_writer).last
                    assert last is not None
                    assert last.number in (known, known + 1)
                    at, known = last.position.sequence, last.number
        assert failures >= 3
        log.append({A: rows(at, 1)}, draft(at + 1))
        checkpoints, numbers = read_all(log)
        assert [c.number for c in checkpoints] == list(range(known + 2))
        assert numbers == list(range(at + 1))


def test_a_broker_that_stands_still_for_a_while_is_waited_for(private_kafka: Callable[..., Kafka]) -> None:
    broker = private_kafka()
    with closing(Pipeline(broker)) as pipeline:
        log = pipeline.writer()
        log.append({A: rows(0, 10)}, draft())
        broker.suspend()
        threading.Timer(2.5, broker.resume).start()
        log.append({A: rows(10, 10)}, draft())
        assert waited_for(lambda: read_all(log))[1] == list(range(20))


def test_brokers_that_cannot_be_reached_or_used() -> None:
    began = time.monotonic()
    for bootstrap in ("127.0.0.1:1", "nobody.invalid:9092"):
        error = stopped(
            lambda bootstrap=bootstrap: KafkaLog(KafkaSettings(bootstrap), "x"), "CDC-KAFKA-101", Unavailable
        )
        assert error.where == bootstrap
    assert time.monotonic() - began < 15


def test_brokers_that_do_not_verify_transactions_are_refused(private_kafka: Callable[..., Kafka]) -> None:
    broker = private_kafka(properties={"transaction.partition.verification.enable": "false"})
    settings = KafkaSettings(broker.bootstrap)
    stopped(lambda: KafkaLog(settings, "x"), "CDC-KAFKA-104")
    stopped(lambda: check_cluster(settings), "CDC-KAFKA-104")


def test_logins_and_rights(private_kafka: Callable[..., Kafka]) -> None:
    broker = private_kafka(sasl=True)

    def options(user: str, password: str) -> dict[str, str]:
        given = broker.client(user, password)
        return {name: text for name, text in given.items() if name != "bootstrap.servers"}

    password = broker.user("capture")
    secret = "open-sesame-" + uuid4().hex
    wrong = stopped(
        lambda: KafkaLog(KafkaSettings(broker.bootstrap, options("capture", secret)), "shop"), "CDC-KAFKA-102"
    )
    assert secret not in str(wrong)
    plain = KafkaSettings(broker.bootstrap)
    assert isinstance(stopped(lambda: KafkaLog(plain, "shop"), "CDC-KAFKA-101", Unavailable), Unavailable)
    settings = KafkaSettings(broker.bootstrap, options("capture", password))
    stopped(lambda: KafkaLog(settings, "shop"), "CDC-KAFKA-103")
    admin = broker.admin()
    rights = [
        *allow("capture", ResourceType.TOPIC, "shop.", AclOperation.ALL, prefix=True),
        *allow("capture", ResourceType.GROUP, "cdc.shop", AclOperation.ALL, prefix=True),
        *allow("capture", ResourceType.TRANSACTIONAL_ID, "cdc.shop", AclOperation.ALL, prefix=True),
    ]
    for granted in admin.create_acls(rights).values():
        granted.result(10)
    [finding] = check_cluster(settings)
    assert (finding.severity, finding.code) == ("warning", "CDC-KAFKA-103")
    with KafkaLog(settings, "shop") as log:
        log.open_writer()
        log.append({A: rows(0, 1)}, draft())
        assert read_all(log)[1] == [0]
        for gone in admin.delete_acls(rights[:1] and [_filter(right) for right in rights]).values():
            gone.result(10)
        error = stopped(lambda: log.append({B: rows(0, 1)}, draft()), "CDC-KAFKA-103")
        assert password not in str(error)


def _filter(right: Any) -> Any:
    from confluent_kafka.admin import AclBindingFilter

    names = ("restype", "name", "resource_pattern_type", "principal", "host", "operation", "permission_type")
    return AclBindingFilter(*(getattr(right, name) for name in names))


@pytest.mark.parametrize(
    "options",
    [
        {"acks": "1"},
        {"transactional.id": "x", "linger.ms": "5"},
        {"isolation.level": "read_uncommitted"},
        {"error_cb": "x"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_that_the_log_depends_on_are_refused(options: dict[str, str]) -> None:
    error = stopped(lambda: KafkaSettings("127.0.0.1:1", options), "CDC-KAFKA-105")
    assert next(iter(options)) in error.detail
    assert "linger.ms" not in error.detail


def test_options_that_librdkafka_refuses(kafka: Kafka) -> None:
    for options in ({"no.such.option": "1"}, {"security.protocol": "SSL", "ssl.ca.location": "/nowhere"}):
        settings = KafkaSettings(kafka.bootstrap, options)
        stopped(lambda settings=settings: KafkaLog(settings, "x"), "CDC-KAFKA-105")


# ------------------------------------------------------------------------------------------------- what others do to topics
def test_a_data_topic_that_was_made_again(pipeline: Pipeline) -> None:
    log = pipeline.writer()
    log.append({A: rows(0, 5)}, draft())
    pipeline.drop(pipeline.topic())
    error = stopped(pipeline.open().open_writer, "CDC-KAFKA-201")
    assert error.where == pipeline.topic()
    pipeline.broker.make_topic(pipeline.topic())
    stopped(pipeline.open().open_writer, "CDC-KAFKA-202")


def test_a_data_topic_that_is_made_again_while_it_is_written(pipeline: Pipeline) -> None:
    log = pipeline.writer()
    log.append({A: rows(0, 5)}, draft())
    pipeline.drop(pipeline.topic())
    pipeline.broker.make_topic(pipeline.topic())
    with pytest.raises(CdcError) as caught:
        log.append({A: rows(5, 1)}, draft())
    assert caught.value.code in ("CDC-KAFKA-101", "CDC-KAFKA-108", "CDC-KAFKA-201", "CDC-KAFKA-203"), caught.value
    stopped(log.open_writer, "CDC-KAFKA-202")


def test_a_topic_that_ends_too_early(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unclean election does that; a topic that was made again does, too, where its id is not looked at."""
    log = pipeline.writer()
    log.append({A: rows(0, 5)}, draft())
    pipeline.drop(pipeline.topic())
    pipeline.broker.make_topic(pipeline.topic(), config={"max.message.bytes": "20000000", "retention.ms": "-1"})
    pipeline.configure(pipeline.topic(), unclean_leader_election_enable="false")
    monkeypatch.setattr(topics_module, "verify_ids", lambda *_: None)
    stopped(pipeline.open().open_writer, "CDC-KAFKA-203")
    monkeypatch.setattr(topics_module, "verify_ends", lambda *_: None)
    log.open_writer()
    error = stopped(lambda: log.append({A: rows(5, 1)}, draft()), "CDC-KAFKA-203")
    assert pipeline.topic() in str(error.where)


def test_an_end_that_a_former_leader_told(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that was frozen takes itself for the leader still, and does not know the last checkpoints. Nothing is written behind
    them as if they were not there."""
    log, end = pipeline.writer(), Story.end
    log.append({A: rows(0, 5)}, draft())
    with Story(pipeline.settings, pipeline.name) as story:
        old = story.end()
    made = log.append({A: rows(5, 5)}, draft())
    other = pipeline.open()
    monkeypatch.setattr(Story, "end", lambda _: old)
    other.open_writer()
    stopped(lambda: other.append({A: rows(5, 5)}, draft()), "CDC-KAFKA-101", Unavailable)
    monkeypatch.setattr(Story, "end", end)
    assert other.open_writer().last == made
    other.append({A: rows(10, 5)}, draft())


@pytest.mark.parametrize("name", ["checkpoints", "schemas", "signals"])
def test_a_topic_of_the_logs_own_that_is_gone(pipeline: Pipeline, name: str) -> None:
    log = pipeline.writer()
    log.register("s", {"type": "int"})
    log.append({A: rows(0, 5)}, draft())
    pipeline.drop(f"{pipeline.name}.{name}")
    with pytest.raises(CdcError) as caught:
        pipeline.open().open_writer()
    assert caught.value.code == "CDC-KAFKA-201"
    assert caught.value.where == f"{pipeline.name}.{name}"
    pipeline.broker.make_topic(f"{pipeline.name}.{name}")
    stopped(log.open_writer, "CDC-KAFKA-202")
    if name == "checkpoints":
        stopped(pipeline.open, "CDC-KAFKA-201")


@pytest.mark.parametrize(
    ("topic", "settings"),
    [
        ("public.a", {"cleanup.policy": "compact"}),
        ("public.a", {"cleanup.policy": "compact,delete"}),
        ("public.a", {"retention.ms": "86400000"}),
        ("public.a", {"retention.bytes": "1000000"}),
        ("public.a", {"max.message.bytes": "1000000"}),
        ("public.a", {"unclean.leader.election.enable": "true"}),
        ("checkpoints", {"cleanup.policy": "compact"}),
        ("schemas", {"retention.ms": "1000"}),
    ],
    ids=lambda part: part if isinstance(part, str) else next(iter(part.items()))[1],
)
def test_settings_that_would_lose_records(pipeline: Pipeline, topic: str, settings: dict[str, str]) -> None:
    log = pipeline.writer()
    kept = log.append({A: rows(0, 1)}, draft())
    names = {name.replace(".", "_"): text for name, text in settings.items()}
    pipeline.configure(f"{pipeline.name}.{topic}", **names)
    error = stopped(log.open_writer, "CDC-KAFKA-204")
    assert error.where == f"{pipeline.name}.{topic}"
    assert f"--entity-name {pipeline.name}.{topic} --add-config" in error.remedy
    change = dict(pair.split("=") for pair in error.remedy.rpartition(" ")[2].split(","))
    assert change.keys() == settings.keys()
    pipeline.configure(f"{pipeline.name}.{topic}", **{name.replace(".", "_"): text for name, text in change.items()})
    assert log.open_writer().last == kept


def test_partitions_that_others_add_are_not_used(pipeline: Pipeline) -> None:
    log = pipeline.writer()
    log.append({A: rows(0, 5)}, draft())
    admin = pipeline.broker.admin()
    admin.create_partitions([NewPartitions(pipeline.topic(), 3)])[pipeline.topic()].result(10)
    log.append({A: rows(5, 50)}, draft())
    log = pipeline.writer()
    (span,) = log.append({A: rows(55, 50)}, draft()).spans[A]
    assert span.count == 50
    assert read_all(log)[1] == list(range(105))


def test_records_that_others_delete_are_not_the_writers_loss(pipeline: Pipeline) -> None:
    log = pipeline.writer()
    first = log.append({A: rows(0, 5)}, draft())
    admin = pipeline.broker.admin()
    for done in admin.delete_records([TopicPartition(pipeline.topic(), 0, first.spans[A][0].end)]).values():
        done.result(10)
    log = pipeline.writer()
    log.append({A: rows(5, 5)}, draft())
    assert read_all(log, first.mark)[1] == list(range(5, 10))
    stopped(lambda: read_all(log), "CDC-LOG-108")


def test_checkpoints_that_others_delete_are(pipeline: Pipeline) -> None:
    log = pipeline.writer()
    log.append({A: rows(0, 5)}, draft())
    admin = pipeline.broker.admin()
    for done in admin.delete_records([TopicPartition(f"{pipeline.name}.checkpoints", 0, 1)]).values():
        done.result(10)
    stopped(log.open_writer, "CDC-KAFKA-203")
    stopped(pipeline.open, "CDC-KAFKA-203")


def test_somebody_elses_topics_are_not_taken(pipeline: Pipeline) -> None:
    pipeline.broker.make_topic(pipeline.topic())
    pipeline.write(pipeline.topic())
    log = pipeline.writer()
    error = stopped(lambda: log.append({A: rows(0, 1)}, draft()), "CDC-KAFKA-207")
    assert error.where == pipeline.topic()
    other = Pipeline(pipeline.broker, topics={A: pipeline.topic(B)})
    with closing(other):
        pipeline.writer().append({B: rows(0, 1)}, draft())
        stopped(lambda: other.writer().append({A: rows(0, 1)}, draft()), "CDC-KAFKA-207")
    foreign = Pipeline(pipeline.broker)
    with closing(foreign):
        foreign.broker.make_topic(f"{foreign.name}.checkpoints")
        foreign.write(f"{foreign.name}.checkpoints")
        stopped(foreign.open, "CDC-KAFKA-207")
        assert f"{foreign.name}.checkpoints" in foreign.broker.admin().list_topics(timeout=10).topics


def test_an_empty_topic_that_is_there_already_is_taken(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """An administrator's, or that of a capture which died before its first commit."""
    log = pipeline.writer()

    flush, flushes = Writer._flush, count()

    def fails(writer: Writer) -> None:
        flush(writer)
        if next(flushes):  # the first is the topic's own record's
            raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "_flush", fails)
    with pytest.raises(KeyboardInterrupt):
        log.append({A: rows(0, 9)}, draft())
    monkeypatch.undo()
    log.open_writer()
    (span,) = log.append({A: rows(0, 2)}, draft()).spans[A]
    assert span.begin >= 9, "what was aborted lies before it"
    assert read_all(log)[1] == [0, 1]
    pipeline.broker.make_topic(pipeline.topic(B), partitions=3, config={"retention.ms": "1000"})
    stopped(lambda: log.append({B: rows(0, 1)}, draft()), "CDC-KAFKA-204")


def test_a_log_is_of_one_cluster(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.writer()
    monkeypatch.setattr(log_module, "cluster_of", lambda _: "another")
    stopped(pipeline.open, "CDC-KAFKA-206")


def test_one_name_is_one_log(pipeline: Pipeline) -> None:
    assert stopped(lambda: pipeline.open(create=False), "CDC-LOG-101").where == f"{pipeline.name}.checkpoints"
    assert (
        not pipeline.broker.admin()
        .list_topics(f"{pipeline.name}.checkpoints", timeout=10)
        .topics[f"{pipeline.name}.checkpoints"]
        .partitions
    ), "looking at a log makes none"
    ids = {pipeline.open().id, pipeline.open(create=False).id, pipeline.open().id}
    assert len(ids) == 1


def test_removing_a_log_leaves_others_alone(pipeline: Pipeline) -> None:
    log, schema = pipeline.writer(), pipeline.topic(TableId("other", "t"))
    log.append({A: rows(0, 1), B: rows(0, 1)}, draft())
    pipeline.broker.make_topic(schema)
    pipeline.drop(pipeline.topic(B))
    pipeline.broker.make_topic(pipeline.topic(B))
    assert remove_topics(pipeline.settings, pipeline.name) == [
        pipeline.topic(),
        *(f"{pipeline.name}.{name}" for name in ("schemas", "signals", "checkpoints")),
    ]
    left = pipeline.broker.admin().list_topics(timeout=10).topics
    assert {name for name in left if name.startswith(pipeline.name)} == {schema, pipeline.topic(B)}
    assert remove_topics(pipeline.settings, pipeline.name) == []


# ------------------------------------------------------------------------------------------------------ names, partitions
def test_names_that_kafka_takes_for_one(pipeline: Pipeline) -> None:
    one, other = TableId("sales", "eu_orders"), TableId("sales_eu", "orders")
    log = pipeline.writer()
    log.append({one: rows(0, 1)}, draft())
    error = stopped(lambda: log.append({other: rows(0, 1)}, draft()), "CDC-KAFKA-107")
    assert topic_of(pipeline.name, one) in error.detail
    assert topic_of(pipeline.name, other) in error.detail
    assert "topic:" in error.remedy
    log = pipeline.open_with({"topics": {other: f"{pipeline.name}.elsewhere"}})
    log.open_writer()
    log.append({one: rows(0, 1), other: rows(0, 1)}, draft())
    pipeline.broker.make_topic(f"{pipeline.name}_public.b")
    stopped(lambda: log.append({B: rows(0, 1)}, draft()), "CDC-KAFKA-107")
    for name in (f"{pipeline.name}.elsewhere", f"{pipeline.name}.signals", f"{pipeline.name}_checkpoints"):
        log = pipeline.open_with({"topics": {A: name}})
        log.open_writer()
        stopped(lambda log=log: log.append({A: rows(0, 1)}, draft()), "CDC-KAFKA-107")
    log = pipeline.open_with({"topics": {A: "x" * 250}})
    log.open_writer()
    stopped(lambda: log.append({A: rows(0, 1)}, draft()), "CDC-KAFKA-106")


def test_hostile_names_are_topics(pipeline: Pipeline) -> None:
    tables = [TableId('S"', "t%\n"), TableId("S", "select"), TableId("s", "select"), TableId("é" * 31, "x" * 31)]
    log = pipeline.writer()
    log.append({table: rows(0, 2) for table in tables}, draft())
    log = pipeline.writer()
    with closing(log.read(Mark(-1, log.id), everything, 0)) as items:
        item = next(items)
        assert item is not None
        assert {table: len(records) for table, records in item[1].items()} == dict.fromkeys(tables, 2)
    error = stopped(lambda: log.append({TableId("é" * 31, "é" * 31): rows(0, 1)}, draft()), "CDC-KAFKA-106")
    assert "topic:" in error.remedy


def test_keys_stay_in_their_partitions(pipeline: Pipeline) -> None:
    log = pipeline.open_with({"partitions": 3})
    log.open_writer()
    first = log.append({A: rows(0, 50), B: rows(0, 3)}, draft(begun=(Begun(B, 1, True),)))
    assert sum(span.count for span in first.spans[A]) == 50
    assert len(first.spans[A]) == 3
    assert all(span.count for span in first.spans[A])
    assert len(first.spans[B]) == 1, "a keyless table has one"
    # Another version of the schema, another process, another number of partitions in the settings.
    log = pipeline.open_with({"partitions": 2})
    log.open_writer()
    keys: list[bytes | None] = [key(n, b"\x00\x00\x00\x00\x09") for n in range(50)]
    second = log.append({A: Records(keys, [value(n) for n in range(50)])}, draft())
    assert [span.count for span in second.spans[A]] == [span.count for span in first.spans[A]]
    third = log.append({A: Records([None, key(1)], [value(0), value(1)])}, draft())
    ends = [span.end for span in second.spans[A]]
    place = (murmur2(key(1)[5:]) & 0x7FFFFFFF) % 3
    assert [span.count for span in third.spans[A]] == [(n == 0) + (n == place) for n in range(3)]
    assert all(span == Span(end, end, 0) for span, end in zip(third.spans[A], ends, strict=True) if not span.count)
    where = _partitions(pipeline.broker, pipeline.topic())
    assert {key_[5:]: len(places) for key_, places in where.items()} == {key(n)[5:]: 1 for n in range(50)}


def _partitions(broker: Kafka, topic: str) -> dict[bytes, set[int]]:
    """Body of each key -> the partitions that it is in."""
    found: dict[bytes, set[int]] = {}
    reader = Consumer(
        {**broker.client(), "group.id": "x", "enable.partition.eof": True, "auto.offset.reset": "earliest"}
    )
    reader.assign([TopicPartition(topic, n, 0) for n in range(3)])
    ended = 0
    while ended < 3:
        message = reader.poll(10)
        assert message is not None
        if message.error():
            ended += 1
        elif (body := message.key()) is not None:
            found.setdefault(b"\x00" * 5 + body[5:], set()).add(message.partition() or 0)
    reader.close()
    return found


@pytest.mark.parametrize(
    ("text", "hashed"),
    [("21", -973932308), ("foobar", -790332482), ("abc", 479470107), ("a-little-bit-long-string", -985981536)],
)
def test_murmur2_is_kafkas(text: str, hashed: int) -> None:
    assert murmur2(text.encode()) == hashed & 0xFFFFFFFF


# -------------------------------------------------------------------------------------------------------------------- sizes
def test_a_record_that_is_too_large_is_named_and_nothing_is_written(pipeline: Pipeline) -> None:
    limit = 200_000
    log = pipeline.open_with({"record_bytes_max": limit})
    log.open_writer()
    just = Records([key(1)], [value(0, limit - 17 - len(key(1)))])
    assert len(just.values[0]) + len(key(1)) == limit
    kept = log.append({A: just}, draft())
    over = Records([key(1), key(2)], [value(0), just.values[0] + b"x"])
    error = stopped(lambda: log.append({B: rows(0, 3), A: over}, draft()), "CDC-LOG-401")
    assert error.where == str(A)
    assert key(2).hex() in error.detail
    assert str(limit + 1) in error.detail
    made = log.append({A: rows(1, 1)}, draft())
    assert made.previous == kept.mark, "nothing happened"


def test_a_topic_that_takes_less_than_it_did(pipeline: Pipeline) -> None:
    log = pipeline.writer()
    kept = log.append({A: rows(0, 1)}, draft())
    pipeline.configure(pipeline.topic(), max_message_bytes="20000")
    error = stopped(
        lambda: log.append({A: Records([key(7), key(8)], [value(7), value(8, 50_000)])}, draft()), "CDC-LOG-401"
    )
    assert key(8).hex() in error.detail
    stopped(log.open_writer, "CDC-KAFKA-204")
    pipeline.configure(pipeline.topic(), max_message_bytes="20000000")
    assert log.open_writer().last == kept


# -------------------------------------------------------------------------------------------------------------------- bases
def test_from_a_base_the_story_is_the_same(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random drafts, abandoned checkpoints and successors among them; a base as often as one is due."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    print("seed", seed)
    tables = [TableId("public", f"t{n}") for n in range(6)]
    log, last, cut = pipeline.writer(base_bytes=3_000), None, None
    for n in range(120):
        facts = {table: {"n": n, "pad": "x" * rng.randrange(60)} for table in rng.sample(tables, rng.randrange(3))}
        made = log.append(
            {table: rows(0, rng.randrange(1, 4)) for table in rng.sample(tables, rng.randrange(3))},
            draft(
                n,
                rng.random() < 0.5,
                begun=tuple(
                    Begun(table, n, rng.random() < 0.3) for table in rng.sample(tables, rng.choice([0, 0, 1, 2]))
                ),
                finished=tuple(rng.sample(tables, rng.choice([0, 0, 1]))),
                facts=facts,
                continues=cut.mark if cut and cut != last and rng.random() < 0.3 else None,
            ),
        )
        last, cut = made, made if made.cut else cut
        if rng.random() < 0.05:
            log = pipeline.writer(base_bytes=3_000)
        if rng.random() < 0.1:
            state = log.open_writer()
            assert (state.last, state.cut) == (last, cut)
    with Story(pipeline.settings, pipeline.name) as story:
        ended = story.end()
        assert ended is not None
        bases = {found.base for number in range(120) if (found := story.find(number))}
        # The whole story, told from its beginning.
        monkeypatch.setattr("cdc.log.kafka.story.base_of", lambda _: 0)
        whole = story.end()
    assert whole is not None
    assert len(bases) > 3, "no base was begun"
    assert ended.base_offset > 0
    assert ended.chain == whole.chain
    assert ended.topics == whole.topics
    assert ended.intent == whole.intent
    assert ended.next_offset == whole.next_offset
