"""Transactional messages on real servers: which are captured, in what order, and that a position counts all of them (rule R2)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress

import pytest

from cdc.avro import ChangeEvent, TableSchemas, decode_datum, encode_datum
from cdc.errors import CdcError
from cdc.load import Load
from cdc.log import Draft
from cdc.position import Position
from cdc.postgres import reader
from cdc.postgres.messages import Messages, schemas_of_messages
from cdc.postgres.pgoutput import Message
from cdc.postgres.reader import Reader
from cdc.records import Records
from cdc.selection import TableFilter
from cdc.table import MESSAGES, TableId, TableSchema
from tests.fakes import MemoryLog
from tests.integration.pg_source import Capture, Registry, brief
from tests.pg_rows import COMMIT_US, LSN, NOW_US, XID, origin, source
from tests.servers import Database

TABLES = ["public.t", "public.u"]
SCHEMA = "CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE u (id int PRIMARY KEY, v int); CREATE TABLE other (id int)"


def emit(prefix: str, content: str, *, transactional: bool = True) -> str:
    return f"SELECT pg_logical_emit_message({str(transactional).lower()}, '{prefix}', '{content}')"


def test_bytes_are_those_of_the_schema() -> None:
    """The joined bytes against fastavro, a prefix and a content of any characters among them."""
    for prefix, content in (("outbox", b'{"a": 1}'), ("p\u00e4\U0001f600", bytes(range(256)) * 40), ("", b"")):
        messages, records, made = Messages("shop", Registry(), ["*"]), Records(), schemas_of_messages()
        messages.append(
            Message(True, LSN, prefix, content), 77, origin().transaction(XID, COMMIT_US), origin(), records
        )
        block = source_of(made, records.values[0])
        datum = {
            "op": "m",
            "ts_ms": NOW_US // 1000,
            "source": block | {"schema": "", "table": ""},
            "transaction": None,
            "message": {"prefix": prefix, "content": content},
        }
        assert records.values[0][5:] == encode_datum(made.value, datum)
        assert made.key is not None
        assert records.keys[0] is not None
        assert records.keys[0][5:] == encode_datum(made.key, {"prefix": prefix})


def source_of(made: TableSchemas, value: bytes) -> dict[str, object]:
    """The source block that is expected of any event of that transaction."""
    expected = source(TableSchema(TableId("", ""), ()), 77, snapshot=False)
    assert decode_datum(made.value, value[5:])["source"] == expected
    return expected


def test_selection() -> None:
    wants = Messages("shop", Registry(), ["outbox", "app.*", "a*z"]).wants
    taken = ["outbox", "app.", "app.x\ny", "az", "a.z"]
    assert [p for p in [*taken, "outbox2", "Outbox", "app", "xapp.", ""] if wants(p)] == taken
    everything = Messages("shop", Registry(), ["*"])
    assert [p for p in ("x", "", "penstock.mark.other", "penstock.x", "penstock") if everything.wants(p)] == [
        "x",
        "",
        "penstock",
    ]
    assert not Messages("shop", Registry(), []).wants("outbox")


def test_no_sink_takes_them_and_the_name_comes_back() -> None:
    assert TableId.parse(str(MESSAGES)) == MESSAGES
    assert not TableFilter().matches(MESSAGES)
    assert not TableFilter.parse(["*.*"]).matches(MESSAGES)
    for text in ('"a".""', "message", '""', '"".', "."):
        with pytest.raises(ValueError, match="not a table name"):
            TableId.parse(text)


@pytest.mark.majors(16, 18)
def test_they_stand_where_they_were_written(database: Database) -> None:
    """In the order of the transaction, numbered like rows; only those of the prefixes, and never what Penstock itself writes."""
    database.execute(SCHEMA)
    capture = Capture(database.grant_source(), tables=TABLES, messages=["outbox", "app.*"], heartbeat_s=0.05).start()
    database.execute(
        f"""BEGIN; {emit("outbox", "1")}; INSERT INTO t VALUES (1, 1); {emit("app.x", "two")}; {emit("other", "no")};
            {emit("outbox", "not in a transaction", transactional=False)}; {emit("penstock.mark.z", "no")};
            SAVEPOINT s; {emit("outbox", "rolled back")}; ROLLBACK TO s; INSERT INTO u VALUES (1, 1); TRUNCATE u;
            {emit("outbox", "3")}; COMMIT; {emit("app.x", "a transaction of its own")}"""
    )
    runs = capture.until_mark()
    assert brief(capture.events) == [
        ("m", "message", ("outbox", b"1")),
        ("c", "t", (1, 1)),
        ("m", "message", ("app.x", b"two")),
        ("c", "u", (1, 1)),
        ("t", "u", ()),
        ("m", "message", ("outbox", b"3")),
        ("m", "message", ("app.x", b"a transaction of its own")),
    ]
    assert [event.source["sequence"] for event in capture.events] == [str(i + 1) for i in range(7)]
    message, row = capture.events[0], capture.events[1]
    assert message.key == {"prefix": "outbox"}
    assert message.source["txId"] == row.source["txId"]
    assert message.source["lsn"] <= row.source["lsn"]
    assert (message.source["schema"], message.source["table"]) == ("", "")
    log = MemoryLog()
    log.open_writer()
    position = Position(0, 0, None, Load(None, {}).state())
    checkpoints = [log.append(run.records, Draft(position, True)) for run in runs]
    assert sum(checkpoint.counts.get(MESSAGES, {}).get("m", 0) for checkpoint in checkpoints) == 4


@pytest.mark.majors(16, 18)
def test_resumes_at_any_event(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and messages of one transaction, killed after each of them: nothing twice, nothing missing, in the same order."""
    capture, transactions = busy(database)
    whole = Capture(capture.url, capture.registry, tables=TABLES, messages=["a.*"])
    whole.at, whole.cut, whole.filter = capture.at, capture.cut, capture.filter
    capture.source.close()
    whole.open().until_mark()
    whole.source.close()
    events = step_by_step(capture, monkeypatch, lambda: ["a.*"])
    assert transactions == 12
    assert {"m", "c", "u", "d", "t"} == {event.op for event in whole.events}
    assert brief(events) == brief(whole.events)
    assert [event.source["sequence"] for event in events] == [str(i + 1) for i in range(len(events))]


