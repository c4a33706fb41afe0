"""Schema registries: events that were captured from a real Postgres, decoded by confluent-kafka's own deserializer, with our endpoint
and with a real registry; and what a registry does to a capture that needs an id."""

from __future__ import annotations

import json
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Consumer
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.serialization import MessageField, SerializationContext

from cdc.avro import canonical, schemas_of
from cdc.errors import CdcError, Unavailable
from cdc.log import Draft, Log
from cdc.log.embedded import EmbeddedLog
from cdc.log.kafka.client import KafkaSettings
from cdc.log.kafka.log import KafkaLog
from cdc.log.kafka.schemas import Schemas
from cdc.metrics import ServiceMetrics
from cdc.position import Position
from cdc.records import Records
from cdc.registry.api import RegistryApi
from cdc.registry.external import ExternalRegistry
from cdc.secrets import redact
from cdc.service import Health, Service
from cdc.table import Column, LogicalType, TableId, TableSchema
from tests.integration.pg_source import Capture, Registry
from tests.servers import Database

if TYPE_CHECKING:
    from tests.servers.kafka import Kafka
    from tests.servers.registry import SchemaRegistry

TABLE = """
CREATE TABLE kinds (
    id bigint, part uuid, flag boolean, small smallint, price numeric(12,2), weight numeric, note text, raw bytea, day date,
    at_time time, at timestamp, at_tz timestamptz, doc jsonb, tags text[], "Größe %s" real, PRIMARY KEY (id, part)
)"""
PART = "0b4ee57b-63d1-4a5c-8bb0-1f5d7e1f0d11"
ROW = f"""
INSERT INTO kinds VALUES (7, '{PART}', true, -3, 12.50, 3.14159, 'ä', '\\x00ff', '2026-11-23', '12:30:00.000001',
    '2026-11-23 12:30:00.5', '2026-11-23 12:30:00+02', '{{"a": 1}}', '{{x,y}}', 1.5)"""


