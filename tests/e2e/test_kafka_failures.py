"""Kafka that is away, changed behind our back or not what was configured: capture and sinks as processes on a real broker.

What can come back is waited for with its code; everything else stops with its code, and its remedy, followed to the letter, ends with
equal tables. The broker makes topics by itself when somebody asks for one, as Kafka does by default: the harder case.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.kafka_proof import prove
from tests.e2e.pipeline import Pipeline, until
from tests.e2e.scene import Make, Scene
from tests.e2e.test_bad_history import unseen
from tests.servers import Database

if TYPE_CHECKING:
    from tests.servers.kafka import Kafka
    from tests.servers.registry import SchemaRegistry

AWAY, REFUSED, MISSING, REMADE, TRUNCATED, SETTINGS = (f"CDC-KAFKA-{n}" for n in (101, 102, 201, 202, 203, 204))
DATA, CHECKPOINTS, SCHEMAS, SIGNALS = "bad.public.t", "bad.checkpoints", "bad.schemas", "bad.signals"
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def broker() -> Iterator[Kafka]:
    """One for all of these tests, which run one after the other."""
    from tests.conftest import provided
    from tests.servers.kafka import Kafka

    kafka = provided(lambda: Kafka(properties={"auto.create.topics.enable": "true"}))
    with kafka:
        yield kafka


@pytest.fixture
def kafka(broker: Kafka) -> Iterator[Kafka]:
    """It runs, and nothing of ours is on it."""
    yield broker
    if broker.pid is None:
        broker.start()
    broker.resume()
    broker.drop_topics("bad.")


@pytest.fixture
def scene(make: Make, kafka: Kafka) -> Scene:
    return make(log={"url": f"kafka://{kafka.bootstrap}"})


def drop_topic(kafka: Kafka, name: str) -> None:
    admin = kafka.admin()
    admin.delete_topics([name])[name].result(30)
    until(lambda: name not in admin.list_topics(timeout=10).topics, 20, f"{name} is gone")


def configured(kafka: Kafka, topic: str, **values: str) -> None:
    from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

    entries = [
        ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for name, value in values.items()
    ]
    admin = kafka.admin()
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    admin.incremental_alter_configs([resource])[resource].result(30)


def reconfigure(kafka: Kafka, remedy: str) -> None:
    """Do what a remedy says that names kafka-configs.sh, once or several times."""
    found = re.findall(r"kafka-configs\.sh .*--entity-name (\S+) --add-config (\S+)", remedy)
    assert found, remedy
    for topic, change in found:
        configured(kafka, topic, **dict(pair.split("=") for pair in change.split(",")))


def delete_records(kafka: Kafka, topic: str) -> None:
    """All that there are."""
    from confluent_kafka import TopicPartition

    admin = kafka.admin()
    for future in admin.delete_records([TopicPartition(topic, 0, -1)]).values():
        future.result(30)


def begin_anew(scene: Scene, kafka: Kafka, remedy: str) -> None:
    """What most of these remedies end with."""
    assert "begin a new log" in remedy.lower()
    scene.pipeline.close()
    scene.follow(remedy)
    if "delete the pipeline's topics" in remedy:
        kafka.drop_topics("bad.")
    scene.live()


@contextmanager
def writing(scene: Scene) -> Iterator[None]:
    """Rows come all the time."""
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(0.02):
            scene.write()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(30)


# ------------------------------------------------------------------------------------------------------ away, and back again
def test_a_broker_that_is_away(scene: Scene, kafka: Kafka) -> None:
    """At the start, and later: capture and sinks wait, say why, and go on by themselves."""
    kafka.kill()
    scene.start("capture", "main")
    for role in ("capture", "main"):
        assert kafka.bootstrap in str(scene.waits(role, AWAY, PATIENCE_S))
    scene.problem(AWAY, timeout_s=PATIENCE_S)
    kafka.start()
    scene.arrives(PATIENCE_S)
    for path in scene.folder.glob("*.out"):
        path.write_text("")
    kafka.kill()
    unseen(scene)
    for role in ("capture", "main"):
        scene.waits(role, AWAY, PATIENCE_S)
    scene.problem(AWAY, timeout_s=PATIENCE_S)
    kafka.start()
    scene.arrives(PATIENCE_S)


def test_a_broker_that_restarts_and_freezes_under_load(scene: Scene, kafka: Kafka) -> None:
    scene.live()
    with writing(scene):
        for _ in range(2):
            kafka.kill()
            kafka.start()
            time.sleep(1)
        kafka.restart()
        time.sleep(1)
        kafka.suspend()
        time.sleep(6)
        kafka.resume()
        time.sleep(1)
    scene.arrives(PATIENCE_S)
    scene.terminate()
    assert prove(kafka, "bad").orphans == 0


def test_a_wrong_list_of_brokers(scene: Scene) -> None:
    right = scene.config["log"]
    for wrong in ("kafka://127.0.0.1:1", "kafka://nobody.invalid:9092"):
        scene.configure(log={"url": wrong})
        assert wrong.removeprefix("kafka://") in str(scene.found(AWAY))
    scene.start("capture", "main")
    for role in ("capture", "main"):
        scene.waits(role, AWAY, PATIENCE_S)
    scene.terminate()
    scene.configure(log=right)
    scene.live()


def test_a_login_that_is_refused(make: Make, private_kafka: Callable[..., Kafka]) -> None:
    kafka = private_kafka(sasl=True)
    wrong = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "SCRAM-SHA-256"}
    wrong |= {"sasl.username": "admin", "sasl.password": "c4nary"}
    scene = make(log={"url": f"kafka://{kafka.bootstrap}", "options": wrong})
    scene.found(REFUSED)
    scene.start("capture", "main")
    for role in ("capture", "main"):
        scene.stops(role, REFUSED, exit_code=2, timeout_s=PATIENCE_S)
    scene.configure(log={"url": f"kafka://{kafka.bootstrap}", "options": {**wrong, "sasl.username": "nobody"}})
    password = kafka.user("nobody")
    scene.configure(
        log={
            "url": f"kafka://{kafka.bootstrap}",
            "options": {**wrong, "sasl.username": "nobody", "sasl.password": password},
        }
    )
    scene.start("capture")
    scene.stops("capture", "CDC-KAFKA-103", exit_code=2, timeout_s=PATIENCE_S)
    assert "c4nary" not in scene.outputs()
    assert password not in scene.outputs()
    right = {name.replace("_", "."): value for name, value in kafka.client().items() if name != "bootstrap.servers"}
    scene.configure(log={"url": f"kafka://{kafka.bootstrap}", "options": right})
    scene.live()
    # A password that is changed while all is running: connections stay, new ones are refused.
    assert kafka.password not in scene.outputs()


# --------------------------------------------------------------------------------------------- topics changed behind our back
@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
@pytest.mark.parametrize("topic", [CHECKPOINTS, DATA])
def test_a_deleted_topic(scene: Scene, kafka: Kafka, topic: str, running: bool) -> None:
    scene.live()
    if not running:
        scene.terminate()
    drop_topic(kafka, topic)
    unseen(scene)
    if not running:
        scene.start("capture", "main")

    def ended(role: str) -> bool:
        return scene.pipeline.processes[role].poll() is not None

    for role in ("capture", "main"):
        if role == "main" and topic == CHECKPOINTS and not running:
            # There is no log: the sink waits for a capture to begin one, and the capture refuses.
            until(partial(scene.said, "main", "CDC-RUN-304"), PATIENCE_S, "the sink waits for the log")
            continue
        until(partial(ended, role), PATIENCE_S, f"the end of {role}")
        assert scene.last_error(role)[0] in (MISSING, REMADE, TRUNCATED), scene.pipeline.tail(role)
    begin_anew(scene, kafka, scene.last_error("capture")[1])


@pytest.mark.parametrize("topic", [DATA, SIGNALS, SCHEMAS])
def test_a_topic_that_was_made_again(scene: Scene, kafka: Kafka, topic: str) -> None:
    scene.live()
    scene.pipeline.reload("public.u")
    until(lambda: scene.pipeline.status()["result"]["tables"][1]["generation"] == 2, 30, "the reload")
    scene.arrives()
    scene.terminate()
    drop_topic(kafka, topic)
    kafka.make_topic(
        topic, config={"retention.ms": "-1", "max.message.bytes": "20000000", "unclean.leader.election.enable": "false"}
    )
    unseen(scene)
    scene.start("capture")
    begin_anew(scene, kafka, scene.stops("capture", REMADE, topic).remedy)


def test_records_that_were_deleted(scene: Scene, kafka: Kafka) -> None:
    """Those that every sink has applied are nobody's loss; of others the sink says so."""
    scene.live()
    delete_records(kafka, DATA)
    scene.arrives()
    scene.terminate("main")
    unseen(scene)
    written = scene.pipeline.status()["result"]["log"]["last"]
    until(lambda: scene.pipeline.status()["result"]["log"]["last"] > written + 2, 20, "the changes in the log")
    delete_records(kafka, DATA)
    scene.start("main")
    scene.follow(scene.stops("main", "CDC-LOG-108", DATA, timeout_s=PATIENCE_S).remedy)
    scene.live()


