"""Rule R7 on real servers: one row gives the same bytes by COPY, by the binary stream and by the text stream, and they mean
what the server prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

import pytest

from cdc.avro import ChangeEvent, array_shapes, decode_datum, decode_event, has_arrays, schemas_of
from cdc.postgres import pgoutput
from cdc.postgres.codec import compile_chunk, compile_stream, select_list
from cdc.postgres.envelope import Origin, Transaction
from cdc.postgres.pgoutput import Relation, Row
from cdc.postgres.printed import printer_of
from cdc.postgres.rowcode import Printers
from cdc.postgres.session import Session
from cdc.postgres.type_catalog import types_of
from cdc.postgres.types import logical, wire_text
from cdc.records import Records
from cdc.source import Move
from cdc.table import Column, TableId, TableSchema
from tests.servers import Database

pytestmark = [pytest.mark.majors(16, 18), pytest.mark.timeout(120)]

NOW_US, LSN, XID = 1_795_446_000_123_456, 0x16_B374_8D38, 4_000_000_001
HEAD = b"w" + LSN.to_bytes(8, "big") + bytes(16)  # as the replication stream has it before each message
TABLE = TableId("public", 'Every "type"%s')
NAME = '"Every ""type""%s"'
EXACT = {
    "i2": ("smallint", "-32768", "32767", "0", "-1"),
    "i4": ("integer", "-2147483648", "2147483647", "8191", "8192"),
    "i8": ("bigint", "-9223372036854775808", "9223372036854775807", "134217728", "-2199023255553"),
    "dec": ("numeric(12,2)", "NaN", "9999999999.99", "-9999999999.99", "0", "-0.01", "1.28", "100000000", "0.50"),
    "wide": ("numeric(38,10)", "NaN", "9999999999999999999999999999.9999999999", "-0.0000000001", "1", "10000"),
    "whole": ("numeric(5,0)", "NaN", "-32768", "128", "-129", "99999"),
    "hundreds": ("numeric(4,-2)", "123400", "-999900", "0"),
    "tiny": ("numeric(2,4)", "0.0099", "-0.0001"),
    "num": (
        *("numeric", "NaN", "Infinity", "-Infinity", "0", "0.000", "1.50", "1.5", "-1e-30", "1e130", "123e-16383"),
        *("9" * 9000 + "." + "9" * 300, "-" + "1" * 50_000, "1e131071", "10000", "0.0001", "99999999.99999999"),
    ),
    "f4": ("real", "NaN", "Infinity", "-Infinity", "-0", "0.1", "1.17549435e-38", "1e-45", "3.4028235e38", "16777217", "8.5899346e9"),
    "f8": ("double precision", "NaN", "Infinity", "-Infinity", "-0", "0.1", "5e-324", "1.7976931348623157e308", "1e23"),
    "yes": ("boolean", "true", "false"),
    "txt": ("text", "", "\ufffd\U0001f600é\\n", "a\tb\nc\r\\N", "'\"$$", "\x01\x7f"),
    "vc": ("varchar(9)", "", "x", "ä" * 9),
    "pad": ("char(5)", "", "x", "ab   "),
    "named": ("name", "n", "x" * 63),
    "raw": ("bytea", "", "\\x00", "\\x00ff5c00", "\\xdeadbeef"),
    "day": (
        "date", "infinity", "-infinity", "4714-11-24 BC", "5874897-12-31", "0001-12-31 BC", "0001-01-01",
        "1970-01-01", "2000-02-29", "9999-12-31", "10000-01-01",
    ),
    "t": ("time", "24:00:00", "00:00:00", "23:59:59.999999", "12:34:56.1"),
    "t3": ("time(3)", "24:00:00", "23:59:59.999", "12:34:56"),
    "ts": (
        "timestamp", "infinity", "-infinity", "4714-11-24 BC", "294276-12-31 23:59:59.999999",
        "294247-01-10 04:00:54.775807", "294247-01-10 04:00:54.775806", "294247-01-10 04:00:54.775808",
        "1969-12-31 23:59:59.999999", "0001-12-31 23:59:59.5 BC", "2026-11-23 15:31:00",
    ),
    "ts3": ("timestamp(3)", "infinity", "-infinity", "4714-11-24 BC", "294276-12-31 23:59:59.999", "2026-11-23 15:31:00.5"),
    "tz": (
        "timestamptz", "infinity", "-infinity", "4714-11-24 00:00:00+00 BC", "294276-12-31 23:59:59.999999+00",
        "0001-12-31 23:59:59.5+00 BC", "0002-01-01 00:00:00+00 BC", "9999-12-31 23:59:59.999999+00",
        "10000-01-01 00:00:00+00", "2026-11-23 15:31:00+05:45", "1999-12-31 23:59:59.000001+00",
    ),
    "tz0": ("timestamptz(0)", "infinity", "2026-11-23 15:31:00+00"),
    "u": (
        "uuid", "00000000-0000-0000-0000-000000000000", "A0EEBC99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
    ),
    "j": ("json", ' {"b": 1,  "a": 1.50, "a": 2}', '"\\u0000"', "null", "1e400", "\n[ ]\t"),
    "jb": ("jsonb", ' {"b": 1,  "a": 1.50, "a": 2}', "null", '"x"', "[]"),
    "e": ("mood", "it''s", 'q"', "c,d", "line\nfeed", ""),
    "dn": ("money_like", "1.10", "NaN", "-99999.99"),
    "de": ("inner_mood", 'q"', "c,d"),
    "dj": ("doc", '{"a": 1}', "[1,  2]"),
    "dd": ("nested", "1.10", "0"),
}  # fmt: skip
RARE = {
    "o": ("oid", "4294967295", "0", "8192"),
    "ttz": ("timetz", "12:34:56.7+05:45", "24:00:00-15:59", "00:00:00+00", "23:59:59.999999+15:59:59", "01:02:03-00:00:30"),
    "ttz3": ("timetz(3)", "12:34:56.789-03", "01:02:03+02"),
    "iv": (
        *("interval", "1 year -2 days 03:04:05.6", "0", "-178000000 years", "-1 year -2 mons +3 days -04:05:06.000001"),
        *("178956970 years 7 mons 2147483647 days 2562047788:00:54.775806", "-0.5 s", "-00:00:00.000001", "1 mon"),
        *("P-178956970Y-8M-2147483648DT-2562047788H0M-54.775807S", "100 days", "00:01"),
    ),
    "ivy": ("interval year to month", "1 year 2 mons", "0"),
    "cash": ("money", "-12.34", "1234567.89", "-92233720368547758.08", "92233720368547758.07", "0", "0.05"),
    "one": ("bit(1)", "0", "1", "0"),
    "five": ("bit(5)", "10101", "00001", "10000", "00000"),
    "sixteen": ("bit(16)", "1000000000000001", "0000000100000000"),
    "tsv": ("tsvector", "'a':1 'b''c':2", "'x':1A,2B,3C,4D,16383 'y\\\\z' 'ä ö'", "", "'''' '\\\\'"),
    "pt": ("point", "(0,0)", "(1.1,-0)", "(NaN,Infinity)", "(1e-300,-1.7976931348623157e308)"),
    "ia": ("integer[]", "{}", "{1,NULL,3}", "[0:1]={1,2}", "{{1,2},{3,NULL}}", "[-1:0][2:2]={{5},{6}}", "{NULL}", "{-2147483648}"),
    "ta": (
        *("text[]", "{}", '{"a,b","q\\"",NULL,"NULL",""}', '{{"{","}"},{"\\\\","x y"}}', '{null,"null"}', "{ä, b }"),
        '[3:4]={"a=b","[1:2]={}"}',
    ),
    "na": ("numeric(7,2)[]", "{}", "{1.10,NaN,-99999.99}", "{0}"),
    "nu": ("numeric[]", "{}", "{1.10,NaN,Infinity,1e30,0.000}"),
    "tza": ("timestamptz[]", "{}", '{infinity,"2026-11-23 15:31:00+05:45","0001-12-31 23:59:59.5+00 BC"}'),
    "da": ("date[]", "{}", '{infinity,"0044-03-15 BC",2026-11-23}'),
    "tma": ("time(3)[]", "{}", "{24:00:00,01:02:03.456}"),
    "ba": ("boolean[]", "{}", "{t,f,NULL}"),
    "fa": ("real[]", "{}", "{0.1,NaN,-Infinity,1e-45}"),
    "ra": ("bytea[]", "{}", '{"\\\\x00ff","\\\\x"}'),
    "ua": ("uuid[]", "{}", "{A0EEBC99-9c0b-4ef8-bb6d-6bb9bd380a11}"),
    "ja": ("json[]", "{}", '{"{\\"a\\":  1}",NULL,"null","[1,2]"}'),
    "jba": ("jsonb[]", "{}", '{"{\\"a\\":  1}",NULL,"null","[1,2]"}'),
    "ea": ("mood[]", "{}", '{it\'\'s,"q\\"","c,d","line\nfeed",""}'),
    "pa": ("point[]", "{}", '{"(1,2)","(-0,NaN)"}'),
    "va": ("interval[]", "{}", '{"1 day","-1 mon 00:00:00.5"}'),
    "ca": ("money[]", "{}", '{"-$1,234.50",NULL}'),
    "bta": ("bit(9)[]", "{}", "{101010101,000000001}"),
    "oa": ("oid[]", "{}", "{1,4294967295}"),
    "tva": ("tsvector[]", "{}", """{"'a':1 'b'","'c'"}"""),
    "dom": ("numbers", "{}", "{1,2}", "{{1},{2}}"),
    "doma": ("money_like[]", "{}", "{1.10,NULL}"),
}  # fmt: skip
PRINTED = {
    "c1": ('"char"', "", "a", "\\377"),
    "ip": ("inet", "0.0.0.0/0", "10.0.0.1", "10.0.0.1/8", "::1", "::", "::ffff:1.2.3.4", "1::2:0:0:0", "::1.2.3.4/96"),
    "net": ("cidr", "10.0.0.0/8", "10.1.2.3/32", "0.0.0.0/0", "fe80::/10", "::1/128"),
    "mac": ("macaddr", "08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff"),
    "mac8": ("macaddr8", "08:00:2b:01:02:03:04:05", "00:00:00:00:00:00:00:00"),
    "lsn": ("pg_lsn", "0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF"),
    "tid": ("tid", "(0,0)", "(4294967295,65535)"),
    "xid": ("xid", "4294967295", "0"),
    "xid8": ("xid8", "18446744073709551615", "0"),
    "snap": ("pg_snapshot", "10:20:10,14,15", "10:10:"),
    "jp": ("jsonpath", "$", "$.a[*] ? (@ > 1.50)"),
    "bits": ("bit varying", "", "10101", "1" * 64 + "0"),
    "anybits": ("pg_catalog.bit", "101", "1" * 9),
    "cur": ("refcursor", "", "c ä"),
    "nr": ("numrange", "empty", "[1.10,)", "(,)", "(Infinity,NaN]", "[-0.50,1e30)"),
    "ir": ("int4range", "empty", "[1,5)", "(,5]", "[-2147483648,2147483647)"),
    "br": ("int8range", "[-9223372036854775808,9223372036854775807)", "(,)"),
    "dr": ("daterange", "[-infinity,infinity]", '["0044-03-15 BC",2026-11-23)', "empty"),
    "sr": ("tsrange", '["2026-11-23 15:31:00.5","294276-12-31 23:59:59.999999"]', '("4714-11-24 BC",infinity)', "empty"),
    "zr": ("tstzrange", '["2026-11-23 15:31:00+05:45",)', '(-infinity,"0001-12-31 23:59:59.5+00 BC"]'),
    "tr": ("textrange", "[a,b]", '["","("]', '["a ""q"" \\\\","b,c")', "(,\u00a0]", "empty"),
    "fr": ("floatrange", "[0.1,1e15]", "[-0,1e-05)", "[123456789012345.5,1234567890123456.5]", "[-Infinity,NaN]"),
    "mr": ("nummultirange", "{}", "{[1,2),(3.50,4]}", "{(,)}"),
    "tmr": ("textmultirange", "{}", '{[a,b],["c d",)}'),
    "nrs": ("numrange[]", "{}", '{"[1,2)",empty,NULL,"(,)"}', '[0:0]={"(,)"}'),
    "boxes": ("box[]", "{}", "{(2,2),(1,1);(0,0),(-1,-1)}"),
    "bx": ("box", "(2,2),(1,1)", "(1e300,0.1),(-0,-1e-7)"),
    "ls": ("lseg", "[(2,2),(1,1)]", "[(NaN,Infinity),(1e15,123456789012345678)]"),
    "pth": ("path", "[(2,2),(1,1)]", "((0.5,2),(1,1),(3,4))"),
    "pg": ("polygon", "((0.5,2),(1,1),(3,4))", "((0,0))"),
    "ln": ("line", "{1,2,3}", "{0,-1,1e-300}"),
    "ci": ("circle", "<(1,2),3>", "<(0.1,-0),0>"),
    "ips": ("inet[]", "{}", "{10.0.0.1,::1,NULL}", "{{10.0.0.1/8},{::1}}"),
    "aa": ("numbers[]", "{}", '{"{1,2}","{3,NULL}"}', '{"[0:0]={1}"}'),
    "cs": ('"char"[]', "{}", '{a,"","{",NULL,",","\\\\","""",null,"N"}'.replace('""""', '"\\""')),
    "acl": ("aclitem", "=r/postgres"),
    "vbs": ("varbit[]", "{}", '{101,""}'),
}  # fmt: skip
OTHER = {
    "pair": ("pair", "(,)", '(1,"a ""b"" ,c")', "(,x)"),
    "pairs": ("pair[]", "{}", '{"(1,a)","(,\\"b c\\")"}'),
    "iv2": ("int2vector", "", "1 2 3"),
    "tsq": ("tsquery", "'a' & 'b'", "!'x':*A"),
    "rel": ("regclass", "pg_class", "pg_type"),
    "pr": ("pairrange", '["(1,a)","(2,b)"]', "empty"),
    "acl": ("aclitem[]", "{}", "{=r/postgres}"),
}
EXTENSIONS = {
    "hs": ("hstore", '"a"=>"1", "b"=>NULL', '"q\\"\\\\"=>"x, \\"y\\"=>z", ""=>"", "NULL"=>"NULL"', "", "ä=>ö, aa=>b"),
    "hsa": ("hstore[]", "{}", '{"\\"a\\"=>\\"1\\"",NULL,""}', "{{a=>b},{c=>NULL}}"),
    "lt": ("ltree", "Top.Science.Astronomy", "", "a_b"),
    "lta": ("ltree[]", "{}", '{a.b,"",NULL}', "[0:0]={x}"),
    "ci": ("citext", "", "MiXed", "a\\b"),
    "cia": ("citext[]", "{}", '{A,"b c",NULL}'),
    "x": (
        *("xml", "<a>1</a>", '<?xml version="1.0" encoding="UTF-8"?><a/>'),
        *('<?xml version="1.1" standalone="yes"?>\n<a>ä</a>', "", "a &amp; b"),
    ),
    "xa": ("xml[]", "{}", '{<a/>,NULL,"<b c=\\"d\\"/>"}'),
    "dh": ("pairs", "a=>b", "c=>NULL"),
}  # fmt: skip
EXTENDED = """
CREATE EXTENSION hstore; CREATE EXTENSION ltree; CREATE EXTENSION citext; CREATE DOMAIN pairs AS hstore;
"""
TYPES = """
CREATE TYPE mood AS ENUM ('it''''s', 'q"', 'c,d', E'line\\nfeed', '');
CREATE DOMAIN money_like AS numeric(7,2) CHECK (VALUE IS NULL OR VALUE::text <> '0.13');
CREATE DOMAIN inner_mood AS mood;
CREATE DOMAIN doc AS jsonb;
CREATE DOMAIN nested AS money_like;
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN numbers AS int[];
CREATE TYPE textrange AS RANGE (subtype = text, multirange_type_name = textmultirange, collation = "C");
CREATE TYPE floatrange AS RANGE (subtype = float8);
CREATE TYPE pairrange AS RANGE (subtype = pair);
"""


def make(session: Session, columns: dict[str, tuple[str, ...]]) -> list[str]:
    """A table of these columns, a row per extreme, one of NULLs, one with a big value; its slot and publication. The column names."""
    listed = ", ".join(f'"{name}" {items[0]}' for name, items in columns.items())
    session.run(TYPES)
    session.run(f"CREATE TABLE {NAME} (id int PRIMARY KEY, {listed})")
    session.run(f"ALTER TABLE {NAME} REPLICA IDENTITY FULL; CREATE PUBLICATION p FOR TABLE {NAME}")
    session.run(f"SELECT pg_create_logical_replication_slot('{slot(session)}', 'pgoutput')")
    names = list(columns)
    for row in range(max(map(len, columns.values()))):
        values = [str(row)] + [items[row] if 0 < row < len(items) else None for items in columns.values()]
        marks = ", ".join(f"${i + 1}" for i in range(len(values)))
        session.run(f"INSERT INTO {NAME} VALUES ({marks})", values)
    return ["id", *names]


def slot(session: Session) -> str:
    ((oid,),) = session.run("SELECT oid FROM pg_database WHERE datname = current_database()")
    return f"wire_{oid}"


def schema_of(session: Session, relation: Relation, key: Sequence[str]) -> TableSchema:
    columns = [(column.name, column.type_oid, column.typmod) for column in relation.columns]
    types = types_of(session, [(oid, typmod) for _, oid, typmod in columns])
    made = (
        Column(name, logical(types[oid, typmod][0], in_key=name in key), types[oid, typmod][1])
        for name, oid, typmod in columns
    )
    return TableSchema(TableId(relation.schema, relation.name), tuple(made), tuple(key))


def printers_of(session: Session, relation: Relation, schema: TableSchema) -> Printers:
    """The printers of the columns that are text to us, where there are some."""
    types = types_of(session, [(column.type_oid, column.typmod) for column in relation.columns])
    given = {column.name: types[column.type_oid, column.typmod][0] for column in relation.columns}
    others = {name: given[name] for name, column in schema.by_name.items() if column.type.kind == "other"}
    return {name: printer_of(pg_type) if pg_type.sends else None for name, pg_type in others.items()}


def peek(session: Session, binary: bool) -> Iterator[bytes]:
    rows = session.run(
        f"SELECT data FROM pg_logical_slot_peek_binary_changes('{slot(session)}', NULL, NULL, 'proto_version', '1', "
        f"'publication_names', 'p', 'binary', '{binary}', 'messages', 'true')"
    )
    for (data,) in rows:
        assert data is not None
        yield bytes.fromhex(data.removeprefix("\\x"))


class Captured:
    """What the stream gave: records by message kind, key changes, and the schema that the Relation message told."""

    def __init__(self, session: Session, binary: bool, key: Sequence[str] = ("id",)) -> None:
        self.values: dict[str, list[bytes]] = {"I": [], "U": [], "D": []}
        self.keys: dict[str, list[bytes | None]] = {"I": [], "U": [], "D": []}
        self.moves: list[Move] = []
        self.schema: TableSchema | None = None
        codec = None
        for data in peek(session, binary):
            parsed = pgoutput.parse(data)
            if isinstance(parsed, Relation):
                self.schema = schema_of(session, parsed, key)
                ids = (1, 2) if key else (None, 2)
                full, printers = parsed.identity == "f", printers_of(session, parsed, self.schema) if binary else None
                codec = compile_stream(self.schema, *ids, identity_full=full, binary=binary, printers=printers)
            if isinstance(parsed, Row):
                assert codec is not None
                codec.begin(transaction(), records := Records(), self.moves)
                kind = chr(parsed.kind)
                {"I": codec.insert, "U": codec.update, "D": codec.delete}[kind]([HEAD + data], 1)
                self.values[kind] += records.values
                self.keys[kind] += records.keys


def transaction() -> Transaction:
    origin = Origin("shop", "db", 1, "0")
    origin.clock(NOW_US)
    return origin.transaction(XID, NOW_US)


def chunk(session: Session, schema: TableSchema) -> Records:
    """The table's rows as a load reads them, in a source block like the stream's, so that whole values can be compared."""
    session.copy_out(
        f"COPY (SELECT {', '.join(select_list(schema))} FROM {NAME} ORDER BY id) TO STDOUT (FORMAT binary)", "a chunk"
    )
    records, codec = Records(), compile_chunk(schema, 1, 2)
    for payload in list(session.copied("a chunk")):
        codec.encode([payload], 1, LSN, transaction(), records)
    return records


def events(schema: TableSchema, values: Sequence[bytes], keys: Sequence[bytes | None]) -> list[ChangeEvent]:
    key_schema, value_schema = schemas_of("shop", schema, "postgresql")
    return [decode_event(value_schema, value, key_schema, key) for value, key in zip(values, keys, strict=True)]


def as_op(value: bytes, op: bytes) -> bytes:
    return value[:6] + op + value[7:]


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with closing(Session(database.admin_url, "wire test")) as session:
        session.run("SET search_path = public")
        yield session


@pytest.mark.parametrize("columns", [EXACT, RARE, PRINTED, OTHER], ids=["exact", "rare", "printed", "other"])
def test_the_same_row_gives_the_same_bytes(session: Session, columns: dict[str, tuple[str, ...]]) -> None:
    same_bytes(session, columns)


@pytest.mark.majors(15)
def test_types_of_extensions(session: Session) -> None:
    session.run(EXTENDED)
    same_bytes(session, EXTENSIONS)
    session.run(f"INSERT INTO {NAME} (id, lt, dh, hs) VALUES (100, 'x', 'a=>b', 'c=>d')")
    same_text(session, Captured(session, binary=True).schema)


@pytest.mark.majors(16)
def test_types_of_other_extensions_are_text(session: Session) -> None:
    session.run("CREATE EXTENSION vector")
    columns = {
        "v": ("vector(3)", "[0,0,0]", "[1.5,-2,1e-7]"),
        "h": ("halfvec(2)", "[0,0]", "[1,0.5]"),
        "a": ("vector[]", "{}", '{"[1]"}'),
    }
    same_bytes(session, {**OTHER, **columns})
    session.run(f"INSERT INTO {NAME} (id, v) VALUES (100, '[1,2,3.25]')")
    same_text(session, Captured(session, binary=False).schema)


def same_bytes(session: Session, columns: dict[str, tuple[str, ...]]) -> None:
    names = make(session, columns)
    if columns is EXACT:
        session.run(f"INSERT INTO {NAME} (id, txt, raw, num) SELECT 99, string_agg(md5(i::text), ''), "
                    f"decode(string_agg(md5(i::text), ''), 'hex'), 3.25 FROM generate_series(1, 32768) i")  # fmt: skip
    texts = Captured(session, binary=False)
    schema = texts.schema
    assert schema is not None
    assert [column.name for column in schema.columns] == names
    assert {column.type.kind == "other" for column in schema.columns[1:]} == {columns is PRINTED or "pair" in columns}
    read = chunk(session, schema)
    assert len(read) == max(map(len, columns.values())) + (columns is EXACT)
    assert texts.keys["I"] == read.keys
    assert texts.values["I"] == [as_op(value, b"c") for value in read.values]
    session.run(f"UPDATE {NAME} SET id = id; DELETE FROM {NAME} WHERE id >= 0")
    modes = [False] if "pair" in columns else [False, True]  # a composite has no binary form of ours
    for captured in [Captured(session, binary=mode) for mode in modes]:
        assert captured.schema == schema
        assert captured.values["I"] == [as_op(value, b"c") for value in read.values]
        assert captured.keys == {"I": read.keys, "U": read.keys, "D": read.keys}
        rows = [event.after for event in events(schema, read.values, read.keys)]
        updates = events(schema, captured.values["U"], captured.keys["U"])
        deletes = events(schema, captured.values["D"], captured.keys["D"])
        assert (
            [repr(event.before) for event in updates]
            == [repr(event.after) for event in updates]
            == list(map(repr, rows))
        )
        assert [(repr(event.before), event.after) for event in deletes] == [(repr(row), None) for row in rows]
        if has_arrays(schema):
            value_schema = schemas_of("shop", schema, "postgresql").value
            found = [[array_shapes(value_schema, value) for value in captured.values[kind]] for kind in "IUD"]
            shapes = [inserted.get("after") for inserted in found[0]]
            assert found[1] == [{"before": shape, "after": shape} if shape else {} for shape in shapes]
            assert found[2] == [{"before": shape} if shape else {} for shape in shapes]


@pytest.mark.parametrize("columns", [EXACT, RARE, PRINTED, OTHER], ids=["exact", "rare", "printed", "other"])
def test_the_bytes_mean_what_the_server_prints(session: Session, columns: dict[str, tuple[str, ...]]) -> None:
    make(session, columns)
    same_text(session, Captured(session, binary=False).schema)


def same_text(session: Session, schema: TableSchema | None) -> None:
    assert schema is not None
    read = chunk(session, schema)
    value_schema = schemas_of("shop", schema, "postgresql").value
    for value_bytes, event in zip(read.values, events(schema, read.values, read.keys), strict=True):
        assert event.after is not None
        shapes = array_shapes(value_schema, value_bytes).get("after", {}) if has_arrays(schema) else {}
        for column in schema.columns:
            value, name = event.after[column.name], '"' + column.name + '"'
            literal = None if value is None else wire_text(column.type, value, shapes.get(column.name, ""))
            ((printed, given),) = session.run(
                f"SELECT CASE WHEN {name} IS DISTINCT FROM NULL THEN format('%s', {name}) END, "
                f"CASE WHEN $1::text IS NOT NULL THEN format('%s', $1::text::{column.source_type}) END FROM {NAME} WHERE id = $2",
                [literal, event.after["id"]],
            )
            assert (column.name, given) == (column.name, printed)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "text"])
def test_unchanged_columns_and_moved_keys(session: Session, binary: bool) -> None:
    session.run(f"CREATE TABLE {NAME} (id text PRIMARY KEY, n int, big text, raw bytea, num numeric)")
    external = ", ".join(f"ALTER {name} SET STORAGE EXTERNAL" for name in ("id", "big", "raw", "num"))
    session.run(f"ALTER TABLE {NAME} {external}")
    session.run(f"CREATE PUBLICATION p FOR TABLE {NAME}")
    session.run(f"SELECT pg_create_logical_replication_slot('{slot(session)}', 'pgoutput')")
    session.run(
        f"INSERT INTO {NAME} SELECT 'a', 1, repeat('x', 9000), decode(repeat('00', 9000), 'hex'), repeat('7', 30000)::numeric"
    )
    session.run(f"INSERT INTO {NAME} VALUES (repeat('k', 2500), 1)")  # a key that is stored out of line
    session.run(f"UPDATE {NAME} SET n = 2")
    session.run(
        f"UPDATE {NAME} SET id = 'b' WHERE id = 'a'; UPDATE {NAME} SET id = 'c', big = NULL, raw = NULL, num = 1 WHERE id = 'b'"
    )
    session.run(f"DELETE FROM {NAME}")
    captured = Captured(session, binary)
    schema = captured.schema
    assert schema is not None
    updates = events(schema, captured.values["U"], captured.keys["U"])
    assert [event.op for event in updates] == ["u", "u", "d", "c", "d", "c"]
    toasted, long_key, gone, moved, gone_again, whole = updates
    assert (toasted.unchanged, toasted.after) == (("big", "raw", "num"), {"id": "a", "n": 2})
    assert long_key.after == {"id": "k" * 2500, "n": 2, "big": None, "raw": None, "num": None}
    assert long_key.key == {"id": "k" * 2500}
    assert gone.before == {"id": "a", "n": None, "big": None, "raw": None, "num": None}
    assert (moved.unchanged, moved.after, moved.before) == (("big", "raw", "num"), {"id": "b", "n": 2}, None)
    assert (whole.unchanged, whole.after) == (
        (),
        {"id": "c", "n": 2, "big": None, "raw": None, "num": {"scale": 0, "value": b"\x01"}},
    )
    assert [(move.table, move.old, move.new, move.index) for move in captured.moves] == [
        (schema.id, *captured.keys["U"][2:4], 1)
    ]
    key_schema = schemas_of("shop", schema, "postgresql").key
    assert [decode_datum(key_schema, event.moved or b"")["id"] for event in (gone, moved, gone_again, whole)] == [
        "b",
        "a",
        "c",
        "b",
    ]
    deletes = events(schema, captured.values["D"], captured.keys["D"])
    assert sorted(str(event.before["id"])[:2] for event in deletes if event.before) == ["c", "kk"]
    assert [event.key for event in deletes] == [{"id": event.before["id"]} for event in deletes if event.before]
