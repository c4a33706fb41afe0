"""Tables that a sink has not loaded, or does not take any more; and constraints that a load's round breaks in its middle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cdc.errors import CdcError, Rejected
from cdc.table import TableId
from sinks.changes import Changes
from sinks.postgres.sink import PostgresSink
from sinks.sink import Missed
from tests.events import Feed, Table
from tests.servers import Database, execute


class Choice:
    """A sink whose selection and names a test changes between two starts."""

    def __init__(self, target: Database) -> None:
        self.feed, self.wanted, self.schema = Feed(), {"orders", "items"}, "public"
        self.sink = PostgresSink(
            "warehouse",
            target.grant_sink(adopts=True),
            pipeline="shop",
            schemas=self.feed.schemas.__getitem__,
            wants=lambda table: table.name in self.wanted,
            rename=lambda table: TableId(self.schema, table.name),
        )
        self.feed.resume(self.sink)

    def restart(self) -> None:
        self.feed.resume(self.sink)


@pytest.fixture
def choice(target: Database) -> Iterator[Choice]:
    choice = Choice(target)
    yield choice
    choice.sink.close()


def table(feed: Feed, name: str = "public.orders") -> Table:
    return feed.table(name, "id int64 key", "code int32", "big text")


def rows(target: Database, name: str = "public.orders") -> list[tuple[Any, ...]]:
    return execute(target.admin_url, f"SELECT id, code FROM {name} ORDER BY 1")


def test_a_table_that_was_never_loaded_is_asked_for_and_left_alone_until_then(choice: Choice, target: Database) -> None:
    orders = table(choice.feed)
    assert choice.feed.apply(orders.c(id=1, code=1)) == [Missed(orders.id, ())]
    assert choice.feed.apply(orders.c(id=2, code=1)) == []
    choice.restart()
    assert choice.feed.apply(orders.r(id=1, code=1), orders.r(id=2, code=1), begun=[orders], finished=[orders]) == []
    choice.feed.apply(orders.c(id=3, code=3))
    assert rows(target) == [(1, 1), (2, 1), (3, 3)]


def test_a_table_that_left_the_selection_and_returns_is_loaded_anew(choice: Choice, target: Database) -> None:
    orders = table(choice.feed)
    choice.feed.apply(orders.r(id=1, code=1), orders.r(id=2, code=1), begun=[orders], finished=[orders])
    choice.wanted.discard("orders")
    choice.restart()  # row 1 is deleted meanwhile, which this sink does not read
    choice.wanted.add("orders")
    choice.restart()
    assert choice.feed.apply(orders.u(id=2, code=2)) == [Missed(orders.id, ())]
    assert rows(target) == [(1, 1), (2, 1)]
    choice.feed.apply(orders.r(id=2, code=2), begun=[orders], finished=[orders], generation=2)
    assert rows(target) == [(2, 2)]


def test_a_table_with_another_name_is_loaded_into_it(choice: Choice, target: Database) -> None:
    orders = table(choice.feed)
    choice.feed.apply(orders.r(id=1, code=1), begun=[orders], finished=[orders])
    choice.schema = "shop"
    choice.restart()
    assert choice.feed.apply(orders.u(id=1, code=2)) == [Missed(orders.id, ())]
    choice.feed.apply(orders.r(id=1, code=2), begun=[orders], finished=[orders], generation=2)
    assert rows(target, "shop.orders") == [(1, 2)]
    assert rows(target) == [(1, 1)]


def test_two_tables_are_not_written_to_one(choice: Choice) -> None:
    orders, twin = table(choice.feed), table(choice.feed, "archive.orders")
    choice.feed.apply(orders.r(id=1), begun=[orders], finished=[orders])
    with pytest.raises(CdcError) as error:
        choice.feed.apply(twin.r(id=1), begun=[twin])
    assert error.value.code == "CDC-TGT-124"


@pytest.mark.parametrize("index", ["UNIQUE (code)", "EXCLUDE USING btree (code WITH =)", "index"])
def test_rows_that_collide_in_the_middle_of_a_round_are_right_at_its_end(
    choice: Choice, target: Database, index: str
) -> None:
    """A chunk is ahead of the stream: row 2 has the value that row 1 gives up in an event further on. A new schema between the two
    splits the piece, so that they are merged apart."""
    key = (
        "CREATE UNIQUE INDEX codes ON orders (code)"
        if index == "index"
        else f"ALTER TABLE orders ADD CONSTRAINT codes {index}"
    )
    execute(target.url, f"CREATE TABLE orders (id bigint PRIMARY KEY, code int, big text); {key}")
    feed, orders = choice.feed, table(choice.feed)
    feed.apply(orders.r(id=1, code=10), orders.r(id=2, code=20), begun=[orders], finished=[orders])
    feed.apply(begun=[orders], generation=2)
    wider = feed.table("public.orders", "id int64 key", "code int32", "big text", "more text")
    assert feed.bookmark is not None
    chunk, chunk_rows = feed.checkpoint([*orders.r(id=2, code=10)], cut=False)
    last, last_rows = feed.checkpoint([*wider.u(id=1, code=20), *wider.r(id=1, code=20)], finished=[orders.id])
    changes = Changes(feed.schemas.__getitem__)
    changes.add(chunk, chunk_rows, choice.sink.wants)
    changes.add(last, last_rows, choice.sink.wants)
    assert len(changes.pieces) == 2
    choice.sink.begin(feed.bookmark, last)
    for piece in changes.pieces:
        assert choice.sink.merge(piece) == []
    feed.bookmark = choice.sink.commit(last)
    assert rows(target) == [(1, 20), (2, 10)]
    definition = "SELECT indexdef FROM pg_indexes WHERE indexname = 'codes'"
    assert len(execute(target.admin_url, definition)) == 1, "the constraint has returned"
    assert execute(target.admin_url, "SELECT count(*) FROM _cdc.constraints") == [(0,)]
    execute(target.admin_url, "INSERT INTO orders VALUES (99, 30)")
    with pytest.raises(Rejected) as refused:  # a row of the target's own stands in the way for good
        feed.apply(wider.c(id=3, code=30))
    assert "id = 3" in refused.value.detail


def test_truncate_forgets_the_keys_that_a_load_has_written(choice: Choice, target: Database) -> None:
    orders = table(choice.feed)
    choice.feed.apply(orders.r(id=1, code=1), begun=[orders], finished=[orders])
    choice.feed.apply(orders.r(id=1, code=1), begun=[orders], generation=2)
    choice.feed.apply(orders.truncate())
    choice.feed.apply(orders.r(id=2, code=2), finished=[orders])
    assert rows(target) == [(2, 2)]
