"""Failpoints: named places where a test kills the process (`CDC_FAILPOINT=name:n`, SIGKILL at the n-th hit). Else no-ops."""

from __future__ import annotations

import os
import signal

_name, _, _left = os.environ.get("CDC_FAILPOINT", "").partition(":")
_remaining = int(_left or 1)

NAMES = (
    "capture.intent_written",
    "capture.chunk_read",
    "capture.marked",
    "capture.decoded",
    "capture.appended",
    "capture.confirmed",
    "sink.locked",
    "sink.staged",
    "sink.merged",
    "sink.committed",
)
EVOLUTION_NAMES = ("sink.evolved",)
REPLAY_NAMES = ("replay.exchanging", "replay.exchanged")


def hit(name: str) -> None:
    """Die here if the environment says so. Which failpoint struck is left on stderr for the test that counts them."""
    global _remaining  # noqa: PLW0603 - one counter per process is the point
    if name != _name:
        return
    _remaining -= 1
    if _remaining == 0:
        os.write(2, f"failpoint {name}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
