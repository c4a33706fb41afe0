"""The schema registry's read API, over real HTTP, out of a real log."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

import fastavro
import pytest

from cdc.avro import canonical, schema_hash, schemas_of
from cdc.errors import CdcError, Unavailable
from cdc.log import Log
from cdc.log.embedded import EmbeddedLog
from cdc.metrics import ServiceMetrics
from cdc.registry.api import BODY_BYTES_MAX, CONTENT_TYPE, RegistryApi
from cdc.secrets import Url
from cdc.service import Health, Service
from cdc.table import Column, LogicalType, TableId, TableSchema

ORDERS = TableSchema(
    TableId("public", "orders"),
    (
        Column("id", LogicalType("int64"), "bigint", nullable=False),
        Column("größe", LogicalType("decimal", 12, 2), "numeric(12,2)"),
    ),
    ("id",),
)
KEY, VALUE = schemas_of("shop", ORDERS, "postgresql")
OTHER = {"type": "record", "name": "Other", "fields": [{"name": "x", "type": "int"}]}
SUBJECT = "shop.public.orders-value"
HOSTILE = 'shop.a/b?c%20d#"é..-value'


class Api:
    """Requests to a running service."""

    def __init__(self, service: Service) -> None:
        self.url = f"http://{service.address}/registry"

    def __call__(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """The status, unless it is 200, and the JSON of the answer."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        try:
            answer = urlopen(Request(self.url + path, data, method=method), timeout=5)
        except HTTPError as error:
            answer = error
        with answer:
            assert answer.headers["Content-Type"] == CONTENT_TYPE
            found = json.loads(answer.read())
        if answer.status == 200:
            return found
        assert sorted(found) == ["error_code", "message"]
        assert found["message"]
        return answer.status, found["error_code"]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EmbeddedLog]:
    with EmbeddedLog(tmp_path / "shop.log", free_bytes_min=0) as log:
        log.register("shop.public.orders-key", KEY)
        log.register(SUBJECT, OTHER)
        log.register(SUBJECT, VALUE)
        log.register(HOSTILE, OTHER)
        yield log


@contextmanager
def serving(open_log: Callable[[], Log]) -> Iterator[Api]:
    with (
        closing(RegistryApi(open_log)) as api,
        Service(
            "127.0.0.1",
            0,
            ServiceMetrics("shop", "registry").registry,
            lambda: Health("running", ready=True),
            api.routes(),
        ) as service,
    ):
        yield Api(service)


@pytest.fixture
def api(log: EmbeddedLog, tmp_path: Path) -> Iterator[Api]:
    with serving(lambda: EmbeddedLog(tmp_path / "shop.log", create=False)) as api:
        yield api


def test_a_schema_by_its_id(api: Api) -> None:
    number = schema_hash(VALUE)
    assert api(f"/schemas/ids/{number}") == {"schema": canonical(VALUE)}
    assert api(f"/schemas/ids/{number}?fetchMaxId=true&subject=x") == {"schema": canonical(VALUE)}
    assert api(f"/schemas/ids/{number}/schema") == VALUE
    assert api(f"/schemas/ids/{number}/subjects") == [SUBJECT]
    assert api(f"/schemas/ids/{number}/versions") == [{"subject": SUBJECT, "version": 2}]
    assert api("/schemas/ids/7") == (404, 40403)
    assert api("/schemas/ids/7/schema") == (404, 40403)
    assert api("/schemas/ids/7/subjects") == (404, 40403)
    assert api("/schemas/ids/7/versions") == (404, 40403)
    assert api("/schemas/ids/x") == (404, 404)
    assert api("/schemas/ids/99999999999999999999") == (404, 40403)


def test_what_apicurios_converter_asks(api: Api) -> None:
    number = schema_hash(VALUE)
    assert api(f"/apis/registry/v2/ids/contentIds/{number}") == VALUE
    assert api(f"/apis/registry/v2/ids/contentIds/{number}/references") == []
    assert api("/apis/registry/v2/ids/contentIds/7") == (404, 40403)
    assert api("/apis/registry/v2/ids/contentIds/7/references") == (404, 40403)
    assert api("/apis/registry/v2/ids/contentIds") == api("/apis/registry/v2/system/info") == (404, 404)


