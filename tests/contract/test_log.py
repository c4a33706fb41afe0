"""What every log promises: the sentences of `cdc.log.Log`, run against each implementation.

An implementation joins by a harness: `open` gives another process's view of one log, `usurp` one that takes it over although a writer
lives, `other` a different log. `dense`: offsets are numbers of records. `immediate`: a
reading that goes on sees at once what was appended. `refuses`: an overtaken writer is told so by the next
change itself; else that fails, and the next `open_writer` says so. Timing, files and kills are the implementations' own tests.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import pytest

from cdc.errors import CdcError, Superseded, Unavailable
from cdc.log import Begun, Checkpoint, Draft, Intent, Log, Mark, Signal, Span, TableState
from cdc.log.embedded import EmbeddedLog
from cdc.log.kafka.client import KafkaSettings
from cdc.log.kafka.log import KafkaLog
from cdc.log.kafka.writer import Identity
from cdc.position import Position
from cdc.records import Batch, Records
from cdc.table import TableId
from tests.fakes import MemoryLog, Storage

A, B, ODD = TableId("public", "a"), TableId("public", "b"), TableId('Sch"ema', "ta.b%le\n" + "é" * 29)


T = TypeVar("T")


class Embedded:
    dense = immediate = refuses = True

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.path: Path = request.getfixturevalue("tmp_path")
        self.opened = list[EmbeddedLog]()

    def open(self, retention: str = "forever", name: str = "one.log") -> EmbeddedLog:
        log = EmbeddedLog(self.path / name, segment_bytes=1 << 18, retention=retention, free_bytes_min=0)
        self.opened.append(log)
        return log

    def usurp(self) -> EmbeddedLog:
        (self.path / "one.log" / "writer.lock").unlink()  # what no user should do
        return self.open()

    def other(self) -> EmbeddedLog:
        return self.open(name="other.log")

    def close(self) -> None:
        for log in self.opened:
            log.close()


class Memory:
    dense = immediate = refuses = True

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.storage = Storage()

    def open(self, retention: str = "forever") -> MemoryLog:
        return MemoryLog(self.storage, retention=retention)

    def usurp(self) -> MemoryLog:
        return self.open()

    def other(self) -> MemoryLog:
        return MemoryLog()

    def close(self) -> None:
        pass


class Kafka:
    """Each view has an identity of its own, as another process would."""

    dense = immediate = refuses = False

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.broker = request.getfixturevalue("kafka")
        self.pipeline, self.opened = f"t{uuid4().hex[:12]}", list[KafkaLog]()

    def open(self, retention: str = "forever", suffix: str = "") -> KafkaLog:
        settings = KafkaSettings(self.broker.bootstrap, retention=retention)
        log = KafkaLog(settings, self.pipeline + suffix, identity=Identity())
        self.opened.append(log)
        return log

    def usurp(self) -> KafkaLog:
        return self.open()

    def other(self) -> KafkaLog:
        return self.open(suffix="other")

    def close(self) -> None:
        for log in self.opened:
            log.close()
        self.broker.drop_topics(self.pipeline)


Harness = Embedded | Memory | Kafka


@pytest.fixture(
    params=[Embedded, Memory, pytest.param(Kafka, marks=pytest.mark.server)], ids=lambda made: made.__name__.lower()
)
def harness(request: pytest.FixtureRequest) -> Iterator[Harness]:
    with closing(request.param(request)) as made:
        yield made


@pytest.fixture
def log(harness: Harness) -> Log:
    return harness.open()


def value(op: str, payload: bytes = b"") -> bytes:
    return b"\x00\x00\x00\x00\x07\x02" + op.encode() + b"\x00\x00" + payload


def key(n: int) -> bytes:
    return b"\x00\x00\x00\x00\x08" + n.to_bytes(4, "big")


def rows(n: int, op: str = "c", size: int = 8, keyed: bool = True) -> Records:
    return Records([key(i) if keyed else None for i in range(n)], [value(op, os.urandom(size)) for _ in range(n)])


def position(sequence: int = 0, epoch: int = 0) -> Position:
    return Position(epoch, sequence, {"lsn": "0/1A", "xids": [7]}, {"load": None})


def draft(cut: bool = True, epoch: int = 0, sequence: int = 0, **more: object) -> Draft:
    return Draft(position(sequence, epoch), cut, **more)  # type: ignore[arg-type]


def start(log: Log) -> Mark:
    return Mark(-1, log.id)


def everything(table: TableId) -> bool:
    return True


def available(log: Log, after: Mark, tables: Callable[[TableId], bool] = everything) -> list[tuple[Checkpoint, Batch]]:
    """What can be read now."""
    found = []
    with closing(log.read(after, tables, 0.0)) as items:
        for item in items:
            if item is None:
                return found
            found.append(item)
    raise AssertionError("read ended by itself")


def plain(batch: Batch) -> Mapping[TableId, tuple[list[bytes | None], list[bytes]]]:
    return {table: (records.keys, records.values) for table, records in batch.items()}


def eventually(get: Callable[[], T], wanted: T) -> None:
    """What another process has written may take a moment to be seen."""
    deadline = time.monotonic() + 5
    while get() != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    assert get() == wanted


def check_spans(
    harness: Harness, made: list[Checkpoint], counts: list[int], *, before: int = 0, table: TableId = A
) -> None:
    """The table's ranges hold so many records, each behind the one before, the first one behind so many records."""
    end = before
    for checkpoint, count in zip(made, counts, strict=True):
        (span,) = checkpoint.spans[table]
        assert span.count == span.end - span.begin == count
        assert span.begin == end if harness.dense else span.begin >= end
        end = span.end


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(CdcError) as caught:
        act()
    assert caught.value.remedy
    return caught.value.code


