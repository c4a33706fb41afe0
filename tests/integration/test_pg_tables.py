"""Tables of every kind through the whole pipeline: read, streamed, and equal at the target; or left out by name, with the reason."""

from __future__ import annotations

import pytest

from cdc.errors import CdcError
from cdc.postgres.sql import ident, qualified
from cdc.table import TableId
from tests.integration.whole import Whole
from tests.servers import execute

pytestmark = pytest.mark.timeout(120)

HOSTILE = (
    'a"b', "it's", "back\\slash", "100%", "%s", "%(x)s", "{}", "new\nline", "tab\there", "$1", "$$", "a.b", "a b", " ", "trailing ",
    "trailing", "Case", "case", "CASE", "select", "user", "Zürich", "日本語", "😀", "x');DROP TABLE t;--", "--", "/*", "__proto__",
    "1st", "_cdc", "n" * 62 + "1", "n" * 62 + "2", "ü" * 31 + "1", "ü" * 31 + "2", "öffentlich.x",
)  # fmt: skip


def test_an_empty_table_is_made_at_the_target(whole: Whole) -> None:
    whole.sql("CREATE TABLE empty (id int PRIMARY KEY, v text NOT NULL)")
    whole.sql("CREATE TABLE log (v text); ALTER TABLE log REPLICA IDENTITY FULL")
    whole.run()
    assert whole.columns("public.empty") == [("id", "integer"), ("v", "text")]
    assert whole.columns("public.log") == [("v", "text")]
    assert whole.states() == {"public.empty": "live", "public.log": "live"}
    whole.sql("INSERT INTO empty VALUES (1, 'a'); INSERT INTO log VALUES ('b')")
    whole.run()
    whole.equal("public.empty", "public.log")


def test_hostile_names_of_tables_and_columns(whole: Whole) -> None:
    tables = [TableId("public", name) for name in HOSTILE]
    for number, table in enumerate(tables):
        column = HOSTILE[-1 - number]
        whole.sql(f"CREATE TABLE {qualified(table)} ({ident(column)} int PRIMARY KEY, {ident('?' + column[:28])} text)")
        whole.sql(f"INSERT INTO {qualified(table)} VALUES (1, 'before'), (2, 'before')")
    whole.run()
    for table in tables:
        column = ident(HOSTILE[-1 - tables.index(table)])
        whole.sql(f"INSERT INTO {qualified(table)} VALUES (3, 'after')")
        whole.sql(f"UPDATE {qualified(table)} SET {column} = 4 WHERE {column} = 1")
        whole.sql(f"DELETE FROM {qualified(table)} WHERE {column} = 2")
    whole.run()
    whole.equal(*tables)
    whole.sql(f"TRUNCATE {', '.join(map(qualified, tables))}")
    whole.run()
    whole.equal(*tables)


def test_hostile_names_of_schemas_and_of_tables_without_a_key(whole: Whole) -> None:
    names = [name for name in HOSTILE if name != "_cdc"]
    for name in names:
        whole.sql(f"CREATE SCHEMA {ident(name)}")
    whole.grant(*names)
    tables = [TableId(name, name) for name in names]
    for table in tables:
        whole.sql(f"CREATE TABLE {qualified(table)} ({ident(table.name)} text)")
        whole.sql(
            f"ALTER TABLE {qualified(table)} REPLICA IDENTITY FULL; INSERT INTO {qualified(table)} VALUES ('a'), ('a')"
        )
    whole.run()
    for table in tables:
        whole.sql(
            f"INSERT INTO {qualified(table)} VALUES (NULL); UPDATE {qualified(table)} SET {ident(table.name)} = 'b'"
        )
    whole.run()
    whole.equal(*tables)


def test_the_most_columns(whole: Whole) -> None:
    columns = ", ".join(f"c{n} int" for n in range(1598))
    whole.sql(f"CREATE TABLE wide (id int PRIMARY KEY, {columns}, last boolean)")
    whole.sql("INSERT INTO wide SELECT g, g FROM generate_series(1, 3) g")
    whole.run()
    whole.sql(
        "INSERT INTO wide (id, last) VALUES (4, true); UPDATE wide SET last = false; DELETE FROM wide WHERE id = 2"
    )
    whole.run()
    whole.equal("public.wide")


def test_inherited_tables_are_tables_of_their_own(whole: Whole) -> None:
    whole.sql(
        "CREATE TABLE parent (id int PRIMARY KEY, v text); CREATE TABLE child (w int, PRIMARY KEY (id)) INHERITS (parent)"
    )
    whole.sql("INSERT INTO parent VALUES (1, 'parent'); INSERT INTO child VALUES (1, 'child', 1), (2, 'child', 2)")
    whole.run()
    whole.sql(
        "UPDATE parent SET v = v || '!'; INSERT INTO child VALUES (3, 'late', 3); DELETE FROM parent WHERE id = 2"
    )
    whole.run()
    whole.equal("public.parent", "public.child")
    assert execute(whole.target.admin_url, "SELECT count(*) FROM parent") == [(1,)]


