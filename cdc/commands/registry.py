"""`cdc registry`: the schemas of a pipeline's log over HTTP, as a service of its own. Every other service offers them too."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from cdc.commands import wiring
from cdc.commands.serving import serve
from cdc.commands.sink import waiting_log
from cdc.config import load
from cdc.errors import EXIT_OK
from cdc.metrics import ServiceMetrics

PORT = 8081  # where clients of a schema registry look for one
LOOK_EVERY_S = 5.0
SLICE_S = 0.1


def run(*, file: Path, bind: str | None) -> int:
    """Serve until told to stop. Raises what ends it for good."""
    config = load(file)
    address = wiring.listen(bind) if bind else config.server.bind._replace(port=PORT)

    def attempt(should_stop: Callable[[], bool]) -> None:
        """The endpoints have a log of their own; this one shows whether it can be read, which is this service's health."""
        with closing(waiting_log(config)) as log:
            while not should_stop():
                log.subjects()
                deadline = time.monotonic() + LOOK_EVERY_S
                while time.monotonic() < deadline and not should_stop():
                    time.sleep(SLICE_S)

    serve(config, "registry", address, ServiceMetrics(config.pipeline, "registry"), attempt, dict)
    return EXIT_OK
