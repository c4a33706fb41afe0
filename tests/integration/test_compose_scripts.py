"""The scripts that docker-compose.yml gives to its databases run, and leave the roles able to do their work."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.servers import Server, execute

SCRIPTS = Path(__file__).parents[2] / "deploy/compose"


def psql(server: Server, database: str, script: Path, **environment: str) -> None:
    assert server.process is not None
    server.execute(f"CREATE DATABASE {database}")
    subprocess.run(
        [server.process.bin / "psql", "-X", "-q", "-f", script, server.url(database)],
        check=True,
        timeout=60,
        env=environment,
    )


def test_source_and_target_scripts(private_postgres: Callable[..., Server]) -> None:
    server = private_postgres(18)
    psql(server, "shop", SCRIPTS / "source.sql", APP_PASSWORD="a'pp", CDC_PASSWORD="c'dc")
    psql(server, "warehouse", SCRIPTS / "target.sql", ETL_PASSWORD="e'tl")

    app, cdc, etl = (
        server.url("shop", "app", "a'pp"),
        server.url("shop", "cdc", "c'dc"),
        server.url("warehouse", "etl", "e'tl"),
    )
    execute(app, "INSERT INTO product (name, price) VALUES ('kettle', 24.90)")
    execute(cdc, "CREATE PUBLICATION cdc_shop FOR TABLE product, purchase")
    execute(cdc, "SELECT pg_create_logical_replication_slot('cdc_shop', 'pgoutput')")
    assert execute(cdc, "SELECT (SELECT count(*) FROM product), (SELECT count(*) FROM purchase)") == [(101, 1000)]
    execute(etl, "CREATE SCHEMA _cdc; CREATE SCHEMA shop; CREATE TABLE shop.product (id bigint PRIMARY KEY)")
