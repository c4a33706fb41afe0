"""A service: one loop under its supervisor, a monitor beside it, and the HTTP endpoints. `cdc capture`, `cdc sink` and `cdc registry`
are this.

The loop shows that it lives by asking whether to stop; the monitor measures on connections of its own, so that health is known
while the loop hangs or is trying again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from typing import Any

from cdc.commands import logs
from cdc.config import Config
from cdc.config_values import Address
from cdc.errors import CdcError
from cdc.health import service_problems
from cdc.journal import bind, journal
from cdc.metrics import ServiceMetrics
from cdc.registry.api import RegistryApi
from cdc.service import Health, Service
from cdc.supervise import State, Stop, supervise

_log = journal("cdc.service")

MEASURE_EVERY_S = 10.0
FIRST_EVERY_S = 1.0  # while nothing is known: both ends may only be coming up

Measured = Mapping[str, Any]
Measure = Callable[[], Measured]


class Vitals:
    """What is known of a running service, from its supervisor, its loop and its monitor."""

    def __init__(self, stop: Stop, metrics: ServiceMetrics) -> None:
        self._stop, self._metrics = stop, metrics
        self._state = State("starting")
        self._asked_s: float | None = None
        self._measured: Measured = {}

    def on_state(self, state: State) -> None:
        """For the supervisor. A new attempt is not ready before its loop comes round."""
        self._state, self._asked_s = state, None
        self._metrics.on_state(state)

    def should_stop(self) -> bool:
        """For the loop, which asks each time it comes round: both ends are connected then."""
        self._asked_s = time.monotonic()
        self._metrics.loop_seconds.set(time.time())
        return self._stop()

    def measured(self, values: Measured) -> None:
        """For the monitor."""
        self._measured = values
        self._metrics.measured(values)

    @property
    def known(self) -> bool:
        """Has something been measured last time?"""
        return bool(self._measured)

    def health(self) -> Health:
        asked = self._asked_s
        silent_s = None if asked is None else time.monotonic() - asked
        problems = service_problems(self._state, silent_s, self._measured)
        return Health(str(self._state), asked is not None, problems, {"measured": dict(self._measured)})


class Monitor:
    """Calls `measure` every few seconds in a thread of its own. What cannot be measured now is not known, which is no error."""

    def __init__(self, measure: Measure, vitals: Vitals, every_s: float = MEASURE_EVERY_S) -> None:
        self._measure, self._vitals, self._every_s = measure, vitals, every_s
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(2.0)

    def _run(self) -> None:
        while not self._end.is_set():
            try:
                self._vitals.measured(self._measure())
            except CdcError as error:  # the loop meets it too, and says it
                self._vitals.measured({})
                _log.debug("cannot measure", error=error)
            except Exception as error:  # noqa: BLE001 - the loop must not end because nobody could look at it
                self._vitals.measured({})
                _log.warning("cannot measure", reason=type(error).__name__)
                _log.debug("traceback", exc_info=error)
            self._end.wait(self._every_s if self._vitals.known else FIRST_EVERY_S)


def serve(
    config: Config,
    role: str,
    address: Address,
    metrics: ServiceMetrics,
    attempt: Callable[[Callable[[], bool]], None],
    measure: Measure,
) -> None:
    """Run the service until a signal asks it to stop. `attempt` is given the question that its loop asks."""
    bind(pipeline=config.pipeline, role=role)
    with Stop().on_signals() as stop:
        vitals = Vitals(stop, metrics)
        with (
            closing(RegistryApi(partial(logs.open_log, config))) as schemas,
            Service(address.host, address.port, metrics.registry, vitals.health, schemas.routes()),
            Monitor(measure, vitals),
        ):
            _log.info("started")
            supervise(lambda: attempt(vitals.should_stop), stop=stop, on_state=vitals.on_state)
            _log.info("stopped at a committed batch")