def test_checkpoints_that_were_deleted(scene: Scene, kafka: Kafka) -> None:
    scene.live()
    scene.terminate()
    delete_records(kafka, CHECKPOINTS)
    unseen(scene)
    scene.start("capture", "main")
    scene.stops("main", TRUNCATED, CHECKPOINTS)
    begin_anew(scene, kafka, scene.stops("capture", TRUNCATED, CHECKPOINTS).remedy)


@pytest.mark.parametrize(
    ("topic", "change"),
    [
        (DATA, {"cleanup_policy": "compact"}),
        (DATA, {"retention_ms": "600000"}),
        (CHECKPOINTS, {"cleanup_policy": "compact,delete", "retention_bytes": "100000"}),
    ],
    ids=["compacted", "short", "checkpoints"],
)
def test_a_topic_whose_settings_would_lose_records(
    scene: Scene, kafka: Kafka, topic: str, change: dict[str, str]
) -> None:
    scene.live()
    scene.terminate()
    configured(kafka, topic, **change)
    scene.found(SETTINGS)
    unseen(scene)
    scene.start("capture")
    reconfigure(kafka, scene.stops("capture", SETTINGS, topic).remedy)
    scene.live()


def test_partitions_that_others_add(scene: Scene, kafka: Kafka) -> None:
    """They are not used (A5)."""
    from confluent_kafka.admin import NewPartitions

    scene.live()
    with writing(scene):
        admin = kafka.admin()
        admin.create_partitions([NewPartitions(DATA, 3)])[DATA].result(30)
        time.sleep(2)
    scene.arrives()
    scene.terminate()
    unseen(scene)
    scene.live()
    assert prove(kafka, "bad").orphans == 0