# ------------------------------------------------------------------------------------------------------------------ append
def test_a_new_log_is_empty(log: Log) -> None:
    assert log.last_checkpoint() is None
    assert available(log, start(log)) == []
    assert log.open_writer() == (None, None, None, {})


def test_an_appended_batch_is_read_as_it_was(log: Log) -> None:
    log.open_writer()
    batch = {A: rows(3, "u"), B: rows(2, keyed=False), ODD: rows(1, "d")}
    batch[A].values[0], batch[A].keys[1] = value("c", b"x" * 100_000), key(1) + b"\x00" * 5_000
    sent = {table: (list(r.keys), list(r.values)) for table, r in batch.items()}
    position = Position(2, 17, {"lsn": 1, "text": "é\u2028'\""}, [None, 1.5, {"a": [True]}])
    appended = log.append(
        batch,
        Draft(position, False, (Begun(A, 1, False), Begun(B, 4, True)), (ODD,), (5, 9), {A: {"facts": 1}}),
    )
    batch[A].values.clear()  # the caller may use its lists again
    [(checkpoint, read)] = available(log, start(log))
    assert plain(read) == sent
    assert checkpoint == appended
    assert checkpoint.log_id == log.id
    assert (checkpoint.number, checkpoint.previous) == (0, start(log))
    assert checkpoint.position == position
    assert checkpoint.epoch == 2
    assert not checkpoint.cut
    assert checkpoint.begun == (Begun(A, 1, False), Begun(B, 4, True))
    assert checkpoint.finished == (ODD,)
    assert checkpoint.commit_ms == (5, 9)
    assert checkpoint.facts == {A: {"facts": 1}}
    assert checkpoint.spans == {A: (Span(0, 3, 3),), B: (Span(0, 2, 2),), ODD: (Span(0, 1, 1),)}
    assert checkpoint.counts == {A: {"c": 1, "u": 2}, B: {"c": 2}, ODD: {"d": 1}}
    assert checkpoint.written_ms > 1_700_000_000_000


