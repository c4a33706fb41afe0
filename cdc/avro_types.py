"""The Avro form of each logical type, with Debezium's semantic name. `cdc.avro` puts them into a table's schemas.

The invariant: a form holds every value of its type, and `described` beside it says the rest, so that `logical_of` gives the
logical type back.
"""

from __future__ import annotations

from typing import Any

from cdc.table import LogicalType

Json = Any
Schema = dict[str, Any]


def _connect(avro_type: str, name: str, **more: Json) -> Schema:
    return {"type": avro_type, "connect.version": 1, "connect.name": name, **more}


_FORMS: dict[str, Json] = {
    "boolean": "boolean",
    "int16": {"type": "int", "connect.type": "int16"},
    "int32": "int",
    "int64": "long",
    "float32": "float",
    "float64": "double",
    "text": "string",
    "other": "string",
    "bytes": "bytes",
    "date": _connect("int", "io.debezium.time.Date"),
    "time_ms": _connect("int", "io.debezium.time.Time"),
    "time_us": _connect("long", "io.debezium.time.MicroTime", logicalType="time-micros"),
    "timestamp_ms": _connect("long", "io.debezium.time.Timestamp"),
    "timestamp_us": _connect("long", "io.debezium.time.MicroTimestamp", logicalType="timestamp-micros"),
    "timestamptz": _connect("string", "io.debezium.time.ZonedTimestamp"),
    "timetz": _connect("string", "io.debezium.time.ZonedTime"),
    "interval": _connect("string", "io.debezium.time.Interval"),
    "uint32": "long",
    "bit": "boolean",
    "uuid": _connect("string", "io.debezium.data.Uuid", logicalType="uuid"),
    "json": _connect("string", "io.debezium.data.Json"),
    "xml": _connect("string", "io.debezium.data.Xml"),
    "tsvector": _connect("string", "io.debezium.data.Tsvector"),
    "ltree": _connect("string", "io.debezium.data.Ltree"),
    "hstore": {"type": "map", "values": ["null", "string"]},
    "point": {
        "type": "record",
        "name": "Point",
        "namespace": "io.debezium.data.geometry",
        "fields": [
            {"name": "x", "type": "double"},
            {"name": "y", "type": "double"},
            {"name": "wkb", "type": ["null", "bytes"], "default": None},
            {"name": "srid", "type": ["null", "int"], "default": None},
        ],
        "connect.doc": "Geometry (POINT)",
        "connect.version": 1,
        "connect.name": "io.debezium.data.geometry.Point",
    },
    "numeric": {
        "type": "record",
        "name": "VariableScaleDecimal",
        "namespace": "io.debezium.data",
        "fields": [{"name": "scale", "type": "int"}, {"name": "value", "type": "bytes"}],
        "connect.doc": "Variable scaled decimal",
        "connect.version": 1,
        "connect.name": "io.debezium.data.VariableScaleDecimal",
    },
}
_MONEY = 19, 2  # digits in all, and behind the point


def form_of(logical: LogicalType, named: set[str]) -> Json:
    """The Avro form of one logical type (docs/reference/types.md is made from this). A named type is defined once, then referred
    to: `named` are those that are."""
    match logical.kind:
        case "array":
            assert logical.element is not None
            return {"type": "array", "items": ["null", form_of(logical.element, named)]}
        case "decimal":
            return _decimal(logical.precision or 0, logical.scale or 0)
        case "money":
            return _decimal(*_MONEY)
        case "bits":
            parameters = {"length": str(logical.precision)}
            return _connect("bytes", "io.debezium.data.Bits", **{"connect.parameters": parameters})
        case "enum":
            parameters = {"allowed": ",".join(logical.labels)}
            return _connect("string", "io.debezium.data.Enum", **{"connect.parameters": parameters})
    form = _FORMS[logical.kind]
    if isinstance(form, dict) and form["type"] == "record":
        full = f"{form['namespace']}.{form['name']}"
        form = full if full in named else form
        named.add(full)
    return form


def _decimal(precision: int, scale: int) -> Schema:
    return {
        "type": "bytes",
        "scale": scale,
        "precision": precision,
        "connect.version": 1,
        "connect.parameters": {"scale": str(scale), "connect.decimal.precision": str(precision)},
        "connect.name": "org.apache.kafka.connect.data.Decimal",
        "logicalType": "decimal",
    }


def described(logical: LogicalType) -> Schema:
    """What of a logical type its Avro form does not say."""
    ours: Json = {"logical": logical.kind}
    if logical.precision is not None:
        ours["precision"] = logical.precision
    if logical.scale is not None:
        ours["scale"] = logical.scale
    if logical.kind == "enum":
        ours["labels"] = list(logical.labels)
    if logical.element is not None:
        ours["element"] = described(logical.element)
    return ours  # type: ignore[no-any-return]


def logical_of(ours: Schema) -> LogicalType:
    """The inverse of `described`."""
    element = logical_of(ours["element"]) if "element" in ours else None
    labels = tuple(ours.get("labels", ()))
    return LogicalType(ours["logical"], ours.get("precision"), ours.get("scale"), labels, element)
