"""Every type into real Postgres targets: what a column holds afterwards, compared with the server's own reading of a literal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cdc.avro import decimal_bytes
from cdc.table import Column, LogicalType
from sinks.postgres.sink import PostgresSink
from tests.events import Event, Feed, Table
from tests.servers import Database, execute

pytestmark = pytest.mark.majors(16, 18)

OTHER = LogicalType("other")


def bits(text: str) -> bytes:
    return int(text, 2).to_bytes(-(-len(text) // 8), "little")


def point(x: float, y: float) -> dict[str, Any]:
    return {"x": x, "y": y, "wkb": b"\1", "srid": None}


def column(name: str, logical: LogicalType, source_type: str) -> Column:
    return Column(name, logical, source_type)


# Type, its logical type, and wire values with the literal that a server reads as the same.
SCALARS: list[tuple[str, LogicalType, list[tuple[Any, str]]]] = [
    ("oid", LogicalType("uint32"), [(0, "0"), (2**32 - 1, "4294967295")]),
    ("xid", LogicalType("uint32"), [(2**32 - 1, "4294967295")]),
    (
        "time with time zone",
        LogicalType("timetz"),
        [("24:00:00.000000+15:59:59", "24:00:00+15:59:59"), ("00:00:00.000001-15:59", "00:00:00.000001-15:59")],
    ),
    ("time(3) with time zone", LogicalType("timetz"), [("01:02:03.456000+00:00", "01:02:03.456+00")]),
    (
        "interval",
        LogicalType("interval"),
        [
            ("P1Y2M-3DT4H5M6.789S", "1 year 2 mons -3 days 04:05:06.789"),
            ("P-178956970Y-8M", "-178956970 years -8 mons"),
            ("P178956970Y7M2147483647D", "178956970 years 7 mons 2147483647 days"),
            ("P-2147483648D", "-2147483648 days"),
            ("PT2147483647H59M59.999999S", "2147483647:59:59.999999"),
            ("PT-0.000001S", "-00:00:00.000001"),
            ("PT-4H-5M-0.5S", "-04:05:00.5"),
            ("PT0S", "0"),
            ("P1M-30DT0.1S", "1 mon -30 days 00:00:00.1"),
            ("P0Y0M0DT2562047788H0M54.775807S", "2562047788:00:54.775807"),
            ("P0Y0M0DT-2562047788H0M-54.775807S", "-2562047788:00:54.775807"),
        ],
    ),
    ("interval day to second(3)", LogicalType("interval"), [("P3DT4H5M6.789S", "3 days 04:05:06.789")]),
    (
        "money",
        LogicalType("money"),
        [
            (decimal_bytes(cents), f"{'-' if cents < 0 else ''}{abs(cents) // 100}.{abs(cents) % 100:02}")
            for cents in (0, 5, -5, 123_456, -(2**63), 2**63 - 1)
        ],
    ),
    ("bit(1)", LogicalType("bit"), [(True, "1"), (False, "0")]),
    ("bit(11)", LogicalType("bits", 11), [(bits(text), text) for text in ("00000000001", "10000000000", "01101100101")]),
    ("bit(64)", LogicalType("bits", 64), [(bits("1" * 64), "1" * 64), (bits("0" * 64), "0" * 64)]),
    ("bit varying(5)", OTHER, [("", ""), ("001", "001")]),
    ("tsvector", LogicalType("tsvector"), [("'a':1A,3 'it''s \\\\':2", "'a':1A,3 'it''s \\\\':2"), ("", "")]),
    (
        "point",
        LogicalType("point"),
        [(point(1.5, -0.0), "(1.5,-0)"), (point(1e300, float("inf")), "(1e300,inf)"), (point(float("nan"), 0.1), "(nan,0.1)")],
    ),
    ("box", OTHER, [("(1,2),(0,0)", "(1,2),(0,0)")]),
    ("path", OTHER, [("((0,0),(1,1))", "((0,0),(1,1))"), ("[(0,0),(1,1)]", "[(0,0),(1,1)]")]),
    ("inet", OTHER, [("192.168.0.1/24", "192.168.0.1/24"), ("::ffff:1.2.3.4", "::ffff:1.2.3.4")]),
    ("int4range", OTHER, [("[1,5)", "[1,5)"), ("empty", "empty"), ("(,)", "(,)")]),
    ("tsrange", OTHER, [('["2020-01-01 00:00:00",infinity]', "[2020-01-01,infinity]")]),
    ("int4multirange", OTHER, [("{[1,2),[4,5)}", "{[1,2),[4,5)}")]),
    ("pg_lsn", OTHER, [("FFFFFFFF/FFFFFFFF", "FFFFFFFF/FFFFFFFF")]),
    ("macaddr8", OTHER, [("08:00:2b:01:02:03:04:05", "08:00:2b:01:02:03:04:05")]),
    ("tsquery", OTHER, [("'a' & !'b c':*", "'a' & !'b c':*")]),
    ("jsonpath", OTHER, [('$."a"[*]?(@ > 1)', '$."a"[*]?(@ > 1)')]),
    ('"char"', OTHER, [("x", "x")]),
    ("int2vector", OTHER, [("1 2 3", "1 2 3")]),
    ("public.vector(3)", OTHER, [("[1,2,3.5]", "[1,2,3.5]")]),
    ("text", LogicalType("text"), [(text, text) for text in ("", "NULL", 'a"b\\c', "{},;", " x\t\n\r\v\f", "é😀", "\x85\xa0", "\\N")]),
    ("bytea", LogicalType("bytes"), [(b"", "\\x"), (bytes(range(256)), "\\x" + bytes(range(256)).hex())]),
    ("boolean", LogicalType("boolean"), [(True, "t"), (False, "f")]),
    ("real", LogicalType("float32"), [(1.5, "1.5"), (float("-inf"), "-inf"), (1e-45, "1e-45")]),
    ("double precision", LogicalType("float64"), [(0.1, "0.1"), (-0.0, "-0"), (float("nan"), "nan")]),
    ("numeric", LogicalType("numeric"), [({"scale": 3, "value": decimal_bytes(-1500)}, "-1.500"), ({"scale": 0, "value": b""}, "nan")]),
    ("numeric(12,2)", LogicalType("decimal", 12, 2), [(decimal_bytes(5), "0.05"), (b"", "nan")]),
    ("bigint", LogicalType("int64"), [(-(2**63), str(-(2**63))), (127, "127"), (8192, "8192")]),
    ("date", LogicalType("date"), [(-719_163, "0001-12-31 BC"), (2**31 - 1, "infinity")]),
    ("timestamp without time zone", LogicalType("timestamp_us"), [(1, "1970-01-01 00:00:00.000001"), (-(2**63), "-infinity")]),
    ("timestamp with time zone", LogicalType("timestamptz"), [("2026-11-23T15:20:40.041994Z", "2026-11-23 15:20:40.041994+00")]),
    ("uuid", LogicalType("uuid"), [("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")]),
    ("jsonb", LogicalType("json"), [('{"a": [1, "x\\"y"]}', '{"a": [1, "x\\"y"]}')]),
]  # fmt: skip


@pytest.fixture
def feed(target: Database) -> Iterator[Feed]:
    execute(target.admin_url, "CREATE EXTENSION vector SCHEMA public")
    feed = Feed()
    sink = PostgresSink("warehouse", target.grant_sink(adopts=True), pipeline="shop", schemas=feed.schemas.__getitem__)
    feed.resume(sink)
    yield feed
    sink.close()


def everything(feed: Feed, *more: Column, key: tuple[str, ...] = ("id",)) -> Table:
    """A table with a column of each type, and one of arrays of it."""
    columns = [column("id", LogicalType("int64"), "bigint")]
    for index, (source_type, logical, _) in enumerate(SCALARS):
        columns.append(column(f"c{index}", logical, source_type))
        columns.append(column(f"a{index}", LogicalType("array", element=logical), f"{source_type}[]"))
    return feed.table("public.everything", *columns, *more, key=key)


SHAPES = [None, "[1:{0}][1:1]", "[0:{1}]", "[-3:-3][1:1][5:{2}]"]


def row_of(number: int) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """A row, the shapes of its arrays, and the literal of each column as the server reads it."""
    row: dict[str, Any] = {"id": number}
    shapes, literals = {}, {"id": str(number)}
    for index, (source_type, _, values) in enumerate(SCALARS):
        value, literal = values[number % len(values)]
        row[f"c{index}"], literals[f"c{index}"] = value, literal
        elements: list[Any] = [value for value, _ in values]
        texts: list[str | None] = [literal for _, literal in values]
        if number % 3:
            elements, texts = [*elements, None], [*texts, None]
        if source_type == "box":
            texts = [text and f"({text.replace('),(', '),(')})" for text in texts]
        count = len(elements)
        bounds = SHAPES[number % len(SHAPES)]
        row[f"a{index}"] = elements
        delimiter = ";" if source_type == "box" else ","
        shown = [
            "NULL" if text is None else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in texts
        ]
        whole = "{" + delimiter.join(shown) + "}"
        if bounds is not None:
            shapes[f"a{index}"] = bounds = bounds.format(count, count - 1, count + 4)
            if bounds.count("[") == 2:
                whole = "{" + delimiter.join(f"{{{text}}}" for text in shown) + "}"
            elif bounds.count("[") == 3:
                whole = f"{{{{{whole}}}}}"
            whole = f"{bounds}={whole}"
        literals[f"a{index}"] = whole
    return row, shapes, literals


def types_of(table: Table) -> dict[str, str]:
    return {found.name: found.source_type for found in table.schema.columns}


def same_as_literals(target: Database, table: Table, wanted: list[dict[str, str]]) -> None:
    """Each column's text is that of its literal, read by this server."""
    types = types_of(table)
    for literals in wanted:
        selected = ", ".join(f'"{name}"::text, %({name})s::{types[name]}::text' for name in literals)
        found, *_ = execute(
            target.admin_url, f"SELECT {selected} FROM {table.id} WHERE id = {literals['id']}", literals
        )
        for name, got, expected in zip(literals, found[::2], found[1::2], strict=True):
            assert got == expected, f"{name} {types[name]}"


