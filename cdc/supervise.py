"""The only retry (rule R12): one attempt after another, each from the bookmark, until told to stop or until an error is final.

`Unavailable` is tried again after a growing, jittered pause; every other error ends the service, with its code. The first
SIGTERM or SIGINT asks the loop to return at a committed batch, a second one ends the process at once: whatever the moment,
nothing is lost by it, since data and bookmark commit together.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from cdc.errors import CdcError, Unavailable
from cdc.journal import journal

_log = journal("cdc.supervise")

SLICE_S = 0.05  # a sleep looks this often whether it was told to stop


class Stop:
    """The question "shall we stop?", asked by calling it. A flag and short sleeps: a lock could be held by the very frame that a
    signal interrupts."""

    def __init__(self) -> None:
        self._asked = False

    def __call__(self) -> bool:
        return self._asked

    def ask(self) -> None:
        self._asked = True

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until somebody asks to stop; True when somebody did."""
        deadline = time.monotonic() + seconds
        while not self() and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(SLICE_S, left))
        return self()

    @contextmanager
    def on_signals(self, at_once: Callable[[], None] = lambda: None) -> Iterator[Stop]:
        """Within: the first SIGTERM or SIGINT asks to stop; at a second one `at_once` runs and the process ends with 128 + its
        number, whatever its main thread is in. Main thread only."""
        # Python runs handlers between two steps of the main thread, which a driver that waits for a lock does not take for
        # long. The numbers go through a pipe as well, at once, to a thread that nothing keeps.
        numbers = (signal.SIGTERM, signal.SIGINT)
        arrived, noted = os.pipe()
        os.set_blocking(noted, False)

        def watch() -> None:
            asked = False
            while received := os.read(arrived, 1):
                if received[0] not in numbers:
                    continue
                if asked:
                    at_once()
                    os._exit(128 + received[0])
                asked = True
                self.ask()
            os.close(arrived)

        def handle(_number: int, _frame: FrameType | None) -> None:
            self.ask()

        threading.Thread(target=watch, name="signals", daemon=True).start()
        woken = signal.set_wakeup_fd(noted)
        before = {number: signal.signal(number, handle) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(woken)
            os.close(noted)


class BackOff(NamedTuple):
    """Pauses double from `first_s` to `last_s`, each shortened at random by up to half, and start over after an attempt that
    lasted `healthy_s`."""

    first_s: float = 0.5
    last_s: float = 30.0
    healthy_s: float = 60.0

    def pause_s(self, failures: int) -> float:
        """The pause after this many failures in a row, from 1."""
        longest = min(self.last_s, self.first_s * 2.0 ** min(failures - 1, 30))
        return longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not cryptography


class State(NamedTuple):
    """What a service is doing: `word` is starting, running, retrying, stopped or failed; `error` is what ended the last attempt."""

    word: str
    error: CdcError | None = None
    pause_s: float = 0.0

    def __str__(self) -> str:
        return f"retrying in {self.pause_s:.0f} s" if self.word == "retrying" else self.word


WORDS = ("starting", "running", "retrying", "stopped", "failed")


def supervise(
    attempt: Callable[[], None],
    *,
    stop: Stop,
    on_state: Callable[[State], None] = lambda _state: None,
    back_off: BackOff | None = None,
    give_up_s: float | None = None,
) -> None:
    """Run `attempt` until it returns, which it does when told to stop. Raises the error that ended it: any that is not
    `Unavailable`, or that one too when attempts have failed for `give_up_s` (None: never). An exception that is no CdcError is a
    bug of ours and ends the service as CDC-RUN-101."""
    back_off = back_off or BackOff()
    failures, failing_since = 0, 0.0
    on_state(State("starting"))
    while not stop():
        began = time.monotonic()
        try:
            on_state(State("running"))
            attempt()
        except Unavailable as error:
            now = time.monotonic()
            if failures == 0 or now - began >= back_off.healthy_s:
                failures, failing_since = 0, now
            failures += 1
            if give_up_s is not None and now - failing_since >= give_up_s:
                on_state(State("failed", error))
                raise
            state = State("retrying", error, back_off.pause_s(failures))
            on_state(state)
            _log.warning("trying again", pause_s=round(state.pause_s, 1), failures=failures, error=error)
            stop.wait(state.pause_s)
        except CdcError as error:
            on_state(State("failed", error))
            raise
        except Exception as error:
            bug = as_bug(error)
            on_state(State("failed", bug))
            raise bug from error
    on_state(State("stopped"))


def as_bug(error: Exception) -> CdcError:
    """An exception that nobody expected, as an error with a code. Its own words may hold row values (rule R10), so they, and the
    traceback, go to the log at debug level only."""
    frame = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    place = f"{Path(frame.filename).name}:{frame.lineno}" if frame else None
    _log.debug("traceback", exc_info=error)
    return CdcError("CDC-RUN-101", f"{type(error).__name__} in {frame.name if frame else 'unknown code'}", where=place)