def test_a_topic_of_somebody_else(scene: Scene, kafka: Kafka) -> None:
    from confluent_kafka import Producer

    kafka.make_topic("bad.theirs")
    producer = Producer(kafka.client())
    producer.produce("bad.theirs", b"theirs", b"key")
    producer.flush(10)
    scene.configure(rules={"public.t": {"topic": "bad.theirs"}})
    scene.start("capture")
    assert "topic" in scene.stops("capture", "CDC-KAFKA-207", "bad.theirs").remedy
    scene.configure(rules={"public.t": {"topic": "bad.ours"}})
    scene.live()


def test_checkpoints_of_somebody_else(scene: Scene, kafka: Kafka) -> None:
    from confluent_kafka import Producer

    kafka.make_topic(CHECKPOINTS, config={"retention.ms": "-1"})
    producer = Producer(kafka.client())
    producer.produce(CHECKPOINTS, b"theirs", b"key")
    producer.flush(10)
    scene.found("CDC-KAFKA-207")
    scene.start("capture", "main")
    for role in ("capture", "main"):
        assert "another name" in scene.stops(role, "CDC-KAFKA-207", CHECKPOINTS).remedy
    drop_topic(kafka, CHECKPOINTS)
    scene.live()


# -------------------------------------------------------------------------------------------------------------- large records
def test_a_row_larger_than_a_record_may_be(scene: Scene, kafka: Kafka) -> None:
    log = scene.config["log"]
    scene.configure(log={**log, "record_bytes_max": 100_000})
    scene.live()
    scene.source.execute("INSERT INTO t VALUES (4711, repeat(md5(random()::text), 5000))")
    unseen(scene)
    stopped = scene.stops("capture", "CDC-LOG-401", "public.t")
    assert "key" in stopped.text
    assert "record limit" in stopped.remedy
    scene.configure(log={**log, "record_bytes_max": 1_000_000})
    for topic in (CHECKPOINTS, DATA):
        scene.start("capture")
        reconfigure(kafka, scene.stops("capture", SETTINGS, topic, "more topics").text)
    scene.live()


