"""The Postgres sink against real servers: what ends up in the target, whatever the events were."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cdc.errors import CdcError, Rejected
from cdc.table import Column, LogicalType, TableId
from sinks.postgres.sink import PostgresSink
from tests.events import Feed, Table
from tests.servers import Database

pytestmark = pytest.mark.majors(16, 18)


@pytest.fixture
def feed(target: Database, sink_role: str) -> Iterator[Feed]:
    feed = Feed()
    sink = PostgresSink("warehouse", sink_role, pipeline="shop", schemas=feed.schemas.__getitem__)
    feed.resume(sink)
    yield feed
    sink.close()


def read(target: Database, sql: str) -> list[tuple[Any, ...]]:
    from tests.servers import execute

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
    (kind,) = read(
        target,
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'p' AND conrelid = 'public.orders'::regclass",
    )
    assert kind == ("PRIMARY KEY (id)",)
