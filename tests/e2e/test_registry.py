"""A pipeline of real processes with an external registry that is away, comes, hangs and goes on: nothing is lost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

from cdc.log.embedded import EmbeddedLog
from tests.e2e.pipeline import Pipeline, until
from tests.servers import Database, execute

if TYPE_CHECKING:
    from tests.servers.registry import SchemaRegistry


def rows(database: Database) -> list[Any]:
    if not execute(database.admin_url, "SELECT 1 FROM pg_tables WHERE schemaname = 'public' AND tablename = 't'"):
        return []
    return execute(database.admin_url, "SELECT * FROM t ORDER BY 1")


def get(url: str) -> Any:
    with urlopen(url, timeout=5) as answer:
        return json.loads(answer.read())


def test_the_registry_is_away_comes_hangs_and_goes_on(
    database: Database, target: Database, private_registry: Callable[[], SchemaRegistry], tmp_path: Path
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a')")
    registry = private_registry()
    registry.kill()
    places = {"source": database.grant_source(), "sinks": {"copy": target.grant_sink()}}
    external = {"url": registry.url, "options": {"timeout": 1}}
    with closing(Pipeline(tmp_path, "shop", places["source"], places["sinks"], registry=external)) as pipeline:

        def equal() -> bool:
            return rows(database) == rows(target)

        pipeline.start_all()
        until(lambda: "CDC-REG-101" in pipeline.tail("capture"), 30, "the capture waits", alive=pipeline.alive)
        assert rows(target) == []
        registry.start()
        until(equal, 60, "the load", alive=pipeline.alive)

        registry.suspend()
        database.execute("INSERT INTO t VALUES (2, 'b')")
        until(equal, 30, "a version that is registered needs nobody", alive=pipeline.alive)
        pipeline.output("capture").write_text("")
        database.execute("ALTER TABLE t ADD w int; INSERT INTO t VALUES (3, 'c', 4)")
        until(lambda: "CDC-REG-101" in pipeline.tail("capture"), 30, "a new version waits", alive=pipeline.alive)
        assert len(rows(target)) == 2
        registry.resume()
        until(equal, 60, "the new version", alive=pipeline.alive)

        # The service has the same schemas under the same ids.
        (subject, *more) = [found for found in get(f"{registry.url}/subjects") if found.endswith("t-value")]
        assert (subject, more) == ("shop.public.t-value", [])
        latest = get(f"{registry.url}/subjects/{subject}/versions/latest")
        pipeline.terminate("capture")
        with EmbeddedLog(pipeline.log, create=False) as log:
            assert log.subjects()[subject][-1] == latest["id"]
            assert log.schema(latest["id"]) == json.loads(latest["schema"])
        pipeline.start("capture")
        address = re.compile(r'"address": "(http://127\.0\.0\.1:\d+)"')
        until(lambda: address.search(pipeline.tail("capture")), 30, "the capture listens", alive=pipeline.alive)
        ours = address.findall(pipeline.tail("capture"))[-1]
        assert get(f"{ours}/registry/subjects/{subject}/versions/latest") == {
            name: latest[name] for name in ("subject", "version", "id", "schema")
        }