def test_numbers_are_dense_and_each_checkpoint_continues_the_one_before(log: Log) -> None:
    log.open_writer()
    made = [log.append({A: rows(i)}, draft()) for i in range(5)]
    assert [c.number for c in made] == [0, 1, 2, 3, 4]
    assert [c.previous for c in made] == [start(log), *(c.mark for c in made[:-1])]
    assert len({c.id for c in made}) == 5
    assert len({c.writer for c in made}) == 1
    assert log.last_checkpoint() == made[-1]


def test_each_partition_continues(harness: Harness) -> None:
    log = harness.open()
    log.open_writer()
    made = [log.append({A: rows(n)} | ({B: rows(1)} if n == 2 else {}), draft()) for n in (3, 2, 4)]
    check_spans(harness, made, [3, 2, 4])
    assert [checkpoint.spans.get(B) for checkpoint in made] == [None, (Span(0, 1, 1),), None]


def test_a_table_without_records_is_not_touched(log: Log) -> None:
    log.open_writer()
    assert log.append({A: Records(), B: rows(1)}, draft()).spans == {B: (Span(0, 1, 1),)}
    assert [plain(batch).keys() for _, batch in available(log, start(log))] == [{B}]


def test_an_empty_checkpoint_is_a_checkpoint(log: Log) -> None:
    log.open_writer()
    appended = log.append({}, draft())
    assert available(log, start(log)) == [(appended, {})]


def test_keys_and_values_are_as_many(log: Log) -> None:
    log.open_writer()
    with pytest.raises(AssertionError):
        log.append({A: Records([key(1)], [])}, draft())
    assert log.open_writer().last is None


def test_writing_without_taking_over_is_a_bug(log: Log) -> None:
    with pytest.raises(AssertionError):
        log.append({}, draft())
    with pytest.raises(AssertionError):
        log.intend(Intent(0, {}))


def test_a_writers_first_checkpoint_and_each_256th_list_everything(harness: Harness) -> None:
    log = harness.open()
    log.open_writer()
    log.append({A: rows(2)}, draft(begun=(Begun(A, 1, False),)))
    made = [log.append({B: rows(1)}, draft()) for _ in range(260)]
    assert made[255].number == 256
    assert made[255].ends == {A: (2,), B: (made[255].spans[B][0].end,)}
    check_spans(harness, made, [1] * 260, table=B)
    assert made[255].generations == {A: 1}
    log.close()
    log = harness.open()
    log.open_writer()
    first = log.append({A: rows(1)}, draft(begun=(Begun(B, 7, True),)))
    assert first.ends == {A: (first.spans[A][0].end,), B: (made[-1].spans[B][0].end,)}
    assert first.generations == {A: 1, B: 7}
    assert available(log, made[-1].mark)[0][0] == first


# --------------------------------------------------------------------------------------------------------------- take over
def test_a_successor_finds_the_end(harness: Harness) -> None:
    log = harness.open()
    log.open_writer()
    for n in range(10):
        log.append({A: rows(n + 1)}, draft(cut=n < 7, sequence=n, begun=(Begun(A, n, False),) if n == 3 else ()))
    last = log.last_checkpoint()
    log.close()
    successor = harness.open()
    assert successor.id == log.id
    assert successor.last_checkpoint() == last
    state = successor.open_writer()
    assert state.last == last
    assert last is not None
    assert state.cut is not None
    assert (state.cut.number, state.cut.position.sequence) == (6, 6)
    assert state.tables == {A: TableState(3, False, None, 3)}
    made = successor.append({A: rows(1)}, draft())
    assert made.number == 10
    check_spans(harness, [made], [1], before=55)
    assert made.previous == last.mark
    assert made.writer != last.writer