class Logged(Registry):
    """`Capture`'s registry, which is a log."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log = log

    def __call__(self, subject: str, schema: Any) -> int:
        return self.log.register(subject, schema)

    def events(self, records: Records) -> list[Any]:
        return []


def opened(folder: Path, registry: ExternalRegistry | None = None) -> EmbeddedLog:
    return EmbeddedLog(folder, free_bytes_min=0, registry=registry)


def captured(database: Database, log: Log, pipeline: str) -> Records:
    """The records of a table with one row: read by a load, then inserted, updated, its key changed, deleted."""
    database.execute(TABLE)
    database.execute(ROW)
    capture = Capture(database.grant_source(), Logged(log), pipeline).start()
    with closing(capture.source):
        found = Records()
        for piece in capture.chunk("public.kinds").pieces:
            found.keys += piece.records.keys
            found.values += piece.records.values
        database.execute("TRUNCATE kinds")
        database.execute(ROW)
        database.execute("UPDATE kinds SET price = NULL, note = 'b'")
        database.execute("UPDATE kinds SET id = 8")
        database.execute("DELETE FROM kinds")
        for run in capture.until_mark():
            for records in run.records.values():
                found.keys += records.keys
                found.values += records.values
    return found


def check_decoded(records: Records, client: SchemaRegistryClient, topic: str) -> None:
    """What anyone sees who knows the topic and the registry alone."""
    read = AvroDeserializer(client)
    values = [read(value, SerializationContext(topic, MessageField.VALUE)) for value in records.values]
    keys = [read(key, SerializationContext(topic, MessageField.KEY)) for key in records.keys if key is not None]
    assert [value["op"] for value in values] == ["r", "t", "c", "u", "d", "c", "d"]
    part = uuid.UUID(PART)
    assert keys == [{"id": number, "part": part} for number in (7, 7, 7, 7, 8, 8)]
    whole = {
        "id": 7,
        "part": part,
        "flag": True,
        "small": -3,
        "price": Decimal("12.50"),
        "weight": {"scale": 5, "value": (314159).to_bytes(3, "big")},
        "note": "ä",
        "raw": b"\x00\xff",
        "day": (datetime(2026, 11, 23) - datetime(1970, 1, 1)).days,
        "at_time": datetime(2026, 11, 23, 12, 30, 0, 1).time(),
        "at": datetime(2026, 11, 23, 12, 30, 0, 500_000, UTC),
        "at_tz": "2026-11-23T10:30:00.000000Z",
        "doc": '{"a": 1}',
        "tags": ["x", "y"],
        "Gr_u00f6_u00dfe_u0020_u0025s": 1.5,
    }
    assert values[0]["after"] == values[2]["after"] == whole
    assert values[3]["after"] == {**whole, "price": None, "note": "b"}
    assert values[6]["before"]["id"] == 8
    assert {value["source"]["table"] for value in values} == {"kinds"}


@contextmanager
def endpoint(open_log: Callable[[], Log]) -> Iterator[str]:
    """Our own registry; its URL."""
    health = Health("running", ready=True)
    with (
        closing(RegistryApi(open_log)) as api,
        Service("127.0.0.1", 0, ServiceMetrics("p", "registry").registry, lambda: health, api.routes()) as service,
    ):
        yield f"http://{service.address}/registry"


# -------------------------------------------------------------------------------------------------------------- anyone reads
def test_anyone_decodes_with_our_endpoint(database: Database, tmp_path: Path) -> None:
    with opened(tmp_path / "p.log") as log:
        records = captured(database, log, "p")
        with endpoint(partial(opened, tmp_path / "p.log")) as url, SchemaRegistryClient({"url": url}) as client:
            check_decoded(records, client, "p.public.kinds")


def test_confluents_client_finds_its_way_around_our_endpoint(tmp_path: Path) -> None:
    with opened(tmp_path / "p.log") as log, endpoint(partial(opened, tmp_path / "p.log")) as url:
        number = log.register("p.public.t-value", VALUE)
        with SchemaRegistryClient({"url": url, "max.retries": 0}) as client:
            schema = Schema(canonical(VALUE), "AVRO")
            assert client.get_subjects() == ["p.public.t-value"]
            assert client.get_schema_types() == ["AVRO"]
            assert client.get_versions("p.public.t-value") == [1]
            assert client.get_latest_version("p.public.t-value").schema_id == number
            assert client.get_version("p.public.t-value", 1).schema.schema_str == canonical(VALUE)
            assert client.lookup_schema("p.public.t-value", schema).version == 1
            assert client.register_schema("p.public.t-value", schema) == number
            assert [item.subject for item in client.get_schema_versions(number)] == ["p.public.t-value"]
            assert client.get_subjects_by_schema_id(number) == ["p.public.t-value"]
            assert client.get_compatibility("p.public.t-value") == "NONE"
            assert client.get_global_mode() == client.get_mode("p.public.t-value") == "READONLY"
            with pytest.raises(SchemaRegistryError) as refused:
                client.register_schema("p.public.t-value", Schema(canonical(NARROWED), "AVRO"))
            assert (refused.value.http_status_code, refused.value.error_code) == (422, 42205)
            # A producer with our schema, which registers by default.
            context = SerializationContext("p.public.t", MessageField.VALUE)
            write = AvroSerializer(client, canonical(VALUE))
            assert AvroDeserializer(client)(write(EVENT, context), context) == EVENT


def test_anyone_decodes_with_an_external_registry(
    database: Database, registry: SchemaRegistry, tmp_path: Path, name: str
) -> None:
    with opened(tmp_path / "p.log", ExternalRegistry(registry.url)) as log:
        records = captured(database, log, name)
        ids = dict(log.subjects())
        assert sorted(ids) == [f"{name}.public.kinds-key", f"{name}.public.kinds-value"]
        with SchemaRegistryClient({"url": registry.url}) as client:
            check_decoded(records, client, f"{name}.public.kinds")
            for subject, numbers in ids.items():
                assert [client.get_version(subject, 1).schema_id] == numbers
                assert client.get_schema(numbers[0]).schema_str == canonical(log.schema(numbers[0]))
    # The log explains itself without the registry, and serves what it knows under the same ids.
    with endpoint(partial(opened, tmp_path / "p.log")) as url, SchemaRegistryClient({"url": url}) as client:
        check_decoded(records, client, f"{name}.public.kinds")


@pytest.mark.parametrize("kind", ["ours", "external"])
def test_anyone_reads_the_topics(
    database: Database, kafka: Kafka, registry: SchemaRegistry, name: str, kind: str
) -> None:
    """As a consumer that was told the brokers, the topic and the registry's address."""
    settings, topic = KafkaSettings(kafka.bootstrap), f"{name}.public.kinds"
    external = ExternalRegistry(registry.url) if kind == "external" else None
    try:
        with closing(KafkaLog(settings, name, registry=external)) as log:
            records = captured(database, log, name)
            log.open_writer()
            for begin, end in ((0, 1), (1, 2), (2, len(records.values))):  # a TRUNCATE is alone in its checkpoint
                part = Records(records.keys[begin:end], records.values[begin:end])
                log.append({TableId("public", "kinds"): part}, Draft(Position(0, end, None, None), cut=True))
        with endpoint(lambda: KafkaLog(settings, name, create=False)) as ours:
            read = consumed(kafka, topic, len(records.values))
            assert sorted(read.values) == sorted(records.values)
            with SchemaRegistryClient({"url": registry.url if external else ours}) as client:
                check_decoded(read, client, topic)
    finally:
        kafka.drop_topics(f"{name}.")


