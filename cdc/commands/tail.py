"""`cdc tail`: decoded change events from the log, newest last. It reads, and shows the user's own data: that is its job.

The invariant: one event is one line, and nothing in a name or a value can be more than text to the terminal.
"""

from __future__ import annotations

import base64
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from cdc.avro import ChangeEvent, decode_event, schema_id
from cdc.commands import logs
from cdc.config import load
from cdc.errors import EXIT_OK, CdcError
from cdc.log import Checkpoint, Log
from cdc.presentation import for_stream
from cdc.records import Batch
from cdc.suggest import did_you_mean
from cdc.supervise import Stop
from cdc.table import LogicalType, TableId
from sinks.postgres import arrays, text

Json = Any
IDLE_S = 0.2
MONEY_SCALE = 2
FLOAT = LogicalType("float64")


class Item(NamedTuple):
    """One event and the checkpoint that it came in."""

    checkpoint: int
    event: ChangeEvent


def run(*, as_json: bool, file: Path, tables: Sequence[str], count: int, follow: bool) -> int:
    """Raises CDC-LOG-101 when there is no log yet, CDC-RUN-301 for a table that it does not hold."""
    config = load(file)
    with logs.look(config) as surveyor:
        survey = surveyor.survey()
        wanted = chosen(tables, {**survey.tables, **survey.events})
        after = surveyor.mark_before_events(count, wanted)
        # Only now, since a capture goes on writing: nothing is shown when the mark lies behind the last checkpoint.
        newest = surveyor.last()
    show = json_line if as_json else text_line
    last = newest.number if newest else -1
    with Stop().on_signals() as stop, closing(logs.open_log(config)) as log:
        recent: deque[Item] = deque(maxlen=count)
        with closing(log.read(after, wanted, IDLE_S)) as items:
            for item in items if last >= 0 or follow else ():
                if item is not None and item[0].number <= last:
                    recent.extend(decoded(log, *item))
                if item is None or item[0].number >= last:
                    while recent:
                        print(show(recent.popleft()))
                    sys.stdout.flush()
                    if not follow:
                        break
                if item is not None and item[0].number > last:
                    for one in decoded(log, *item):
                        print(show(one))
                    sys.stdout.flush()
                if stop():
                    break
    return EXIT_OK


def chosen(names: Sequence[str], known: Mapping[TableId, object]) -> Callable[[TableId], bool]:
    """The tables that were named (`message` for messages), or all. Raises CDC-RUN-301 for one that the log does not hold."""
    tables = {known_table(name, known) for name in names}
    return lambda table: not tables or table in tables


def known_table(name: str, known: Mapping[TableId, object]) -> TableId:
    """The table of this name. Raises CDC-RUN-301 when the log does not hold it."""
    try:
        table = TableId.parse(name)
    except ValueError:
        table = TableId("", name)
    if table not in known:
        near = did_you_mean(name, map(str, known))
        raise CdcError("CDC-RUN-301", f"the log holds no table {printable(name)}{near}", where=printable(name))
    return table


def decoded(log: Log, checkpoint: Checkpoint, batch: Batch) -> Iterator[Item]:
    """The events of one checkpoint, in the source's order."""
    events = []
    for records in batch.values():
        for key, value in zip(records.keys, records.values, strict=True):
            key_schema = None if key is None else log.schema(schema_id(key))
            events.append(decode_event(log.schema(schema_id(value)), value, key_schema, key))
    events.sort(key=lambda event: int(event.source["sequence"]))
    return (Item(checkpoint.number, event) for event in events)


