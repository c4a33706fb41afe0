"""A sink that joins a log which others have read for long (B5): where it begins, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cdc.errors import CdcError
from cdc.log import Mark
from cdc.log.embedded import APPLIED
from cdc.table import TableId
from sinks import joining
from sinks.apply import Pace, apply
from sinks.postgres.sink import PostgresSink
from tests.servers import Database, execute
from tests.written import Written


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Written]:
    made = Written(tmp_path / "log")
    yield made
    made.log.close()


def everything(_table: TableId) -> bool:
    return True


def begins(written: Written, *names: str) -> Any:
    wants = {TableId.parse(name) for name in names}
    return joining.start(written.log, "late", wants.__contains__ if names else everything)


def test_an_empty_log_is_read_from_its_beginning(written: Written) -> None:
    assert begins(written) == (Mark(-1, written.log.id), {}, ())


def test_the_place_is_the_cut_before_the_earliest_of_the_last_whole_loads(written: Written) -> None:
    a, b = TableId("public", "a"), TableId("public", "b")
    written.load("public.a", 1, 1, 2)
    second = written.load("public.a", 2, 1)
    of_b = written.load("public.b", 1, 1)
    third = written.write(begun={"public.a": 3}).number  # not finished: the second is whole
    found = begins(written)
    assert (found.mark.number, found.begins, found.missing) == (second - 1, {a: second, b: of_b}, ())
    assert begins(written, "public.b")[:2] == (begins(written, "public.b").mark, {b: of_b})
    assert begins(written, "public.b").mark.number == of_b - 1
    assert begins(written, "public.c").mark.number == third  # nothing of it is in the log: it begins at its end
    written.write(finished=("public.a",))
    assert begins(written, "public.a").begins == {a: third}


def test_a_load_that_never_ended_is_joined_at_its_beginning(written: Written) -> None:
    written.write()
    begun = written.write(begun={"public.a": 1})
    assert begins(written)[1:] == ({TableId("public", "a"): begun.number}, ())


def test_the_place_is_never_off_a_cut(written: Written) -> None:
    """B4: what is behind the last cut may turn out abandoned."""
    cut = written.write()
    for _ in range(200):
        written.write(cut=False)
    begun = written.write(begun={"public.a": 1}, cut=False)
    assert begins(written) == (cut.mark, {TableId("public", "a"): begun.number}, ())
    written.write(begun={"public.a": 2}, continues=cut.mark)
    assert begins(written).mark == cut.mark


def test_a_load_that_retention_has_taken_away_is_named(tmp_path: Path) -> None:
    written = Written(tmp_path / "log", APPLIED)
    try:
        written.load("public.a", 1, 1)
        last = written.load("public.b", 1, 1)
        written.log.report("first", written.log.last_checkpoint().mark)  # type: ignore[union-attr]
        written.log.retain()
        assert int(written.log.status()["first"]) > 0
        found = begins(written)
        assert set(found.missing) == {TableId("public", "a"), TableId("public", "b")}
        assert found.begins == {}
        assert found.mark.number >= last
        third = written.load("public.a", 2, 1)
        written.log.retain()  # waits for who is about to join
        assert begins(written)[1:] == ({TableId("public", "a"): third}, (TableId("public", "b"),))
    finally:
        written.log.close()


# ---------------------------------------------------------------------------------------------------------- into a target
def follow(written: Written, url: str, pace: Pace | None = None) -> PostgresSink:
    """A sink called `late`, up to the end of the log; still connected."""
    sink = PostgresSink("late", url, pipeline="shop", schemas=written.log.schema)
    last = written.log.last_checkpoint()
    done: list[int] = []
    assert last is not None

    def stop() -> bool:
        return bool(done) and done[-1] >= last.number

    if sink.resume(written.log.id, partial(joining.start, written.log, "late", sink.wants)).mark != last.mark:
        apply(sink, written.log, stop, pace, observe=lambda cut, _rows: done.append(cut.number))
    return sink


def rows(target: Database, name: str) -> list[tuple[Any, ...]]:
    return execute(target.admin_url, f"SELECT id, v FROM {name} ORDER BY id")


def test_nothing_before_its_own_load_reaches_a_table(written: Written, target: Database) -> None:
    a, b = written.table("public.a"), written.table("public.b")
    written.load("public.a", 1, 1, 2)
    written.load("public.b", 1, 7)
    written.write(a.c(id=3, v="new"), b.c(id=8, v="old load"))
    written.load("public.b", 2, 9)
    written.write(a.d(id=1), b.c(id=10, v="new"))
    follow(written, target.grant_sink()).close()
    assert rows(target, "a") == [(2, "1"), (3, "new")]
    assert rows(target, "b") == [(9, "2"), (10, "new")]
    assert execute(target.admin_url, "SELECT state, generation FROM _cdc.tables ORDER BY table_name") == [
        ("live", 1),
        ("live", 2),
    ]
    assert written.log.signals(0) == []


def test_a_sink_that_dies_before_its_tables_begin_still_knows_where(written: Written, target: Database) -> None:
    a, b = written.table("public.a"), written.table("public.b")
    written.load("public.a", 1, 1)
    url = target.grant_sink()
    written.write(b.c(id=8, v="before"))
    of_b = written.load("public.b", 1, 9)
    sink = PostgresSink("late", url, pipeline="shop", schemas=written.log.schema)
    bookmark = sink.resume(written.log.id, partial(joining.start, written.log, "late", sink.wants))
    sink.close()
    assert bookmark.begins == {a.id: 0, b.id: of_b}
    again = PostgresSink("late", url, pipeline="shop", schemas=written.log.schema)
    assert again.resume(written.log.id) == bookmark
    assert again.suspended() == []
    again.close()
    follow(written, url).close()
    assert (rows(target, "a"), rows(target, "b")) == ([(1, "1")], [(9, "1")])


def test_what_the_log_no_longer_holds_is_asked_for_and_the_rest_is_not(tmp_path: Path, target: Database) -> None:
    written = Written(tmp_path / "log", APPLIED)
    try:
        b, url = written.table("public.b"), target.grant_sink()
        written.load("public.a", 1, 1)
        written.load("public.b", 1, 1)
        written.log.report("first", written.log.last_checkpoint().mark)  # type: ignore[union-attr]
        written.log.retain()
        written.load("public.a", 2, 5)
        written.write(b.c(id=2, v="2"))
        follow(written, url).close()
        assert rows(target, "a") == [(5, "2")]
        assert [(s.kind, s.details) for s in written.log.signals(0)] == [("reload", {"tables": [["public", "b"]]})]
        written.load("public.b", 2, 1, 2)
        follow(written, url).close()
        assert rows(target, "b") == [(1, "2"), (2, "2")]
        assert {str(signal.details) for signal in written.log.signals(0)} == {"{'tables': [['public', 'b']]}"}
    finally:
        written.log.close()


def test_a_foreign_key_waits_for_the_table_that_begins_later(written: Written, target: Database) -> None:
    target.execute(
        "CREATE TABLE b (id bigint PRIMARY KEY, v text); CREATE TABLE a (id bigint PRIMARY KEY REFERENCES b, v text)"
    )
    written.load("public.a", 1, 1, 2)
    for _ in range(3):
        written.write()
    written.load("public.b", 1, 1, 2)
    written.write()
    follow(written, target.grant_sink(adopts=True), pace=Pace(batch_bytes=1)).close()
    assert rows(target, "a") == rows(target, "b") == [(1, "1"), (2, "1")]
    assert execute(target.admin_url, "SELECT count(*) FROM pg_constraint WHERE contype = 'f'") == [(1,)]


def test_a_bookmark_of_another_log_is_still_an_error(written: Written, target: Database, tmp_path: Path) -> None:
    written.load("public.a", 1, 1)
    url = target.grant_sink()
    follow(written, url).close()
    other = Written(tmp_path / "other")
    try:
        other.load("public.a", 1, 1)
        with pytest.raises(CdcError, match="CDC-TGT-111"):
            follow(other, url)
    finally:
        other.log.close()