def consumed(kafka: Kafka, topic: str, count: int) -> Records:
    """The records of a topic with one partition."""
    found = Records()
    settings = {"group.id": topic, "auto.offset.reset": "earliest", "isolation.level": "read_committed"}
    with closing(Consumer({**kafka.client(), **settings})) as consumer:
        consumer.subscribe([topic])
        while len(found.values) < count:
            message = consumer.poll(20)
            assert message is not None
            assert message.error() is None
            found.keys.append(message.key())
            found.values.append(message.value() or b"")
    return found


# -------------------------------------------------------------------------------------------------------- external registry
def table(kind: str = "text", nullable: bool = True) -> TableSchema:
    columns = Column("id", LogicalType("int64"), "bigint", False), Column("x", LogicalType(kind), kind, nullable)
    return TableSchema(TableId("public", "t"), columns, ("id",))


VALUE = schemas_of("p", table(), "postgresql").value
NARROWED = schemas_of("p", table("int64"), "postgresql").value
REQUIRED = schemas_of("p", table(nullable=False), "postgresql").value
SOURCE = {
    field["name"]: {"string": "", "long": 0, "int": 0}.get(field["type"]) if isinstance(field["type"], str) else None
    for field in next(field["type"] for field in VALUE["fields"] if field["name"] == "source")["fields"]
}
EVENT = {
    **{field["name"]: None for field in VALUE["fields"]},
    "op": "c",
    "after": {"id": 1, "x": "ä"},
    "source": SOURCE | {"snapshot": "false"},
}


@pytest.fixture
def name() -> str:
    """A prefix of subjects that no other test has."""
    return f"p{uuid.uuid4().hex[:12]}"


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(CdcError) as caught:
        act()
    assert caught.value.remedy
    return caught.value.code


def test_the_same_id_each_time_and_for_everyone(registry: SchemaRegistry, name: str) -> None:
    with ExternalRegistry(registry.url) as one, ExternalRegistry(f"{registry.url}/") as other:
        number = one.register(f"{name}-value", VALUE)
        assert one.register(f"{name}-value", VALUE) == other.register(f"{name}-value", VALUE) == number
        assert other.schema(number) == VALUE
        assert one.register(f"{name}-value", REQUIRED) != number  # it differs in a property of ours alone
        assert code_of(lambda: one.schema(2**31 - 1)) == "CDC-REG-203"
        one.check()