def readable(logical: LogicalType, value: Json, bounds: str | None = None) -> Json:
    """A wire value as people and JSON write it; `bounds` are an array's."""
    if value is None:
        return None
    match logical.kind:
        case "array":
            assert logical.element is not None
            return arrays.nested([readable(logical.element, item) for item in value], bounds)
        case "decimal" | "money":
            scale = MONEY_SCALE if logical.kind == "money" else logical.scale or 0
            return text.decimal(int.from_bytes(value, "big", signed=True), scale) if value else "NaN"
        case "numeric":
            return text.numeric(value["value"], value["scale"])
        case "bit":
            return int(value)
        case "bits":
            return text.bits(value, logical.precision or 0)
        case "point":
            return [readable(FLOAT, value[axis]) for axis in ("x", "y")]
        case "bytes":
            return base64.b64encode(value).decode()
        case "date":
            return text.DAYS[value]
        case "time_us":
            return text.time_us(value)
        case "time_ms":
            return text.time_us(value * 1000)
        case "timestamp_us":
            return text.timestamp_us(value)
        case "timestamp_ms":
            return text.timestamp_ms(value)
        case "float32" | "float64" if value != value or value in (float("inf"), float("-inf")):  # noqa: PLR0124
            return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"  # noqa: PLR0124
    return value


def readable_row(event: ChangeEvent, row: Mapping[str, Json] | None, image: str = "") -> dict[str, Json] | None:
    """A key or a row, readable; `image` is before or after."""
    if row is None:
        return None
    shapes, columns = event.shapes.get(image, {}), event.table.by_name
    return {name: readable(columns[name].type, value, shapes.get(name)) for name, value in row.items()}


def json_line(item: Item) -> str:
    """One event as a JSON object. A terminal gets ASCII alone."""
    event = item.event
    body = {
        "checkpoint": item.checkpoint,
        "sequence": int(event.source["sequence"]),
        "op": event.op,
        "table": named(event.table.id),
        "key": readable_row(event, event.key),
        "before": readable_row(event, event.before, "before"),
        "after": readable_row(event, event.after, "after"),
        "unchanged": list(event.unchanged),
        **({"shapes": event.shapes} if event.shapes else {}),
        "ts_ms": event.source["ts_ms"],
        "source": dict(event.source),
    }
    return json.dumps(body, ensure_ascii=sys.stdout.isatty(), default=_bytes)


def _bytes(value: Json) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def text_line(item: Item) -> str:
    """One event for people: checkpoint, commit time, op, table, key, then the row; a message's content where it is text."""
    event = item.event
    ts_ms = event.source.get("ts_ms")
    when = datetime.fromtimestamp(ts_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] if ts_ms else "-"
    parts = [f"{item.checkpoint:>8} {when} {event.op} {printable(named(event.table.id))}"]
    if event.key:
        parts.append(f"[{_fields(readable_row(event, event.key))}]")
    if event.after is not None and event.op == "m":
        parts.append(_content(event.after["content"]))
    elif event.after is not None:
        rest = {name: value for name, value in event.after.items() if name not in (event.key or {})}
        parts.append(_fields(readable_row(event, rest, "after"), event.shapes.get("after", {})))
        parts += [f"{printable(name)}=(unchanged)" for name in event.unchanged]
    elif event.before is not None and not event.key:
        parts.append(_fields(readable_row(event, event.before, "before"), event.shapes.get("before", {})))
    return for_stream(" ".join(part for part in parts if part), sys.stdout)


def named(table: TableId) -> str:
    """The table as `cdc tail` takes and shows it: messages, which are of none, by their topic's last part."""
    return str(table) if table.schema else table.name


def _content(content: bytes) -> str:
    try:
        return printable(content.decode())
    except UnicodeDecodeError:
        return f"base64 {_bytes(content)}"


def _fields(row: Mapping[str, Json] | None, shapes: Mapping[str, str] = MappingProxyType({})) -> str:
    return " ".join(
        f"{printable(name)}{printable(shapes.get(name, ''))}={printable(json.dumps(value, ensure_ascii=False))}"
        for name, value in (row or {}).items()
    )


def printable(words: str) -> str:
    """On one line, with nothing in it that a terminal could obey."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in words
    )
