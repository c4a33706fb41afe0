"""Tables of a target follow the versions of their source's: each kind of change, each policy, and what is in the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from cdc.avro import decimal_bytes
from cdc.errors import CdcError, Unavailable
from cdc.table import Column, LogicalType, TableId
from sinks.changes import Changes
from sinks.postgres.sink import PostgresSink
from sinks.sink import Evolution
from tests.events import Feed, Table
from tests.servers import Database, execute

pytestmark = pytest.mark.majors(16, 18)

T = TableId("public", "t")


@pytest.fixture
def feed(target: Database) -> Iterator[Feed]:
    feed, policies = Feed(), dict[TableId, Evolution]()
    url = target.grant_sink(adopts=True)
    sink = PostgresSink(
        "warehouse",
        url,
        pipeline="shop",
        schemas=feed.schemas.__getitem__,
        evolution=lambda table: policies.get(table, Evolution()),
        lock_timeout_s=1.0,
    )
    feed.resume(sink)
    feed.policies = policies  # type: ignore[attr-defined]
    yield feed
    sink.close()


def policy(feed: Feed, **kinds: Any) -> None:
    feed.policies[T] = Evolution(**kinds)  # type: ignore[attr-defined]


def read(target: Database, sql: str) -> list[tuple[Any, ...]]:
    return execute(target.admin_url, sql)


def rows(target: Database, columns: str = "*") -> list[tuple[Any, ...]]:
    return read(target, f"SELECT {columns} FROM public.t ORDER BY 1")


def shape(target: Database) -> dict[str, str]:
    """Column → type, with what is more."""
    found = read(
        target,
        "SELECT attname, format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' not null' ELSE '' END FROM pg_attribute"
        " WHERE attrelid = 'public.t'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
    )
    return dict(found)


def keys(target: Database) -> list[str]:
    """The primary key and unique indexes."""
    found = read(
        target,
        "SELECT CASE WHEN indisprimary THEN 'primary ' ELSE '' END || (SELECT string_agg(a.attname, ',' ORDER BY k.n) FROM"
        " unnest(i.indkey::int2[]) WITH ORDINALITY AS k (num, n) JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num)"
        " FROM pg_index i WHERE indrelid = 'public.t'::regclass AND indisunique ORDER BY 1",
    )
    return [row[0] for row in found]


def table(feed: Feed, *columns: str | Column, key: tuple[str, ...] | None = None) -> Table:
    return feed.table(T, *columns, key=key)


def load(feed: Feed, version: Table, *groups: Any, generation: int = 1) -> None:
    feed.apply(*groups, begun=[version], finished=[version], generation=generation)


def refused(feed: Feed, code: str, *events: Any, **more: Any) -> CdcError:
    """The error of these events, after which the sink goes on from its bookmark."""
    with pytest.raises(CdcError) as error:
        feed.apply(*events, **more)
    assert error.value.code == code, error.value
    assert error.value.remedy
    feed.number -= 1
    feed.resume(feed.sink)
    return error.value


# ------------------------------------------------------------------------------------------------------------------ columns
def test_every_version_within_one_transaction(feed: Feed, target: Database) -> None:
    one = table(feed, "id int32 key", "a int32 not null", "b text")
    two = table(feed, "id int32 key", "a int64", "b text", "c boolean")
    three = table(feed, "id int32 key", "a int64", "c boolean")
    load(feed, one, one.r(id=1, a=1, b="x"))
    feed.checkpoints = [  # type: ignore[attr-defined]
        feed.checkpoint([*one.c(id=2, a=2, b="y"), *one.u(id=1, a=3, b="z")], cut=False),
        feed.checkpoint([*two.c(id=3, a=2**40, b="w", c=True), *two.u(["b"], id=1, a=None)], cut=False),
        feed.checkpoint([*three.c(id=4, a=4, c=False), *three.u(id=2, a=5, c=True), *three.d(id=3)]),
    ]
    together(feed)
    assert shape(target) == {"id": "integer not null", "a": "bigint", "b": "text", "c": "boolean"}
    assert rows(target) == [(1, None, "z", None), (2, 5, "y", True), (4, 4, None, False)]


def together(feed: Feed) -> None:
    """Several checkpoints in one transaction of the target."""
    changes = Changes(feed.schemas.__getitem__)
    checkpoints = feed.checkpoints  # type: ignore[attr-defined]
    for checkpoint, batch in checkpoints:
        changes.add(checkpoint, batch, feed.sink.wants)
    assert feed.bookmark is not None
    feed.sink.begin(feed.bookmark, checkpoints[-1][0])
    for piece in changes.pieces:
        feed.sink.merge(piece)
    feed.bookmark = feed.sink.commit(checkpoints[-1][0])


def test_a_dropped_column_is_kept_and_takes_nulls(feed: Feed, target: Database) -> None:
    one = table(feed, "id int32 key", "gone int32 not null", "v text")
    load(feed, one, one.r(id=1, gone=7, v="a"))
    two = table(feed, "id int32 key", "v text")
    feed.apply(two.u(id=1, v="b"), two.c(id=2, v="c"))
    assert rows(target) == [(1, 7, "b"), (2, None, "c")]
    load(feed, two, two.r(id=1, v="b"), two.r(id=2, v="c"), generation=2)
    assert rows(target) == [(1, 7, "b"), (2, None, "c")]


def test_a_dropped_column_goes_where_the_policy_says_so(feed: Feed, target: Database) -> None:
    policy(feed, dropped="drop")
    one = table(feed, "id int32 key", "gone int32 not null", "v text")
    load(feed, one, one.r(id=1, gone=7, v="a"))
    execute(target.admin_url, "ALTER TABLE public.t ADD theirs text DEFAULT 'kept'")
    two = table(feed, "id int32 key", "v text")
    feed.apply(two.c(id=2, v="c"))
    assert shape(target) == {"id": "integer not null", "v": "text", "theirs": "text"}
    assert rows(target) == [(1, "a", "kept"), (2, "c", "kept")]
    three = table(feed, "id int32 key", "w text")  # renamed: loaded anew
    load(feed, three, three.r(id=1, w="a"), three.r(id=2, w="c"), generation=2)
    assert shape(target) == {"id": "integer not null", "theirs": "text", "w": "text"}
    assert rows(target, "id, w") == [(1, "a"), (2, "c")]


def test_a_column_that_is_dropped_and_added_again(feed: Feed, target: Database) -> None:
    one = table(feed, "id int32 key", "v text")
    load(feed, one, one.r(id=1, v="a"))
    two = table(feed, "id int32 key")
    feed.apply(two.c(id=2))
    three = table(feed, "id int32 key", "v int32")
    load(feed, three, three.r(id=1), three.r(id=2, v=2), generation=2)
    assert rows(target) == [(1, None), (2, "2")]


@pytest.mark.parametrize(
    ("old", "new", "found", "values"),
    [
        ("int32", "int64", "bigint", (5, 2**40, [(1, 5), (2, 2**40)])),
        ("int64", "int32", "bigint", (2**40, 5, [(1, 2**40), (2, 5)])),
        ("int32", "text", "text", (5, "x", [(1, "5"), (2, "x")])),
        ("text", "int32", "text", ("x", 5, [(1, "x"), (2, "5")])),
        ("bytes", "int32", "text", (b"a", 5, [(1, "\\x61"), (2, "5")])),
        ("int64", "decimal(5,2)", "numeric", (2**40, decimal_bytes(125), [(1, 2**40), (2, 1.25)])),
        ("boolean", "timestamptz", "text", (True, "2020-01-01T00:00:00.000000Z", None)),
    ],
)
def test_a_type_becomes_one_that_holds_both(
    feed: Feed, target: Database, old: str, new: str, found: str, values: tuple[Any, Any, Any]
) -> None:
    one, two = table(feed, "id int32 key", f"v {old}"), table(feed, "id int32 key", f"v {new}")
    load(feed, one, one.r(id=1, v=values[0]))
    feed.apply(two.c(id=2, v=values[1]))
    assert shape(target)["v"] == found
    if values[2] is not None:
        assert rows(target) == values[2]
    load(feed, two, two.r(id=1, v=values[1]), two.r(id=2, v=values[1]), generation=2)
    assert len(set(rows(target, "v"))) == 1


def test_a_longer_varchar_rewrites_nothing(feed: Feed, target: Database) -> None:
    def sized(length: int) -> Table:
        return table(feed, "id int32 key", Column("v", LogicalType("text"), f"character varying({length})"))

    load(feed, sized(5), sized(5).r(id=1, v="a"))
    file = "SELECT pg_relation_filenode('public.t')"
    before = read(target, file)
    feed.apply(sized(50).c(id=2, v="b" * 50))
    assert shape(target)["v"] == "character varying(50)"
    assert read(target, file) == before


def test_a_wider_key_in_the_middle_of_a_load(feed: Feed, target: Database) -> None:
    one = table(feed, "id int32 key", "v text")
    load(feed, one, *(one.r(id=i, v="old") for i in range(4)))
    feed.apply(one.r(id=1, v="new"), begun=[one], generation=2)
    two = table(feed, "id int64 key", "v text")
    feed.apply(two.c(id=2**40, v="new"))
    three = table(feed, "id text key", "v text")
    feed.apply(three.c(id="x", v="new"), finished=[three])
    assert rows(target) == [("1", "new"), (str(2**40), "new"), ("x", "new")]


# --------------------------------------------------------------------------------------------------------------------- keys
def test_another_key(feed: Feed, target: Database) -> None:
    """What comes between the change and the load is the load's. Rows of the old key stay until its end, but for twins."""
    one = table(feed, "id int32 key", "code text", "v text")
    load(feed, one, *(one.r(id=i, code=code, v="old") for i, code in enumerate(["a", "b", "twin", "twin", None])))
    two = table(feed, "id int32", "code text", "v text", key=("code",))
    assert feed.apply(two.c(id=9, code="between", v="x")) == []
    assert len(rows(target)) == 5
    assert keys(target) == ["primary id"]
    feed.apply(begun=[two], generation=2)
    assert [row[1] for row in rows(target)] == ["a", "b", None]
    feed.apply(two.r(id=7, code="a", v="new"), two.r(id=7, code="c", v="new"))
    feed.resume(feed.sink)
    assert [row[1:] for row in rows(target)] == [("b", "old"), (None, "old"), ("a", "new"), ("c", "new")]
    feed.apply(two.u(id=8, code="c", v="newer"), two.r(id=9, code="between", v="x"), finished=[two])
    assert rows(target) == [(7, "a", "new"), (8, "c", "newer"), (9, "between", "x")]
    assert keys(target) == ["primary code"]
    assert shape(target) == {"id": "integer", "code": "text not null", "v": "text"}
    feed.apply(two.c(id=7, code="d", v="same id"))