def test_an_incompatible_version_opens_its_subject(registry: SchemaRegistry, name: str) -> None:
    with ExternalRegistry(registry.url) as ours, SchemaRegistryClient({"url": registry.url}) as client:
        ours.register(f"{name}-value", VALUE)
        ours.register(f"{name}-other", VALUE)
        client.set_compatibility(f"{name}-value", "FULL")
        client.set_compatibility(f"{name}-other", "FULL")
        number = ours.register(f"{name}-value", NARROWED)
        assert client.get_latest_version(f"{name}-value").schema_id == number
        assert client.get_compatibility(f"{name}-value") == "NONE"
        assert client.get_compatibility(f"{name}-other") == "FULL"


def test_a_schema_that_the_registry_does_not_take(registry: SchemaRegistry, name: str) -> None:
    with ExternalRegistry(registry.url) as ours:
        assert code_of(lambda: ours.register(f"{name}-value", {"type": "nonsense"})) == "CDC-REG-202"


def test_two_schemas_with_one_id_are_noticed(
    private_registry: Callable[[], SchemaRegistry], tmp_path: Path, name: str
) -> None:
    """The registry lost everything, and counts its ids from the beginning again."""
    registry = private_registry()
    with opened(tmp_path / "p.log", ExternalRegistry(registry.url)) as log:
        number = log.register(f"{name}-value", VALUE)
    registry.restart()
    with opened(tmp_path / "p.log", ExternalRegistry(registry.url)) as log:
        assert code_of(lambda: log.register(f"{name}-value", NARROWED)) == "CDC-REG-301"
        assert log.schema(number) == VALUE
        assert log.subjects() == {f"{name}-value": [number]}


def test_the_registry_goes_away_and_comes_back(
    private_registry: Callable[[], SchemaRegistry], tmp_path: Path, name: str
) -> None:
    registry = private_registry()
    with opened(tmp_path / "p.log", ExternalRegistry(registry.url, {"timeout": "1"})) as log:
        number = log.register(f"{name}-value", VALUE)
        registry.suspend()
        with pytest.raises(Unavailable) as frozen:
            log.register(f"{name}-value", NARROWED)
        registry.kill()
        with pytest.raises(Unavailable) as gone:
            log.register(f"{name}-value", NARROWED)
        assert frozen.value.code == gone.value.code == "CDC-REG-101"
        assert log.register(f"{name}-value", VALUE) == number  # what is known needs nobody
        assert log.subjects() == {f"{name}-value": [number]}
        registry.start()
        assert log.register(f"{name}-key", VALUE) == number
        assert log.register(f"{name}-value", NARROWED) != number


# ------------------------------------------------------------------------------------------------- other servers, real HTTP
class Answers(BaseHTTPRequestHandler):
    """A server that answers each method in one way, and keeps what it was asked."""

    protocol_version = "HTTP/1.1"
    answers: dict[str, tuple[int, Any]]
    asked: list[tuple[str, str, str | None]]

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append((self.command, self.path, self.headers.get("Authorization")))
        status, body = self.answers[self.command]
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering(**answers: tuple[int, Any]) -> Iterator[tuple[str, list[tuple[str, str, str | None]]]]:
    """Its URL, and what it is asked."""
    asked: list[tuple[str, str, str | None]] = []
    handler = type("Handler", (Answers,), {"answers": answers, "asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()
        thread.join()


def error(code: int, message: str = "no") -> dict[str, Any]:
    return {"error_code": code, "message": message}


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (401, error(401), "CDC-REG-102"),
        (403, b"", "CDC-REG-102"),
        (408, b"", "CDC-REG-101"),
        (429, error(429), "CDC-REG-101"),
        (500, error(50002), "CDC-REG-101"),
        (503, b"<html>", "CDC-REG-101"),
        (422, error(42201), "CDC-REG-202"),
        (422, error(42205), "CDC-REG-202"),
        (404, error(404), "CDC-REG-105"),
        (404, b"<html>", "CDC-REG-105"),
        (405, b"", "CDC-REG-105"),
        (301, b"", "CDC-REG-105"),
        (200, b"<html>", "CDC-REG-105"),
        (200, {}, "CDC-REG-105"),
        (200, [], "CDC-REG-105"),
        (200, {"id": -1}, "CDC-REG-105"),
        (200, {"id": "7"}, "CDC-REG-105"),
    ],
)
def test_answers_are_understood_by_status_and_code(status: int, body: Any, code: str) -> None:
    with answering(POST=(status, body)) as (url, asked), ExternalRegistry(url) as ours:
        with pytest.raises(CdcError) as caught:
            ours.register("p-value", VALUE)
        assert caught.value.code == code
        assert isinstance(caught.value, Unavailable) == (code == "CDC-REG-101")
        assert len(asked) == 1  # it tries once; again is the supervisor's


