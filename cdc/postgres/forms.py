"""The two ways into Avro of each logical type, as functions: from a value's binary form, and from its text form.

Generated code has shorter ways for the common types (`cdc.postgres.rowcode`); for the rarer ones (`CALLED`), and for the elements of
arrays, it calls these.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct

from cdc.avro import string
from cdc.postgres import rare_values as rare
from cdc.postgres import values
from cdc.postgres.arrays import binary_array, text_array
from cdc.table import LogicalType

Form = Callable[[bytes], bytes]

CALLED = frozenset(("uint32", "timetz", "interval", "money", "bit", "bits", "point", "hstore", "array"))
# Their text form is their Avro form.
TEXTUAL = frozenset(("text", "enum", "json", "xml", "tsvector", "ltree", "other"))

_BINARY: dict[str, Form] = {
    "bytes": string,
    "numeric": values.binary_numeric,
    "text": string,
    "enum": string,
    "xml": string,
    "json": lambda data: string(without_version(data)),
    "ltree": lambda data: string(without_version(data)),
    "tsvector": lambda data: string(rare.printed_tsvector(data)),
    "uint32": rare.binary_uint32,
    "timetz": rare.binary_timetz,
    "interval": rare.binary_interval,
    "money": rare.binary_money,
    "bit": rare.binary_bit,
    "point": rare.binary_point,
    "hstore": rare.binary_hstore,
}
_TEXT: dict[str, Form] = {
    **values.TEXT_FORMS,
    **dict.fromkeys(TEXTUAL, string),
    "uint32": rare.text_uint32,
    "timetz": rare.text_timetz,
    "interval": rare.text_interval,
    "money": rare.text_money,
    "bit": rare.text_bit,
    "point": rare.text_point,
    "hstore": rare.text_hstore,
}


def without_version(data: bytes) -> bytes:
    """The binary forms of jsonb and ltree begin with their version, 1, which no text of theirs, nor JSON, can begin with."""
    return data[1:] if data[:1] == b"\x01" else data


def printed_form(printer: Form) -> Form:
    """From the binary form, by way of the text that the type's output function prints."""
    return lambda data: string(printer(data))


def binary_form(logical: LogicalType) -> Form:
    """From the binary form; of an array with the union's branch before it. `other` has none here."""
    match logical.kind:
        case "array":
            assert logical.element is not None
            return binary_array(binary_form(logical.element))
        case "decimal":
            decimal = values.binary_decimal(logical.scale or 0, b"")
            return lambda data: decimal(data, 0, len(data))
        case "bits":
            return rare.binary_bits(logical.precision or 0)
    if logical.kind not in values.FIXED:
        return _BINARY[logical.kind]
    unpack, form = Struct(f">{values.FIXED[logical.kind][0]}").unpack, values.BINARY_FORMS[logical.kind]
    return lambda data: form(unpack(data)[0])


def text_form(logical: LogicalType) -> Form:
    """From the text form; of an array with the union's branch before it."""
    match logical.kind:
        case "array":
            assert logical.element is not None
            return text_array(text_form(logical.element))
        case "decimal":
            return values.text_decimal(logical.scale or 0)
        case "bits":
            return rare.text_bits(logical.precision or 0)
    return _TEXT[logical.kind]