def test_the_state_of_tables_is_the_newest_of_what_checkpoints_said(log: Log) -> None:
    log.open_writer()
    log.append({}, draft(begun=(Begun(A, 1, False), Begun(B, 1, True)), facts={A: {"v": 1}, B: {"v": 1}}))
    log.append({}, draft(facts={A: {"v": 2}}))
    log.append({}, draft(begun=(Begun(B, 2, False),), facts={B: {"v": 3}}))
    log.append({A: rows(1)}, draft())
    assert log.open_writer().tables == {A: TableState(1, False, {"v": 2}, 0), B: TableState(2, False, {"v": 3}, 2)}


@pytest.mark.parametrize(
    "act",
    [lambda log: log.append({A: rows(1)}, draft()), lambda log: log.intend(Intent(1, {}))],
    ids=["append", "intend"],
)
def test_an_overtaken_writer_is_superseded(harness: Harness, act: Callable[[Log], object]) -> None:
    old = harness.open()
    old.open_writer()
    kept = old.append({A: rows(1)}, draft())
    new = harness.usurp()
    assert new.open_writer().last == kept
    if harness.refuses:
        with pytest.raises(Superseded):
            act(old)
        assert new.last_checkpoint() == kept
        assert new.open_writer().intent is None
    else:
        with pytest.raises(Unavailable):
            act(old)
        made = new.append({}, draft())
        with pytest.raises(Superseded):
            old.open_writer()
        assert new.last_checkpoint() == made
        assert new.open_writer() == (made, made, None, {})


def test_an_overtaken_writer_wrote_nothing(harness: Harness) -> None:
    old = harness.open()
    old.open_writer()
    new = harness.usurp()
    new.open_writer()
    with pytest.raises(Superseded if harness.refuses else Unavailable):
        old.append({A: rows(1)}, draft())
    made = new.append({A: rows(2)}, draft())
    assert made.number == 0
    check_spans(harness, [made], [2])
    assert [c for c, _ in available(new, start(new))] == [made]


def test_a_cut_may_be_far_behind(harness: Harness) -> None:
    log = harness.open()
    log.open_writer()
    cut = log.append({}, draft())
    for _ in range(600):
        log.append({A: rows(1, size=2_000)}, draft(cut=False))
    log.close()
    log = harness.open()
    assert log.open_writer().cut == cut
    check_spans(harness, [log.append({A: rows(1)}, draft())], [1], before=600)


# ----------------------------------------------------------------------------------------------------------------- intents
def test_an_intent_is_found_until_a_checkpoint_follows_it(harness: Harness) -> None:
    log = harness.open()
    log.open_writer()
    log.intend(Intent(0, {"slot": "old"}))
    log.intend(Intent(0, {"slot": "s'\""}))
    log.close()
    log = harness.open()
    assert log.open_writer().intent == Intent(0, {"slot": "s'\""})
    log.append({}, draft())
    assert log.open_writer().intent is None
    log.intend(Intent(1, {"slot": "b"}))
    assert log.open_writer().intent == Intent(1, {"slot": "b"})


# -------------------------------------------------------------------------------------------------------- abandoned (B4)
def test_a_new_epoch_may_continue_the_last_cut(harness: Harness) -> None:
    log = harness.open()
    log.open_writer()
    cut = log.append({A: rows(2)}, draft(begun=(Begun(A, 1, False),), facts={A: "one"}))
    dropped = [
        log.append({A: rows(1)}, draft(cut=False)),
        log.append({A: rows(1), B: rows(1)}, draft(cut=False, begun=(Begun(A, 2, False), Begun(B, 1, False)))),
    ]
    state = log.open_writer()
    assert state.cut == cut
    assert state.tables.keys() == {A, B}
    made = log.append({A: rows(1)}, draft(epoch=1, cut=False, continues=cut.mark))
    assert made.number == 3
    assert made.previous == cut.mark
    check_spans(harness, [made], [1], before=4)  # records of abandoned checkpoints are still there
    assert made.generations == {A: 1}
    read = [c for c, _ in available(log, start(log))]
    assert read == [cut, *dropped, made], "abandoned checkpoints are delivered too"
    state = log.open_writer()
    assert (state.last, state.cut) == (made, cut)
    assert state.tables == {A: TableState(1, False, "one", 0)}


