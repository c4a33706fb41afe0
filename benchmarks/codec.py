"""Micro-benchmark of the codecs: µs per row of the 10-column table, and the same as a ratio to fastavro's bare row.

    python -m benchmarks.codec [rows]

Each figure is the best of several passes over the same rows, measured in turn, so that a busy machine slows all alike.
"""

from __future__ import annotations

import gc
import io
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import fastavro

from cdc.avro import schemas_of
from cdc.postgres.codec import compile_chunk, compile_stream
from cdc.postgres.envelope import Origin
from cdc.records import Records
from cdc.table import Column, LogicalType, TableId, TableSchema
from sinks.postgres.codec import compile_rows

PASSES, LSN = 7, 0x16_B374_8D38
TOGETHER = 60  # rows of one kind that a stream's reader has in hand at once
COLUMNS = [
    ("id", LogicalType("int64"), "bigint"),
    ("a", LogicalType("int32"), "integer"),
    ("b", LogicalType("int64"), "bigint"),
    ("c", LogicalType("decimal", 12, 2), "numeric(12,2)"),
    ("d", LogicalType("float64"), "double precision"),
    ("e", LogicalType("boolean"), "boolean"),
    ("f", LogicalType("timestamptz"), "timestamp with time zone"),
    ("g", LogicalType("date"), "date"),
    ("h", LogicalType("text"), "text"),
    ("i", LogicalType("json"), "jsonb"),
]
SCHEMA = TableSchema(TableId("public", "bench"), tuple(Column(*column) for column in COLUMNS), ("id",))
EPOCH_US = 946_684_800_000_000
NOW_US = 1_795_446_000_123_456
Fields = tuple[list[bytes], list[bytes], dict[str, object]]


