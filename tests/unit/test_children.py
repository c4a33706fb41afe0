"""Child processes: started again when they crash, final when they fail, gone with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from cdc.children import Child, Children, Line, Role
from cdc.supervise import BackOff, Stop

QUICK = BackOff(first_s=0.01, last_s=0.02)
OBEDIENT = """
import signal, sys, time
signal.signal(15, lambda *_: sys.exit(0))
print('up', file=sys.stderr, flush=True)
time.sleep(60)
"""


def role(name: str, code: str) -> Role:
    return Role(name, (sys.executable, "-c", code))


class Watched:
    """Children, with what they said."""

    def __init__(self, *roles: Role) -> None:
        self.lines: list[Line] = []
        self.events: list[tuple[str, str]] = []
        self.children = Children(
            roles, on_line=self.lines.append, on_event=lambda *event: self.events.append(event), back_off=QUICK
        )
        self.children.start()

    def until_lines(self, count: int) -> None:
        deadline = time.monotonic() + 10
        while len(self.lines) < count:
            assert time.monotonic() < deadline, self.lines
            self.children.tick()
            time.sleep(0.01)


def test_children_are_drained_in_order() -> None:
    watched = Watched(role("capture", OBEDIENT), role("sink", OBEDIENT))
    watched.until_lines(2)
    assert watched.children.drain() == 0
    assert {line.role for line in watched.lines} == {"capture", "sink"}


def test_a_killed_child_starts_again() -> None:
    watched = Watched(role("capture", OBEDIENT))
    watched.until_lines(1)
    child: Child = watched.children.children[0]
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    watched.until_lines(2)
    assert child.pid not in (None, first)
    assert watched.children.drain() == 0
    assert any("killed by signal 9" in words for _, words in watched.events)


def test_a_dependency_that_is_away_starts_the_child_again() -> None:
    watched = Watched(role("sink", "import sys; print('x', file=sys.stderr); sys.exit(3)"))
    watched.until_lines(3)
    watched.children.drain()


@pytest.mark.parametrize("code", [1, 2])
def test_a_final_error_ends_the_pipeline_with_its_code(code: int) -> None:
    watched = Watched(role("capture", OBEDIENT), role("sink", f"raise SystemExit({code})"))
    assert watched.children.watch(Stop()) == code
    assert watched.children.drain() == code


def test_a_child_that_does_not_drain_is_killed() -> None:
    stubborn = OBEDIENT.replace("lambda *_: sys.exit(0)", "signal.SIG_IGN")
    watched = Watched(role("capture", stubborn))
    watched.until_lines(1)
    assert watched.children.drain(timeout_s=0.1) == 0
    assert any("is killed" in words for _, words in watched.events)


PARENT = textwrap.dedent(
    """
    import sys, time
    from cdc.children import Children, Role
    children = Children([Role("capture", (sys.executable, "-c", "import time; time.sleep(60)"))], on_line=print)
    children.start()
    print(children.children[0].pid, flush=True)
    time.sleep(60)
    """
)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_children_die_with_a_killed_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.3)  # the launcher has to have become the child
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 5
    while alive(child):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_lines_are_for_people_or_left_alone() -> None:
    fields = {
        "ts": "2026-01-02T03:04:05.678Z",
        "level": "warning",
        "event": "trying again",
        "pause_s": 1.5,
        "role": "capture",
    }
    assert str(Line("capture", "{…}", fields)) == "03:04:05 warning capture | trying again  pause_s=1.5"
    assert Line("capture", "{…}", fields).plain == "{…}"
    assert str(Line("sink a", "Traceback")) == Line("sink a", "Traceback").plain == "sink a | Traceback"