def test_a_first_epoch_without_a_cut_is_abandoned_whole(log: Log) -> None:
    log.open_writer()
    log.append({A: rows(2)}, draft(cut=False, begun=(Begun(A, 1, False),)))
    log.open_writer()
    made = log.append({}, draft(epoch=1, continues=start(log)))
    assert made.previous == start(log)
    state = log.open_writer()
    assert (state.last, state.cut, state.tables) == (made, made, {})


def test_nothing_else_can_be_continued(log: Log) -> None:
    log.open_writer()
    first, _ = log.append({}, draft()), log.append({}, draft())
    for mark in (first.mark, Mark(7, "nonsense"), start(log)):
        with pytest.raises(AssertionError):
            log.append({}, draft(continues=mark))
        log.open_writer()


# ---------------------------------------------------------------------------------------------------------------- reading
def test_reading_goes_on_from_any_mark(log: Log) -> None:
    log.open_writer()
    made = [log.append({A: rows(i + 1)}, draft()) for i in range(6)]
    for i, checkpoint in enumerate(made):
        assert [c for c, _ in available(log, checkpoint.mark)] == made[i + 1 :]


def test_only_wanted_tables_are_read(log: Log) -> None:
    log.open_writer()
    for _ in range(3):
        log.append({A: rows(2), B: rows(3), ODD: rows(1)}, draft())
    log.append({B: rows(1)}, draft())
    read = available(log, start(log), lambda table: table != B)
    assert [batch.keys() for _, batch in read] == [{A, ODD}] * 3 + [set()]
    assert all(B in checkpoint.spans for checkpoint, _ in read)


def test_a_reader_may_change_its_mind_about_a_table(log: Log) -> None:
    log.open_writer()
    wanted = {A}
    log.append({A: rows(1), B: rows(1)}, draft())
    log.append({A: rows(1), B: rows(1)}, draft())
    with closing(log.read(start(log), wanted.__contains__, 0.0)) as items:
        assert next(items)[1].keys() == {A}  # type: ignore[index]
        wanted.add(B)
        assert next(items)[1].keys() == {A, B}  # type: ignore[index]


def test_a_reading_follows_the_log_and_never_ends(harness: Harness) -> None:
    writer, reader = harness.open(), harness.open()
    writer.open_writer()
    with closing(reader.read(start(reader), everything, 0.01)) as items:
        assert [next(items), next(items)] == [None, None]
        for n in range(50):
            batch = {A: rows(n % 5, size=3_000), B: rows(1, keyed=False)}
            made = writer.append(batch, draft())
            found, deadline = next(items), time.monotonic() + 5
            while found is None and not harness.immediate and time.monotonic() < deadline:
                found = next(items)
            assert found is not None
            assert found[0] == made
            assert plain(found[1]) == plain({table: r for table, r in batch.items() if len(r)})
            if n % 9 == 0:
                assert next(items) is None


def test_several_readers_and_a_writer_at_once(harness: Harness) -> None:
    writer, number = harness.open(), 300
    writer.open_writer()
    failures: list[BaseException] = []

    def follow(seed: int) -> None:
        try:
            log, rng, mark = harness.open(), random.Random(seed), start(writer)
            while mark.number < number - 1:
                with closing(log.read(mark, everything, 0.02)) as items:
                    for item in items:
                        if item is not None:
                            checkpoint, batch = item
                            assert checkpoint.number == mark.number + 1
                            assert {t: len(r) for t, r in batch.items()} == checkpoint.rows
                            mark = checkpoint.mark
                        if mark.number == number - 1 or rng.random() < 0.02:
                            break
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=follow, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for n in range(number):
        writer.append({A: rows(n % 7, size=500), B: rows(n % 3)}, draft())
    for thread in threads:
        thread.join(60)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)


