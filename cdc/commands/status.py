"""`cdc status`: what is durable, as a picture. Exit code 0 when the pipeline is healthy, 4 when it is not."""

from __future__ import annotations

import time
from pathlib import Path

from rich.live import Live

from cdc.commands import live, picture
from cdc.config import load
from cdc.errors import EXIT_FINDINGS, EXIT_OK
from cdc.presentation import answer
from cdc.supervise import Stop

BETWEEN_S = 1.0  # two pictures of a running load give its rate


def run(*, as_json: bool, file: Path, watch: bool) -> int:
    """See the module. `watch` goes on until a signal."""
    config = load(file)
    now, rates = picture.gather(config), live.Rates()
    if as_json:
        print(answer("status", now.to_json(), ok=now.healthy))
        return EXIT_OK if now.healthy else EXIT_FINDINGS
    rates.add(time.monotonic(), now)
    screen = live.console()
    with Stop().on_signals() as stop:
        if watch:
            with Live(live.view(now, rates), console=screen, refresh_per_second=4) as shown:
                while not stop.wait(BETWEEN_S):
                    now = picture.gather(config)
                    rates.add(time.monotonic(), now)
                    shown.update(live.view(now, rates))
            return EXIT_OK
        if any(table.state == picture.LOADING for table in now.tables) and not stop.wait(BETWEEN_S):
            now = picture.gather(config)
            rates.add(time.monotonic(), now)
    screen.print(live.view(now, rates))
    return EXIT_OK if now.healthy else EXIT_FINDINGS