def test_a_renamed_key_column(feed: Feed, target: Database) -> None:
    one = table(feed, "id int32 key", "v text")
    load(feed, one, one.r(id=1, v="a"), one.r(id=2, v="b"))
    two = table(feed, "nr int32 key", "v text")
    feed.apply(two.c(nr=3, v="c"))
    feed.apply(two.r(nr=1, v="a"), two.r(nr=2, v="b"), begun=[two], generation=2)
    assert len(rows(target)) == 4
    feed.apply(two.r(nr=3, v="c"), finished=[two])
    assert rows(target, "nr, v, id") == [(1, "a", None), (2, "b", None), (3, "c", None)]
    assert keys(target) == ["primary nr"]


def test_a_key_that_goes_and_one_that_comes(feed: Feed, target: Database) -> None:
    one = table(feed, "id int32 key", "v text")
    load(feed, one, one.r(id=1, v="a"))
    two = table(feed, "id int32", "v text")
    feed.apply(two.c(id=1, v="a"))
    load(feed, two, two.r(id=1, v="a"), two.r(id=1, v="a"), two.r(v="b"), generation=2)
    assert rows(target) == [(1, "a"), (1, "a"), (None, "b")]
    assert keys(target) == []
    feed.apply(two.c(id=1, v="a"), two.d(v="b"))
    three = table(feed, "id int32 key", "v text")
    feed.apply(three.d(id=1))
    assert len(rows(target)) == 3
    load(feed, three, three.r(id=1, v="z"), three.r(id=5, v="e"), generation=3)
    assert rows(target) == [(1, "z"), (5, "e")]
    assert keys(target) == ["primary id"]


