"""A standby is promoted (protocols C5, D3, D5): with everything that was captured, and without."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from cdc.errors import CdcError, Unavailable
from cdc.postgres import history, marks
from cdc.postgres import source as sources
from cdc.postgres.session import Session
from tests.integration.pg_source import Capture, brief
from tests.servers import Database, Server, execute, standby

SLOT = "cdc_p"


class Pair:
    """A primary and its standby, and a capture that goes to whichever of them is the primary."""

    def __init__(self, primary: Server, stack: ExitStack, **options: Any) -> None:
        self.primary, self.rows = primary, 0
        self.source = primary.make_database("failover")
        self.source.execute("CREATE TABLE t (id int PRIMARY KEY, v int)")
        self.standby = standby.follow(primary, **options)
        assert self.standby.process is not None
        stack.callback(self.standby.process.close)
        url = standby.either(self.source.grant_source(), primary, self.standby)
        self.capture = Capture(url, tables=["public.*"]).start()
        stack.callback(self._close)
        self.write()

    @property
    def there(self) -> Database:
        """The source as the standby has it."""
        return standby.at(self.source, self.standby)

    def _close(self) -> None:
        self.capture.source.close()

    def write(self, database: Database | None = None) -> None:
        self.rows += 1
        (database or self.source).execute(f"INSERT INTO t VALUES ({self.rows}, 0)")

    def captured(self) -> None:
        """The capture has everything, and the server was told so."""
        self.capture.until_mark()
        self.capture.source.confirm(self.capture.cut)
        self.capture.source._opened().stream.report()

    def keep_slot(self) -> None:
        """The standby has the slot: synchronized by the server, or before 17 made there by whoever looks after it."""
        self.captured()
        if self.primary.major >= 17:
            return standby.synchronized(self.primary, self.standby, SLOT, self.captured)
        standby.caught_up(self.primary, self.standby)
        make = f"SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput')"
        making = threading.Thread(target=execute, args=(self.there.admin_url, make))
        making.start()
        while making.is_alive():
            self.primary.execute("SELECT pg_log_standby_snapshot()")
            making.join(0.1)
        self.write()
        return self.captured()

    def cut_off(self) -> None:
        """The standby gets nothing any more."""
        standby.configure(self.standby, primary_conninfo="host=127.0.0.1 port=1")
        gone = "SELECT count(*) FROM pg_stat_replication WHERE application_name = 'walreceiver'"
        until(lambda: self.primary.execute(gone) == [(0,)], "the standby to be cut off")

    def fail_over(self) -> None:
        assert self.primary.process is not None
        self.primary.process.kill9()
        standby.promote(self.standby)

    def stops(self) -> CdcError:
        """How the capture ends at the promoted standby."""
        with pytest.raises(CdcError) as stopped:
            self.capture.reopen()
        assert not isinstance(stopped.value, Unavailable)
        assert "--new-epoch" in stopped.value.remedy
        return stopped.value


Pairs = Callable[..., Pair]


@pytest.fixture(params=[16, 18], ids=["pg16", "pg18"])
def pair(request: pytest.FixtureRequest, private_postgres: Callable[..., Server]) -> Iterator[Pairs]:
    with ExitStack() as stack:
        yield lambda **options: Pair(private_postgres(request.param), stack, **options)


def until(claim: Callable[[], Any], what: str, timeout_s: float = 15.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := claim()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return value


def test_a_standby_with_everything_is_gone_on_with(pair: Pairs) -> None:
    """Each transaction once, those before, during and after; then the position is of the new timeline, and the old primary, back
    and first in the URL, is recognised as overtaken."""
    two = pair()
    capture = two.capture
    two.keep_slot()
    two.write()  # sent by the primary, or not: it is at the standby
    standby.caught_up(two.primary, two.standby)
    two.fail_over()
    with pytest.raises(Unavailable):
        capture.until_mark()
    two.write(two.there)
    capture.reopen()
    capture.until_mark()
    assert capture.at["timeline"] == 2
    two.write(two.there)
    capture.reopen().until_mark()
    assert brief(capture.events) == [("c", "t", (n, 0)) for n in range(1, two.rows + 1)]
    assert two.primary.process is not None
    two.primary.process.start()
    stopped = two.stops()
    assert (stopped.code, "overtaken" in stopped.detail) == ("CDC-PG-125", True)


def test_a_standby_without_the_slot(pair: Pairs) -> None:
    two = pair(synchronized=False)
    two.captured()
    standby.caught_up(two.primary, two.standby)
    two.fail_over()
    stopped = two.stops()
    assert (stopped.code, "timeline 2" in stopped.detail) == ("CDC-PG-120", True)


@pytest.mark.parametrize("captured", ["transaction", "half", "chunk"])
def test_a_standby_that_lacks_what_was_captured(pair: Pairs, captured: str) -> None:
    """It has the slot. Whatever the log has and it has not, be it half a transaction or the rows of a chunk, is a history cut."""
    two = pair()
    capture = two.capture
    two.keep_slot()
    if two.primary.major >= 17:
        standby.configure(two.primary, synchronized_standby_slots="")
    two.cut_off()
    if captured == "half":
        two.source.execute("INSERT INTO t SELECT i, 0 FROM generate_series(1000, 60000) i")
        while not capture.at["open"]:
            capture.poll()
    else:
        two.write()
    if captured == "transaction":
        two.captured()
    if captured == "chunk":
        read = capture.chunk("public.t")
        assert len(capture.rows(read)) == two.rows
        capture.source.mark()
        capture.at = capture.source.seen(capture.at)
    two.fail_over()
    stopped = two.stops()
    assert (stopped.code, "missing from the server" in stopped.detail) == ("CDC-PG-125", True)


def test_a_mark_waits_for_the_standby(pair: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 17 on: as the stream does. What it says, followed, lets it go on."""
    monkeypatch.setattr(marks, "STANDBYS_WAIT_S", 0.3)
    two = pair()
    capture = two.capture
    if two.primary.major < 17:
        two.cut_off()
        return two.captured()
    two.captured()
    two.cut_off()
    two.write()
    with pytest.raises(Unavailable) as stopped:
        capture.source.mark()
    assert (stopped.value.code, "standby slot standby is not in use" in stopped.value.detail) == ("CDC-PG-149", True)
    assert two.rows not in [(event.after or {})["id"] for event in capture.events]
    standby.configure(two.primary, synchronized_standby_slots="")
    capture.reopen().until_mark()
    assert brief(capture.events) == [("c", "t", (n, 0)) for n in range(1, two.rows + 1)]
    return None


