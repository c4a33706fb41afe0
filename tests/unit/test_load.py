"""The load machine where the simulation does not reach: keys whose schema gets another id while they are under repair."""

from __future__ import annotations

import pytest

from cdc.avro import frame
from cdc.load import Load
from cdc.log import Signal, TableState
from cdc.records import Records
from cdc.source import Move, Run
from cdc.table import TableId

TABLE = TableId("public", "t")


def key(body: bytes, schema_id: int) -> bytes:
    return frame(schema_id) + body


@pytest.mark.parametrize("waiting", ["repaired", "owed"])
def test_a_key_is_known_under_any_schema_id(waiting: str) -> None:
    """C4: a row under repair moves without its large column, after an ALTER gave its key's schema another id."""
    load = Load(None, {TABLE: TableState(1, False, {"keyless": False})})
    load.awaiting.add("a mark")
    getattr(load, waiting).add((TABLE, key(b"\x02", 7)))
    records = Records([key(b"\x02", 8), key(b"\x04", 8)], [b"d of the old key", b"c of the new key"])
    run = Run({TABLE: records}, {}, 2, moves=[Move(TABLE, key(b"\x02", 8), key(b"\x04", 8), 1)])
    load.saw(run)
    assert records.values == [b"d of the old key"]
    assert list(load.queue) == [(TABLE, key(b"\x04", 8))]
    assert not load.at_cut


def test_other_keys_and_other_tables_are_not_meant() -> None:
    load = Load(None, {TABLE: TableState(1, False, {"keyless": False})})
    load.repaired |= {(TableId("public", "other"), key(b"\x02", 8)), (TABLE, key(b"\x06", 8))}
    records = Records([key(b"\x02", 8), key(b"\x04", 8)], [b"d", b"c"])
    load.saw(Run({TABLE: records}, {}, 2, moves=[Move(TABLE, key(b"\x02", 8), key(b"\x04", 8), 1)]))
    assert len(records) == 2
    assert not load.queue


@pytest.mark.parametrize("left", [False, True])
def test_nothing_is_read_of_a_table_that_left(left: bool) -> None:
    """A key of a table that is not captured is not read again: its later events would be missing. The request is served by that."""
    load = Load(None, {TABLE: TableState(1, False, {"keyless": False})})
    if left:
        load.left.add(TABLE)
    load.take([Signal(1, "reread", {"table": list(TABLE), "keys": [key(b"\x02", 7).hex()]})])
    assert list(load.queue) == ([] if left else [(TABLE, key(b"\x02", 7))])
    assert load.signals == 1
