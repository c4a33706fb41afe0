"""Metrics of one service, for Prometheus: base units, `cdc_` prefix, a registry of their own.

Label children are bound once and added to per batch, never per row. Labels hold names of tables, never a value of a row (R10).
The table label says "*" beyond TABLES_MAX tables, so that a wide source does not flood the one who scrapes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from cdc.log import Checkpoint
from cdc.records import Batch, size_bytes
from cdc.supervise import WORDS, State
from cdc.table import TableId

disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the series, and nobody asks when a counter was made

TABLES_MAX = 500
ALL_TABLES = "*"

BATCH_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCH_ROWS = (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)


class ServiceMetrics:
    """What every service shows: its build, state, retries and errors. `role` is `capture`, `sink` or `registry`."""

    def __init__(self, pipeline: str, role: str) -> None:
        self.registry = registry = CollectorRegistry()
        build = Gauge("cdc_build_info", "1, with the version as a label.", ["version"], registry=registry)
        build.labels(_version()).set(1)
        state = Gauge(
            "cdc_pipeline_state", "1 for the state of this service.", ["pipeline", "role", "state"], registry=registry
        )
        self._states = {word: state.labels(pipeline, role, word) for word in WORDS}
        self._retries = Counter("cdc_retries_total", "Attempts that ended and are made again.", registry=registry)
        self._errors = Counter("cdc_errors_total", "Errors by code.", ["code"], registry=registry)
        self.loop_seconds = Gauge(
            "cdc_loop_timestamp_seconds", "When the loop last asked whether to stop, Unix time.", registry=registry
        )

    def on_state(self, state: State) -> None:
        for word, gauge in self._states.items():
            gauge.set(word == state.word)
        if state.word == "retrying":
            self._retries.inc()
        if state.error is not None:
            self._errors.labels(state.error.code).inc()

    def measured(self, values: Mapping[str, Any]) -> None:
        """What the monitor found out, for the services that have gauges for it."""


class CaptureMetrics(ServiceMetrics):
    """What a capture shows."""

    def __init__(self, pipeline: str) -> None:
        super().__init__(pipeline, "capture")
        registry = self.registry
        self._events = Counter("cdc_capture_events_total", "Events in the log.", ["table", "op"], registry=registry)
        self._bytes = Counter("cdc_capture_bytes_total", "Bytes of keys and values in the log.", registry=registry)
        self._batches = Counter("cdc_capture_batches_total", "Checkpoints written.", registry=registry)
        self._append = Histogram(
            "cdc_log_append_seconds", "Appending one batch, durably.", registry=registry, buckets=BATCH_SECONDS
        )
        self._loaded = Counter("cdc_snapshot_rows_total", "Existing rows read by loads.", registry=registry)
        self._altered = Gauge(
            "cdc_capture_altered_tables",
            "Tables that changed without events and are being loaded anew by the capture itself.",
            registry=registry,
        )
        self._refused = Gauge(
            "cdc_capture_refused_tables",
            "Selected tables that cannot be captured as they are, the first 20; cdc status names them.",
            registry=registry,
        )
        self._loading = Gauge("cdc_snapshot_tables", "Tables that are loading.", registry=registry)
        self._commit = Gauge(
            "cdc_source_last_commit_timestamp_seconds",
            "Commit time of the newest captured transaction.",
            registry=registry,
        )
        gauges = {
            "lag_s": (
                "cdc_source_lag_seconds",
                "Age of the newest captured transaction while the source is ahead, else 0.",
            ),
            "lag_bytes": ("cdc_source_lag_bytes", "Source log between its head and what was captured."),
            "retained_bytes": ("cdc_source_retained_bytes", "Source log kept for this pipeline."),
            "safe_bytes": ("cdc_source_safe_bytes", "Source log that may still be written before ours is removed."),
            "limit_bytes": ("cdc_source_limit_bytes", "What the source may keep for a slot; NaN when it has no limit."),
            "wal_bytes_per_s": ("cdc_source_log_bytes_per_second", "Growth of the source's log, over minutes."),
            "until_loss_s": (
                "cdc_source_until_loss_seconds",
                "Until the source removes log that was not captured, as it goes on now; NaN when nothing ends it.",
            ),
            "log_bytes": ("cdc_log_bytes", "Size of the log."),
            "log_free_bytes": ("cdc_log_free_bytes", "Free space where the log is."),
        }
        self._gauges = {key: Gauge(name, text, registry=registry) for key, (name, text) in gauges.items()}
        self._bound: dict[tuple[TableId, str], Counter] = {}
        self._tables: set[TableId] = set()

    def observe(self, checkpoint: Checkpoint, batch: Batch) -> None:
        """After each append, in the loop."""
        self._append.observe(max(0.0, time.time() - checkpoint.written_ms / 1000))
        self._batches.inc()
        load = checkpoint.position.load
        self._loading.set(len(load.get("loading", ())))
        self._altered.set(len(load.get("why", ())))
        self._refused.set(len(load.get("refused", ())))
        if checkpoint.commit_ms:
            self._commit.set(checkpoint.commit_ms[1] / 1000)
        if not batch:
            return
        self._bytes.inc(size_bytes(batch))
        for table, counts in checkpoint.counts.items():
            for op, count in counts.items():
                self._child(table, op).inc(count)
                if op == "r":
                    self._loaded.inc(count)

    def _child(self, table: TableId, op: str) -> Counter:
        child = self._bound.get((table, op))
        if child is None:
            if len(self._tables) < TABLES_MAX:
                self._tables.add(table)
            child = self._events.labels(str(table) if table in self._tables else ALL_TABLES, op)
            self._bound[table, op] = child
        return child

    def measured(self, values: Mapping[str, Any]) -> None:
        """What the monitor found out: those of its keys that have a gauge. A value that is not known is not shown as 0."""
        for key, gauge in self._gauges.items():
            value = values.get(key)
            gauge.set(float("nan") if value is None else value)


class SinkMetrics(ServiceMetrics):
    """What a sink shows; `target` is its name."""

    def __init__(self, pipeline: str, target: str) -> None:
        super().__init__(pipeline, "sink")
        registry, label = self.registry, ["target"]
        rows = Counter("cdc_sink_rows_total", "Events applied, before they collapse.", label, registry=registry)
        batches = Counter("cdc_sink_batches_total", "Transactions committed at the target.", label, registry=registry)
        seconds = Histogram(
            "cdc_sink_commit_seconds",
            "From the newest checkpoint's writing to its commit at the target.",
            label,
            registry=registry,
            buckets=BATCH_SECONDS,
        )
        size = Histogram(
            "cdc_sink_batch_rows", "Events in one transaction.", label, registry=registry, buckets=BATCH_ROWS
        )
        checkpoint = Gauge("cdc_sink_checkpoint", "Number of the last applied checkpoint.", label, registry=registry)
        commit = Gauge(
            "cdc_sink_commit_lag_seconds",
            "From the commit at the source to the commit at the target, of the newest transaction applied.",
            label,
            registry=registry,
        )
        self._rows, self._batches, self._seconds = rows.labels(target), batches.labels(target), seconds.labels(target)
        self._size, self._checkpoint, self._commit = (
            size.labels(target),
            checkpoint.labels(target),
            commit.labels(target),
        )
        gauges = {
            "lag_s": ("cdc_sink_lag_seconds", "Age of the oldest change in the log that is not applied, else 0."),
            "lag_checkpoints": ("cdc_sink_lag_checkpoints", "Checkpoints in the log that are not applied."),
        }
        self._gauges = {
            key: Gauge(name, text, label, registry=registry).labels(target) for key, (name, text) in gauges.items()
        }

    def observe(self, cut: Checkpoint, rows: int) -> None:
        """After each commit at the target, in the loop."""
        now = time.time()
        self._rows.inc(rows)
        self._size.observe(rows)
        self._batches.inc()
        self._checkpoint.set(cut.number)
        self._seconds.observe(max(0.0, now - cut.written_ms / 1000))
        if cut.commit_ms:
            self._commit.set(max(0.0, now - cut.commit_ms[1] / 1000))

    def measured(self, values: Mapping[str, Any]) -> None:
        """As in `CaptureMetrics.measured`."""
        for key, gauge in self._gauges.items():
            value = values.get(key)
            gauge.set(float("nan") if value is None else value)


def _version() -> str:
    try:
        return version("penstock")
    except PackageNotFoundError:
        return "unknown"