# ---------------------------------------------------------------------------------------------------------------------- R3
def test_a_bookmark_of_another_log_is_refused(harness: Harness) -> None:
    log, other = harness.open(), harness.other()
    log.open_writer()
    other.open_writer()
    made, theirs = log.append({}, draft()), other.append({}, draft())
    for mark in (start(other), theirs.mark, Mark(0, start(log).id)):
        assert code_of(lambda mark=mark: next(log.read(mark, everything, 0))) == "CDC-LOG-106"
    assert available(log, made.mark) == []


def test_a_bookmark_ahead_of_the_log_is_refused(log: Log) -> None:
    log.open_writer()
    made = log.append({}, draft())
    for number in (1, 2, 10_000):
        assert code_of(lambda number=number: next(log.read(Mark(number, made.id), everything, 0))) == "CDC-LOG-107"


# ----------------------------------------------------------------------------------------------------------------- schemas
def test_a_schema_has_one_id_everywhere(harness: Harness) -> None:
    log = harness.open()
    log.open_writer()
    schema = {"type": "record", "name": "é\"'", "fields": [{"name": "a", "type": ["null", "int"], "default": None}]}
    same = dict(reversed(schema.items()))
    first = log.register("shop.public.a-value", schema)
    assert log.register("shop.public.a-value", same) == first
    assert log.register("shop.public.b-value", schema) == first
    assert 0 <= first < 2**31
    second = log.register("shop.public.a-value", {"type": "int"})
    assert second != first
    reader = harness.open()
    assert reader.schema(first) == schema
    assert reader.schema(second) == {"type": "int"}
    other = harness.other()
    assert other.register("x", schema) == first
    log.close()
    log = harness.open()
    log.open_writer()
    assert log.register("shop.public.a-value", schema) == first