def test_every_type_and_its_arrays(feed: Feed, target: Database) -> None:
    table = everything(feed)
    made = [row_of(number) for number in range(8)]
    events = [Event(table, "r", after=row, shapes={"after": shapes} if shapes else None) for row, shapes, _ in made]
    feed.apply(events[:4], begun=[table], finished=[table])
    feed.apply([*(Event(table, "c", after=event.after, shapes=event.shapes) for event in events[4:])])
    same_as_literals(target, table, [literals for _, _, literals in made])
    types = execute(
        target.admin_url,
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = 'public.everything'::regclass AND attnum > 0",
    )
    assert {name: found.replace("vector(3)", "public.vector(3)") for name, found in types} == types_of(table)


def test_a_table_without_key_that_has_every_type(feed: Feed, target: Database) -> None:
    """Rows are found by their images, whether or not their types have an equality."""
    feed_of = everything(feed, key=())
    made = [row_of(number) for number in range(8)]
    twice = [*made, *made]

    def event(op: str, before: Any, after: Any) -> Event:
        shapes = {
            image: of_image[1] for image, of_image in (("before", before), ("after", after)) if of_image and of_image[1]
        }
        return Event(feed_of, op, before and before[0], after and after[0], shapes=shapes or None)

    feed.apply([event("r", None, row) for row in twice], begun=[feed_of], finished=[feed_of])
    missed = feed.apply(
        [event("d", row, None) for row in made[:3]], [event("u", made[3], made[0]), event("u", made[4], made[4])]
    )
    assert missed == []
    counts = dict(execute(target.admin_url, "SELECT id::int, count(*)::int FROM everything GROUP BY 1"))
    assert counts == {0: 2, 1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 2, 7: 2}
    same_as_literals(target, feed_of, [literals for _, _, literals in made])