def numeric(cents: int) -> bytes:
    whole, fraction = divmod(cents, 100)
    digits = [whole // 10_000, whole % 10_000, fraction * 100]
    weight = 1
    while digits and not digits[0]:
        digits.pop(0)
        weight -= 1
    while digits and not digits[-1]:
        digits.pop()
    return struct.pack(f">HhHH{len(digits)}H", len(digits), weight if digits else 0, 0, 2, *digits)


def fields(i: int) -> Fields:
    """Row i of the bench table in binary, in text, and as fastavro takes it."""
    us = NOW_US - i * 1_000_000
    day = 7305 + i % 1000  # 2020-01-01 and on
    text = f"text value number {i} {'x' * (i % 40)}".encode()
    json = f'{{"k": {i}, "tags": ["a", "b"]}}'.encode()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(us // 10**6))
    binary = [
        struct.pack(">q", i),
        struct.pack(">i", i % 1000),
        struct.pack(">q", i * 7),
        numeric(i % 100_000),
        struct.pack(">d", i / 3),
        bytes([i % 2 == 0]),
        struct.pack(">q", us - EPOCH_US),
        struct.pack(">i", day),
        text,
        b"\x01" + json,
    ]
    date = time.strftime("%Y-%m-%d", time.gmtime((day + 10_957) * 86_400))
    texts = [str(i), str(i % 1000), str(i * 7), f"{i % 100_000 / 100:.2f}", repr(i / 3), "t" if i % 2 == 0 else "f"]
    texts += [f"{stamp}.{us % 10**6:06}+00", date]
    row = {
        "id": i,
        "a": i % 1000,
        "b": i * 7,
        "c": (i % 100_000).to_bytes(3, "big", signed=True),
        "d": i / 3,
        "e": i % 2 == 0,
        "f": f"{stamp.replace(' ', 'T')}.{us % 10**6:06}Z",
        "g": day + 10_957,
        "h": text.decode(),
        "i": json.decode(),
    }
    return binary, [*(item.encode() for item in texts), text, json], row


def message(items: list[bytes], kind: bytes, number: int = 0) -> bytes:
    body = b"".join(kind + len(item).to_bytes(4, "big") + item for item in items)
    head = b"w" + (LSN + 200 * number).to_bytes(8, "big") + bytes(16) + b"I\x00\x00\x40\x00N" if kind else b""
    return head + len(items).to_bytes(2, "big") + body


def best(passes: dict[str, Callable[[], None]], rows: int) -> dict[str, float]:
    """µs per row, the least of some passes; garbage collection off."""
    found: dict[str, float] = {}
    gc.disable()
    for _ in range(PASSES):
        for name, run in passes.items():
            begun = time.process_time()
            run()
            found[name] = min(found.get(name, 1e9), (time.process_time() - begun) / rows * 1e6)
            gc.collect()
    gc.enable()
    return found


class Pass(NamedTuple):
    """One way over some rows."""

    run: Callable[[], None]
    rows: int


def bare_writer(made: Sequence[Fields]) -> Pass:
    """`fastavro.schemaless_writer` of the row alone, without an envelope."""
    schema = fastavro.parse_schema(schemas_of("bench", SCHEMA, "postgresql").value["fields"][3]["type"][1])
    for field in schema["fields"]:  # raw wire values, as the codec's
        branch = field["type"][-1] if isinstance(field["type"], list) else field["type"]
        if isinstance(branch, dict):
            branch.pop("logicalType", None)

    def run() -> None:
        write, buffer = fastavro.schemaless_writer, io.BytesIO()
        for _, _, row in made:
            buffer.seek(0)
            buffer.truncate()
            write(buffer, schema, row)
            buffer.getvalue()

    return Pass(run, len(made))


def stream(made: Sequence[Fields], *, binary: bool = True) -> Pass:
    """Inserts of the rows, as messages of the stream, each with an LSN of its own."""
    messages = [message(row[not binary], b"b" if binary else b"t", number) for number, row in enumerate(made)]
    codec = compile_stream(SCHEMA, 1, 2, identity_full=False, binary=binary)
    transaction = origin().transaction(12_345, NOW_US)

    def run() -> None:
        codec.begin(transaction, Records(), [])
        for at in range(0, len(messages), TOGETHER):
            codec.insert(messages[at : at + TOGETHER], 1_000_000 + at)

    return Pass(run, len(made))


def chunk(made: Sequence[Fields]) -> Pass:
    """The rows as a load reads them."""
    payloads, codec = [message(row[0], b"") for row in made], compile_chunk(SCHEMA, 1, 2)
    reading = origin().reading(NOW_US)
    return Pass(lambda: void(codec.encode(payloads, 1_000_000, LSN, reading, Records())), len(made))


def streamed(made: Sequence[Fields]) -> Records:
    """What the stream's codec makes of the rows."""
    records, codec = Records(), compile_stream(SCHEMA, 1, 2, identity_full=False, binary=True)
    codec.begin(origin().transaction(12_345, NOW_US), records, [])
    codec.insert([message(row[0], b"b", number) for number, row in enumerate(made)], 1_000_000)
    return records


def lines(made: Sequence[Fields]) -> Pass:
    """A sink's way from streamed values to COPY lines."""
    values, schema = streamed(made).values, schemas_of("bench", SCHEMA, "postgresql").value
    decode = compile_rows(SCHEMA, schema, 2)

    def run() -> None:
        for at in range(0, len(values), 2000):
            decode(values[at : at + 2000])

    return Pass(run, len(made))


def origin() -> Origin:
    found = Origin("bench", "bench", 1, "0")
    found.clock(NOW_US)
    return found


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    made = [fields(i) for i in range(500_000, 500_000 + count)]
    passes = {
        "stream, binary": stream(made),
        "stream, text": stream(made, binary=False),
        "chunk": chunk(made),
        "sink, to COPY lines": lines(made),
        "fastavro, bare row": bare_writer(made),
    }
    found = best({name: one.run for name, one in passes.items()}, count)
    for name, us in found.items():
        print(f"{name:20} {us:6.2f} µs/row   {us / found['fastavro, bare row']:5.2f} x fastavro")


def void(_: object) -> None:
    pass


if __name__ == "__main__":
    main()
