"""Status: the pure judgements, what people see, and the survey of a log beside its writer."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cdc.avro import decode_event, encode_datum, frame, schemas_of
from cdc.commands import live, picture, reload, tail
from cdc.commands.copy import End, lines
from cdc.commands.picture import Picture, SinkView, TableView
from cdc.errors import CdcError, Unavailable
from cdc.health import LAG_MAX_S, SILENT_MAX_S, LagClock, RateClock, service_problems, until_loss_s
from cdc.log import Begun, Checkpoint, Draft, Mark, Survey, TableState
from cdc.log.embedded import EmbeddedLog
from cdc.log.survey import FolderSurveyor
from cdc.position import Position
from cdc.records import Records
from cdc.supervise import State
from cdc.table import Column, LogicalType, TableId, TableSchema

ORDERS, ITEMS, EVIL = TableId("public", "orders"), TableId("public", "items"), TableId("public", "\x1b[31m\n[red]x")


def checkpoint(number: int = 5, loading: Any = (), **more: Any) -> Checkpoint:
    position = Position(0, 9, {}, {"loading": list(loading)})
    return Checkpoint("log", number, "id", Mark(number - 1, "x"), "w", position, cut=True, written_ms=1, **more)


def loading(table: TableId, rows: int = 0, **more: Any) -> Any:
    return [list(table), {"after": None, "read": False, "rows": rows, **more}]


STATE = TableState(2, False, {"keyless": False})


def views(last: Checkpoint, *selected: TableId, **estimates: int) -> dict[str, TableView]:
    survey = Survey(last, {ORDERS: STATE, ITEMS: STATE}, {ORDERS: 7})
    given = {TableId("public", name): rows for name, rows in estimates.items()}
    return {view.table: view for view in picture.table_views(survey, selected, given)}


def test_tables_are_queued_loading_or_live() -> None:
    found = views(checkpoint(loading=[loading(ORDERS, 25), loading(ITEMS)]), TableId("public", "new"), orders=100)
    assert {name: view.state for name, view in found.items()} == {
        "public.orders": "loading",
        "public.items": "queued",
        "public.new": "queued",
    }
    orders = found["public.orders"]
    assert (orders.generation, orders.rows, orders.estimate, orders.percent, orders.events) == (2, 25, 100, 25.0, 7)
    assert views(checkpoint(), orders=100)["public.orders"].state == "live"


def test_a_load_is_not_complete_before_it_says_so() -> None:
    view = views(checkpoint(loading=[loading(ORDERS, 500)]), orders=100)["public.orders"]
    assert view.percent == 99.9
    assert replace(view, estimate=None).percent is None


SINK = SinkView("warehouse", "db/dw", "live", 5, 0, 0.0, 0)


@pytest.mark.parametrize(
    ("tables", "sink", "problems", "capturing", "expected"),
    [
        (["live"], SINK, [], True, "live"),
        (["live", "loading"], SINK, [], True, "loading"),
        (["live"], replace(SINK, lag_s=5.0), [], True, "catching up"),
        (["live"], SinkView("warehouse", "db/dw", "not started"), [], True, "catching up"),
        (["live"], SINK, ["the slot is lost"], True, "degraded"),
        (["live"], SINK, ["no capture"], False, "stopped"),
    ],
)
def test_the_pipeline_in_one_word(
    tables: list[str], sink: SinkView, problems: list[str], capturing: bool, expected: str
) -> None:
    survey = Survey(checkpoint(), {}, {})
    given = [TableView(str(number), state, 1, None, None, 0) for number, state in enumerate(tables)]
    assert picture.word(survey, given, [sink], problems, capturing=capturing) == expected
    assert picture.word(Survey(None, {}, {}), [], [], [], capturing=False) == "not started"


def test_health_comes_from_state_lag_and_the_source_and_not_from_being_up() -> None:
    running = State("running")
    assert service_problems(running, 1.0, {"lag_s": 1.0, "wal_status": "reserved"}) == ()
    assert service_problems(running, SILENT_MAX_S + 1, {}) != ()
    assert service_problems(running, 1.0, {"lag_s": LAG_MAX_S + 1}) != ()
    assert service_problems(running, 1.0, {"wal_status": "lost"}) != ()
    assert service_problems(running, 1.0, {"retained_bytes": 90, "safe_bytes": 10}) != ()
    assert service_problems(running, 1.0, {"retained_bytes": 90, "safe_bytes": None}) == ()
    [problem] = service_problems(State("retrying", Unavailable("CDC-LOG-304", "busy"), 4), None, {})
    assert problem == "retrying in 4 s: CDC-LOG-304 busy"


def test_the_lag_is_the_age_of_the_oldest_place_not_reached() -> None:
    clock = LagClock()
    assert clock.lag_s(100, 100, 0.0) == 0
    assert clock.lag_s(110, 100, 10.0) == 0  # seen just now
    assert clock.lag_s(120, 105, 20.0) == 10
    assert clock.lag_s(120, 110, 30.0) == 10
    assert clock.lag_s(120, 120, 40.0) == 0


def test_rates_and_remaining_time() -> None:
    rates = live.Rates()
    table = TableView("public.orders", "loading", 1, 100, 1000, 0)
    shown = shown_picture(table)
    rates.add(0.0, shown)
    assert rates.rate(table) is None
    later = replace(table, rows=300)
    rates.add(10.0, shown_picture(later))
    assert rates.rate(later) == 20
    assert rates.remaining_s(later) == 35
    assert rates.rate(replace(later, generation=2)) is None
    assert lines(shown_picture(later), rates)[0] == "public.orders: 300 rows of ~1,000 (30 %), 20 rows/s, 35s left"


def shown_picture(
    *tables: TableView, head: int = 0, done: int = 0, cut: bool = True, last: int = 5, at: int = 5
) -> Picture:
    sink = replace(SINK, checkpoint=at)
    return Picture("shop", "live", (), {"url": "db/shop"}, {"cut": cut, "last": last}, tables, (sink,), head, done)


def test_a_copy_ends_when_the_target_has_what_the_source_had_after_the_loads() -> None:
    end = End(follow=False)
    loading_table = TableView("t", "loading", 1, 1, 2, 0)
    live_table = TableView("t", "live", 1, None, 2, 12)
    for now in (
        shown_picture(loading_table, head=100, done=100),
        shown_picture(live_table, TableView("late", "queued", 0, None, None, 0), head=200, done=150),  # the end: 200
        shown_picture(live_table, head=300, done=199),
        shown_picture(live_table, head=300, done=200, cut=False, last=6),
        shown_picture(live_table, head=300, done=201, last=7),
        shown_picture(live_table, head=300, done=300, last=9, at=6),
    ):
        end.see(now)
        assert not end.reached()
    end.see(shown_picture(live_table, head=300, done=300, last=9, at=7))
    assert end.reached()
    assert end.summary() == "1 table, 12 rows and changes"


def test_a_copy_does_not_end_before_a_table_that_the_target_left_alone_is_loaded_anew() -> None:
    end = End(follow=False)
    live_table, loading_table = TableView("t", "live", 1, None, 2, 12), TableView("t", "loading", 2, 1, 2, 12)
    for now in (
        *[shown_picture(live_table, head=100, done=100, last=5, at=5)] * 2,
        with_state(shown_picture(live_table, head=100, done=100, last=5, at=5), "suspended"),
        with_state(shown_picture(loading_table, head=100, done=100, last=6, at=5), "suspended"),
        with_state(shown_picture(loading_table, head=100, done=100, last=7, at=6), "loading"),
        with_state(shown_picture(live_table, head=100, done=100, last=8, at=7), "loading"),
    ):
        end.see(now)
        assert not end.reached()
    end.see(with_state(shown_picture(live_table, head=100, done=100, last=8, at=8), "live"))
    assert end.reached()


def with_state(now: Picture, state: str) -> Picture:
    """The picture with this state of the table in the target."""
    return replace(now, sinks=tuple(replace(sink, tables={"t": state}) for sink in now.sinks))


def test_a_copy_that_follows_never_ends() -> None:
    end = End(follow=True)
    for _ in range(5):
        end.see(shown_picture(TableView("t", "live", 1, None, 2, 0), head=1, done=1))
    assert not end.reached()


def test_hostile_names_are_text_on_a_terminal() -> None:
    now = shown_picture(TableView(str(EVIL), "live", 1, None, None, 3))
    now = replace(now, problems=("\x1b[2Jgone",), source={"url": "db/\x1b]0;x\x07"})
    screen = Console(file=io.StringIO(), force_terminal=True, width=120, markup=False)
    screen.print(live.view(now, live.Rates()))
    assert isinstance(screen.file, io.StringIO)
    text = screen.file.getvalue()
    assert "[red]x" in text
    for control in ("\x1b[31m\n", "\x1b[2J", "\x1b]0", "\x07"):
        assert control not in text


def test_sizes_and_durations_for_people() -> None:
    assert [live.size(number) for number in (0, 999, 1500, 2_500_000, 7.2e12)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 MB",
        "7.2 TB",
    ]
    assert [live.duration(number) for number in (None, 5, 65, 3665)] == ["", "5s", "1m05s", "1h01m"]


# ------------------------------------------------------------------------------------------------------------ on a log
SCHEMA = TableSchema(
    ORDERS,
    (
        Column("id", LogicalType("int64"), "bigint", nullable=False),
        Column("total", LogicalType("decimal", 10, 2), "numeric(10,2)"),
        Column("at", LogicalType("timestamp_us"), "timestamp"),
        Column("blob", LogicalType("bytes"), "bytea"),
        Column("note", LogicalType("text"), "text"),
    ),
    ("id",),
)


class Writer:
    """A log that gets one event per checkpoint."""

    def __init__(self, folder: Path, segment_bytes: int = 256 << 20, retention: str = "forever") -> None:
        self.log = EmbeddedLog(folder, segment_bytes=segment_bytes, free_bytes_min=0, retention=retention)
        self.log.open_writer()
        schemas = schemas_of("shop", SCHEMA, "postgresql")
        self.schemas = schemas
        assert schemas.key is not None
        self.key_id = self.log.register("orders-key", schemas.key)
        self.value_id = self.log.register("orders-value", schemas.value)
        self.sequence = 0

    def event(self, note: str = "x") -> Checkpoint:
        self.sequence += 1
        row = {"id": self.sequence, "total": b"\x30\x39", "at": 0, "blob": b"\x00\xff", "note": note}
        source = {field["name"]: filler(field) for field in self.schemas.value["fields"][5]["type"]["fields"]}
        source |= {"sequence": str(self.sequence), "ts_ms": 1000}
        value = {"op": "c", "unchanged": None, "moved": None, "before": None, "after": row, "source": source}
        assert self.schemas.key is not None
        records = Records(
            [frame(self.key_id) + encode_datum(self.schemas.key, {"id": self.sequence})],
            [frame(self.value_id) + encode_datum(self.schemas.value, value)],
        )
        begun = (Begun(ORDERS, 1, False),) if self.sequence == 1 else ()
        facts = {ORDERS: {"keyless": False, "waits": [77]}} if begun else {}
        position = Position(0, self.sequence, {"lsn": "0/1"}, {"loading": []})
        return self.log.append({ORDERS: records}, Draft(position, True, begun, facts=facts))


def filler(field: Any) -> Any:
    """Something that fits a field of the source block."""
    kinds = field["type"] if isinstance(field["type"], list) else [field["type"]]
    if "null" in kinds:
        return None
    kind = kinds[0]["type"] if isinstance(kinds[0], dict) else kinds[0]
    return {"string": "false", "long": 0, "int": 0, "boolean": False}[kind]


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    made = Writer(tmp_path / "log", segment_bytes=100_000)
    with closing(made.log):
        yield made


def test_a_survey_beside_the_writer(writer: Writer, tmp_path: Path) -> None:
    with FolderSurveyor(tmp_path / "log") as surveyor:
        assert surveyor.survey() == Survey(None, {}, {})
        assert surveyor.mark_before_events(5, lambda _table: True) == Mark(-1, writer.log.id)
    marks = [writer.event("y" * 1000).mark for _ in range(600)]
    with FolderSurveyor(tmp_path / "log") as surveyor:
        survey = surveyor.survey()
        assert survey.last is not None
        assert survey.last.number == 599
        assert survey.events == {ORDERS: 600}
        assert survey.tables[ORDERS].generation == 1
        assert surveyor.mark_before(300) == marks[299]
        assert surveyor.mark_before(0) == Mark(-1, writer.log.id)
        assert surveyor.mark_before(600) == marks[599]
        assert surveyor.mark_before_events(7, lambda table: table == ORDERS) == marks[592]
        assert surveyor.mark_before_events(7, lambda table: table == ITEMS) == Mark(-1, writer.log.id)
        assert surveyor.backlog_bytes(599) == 0
        assert 0 < surveyor.backlog_bytes(598) < surveyor.backlog_bytes(10)
        assert surveyor.written_ms(600) is None
    assert len(list((tmp_path / "log" / "segments").glob("*.sqlite"))) > 2


def test_tail_beside_a_writer(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(3):
        writer.event()
    file = tmp_path / "shop.yaml"
    file.write_text(
        f"pipeline: orders-key\nsource: postgresql://db/shop\nlog: {tmp_path / 'log'}\nsinks: {{w: postgresql://db/w}}\n"
    )
    marked = FolderSurveyor.mark_before_events

    def late(self: FolderSurveyor, count: int, wanted: Any) -> Mark:
        writer.event()
        return marked(self, count, wanted)

    monkeypatch.setattr(FolderSurveyor, "mark_before_events", late)
    assert tail.run(as_json=False, file=file, tables=(), count=1, follow=False) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_retention_waits_for_a_sink_that_is_yet_to_start(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "log", segment_bytes=100_000, retention="applied")
    with closing(writer.log) as log:
        log.expect(["early", "late"])
        last = [writer.event("y" * 1000).mark for _ in range(300)][-1]
        log.report("early", last)
        log.expect(["early", "late"])  # at each start; what was reported stays
        log.retain()
        assert log.status()["first"] == 0
        log.report("late", last)
        log.retain()
        assert log.status()["first"] > 0


def test_no_log_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CdcError) as raised:
        FolderSurveyor(tmp_path / "nothing")
    assert raised.value.code == "CDC-LOG-101"
    assert not (tmp_path / "nothing").exists()


def test_events_are_readable_and_harmless(writer: Writer) -> None:
    writer.event("\x1b[31mred\u202e")
    [(checkpoint_read, batch)] = [
        item for item in [next(writer.log.read(Mark(-1, writer.log.id), lambda _t: True, 0))] if item
    ]
    [item] = tail.decoded(writer.log, checkpoint_read, batch)
    assert decode_event(writer.schemas.value, batch[ORDERS].values[0]).op == "c"
    text = tail.text_line(item)
    assert text.endswith(
        'c public.orders [id=1] total="123.45" at="1970-01-01 00:00:00.000000" blob="AP8=" note="\\u001b[31mred\\u202e"'
    )
    assert '"total": "123.45"' in tail.json_line(item)


def test_tables_of_a_reload_are_checked_against_the_log() -> None:
    known = {ORDERS: STATE, ITEMS: STATE}
    assert reload.selected([], True, known) == [ITEMS, ORDERS]
    assert reload.selected(["public.orders", "public.orders"], False, known) == [ORDERS]
    with pytest.raises(CdcError, match="did you mean"):
        reload.selected(["public.order"], False, known)
    with pytest.raises(CdcError, match="CDC-RUN-301"):
        reload.selected(["orders"], False, known)


def test_how_long_the_source_keeps_its_log_for_us() -> None:
    """By the limit and the growth, or by the idleness of the slot, whichever comes first; unknown is not zero."""
    assert until_loss_s({"safe_bytes": 3600, "wal_bytes_per_s": 0.5, "idle_left_s": None}) == 7200
    assert until_loss_s({"safe_bytes": 3600, "wal_bytes_per_s": 0.5, "idle_left_s": 60.0}) == 60
    assert until_loss_s({"safe_bytes": -5, "wal_bytes_per_s": None}) == 0
    assert until_loss_s({"safe_bytes": None, "wal_bytes_per_s": 9.0}) is None
    assert until_loss_s({"safe_bytes": 3600, "wal_bytes_per_s": None}) is None
    assert until_loss_s({"safe_bytes": 3600, "wal_bytes_per_s": 0.0}) is None
    running = State("running")
    assert service_problems(running, 1.0, {"until_loss_s": 7200.0, "until_loss_min_s": 7200.0, "blockers": ["x"]}) == ()
    bad = {"until_loss_s": 5400.0, "until_loss_min_s": 14400.0, "blockers": ["pid 1 (psql)"]}
    first, second = service_problems(running, 1.0, bad)
    assert "in 1.5 hours" in first
    assert "4 are demanded" in first
    assert "pid 1 (psql)" in second


def test_the_growth_is_told_once_it_was_watched_for_long_enough() -> None:
    clock = RateClock()
    assert clock.rate(1000, 0.0) is None
    assert clock.rate(4000, 30.0) is None
    assert clock.rate(7000, 60.0) == (100.0, 60.0)
    assert clock.rate(7000, 900.0) == (6000 / 900, 900.0)
    assert clock.rate(7000, 950.0) == (0.0, 890.0)  # what was seen before that is forgotten


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ({}, ""),
        ({"retained_bytes": 5_000_000}, "kept there 5.0 MB of unlimited"),
        (
            {"retained_bytes": 5_000_000, "wal_bytes_per_s": 2_000_000.0},
            "kept there 5.0 MB of unlimited, its log grows by 2.0 MB/s",
        ),
        (
            {"retained_bytes": 5_000, "limit_bytes": 10_000, "wal_bytes_per_s": 1.0, "until_loss_s": 9000.0},
            "kept there 5.0 kB of 10.0 kB, its log grows by 1 B/s, lost in 2.5 hours",
        ),
        ({"retained_bytes": 5_000, "limit_bytes": 10_000}, "kept there 5.0 kB of 10.0 kB, growth not known yet"),
    ],
)
def test_what_the_source_keeps_in_words(source: dict[str, Any], shown: str) -> None:
    screen = Console(file=io.StringIO(), width=400, markup=False)
    screen.print(live.view(replace(shown_picture(), source=source), live.Rates()))
    assert isinstance(screen.file, io.StringIO)
    assert shown in " ".join(screen.file.getvalue().split())