# ----------------------------------------------------------------------------------------------------- what is there already
def test_domains_in_a_table_without_key(feed: Feed, target: Database) -> None:
    """An image is found whether its columns are of a domain or of the type below it."""
    target.execute(
        "CREATE DOMAIN public.positive AS integer CHECK (VALUE > 0); CREATE DOMAIN public.tags AS text[];"
        "CREATE TABLE public.d (a public.positive, b public.tags, c xml, p point, j json)"
    )
    table = feed.table(
        "public.d",
        column("a", LogicalType("int32"), "public.positive"),
        column("b", LogicalType("array", element=LogicalType("text")), "public.tags"),
        column("p", LogicalType("point"), "point"),
        column("j", LogicalType("json"), "json"),
    )
    row = {"a": 1, "b": ["x"], "p": point(1, 2), "j": "{}"}
    feed.apply(table.r(**row), table.r(**row), table.r(**row | {"a": 2}), begun=[table], finished=[table])
    assert feed.apply(table.d(**row), table.u(_before=row | {"a": 2}, **row | {"a": 3, "j": "[]"})) == []
    found = execute(target.admin_url, "SELECT a, b, p::text, j::text FROM d ORDER BY 1")
    assert found == [(1, ["x"], "(1,2)", "{}"), (3, ["x"], "(1,2)", "[]")]


