"""Is it well? Pure judgement over what was measured, the same for /healthz, `cdc status` and the metrics.

Healthy means that changes arrive: computed from lag, from what the source must keep, and from errors, never from the fact that a
process is up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from cdc.supervise import State

LAG_MAX_S = 60.0  # beyond it, something that should keep up does not
SILENT_MAX_S = 180.0  # a loop that has not come round for so long is stuck, or reads one very large chunk
RETAINED_MAX = 0.8  # of what the source is configured to keep for us
SAMPLES_MAX = 10_000


class LagClock:
    """How long a reader has been behind: the age of the oldest place that the head was seen at and the reader has not reached.

    Commit times cannot tell that: a source may be silent, or busy with what is not ours."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=SAMPLES_MAX)

    def lag_s(self, head: int, done: int, now_s: float) -> float:
        """Tell what is seen now; the lag in seconds, exact to the interval between two calls."""
        if not self._seen or head > self._seen[-1][1]:
            self._seen.append((now_s, head))
        while self._seen and self._seen[0][1] <= done:
            self._seen.popleft()
        return now_s - self._seen[0][0] if self._seen else 0.0


def service_problems(state: State, silent_s: float | None, measured: Mapping[str, Any]) -> tuple[str, ...]:
    """What is wrong with a service: `silent_s` since its loop last came round (None: not yet), `measured` by its monitor."""
    problems = []
    if state.word in ("retrying", "failed", "stopped"):
        reason = f": {state.error.code} {state.error.detail}" if state.error else ""
        problems.append(f"{state}{reason}")
    elif silent_s is not None and silent_s > SILENT_MAX_S:
        problems.append(f"the loop has not come round for {silent_s:.0f} s")
    return (*problems, *lag_problems(measured), *source_problems(measured))


def lag_problems(measured: Mapping[str, Any]) -> tuple[str, ...]:
    lag_s = measured.get("lag_s")
    if lag_s is not None and lag_s > LAG_MAX_S:
        return (f"behind by {lag_s:.0f} s",)
    return ()


def source_problems(measured: Mapping[str, Any]) -> tuple[str, ...]:
    """What endangers the source, or its log before we have read it."""
    problems = []
    if measured.get("wal_status") in ("unreserved", "lost"):
        problems.append(f"the source's log for this pipeline is {measured['wal_status']}")
    retained, safe = measured.get("retained_bytes"), measured.get("safe_bytes")
    if retained is not None and safe is not None and retained > RETAINED_MAX * (retained + safe):
        problems.append(f"the source keeps {retained} bytes for this pipeline, and drops them after {safe} more")
    return tuple(problems)