def test_a_topic_that_takes_less_than_it_should(scene: Scene, kafka: Kafka) -> None:
    """While all is running; the record in question is neither the first nor the last of its transaction."""
    scene.live()
    configured(kafka, DATA, max_message_bytes="5000")
    large = "(SELECT string_agg(md5(j::text), '') FROM generate_series(1, 1000) j)"
    scene.source.execute(
        f"INSERT INTO t SELECT i, CASE WHEN i = 4713 THEN {large} END FROM generate_series(4711, 4720) i"
    )
    assert "key" in scene.stops("capture", "CDC-LOG-401", "public.t", timeout_s=PATIENCE_S).text
    scene.start("capture")
    reconfigure(kafka, scene.stops("capture", SETTINGS, DATA).remedy)
    scene.live()


def test_a_broker_that_takes_smaller_requests(make: Make, private_kafka: Callable[..., Kafka]) -> None:
    kafka = private_kafka(properties={"socket.request.max.bytes": "1000000"})
    log = {"url": f"kafka://{kafka.bootstrap}"}
    scene = make(log=log)
    scene.found("CDC-KAFKA-104")
    scene.start("capture")
    stopped = scene.stops("capture", "CDC-KAFKA-104", "socket.request.max.bytes")
    assert "record_bytes_max" in stopped.remedy
    scene.configure(log={**log, "record_bytes_max": 500_000})
    scene.live()
    scene.source.execute("INSERT INTO t SELECT 4711, string_agg(md5(i::text), '') FROM generate_series(1, 14000) i")
    scene.arrives()


# ------------------------------------------------------------------------------------------------------------ two of a kind
def test_two_captures_of_one_pipeline(scene: Scene, kafka: Kafka) -> None:
    """The second keeps out while the first has the slot, and disturbs it rarely; when the first hangs, the second takes over."""
    scene.live()
    (scene.folder / "second").mkdir()
    second = Pipeline(
        scene.folder / "second", "bad", scene.config["source"], scene.config["sinks"], log=scene.config["log"]
    )
    try:
        with writing(scene):
            second.start("capture")
            time.sleep(12)
        running = [p for p in (scene.pipeline, second) if p.processes["capture"].poll() is None]
        assert running, scene.pipeline.tail("capture") + second.tail("capture")
        fenced = sum(p.tail("capture", 100_000).count("CDC-KAFKA-108") for p in (scene.pipeline, second))
        print("fenced", fenced, scene.pipeline.tail("capture"), second.tail("capture"))
        scene.arrives(PATIENCE_S, alive=False)
        first = scene.pipeline.processes["capture"]
        if len(running) == 2:
            first.kill()
            first.wait(10)
            scene.arrives(PATIENCE_S, alive=False)
            assert second.terminate("capture") == 0
        assert prove(kafka, "bad").orphans == 0
        assert fenced <= 8
    finally:
        second.close()