def test_columns_of_text_take_what_the_source_prints(feed: Feed, target: Database) -> None:
    kinds = [
        ("bit(5)", LogicalType("bits", 5), bits("00101"), "00101"),
        ("oid", LogicalType("uint32"), 7, "7"),
        ("point", LogicalType("point"), point(1.5, 2.5), "(1.5,2.5)"),
        ("public.hstore", LogicalType("hstore"), {"a": "1", "b c": None}, '"a"=>"1", "b c"=>NULL'),
        ("integer[]", LogicalType("array", element=LogicalType("int32")), [1, None, 3], "{1,NULL,3}"),
        (
            "text[]",
            LogicalType("array", element=LogicalType("text")),
            ["", "null", 'a "b\\'],
            '{"","null","a \\"b\\\\"}',
        ),
        ("box[]", LogicalType("array", element=OTHER), ["(1,1),(0,0)", "(2,2),(0,0)"], "{(1,1),(0,0);(2,2),(0,0)}"),
    ]
    names = [f"c{index}" for index in range(len(kinds))]
    target.execute(f"CREATE TABLE public.x (id bigint PRIMARY KEY, {', '.join(f'{name} text' for name in names)})")
    columns = [column(name, kind[1], kind[0]) for name, kind in zip(names, kinds, strict=True)]
    table = feed.table("public.x", column("id", LogicalType("int64"), "bigint"), *columns, key=["id"])
    feed.apply(
        table.r(id=1, **{name: kind[2] for name, kind in zip(names, kinds, strict=True)}),
        begun=[table],
        finished=[table],
    )
    assert execute(target.admin_url, "SELECT * FROM x") == [(1, *(kind[3] for kind in kinds))]


def test_what_a_target_does_not_have_is_kept_in_another_form(feed: Feed, target: Database) -> None:
    """No hstore, no ltree, no libxml, and no object of that name."""
    texts = LogicalType("xml")
    table = feed.table(
        "public.x",
        column("id", LogicalType("int64"), "bigint"),
        column("h", LogicalType("hstore"), "public.hstore"),
        column("hs", LogicalType("array", element=LogicalType("hstore")), "public.hstore[]"),
        column("l", LogicalType("ltree"), "public.ltree"),
        column("x", texts, "xml"),
        column("xs", LogicalType("array", element=texts), "xml[]"),
        column("r", OTHER, "regclass"),
        column("acl", OTHER, "aclitem[]"),
        column("e", LogicalType("array", element=LogicalType("enum", labels=("a", "b"))), "public.mood[]"),
        column("c", OTHER, "public.pair"),
        key=["id"],
    )
    pairs = {'k"': "v\t", "n": None}
    row = {
        "h": pairs, "hs": [pairs], "l": "a.b", "x": "<a/>", "xs": ["<a/>", None], "r": "gone", "acl": "{nobody=r/nobody}",
        "e": ["a", "b"], "c": '(1,"a b")',
    }  # fmt: skip
    feed.apply(table.r(id=1, **row), begun=[table], finished=[table])
    found = execute(target.admin_url, "SELECT h, hs, l, x, xs, r, acl, e, c FROM x")
    assert found == [
        (pairs, [pairs], "a.b", "<a/>", ["<a/>", None], "gone", "{nobody=r/nobody}", ["a", "b"], '(1,"a b")')
    ]