def test_what_is_served_is_the_registered_text_and_parses(api: Api) -> None:
    text = api(f"/schemas/ids/{schema_hash(VALUE)}")["schema"]
    assert schema_hash(json.loads(text)) == schema_hash(VALUE)
    parsed: Any = fastavro.parse_schema(json.loads(text))
    row = next(field["type"][1] for field in parsed["fields"] if field["name"] == "before")
    assert row["fields"][1]["penstock"]["name"] == "größe"


def test_a_schema_in_two_subjects(api: Api) -> None:
    number = schema_hash(OTHER)
    assert api(f"/schemas/ids/{number}/subjects") == [HOSTILE, SUBJECT]
    assert api(f"/schemas/ids/{number}/subjects?subject={SUBJECT}") == [SUBJECT]
    assert api(f"/schemas/ids/{number}/versions?offset=1&limit=1") == [{"subject": SUBJECT, "version": 1}]


def test_subjects(api: Api) -> None:
    assert api("/subjects") == [HOSTILE, "shop.public.orders-key", SUBJECT]
    assert api("/subjects?subjectPrefix=shop.public") == ["shop.public.orders-key", SUBJECT]
    assert api("/subjects?deleted=true&offset=2&limit=-1") == [SUBJECT]
    assert api("/subjects?limit=1") == [HOSTILE]
    assert api("/subjects?deletedOnly=true") == []
    assert api("/subjects?limit=x") == (404, 404)


@pytest.mark.parametrize("subject", [SUBJECT, HOSTILE])
def test_versions_of_a_subject(api: Api, subject: str) -> None:
    encoded, last = quote(subject, safe=""), OTHER if subject == HOSTILE else VALUE
    count = 1 if subject == HOSTILE else 2
    assert api(f"/subjects/{encoded}/versions") == list(range(1, count + 1))
    for version in ("latest", "-1", str(count)):
        found = api(f"/subjects/{encoded}/versions/{version}")
        assert found == {"subject": subject, "version": count, "id": schema_hash(last), "schema": canonical(last)}
        assert api(f"/subjects/{encoded}/versions/{version}/schema") == last
        assert api(f"/subjects/{encoded}/versions/{version}/referencedby") == []
    assert api(f"/subjects/{encoded}/versions/{count + 1}") == (404, 40402)
    for wrong in ("0", "-2", "x", "9" * 30, "²"):
        assert api(f"/subjects/{encoded}/versions/{quote(wrong)}") == (422, 42202)


def test_a_subject_that_is_not_there(api: Api) -> None:
    for path in ("/versions", "/versions/1", "/versions/latest/schema", "/versions/1/referencedby"):
        assert api(f"/subjects/none-value{path}") == (404, 40401)
    assert api("/subjects/none-value", {"schema": "{}"}) == (404, 40401)
    assert api("/config/none-value") == (404, 40401)
    assert api("/mode/none-value") == (404, 40401)


def test_what_the_registry_says_of_itself(api: Api) -> None:
    assert api("") == api("/") == {}
    assert api("/schemas/types") == ["AVRO"]
    assert api("/config") == api(f"/config/{SUBJECT}?defaultToGlobal=true") == {"compatibilityLevel": "NONE"}
    assert api("/mode") == api(f"/mode/{SUBJECT}") == {"mode": "READONLY"}
    assert api("/contexts") == ["."]
    assert api("/associations/resources/-/shop.public.orders") == (404, 404)
    assert api("/schemas/ids") == (404, 404)


def test_a_schema_is_looked_up_however_it_is_written(api: Api) -> None:
    spelt = json.dumps(VALUE, indent=2, ensure_ascii=True)
    found = {"subject": SUBJECT, "version": 2, "id": schema_hash(VALUE), "schema": canonical(VALUE)}
    assert api(f"/subjects/{SUBJECT}?normalize=False&deleted=False", {"schema": spelt, "schemaType": "AVRO"}) == found
    assert api(f"/subjects/{SUBJECT}", {"schema": spelt}) == found
    assert api(f"/subjects/{SUBJECT}", {"schema": canonical(KEY)}) == (404, 40403)
    assert api(f"/subjects/{SUBJECT}", {"schema": spelt, "schemaType": "JSON"}) == (404, 40403)
    wrongs = [b"", b"\xff", b"[]", b"{}", b'"x"', b'{"schema": 3}', b'{"schema": "{"}', b'{"schema":' + b"[" * 99999]
    for wrong in wrongs:
        assert api(f"/subjects/{SUBJECT}", wrong) == (422, 42201)