def test_wrong_credentials_are_named_and_not_shown() -> None:
    options = {"basic.auth.user.info": "cdc:hunter2hunter2"}
    with answering(GET=(401, error(401, "hunter2hunter2 is wrong"))) as (url, asked):
        with ExternalRegistry(url, options) as ours, pytest.raises(CdcError) as caught:
            ours.check()
        assert caught.value.code == "CDC-REG-102"
        assert "hunter2" not in f"{caught.value} {caught.value.remedy}"
        assert asked[0][2] == "Basic Y2RjOmh1bnRlcjJodW50ZXIy"
        assert redact("hunter2hunter2") == "***"


def test_a_bearer_token_is_passed_through() -> None:
    options = {
        "bearer.auth.credentials.source": "STATIC_TOKEN",
        "bearer.auth.token": "tok-en-tok-en",
        "bearer.auth.logical.cluster": "lsrc-1",
    }
    with answering(GET=(200, [])) as (url, asked), ExternalRegistry(url, options) as ours:
        ours.check()
        assert asked[0][2] == "Bearer tok-en-tok-en"


@pytest.mark.parametrize("refusal", [(403, error(40301)), (422, error(42205)), (404, b"")])
def test_a_subject_that_may_not_be_opened(refusal: tuple[int, Any]) -> None:
    with answering(POST=(409, error(409)), PUT=refusal) as (url, asked), ExternalRegistry(url) as ours:
        with pytest.raises(CdcError) as caught:
            ours.register("p.public.t-value", VALUE)
        assert caught.value.code == "CDC-REG-201"
        assert f"'{url}/config/p.public.t-value'" in caught.value.remedy
        assert [method for method, *_ in asked] == ["POST", "PUT"]


def test_a_subject_that_stays_closed_although_it_was_opened() -> None:
    with answering(POST=(409, error(409)), PUT=(200, {"compatibility": "NONE"})) as (url, asked):
        with ExternalRegistry(url) as ours:
            assert code_of(lambda: ours.register("p-value", VALUE)) == "CDC-REG-201"
        assert [method for method, *_ in asked] == ["POST", "PUT", "POST"]


def test_the_registry_goes_away_while_a_subject_is_opened() -> None:
    with answering(POST=(409, error(409)), PUT=(503, b"")) as (url, _), ExternalRegistry(url) as ours:
        assert code_of(lambda: ours.register("p-value", VALUE)) == "CDC-REG-101"


def test_another_registry_is_asked_where_one_is_away() -> None:
    with answering(GET=(200, [])) as (url, asked), ExternalRegistry(f"http://127.0.0.1:1,{url}") as ours:
        ours.check()
        assert len(asked) == 1


