"""The HTTP endpoints of a service."""

from __future__ import annotations

import json
import socket
import threading
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from cdc.errors import CdcError
from cdc.log import Checkpoint, Mark
from cdc.metrics import ALL_TABLES, TABLES_MAX, CaptureMetrics, SinkMetrics
from cdc.position import Position
from cdc.records import Records
from cdc.secrets import Url
from cdc.service import Health, Service
from cdc.supervise import State
from cdc.table import TableId


def get(service: Service, path: str) -> tuple[int, str]:
    try:
        with urlopen(f"http://{service.address}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_is_what_the_caller_computes() -> None:
    now = [Health("starting", ready=False, problems=("not connected yet",))]
    with Service("127.0.0.1", 0, CaptureMetrics("shop").registry, lambda: now[0]) as service:
        status, body = get(service, "/healthz")
        assert status == 503
        assert json.loads(body) == {"ok": False, "state": "starting", "ready": False, "problems": ["not connected yet"]}
        assert get(service, "/readyz")[0] == 503
        now[0] = Health("running", ready=True, details={"lag_s": 0.5})
        assert get(service, "/healthz")[0] == 200
        status, body = get(service, "/readyz")
        assert status == 200
        assert json.loads(body)["lag_s"] == 0.5
        assert get(service, "/other")[0] == 404
    assert not [thread for thread in threading.enumerate() if thread.name == "http"]


def test_no_secret_leaves_by_http() -> None:
    Url("postgresql://cdc:hunter2hunter2@db/shop")
    health = Health("retrying", ready=False, problems=("cannot log in with hunter2hunter2",))
    with Service("127.0.0.1", 0, CaptureMetrics("shop").registry, lambda: health) as service:
        assert "hunter2" not in get(service, "/healthz")[1]


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CdcError) as raised:
            Service("127.0.0.1", port, CaptureMetrics("shop").registry, lambda: Health("running", ready=True))
    assert raised.value.code == "CDC-RUN-201"
    assert f"127.0.0.1:{port}" in str(raised.value)


def test_an_address_that_is_not_ours_is_named() -> None:
    with pytest.raises(CdcError) as raised:
        Service("192.0.2.1", 0, CaptureMetrics("shop").registry, lambda: Health("running", ready=True))
    assert raised.value.code == "CDC-RUN-202"


def checkpoint(counts: dict[TableId, dict[str, int]]) -> Checkpoint:
    position = Position(0, 7, {}, {"loading": [["public", "orders"]]})
    return Checkpoint("log", 3, "id", Mark(2, "x"), "w", position, cut=True, counts=counts, commit_ms=(1000, 2000))


def test_capture_metrics() -> None:
    metrics, table = CaptureMetrics("shop"), TableId("public", 'or"ders\n')
    metrics.on_state(State("retrying", CdcError("CDC-LOG-105", "x"), 1))
    metrics.observe(checkpoint({table: {"r": 3, "u": 1}}), {table: Records([b"k"], [b"value"])})
    metrics.measured({"lag_bytes": 12})
    value = metrics.registry.get_sample_value
    assert value("cdc_pipeline_state", {"pipeline": "shop", "role": "capture", "state": "retrying"}) == 1
    assert value("cdc_errors_total", {"code": "CDC-LOG-105"}) == 1
    assert value("cdc_retries_total") == 1
    assert value("cdc_capture_events_total", {"table": str(table), "op": "r"}) == 3
    assert value("cdc_snapshot_rows_total") == 3
    assert value("cdc_capture_bytes_total") == 6
    assert value("cdc_source_lag_bytes") == 12
    assert value("cdc_source_last_commit_timestamp_seconds") == 2
    with Service("127.0.0.1", 0, metrics.registry, lambda: Health("running", ready=True)) as service:
        status, body = get(service, "/metrics")
    assert status == 200
    assert "cdc_build_info" in body


def test_the_table_label_is_dropped_for_a_wide_source() -> None:
    metrics = CaptureMetrics("shop")
    tables = [TableId("public", f"t{number}") for number in range(TABLES_MAX + 10)]
    for _ in range(2):
        metrics.observe(checkpoint({table: {"c": 1} for table in tables}), {tables[0]: Records([b"k"], [b"v"])})
    value = metrics.registry.get_sample_value
    assert value("cdc_capture_events_total", {"table": "public.t0", "op": "c"}) == 2
    assert value("cdc_capture_events_total", {"table": ALL_TABLES, "op": "c"}) == 20


def test_sink_metrics() -> None:
    metrics = SinkMetrics("shop", "warehouse")
    metrics.observe(checkpoint({}), 5)
    value, label = metrics.registry.get_sample_value, {"target": "warehouse"}
    assert value("cdc_sink_rows_total", label) == 5
    assert value("cdc_sink_batches_total", label) == 1
    assert value("cdc_sink_checkpoint", label) == 3
