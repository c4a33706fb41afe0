"""Arrays: elements in row-major order and bounds, as the wire has them (`cdc.avro`), to Postgres' array literals. Pure functions.

Texts are Latin-1 strings of UTF-8 bytes, or plain strings: nothing beyond ASCII is looked at. A literal is spelt as the server
prints it, so that a column of text holds what the source's cast to text gives.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from cdc.avro import read_varint

Json = Any
Shapes = dict[str, dict[str, str]]
_QUOTED = re.compile(r'[ \t\n\r\v\f"\\{}]|\A(?:[nN][uU][lL][lL])?\Z')
_ESCAPED = re.compile(r'["\\]')
_BOUNDS = re.compile(r"\[([+-]?\d+):([+-]?\d+)\]")


def quoted(element: str, delimiter: str) -> str:
    """An element's text inside an array literal."""
    if delimiter in element or _QUOTED.search(element):
        return '"' + _ESCAPED.sub(r"\\\g<0>", element) + '"'
    return element


def literal(elements: list[str], bounds: str | None, delimiter: str) -> str:
    """The literal of an array whose elements are spelt as it spells them (`quoted`, or NULL). Raises ValueError for bounds that do
    not fit them."""
    if bounds is None:
        return "{" + delimiter.join(elements) + "}"
    lengths, plain = _dimensions(bounds)
    _fits(lengths, len(elements), bounds)
    for length in reversed(lengths):
        elements = ["{" + delimiter.join(elements[at : at + length]) + "}" for at in range(0, len(elements), length)]
    return elements[0] if plain else f"{bounds}={elements[0]}"


def nested(elements: list[Json], bounds: str | None) -> list[Json]:
    """The elements as a list of lists of … Raises ValueError for bounds that do not fit them."""
    if bounds is None:
        return elements
    lengths, _ = _dimensions(bounds)
    _fits(lengths, len(elements), bounds)
    for length in reversed(lengths[1:]):
        elements = [elements[at : at + length] for at in range(0, len(elements), length)]
    return elements


def _fits(lengths: tuple[int, ...], count: int, bounds: str) -> None:
    for length in lengths:
        count, rest = divmod(count, length)
        if rest:
            count = 0
    if count != 1:
        raise ValueError(f"bounds that do not fit the array: {bounds}")


@lru_cache(maxsize=4096)
def _dimensions(bounds: str) -> tuple[tuple[int, ...], bool]:
    """The length of each dimension, and whether all begin at 1."""
    found = [(int(lower), int(upper)) for lower, upper in _BOUNDS.findall(bounds)]
    if not found or _BOUNDS.sub("", bounds) or any(lower > upper for lower, upper in found):
        raise ValueError(f"not the bounds of an array: {bounds}")
    return tuple(upper - lower + 1 for lower, upper in found), all(lower == 1 for lower, _ in found)


def shapes(value: bytes, at: int) -> Shapes:
    """The field `shapes` at `at`, which is a value's last. Raises IndexError and ValueError for anything else."""
    if value[at] != 2:
        raise ValueError("no such branch" if value[at] else "bytes are left over")
    length, at = read_varint(value, at + 1)
    if at + length != len(value):
        raise ValueError("bytes are left over or missing")
    found: Shapes = json.loads(value[at:])
    if not isinstance(found, dict) or not all(isinstance(of_image, dict) for of_image in found.values()):
        raise ValueError("not the shapes of arrays")
    return found