def test_another_key_while_a_load_runs_waits_for_the_next(feed: Feed, target: Database) -> None:
    one = table(feed, "id int32 key", "code int32")
    load(feed, one, one.r(id=1, code=1))
    feed.apply(one.r(id=2, code=1), begun=[one], generation=2)
    two = table(feed, "id int32", "code int32 key")
    assert feed.apply(two.c(id=3, code=3), finished=[two]) == []
    assert rows(target) == [(1, 1), (2, 1)]
    feed.resume(feed.sink)
    load(feed, two, two.r(id=2, code=1), two.r(id=3, code=3), generation=3)
    assert rows(target) == [(2, 1), (3, 3)]
    assert keys(target) == ["primary code"]
    assert read(target, "SELECT count(*) FROM pg_class WHERE relname LIKE 'seen%'") == [(0,)]


def test_a_key_that_changes_again_before_the_load_has_ended(feed: Feed, target: Database) -> None:
    one = table(feed, "id int32 key", "a int32", "b int32")
    load(feed, one, one.r(id=1, a=1, b=1), one.r(id=2, a=1, b=2))
    two = table(feed, "id int32", "a int32 key", "b int32 key")
    feed.apply(two.r(id=1, a=1, b=1), begun=[two], generation=2)
    three = table(feed, "id int32", "a int32", "b int32 key")
    load(feed, three, three.r(id=1, a=1, b=1), three.r(id=2, a=1, b=2), generation=3)
    assert keys(target) == ["primary b"]
    assert rows(target) == [(1, 1, 1), (2, 1, 2)]