def test_a_partitioned_table_comes_under_the_name_of_its_root(whole: Whole) -> None:
    whole.sql(
        "CREATE TABLE root (id int, at int, v text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);"
        "CREATE TABLE low PARTITION OF root FOR VALUES FROM (0) TO (10);"
        "CREATE TABLE high PARTITION OF root FOR VALUES FROM (10) TO (20) PARTITION BY LIST (at);"
        "CREATE TABLE eleven PARTITION OF high FOR VALUES IN (11); CREATE TABLE rest PARTITION OF high DEFAULT;"
        "INSERT INTO root SELECT g, g, 'a' FROM generate_series(0, 19) g"
    )
    whole.run()
    whole.sql("UPDATE root SET at = 11 WHERE id IN (1, 2, 15); UPDATE eleven SET v = 'b'; DELETE FROM low WHERE id = 3")
    whole.run()
    whole.equal("public.root")
    assert whole.states() == {"public.root": "live"}


def test_what_cannot_be_captured_is_left_out_by_name(whole: Whole) -> None:
    whole.sql(
        "CREATE TABLE kept (id int PRIMARY KEY); CREATE UNLOGGED TABLE fast (id int PRIMARY KEY);"
        "CREATE VIEW seen AS SELECT * FROM kept; CREATE MATERIALIZED VIEW stored AS SELECT * FROM kept;"
        "CREATE SEQUENCE counter; CREATE TABLE bare ()"
    )
    execute(whole.source.admin_url, "CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER far FOREIGN DATA WRAPPER nothing;"
            "CREATE FOREIGN TABLE public.distant (id int) SERVER far")  # fmt: skip
    found = {(finding.code, finding.where) for finding in whole.findings()}
    assert found == {("CDC-PG-134", "public.fast"), ("CDC-PG-139", "public.distant")}
    whole.run()
    assert whole.states() == {"public.kept": "live"}
    whole.tables = (
        "public.kept",
        "public.fast",
        "public.seen",
        "public.stored",
        "public.distant",
        "public.bare",
        "public.none",
    )
    named = {finding.where: (finding.code, finding.detail) for finding in whole.findings() if finding.where}
    assert named["public.seen"] == ("CDC-PG-139", "public.seen is a view and is left out")
    assert named["public.stored"] == ("CDC-PG-139", "public.stored is a materialized view and is left out")
    assert named["public.distant"] == ("CDC-PG-139", "public.distant is a foreign table and is left out")
    assert named["public.bare"] == ("CDC-PG-139", "public.bare is a table without columns and is left out")
    assert [finding.detail for finding in whole.findings() if finding.code == "CDC-PG-138"] == [
        "nothing matches public.none"
    ]


def test_a_leaf_that_is_selected_is_named_with_its_root(whole: Whole) -> None:
    whole.sql(
        "CREATE TABLE root (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE leaf PARTITION OF root FOR VALUES IN (1);"
        "CREATE TABLE kept (id int PRIMARY KEY)"
    )
    whole.tables = ("public.leaf", "public.kept")
    (finding,) = [finding for finding in whole.findings() if finding.where]
    assert finding[:4] == ("warning", "CDC-PG-139", "public.leaf is a partition and is left out", "public.leaf")
    assert "public.root" in finding.remedy


def test_temporary_tables_of_others_are_never_taken(whole: Whole) -> None:
    whole.sql("CREATE TABLE kept (id int PRIMARY KEY)")
    connection = whole.source.connect()
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE passing (id int PRIMARY KEY)")
        connection.commit()
        whole.run()
    connection.close()
    assert whole.states() == {"public.kept": "live"}


def test_exclusions_and_a_pattern_that_takes_new_tables_at_the_next_start(whole: Whole) -> None:
    whole.sql(
        "CREATE TABLE a_1 (id int PRIMARY KEY); CREATE TABLE a_2 (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)"
    )
    whole.tables = ("public.a_*", "!public.*_2")
    whole.run()
    assert whole.states() == {"public.a_1": "live"}
    whole.sql("CREATE TABLE a_3 (id int PRIMARY KEY); INSERT INTO a_3 VALUES (1)")
    whole.run()
    assert whole.states() == {"public.a_1": "live", "public.a_3": "live"}
    whole.equal("public.a_3")


def test_a_selection_without_a_table_stops_with_its_name(whole: Whole) -> None:
    whole.sql("CREATE VIEW v AS SELECT 1 AS id")
    whole.tables = ("public.v",)
    with pytest.raises(CdcError) as raised:
        whole.run()
    assert raised.value.code == "CDC-PG-137"
