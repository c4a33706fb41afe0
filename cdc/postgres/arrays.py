"""Arrays: Postgres' binary or text form → an Avro list of nullable elements, and the shape of those that are not plain.

A list says nothing of several dimensions or of other lower bounds than 1: such a value is a `Shaped`, and its bounds come into the
envelope's last field (`cdc.avro.array_shapes`). The invariant: list and shape together hold the whole array.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from math import prod
from struct import Struct

from cdc.avro import string, zigzag
from cdc.postgres.rare_values import unescaped
from cdc.postgres.values import NULL, SOME

_HEAD, _DIMENSION, _SIZE = Struct(">iiI").unpack_from, Struct(">ii").unpack_from, Struct(">i").unpack_from
_DIMENSIONS_MAX = 6

Form = Callable[[bytes], bytes]
Bounds = Sequence[tuple[int, int]]  # (lower bound, size) of each dimension


class Shaped(bytes):
    """The Avro of an array of several dimensions, or of a lower bound other than 1; `shape` is its bounds as Postgres writes them."""

    shape: str


def _array(items: Sequence[bytes | None], form: Form, bounds: Bounds) -> bytes:
    """Avro after the union's branch; `items` are elements in the form that `form` reads."""
    if prod(size for _, size in bounds) != len(items):
        raise ValueError("not as many elements as its dimensions say")
    if not items:
        return SOME + b"\x00"
    listed = b"".join([NULL if item is None else SOME + form(item) for item in items])
    avro = SOME + zigzag(len(items)) + listed + b"\x00"
    if len(bounds) == 1 and bounds[0][0] == 1:
        return avro
    shaped = Shaped(avro)
    shaped.shape = "".join(f"[{lower}:{lower + size - 1}]" for lower, size in bounds)
    return shaped


def elements_of(data: bytes) -> tuple[list[bytes | None], Bounds]:
    """The elements of array_send's form, in their own binary form, and the array's bounds."""
    dimensions, _, _ = _HEAD(data)
    if not 0 <= dimensions <= _DIMENSIONS_MAX:
        raise ValueError("no array")
    bounds = [_DIMENSION(data, 12 + 8 * i)[::-1] for i in range(dimensions)]
    at, end, items = 12 + 8 * dimensions, len(data), list[bytes | None]()
    while at < end:
        (size,) = _SIZE(data, at)
        at += 4
        items.append(None if size < 0 else data[at : at + size])
        at += max(size, 0)
    if at != end:
        raise ValueError("not as long as its elements")
    return items, bounds or [(1, 0)]


def binary_array(form: Form) -> Form:
    """`form` is that of the elements' binary form."""
    return lambda data: _array(*_between(elements_of(data), form))


def text_array(form: Form) -> Form:
    """`form` is that of the elements' text form."""
    return lambda text: _array(*_between(_parsed(text), form))


def _between(parsed: tuple[Sequence[bytes | None], Bounds], form: Form) -> tuple[Sequence[bytes | None], Form, Bounds]:
    return parsed[0], form, parsed[1]


_BOUNDS = re.compile(rb"\[([+-]?\d+):([+-]?\d+)\]")
_TOKEN = re.compile(rb'"((?:[^"\\]|\\.)*)"|([^{},"\\]+)|([{},])', re.DOTALL)


def _parsed(text: bytes) -> tuple[Sequence[bytes | None], Bounds]:
    """array_out's form: `[0:1]={a,"b,c",NULL}`. No type with a logical one has another delimiter than a comma."""
    said = None
    if text[:1] == b"[":
        written, _, text = text.partition(b"=")
        said = [(int(lower), int(upper) - int(lower) + 1) for lower, upper in _BOUNDS.findall(written)]
    if text[:1] != b"{" or text[-1:] != b"}":
        raise ValueError("no array")
    if b'"' in text or b"{" in text[1:]:
        items, sizes = _nested(text)
    else:
        inner = text[1:-1]
        items = [None if item == b"NULL" else item for item in inner.split(b",")] if inner else []
        sizes = [len(items)]
    if said is not None and [size for _, size in said] != sizes:
        raise ValueError("other dimensions than it says")
    return items, said or [(1, size) for size in sizes]


def _nested(text: bytes) -> tuple[list[bytes | None], list[int]]:
    """Elements, and the size of each dimension: of every brace at a depth the same."""
    sizes = [-1] * (len(text) - len(text.lstrip(b"{")))
    counts, depth, at, items = [0] * len(sizes), 0, 0, list[bytes | None]()
    while at < len(text):
        if not (found := _TOKEN.match(text, at)):
            raise ValueError("no array")
        quoted, plain, mark = found.groups()
        at = found.end()
        if mark == b"{":
            counts[depth] = 0
            depth += 1
        elif mark == b"}":
            depth -= 1
            if sizes[depth] not in (-1, counts[depth]):
                raise ValueError("parts of different sizes")
            sizes[depth] = counts[depth]
            counts[depth - 1] += 1 if depth else 0
        elif mark != b",":
            items.append(unescaped(quoted) if plain is None else None if plain == b"NULL" else plain)
            counts[depth - 1] += 1
    return items, sizes


# -------------------------------------------------------------------------------------------------------------- envelope
def shapes_field(names: Sequence[str], images: Iterable[tuple[str, Sequence[bytes | None]]]) -> bytes:
    """The envelope's `shapes`: of each image its array columns, in the order of `names`."""
    found = {}
    for image, columns in images:
        shapes = {name: c.shape for name, c in zip(names, columns, strict=True) if isinstance(c, Shaped)}
        if shapes:
            found[image] = shapes
    return SOME + string(json.dumps(found, separators=(",", ":")).encode()) if found else NULL