def test_schemas_with_one_hash_have_two_ids(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("cdc.log.side_files", "cdc.log.kafka.schemas", "tests.fakes"):
        monkeypatch.setattr(f"{module}.schema_hash", lambda schema: 2**31 - 1)
    log = harness.open()
    log.open_writer()
    schemas = [{"type": "fixed", "name": "f", "size": size} for size in range(3)]
    ids = [log.register("s", schema) for schema in schemas]
    assert ids == [2**31 - 1, 0, 1]
    assert [log.register("t", schema) for schema in schemas] == ids
    assert [harness.open().schema(i) for i in ids] == schemas


def test_an_unknown_schema_is_an_error(log: Log) -> None:
    assert code_of(lambda: log.schema(12345)) == "CDC-LOG-402"
    log.open_writer()
    log.register("s", {"type": "int"})
    assert code_of(lambda: log.schema(12345)) == "CDC-LOG-402"


# ----------------------------------------------------------------------------------------------------------------- signals
def test_signals_are_numbered_and_in_order(harness: Harness) -> None:
    log = harness.open()
    assert log.signals(0) == []
    details = [{"tables": ["public.a", 'x."é']}, None, {"keys": ["00ff"]}]
    assert [harness.open().signal("reload", item) for item in details] == [1, 2, 3]
    eventually(lambda: log.signals(0), [Signal(i + 1, "reload", d) for i, d in enumerate(details)])
    assert [s.number for s in log.signals(2)] == [3]
    assert log.signals(3) == []


# --------------------------------------------------------------------------------------------------------------- retention
def filled(log: Log, number: int = 120) -> list[Checkpoint]:
    return [log.append({A: rows(5, size=4_000)}, draft()) for _ in range(number)]


def test_nothing_is_dropped_while_no_reader_is_known(harness: Harness) -> None:
    log = harness.open(retention="applied")
    log.open_writer()
    made = filled(log)
    log.retain()
    assert [c for c, _ in available(log, start(log))] == made


def test_nothing_is_dropped_for_ever(harness: Harness) -> None:
    log = harness.open()
    log.open_writer()
    made = filled(log)
    log.report("sink", made[-1].mark)
    log.retain()
    assert [c for c, _ in available(log, start(log))] == made


def test_retention_honours_the_slowest_reader(harness: Harness) -> None:
    log = harness.open(retention="applied")
    log.open_writer()
    made = filled(log)
    log.report("fast", made[-1].mark)
    log.report("slow", made[70].mark)
    log.retain()
    assert [c for c, _ in available(log, made[70].mark)] == made[71:]
    assert code_of(lambda: next(log.read(start(log), everything, 0))) == "CDC-LOG-108"
    assert code_of(lambda: next(log.read(made[3].mark, everything, 0))) == "CDC-LOG-108"
    assert log.status()["first"] > 0
    assert log.status()["last"] == 119


def test_a_reader_that_starts_anew_is_honoured(harness: Harness) -> None:
    log = harness.open(retention="applied")
    log.open_writer()
    made = filled(log)
    log.report("fast", made[-1].mark)
    log.report("new", start(log))
    log.retain()
    assert [c for c, _ in available(log, start(log))] == made


def test_the_last_cut_is_never_dropped(harness: Harness) -> None:
    log = harness.open(retention="applied")
    log.open_writer()
    filled(log, 40)
    cut = log.append({}, draft(begun=(Begun(A, 3, False),), facts={A: [1]}))
    for _ in range(80):
        last = log.append({A: rows(5, size=4_000)}, draft(cut=False))
    log.report("sink", last.mark)
    log.retain()
    log.close()
    log = harness.open(retention="applied")
    state = log.open_writer()
    assert (state.cut, state.last) == (cut, last)
    assert state.tables == {A: TableState(3, False, [1], 40)}
    check_spans(harness, [log.append({A: rows(1)}, draft())], [1], before=600)


def test_a_log_goes_on_after_retention(harness: Harness) -> None:
    log = harness.open(retention="applied")
    log.open_writer()
    mark = start(log)
    for _ in range(4):
        made = filled(log, 50)
        assert [c for c, _ in available(log, mark)] == made
        mark = made[-1].mark
        log.report("sink", mark)
        log.retain()
        assert available(log, mark) == []
    assert log.open_writer().last == made[-1]


# ------------------------------------------------------------------------------------------------------------------ status
def test_status_says_where_the_log_is(log: Log) -> None:
    assert (log.status()["first"], log.status()["last"]) == (None, None)
    log.open_writer()
    log.append({A: rows(1)}, draft())
    log.append({A: rows(1)}, draft())
    status = log.status()
    assert (status["first"], status["last"]) == (0, 1)
    assert {"size_bytes", "free_bytes", "segments"} <= status.keys()


def test_closing_twice_is_closing(log: Log) -> None:
    log.open_writer()
    log.close()
    log.close()


def test_the_state_of_a_table_names_the_begin_of_its_last_whole_load(log: Log) -> None:
    log.open_writer()
    log.append({}, draft(begun=(Begun(A, 1, False), Begun(B, 1, False))))
    log.append({A: rows(1)}, draft(finished=(A,)))
    log.append({}, draft(begun=(Begun(A, 2, False),)))
    assert log.open_writer().tables == {A: TableState(2, False, None, 2, 0), B: TableState(1, False, None, 0, None)}
    log.append({A: rows(1)}, draft(finished=(A, B)))
    assert log.open_writer().tables == {A: TableState(2, False, None, 2, 2), B: TableState(1, False, None, 0, 0)}


def test_subjects_list_their_versions(harness: Harness) -> None:
    log = harness.open()
    assert log.subjects() == {}
    first, second = ({"type": "record", "name": "r", "fields": [{"name": n, "type": "int"}]} for n in "ab")
    ids = [log.register("s.t-value", schema) for schema in (first, second, first)]
    log.register("s.t-key", first)
    assert ids[0] == ids[2] != ids[1]
    assert harness.open().subjects() == {"s.t-key": [ids[0]], "s.t-value": ids[:2]}