# -------------------------------------------------------------------------------------------------------------- keys, gaps
def test_keys_of_rare_types(feed: Feed, target: Database) -> None:
    """The target's own equality decides: a month is thirty days."""
    keys = [
        column("o", LogicalType("uint32"), "oid"),
        column("z", LogicalType("timetz"), "time with time zone"),
        column("i", LogicalType("interval"), "interval"),
        column("b", LogicalType("bits", 3), "bit(3)"),
        column("n", OTHER, "inet"),
        column("a", OTHER, "integer[]"),
        column("m", LogicalType("money"), "money"),
    ]
    names = tuple(key.name for key in keys)
    table = feed.table("public.k", *keys, column("v", LogicalType("text"), "text"), key=names)
    key = {
        "o": 2**32 - 1, "z": "01:02:03.000000+05:30", "i": "P1M", "b": bits("101"), "n": "10.0.0.0/8", "a": "[0:1]={1,2}",
        "m": decimal_bytes(-5),
    }  # fmt: skip
    moved = key | {"i": "PT1S"}
    feed.apply(table.r(**key, v="first"), begun=[table], finished=[table])
    feed.apply(table.u(**key, v="second"))
    feed.apply(table.move(key, ["v"], **moved))
    shown = "SELECT o::text, z::text, i::text, b::text, n::text, a::text, m::numeric::text, v FROM k"
    rest = ("4294967295", "01:02:03+05:30", "00:00:01", "101", "10.0.0.0/8", "[0:1]={1,2}", "-0.05", "second")
    assert execute(target.admin_url, shown) == [rest]
    feed.apply(table.u(["v"], **moved), table.d(**moved), table.c(**key, v="third"))
    assert execute(target.admin_url, "SELECT i::text, v FROM k") == [("1 mon", "third")]
    feed.apply(table.u(**key | {"i": "P30D"}, v="equal"))
    assert execute(target.admin_url, "SELECT i::text, v FROM k") == [("30 days", "equal")]


def test_arrays_that_were_not_sent_keep_their_shapes(feed: Feed, target: Database) -> None:
    table = feed.table("public.t", "id int64 key", "n int32", "a int32[]", "b text[]")

    def event(op: str, shapes: dict[str, str], unchanged: tuple[str, ...] = (), **row: Any) -> Event:
        return Event(table, op, after=row, unchanged=unchanged, shapes={"after": shapes} if shapes else None)

    first = event("r", {"a": "[0:1]", "b": "[1:2][1:1]"}, id=1, n=1, a=[1, 2], b=["x", None])
    feed.apply([first, event("r", {}, id=2, n=1, a=[], b=None)], begun=[table], finished=[table])
    feed.apply([event("u", {}, ("a", "b"), id=1, n=2)])
    shown = "SELECT id::int, n, a::text, b::text FROM t ORDER BY 1"
    assert execute(target.admin_url, shown) == [(1, 2, "[0:1]={1,2}", "{{x},{NULL}}"), (2, 1, "{}", None)]
    feed.apply(  # in one piece: the second event's gap is filled from the first
        [event("u", {"a": "[5:5]"}, ("b",), id=1, n=3, a=[7])],
        [event("u", {}, ("a", "b"), id=1, n=4)],
        [event("c", {"b": "[0:0]"}, id=3, n=1, a=[1], b=["z"])],
        [event("u", {"a": "[1:1][1:1]"}, ("b",), id=3, n=2, a=[9])],
        table.move({"id": 2}, ["a", "b"], id=4, n=2),
    )
    assert execute(target.admin_url, shown) == [
        (1, 4, "[5:5]={7}", "{{x},{NULL}}"),
        (3, 2, "{{9}}", "[0:0]={z}"),
        (4, 2, "{}", None),
    ]


def test_what_is_refused_is_applied_event_by_event(feed: Feed, target: Database) -> None:
    """Rows that exchange values of a unique index, beside foreign keys: every type as a literal."""
    table = everything(feed, column("u", LogicalType("int32"), "integer"))

    def event(op: str, number: int, u: int) -> Event:
        row, shapes, _ = row_of(number)
        key = {"id": number % 2}
        return Event(table, op, after=row | key | {"u": u}, shapes={"after": shapes} if shapes else None)

    feed.apply([event("r", 0, 0), event("r", 1, 1)], begun=[table], finished=[table])
    execute(
        target.admin_url,
        "ALTER TABLE everything ADD UNIQUE (u); CREATE TABLE refers (id bigint REFERENCES everything);"
        "INSERT INTO refers VALUES (0), (1)",
    )
    feed.resume(feed.sink)  # it looks at the table anew
    feed.apply([event("u", 4, 2)], [event("u", 5, 0)], [event("u", 2, 1)])
    same_as_literals(target, table, [row_of(2)[2] | {"id": "0"}, row_of(5)[2] | {"id": "1"}])
    assert execute(target.admin_url, "SELECT id::int, u FROM everything ORDER BY 1") == [(0, 1), (1, 0)]
