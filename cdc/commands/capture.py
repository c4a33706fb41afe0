"""`cdc capture`: the capture of one pipeline, as a service."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from cdc.capture import capture
from cdc.commands import logs, wiring
from cdc.commands.serving import serve
from cdc.config import Config, load
from cdc.errors import EXIT_OK
from cdc.health import LagClock, RateClock, until_loss_s
from cdc.log import Checkpoint, Log, Survey
from cdc.metrics import CaptureMetrics
from cdc.records import Batch

RETAIN_EVERY_S = 10.0


def run(*, file: Path, bind: str | None) -> int:
    """Capture until told to stop. Raises what ends it for good."""
    config = load(file)
    metrics = CaptureMetrics(config.pipeline)

    def attempt(should_stop: Callable[[], bool]) -> None:
        with (
            closing(logs.open_log(config, create=True)) as log,
            closing(wiring.source(config, log.register)) as source,
        ):
            log.expect(config.sinks)
            observe = Observer(log, metrics)
            capture(source, log, should_stop, wiring.limits(config), observe)

    serve(config, "capture", wiring.address(config, "capture", bind), metrics, attempt, measuring(config))
    return EXIT_OK


class Observer:
    """After each append: the metrics, and now and then what retention allows."""

    def __init__(self, log: Log, metrics: CaptureMetrics) -> None:
        self._log, self._metrics = log, metrics
        self._retained_s = time.monotonic()

    def __call__(self, checkpoint: Checkpoint, batch: Batch) -> None:
        self._metrics.observe(checkpoint, batch)
        if time.monotonic() - self._retained_s >= RETAIN_EVERY_S:
            self._log.retain()
            self._retained_s = time.monotonic()


def measuring(config: Config) -> Callable[[], dict[str, object]]:
    """What the monitor of a capture measures: the source, on a connection of its own, and the log."""
    clock, growth = LagClock(), RateClock()

    def measure() -> dict[str, object]:
        with logs.look(config) as surveyor:
            seen = wiring.look(config, Survey(surveyor.last(), {}, {}), closely=False)
        with closing(logs.open_log(config)) as log:
            room = log.status()
        behind = clock.lag_s(seen.head, seen.done, time.monotonic()) if seen.head and seen.done else None
        found = {**seen.status, "lag_s": behind, "log_bytes": room["size_bytes"], "log_free_bytes": room["free_bytes"]}
        if seen.head and (rate := growth.rate(seen.head, time.monotonic())):  # steadier than since the last checkpoint
            found["wal_bytes_per_s"], found["wal_measured_s"] = rate
            found["until_loss_s"] = until_loss_s(found)
        return found

    return measure
