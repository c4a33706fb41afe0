"""The supervisor: what is retried, what is final, how signals end a service."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from cdc.errors import EXIT_UNAVAILABLE, CdcError, Superseded, Unavailable
from cdc.supervise import BackOff, State, Stop, supervise

QUICK = BackOff(first_s=0.001, last_s=0.004, healthy_s=60)


def unavailable() -> Unavailable:
    return Unavailable("CDC-LOG-304", "somebody holds it")


def test_an_unavailable_dependency_is_tried_again_until_it_is_back() -> None:
    states: list[State] = []
    left = [3]

    def attempt() -> None:
        if left[0]:
            left[0] -= 1
            raise unavailable()

    stop = Stop()

    def last_attempt() -> None:
        attempt()
        stop.ask()

    supervise(last_attempt, stop=stop, on_state=states.append, back_off=QUICK)
    assert [state.word for state in states] == ["starting", *["running", "retrying"] * 3, "running", "stopped"]
    assert states[2].error is not None
    assert states[2].error.code == "CDC-LOG-304"


@pytest.mark.parametrize("error", [CdcError("CDC-LOG-105", "x"), Superseded("CDC-LOG-202", "x")])
def test_every_other_error_is_final(error: CdcError) -> None:
    attempts = []

    def attempt() -> None:
        attempts.append(1)
        raise error

    states: list[State] = []
    with pytest.raises(CdcError) as raised:
        supervise(attempt, stop=Stop(), on_state=states.append, back_off=QUICK)
    assert raised.value is error
    assert len(attempts) == 1
    assert states[-1] == State("failed", error)


def test_an_unknown_exception_is_a_bug_that_quotes_nothing_of_it() -> None:
    def attempt() -> None:
        raise ValueError("the customer's secret row")

    with pytest.raises(CdcError) as raised:
        supervise(attempt, stop=Stop())
    assert raised.value.code == "CDC-RUN-101"
    assert "secret" not in str(raised.value)
    assert "ValueError" in str(raised.value)
    assert "test_supervise.py" in str(raised.value)


def test_one_shot_use_gives_up() -> None:
    def attempt() -> None:
        raise unavailable()

    began = time.monotonic()
    with pytest.raises(Unavailable) as raised:
        supervise(attempt, stop=Stop(), back_off=QUICK, give_up_s=0.05)
    assert raised.value.exit_code == EXIT_UNAVAILABLE
    assert time.monotonic() - began < 2


def test_pauses_grow_to_a_bound_and_are_jittered() -> None:
    back_off = BackOff(0.5, 30)
    for failures, longest in ((1, 0.5), (2, 1), (3, 2), (7, 30), (1000, 30)):
        pauses = {back_off.pause_s(failures) for _ in range(20)}
        assert longest / 2 <= min(pauses)
        assert max(pauses) <= longest
        assert len(pauses) > 1


def test_an_attempt_that_lasted_starts_the_pauses_over() -> None:
    pauses: list[float] = []
    stop = Stop()

    def attempt() -> None:
        if len(pauses) == 4:
            stop.ask()
            return
        time.sleep(0.03 if len(pauses) == 3 else 0)
        raise unavailable()

    def on_state(state: State) -> None:
        if state.word == "retrying":
            pauses.append(state.pause_s)

    supervise(attempt, stop=stop, on_state=on_state, back_off=BackOff(0.001, 1, healthy_s=0.02))
    assert pauses[2] >= 0.002
    assert pauses[3] <= 0.001


def test_a_pause_ends_when_told_to_stop() -> None:
    stop = Stop()
    threading.Timer(0.05, stop.ask).start()

    def attempt() -> None:
        raise unavailable()

    began = time.monotonic()
    supervise(attempt, stop=stop, back_off=BackOff(20, 20))
    assert time.monotonic() - began < 5


SERVICE = textwrap.dedent(
    """
    import sys, time
    from cdc.supervise import Stop, supervise
    with Stop().on_signals() as stop:
        def attempt():
            print("up", flush=True)
            while not (stop() and {obeys}):
                time.sleep(0.01)
        supervise(attempt, stop=stop)
    print("drained", flush=True)
    """
)


def service(*, obeys: bool) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", SERVICE.format(obeys=obeys)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains(number: signal.Signals) -> None:
    process = service(obeys=True)
    process.send_signal(number)
    out, _ = process.communicate(timeout=10)
    assert (out, process.returncode) == ("drained\n", 0)


def test_the_second_signal_ends_at_once() -> None:
    process = service(obeys=False)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=5)
    assert (out, process.returncode) == ("", 128 + signal.SIGTERM)


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stop().on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(1)
    assert signal.getsignal(signal.SIGTERM) is before
