"""Where `source.sequence` stands: found in any event of any table, whatever its rows hold."""

from __future__ import annotations

import random
from typing import Any

import pytest

from cdc.avro import encode_datum, frame, schemas_of
from cdc.errors import CdcError
from cdc.log.kafka.order import merged, sequences
from cdc.records import Records
from cdc.table import LOGICAL_KINDS, Column, LogicalType, TableId, TableSchema

PIPELINE = "shop"
NAMES = b"\x0a1.2.3\x14postgresql\x08shop"  # how every source block begins


def table(kinds: tuple[str, ...]) -> TableSchema:
    def logical(kind: str) -> LogicalType:
        sizes = {"decimal": (12, 2), "bits": (7,)}.get(kind, ())
        element = LogicalType("numeric") if kind == "array" else None
        return LogicalType(kind, *sizes, labels=("a", "b") if kind == "enum" else (), element=element)

    columns = [Column(f"c {i}", logical(kind), kind) for i, kind in enumerate(kinds)]
    return TableSchema(TableId("public", "t"), (Column("id", LogicalType("int64"), "bigint", False), *columns), ("id",))


def sample(kind: str, rng: random.Random) -> Any:
    match kind:
        case "boolean" | "bit":
            return rng.random() < 0.5
        case "int16" | "int32" | "date" | "time_ms":
            return rng.randrange(-(2**15), 2**15)
        case "uint32":
            return rng.randrange(2**32)
        case "int64" | "time_us" | "timestamp_ms" | "timestamp_us":
            return rng.randrange(-(2**63), 2**63)
        case "float32" | "float64":
            return rng.random()
        case "numeric":
            return {"scale": rng.randrange(9), "value": rng.randbytes(5)}
        case "point":
            return {"x": rng.random(), "y": rng.random(), "wkb": None, "srid": None}
        case "hstore":
            return {NAMES.decode() * n: rng.choice([None, NAMES.decode()]) for n in range(rng.randrange(4))}
        case "array":
            return [rng.choice([None, sample("numeric", rng)]) for _ in range(rng.randrange(4))]
        case "bytes" | "decimal" | "money" | "bits":
            return NAMES if rng.random() < 0.3 else rng.randbytes(rng.randrange(200))
        case _:
            return NAMES.decode() * rng.randrange(3)


def event(schema: dict[str, Any], described: TableSchema, sequence: str | None, rng: random.Random) -> bytes:
    def row() -> Any:
        found: dict[str, Any] = {"id": rng.randrange(10)}
        for field, column in zip(fields[1:], described.columns[1:], strict=True):
            found[field] = None if rng.random() < 0.2 else sample(column.type.kind, rng)
        return found

    fields = [
        field["name"] for field in next(f for f in schema["fields"] if f["name"] == "before")["type"][1]["fields"]
    ]
    source = {"version": "1.2.3", "connector": "postgresql", "name": PIPELINE, "ts_ms": rng.randrange(9) * 10**9}
    source |= {"snapshot": rng.choice(["false", "true"]), "db": "d", "schema": "s", "table": NAMES.decode()}
    datum = {
        "op": rng.choice("cud"),
        "unchanged": rng.choice([None, [], ["c 0", NAMES.decode()]]),
        "moved": rng.choice([None, NAMES]),
        "before": rng.choice([None, row()]),
        "after": rng.choice([None, row()]),
        "source": {**source, "sequence": sequence},
    }
    return frame(5) + encode_datum(schema, datum)


def test_every_kind_of_column_is_passed_over() -> None:
    rng = random.Random(1)
    for kind in LOGICAL_KINDS:
        described = table((kind, "text", kind))
        schema = schemas_of(PIPELINE, described, "postgresql").value
        numbers = [rng.randrange(2**63) for _ in range(60)]
        values = [event(schema, described, str(n), rng) for n in numbers]
        assert sequences(values, lambda _, schema=schema: schema) == numbers


def test_parts_are_merged_with_their_keys() -> None:
    rng, described = random.Random(2), table(("text",))
    schema = schemas_of(PIPELINE, described, "postgresql").value
    parts = [Records() for _ in range(4)]
    for n in range(8, 300):
        part = rng.choice(parts)
        part.keys.append(b"%d" % n)
        part.values.append(event(schema, described, str(n), rng))
    whole = merged(parts, lambda _: schema)
    assert whole.keys == [b"%d" % n for n in range(8, 300)]
    assert sequences(whole.values, lambda _: schema) == list(range(8, 300))


def test_an_event_without_a_sequence_is_an_error() -> None:
    described = table(("text",))
    schema = schemas_of(PIPELINE, described, "postgresql").value
    rng = random.Random(3)
    whole = event(schema, described, "7", rng)
    for value in (event(schema, described, None, rng), whole[:9], frame(5)):
        with pytest.raises(CdcError) as caught:
            sequences([whole, value], lambda _: schema)
        assert caught.value.code == "CDC-LOG-133"
