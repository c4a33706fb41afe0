"""Values completed with the columns of others: decoded by fastavro, the row, its shapes and all else must be as expected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdc.avro import array_shapes, avro_name, decode_datum
from cdc.errors import CdcError
from sinks.splice import Splicer
from tests.events import Event, Table, make_table
from tests.unit.test_sink_codec import VALUES, column

KINDS = sorted([*VALUES, "int32[]", "text[]", "hstore[]", "point[]", "numeric[]", "boolean[]"])


def values_of(kind: str) -> st.SearchStrategy[Any]:
    return st.lists(st.none() | VALUES[kind[:-2]], max_size=3) if kind.endswith("[]") else VALUES[kind]


@st.composite
def tables_and_events(draw: st.DrawFn) -> tuple[Table, list[Event]]:
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=7))
    columns = [column(f"c {index}", kind) for index, kind in enumerate(kinds)]
    keys = [c.name for c in columns if not c.source_type.endswith("[]")]
    key = draw(st.lists(st.sampled_from(keys), unique=True, max_size=2)) if keys else []
    table = make_table("s.t", *columns, key=key)
    row = st.fixed_dictionaries(
        {c.name: values_of(c.source_type) if c.name in key else st.none() | values_of(c.source_type) for c in columns}
    )
    events = []
    for _ in range(2):
        before, after = draw(st.none() | row), draw(row)
        shapes: dict[str, dict[str, str]] = {}
        for image, of_image in (("before", before), ("after", after)):
            bounds = {
                c.name: f"[0:{len(of_image[c.name]) - 1}]"
                for c in columns
                if of_image and c.source_type.endswith("[]") and of_image[c.name] and draw(st.booleans())
            }
            shapes |= {image: bounds} if bounds else {}
        events.append(Event(table, "u", before, after, shapes=shapes or None))
    return table, events


@settings(max_examples=300, deadline=None)
@given(tables_and_events(), st.data())
def test_columns_and_their_shapes_come_from_the_other_value(drawn: Any, data: Any) -> None:
    table, (mine, other) = drawn
    taken = data.draw(st.sets(st.sampled_from(sorted(table.schema.by_name))))
    first, second = table.value(mine, 7), table.value(other, 8)
    spliced = Splicer(table.value_schema).splice(first, second, taken)
    row = {name: (other if name in taken else mine).after[name] for name in mine.after}
    wanted = table.value(replace(mine, after=row, shapes=None), 7)
    got, expected = (decode_datum(table.value_schema, value[5:]) for value in (spliced, wanted))
    got.pop("shapes", None), expected.pop("shapes", None)
    assert repr(got) == repr(expected)  # NaN
    shapes = {"before": (mine.shapes or {}).get("before", {}), "after": {}}
    for name in mine.after:
        bounds = ((other if name in taken else mine).shapes or {}).get("after", {})
        shapes["after"] |= {name: bounds[name]} if name in bounds else {}
    if "shapes" in decode_datum(table.value_schema, first[5:]):
        found = array_shapes(table.value_schema, spliced)
        assert found == {image: of_image for image, of_image in shapes.items() if of_image}
    assert list(got["after"]) == [avro_name(name) for name in table.schema.by_name]


def test_a_value_that_ends_too_early_is_an_error() -> None:
    table = make_table("s.t", "id int64 key", "h hstore", "p point", "a text[]")
    row = {"id": 1, "h": {"k": "v"}, "p": {"x": 1.0, "y": 2.0, "wkb": b"w", "srid": 7}, "a": ["x", None]}
    value = table.value(Event(table, "u", after=row), 1)
    whole = len(value) - len(table.value(Event(table, "u", after=None), 1)) + 12
    for end in range(12, whole):
        with pytest.raises(CdcError):
            Splicer(table.value_schema).splice(value[:end], value, ["a"])