def test_two_captures_that_start_at_once(scene: Scene, kafka: Kafka) -> None:
    """There is no log yet: one of them begins it."""
    (scene.folder / "second").mkdir()
    second = Pipeline(
        scene.folder / "second", "bad", scene.config["source"], scene.config["sinks"], log=scene.config["log"]
    )
    try:
        second.start("capture")
        scene.start("capture", "main")
        scene.arrives(PATIENCE_S, alive=False)
        scene.pipeline.processes["main"].send_signal(15)
        for pipeline in (scene.pipeline, second):
            assert pipeline.terminate("capture") == 0 or "CDC-LOG-202" in pipeline.tail("capture")
        assert prove(kafka, "bad").orphans == 0
    finally:
        second.close()


def test_two_pipelines_of_one_name(
    scene: Scene, kafka: Kafka, make_database: Callable[[], Database], tmp_path: Path
) -> None:
    """On different sources: the log's position is not of the second's."""
    scene.live()
    other = make_database()
    other.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'theirs')")
    (tmp_path / "other").mkdir()
    second = Pipeline(
        tmp_path / "other", "bad", other.grant_source(), {"main": scene.sink_url}, log=scene.config["log"]
    )
    try:
        with writing(scene):
            second.start("capture")
            assert second.wait("capture", 30) == 1
        assert re.search(r"CDC-PG-12\d", second.tail("capture")), second.tail("capture")
        scene.arrives(PATIENCE_S)
    finally:
        second.close()


# ---------------------------------------------------------------------------------------------------------- another log than ours
def test_switching_an_embedded_pipeline_to_kafka(make: Make, kafka: Kafka) -> None:
    """Explicit: neither capture nor sink begins anew by itself, at the second start either."""
    scene = make()
    scene.live()
    scene.terminate()
    embedded = scene.config["log"]
    scene.configure(log={"url": f"kafka://{kafka.bootstrap}"})
    unseen(scene)
    for _ in range(2):
        scene.start("capture", "main")
        scene.stops("capture", "CDC-PG-121", "cdc_bad")
        scene.stops("main", "CDC-TGT-111")
    scene.configure(log=embedded)
    scene.live()
    scene.terminate()
    unseen(scene)
    scene.configure(log={"url": f"kafka://{kafka.bootstrap}"})
    scene.start("capture")
    scene.follow(scene.stops("capture", "CDC-PG-121", "cdc_bad").remedy)
    scene.live()


def test_a_bookmark_of_a_log_that_was_begun_again(scene: Scene, kafka: Kafka) -> None:
    scene.live()
    scene.terminate()
    kafka.drop_topics("bad.")
    scene.pipeline.cdc("drop", str(scene.pipeline.file), "--source", "--yes")
    unseen(scene)
    scene.start("capture", "main")
    scene.follow(scene.stops("main", "CDC-TGT-111", timeout_s=PATIENCE_S).remedy)
    scene.live()


# ------------------------------------------------------------------------------------------------------------------ registry
def test_an_external_registry_that_is_away(make: Make, kafka: Kafka, private_registry: Callable[[], Any]) -> None:
    registry: SchemaRegistry = private_registry()
    registry.kill()
    external = {"url": registry.url, "options": {"timeout": 1}}
    scene = make(log={"url": f"kafka://{kafka.bootstrap}"}, registry=external)
    scene.start("capture", "main")
    scene.waits("capture", "CDC-REG-101", PATIENCE_S)
    registry.start()
    scene.arrives(PATIENCE_S)
    registry.suspend()
    scene.arrives(PATIENCE_S)  # a version that is registered needs nobody
    scene.pipeline.output("capture").write_text("")
    scene.source.execute("ALTER TABLE t ADD w int; INSERT INTO t VALUES (4711, 'new', 1)")
    scene.waits("capture", "CDC-REG-101", PATIENCE_S)
    registry.resume()
    scene.arrives(PATIENCE_S)
