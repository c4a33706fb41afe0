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
RATE_OVER_S = 900.0  # of a log that grows in bursts
RATE_OVER_MIN_S = 60.0


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


class RateClock:
    """How fast the source's log grows, over the last RATE_OVER_S."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def rate(self, head: int, now_s: float) -> tuple[float, float] | None:
        """Tell what is seen now; bytes per second, and over how many seconds. None before it has looked for RATE_OVER_MIN_S."""
        self._seen.append((now_s, head))
        while now_s - self._seen[0][0] > RATE_OVER_S:
            self._seen.popleft()
        then_s, then = self._seen[0]
        over_s = now_s - then_s
        return (max(0, head - then) / over_s, over_s) if over_s >= RATE_OVER_MIN_S else None


def until_loss_s(measured: Mapping[str, Any]) -> float | None:
    """How long the source still keeps its log for us if it goes on as it does: until what may be written is written, or a slot that
    nobody reads has been idle for too long. None where nothing ends it, or nobody can tell."""
    safe, rate, idle_left_s = (measured.get(key) for key in ("safe_bytes", "wal_bytes_per_s", "idle_left_s"))
    ends = [] if idle_left_s is None else [max(0.0, float(idle_left_s))]
    if safe is not None and safe <= 0:
        ends.append(0.0)
    elif safe is not None and rate:
        ends.append(safe / rate)
    return min(ends, default=None)


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
    left_s, demanded_s = measured.get("until_loss_s"), measured.get("until_loss_min_s")
    if left_s is not None and demanded_s is not None and left_s < demanded_s:
        problems.append(
            f"the source gives up what it keeps for this pipeline in {left_s / 3600:.1f} hours as it goes on now,"
            f" and {demanded_s / 3600:g} are demanded"
        )
    if problems and measured.get("blockers"):
        problems.append(f"the source cannot let go of its log while these are open: {'; '.join(measured['blockers'])}")
    return tuple(problems)