def test_a_suspended_table_is_asked_for_by_the_next_process(feed: Feed, target: Database) -> None:
    one, two = table(feed, "id int32 key", "v int32"), table(feed, "id int32", "v int32 key")
    load(feed, one, one.r(id=1, v=1))
    assert feed.apply(two.c(id=1, v=2)) == []
    assert feed.sink.suspended() == []
    assert isinstance(feed.sink, PostgresSink)
    other = PostgresSink("warehouse", feed.sink._url, pipeline="shop", schemas=feed.schemas.__getitem__)
    other.resume(feed.log_id)
    assert other.suspended() == [T]
    other.close()


def test_foreign_keys_follow_a_load_with_another_key(feed: Feed, target: Database) -> None:
    one = table(feed, "id int32 key", "code int32")
    load(feed, one, one.r(id=1, code=5))
    execute(
        target.admin_url,
        """ALTER TABLE public.t ADD UNIQUE (code); CREATE TABLE public.refers (c int REFERENCES public.t (code));
           INSERT INTO public.refers VALUES (5); DO $$ BEGIN EXECUTE (SELECT format('ALTER TABLE public.refers OWNER TO %I',
           tableowner) FROM pg_tables WHERE tablename = 't'); END $$""",
    )
    feed.resume(feed.sink)
    two = table(feed, "id int32", "code int32 key")
    load(feed, two, two.r(id=1, code=5), generation=2)
    assert read(target, "SELECT count(*) FROM pg_constraint WHERE conname = 'refers_c_fkey'") == [(1,)]
    assert sorted(keys(target)) == ["code"]


# ------------------------------------------------------------------------------------------------------------------ stopping
@pytest.mark.parametrize(
    ("kind", "columns", "by_hand"),
    [
        ("added", ("id int32 key", "v text", "w int32"), 'ADD COLUMN "w" integer'),
        ("dropped", ("id int32 key",), 'DROP COLUMN "v"'),
        ("retyped", ("id int32 key", "v bytes"), 'ALTER COLUMN "v" TYPE text'),
    ],
)
def test_a_policy_that_stops(feed: Feed, target: Database, kind: str, columns: tuple[str, ...], by_hand: str) -> None:
    policy(feed, **{kind: "stop"})
    one = table(feed, "id int32 key", "v text" if kind != "retyped" else "v int32")
    load(feed, one, one.r(id=1))
    two = table(feed, *columns)
    for _ in range(2):
        error = refused(feed, "CDC-TGT-126", two.c(id=2))
        assert by_hand in (error.remedy or "")
    assert error.remedy is not None
    execute(target.admin_url, error.remedy[: error.remedy.index(";")])
    feed.apply(two.c(id=2))
    assert len(rows(target)) == 2


def test_a_policy_that_stops_at_another_key(feed: Feed, target: Database) -> None:
    policy(feed, rekeyed="stop")
    one, two = table(feed, "id int32 key", "v int32"), table(feed, "id int32", "v int32 key")
    load(feed, one, one.r(id=1, v=1))
    error = refused(feed, "CDC-TGT-126", begun=[two], generation=2)
    assert "its key was (id) and is (v) now" in error.detail
    policy(feed)
    load(feed, two, two.r(id=1, v=1), generation=2)
    assert keys(target) == ["primary v"]


# --------------------------------------------------------------------------------------------------------- tables of others
def test_a_table_that_was_adopted_loses_nothing(feed: Feed, target: Database) -> None:
    policy(feed, dropped="drop")
    target.execute("CREATE TABLE public.t (id int PRIMARY KEY, v int NOT NULL, w int)")
    one = table(feed, "id int32 key", "v int32 not null", "w int32")
    load(feed, one, one.r(id=1, v=1, w=1))
    two = table(feed, "id int32 key", "w int64")
    feed.apply(two.c(id=2, w=2**40))
    assert shape(target) == {"id": "integer not null", "v": "integer", "w": "bigint"}
    assert rows(target) == [(1, 1, 1), (2, None, 2**40)]


