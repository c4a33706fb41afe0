"""Which target type takes which values, and quoting."""

from __future__ import annotations

import pytest

from cdc.table import Column, LogicalType, TableId
from sinks.postgres import types
from sinks.postgres.shape import _TYPE
from sinks.postgres.sql import ident, literal, names, relation

WIDER = [
    ("bigint", "integer"),
    ("numeric", "bigint"),
    ("numeric(20,0)", "bigint"),
    ("numeric(12,4)", "numeric(5,2)"),
    ("numeric", "numeric(5,2)"),
    ("double precision", "real"),
    ("text", "character varying(5)"),
    ("text", "public.mood"),
    ("character varying", "character(3)"),
    ("character varying(9)", "character varying(5)"),
    ("timestamp without time zone", "timestamp(3) without time zone"),
    ("time(6) without time zone", "time(3) without time zone"),
    ("interval", "interval day to second(3)"),
    ("interval(6)", "interval(3)"),
    ("bit varying(5)", "bit varying(3)"),
    ("bit varying", "bit(3)"),
    ("bigint", "oid"),
    ("numeric(10,0)", "oid"),
    ("numeric(19,2)", "money"),
    ("bigint[]", "integer[]"),
    ("text[]", "integer[]"),
    ("text", "integer[]"),
    ("numeric(12,4)[]", "numeric(5,2)[]"),
    ("public.geometry", "public.geometry(Point,4326)"),
    ("public.vector", "public.vector(3)"),
]


@pytest.mark.parametrize(("wide", "narrow"), WIDER)
def test_a_wider_type_includes_a_narrower_one_and_not_the_other_way(wide: str, narrow: str) -> None:
    assert types.includes(wide, narrow)
    assert types.includes(wide, wide)
    assert not types.includes(narrow, wide)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("numeric(5,2)", "numeric(5,3)"),
        ("numeric(12,2)", "bigint"),
        ("double precision", "bigint"),
        ("numeric", "double precision"),
        ("real", "double precision"),
        ("timestamp with time zone", "timestamp without time zone"),
        ("jsonb", "json"),
        ("bit(5)", "bit(3)"),
        ("character(5)", "character(3)"),
        ("date", "timestamp without time zone"),
        ("character varying(5)", "text"),
        ("uuid", "text"),
        ("integer", "oid"),
        ("numeric(20,0)", "money"),
        ("integer[]", "integer"),
        ("public.vector(5)", "public.vector(3)"),
        ("numeric(12,2)[]", "numeric(5,4)[]"),
        ("interval day to second(3)", "interval(3)"),
    ],
)
def test_types_that_do_not_include_each_other(a: str, b: str) -> None:
    assert not types.includes(a, b)


def test_adopted_columns_may_be_of_a_kindred_type() -> None:
    text = Column("c", LogicalType("text"), "text")
    assert types.holds("public.citext", False, text, "text")
    assert types.holds("public.mood", True, Column("c", LogicalType("enum"), "public.mood"), "text")
    assert types.holds("jsonb", False, Column("c", LogicalType("json"), "jsonb"), "json")
    assert not types.holds("jsonb", False, Column("c", LogicalType("json"), "json"), "json")
    assert not types.holds("integer", False, text, "text")


def test_columns_whose_type_the_target_does_not_know_have_a_form_that_holds_them() -> None:
    forms = {
        LogicalType("bits", 11): "bit(11)",
        LogicalType("hstore"): "json",
        LogicalType("array", element=LogicalType("decimal", 12, 2)): "numeric(12,2)[]",
        LogicalType("array", element=LogicalType("enum", labels=("a",))): "text[]",
    }
    for logical, form in forms.items():
        assert types.form_of(logical) == form
        assert types.holds(form, False, Column("c", logical, "public.theirs"), "public.theirs")
    assert types.form_of(LogicalType("array", element=LogicalType("xml")), {"xml"}) == "text[]"
    for target, kind in (("ext.hstore", "hstore"), ("jsonb", "hstore"), ("ext.ltree", "ltree"), ("numeric", "uint32")):
        assert types.holds(
            target, False, Column("c", LogicalType(kind), f"public.{kind}"), types.form_of(LogicalType(kind))
        )
    tags = Column("c", LogicalType("array", element=LogicalType("text")), "text[]")
    assert types.holds("public.citext[]", False, tags, "text[]")
    assert not types.holds("public.citext", False, tags, "text[]")
    assert types.is_printed("regclass[]")


@pytest.mark.parametrize(
    "text",
    [
        "integer",
        "public.geometry(PointZ,4326)",
        "public.vector(3)[]",
        "character varying(20)[]",
        "timestamp(3) without time zone",
        "interval day to second(3)",
        '"char"',
        'public."My""Type"',
    ],
)
def test_type_texts_of_the_catalogue_are_taken_word_for_word(text: str) -> None:
    assert _TYPE.match(text)


@pytest.mark.parametrize(
    "text",
    [
        *("int); DROP TABLE x; --", "int -- ", "int\n", "SETOF int)", "int /* */", "a.b.c", '"a', "", "int, x int"),
        *("a(b c)", "a(1;2)"),
    ],
)
def test_other_texts_never_reach_ddl(text: str) -> None:
    assert not _TYPE.match(text)


def test_quoting() -> None:
    assert relation(TableId('a"b', "c.d%s")) == '"a""b"."c.d%s"'
    assert ident("select") == '"select"'
    assert names(["a", 'b"'], "t") == 't."a", t."b"""'
    assert [literal(value) for value in ("it's \\", None, True, 7)] == ["'it''s \\'", "NULL", "true", "7"]