def test_a_standby_is_refused_or_waited_for(pair: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL that asks for a primary waits for one, as does one that led to a primary before; another one is a mistake."""
    two = pair()
    two.captured()
    capture, through = two.capture, two.there.url.split("@")[1]
    bare = f"{capture.url.split('@')[0]}@{through}"
    assert two.primary.process is not None
    two.primary.process.kill9()
    with pytest.raises(Unavailable) as waits:
        capture.reopen()
    assert waits.value.code == "CDC-PG-113"
    capture.url = bare
    with pytest.raises(CdcError) as refused:
        capture.reopen()
    assert (refused.value.code, isinstance(refused.value, Unavailable)) == ("CDC-PG-113", False)
    monkeypatch.setattr(sources, "_led_to_a_primary", {bare})
    with pytest.raises(Unavailable) as waits:
        capture.reopen()
    assert waits.value.code == "CDC-PG-113"


def test_sessions_of_two_servers_are_not_mixed(database: Database, make_database: Callable[[], Database]) -> None:
    """C5: what is read beside the stream is of the server that streams."""
    with_one = Session(database.url, "a")
    since = history.started(with_one)
    history.same_server(with_one, since)
    with pytest.raises(Unavailable) as stopped:
        history.same_server(with_one, since.replace("2", "3"))
    assert stopped.value.code == "CDC-PG-101"
    assert not with_one.alive