def test_a_request_larger_than_any_schema(api: Api) -> None:
    assert api(f"/subjects/{SUBJECT}", b" " * (BODY_BYTES_MAX + 1)) == (413, 413)


def test_it_writes_nothing(api: Api, log: EmbeddedLog) -> None:
    before = log.subjects()
    new, versions = {"schema": canonical(KEY)}, f"/subjects/{SUBJECT}/versions"
    # A schema that is there already may be registered: nothing is written.
    assert api(versions, {"schema": canonical(VALUE)}) == {"id": schema_hash(VALUE)}
    assert api(versions, new) == (422, 42205)
    assert api("/subjects/none-value/versions", new) == (422, 42205)
    assert api(versions, {"schema": "{"}) == (422, 42201)
    for method, path in (
        ("DELETE", f"/subjects/{SUBJECT}"),
        ("DELETE", f"{versions}/1"),
        ("PUT", "/config"),
        ("PUT", f"/config/{SUBJECT}"),
        ("DELETE", f"/config/{SUBJECT}"),
        ("PUT", "/mode"),
    ):
        assert api(path, {"compatibility": "FULL", "mode": "READWRITE"}, method) == (422, 42205)
    assert api(f"/compatibility{versions}/latest", new) == (405, 405)
    assert api("/schemas/ids/1", {}, "PATCH") == (405, 405)
    assert log.subjects() == before


def test_new_schemas_appear(api: Api, log: EmbeddedLog) -> None:
    assert api("/subjects/shop.late-value/versions") == (404, 40401)
    number = log.register("shop.late-value", KEY)
    assert api("/subjects/shop.late-value/versions/latest")["id"] == number


def test_errors_of_the_log_are_told_with_their_code_and_pass(log: EmbeddedLog, tmp_path: Path) -> None:
    Url("postgresql://cdc:hunter2hunter2@db/shop")
    raised: list[Exception] = []

    def open_log() -> Log:
        if raised:
            raise raised[0]
        return EmbeddedLog(tmp_path / "shop.log", create=False)

    with closing(RegistryApi(open_log)) as registry:
        for error in (CdcError("CDC-LOG-101", "not there"), Unavailable("CDC-LOG-303", "for hunter2hunter2")):
            raised[:] = [error]
            status, text = registry.answer("GET", "/subjects", {}, b"")
            assert (status, json.loads(text)["error_code"]) == (500, 50001)
            assert error.code in text
            assert "hunter2" not in text
        raised[:] = [ZeroDivisionError("hunter2hunter2")]
        assert "CDC-RUN-101" in registry.answer("GET", "/subjects", {}, b"")[1]
        raised.clear()
        assert registry.answer("GET", "/subjects", {}, b"")[0] == 200


def test_many_at_once_beside_the_other_endpoints(log: EmbeddedLog, tmp_path: Path) -> None:
    """A request that waits for the log holds back neither the health of the service nor, once it is over, anyone else."""
    entered, go = threading.Event(), threading.Event()

    def open_log() -> Log:
        entered.set()
        go.wait(10)
        return EmbeddedLog(tmp_path / "shop.log", create=False)

    found: list[Any] = []
    with serving(open_log) as api:
        threads = [
            threading.Thread(target=lambda: found.append(api(f"/schemas/ids/{schema_hash(VALUE)}"))) for _ in range(50)
        ]
        for thread in threads:
            thread.start()
        assert entered.wait(5)
        with urlopen(api.url.removesuffix("/registry") + "/healthz", timeout=5) as answer:
            assert answer.status == 200
        go.set()
        for thread in threads:
            thread.join(10)
        assert found == [{"schema": canonical(VALUE)}] * 50
