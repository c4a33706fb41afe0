"""The test servers on a JVM themselves: a broker that can be killed, frozen, closed off."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from secrets import token_hex

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AclOperation, AdminClient, ResourceType

from tests.servers import Missing, java
from tests.servers.java import StartFailed
from tests.servers.kafka import Kafka, allow

ROOT = Path(__file__).parents[2]


@pytest.fixture
def topic() -> str:
    return f"servers-{token_hex(4)}"


def commit(client: dict[str, object], topic: str, value: bytes, *, aborted: bytes) -> None:
    """One committed transaction with `value`, after an aborted one."""
    producer = Producer({**client, "transactional.id": topic})
    producer.init_transactions(30)
    for payload in (aborted, value):
        producer.begin_transaction()
        producer.produce(topic, payload)
        producer.flush(30)
        (producer.abort_transaction if payload == aborted else producer.commit_transaction)(30)


def committed(client: dict[str, object], topic: str) -> Iterator[bytes]:
    """The values of committed transactions, up to the end."""
    consumer = Consumer(
        {
            **client,
            "group.id": topic,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "enable.auto.commit": False,
        }
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        message = consumer.poll(1)
        if message is None:
            continue
        error = message.error()
        if error and error.code() == KafkaError._PARTITION_EOF:
            consumer.close()
            return
        if error:
            raise KafkaException(error)
        yield message.value()
    raise TimeoutError(topic)


def test_the_shared_broker_has_transactions_and_makes_no_topic_by_itself(kafka: Kafka, topic: str) -> None:
    error = kafka.admin().list_topics(topic, timeout=10).topics[topic].error
    assert error is not None
    assert error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART
    kafka.make_topic(topic)
    commit(kafka.client(), topic, b"kept", aborted=b"lost")
    assert list(committed(kafka.client(), topic)) == [b"kept"]
    kafka.drop_topics(topic)


def test_a_killed_broker_comes_back_on_its_port_with_its_data(private_kafka: Callable[..., Kafka], topic: str) -> None:
    kafka = private_kafka()
    kafka.make_topic(topic)
    commit(kafka.client(), topic, b"kept", aborted=b"lost")
    bootstrap = kafka.bootstrap
    kafka.kill()
    assert kafka.pid is None
    kafka.restart()
    assert kafka.bootstrap == bootstrap
    assert list(committed(kafka.client(), topic)) == [b"kept"]

    kafka.suspend()
    with pytest.raises(KafkaException):
        AdminClient({**kafka.client(), "log_level": 0}).list_topics(timeout=1)
    kafka.resume()
    assert topic in kafka.admin().list_topics(timeout=10).topics


def test_a_user_of_a_closed_broker_may_do_what_he_is_granted(private_kafka: Callable[..., Kafka], topic: str) -> None:
    kafka = private_kafka(sasl=True, tls=True)
    for name in (topic, f"{topic}-other"):
        kafka.make_topic(name)
    rights = [
        *allow("capture", ResourceType.TOPIC, topic, AclOperation.WRITE),
        *allow("capture", ResourceType.TRANSACTIONAL_ID, "servers-", AclOperation.WRITE, prefix=True),
    ]
    client = kafka.client("capture", kafka.user("capture", rights))
    commit(client, topic, b"kept", aborted=b"lost")
    with pytest.raises(KafkaException):
        commit(client, f"{topic}-other", b"kept", aborted=b"lost")
    assert list(committed(kafka.client(), topic)) == [b"kept"]
    wrong = {**kafka.client("capture", "wrong"), "log_level": 0}
    with pytest.raises(KafkaException):
        AdminClient(wrong).list_topics(timeout=2)


def test_a_property_that_the_broker_refuses_is_an_error_with_its_log(kafka: Kafka) -> None:
    assert kafka.pid
    with pytest.raises(StartFailed, match=r"message\.max\.bytes"):
        Kafka(properties={"message.max.bytes": "many"}).__enter__()


def test_a_broker_dies_with_a_parent_that_is_killed(kafka: Kafka) -> None:
    assert kafka.pid  # Otherwise this machine has no java, or no jars.
    script = """import time; from tests.servers.kafka import Kafka
kafka = Kafka(); kafka.start(); print(kafka.pid, kafka.folder, flush=True); time.sleep(60)"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().split(maxsplit=1)
        try:
            parent.kill()
            parent.wait()
            deadline = time.monotonic() + 10
            while alive(int(pid)) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert not alive(int(pid))
        finally:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
            shutil.rmtree(folder.strip(), ignore_errors=True)


def alive(pid: int) -> bool:
    """Running, and not merely unburied by an init that does not reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not shutil.which("mvn"), reason="no mvn on the path")
def test_jars_are_fetched_once_though_two_fetch_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    script = "from tests.servers.java import jars; print(jars('apicurio-converter'))"
    both = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment, text=True, cwd=ROOT)
        for _ in range(2)
    ]
    (place,) = {process.communicate(timeout=120)[0].strip() for process in both}
    assert [path for path in (tmp_path / "penstock").iterdir() if path.is_dir()] == [Path(place)]
    assert list(Path(place).glob("apicurio-registry-utils-converter-*.jar"))
    assert not list(Path(place).glob("kafka-clients-*.jar"))


def test_a_machine_without_java_or_with_an_old_one_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(Missing, match="no java 17 or later"):
        java.java()
    old = tmp_path / "bin" / "java"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    old.chmod(0o755)
    with pytest.raises(Missing, match="is 11"):
        java.java()
