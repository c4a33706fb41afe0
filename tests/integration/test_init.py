"""`cdc init` writes a file that loads, for tables with any name, and no password into it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdc.commands import init
from cdc.config import load
from cdc.errors import CdcError, Unavailable
from cdc.secrets import Url
from cdc.table import TableId
from tests.servers import Database

HOSTILE = TableId("S${X}*", 'we\nird: "# - \\ ü')


@pytest.fixture
def url(database: Database, cdc_role: str) -> str:
    schema, name = (part.replace('"', '""') for part in HOSTILE)
    database.execute("CREATE TABLE public.orders (id int PRIMARY KEY, note text)")
    database.execute("INSERT INTO public.orders SELECT g, repeat('x', 100) FROM generate_series(1, 3000) AS g")
    database.execute("CREATE TABLE public.log (line text)")
    database.execute("CREATE UNLOGGED TABLE public.scratch (id int PRIMARY KEY)")
    database.execute("CREATE TABLE public.parts (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    database.execute("CREATE TABLE public.part_1 PARTITION OF public.parts FOR VALUES FROM (0) TO (9)")
    database.execute(f'CREATE SCHEMA "{schema}"')
    database.execute(f'CREATE TABLE "{schema}"."{name}" ("a" int PRIMARY KEY)')
    database.execute("ANALYZE public.orders")
    return cdc_role


def test_a_file_from_a_live_database(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "pipeline.yaml"
    sinks = ["postgresql://etl:literal-canary@dw/a?sslmode=require", "postgresql://etl:${DW}@dw/b"]
    assert init.run(source_url=url, sinks=sinks, output=output, environ={"DW": "variable-canary"}) == 0
    text, password = output.read_text(), Url(url).password
    captured = capsys.readouterr()
    for secret in (password, "canary"):
        assert secret not in text + captured.out + captured.err

    environ = {"CDC_SOURCE_PASSWORD": password, "CDC_TARGET1_PASSWORD": "literal-canary", "DW": "variable-canary"}
    config = load(output, environ)
    assert config.source.url == Url(url)
    assert [sink.url.password for sink in config.sinks.values()] == ["literal-canary", "variable-canary"]
    assert config.tables.matches(TableId("public", "orders"))
    assert config.tables.matches(HOSTILE)

    lines = {line.split()[1]: line for line in text.splitlines() if line.startswith("#   ") and len(line.split()) > 4}
    assert "3,000 rows" in lines["public.orders"]
    assert "key: id" in lines["public.parts"]
    assert "part_1" not in text
    for table, remark in (("public.log", "REPLICA IDENTITY FULL"), ("public.scratch", "unlogged")):
        assert any(table in line and remark in line for line in captured.err.splitlines())
        assert remark in text
    assert "export CDC_SOURCE_PASSWORD=" in captured.err


def test_a_file_is_never_overwritten(url: str, tmp_path: Path) -> None:
    output = tmp_path / "pipeline.yaml"
    output.write_text("mine")
    with pytest.raises(CdcError) as caught:
        init.run(source_url=url, sinks=[], output=output, environ={})
    assert caught.value.code == "CDC-CFG-110"
    assert output.read_text() == "mine"
    with pytest.raises(CdcError) as caught:
        init.run(source_url=url, sinks=[], output=tmp_path / "absent" / "pipeline.yaml", environ={})
    assert caught.value.code == "CDC-CFG-111"


def test_without_a_server_nothing_is_written(tmp_path: Path) -> None:
    output = tmp_path / "pipeline.yaml"
    with pytest.raises(Unavailable):
        init.run(source_url="postgresql://127.0.0.1:1/x", sinks=[], output=output, environ={})
    assert not output.exists()