def test_the_key_of_a_table_that_was_adopted_is_changed_by_its_owner(feed: Feed, target: Database) -> None:
    target.execute("CREATE TABLE public.t (id int PRIMARY KEY, v int)")
    one, two = table(feed, "id int32 key", "v int32"), table(feed, "nr int32 key", "v int32")
    load(feed, one, one.r(id=1, v=1))
    feed.apply(two.c(nr=2, v=2))
    error = refused(feed, "CDC-TGT-121", begun=[two], generation=2)
    assert error.remedy is not None
    by_hand = error.remedy[error.remedy.index("ALTER") : error.remedy.index("; drop the") + 1]
    execute(
        target.admin_url,
        by_hand + "ALTER TABLE public.t DROP CONSTRAINT t_pkey; ALTER TABLE public.t ALTER id DROP NOT NULL",
    )
    load(feed, two, two.r(nr=1, v=1), two.r(nr=2, v=2), generation=2)
    assert rows(target, "nr, v") == [(1, 1), (2, 2)]


@pytest.mark.parametrize("made", [True, False], ids=["made", "adopted"])
@pytest.mark.parametrize("kind", ["VIEW", "MATERIALIZED VIEW"])
def test_a_view_in_the_way(feed: Feed, target: Database, made: bool, kind: str) -> None:
    if not made:
        target.execute("CREATE TABLE public.t (id int PRIMARY KEY, v int)")
    one, two = table(feed, "id int32 key", "v int32"), table(feed, "id int32 key", "v int64", "w text")
    load(feed, one, one.r(id=1, v=1))
    execute(target.admin_url, f'CREATE {kind} public."Their view" AS SELECT id, v + 1 AS more FROM public.t')
    for _ in range(2):
        error = refused(feed, "CDC-TGT-125", two.c(id=2, v=2**40, w="x"))
        assert f'{kind.lower()} public."Their view" uses column v' in error.detail
        assert shape(target) == {"id": "integer not null", "v": "integer"}
    assert error.remedy is not None
    keep, drop = error.remedy.split("(", 1)[1].split("), ")[0], error.remedy.split("), ")[1].split(";")[0]
    ((definition,),) = read(target, keep)
    execute(target.admin_url, drop)
    feed.apply(two.c(id=2, v=2**40, w="x"))
    execute(target.admin_url, f'CREATE {kind} public."Their view" AS {definition}')
    assert read(target, 'SELECT * FROM public."Their view" ORDER BY 1') == [(1, 2), (2, 2**40 + 1)]


def test_a_view_on_a_column_that_is_dropped(feed: Feed, target: Database) -> None:
    policy(feed, dropped="drop")
    one, two = table(feed, "id int32 key", "v int32"), table(feed, "id int32 key")
    load(feed, one, one.r(id=1, v=1))
    execute(target.admin_url, "CREATE VIEW public.theirs AS SELECT v FROM public.t")
    error = refused(feed, "CDC-TGT-125", two.c(id=2))
    assert "view public.theirs uses column v" in error.detail
    policy(feed, dropped="keep")
    feed.apply(two.c(id=2))
    assert rows(target) == [(1, 1), (2, None)]


def test_what_else_depends_on_a_column(feed: Feed, target: Database) -> None:
    one, two = table(feed, "id int32 key", "v int32"), table(feed, "id int32 key", "v int64")
    load(feed, one, one.r(id=1, v=1))
    execute(target.admin_url, "CREATE POLICY p ON public.t USING (v > 0)")
    assert "policy p on table public.t" in refused(feed, "CDC-TGT-125", two.c(id=2, v=2)).detail
    execute(
        target.admin_url, "DROP POLICY p ON public.t; ALTER TABLE public.t ADD g int GENERATED ALWAYS AS (v * 2) STORED"
    )
    assert "0A000" in refused(feed, "CDC-TGT-121", two.c(id=2, v=2)).detail
    execute(target.admin_url, "ALTER TABLE public.t DROP g")
    feed.apply(two.c(id=2, v=2))


def test_a_reader_in_the_way_is_waited_for(feed: Feed, target: Database) -> None:
    """Nothing is half done, and the next attempt goes on."""
    one, two = table(feed, "id int32 key"), table(feed, "id int32 key", "v text")
    load(feed, one, one.r(id=1))
    reader = psycopg2.connect(target.admin_url)
    try:
        reader.cursor().execute("SELECT * FROM public.t")
        with pytest.raises(Unavailable) as error:
            feed.apply(two.c(id=2, v="x"))
        assert error.value.code == "CDC-TGT-115"
    finally:
        reader.close()
    feed.number -= 1
    feed.resume(feed.sink)
    feed.apply(two.c(id=2, v="x"))
    assert rows(target) == [(1, None), (2, "x")]