def test_no_server_and_no_tls() -> None:
    with ExternalRegistry("http://127.0.0.1:1") as ours, pytest.raises(Unavailable):
        ours.check()
    with answering(GET=(200, [])) as (url, _), ExternalRegistry(url.replace("http:", "https:")) as ours:
        assert code_of(ours.check) == "CDC-REG-106"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("registry:8081", {}),
        ("ftp://registry:8081", {}),
        ("http://registry:8081", {"max.retries": "3"}),
        ("http://registry:8081", {"basic.auth.userinfo": "a:b"}),
        ("http://registry:8081", {"timeout": "soon"}),
        ("http://registry:8081", {"basic.auth.user.info": "nocolon"}),
        ("http://registry:8081", {"ssl.ca.location": "/nowhere"}),
        ("http://registry:8081", {"ssl.key.password": "x"}),
    ],
)
def test_what_the_client_does_not_take(url: str, options: dict[str, str]) -> None:
    assert code_of(lambda: ExternalRegistry(url, options).check()) == "CDC-REG-103"


def test_without_the_client_the_remedy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka.schema_registry", None)
    with pytest.raises(CdcError) as caught:
        ExternalRegistry("http://registry:8081").check()
    assert caught.value.code == "CDC-REG-104"
    assert "penstock[registry]" in caught.value.remedy


# ------------------------------------------------------------------------------------------------------ ids that others gave
class Given:
    """Gives the ids that it is told to give."""

    def __init__(self, *ids: int) -> None:
        self.ids = list(ids)

    def register(self, subject: str, schema: Any) -> int:
        return self.ids.pop(0)

    def close(self) -> None:
        self.ids.clear()


def test_the_log_keeps_what_others_gave(tmp_path: Path) -> None:
    with opened(tmp_path / "p.log") as log:
        own = log.register("a-value", VALUE)
    log = EmbeddedLog(tmp_path / "p.log", free_bytes_min=0, registry=Given(1, 1, 2, 1, 1, own))
    with log:
        assert [log.register("a-value", VALUE), log.register("b-value", VALUE)] == [1, 1]
        assert [log.register("b-value", NARROWED), log.register("b-value", VALUE)] == [2, 1]
        assert log.schema(1) == log.schema(own) == VALUE
        assert log.subjects() == {"a-value": [own, 1], "b-value": [1, 2]}
        assert code_of(lambda: log.register("b-value", NARROWED)) == "CDC-REG-301"  # 1
        assert code_of(lambda: log.register("b-value", NARROWED)) == "CDC-REG-301"  # our own id of another schema
        assert log.subjects() == {"a-value": [own, 1], "b-value": [1, 2]}
    with opened(tmp_path / "p.log") as log:
        assert (log.schema(1), log.schema(2)) == (VALUE, NARROWED)


def test_a_kafka_log_keeps_what_others_gave_and_serves_it(kafka: Kafka, name: str) -> None:
    kafka.make_topic(f"{name}.schemas")

    def opened() -> Schemas:
        return Schemas(KafkaSettings(kafka.bootstrap), name)

    try:
        with closing(opened()) as schemas:
            own = schemas.register("a-value", VALUE)
            assert [schemas.register("a-value", VALUE, 1), schemas.register("b-value", VALUE, 1)] == [1, 1]
            assert [schemas.register("b-value", NARROWED, 2), schemas.register("b-value", VALUE, 1)] == [2, 1]
        with closing(opened()) as schemas:
            assert code_of(lambda: schemas.register("b-value", NARROWED, 1)) == "CDC-REG-301"
            assert code_of(lambda: schemas.register("b-value", NARROWED, own)) == "CDC-REG-301"
            assert schemas.subjects() == {"a-value": [own, 1], "b-value": [1, 2]}
            with closing(RegistryApi(opened)) as api:  # type: ignore[arg-type]  # schemas are all that it wants of a log
                assert json.loads(api.answer("GET", "/subjects", {}, b"")[1]) == ["a-value", "b-value"]
                assert api.answer("GET", "/schemas/ids/7", {}, b"")[0] == 404
                schemas.register("c-value", REQUIRED, 7)
                assert api.answer("GET", "/schemas/ids/7/schema", {}, b"") == (200, canonical(REQUIRED))
                versions = json.loads(api.answer("GET", "/schemas/ids/1/versions", {}, b"")[1])
                assert versions == [{"subject": "a-value", "version": 2}, {"subject": "b-value", "version": 1}]
    finally:
        kafka.drop_topics(f"{name}.")
