"""A replay against a real target: what an exchange keeps, where it stops, what it refuses (B5, B7, B10)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from cdc.errors import CdcError
from cdc.log.embedded import APPLIED
from cdc.postgres.moment import Lsn
from cdc.table import TableId
from sinks import joining
from sinks.apply import Pace, apply
from sinks.horizon import Moment, Number, find
from sinks.postgres.rebuild import PostgresRebuild
from sinks.postgres.sink import PostgresSink
from sinks.replay import Replay, plan
from tests.servers import Database, execute
from tests.written import Written

Json = Any


def everything(_table: TableId) -> bool:
    return True


def same(table: TableId) -> TableId:
    return table


class Place:
    """A log, a target, and a live sink called `main`."""

    def __init__(self, written: Written, target: Database, url: str) -> None:
        self.written, self.target, self.url = written, target, url
        self.rename: Callable[[TableId], TableId] = same
        self.wants: Callable[[TableId], bool] = everything

    def live(self, until: int | None = None) -> None:
        """Apply to the end of the log, or up to a checkpoint, and stop."""
        log = self.written.log
        sink = PostgresSink("main", self.url, pipeline="shop", schemas=log.schema, wants=self.wants, rename=self.rename)
        last = log.last_checkpoint()
        assert last is not None
        until, done = last.number if until is None else until, list[int]()
        with closing(sink):
            mark = sink.resume(log.id, partial(joining.start, log, "main", sink.wants)).mark
            if mark.number < until:
                apply(
                    sink,
                    log,
                    lambda: bool(done) and done[-1] >= until,
                    Pace(0.01, 1),
                    lambda cut, _: done.append(cut.number),
                )

    def rebuild(self, into: str | None = None, *picked: str) -> PostgresRebuild:
        names = {TableId.parse(name) for name in picked}
        return PostgresRebuild(
            "main", self.url, pipeline="shop", schemas=self.written.log.schema, wants=self.wants, rename=self.rename,
            picked=names.__contains__ if names else everything, into=into,
        )  # fmt: skip

    def replay(self, moment: Moment | None = None, into: str | None = None, *picked: str) -> Json:
        log, rebuild = self.written.log, self.rebuild(into, *picked)
        to = None if moment is None else moment.text
        id, planned = plan(rebuild, log, moment, picked, to)
        id = id or rebuild.begin(log.id, sorted(planned.start.begins), planned.to_json())
        with closing(rebuild.sink):
            result = Replay(rebuild, log, id, planned, lambda: False, pace=Pace(0.01)).run()
        assert result is not None
        return {table["table"]: table for table in result["tables"]} | {"checkpoint": result["checkpoint"]}

    def rows(self, name: str, columns: str = "id, v") -> list[tuple[Any, ...]]:
        return execute(self.target.admin_url, f"SELECT {columns} FROM {name} ORDER BY 1")

    def admin(self, sql: str) -> list[tuple[Any, ...]]:
        return execute(self.target.admin_url, sql)

    def clean(self) -> None:
        """Nothing of a replay is left."""
        assert self.admin("SELECT nspname FROM pg_namespace WHERE nspname LIKE '%replay%'") == []
        assert self.admin("SELECT sink FROM _cdc.bookmark WHERE sink LIKE 'replay:%'") == []
        assert self.admin("SELECT sink FROM _cdc.tables WHERE sink LIKE 'replay:%'") == []


@pytest.fixture
def place(tmp_path: Path, target: Database) -> Iterator[Place]:
    written = Written(tmp_path / "log")
    yield Place(written, target, target.grant_sink(adopts=True))
    written.log.close()


def refused(code: str, call: Callable[[], object]) -> CdcError:
    with pytest.raises(CdcError) as error:
        call()
    assert error.value.code == code, error.value
    assert error.value.remedy
    return error.value


def damage(place: Place, name: str = "a") -> None:
    place.admin(
        f"DELETE FROM {name} WHERE id = 1; UPDATE {name} SET v = 'wrong' WHERE id = 2; INSERT INTO {name} VALUES (9, 'not there')"
    )


# ------------------------------------------------------------------------------------------------------------ the exchange
def test_a_damaged_table_is_right_again_and_what_was_right_is_not_touched(place: Place) -> None:
    a = place.written.table("public.a")
    place.written.load("public.a", 1, 1, 2, 3)
    place.written.write(a.c(id=4, v="later"), a.u(id=3, v="changed"))
    place.live()
    before = dict(place.rows("a", "id, xmin::text"))
    damage(place)
    result = place.replay()["public.a"]
    assert place.rows("a") == [(1, "1"), (2, "1"), (3, "changed"), (4, "later")]
    assert (result["rows"], result["updated"], result["inserted"], result["deleted"]) == (4, 1, 1, 1)
    assert (result["before"]["rows"], result["before"]["hash"] == result["hash"]) == (4, False)
    after = dict(place.rows("a", "id, xmin::text"))
    assert {id for id in after if after[id] == before.get(id)} == {3, 4}
    place.clean()
    again = place.replay()["public.a"]
    assert again["before"] == {"rows": 4, "hash": again["hash"]}
    assert again["hash"] == result["hash"]
    assert len(place.admin("SELECT 1 FROM _cdc.replays WHERE ended_at IS NOT NULL")) == 2


def test_the_live_sink_goes_on_exactly(place: Place) -> None:
    """It stands where the replay was: nothing is applied twice, and nothing is left out."""
    a = place.written.table("public.a")
    place.written.load("public.a", 1, 1)
    place.live()
    for i in range(2, 6):
        place.written.write(a.c(id=i, v="behind"))
    result = place.replay()
    assert result["public.a"]["before"] is None  # the live sink was elsewhere
    assert place.admin("SELECT number FROM _cdc.bookmark") == [(result["checkpoint"],)]
    place.written.write(a.u(id=2, v="after"), a.d(id=1))
    place.live()
    assert place.rows("a") == [(2, "after"), (3, "behind"), (4, "behind"), (5, "behind")]


def test_some_tables_alone_are_ahead_of_a_sink_that_is_behind(place: Place) -> None:
    """B5: what has happened to them up to there is not for the live sink any more; the others go on from its bookmark."""
    a, b = place.written.table("public.a"), place.written.table("public.b")
    place.written.load("public.a", 1, 1)
    place.written.load("public.b", 1, 1)
    place.live()
    place.written.write(a.c(id=2, v="behind"), b.c(id=2, v="behind"))
    place.written.write(a.move({"id": 2}, ["v"], id=3), b.move({"id": 2}, ["v"], id=3))
    before = place.admin("SELECT number FROM _cdc.bookmark")
    place.replay(None, None, "public.a")
    assert place.admin("SELECT number FROM _cdc.bookmark") == before
    assert (place.rows("a"), place.rows("b")) == ([(1, "1"), (3, "behind")], [(1, "1")])
    place.written.write(a.u(id=1, v="after"), b.u(id=1, v="after"))
    place.live()
    assert place.rows("a") == place.rows("b") == [(1, "after"), (3, "behind")]
    assert not place.written.log.signals(0)  # the move found its row, and did not look for it twice


def test_a_running_sink_notices_that_its_rows_were_exchanged(place: Place) -> None:
    """It reads its tables anew: what it knew of them is not so any more."""
    a, log = place.written.table("public.a"), place.written.log
    place.written.load("public.a", 1, 1)
    place.live()
    last = log.last_checkpoint()
    assert last is not None
    with closing(PostgresSink("main", place.url, pipeline="shop", schemas=log.schema)) as running:
        bookmark = running.resume(log.id)
        place.replay()
        following = place.written.write(a.c(id=2, v="2"))
        with pytest.raises(CdcError) as error:
            running.begin(bookmark, following)
        assert error.value.code == "CDC-TGT-114"
        assert running.resume(log.id) == bookmark


def test_an_exchange_keeps_everything_that_belongs_to_the_table(place: Place) -> None:
    target = place.target
    target.execute(
        """
        CREATE TABLE a (id bigint PRIMARY KEY, v text CHECK (v <> 'never'), mine text DEFAULT 'own',
            n int GENERATED BY DEFAULT AS IDENTITY);
        COMMENT ON TABLE a IS 'a comment';
        CREATE INDEX a_v ON a (v);
        CREATE TABLE b (id bigint PRIMARY KEY, v text);
        CREATE TABLE ours (id int PRIMARY KEY, of bigint REFERENCES a ON DELETE CASCADE, log text);
        CREATE VIEW seen AS SELECT id, v FROM a;
        CREATE MATERIALIZED VIEW kept AS SELECT count(*) FROM a;
        CREATE TABLE audit (what text);
        CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO public.audit VALUES (TG_OP); RETURN NULL; END $$;
        CREATE TRIGGER noted AFTER INSERT OR UPDATE OR DELETE ON a FOR EACH ROW EXECUTE FUNCTION noted();
        ALTER TABLE a ENABLE ROW LEVEL SECURITY; CREATE POLICY all_of_it ON a USING (true);
        """
    )
    place.admin("CREATE PUBLICATION theirs FOR TABLE a; GRANT SELECT ON a TO PUBLIC; GRANT INSERT ON audit TO PUBLIC")
    a = place.written.table("public.a")
    place.written.load("public.a", 1, 1, 2, 3)
    place.written.load("public.b", 1, 1)
    place.live()
    place.admin("INSERT INTO ours VALUES (1, 3, 'stays'); UPDATE a SET mine = 'kept' WHERE id IN (2, 3)")
    catalogue = """
        SELECT c.oid::text, c.relowner::text, c.relacl::text, obj_description(c.oid), c.relrowsecurity::text,
          (SELECT string_agg(pg_get_indexdef(indexrelid), ';' ORDER BY indexrelid) FROM pg_index WHERE indrelid = c.oid),
          (SELECT string_agg(pg_get_constraintdef(oid), ';' ORDER BY conname) FROM pg_constraint WHERE c.oid IN (conrelid, confrelid)),
          (SELECT string_agg(tgname, ';' ORDER BY tgname) FROM pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal),
          (SELECT string_agg(polname, ';') FROM pg_policy WHERE polrelid = c.oid), pg_get_serial_sequence('a', 'n'),
          (SELECT string_agg(prrelid::text, ';') FROM pg_publication_rel WHERE prrelid = c.oid)
        FROM pg_class c WHERE c.oid = 'a'::regclass"""
    before = place.admin(catalogue)
    place.admin(
        "DELETE FROM audit; DELETE FROM ours WHERE id > 1; DELETE FROM a WHERE id = 1; UPDATE a SET v = 'wrong' WHERE id = 2;"
        "INSERT INTO a VALUES (9, 'x'); DELETE FROM audit"
    )
    result = place.replay()["public.a"]
    assert (result["updated"], result["inserted"], result["deleted"]) == (1, 1, 1)
    assert place.admin(catalogue) == before
    assert place.rows("a", "id, v, mine") == [(1, "1", "own"), (2, "1", "kept"), (3, "1", "kept")]
    assert place.rows("seen") == [(1, "1"), (2, "1"), (3, "1")]
    assert place.rows("ours", "id, log") == [(1, "stays")]
    assert sorted(place.admin("SELECT what FROM audit")) == [("DELETE",), ("INSERT",), ("UPDATE",)]
    place.written.write(a.u(id=1, v="after"))
    place.live()
    assert place.rows("a")[0] == (1, "after")


def test_tables_that_refer_to_each_other(place: Place) -> None:
    place.target.execute(
        "CREATE TABLE p (id bigint PRIMARY KEY, v text);"
        "CREATE TABLE c (id bigint PRIMARY KEY, v bigint REFERENCES p ON DELETE CASCADE, kept text)"
    )
    w = place.written
    p, c = w.table("public.p"), w.table("public.c", "id int64 key", "v int64")
    w.write(begun={"public.c": 1, "public.p": 1})
    w.write(p.r(id=1, v="1"), p.r(id=2, v="2"), c.r(id=1, v=1), c.r(id=2, v=2), finished=("public.c", "public.p"))
    place.live()
    place.admin(
        "UPDATE c SET kept = 'mine' WHERE id = 2; INSERT INTO p VALUES (7, 'extra'); UPDATE c SET v = 7 WHERE id = 2;"
        "DELETE FROM p WHERE id = 1"
    )
    result = place.replay()
    assert place.rows("p") == [(1, "1"), (2, "2")]
    assert place.rows("c", "id, v, kept") == [(1, 1, None), (2, 2, "mine")]
    assert result["public.p"]["deleted"] == 1
    assert len(place.admin("SELECT 1 FROM pg_constraint WHERE contype = 'f'")) == 1


def test_unique_values_that_rows_have_exchanged(place: Place) -> None:
    """No order of updates is right; constraints and references are as before in the end."""
    place.target.execute(
        "CREATE TABLE a (id bigint PRIMARY KEY, v text UNIQUE); CREATE TABLE ours (id int PRIMARY KEY, of bigint REFERENCES a)"
    )
    w = place.written
    w.write(begun={"public.a": 1})
    w.write(*(w.table("public.a").r(id=i, v=f"v{i}") for i in (1, 2, 3)), finished=("public.a",))
    place.live()
    place.admin(
        "UPDATE a SET v = 't' WHERE id = 1; UPDATE a SET v = 'v1' WHERE id = 2; UPDATE a SET v = 'v2' WHERE id = 1;"
        "INSERT INTO ours VALUES (1, 1)"
    )
    result = place.replay()["public.a"]
    assert place.rows("a") == [(1, "v1"), (2, "v2"), (3, "v3")]
    assert (result["updated"], result["inserted"], result["deleted"]) == (2, 0, 0)
    assert len(place.admin("SELECT 1 FROM pg_constraint WHERE contype = 'f' AND convalidated")) == 1
    assert place.admin("SELECT count(*) FROM _cdc.constraints") == [(0,)]


def test_rows_without_a_key_are_exchanged_by_number(place: Place) -> None:
    w = place.written
    k = w.table("public.k", "x numeric", "y text")
    w.write(begun={"public.k": 1})
    one, two = {"value": b"\x01", "scale": 0}, {"value": b"\x64", "scale": 2}  # 1 and 1.00
    w.write(k.r(x=one, y="a"), k.r(x=one, y="a"), k.r(x=two, y="a"), k.r(x=None, y=None), finished=("public.k",))
    place.live()
    place.admin(
        "DELETE FROM k WHERE ctid = (SELECT min(ctid) FROM k); INSERT INTO k VALUES (1.00, 'a'), (1.00, 'a'), (3, 'c')"
    )
    result = place.replay()["public.k"]
    assert sorted(place.admin("SELECT x::text, y FROM k"), key=str) == sorted(
        [("1", "a"), ("1", "a"), ("1.00", "a"), (None, None)], key=str
    )
    assert (result["rows"], result["inserted"], result["deleted"]) == (4, 1, 3)


def test_a_live_table_that_is_gone_or_lacks_a_column_comes_back(place: Place) -> None:
    w = place.written
    w.load("public.a", 1, 1)
    w.load("public.b", 1, 1)
    place.live()
    place.admin("DROP TABLE a; ALTER TABLE b DROP COLUMN v")
    place.replay()
    assert (place.rows("a"), place.rows("b")) == ([(1, "1")], [(1, "1")])
    assert place.admin("SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = 'a'::regclass") == [
        ("a_pkey",)
    ]
    w.write(w.table("public.a").c(id=2, v="2"), w.table("public.b").c(id=2, v="2"))
    place.live()
    assert place.rows("a") == place.rows("b") == [(1, "1"), (2, "2")]


def test_a_table_that_the_log_says_is_empty(place: Place) -> None:
    w = place.written
    w.write(begun={"public.a": 1}, finished=("public.a",))
    place.target.execute("CREATE TABLE a (id bigint PRIMARY KEY, v text)")
    place.live()
    place.admin("INSERT INTO a VALUES (1, 'x')")
    assert place.replay()["public.a"]["deleted"] == 1
    assert place.rows("a") == []


def test_names_that_are_hostile_and_tables_that_are_renamed(place: Place) -> None:
    w = place.written
    schema, long = 'The "schema" %s', "ü" * 31
    names = [TableId("public", 'a"b;--%'), TableId("public", long), TableId("public", "select")]
    place.rename = lambda table: TableId(schema, table.name + "'" if table.name == "select" else table.name)
    for name in map(str, names):
        w.load(name, 1, 1, 2)
    place.live()
    quoted = ['a""b;--%', long, "select'"]
    for name in quoted:
        place.admin(f'DELETE FROM "The ""schema"" %s"."{name}" WHERE id = 1'.replace("%", "%"))
    result = place.replay()
    assert [result[str(name)]["inserted"] for name in names] == [1, 1, 1]
    for name in quoted:
        assert place.rows(f'"The ""schema"" %s"."{name}"') == [(1, "1"), (2, "1")]
    place.clean()
    place.replay(Number(w.feed.number), "into % 'it' \"there\"")
    assert len(place.admin("SELECT 1 FROM pg_tables WHERE schemaname LIKE 'into%'")) == 3


def test_types_of_the_live_table_are_taken_where_it_is_wider(place: Place) -> None:
    place.target.execute(
        'CREATE DOMAIN note AS text; CREATE TABLE a (id numeric PRIMARY KEY, v note COLLATE "C", w bigint)'
    )
    w = place.written
    a = w.table("public.a", "id int64 key", "v text", "w int32")
    w.write(begun={"public.a": 1})
    w.write(a.r(id=1, v="x ", w=5), a.r(id=2, v=None, w=None), finished=("public.a",))
    place.live()
    result = place.replay()["public.a"]
    assert result["before"] == {"rows": 2, "hash": result["hash"]}
    assert (result["updated"], result["inserted"], result["deleted"]) == (0, 0, 0)


def test_a_trigger_that_changes_what_is_written_is_noticed(place: Place) -> None:
    w = place.written
    w.load("public.a", 1, 1, 2)
    place.live()
    place.admin(
        "CREATE FUNCTION alter() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.v := 'other'; RETURN NEW; END $$;"
        "CREATE TRIGGER alter BEFORE INSERT ON a FOR EACH ROW EXECUTE FUNCTION alter(); DELETE FROM a WHERE id = 1"
    )
    refused("CDC-RPL-106", place.replay)
    assert place.rows("a") == [(2, "1")]  # all or nothing
    place.admin("DROP TRIGGER alter ON a")
    place.replay()  # goes on
    assert place.rows("a") == [(1, "1"), (2, "1")]
    place.clean()


def test_rows_that_a_constraint_of_the_target_refuses(place: Place) -> None:
    w = place.written
    w.load("public.a", 1, 1, 2)
    place.live()
    place.admin("DELETE FROM a WHERE id = 1; ALTER TABLE a ADD CHECK (id > 1)")
    refused("CDC-RPL-107", place.replay)
    assert place.rows("a") == [(2, "1")]


@pytest.mark.parametrize("way", ["exchange", "truncate", "rename"])
def test_what_an_older_snapshot_sees(place: Place, way: str) -> None:
    """B7: an exchange of rows shows it the old ones; TRUNCATE and a new table under the old name show it none."""
    w = place.written
    w.load("public.a", 1, 1, 2)
    place.live()
    damage(place)
    with closing(psycopg2.connect(place.target.admin_url)) as connection, connection.cursor() as reader:
        reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        match way:
            case "exchange":
                place.replay()
            case "truncate":
                place.admin("BEGIN; CREATE TEMPORARY TABLE t AS TABLE a; TRUNCATE a; INSERT INTO a TABLE t; COMMIT")
            case "rename":
                place.admin(
                    "BEGIN; CREATE TABLE n AS TABLE a; ALTER TABLE a RENAME TO o; ALTER TABLE n RENAME TO a; COMMIT"
                )
        reader.execute("SELECT id FROM a ORDER BY 1")
        assert [id for (id,) in reader.fetchall()] == ([2, 9] if way == "exchange" else [])


def test_readers_are_not_kept_waiting(place: Place) -> None:
    """Who reads the table, and has for long, is not in the way of an exchange, nor it in theirs."""
    place.written.load("public.a", 1, 1, 2)
    place.live()
    damage(place)
    with closing(psycopg2.connect(place.target.admin_url)) as connection, connection.cursor() as reader:
        reader.execute("SELECT count(*) FROM a")
        place.replay()
        reader.execute("SELECT count(*) FROM a")
        assert reader.fetchall() == [(2,)]


# -------------------------------------------------------------------------------------------------------------- the horizon
def test_a_past_checkpoint_beside_the_live_tables(place: Place) -> None:
    w = place.written
    a = w.table("public.a")
    w.load("public.a", 1, 1, 2)
    then = w.write(a.u(id=1, v="then"))
    w.load("public.a", 2, 5)
    place.live()
    result = place.replay(Number(then.number), "past")
    assert result["checkpoint"] == then.number
    assert place.rows("past.a") == [(1, "then"), (2, "1")]
    assert place.rows("a") == [(5, "2")]
    assert "as of checkpoint" in place.admin("SELECT obj_description('past.a'::regclass)")[0][0]
    refused("CDC-RPL-108", partial(place.replay, Number(then.number), "past"))
    place.replay(None, "now")
    assert place.rows("now.a") == [(5, "2")]
    assert place.admin("SELECT sink FROM _cdc.bookmark") == [("main",)]


def test_a_checkpoint_inside_a_transaction_means_the_cut_before_it(place: Place) -> None:
    w = place.written
    a = w.table("public.a")
    w.load("public.a", 1, 1)
    cut = w.write(a.c(id=2, v="2"))
    inside = w.write(a.c(id=3, v="3"), cut=False)
    w.write(a.c(id=4, v="4"))
    assert place_of(w, Number(inside.number)) == (cut.number, cut.number, None)
    place.live()
    place.replay(Number(inside.number), "past")
    assert place.rows("past.a") == [(1, "1"), (2, "2")]


def place_of(w: Written, moment: Moment) -> tuple[int, int, int | None]:
    found, _ = find(w.log, everything, moment)
    return found.cut.number, found.last.number, found.sequence


def at(number: int) -> Lsn:
    """Just before the event with this number."""
    return Lsn(number * 200, f"position:event {number}")


def test_a_position_inside_a_checkpoint_cuts_by_transaction(place: Place) -> None:
    """Events of checkpoints without a cut are taken up to the first transaction that goes on behind it."""
    w = place.written
    a = w.table("public.a")
    w.load("public.a", 1, 1)  # event 1
    w.write(a.c(id=2, v="2"), a.c(id=3, v="3"))  # 2 and 3
    cut = w.log.last_checkpoint()
    w.write(a.c(id=4, v="4"), a.c(id=5, v="5"), cut=False)  # 4 and 5
    last = w.write(a.c(id=6, v="6"), a.c(id=7, v="7"))  # 6 and 7
    w.write(a.c(id=8, v="8"))
    assert cut is not None
    assert place_of(w, at(4)) == (cut.number, cut.number, None)
    assert place_of(w, at(7)) == (cut.number, last.number, 7)
    place.live()
    place.replay(at(7), "past")
    assert place.rows("past.a", "id") == [(i,) for i in range(1, 7)]
    place.replay(at(5), "earlier")
    assert place.rows("earlier.a", "id") == [(i,) for i in range(1, 5)]
    assert place_of(w, at(99))[2] is None


def test_what_was_abandoned_is_not_before_any_place(place: Place) -> None:
    """B4: a later epoch continues the cut; what came between has not happened."""
    w = place.written
    a = w.table("public.a")
    w.load("public.a", 1, 1)
    cut = w.write(a.c(id=2, v="2"))
    gone = w.write(a.c(id=3, v="gone"), cut=False)
    w.write(a.c(id=4, v="gone"), cut=False)
    again = w.write(a.c(id=5, v="5"), continues=cut.mark)
    assert place_of(w, Number(gone.number))[0] == cut.number
    w.write(a.c(id=6, v="6"))
    place.live()
    place.replay(Number(again.number), "past")
    assert place.rows("past.a", "id") == [(1,), (2,), (5,)]
    place.replay()
    assert place.rows("a", "id") == [(1,), (2,), (5,), (6,)]


def test_a_load_that_was_abandoned_has_not_begun(place: Place) -> None:
    """B4: neither the beginning nor the end of a load that stood between the last cut and a new epoch counts."""
    w = place.written
    w.load("public.a", 1, 1)
    w.load("public.b", 1, 1)
    cut = w.write(w.table("public.a").c(id=2, v="2"))
    w.write(begun={"public.a": 2}, cut=False)
    w.write(begun={"public.b": 2}, finished=("public.a",), cut=False)
    again = w.write(w.table("public.a").c(id=3, v="3"), continues=cut.mark)
    begins = find(w.log, everything, Number(again.number))[1].begins
    assert begins == {TableId("public", "a"): 0, TableId("public", "b"): 2}
    place.live()
    place.replay(Number(again.number), "past")
    assert place.rows("past.a") == [(1, "1"), (2, "2"), (3, "3")]


def test_a_place_inside_a_load_is_refused_by_name(place: Place) -> None:
    w = place.written
    w.load("public.a", 1, 1)
    w.load("public.b", 1, 1)
    begun = w.write(begun={"public.a": 2})
    error = refused("CDC-RPL-103", lambda: place_of(w, Number(begun.number)))
    assert "public.a" in error.detail
    assert "public.b" not in error.detail
    assert f"checkpoint:{begun.number - 1}" in error.remedy
    assert find(w.log, TableId("public", "b").__eq__, Number(begun.number))[1].begins == {TableId("public", "b"): 2}
    w.write(w.table("public.a").r(id=7, v="7"), finished=("public.a",))
    place.live()
    place.replay(Number(begun.number - 1), "past")
    assert place.rows("past.a") == [(1, "1")]


def test_a_past_that_lacks_a_row_is_refused_and_one_that_gets_it_is_not(place: Place) -> None:
    w = place.written
    a = w.table("public.a")
    w.load("public.a", 1, 1)
    lacking = w.write(a.u(["v"], id=7, v="unknown"))
    w.write(a.u(["v"], id=8, v="unknown"), cut=False)
    w.write(a.c(id=9, v="9"), cut=False)
    w.write(a.d(id=8))
    last = w.write(a.c(id=10, v="10"))
    error = refused("CDC-RPL-105", partial(place.replay, Number(last.number), "past"))
    assert "public.a" in error.detail
    place.rebuild().discard()
    place.replay(Number(lacking.number - 1), "past")
    w.load("public.a", 2, 1)
    w.write(a.u(["v"], id=8, v="unknown"), cut=False)
    last = w.write(a.d(id=8), a.c(id=9, v="9"))
    place.replay(Number(last.number), "mended")
    assert place.rows("mended.a") == [(1, "2"), (9, "9")]


def test_places_that_are_not_there(place: Place) -> None:
    w = place.written
    w.write()
    w.load("public.a", 1, 1)
    refused("CDC-RPL-102", lambda: place_of(w, Number(99)))
    refused("CDC-RPL-104", lambda: place_of(w, Number(0)))


def test_beyond_retention_the_remedy_works(tmp_path: Path, target: Database) -> None:
    written = Written(tmp_path / "log", APPLIED)
    place = Place(written, target, target.grant_sink(adopts=True))
    try:
        a = written.table("public.a")
        written.load("public.a", 1, 1)
        then = written.write(a.c(id=2, v="2"))
        place.live()
        written.log.retain()
        error = refused("CDC-LOG-108", place.replay)
        assert "cdc reload public.a" in error.remedy
        refused("CDC-LOG-108", partial(place.replay, Number(then.number), "past"))
        reload = written.load("public.a", 2, 1, 2, 3)
        place.live()
        written.log.retain()  # waits for the replay
        damage(place)
        place.replay()
        assert place.rows("a") == [(1, "2"), (2, "2"), (3, "2")]
        written.write()
        place.replay(Number(reload + 1), "past")
        assert len(place.rows("past.a")) == 3
        written.write()
        place.live()
        written.log.retain()
        assert int(written.log.status()["first"]) > reload  # nothing waits for it any more
    finally:
        written.log.close()


# ------------------------------------------------------------------------------------------------------------- in between
def test_a_replay_that_was_begun_goes_on_or_is_discarded(place: Place) -> None:
    w = place.written
    w.load("public.a", 1, 1, 2)
    place.live()
    log, rebuild = w.log, place.rebuild()
    id, planned = plan(rebuild, log, None)
    assert id is None
    id = rebuild.begin(log.id, sorted(planned.start.begins), planned.to_json())
    stop = iter((False, False, False, False, True))
    with closing(rebuild.sink):
        assert Replay(rebuild, log, id, planned, lambda: next(stop, True), pace=Pace(0.01)).run() is None
    assert plan(place.rebuild(), log, None) == (id, planned)
    error = refused("CDC-RPL-101", partial(place.replay, Number(1), "past"))
    assert "everything" in error.detail
    assert place.rebuild().discard()
    assert not place.rebuild().discard()
    place.clean()
    place.replay(Number(1), "past")
    assert len(place.rows("past.a")) == 2


def test_a_sink_that_was_never_started_has_nothing_to_exchange(place: Place) -> None:
    place.written.load("public.a", 1, 1)
    refused("CDC-RPL-109", place.replay)
    place.replay(None, "beside")
    assert place.rows("beside.a") == [(1, "1")]


def test_two_places_of_one_name_are_refused(place: Place) -> None:
    place.written.load("x.a", 1, 1)
    place.written.load("y.a", 1, 1)
    refused("CDC-TGT-124", partial(place.replay, None, "beside"))
    place.live()
    place.replay()  # beside each other, they have names of their own
    place.clean()


def test_the_bookkeeping_of_an_older_version_is_brought_up_to_date(place: Place) -> None:
    place.written.load("public.a", 1, 1)
    place.live()
    place.admin(
        "ALTER TABLE _cdc.bookmark DROP COLUMN era; ALTER TABLE _cdc.tables DROP COLUMN schema_id; DROP TABLE _cdc.replays;"
        "UPDATE _cdc.meta SET version = 1"
    )
    place.written.write(place.written.table("public.a").c(id=2, v="2"))
    place.live()
    place.replay()
    assert place.rows("a") == [(1, "1"), (2, "2")]


def test_dropping_the_sink_drops_its_replays(place: Place) -> None:
    place.written.load("public.a", 1, 1)
    place.live()
    place.replay()
    log = place.written.log
    with closing(PostgresSink("main", place.url, pipeline="shop", schemas=log.schema)) as sink:
        sink.drop()
    assert place.admin("SELECT 1 FROM pg_namespace WHERE nspname = '_cdc'") == []
