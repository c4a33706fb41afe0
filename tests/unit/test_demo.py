"""The demo's parts that need no server: what a look means, what differs, how a scene looks, and programs that cannot run here."""

from __future__ import annotations

import io
import os
import signal
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from rich.console import Console

from cdc.commands import demo
from cdc.demo import binaries, scene, shop, watch
from cdc.demo.comparison import differing
from cdc.demo.scene import Scene, ServiceRow, TableRow
from cdc.errors import CdcError

NOW = datetime(2024, 1, 2, tzinfo=UTC)


def test_a_look_means_nothing_before_all_accounts_are_there() -> None:
    assert watch.judged(0.0, NOW, shop.ACCOUNTS - 1, Decimal(1), NOW) == (0.0, None, True)
    assert watch.judged(0.0, NOW, 0, None, None) == (0.0, None, True)


def test_a_cent_less_is_torn() -> None:
    late = NOW - timedelta(milliseconds=250)
    assert watch.judged(1.0, NOW, shop.ACCOUNTS, shop.MONEY, late) == (1.0, 0.25, True)
    assert watch.judged(1.0, NOW, shop.ACCOUNTS, shop.MONEY - Decimal("0.01"), late) == (1.0, 0.25, False)
    assert watch.judged(1.0, NOW, shop.ACCOUNTS, shop.MONEY, NOW + timedelta(seconds=1)).lag_s == 0


def test_tables_are_compared_as_multisets() -> None:
    one, other = ("(1)", "(1,a)"), ("(1)", "(1,b)")
    assert differing("t", [one, one], [one, one]) is None
    assert differing("t", [one, one], [one]) == ("t", 1, 0, ("(1)",))
    changed = differing("t", [one], [other])
    assert changed == ("t", 1, 1, ("(1)",))
    assert "(1)" in str(changed)
    assert "a" not in str(changed).removeprefix(
        "t: 1 rows missing or different, 1 that the source has not, for instance "
    )


def example(**more: object) -> Scene:
    tables = (
        TableRow("orders", 8_000, 9_100, 12.4, {"replica": 7_990, "analytics": None}),
        TableRow("products", 500, None, None, {"replica": 500}),
    )
    services = (
        ServiceRow("capture", 41, None),
        ServiceRow("sink replica", None, 1.23),
        ServiceRow("sink analytics", 43, 0.0),
    )
    return Scene(12.0, 9.0, 30.0, "replicating", 1_000, 201.0, tables, services, 77, 0)._replace(**more)


def drawn(now: Scene, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width, markup=False, highlight=False).print(scene.view(now))
    return file.getvalue()


def test_the_scene_fits_80_columns() -> None:
    lines = drawn(example()).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert rows["orders"] == ["8,000", "9,100", "12", "7,990", "–"]
    assert rows["products"] == ["500", "–", "–", "500", "not", "taken"]
    assert "201 transactions/s" in lines[1]
    assert [line.split() for line in lines if line.startswith("sink replica")] == [
        ["sink", "replica", "down", "1.2", "s", "behind"]
    ]
    assert next(line for line in lines if line.startswith("sink analytics")).rstrip().endswith("up to date")
    assert "all there in each of 77 looks" in drawn(example())
    assert "TORN in 2 of 77" in drawn(example(torn=2))


def test_the_scene_as_a_line() -> None:
    line = scene.line(example())
    assert line == (
        "1,000 transactions; source 8,500 rows; log 9,100 events; capture up; sink replica down, 1.2 s behind; "
        "sink analytics up, up to date; money whole in 77 looks"
    )


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs for another machine, in a package."""
    bin_folder = tmp_path / "site" / binaries.PACKAGE / "pginstall" / "bin"
    bin_folder.mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(binaries, "packaged", lambda _major: bin_folder.parent)
    return bin_folder / "postgres"


@pytest.mark.parametrize(
    "program", [b"#!/no/such/loader\n", b"\x7fELF of another processor", b"#!/bin/sh\necho no libc >&2; exit 127\n"]
)
def test_programs_that_cannot_run_here_say_so(foreign: Path, program: bytes) -> None:
    foreign.write_bytes(program)
    with pytest.raises(CdcError) as raised:
        binaries.cached(16, binaries.ServerUser(os.geteuid(), os.getegid()))
    assert raised.value.code == "CDC-DEMO-104"
    assert raised.value.detail


def test_without_the_extra_there_is_a_code_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(binaries, "PACKAGE", "no_such_package")
    monkeypatch.setattr("cdc.demo.stage.base_folder", lambda _user: tmp_path)
    with pytest.raises(CdcError) as raised:
        demo.run(keep=True, seconds=1, port=None)
    assert raised.value.code == "CDC-DEMO-101"
    assert "pip install" in raised.value.remedy
    assert list(tmp_path.iterdir()) == []
    assert "kept" not in capsys.readouterr().out


def test_signals_ask_once_and_the_first_one_counts() -> None:
    before = signal.getsignal(signal.SIGHUP)
    with demo.Interrupt().by_signals() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGHUP)
        assert stop()
        assert stop.number == signal.SIGTERM
    assert signal.getsignal(signal.SIGHUP) is before


def test_what_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with demo.Interrupt().by_signals() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)
