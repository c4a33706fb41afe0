"""`cdc sink NAME`: one sink of a pipeline, as a service."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from cdc.commands import logs, wiring
from cdc.commands.serving import serve
from cdc.config import Config, load
from cdc.errors import EXIT_OK, CdcError, Unavailable
from cdc.log import Checkpoint, Log
from cdc.metrics import SinkMetrics
from sinks.apply import apply

PATIENCE_S = 1.0


def run(*, name: str, file: Path, bind: str | None) -> int:
    """Apply until told to stop. Raises what ends it for good."""
    config = load(file)
    config.sink(name)
    metrics = SinkMetrics(config.pipeline, name)
    applied = Applied(metrics)
    opened: list[Log] = []

    def schema(schema_id: int) -> object:
        return opened[-1].schema(schema_id)

    # One for all attempts: the first takes the bookmark over, the others only look whether it is still theirs (B2). A process that
    # was asleep while a successor took over would take it back.
    target = wiring.sink(config, name, schema)

    def attempt(should_stop: Callable[[], bool]) -> None:
        with closing(waiting_log(config)) as log, closing(target) as sink:
            opened[:] = [log]
            apply(sink, log, should_stop, observe=applied)

    serve(config, f"sink {name}", wiring.address(config, name, bind), metrics, attempt, lambda: applied.measure(config))
    return EXIT_OK


def waiting_log(config: Config) -> Log:
    """The log. Until the capture has made it, that is a dependency which is away: the sink waits for it. A moment's patience comes
    first, since the two are often started together."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return logs.open_log(config)
        except CdcError as error:
            if error.code != "CDC-LOG-101":
                raise
            if time.monotonic() >= deadline:
                raise Unavailable("CDC-RUN-304", "the sink waits for the log", where=error.where) from error
        time.sleep(0.05)


class Applied:
    """The last checkpoint that this process has applied, for its metrics and its lag."""

    def __init__(self, metrics: SinkMetrics) -> None:
        self._metrics = metrics
        self._number: int | None = None

    def __call__(self, cut: Checkpoint, rows: int) -> None:
        self._number = cut.number
        self._metrics.observe(cut, rows)

    def measure(self, config: Config) -> dict[str, object]:
        """How far this sink is behind the log. Not known before its first commit."""
        number = self._number
        if number is None:
            return {}
        with logs.look(config) as surveyor:
            last = surveyor.last()
            due_ms = surveyor.written_ms(number + 1)
        behind = max(0, last.number - number) if last else 0
        return {"lag_checkpoints": behind, "lag_s": max(0.0, time.time() - due_ms / 1000) if due_ms else 0.0}