@pytest.mark.parametrize("counted", [True, False], ids=["upheld", "off"])
def test_what_is_captured_shifts_no_position(
    database: Database, monkeypatch: pytest.MonkeyPatch, counted: bool
) -> None:
    """R2: `messages` is another one after each kill, in the middle of transactions, and every row still comes exactly once. Where
    only captured messages are counted, rows are lost or doubled, or the history is taken for another one."""
    capture, _ = busy(database)
    whole = Capture(capture.url, capture.registry, tables=TABLES, messages=["*"])
    whole.at, whole.cut, whole.filter = capture.at, capture.cut, capture.filter
    capture.source.close()
    whole.open().until_mark()
    whole.source.close()
    if not counted:
        monkeypatch.setattr(Reader, "_message", _counting_captured)
    rng = random.Random(11)
    events: list[ChangeEvent] = []
    with nullcontext() if counted else suppress(CdcError):
        events = step_by_step(capture, monkeypatch, lambda: rng.choice([["a.*"], ["*"], [], ["b.*"]]))
    rows = [[event for event in found if event[0] != "m"] for found in (brief(events), brief(whole.events))]
    messages = [[event for event in found if event[0] == "m"] for found in (brief(events), brief(whole.events))]
    right = rows[0] == rows[1] and 0 < len(messages[0]) < len(messages[1]) and is_part(messages[0], messages[1])
    assert right == counted


def _counting_captured(self: Reader, message: Message, size: int, real: Callable[..., None] = Reader._message) -> None:
    real(self, message, size)
    assert self._transaction is not None
    if not self._messages.wants(message.prefix):
        self._transaction.ordinal -= 1


def is_part(some: Sequence[object], everything: Sequence[object]) -> bool:
    """Are these among those, in the same order?"""
    rest = iter(everything)
    return all(one in rest for one in some)


def busy(database: Database) -> tuple[Capture, int]:
    """A started capture, and twelve transactions of rows, TRUNCATEs and messages behind it."""
    database.execute(SCHEMA)
    capture = Capture(database.grant_source(), tables=TABLES, messages=["a.*"]).start()
    rng, texts = random.Random(7), []
    for number in range(12):
        steps = [
            f"INSERT INTO {rng.choice('tu')} VALUES ({number * 100 + i}, {i})" for i in range(rng.choice((1, 3, 9)))
        ]
        steps += [emit(rng.choice(("a.x", "a.y", "b.z")), f"{number}/{i}") for i in range(rng.choice((2, 6)))]
        steps += [f"UPDATE t SET v = v + 1 WHERE id >= {number * 100 - 100}", "TRUNCATE u"] * rng.randrange(2)
        steps += ["INSERT INTO other VALUES (1)", f"DELETE FROM t WHERE id % 7 = {number}"]
        texts.append("; ".join(rng.sample(steps, len(steps))))
    for text in texts:
        database.execute(text)
    return capture, len(texts)


def step_by_step(
    capture: Capture, monkeypatch: pytest.MonkeyPatch, messages: Callable[[], list[str]]
) -> list[ChangeEvent]:
    """The capture's events, read one by one and with a kill after many of them; `messages` is asked at each start."""
    monkeypatch.setattr(reader, "BYTES_MAX", 1)  # a run per event
    rng = random.Random(3)
    capture.options["messages"] = messages()
    capture.reopen()
    mark, runs = capture.source.mark(), []
    inside = 0
    while not (runs and mark in runs[-1].marks):
        runs.append(run := capture.poll(2.0))
        assert len(runs) < 5000
        if run.moved_on and rng.random() < 0.4:
            inside += run.in_transaction
            if rng.random() < 0.5:
                capture.source.confirm(capture.cut)
            capture.options["messages"] = messages()
            capture.reopen()
    assert inside > 20
    return list(capture.events)
