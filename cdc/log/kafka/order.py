"""The order of one table's events that lie in several partitions: by `source.sequence`, which every event carries (protocol A5).

The schema says where it stands, behind both rows. What writers put before it repeats from event to event, so that mostly it is found
by looking for that; where a row happens to hold the same bytes, the event is read field by field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cdc.avro import HEADER_BYTES, read_varint, schema_id
from cdc.errors import CdcError
from cdc.log import Json
from cdc.records import Records

_FIXED_BYTES = {"null": 0, "boolean": 1, "float": 4, "double": 8}


def merged(parts: Iterable[Records], schema: Callable[[int], Json]) -> Records:
    """All of them in order, where each of them is in order. `schema` gives a schema by its id."""
    keys: list[bytes | None] = []
    values: list[bytes] = []
    for part in parts:
        keys += part.keys
        values += part.values
    numbers = sequences(values, schema)
    order = sorted(range(len(values)), key=numbers.__getitem__)  # few ascending runs: as good as a merge
    return Records([keys[i] for i in order], [values[i] for i in order])


def sequences(values: list[bytes], schema: Callable[[int], Json]) -> list[int]:
    """`source.sequence` of framed values of one writer. Raises CDC-LOG-133 where there is none, CDC-LOG-402 without the schema."""
    found, layouts = [], dict[bytes, _Layout]()
    names = middle = b""  # what stood before the times of the event before, and from there to the sequence
    for value in values:
        layout = layouts.get(value[:HEADER_BYTES])
        try:
            if layout is None:
                layout = layouts[value[:HEADER_BYTES]] = _Layout(schema(schema_id(value)))
                names = b""
            at = value.find(names) if names else -1
            if at < 0 or value.rfind(names) != at:
                at = layout.source(value)
                names = value[at : layout.names_end(value, at)]
            at += len(names)
            if middle and value.startswith(middle, at):
                at += len(middle)
            else:
                begin, at = at, layout.sequence(value, at)
                middle = value[begin:at]
            length, at = read_varint(value, at)
            found.append(int(value[at : at + length]))
        except (IndexError, ValueError, KeyError) as error:
            raise CdcError("CDC-LOG-133", f"an event without `source.sequence`: {error!r}") from error
    return found


class _Layout:
    """Where things stand in the values of one schema."""

    def __init__(self, schema: Json) -> None:
        self._named: dict[str, Json] = {}
        self._collect(schema, "")
        fields = {field["name"]: field["type"] for field in schema["fields"]}
        names = list(fields)
        self._before = [fields[name] for name in names[: names.index("source")]]
        source = [(field["name"], field["type"]) for field in self._resolved(fields["source"])["fields"]]
        at = [name for name, _ in source].index("sequence")
        types = [type_ for _, type_ in source[: at + 1]]
        strings = next((i for i, type_ in enumerate(types) if type_ != "string"), at)
        self._names, self._middle, self._sequence = types[:strings], types[strings:at], types[at]

    def source(self, value: bytes) -> int:
        """Where the source block begins."""
        return self._skip_all(self._before, value, HEADER_BYTES)

    def names_end(self, value: bytes, at: int) -> int:
        """Where the strings end with which a source block begins."""
        return self._skip_all(self._names, value, at)

    def sequence(self, value: bytes, at: int) -> int:
        """Where the text of the sequence begins, from the end of the names."""
        at = self._skip_all(self._middle, value, at)
        if isinstance(self._sequence, list):
            branch, at = read_varint(value, at)
            if self._sequence[branch] != "string":
                raise ValueError("null")
        return at

    def _collect(self, node: Json, namespace: str) -> None:
        """Named types, which are defined once and then referred to by name."""
        if isinstance(node, list):
            for item in node:
                self._collect(item, namespace)
        elif isinstance(node, dict):
            if "name" in node and node["type"] in ("record", "enum", "fixed"):
                namespace = node.get("namespace", namespace)
                self._named[node["name"]] = self._named[f"{namespace}.{node['name']}"] = node
            for field in node.get("fields", ()):
                self._collect(field["type"], namespace)
            self._collect(node.get("items"), namespace)

    def _resolved(self, node: Json) -> Json:
        return self._named.get(node, node) if isinstance(node, str) else node

    def _skip_all(self, nodes: Iterable[Json], value: bytes, at: int) -> int:
        for node in nodes:
            at = self._skip(node, value, at)
        return at

    def _skip(self, node: Json, value: bytes, at: int) -> int:
        """Where the datum at `at` ends."""
        node = self._resolved(node)
        if isinstance(node, list):
            branch, at = read_varint(value, at)
            return self._skip(node[branch], value, at)
        kind = node["type"] if isinstance(node, dict) else node
        if kind in ("string", "bytes"):
            length, at = read_varint(value, at)
            return at + length
        if kind in ("int", "long", "enum"):
            return read_varint(value, at)[1]
        if kind in _FIXED_BYTES:
            return at + _FIXED_BYTES[kind]
        if kind == "record":
            return self._skip_all((field["type"] for field in node["fields"]), value, at)
        if kind in ("array", "map"):
            entry = [node["items"]] if kind == "array" else ["string", node["values"]]
            while count := (found := read_varint(value, at))[0]:
                at = self._skip_all(entry * count, value, found[1])
            return found[1]
        if kind == "fixed":
            return at + int(node["size"])
        raise ValueError(f"an unknown type {kind!r}")
