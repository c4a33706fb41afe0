"""How `cdc tail` shows values of the rarer types, arrays of any shape among them."""

from __future__ import annotations

import json
from typing import Any

from cdc.avro import decimal_bytes, decode_event
from cdc.commands import tail
from tests.events import Event, make_table

TABLE = make_table(
    "s.t",
    "id int64 key",
    "m money",
    "b bits(11)",
    "one bit",
    "p point",
    "h hstore",
    "a int32[]",
    "d decimal(5,2)[]",
    "t text[]",
)
ROW: dict[str, Any] = {
    "id": 7,
    "m": decimal_bytes(-1205),
    "b": b"\x05\x04",
    "one": True,
    "p": {"x": 1.5, "y": float("nan"), "wkb": None, "srid": None},
    "h": {"k": None, "": "\x1b"},
    "a": [1, 2, None, 4],
    "d": [decimal_bytes(5), b""],
    "t": [],
}


def item(event: Event) -> tail.Item:
    return tail.Item(3, decode_event(TABLE.value_schema, TABLE.value(event, 9), TABLE.key_schema, TABLE.key(ROW)))


def test_values_are_readable_and_arrays_are_nested_lists() -> None:
    shapes = {"before": {"d": "[0:1]"}, "after": {"a": "[0:1][1:2]"}}
    shown = json.loads(tail.json_line(item(Event(TABLE, "u", ROW, ROW, shapes=shapes))))
    assert shown["after"] == {
        "id": 7, "m": "-12.05", "b": "10000000101", "one": 1, "p": [1.5, "NaN"], "h": {"k": None, "": "\x1b"},
        "a": [[1, 2], [None, 4]], "d": ["0.05", "NaN"], "t": [],
    }  # fmt: skip
    assert shown["before"] == shown["after"] | {"a": [1, 2, None, 4]}
    assert shown["shapes"] == shapes
    line = tail.text_line(item(Event(TABLE, "u", ROW, ROW, shapes=shapes)))
    assert "a[0:1][1:2]=[[1, 2], [null, 4]]" in line
    assert 'd=["0.05", "NaN"]' in line
    assert "\x1b" not in line


def test_an_event_without_shapes_says_nothing_of_them() -> None:
    assert "shapes" not in json.loads(tail.json_line(item(Event(TABLE, "c", after=ROW))))
