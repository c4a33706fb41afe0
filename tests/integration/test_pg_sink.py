"""The Postgres sink against real servers: what ends up in the target, whatever the events were."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from cdc.avro import INT32_MAX, INT32_MIN, INT64_MAX, INT64_MIN, decimal_bytes
from cdc.errors import CdcError, Rejected, Unavailable
from cdc.table import Column, LogicalType, TableId
from sinks.postgres.sink import PostgresSink
from sinks.sink import Missed
from tests.events import Feed, Table
from tests.servers import Database, execute

pytestmark = pytest.mark.majors(16, 18)


@pytest.fixture
def feed(target: Database) -> Iterator[Feed]:
    feed = Feed()
    url = target.grant_sink(adopts=True)
    sink = PostgresSink("warehouse", url, pipeline="shop", schemas=feed.schemas.__getitem__)
    feed.resume(sink)
    yield feed
    sink.close()


def read(target: Database, sql: str) -> list[tuple[Any, ...]]:
    return execute(target.admin_url, sql)


def rows(target: Database, table: Table, order: str = "1") -> list[tuple[Any, ...]]:
    return read(target, f"SELECT * FROM {table.id} ORDER BY {order}")


def orders(feed: Feed) -> Table:
    return feed.table("public.orders", "id int64 key", "code int32", "note text", "big text")


def loaded(feed: Feed, table: Table, *groups: Any, generation: int = 1) -> None:
    feed.apply(*groups, begun=[table], finished=[table], generation=generation)


def test_creates_the_table_and_follows_inserts_updates_and_deletes(feed: Feed, target: Database) -> None:
    table = orders(feed)
    loaded(feed, table, table.r(id=1, code=1, note="a\tb\\n\n\r\"'%s"), table.r(id=2, note=""))
    assert rows(target, table) == [(1, 1, "a\tb\\n\n\r\"'%s", None), (2, None, "", None)]
    feed.apply(table.u(id=1, code=2, note="x"), table.c(id=3), table.d(id=2), table.c(id=4), table.d(id=4))
    assert rows(target, table) == [(1, 2, "x", None), (3, None, None, None)]
    key = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'p' AND conrelid = 'public.orders'::regclass"
    assert read(target, key) == [("PRIMARY KEY (id)",)]


def test_null_unchanged_and_absent_are_three_things(feed: Feed, target: Database) -> None:
    table = orders(feed)
    loaded(feed, table, *(table.r(id=i, code=i, note="n", big="TOAST") for i in (1, 2, 3)))
    execute(target.admin_url, "ALTER TABLE public.orders ADD COLUMN theirs text DEFAULT 'kept'")
    feed.apply(
        table.u(["big"], id=1, code=10, note=None),
        table.u(id=2, code=20, note=None, big=None),
        table.u(["big", "note"], id=3, code=30),
    )
    assert rows(target, table) == [
        (1, 10, None, "TOAST", "kept"),
        (2, 20, None, None, "kept"),
        (3, 30, "n", "TOAST", "kept"),
    ]


def test_key_moves_take_unchanged_columns_along_through_chains(feed: Feed, target: Database) -> None:
    table = orders(feed)
    loaded(feed, table, *(table.r(id=i, code=i, note="n", big=f"big {i}") for i in (1, 2, 3)))
    feed.apply(  # 1 → 10 → 20; 2 → 1; 3 → 2
        table.move({"id": 1}, ["big"], id=10, code=1, note="a"),
        table.move({"id": 10}, ["big", "note"], id=20, code=2),
        table.move({"id": 2}, ["big"], id=1, code=3, note="b"),
        table.move({"id": 3}, ["big"], id=2, code=4, note="c"),
        table.u(["big"], id=2, code=5, note="d"),
    )
    assert rows(target, table) == [(1, 3, "b", "big 2"), (2, 5, "d", "big 3"), (20, 2, "a", "big 1")]


def test_keys_exchanged_in_one_transaction(feed: Feed, target: Database) -> None:
    table = orders(feed)
    loaded(feed, table, *(table.r(id=i, note="n", big=f"big {i}") for i in (1, 2)))
    feed.apply(
        table.move({"id": 1}, ["big"], id=0, note="n"),
        table.move({"id": 2}, ["big"], id=1, note="n"),
        table.move({"id": 0}, ["big"], id=2, note="n"),
    )
    assert [(row[0], row[3]) for row in rows(target, table)] == [(1, "big 2"), (2, "big 1")]


def test_a_gap_without_its_row_is_missed_and_inserts_nothing(feed: Feed, target: Database) -> None:
    table = orders(feed)
    loaded(feed, table, table.r(id=1, big="x"))
    missed = feed.apply(
        table.u(["big"], id=1, code=1), table.u(["big"], id=2, code=2), table.move({"id": 8}, ["big"], id=9, code=9)
    )
    assert [(found.table, set(found.keys)) for found in missed] == [
        (table.id, {table.key({"id": 2}), table.key({"id": 9})})
    ]
    assert rows(target, table) == [(1, 1, None, "x")]


def test_a_gap_while_loading_is_dropped_in_silence(feed: Feed, target: Database) -> None:
    table = orders(feed)
    feed.apply(table.r(id=1, big="x"), begun=[table])
    assert feed.apply(table.u(["big"], id=2, code=2)) == []
    assert rows(target, table) == [(1, None, None, "x")]


# --------------------------------------------------------------------------------------------------- unique, foreign keys
def unique_table(feed: Feed, target: Database, *extra: str) -> Table:
    target.execute("CREATE TABLE public.users (id bigint PRIMARY KEY, email text UNIQUE, big text)")
    for sql in extra:
        target.execute(sql)
    table = feed.table("public.users", "id int64 key", "email text", "big text")
    loaded(feed, table, *(table.r(id=i, email=f"e{i}", big=f"b{i}") for i in (1, 2, 3)))
    return table


def swap(table: Table) -> list[Any]:
    return [
        table.u(["big"], id=1, email="tmp"),
        table.u(["big"], id=2, email="e1"),
        table.u(["big"], id=1, email="e2"),
    ]


SWAPPED = [(1, "e2", "b1"), (2, "e1", "b2"), (3, "e3", "b3")]


def test_unique_values_are_exchanged_by_the_end_state(feed: Feed, target: Database) -> None:
    table = unique_table(feed, target)
    feed.apply(*swap(table))
    assert rows(target, table) == SWAPPED


def test_unique_values_are_exchanged_under_cascading_children_which_stay(feed: Feed, target: Database) -> None:
    child = "CREATE TABLE public.child (id bigint PRIMARY KEY, u bigint REFERENCES public.users ON DELETE CASCADE)"
    table = unique_table(feed, target, child)
    target.execute("INSERT INTO public.child VALUES (7, 1), (8, 2)")
    feed.apply(*swap(table))
    assert rows(target, table) == SWAPPED
    assert read(target, "SELECT * FROM public.child ORDER BY 1") == [(7, 1), (8, 2)]


def test_unique_values_are_exchanged_under_a_trigger_that_sees_updates_only(feed: Feed, target: Database) -> None:
    table = unique_table(
        feed,
        target,
        "CREATE TABLE public.seen_by_trigger (op text)",
        "CREATE FUNCTION public.watch() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS"
        " $$BEGIN INSERT INTO public.seen_by_trigger VALUES (TG_OP); RETURN NULL; END$$",
    )
    target.execute(
        "CREATE TRIGGER w AFTER INSERT OR UPDATE OR DELETE ON public.users FOR EACH ROW EXECUTE FUNCTION public.watch()"
    )
    feed.sink.resume(feed.log_id)
    feed.apply(*swap(table))
    assert rows(target, table) == SWAPPED
    assert set(read(target, "SELECT op FROM public.seen_by_trigger")) == {("UPDATE",)}


def test_a_unique_value_moves_to_another_row_and_the_rows_change_keys(feed: Feed, target: Database) -> None:
    table = unique_table(feed, target)
    feed.apply(
        table.d(id=1),
        table.c(id=9, email="e1", big="n"),
        table.move({"id": 2}, ["big"], id=1, email="e2"),
        table.u(["big"], id=3, email="e4"),
        table.c(id=4, email="e3", big="m"),
    )
    assert rows(target, table) == [(1, "e2", "b2"), (3, "e4", "b3"), (4, "e3", "m"), (9, "e1", "n")]


def family(feed: Feed, target: Database, action: str = "") -> tuple[Table, Table]:
    target.execute("CREATE TABLE public.parent (id bigint PRIMARY KEY, name text UNIQUE)")
    target.execute(
        f"CREATE TABLE public.child (id bigint PRIMARY KEY, parent bigint NOT NULL REFERENCES public.parent {action})"
    )
    parent = feed.table("public.parent", "id int64 key", "name text")
    child = feed.table("public.child", "id int64 key", "parent int64 not null")
    # Children come first, which the foreign key would not allow.
    feed.apply(child.r(id=1, parent=1), child.r(id=2, parent=2), begun=[child, parent])
    feed.apply(parent.r(id=1, name="a"), parent.r(id=2, name="b"), finished=[child, parent])
    return parent, child


def foreign_keys(target: Database) -> int:
    return len(read(target, "SELECT 1 FROM pg_constraint WHERE contype = 'f' AND convalidated"))


def test_foreign_keys_are_put_aside_while_loading_and_return(feed: Feed, target: Database) -> None:
    target.execute("CREATE TABLE public.parent (id bigint PRIMARY KEY, name text)")
    target.execute(
        "CREATE TABLE public.child (id bigint PRIMARY KEY, parent bigint REFERENCES public.parent ON DELETE CASCADE)"
    )
    parent = feed.table("public.parent", "id int64 key", "name text")
    child = feed.table("public.child", "id int64 key", "parent int64")
    feed.apply(child.r(id=1, parent=1), begun=[parent, child])
    assert foreign_keys(target) == 0
    feed.apply(finished=[child])
    assert foreign_keys(target) == 0
    feed.apply(parent.r(id=1), finished=[parent])
    assert foreign_keys(target) == 1
    assert read(target, "SELECT count(*) FROM _cdc.constraints") == [(0,)]


def test_a_foreign_key_that_does_not_hold_after_the_load_is_an_error(feed: Feed, target: Database) -> None:
    target.execute("CREATE TABLE public.parent (id bigint PRIMARY KEY)")
    target.execute("CREATE TABLE public.child (id bigint PRIMARY KEY, parent bigint REFERENCES public.parent)")
    child = feed.table("public.child", "id int64 key", "parent int64")
    with pytest.raises(CdcError) as error:
        loaded(feed, child, child.r(id=1, parent=4711))
    assert error.value.code == "CDC-TGT-123"
    assert "4711" not in str(error.value)


@pytest.mark.parametrize("action", ["", "ON DELETE CASCADE", "DEFERRABLE INITIALLY DEFERRED"])
def test_parents_and_children_change_together(feed: Feed, target: Database, action: str) -> None:
    parent, child = family(feed, target, action)
    feed.apply(  # a child moves to a new parent, the old one goes; another parent goes with its child
        parent.c(id=3, name="c"),
        child.u(id=1, parent=3),
        parent.d(id=1),
        child.d(id=2),
        parent.d(id=2),
        parent.c(id=4, name="a"),
        child.c(id=5, parent=4),
    )
    assert rows(target, parent) == [(3, "c"), (4, "a")]
    assert rows(target, child) == [(1, 3), (5, 4)]


def test_a_cycle_of_foreign_keys(feed: Feed, target: Database) -> None:
    target.execute("CREATE TABLE public.a (id bigint PRIMARY KEY, b bigint)")
    target.execute("CREATE TABLE public.b (id bigint PRIMARY KEY, a bigint REFERENCES public.a)")
    target.execute("ALTER TABLE public.a ADD FOREIGN KEY (b) REFERENCES public.b")
    a = feed.table("public.a", "id int64 key", "b int64")
    b = feed.table("public.b", "id int64 key", "a int64")
    feed.apply(a.r(id=1, b=1), b.r(id=1, a=1), begun=[a, b], finished=[a, b])
    feed.apply(a.c(id=2), b.c(id=2, a=2), a.u(id=2, b=2), b.u(id=1), a.d(id=1), b.d(id=1))
    assert rows(target, a) == [(2, 2)]
    assert rows(target, b) == [(2, 2)]


def test_truncate_empties_tables_together_children_first_and_older_snapshots_keep_their_rows(
    feed: Feed, target: Database
) -> None:
    parent, child = family(feed, target)
    watcher = target.connect()
    with watcher, watcher.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        cursor.execute("SELECT count(*) FROM public.child")
        feed.apply(parent.truncate(), child.truncate())
        cursor.execute("SELECT (SELECT count(*) FROM public.child), (SELECT count(*) FROM public.parent)")
        assert cursor.fetchone() == (2, 2)
    watcher.close()
    feed.apply(parent.c(id=7, name="z"))
    assert (rows(target, parent), rows(target, child)) == ([(7, "z")], [])


# ------------------------------------------------------------------------------------------------------------ refused rows
@pytest.mark.parametrize(
    ("constraint", "state"),
    [
        ("CHECK (note <> 'bad-secret')", "23514"),
        ("UNIQUE (note)", "23505"),
        ("EXCLUDE USING btree (note WITH =)", "23P01"),
    ],
)
def test_a_refused_row_is_named_by_its_key_alone(feed: Feed, target: Database, constraint: str, state: str) -> None:
    table = orders(feed)
    loaded(feed, table, table.r(id=1, note="bad-secret"[:3]), table.r(id=2, note="other"))
    target.server.execute("SELECT 1")
    execute(target.admin_url, f"ALTER TABLE public.orders ADD CONSTRAINT theirs {constraint}")
    note = "bad-secret" if state == "23514" else "other"
    with pytest.raises(Rejected) as error:
        feed.apply(table.c(id=3, note="fine"), table.u(id=4242, code=1, note=note), table.c(id=5, note="also fine"))
    shown = f"{error.value} {error.value.to_json()}"
    assert "id = 4242" in shown
    assert state in shown
    assert "theirs" in shown
    assert "public.orders" in shown
    assert not any(word in shown for word in ("bad-secret", "other", "fine"))
    feed.resume(feed.sink)
    assert len(rows(target, table)) == 2


def test_a_value_that_a_type_does_not_hold_is_refused_by_key(feed: Feed, target: Database) -> None:
    table = orders(feed)
    loaded(feed, table, table.r(id=1))
    execute(target.admin_url, "ALTER TABLE public.orders ALTER COLUMN note TYPE varchar(5)")
    with pytest.raises(Rejected) as error:
        feed.apply(table.c(id=2, note="short"), table.c(id=3, note="too long"))
    assert "id = 3" in str(error.value)
    assert "22001" in str(error.value)
    assert "too long" not in str(error.value)


def test_a_null_byte_never_reaches_the_server_as_anything_else(feed: Feed, target: Database) -> None:
    table = orders(feed)
    loaded(feed, table, table.r(id=1))
    with pytest.raises(CdcError) as error:
        feed.apply(table.c(id=2, note="a\0b"))
    assert "a\0b" not in str(error.value)
    assert isinstance(error.value, Rejected)


# ---------------------------------------------------------------------------------------------------------------- keyless
@pytest.mark.parametrize("keyed", [True, False])
def test_a_value_that_is_not_understood_stops_the_sink(feed: Feed, target: Database, keyed: bool) -> None:
    """It is an error of its own, not one of the connection, which would be tried again for ever."""
    table = feed.table("public.odd", "id int64 key" if keyed else "id int64", "note text")
    loaded(feed, table, table.r(id=1, note="a"))
    checkpoint, batch = feed.checkpoint(table.c(id=2, note="b"))
    records = batch[table.id]
    records.values[0] = records.values[0][:15]
    with pytest.raises(CdcError) as error:
        feed.commit(checkpoint, batch)
    assert not isinstance(error.value, Unavailable)
    assert error.value.code == "CDC-TGT-132"


def test_keyless_rows_are_a_multiset(feed: Feed, target: Database) -> None:
    table = feed.table("public.journal", "a int32", "n numeric", "t text")

    def row(a: int, n: str | None = None, t: str | None = None) -> dict[str, Any]:
        number = n and {"scale": len(n.partition(".")[2]), "value": decimal_bytes(int(n.replace(".", "")))}
        return {"a": a, "n": number, "t": t}

    feed.apply(*(table.r(**row(1, "1.0", "x")) for _ in range(3)), begun=[table], finished=[table])
    feed.apply(
        table.d(**row(1, "1.0", "x")),
        table.c(**row(1, "1.00", "x")),
        table.u((), row(1, "1.0", "x"), **row(2)),
        table.c(**row(2)),
        table.c(**row(3)),
        table.d(**row(3)),
    )
    shown = [(a, n and str(n), t) for a, n, t in rows(target, table, "a, n::text")]
    assert shown == [(1, "1.0", "x"), (1, "1.00", "x"), (2, None, None), (2, None, None)]
    feed.apply(table.d(**row(1, "1.00", "x")), table.d(**row(2)), table.d(**row(2)))
    assert [(a, str(n)) for a, n, _ in rows(target, table)] == [(1, "1.0")]
    assert feed.apply(table.d(**row(1, "1", "x"))) == [Missed(table.id, ())]  # a row that is not there: loaded anew
    assert feed.apply(table.c(**row(5))) == []  # asked for once; until then the table is left alone
    assert len(rows(target, table)) == 1
    feed.apply(table.r(**row(9)), begun=[table], finished=[table], generation=2)
    assert rows(target, table) == [(9, None, None)]


# ------------------------------------------------------------------------------------------------------------------ types
def test_every_type_arrives_as_the_source_had_it(feed: Feed, target: Database) -> None:
    kinds = [
        "boolean",
        "int16",
        "int32",
        "int64",
        "float32",
        "float64",
        "numeric",
        "text",
        "bytes",
        "date",
        "time_us",
        "time_ms",
    ]
    kinds += ["timestamp_us", "timestamp_ms", "timestamptz", "uuid", "json"]
    table = feed.table(
        "public.types", "id int64 key", "d decimal(12,2)", *(f"c_{kind} {kind}" for kind in kinds),
        Column("e", LogicalType("enum", labels=("a",)), "public.mood"), Column("o", LogicalType("other"), "inet"),
    )  # fmt: skip
    day = -719_163 - 43 * 365 - 12  # some day in 44 BC
    low = {
        "d": b"", "c_boolean": False, "c_int16": -(2**15), "c_int32": INT32_MIN, "c_int64": INT64_MIN, "c_float32": float("nan"),
        "c_float64": float("-inf"), "c_numeric": {"scale": 0, "value": b""}, "c_text": "", "c_bytes": b"", "c_date": INT32_MIN,
        "c_time_us": 0, "c_time_ms": 0, "c_timestamp_us": INT64_MIN, "c_timestamp_ms": INT64_MAX, "c_timestamptz": "-infinity",
        "c_uuid": "00000000-0000-0000-0000-000000000000", "c_json": "null", "e": "a", "o": "::1",
    }  # fmt: skip
    high = {
        "d": decimal_bytes(-5), "c_boolean": True, "c_int16": 2**15 - 1, "c_int32": INT32_MAX, "c_int64": INT64_MAX,
        "c_float32": 0.10000000149011612, "c_float64": 5e-324, "c_numeric": {"scale": 1, "value": b""}, "c_text": "é\\.\n\\N",
        "c_bytes": bytes(range(256)), "c_date": INT32_MAX, "c_time_us": 86_400_000_000, "c_time_ms": 1, "c_timestamp_us": INT64_MAX,
        "c_timestamp_ms": 1, "c_timestamptz": "2020-01-01T00:00:00.000001Z", "c_uuid": "ffffffff-ffff-ffff-ffff-ffffffffffff",
        "c_json": '{"a": "\\n\\u00e9"}', "e": "b", "o": "10.0.0.0/8",
    }  # fmt: skip
    old = {
        "c_numeric": {"scale": 1, "value": decimal_bytes(10**200)}, "c_date": day, "c_timestamp_us": day * 86_400_000_000 + 1,
        "c_timestamp_ms": day * 86_400_000, "c_timestamptz": "-0043-03-15T00:00:00.000000Z", "c_text": "\\N",
    }  # fmt: skip
    loaded(feed, table, table.r(id=1, **low), table.r(id=2, **high))
    feed.apply(
        table.c(id=3, **old), table.c(id=4, c_timestamptz="+12345-01-02T03:04:05.678901Z", c_timestamp_us=-(2**63) + 2)
    )
    execute(
        target.admin_url,
        r"""
        CREATE TABLE public.expected (LIKE public.types);
        INSERT INTO public.expected VALUES
        (1, 'NaN', false, -32768, -2147483648, -9223372036854775808, 'NaN', '-Infinity', 'NaN', '', '', '-infinity', '0:00', '0:00',
          '-infinity', 'infinity', '-infinity', '00000000-0000-0000-0000-000000000000', 'null', 'a', '::1'),
        (2, -0.05, true, 32767, 2147483647, 9223372036854775807, 0.1, 5e-324, 'Infinity', E'é\\.\n\\N',
          decode(string_agg_bytes(), 'hex'), 'infinity', '24:00', '00:00:00.001', 'infinity', '1970-01-01 00:00:00.001',
          '2020-01-01 00:00:00.000001+00', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '{"a": "\n\u00e9"}', 'b', '10.0.0.0/8')
        """.replace("string_agg_bytes()", f"'{bytes(range(256)).hex()}'"),
    )
    execute(
        target.admin_url,
        f"""INSERT INTO public.expected (id, c_numeric, c_date, c_timestamp_us, c_timestamp_ms, c_timestamptz, c_text) VALUES
        (3, 1{"0" * 199}.0, date '1970-01-01' + {day}, (date '1970-01-01' + {day}) + interval '1 microsecond',
         date '1970-01-01' + {day}, '0044-03-15 00:00:00+00 BC', E'\\\\N');
        INSERT INTO public.expected (id, c_timestamptz, c_timestamp_us) VALUES
        (4, '12345-01-02 03:04:05.678901+00', '294247-01-10 04:00:54.775808')""",
    )
    different = read(
        target,
        "SELECT a, x FROM public.types a FULL JOIN public.expected x USING (id) WHERE (a *= x) IS NOT TRUE",
    )
    assert different == []
    types = (
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 'public.types'::regclass"
    )
    made = dict(read(target, types))
    assert (made["c_json"], made["o"], made["e"], made["d"]) == ("jsonb", "inet", "text", "numeric(12,2)")


HOSTILE = [
    'a"b',
    "per%cent %s %(x)s",
    "new\nline",
    "select",
    "UPPER",
    "ü" * 31,
    "x" * 63,
    "a.b",
    "back\\slash",
    "semi;--",
    " ",
    "cdc_n",
]


def test_hostile_names_of_schemas_tables_and_columns(feed: Feed, target: Database) -> None:
    for name in HOSTILE:
        table = feed.table(
            TableId(name, name), Column(name, LogicalType("text"), "text", False), "big text", "v text", key=[name]
        )
        loaded(feed, table, table.r(**{name: "k'%s", "v": "1"}), table.r(**{name: "z\\", "big": "B"}))
        feed.apply(
            table.u(["big"], **{name: "z\\", "v": "2"}),
            table.d(**{name: "k'%s"}),
            table.move({name: "z\\"}, ["big"], **{name: "moved", "v": "3"}),
        )
        keyless = feed.table(
            TableId(name, name.encode()[:50].decode() + "_kl"), Column(name, LogicalType("text"), "text")
        )
        feed.apply(keyless.r(**{name: "1"}), begun=[keyless], finished=[keyless])
        feed.apply(keyless.d(**{name: "1"}), keyless.c(**{name: "2"}))
        quoted = '"' + name.replace('"', '""') + '"'
        assert read(target, f"SELECT * FROM {quoted}.{quoted}") == [("moved", "B", "3")]
    loads = feed.sink.status()["tables"]
    assert len(loads) == 2 * len(HOSTILE)


# ----------------------------------------------------------------------------------------------------------- adopted shapes
def test_numeric_keys_are_equal_whatever_their_scale(feed: Feed, target: Database) -> None:
    table = feed.table("public.prices", "p numeric key", "v text")

    def number(text: str) -> dict[str, Any]:
        return {"scale": len(text.partition(".")[2]), "value": decimal_bytes(int(text.replace(".", "")))}

    loaded(feed, table, table.r(p=number("1.0"), v="a"), table.r(p=number("2.0"), v="b"))
    feed.apply(table.move({"p": number("1.0")}, p=number("1.00"), v="c"))
    assert [(str(p), v) for p, v in rows(target, table)] == [("1.00", "c"), ("2.0", "b")]
    execute(
        target.admin_url,
        "CREATE TABLE public.refers (p numeric REFERENCES public.prices ON DELETE CASCADE); INSERT INTO public.refers VALUES (1)",
    )
    feed.resume(feed.sink)
    feed.apply(table.move({"p": number("1.00")}, ["v"], p=number("1.000")))
    assert [(str(p), v) for p, v in rows(target, table)] == [("1.000", "c"), ("2.0", "b")]
    assert read(target, "SELECT count(*) FROM public.refers") == [(1,)]


def test_generated_and_identity_columns_of_an_adopted_table(feed: Feed, target: Database) -> None:
    target.execute(
        "CREATE TABLE public.made (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int,"
        " twice int GENERATED ALWAYS AS (n * 2) STORED)"
    )
    table = feed.table("public.made", "id int64 key", "n int32", "twice int32")
    loaded(feed, table, table.r(id=5, n=1, twice=2))
    feed.apply(table.u(id=5, n=2, twice=4), table.c(id=6, n=3, twice=6), table.u(["n"], id=5, twice=4))
    assert rows(target, table) == [(5, 2, 4), (6, 3, 6)]


def test_a_column_that_only_the_target_has_keeps_its_default(feed: Feed, target: Database) -> None:
    target.execute(
        "CREATE TABLE public.orders (id bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT now(), note varchar(500))"
    )
    table = feed.table(
        "public.orders",
        "id int64 key",
        Column("note", LogicalType("text"), "character varying(80)"),
        "price decimal(5,2)",
    )
    loaded(feed, table, table.r(id=1, note="x", price=decimal_bytes(199)))
    assert read(target, "SELECT id, at IS NULL, note, price FROM public.orders") == [(1, False, "x", Decimal("1.99"))]


def test_a_table_of_another_shape_lists_every_difference(feed: Feed, target: Database) -> None:
    target.execute(
        "CREATE TABLE public.orders (id int NOT NULL, code smallint NOT NULL, note varchar(5), must int NOT NULL)"
    )
    table = orders(feed)
    with pytest.raises(CdcError) as error:
        loaded(feed, table, table.r(id=1))
    assert error.value.code == "CDC-TGT-120"
    for part in (
        "column id is integer",
        "column code is smallint",
        "code is NOT NULL",
        "character varying(5)",
        "column must",
        "unique index",
    ):
        assert part in error.value.detail
    findings = feed.sink.check([table.schema])
    assert [finding.code for finding in findings] == ["CDC-TGT-120"]


def test_a_view_is_not_adopted(feed: Feed, target: Database) -> None:
    target.execute("CREATE VIEW public.orders AS SELECT 1::bigint AS id")
    with pytest.raises(CdcError) as error:
        feed.apply(begun=[orders(feed)])
    assert error.value.code == "CDC-TGT-120"


def test_foreign_keys_of_another_owner_are_an_error_with_the_grant(target: Database) -> None:
    target.execute("CREATE TABLE public.parent (id bigint PRIMARY KEY)")
    target.execute("CREATE TABLE public.child (id bigint PRIMARY KEY, parent bigint REFERENCES public.parent)")
    feed = Feed()
    feed.resume(PostgresSink("warehouse", target.grant_sink(), pipeline="shop", schemas=feed.schemas.__getitem__))
    parent = feed.table("public.parent", "id int64 key")
    assert [finding.code for finding in feed.sink.check([parent.schema])] == ["CDC-TGT-122"]
    with pytest.raises(CdcError) as error:
        loaded(feed, parent, parent.r(id=1))
    assert error.value.code == "CDC-TGT-122"
    feed.sink.close()


# -------------------------------------------------------------------------------------------------------------- evolution
def test_new_columns_wider_types_and_relaxed_not_null_are_followed(feed: Feed, target: Database) -> None:
    old = feed.table(
        "public.orders", "id int32 key", "n int16 not null", "p decimal(5,2)", "gone int32 not null", "t int32"
    )
    loaded(feed, old, old.r(id=1, n=1, p=decimal_bytes(100), gone=1, t=7))
    new = feed.table(
        "public.orders",
        "id int64 key",
        "n int32",
        "p decimal(12,4)",
        "t text",
        "added timestamptz",
        "flag boolean not null",
    )
    feed.apply(old.u(id=1, n=2, p=decimal_bytes(100), gone=1, t=8), old.c(id=2, n=2, gone=2))
    feed.apply(new.c(id=2**40, n=2**20, p=decimal_bytes(12345), t="x", added="2020-01-01T00:00:00.000000Z", flag=True))
    assert read(target, "SELECT id, n, p::text, gone, t, added::text, flag FROM public.orders ORDER BY 1") == [
        (1, 2, "1.0000", 1, "8", None, None),
        (2, 2, None, 2, None, None, None),
        (2**40, 2**20, "1.2345", None, "x", read(target, "SELECT timestamptz '2020-01-01 00:00+00'::text")[0][0], True),
    ]


# ------------------------------------------------------------------------------------------------------------ generations
def test_a_later_generation_removes_rows_that_the_source_lost(feed: Feed, target: Database) -> None:
    table = orders(feed)
    loaded(feed, table, *(table.r(id=i, code=i, big="old") for i in range(6)))
    feed.apply(table.r(id=0, code=0, big="new"), table.r(id=1, code=1, big="new"), begun=[table], generation=2)
    feed.apply(table.u(["big"], id=4, code=44), table.c(id=7, code=7))  # 4 is not written whole, 7 is
    feed.apply(table.r(id=3, code=3, big="new"), table.d(id=1))
    assert len(rows(target, table)) == 6
    feed.apply(table.r(id=5, big="new"), finished=[table])
    assert [row[0] for row in rows(target, table)] == [0, 3, 5, 7]
    assert read(target, "SELECT count(*) FROM pg_class WHERE relname LIKE 'seen%'") == [(0,)]
    loaded(feed, table, generation=3)  # the source is empty
    assert rows(target, table) == []


def test_a_generation_that_begins_again_starts_over(feed: Feed, target: Database) -> None:
    table = orders(feed)
    loaded(feed, table, *(table.r(id=i) for i in range(4)))
    feed.apply(*(table.r(id=i) for i in range(3)), begun=[table], generation=2)
    feed.apply(table.r(id=0), begun=[table], generation=3)
    feed.resume(feed.sink)
    feed.apply(table.r(id=3), finished=[table])
    assert [row[0] for row in rows(target, table)] == [0, 3]


def test_stale_rows_that_collide_on_a_unique_index_make_way(feed: Feed, target: Database) -> None:
    table = unique_table(feed, target)
    execute(target.admin_url, "CREATE UNIQUE INDEX ON public.users (lower(big)) WHERE id < 100")
    # At the source: 3 has gone, 1 and 2 have exchanged values, 5 has 3's.
    feed.apply(table.r(id=1, email="e2", big="B2"), table.r(id=5, email="e3", big="x"), begun=[table], generation=2)
    assert [row[0] for row in rows(target, table)] == [1, 5]
    feed.apply(table.r(id=2, email="e1", big="B1"), finished=[table])
    assert rows(target, table) == [(1, "e2", "B2"), (2, "e1", "B1"), (5, "e3", "x")]


def test_stale_rows_make_way_event_by_event_too(feed: Feed, target: Database) -> None:
    table = unique_table(feed, target)
    feed.apply(  # values pass through rows within one piece, so that only the order of events is right
        table.r(id=1, email="e2", big="x"),
        table.c(id=5, email="e3", big="y"),
        table.u(id=5, email="e4", big="y"),
        table.c(id=6, email="e3", big="z"),
        begun=[table],
        finished=[table],
        generation=2,
    )
    assert rows(target, table) == [(1, "e2", "x"), (5, "e4", "y"), (6, "e3", "z")]


def test_a_fresh_table_is_copied_into_and_a_second_read_of_a_key_is_an_update(feed: Feed, target: Database) -> None:
    table = orders(feed)
    feed.apply(table.r(id=1, code=1), begun=[table])
    feed.apply(table.r(id=2, code=2))
    assert read(target, "SELECT fresh FROM _cdc.tables") == [(True,)]
    feed.apply(table.r(id=2, code=3), table.r(id=3))
    feed.apply(table.u(id=1, code=4))
    assert read(target, "SELECT fresh FROM _cdc.tables") == [(False,)]
    feed.apply(table.r(id=1, code=4), finished=[table])
    assert [row[:2] for row in rows(target, table)] == [(1, 4), (2, 3), (3, None)]


def test_deferred_checks_are_made_before_the_table_changes(feed: Feed, target: Database) -> None:
    """A table that a deferred check waits for takes no DDL: the foreign key that was put aside could never return, and the sink
    would meet the same refusal again and again."""
    a, b = (feed.table(f"public.{name}", "id int32 key") for name in "ab")
    target.execute(
        """CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY);
           CREATE TABLE child (id int PRIMARY KEY, a int REFERENCES a, b int REFERENCES b DEFERRABLE INITIALLY DEFERRED)"""
    )
    child = feed.table("public.child", "id int32 key", "a int32", "b int32")
    feed.apply(a.r(id=1), b.r(id=1), child.r(id=1, a=1, b=1), begun=[a, b, child], finished=[a, b, child])
    feed.apply(child.c(id=2, a=1, b=1), a.r(id=1), begun=[a], finished=[a], generation=2)
    assert read(target, "SELECT count(*) FROM pg_constraint WHERE contype = 'f'") == [(2,)]
    assert rows(target, child) == [(1, 1, 1), (2, 1, 1)]
