"""Reading a Kafka log: what was written is delivered, whatever lies beside it, and what is missing is an error.

| rule | scenario | switched off by |
|---|---|---|
| A1 | a bookmark that the log has another checkpoint for | trusting its number |
| A2 orphans | committed records before, between and behind ranges, without a checkpoint | taking as many as the checkpoint counts |
| A2 end | the log's end behind many aborted records | looking at the last few offsets alone |
| A2 forged | a topic that was deleted and made again, with as many records | not comparing topic ids |
| A4 | the beginning of the checkpoints topic was deleted | reading what is left |
| A5 | a table with several partitions | one partition's records behind the other's |
| A6 wait | a checkpoint is visible before its records are | delivering what is there |
| A6 lost | a checkpoint names offsets that the log does not have | waiting |
| A6 few | the records of a checkpoint are aborted | not counting |
| A6 memory | a hot table whose turn is yet to come | no bound |
| A8 | two schemas with one hash | not probing |
| A9 hint | the brokers forget a reader's group | believing them |
| A9 passed | records that a bookmark needs were deleted | auto.offset.reset=earliest |
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest

from cdc.errors import CdcError, Unavailable
from cdc.log import Begun, Intent, Mark, Span
from cdc.log.kafka import buffers, client, partition, reader, schemas
from cdc.log.kafka.hints import Hints
from cdc.log.kafka.partition import BELIEVED_S
from cdc.log.kafka.reader import Reader
from cdc.log.kafka.records import CHECKPOINT, Birth, Intended
from cdc.log.kafka.schemas import Schemas
from cdc.log.kafka.signals import Signals
from cdc.log.kafka.story import Story
from cdc.log.kafka.survey import KafkaSurveyor
from cdc.records import Batch, Records
from cdc.table import TableId
from tests.integration.kafka_log import (
    A,
    B,
    C,
    Written,
    delete_records,
    everything,
    numbered,
    payloads,
    rows,
    topic_id,
)
from tests.integration.protocol_rules import swap
from tests.servers.kafka import Kafka

BOUND_BYTES = 1 << 20  # of what a reader holds, in these tests
Scenario = Callable[[Written], bool]
RULES: dict[str, tuple[Scenario, Callable[[pytest.MonkeyPatch], object]]] = {}


def rule(name: str, off: Callable[[pytest.MonkeyPatch], object]) -> Callable[[Scenario], Scenario]:
    """The scenario of a rule: whether it holds. `off` switches the rule off."""

    def add(scenario: Scenario) -> Scenario:
        RULES[name] = scenario, off
        return scenario

    return add


@pytest.fixture
def log(kafka: Kafka) -> Iterator[Written]:
    with closing(Written(kafka)) as written:
        yield written.begin()


def code_of(act: Callable[[], object]) -> str:
    """The code of the error that this raises; nothing without one."""
    try:
        act()
    except CdcError as error:
        return error.code
    return ""


def read_code(log: Written, after: Mark | None = None, **more: Any) -> str:
    return code_of(lambda: log.available(after, **more))


# ------------------------------------------------------------------------------------------------------------- the rules
def _trusting(self: Story, mark: Mark, at: Any = Story.at) -> Any:
    found = self.find(mark.number)
    return at(self, found.checkpoint.mark if found else mark)


@rule("A1", swap(Story, "at", _trusting))
def a1(log: Written) -> bool:
    made = [log.append({A: rows(b"1")}) for _ in range(3)]
    assert [c for c, _ in log.available(made[0].mark)] == made[1:]
    return read_code(log, Mark(1, "0123456789abcdef")) == "CDC-LOG-106"


def _greedy(self: buffers.Buffer, span: Span) -> Any:
    taken = self._keys[: span.count], self._values[: span.count], 0
    del self._keys[: span.count], self._values[: span.count], self._offsets[: span.count]
    return taken


@rule("A2 orphans", swap(buffers.Buffer, "take", _greedy))
def a2_orphans(log: Written) -> bool:
    log.make(A, 2)
    log.story(log.topics[A])
    log.orphans(A, b"before", partition=1)
    made, sent = [], []
    for n in range(6):
        # A record's partition is its key's last byte modulo 2: n decides.
        sent.append({A: rows(b"%d" % n, b"%d" % (n + 2))} | ({B: rows(b"b%d" % n)} if n % 2 else {}))
        made.append(log.append(sent[-1]))
        log.orphans(A, b"orphan", b"orphan too", partition=n % 2)
        log.orphans(A, b"aborted", commit=False, partition=n % 3 % 2)
    made.append(log.append({B: rows(b"last")}))
    sent.append({B: rows(b"last")})
    one = log.reader()
    found = log.available(reader=one)
    exact = [c for c, _ in found] == made and [
        {table: sorted(values) for table, values in payloads(batch).items()} for _, batch in found
    ] == [{table: sorted(values) for table, values in payloads(batch).items()} for batch in sent]
    # Those behind a partition's last range are not seen yet, or never.
    return exact and one.orphans == 1 + 2 * 4


def _nearby(self: Story, end: int) -> Any:
    found = [message for message in self._partition.read(max(0, end - 64), end) if message.key() == CHECKPOINT]
    return map(self._found, reversed(found))


@rule("A2 end", swap(Story, "_backwards", _nearby))
def a2_end(log: Written) -> bool:
    log.append({A: rows(b"1")}, begun=(Begun(A, 1, False),))
    last = log.append({A: rows(b"2")}, cut=False)
    for _ in range(30):
        with log.transaction() as transaction:
            transaction.commits = False
            for n in range(50):
                transaction.intend(Intended(1, Intent(0, {"n": n})))
    with Story(log.settings, log.pipeline) as one:
        ended = one.end()
        found = one.last()
    return found == last and ended is not None and ended.chain == log.chain and ended.intent is None


@rule("A2 forged", swap(reader, "verify_ids", lambda *_: None))
def a2_forged(log: Written) -> bool:
    made = log.append({A: rows(b"1", b"2")})
    topic = log.topics[A]
    log.kafka.drop_topics(topic.name)
    time.sleep(0.5)
    log.make(A)
    log.orphans(A, b"forged", b"as well")
    assert log.topics[A].id != topic.id
    try:
        assert [c for c, _ in log.available()] == [made]
    except CdcError as error:
        return error.code == "CDC-KAFKA-202"
    return False


def _anywhere(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Story, "_settled", lambda self, wait_s: (0, *self._partition.settled(wait_s)[1:]))
    patch.setattr(partition, "consumer", _lenient)


@rule("A4", _anywhere)
def a4(log: Written) -> bool:
    for _ in range(3):
        log.append({})
    delete_records(log.kafka, log.checkpoints, 3)
    with Story(log.settings, log.pipeline) as one:
        return {code_of(one.end), code_of(one.last), code_of(one.birth), read_code(log)} == {"CDC-KAFKA-203"}


def _behind(parts: list[Records], _: object) -> Records:
    return Records([key for part in parts for key in part.keys], [value for part in parts for value in part.values])


@rule("A5", swap(reader, "merged", _behind))
def a5(log: Written) -> bool:
    log.make(A, 3)
    log.story(log.topics[A])
    with closing(Schemas(log.settings, log.pipeline)) as registry:
        records = numbered(registry, log.pipeline, A, range(100, 400))
    made = log.append({A: records})
    assert [span.count for span in made.spans[A]] == [100, 100, 100]
    ((checkpoint, batch),) = log.available()
    return checkpoint == made and (batch[A].keys, batch[A].values) == (records.keys, records.values)


def _impatient(self: Reader, wanted: Any, needed: Any = Reader._needed) -> Any:
    return [part for part in needed(self, wanted) if part.buffer.reached >= part.span.end]


@rule("A6 wait", swap(Reader, "_needed", _impatient))
def a6_wait(log: Written) -> bool:
    log.make(A)
    log.story(log.topics[A])
    other = log.new_producer("other")
    data = log.transaction(other).__enter__()
    data.put(A, rows(b"1", b"2"))
    spans = data.spans([A])
    with log.transaction() as transaction:
        made = transaction.checkpoint({A: rows(b"1", b"2")}, spans=spans)
    with closing(log.reader().read(log.start, everything, 0.05)) as items:
        if next(items) is not None or next(items) is not None:
            return False
        data.__exit__(None)
        deadline = time.monotonic() + 5
        while (item := next(items)) is None and time.monotonic() < deadline:
            continue
    return item is not None and item[0] == made and payloads(item[1]) == {A: [b"1", b"2"]}


@rule("A6 lost", swap(Reader, "_check_not_lost", lambda *_: None))
def a6_lost(log: Written) -> bool:
    log.append({A: rows(b"1")})
    with log.transaction() as transaction:
        transaction.checkpoint({A: rows(b"2", b"3")}, spans={A: (Span(50, 52, 2),)})
    begun = time.monotonic()
    code = read_code(log, count=2, within_s=BELIEVED_S + 5)
    return code == "CDC-KAFKA-203" and time.monotonic() - begun < BELIEVED_S + 4


def _uncounted(self: buffers.Buffer, span: Span) -> Any:
    return list(self._keys), list(self._values), 0


@rule("A6 few", swap(buffers.Buffer, "take", _uncounted))
def a6_few(log: Written) -> bool:
    log.append({A: rows(b"1")})
    with log.transaction(log.new_producer("other")) as data:
        data.put(A, rows(b"2", b"3"))
        spans = data.spans([A])
        data.commits = False
    with log.transaction() as transaction:
        transaction.checkpoint({A: rows(b"2", b"3")}, spans=spans)
    return read_code(log, count=2, within_s=5) == "CDC-KAFKA-208"


@rule("A6 memory", swap(reader, "BUFFER_BYTES", 1 << 40))
def a6_memory(log: Written) -> bool:
    """A's records are not committed yet, and B's, which come after them, are far more than the bound."""
    log.make(A)
    log.story(log.topics[A])
    data = log.transaction(log.new_producer("other")).__enter__()
    data.put(A, rows(b"1"))
    with log.transaction() as transaction:
        made = [transaction.checkpoint({A: rows(b"1")}, spans=data.spans([A]))]
    log.chain.follow(made[0])
    sent = [rows(*(random.randbytes(1000) for _ in range(150))) for _ in range(40)]
    made += [log.append({B: records}) for records in sent]
    one = log.reader()
    most = 0
    with closing(one.read(log.start, everything, 0.3)) as items:
        for _ in range(6):
            assert next(items) is None
            most = max(most, one._held_bytes)
        data.__exit__(None)
        found = []
        while len(found) < len(made):
            if (item := next(items)) is not None:
                found.append(item)
            most = max(most, one._held_bytes)
    assert [c for c, _ in found] == made
    assert [batch[B].values for _, batch in found[1:]] == [records.values for records in sent]
    return most < BOUND_BYTES + (5 << 20)  # a block that librdkafka had fetched before the pause


@rule("A8", swap(Schemas, "_place", lambda self, schema_id, body: schema_id))
def a8(log: Written) -> bool:
    with closing(Schemas(log.settings, log.pipeline)) as one, closing(Schemas(log.settings, log.pipeline)) as other:
        found = [{"type": "fixed", "name": "f", "size": size} for size in range(3)]
        try:
            ids = [one.register(f"s{schema['size']}", schema) for schema in found]
        except CdcError:
            return False
        return ids == [7, 8, 9] and [other.schema(i) for i in ids] == found


@rule("A9 hint", swap(Hints, "marks", lambda self: {reader: hint.mark for reader, hint in self._hints().items()}))
def a9_hint(log: Written) -> bool:
    with closing(Hints(log.settings, log.pipeline)) as sink, closing(Hints(log.settings, log.pipeline)) as writer:
        sink.put("slow", Mark(3, "abc"), 8)
        sink.close()
        assert writer.marks() == {"slow": Mark(3, "abc")}
        sink.remove("slow")  # as the brokers do, after a week without a commit
        return writer.marks() == {"slow": Mark(3, "abc")}


@rule("A9 passed", lambda patch: patch.setattr(reader, "consumer", _lenient))
def a9_passed(log: Written) -> bool:
    made = [log.append({A: rows(b"%d" % n), B: rows(b"x")}) for n in range(6)]
    delete_records(log.kafka, log.topics[A].name, made[3].spans[A][0].end)
    assert [c for c, _ in log.available(made[3].mark)] == made[4:]
    assert [c for c, _ in log.available(wanted=lambda table: table == B)] == made
    return {read_code(log), read_code(log, made[2].mark)} == {"CDC-LOG-108"}


def _lenient(settings: client.KafkaSettings, group: str, **own: Any) -> Any:
    return client.consumer(settings, group, **own, auto_offset_reset="earliest")


@pytest.mark.parametrize(
    ("name", "upheld"),
    [pytest.param(name, on, id=f"{name}-{'upheld' if on else 'off'}") for name in RULES for on in (True, False)],
)
def test_the_rule(log: Written, monkeypatch: pytest.MonkeyPatch, name: str, upheld: bool) -> None:
    monkeypatch.setattr(reader, "BUFFER_BYTES", BOUND_BYTES)
    monkeypatch.setattr(reader, "QUEUED_KBYTES", 256)
    monkeypatch.setattr(schemas, "schema_hash", lambda _: 7)
    scenario, off = RULES[name]
    if upheld:
        assert scenario(log)
        return
    off(monkeypatch)
    with suppress(CdcError):
        assert not scenario(log)


# --------------------------------------------------------------------------------------------------------------- the story
def test_a_base_tells_the_same_story_as_the_beginning(log: Written) -> None:
    rng = random.Random(7)
    made = []
    for n in range(40):
        cut, table = rng.random() < 0.6, rng.choice([A, B, C])
        more: dict[str, Any] = {}
        if rng.random() < 0.3:
            more["begun"] = (Begun(table, n, False),)
        if rng.random() < 0.3:
            more |= {"facts": {table: n}, "finished": (table,)}
        if rng.random() < 0.1:
            more["continues"] = log.chain.cut_mark
        batch = {table: rows(b"%d" % n)} if rng.random() < 0.7 else {}
        made.append(log.append(batch, cut, base=cut and rng.random() < 0.2, **more))
        if rng.random() < 0.2:
            log.story(Intended(n, Intent(n, None)))
        with Story(log.settings, log.pipeline) as one:
            ended = one.end()
        assert ended is not None
        assert (ended.chain, ended.topics) == (log.chain, log.topics)
        assert ended.base_offset == log.base
    for checkpoint in rng.sample(made, 8):
        assert [c for c, _ in log.available(checkpoint.mark)] == made[checkpoint.number + 1 :]


def test_an_intent_is_known_until_a_checkpoint_follows(log: Written) -> None:
    log.append({})
    with Story(log.settings, log.pipeline) as one:
        for intent in (Intent(0, {"a": 1}), Intent(1, "b")):
            log.story(Intended(0, intent))
            ended = one.end()
            assert ended is not None
            assert ended.intent == intent
        log.append({})
        ended = one.end()
        assert ended is not None
        assert ended.intent is None


def test_a_log_without_a_birth_is_none(kafka: Kafka) -> None:
    with closing(Written(kafka)) as log, Story(log.settings, log.pipeline) as one:
        assert (one.birth(), one.end(), one.last(), one.seen()) == (None, None, None, None)
        with log.transaction() as transaction:
            transaction.tell(Birth("x", "y", "z"))
            transaction.commits = False
        assert (one.birth(), one.end()) == (None, None)
        assert code_of(lambda: KafkaSurveyor(log.settings, log.pipeline)) == "CDC-LOG-101"
        log.begin()
        assert one.birth() == Birth(log.chain.log_id, log.pipeline, "cluster")
        ended = one.end()
        assert ended is not None
        assert ended.chain == log.chain
    with Story(log.settings, log.pipeline) as one:
        assert one.birth() is None  # the topic is gone


def test_an_open_transaction_is_waited_for_by_a_writer_and_not_by_readers(log: Written) -> None:
    made = log.append({})
    other = log.new_producer("other", **{"transaction.timeout.ms": 4000})
    pending = log.transaction(other).__enter__()
    pending.intend(Intended(0, Intent(0, None)))
    pending.flush()
    with Story(log.settings, log.pipeline) as one:
        begun = time.monotonic()
        assert one.last() == made
        assert [c for c, _ in log.available()] == [made]
        assert time.monotonic() - begun < 4
        ended = one.end()  # the broker ends it, in time
        assert ended is not None
        assert (ended.chain.last, ended.intent) == (made, None)


# -------------------------------------------------------------------------------------------------------------- bookmarks
def test_a_bookmark_of_another_log_or_ahead_of_it_is_refused(log: Written, kafka: Kafka) -> None:
    made = [log.append({}) for _ in range(5)]
    with closing(Written(kafka)) as written:
        foreign = written.begin().append({})
    assert read_code(log, foreign.mark) == "CDC-LOG-106"
    assert read_code(log, Mark(-1, foreign.log_id)) == "CDC-LOG-106"
    for number in (5, 6, 10_000):
        assert read_code(log, Mark(number, made[4].id)) == "CDC-LOG-107"
    assert log.available(made[4].mark) == []


def test_a_log_that_was_made_again_is_refused(log: Written) -> None:
    made = [log.append({}) for _ in range(3)]
    one = log.reader()
    log.kafka.drop_topics(log.checkpoints)
    time.sleep(0.5)
    assert read_code(log, made[1].mark) in ("CDC-KAFKA-201", "CDC-LOG-101")
    log.kafka.make_topic(log.checkpoints)
    assert read_code(log, made[1].mark) == "CDC-LOG-101"
    log.story(Birth("other", log.pipeline, "cluster"))
    assert read_code(log, made[1].mark) == "CDC-LOG-107"
    assert read_code(log, Mark(-1, "other"), reader=one) == "CDC-KAFKA-202"


def test_a_log_that_is_made_again_while_it_is_read_is_noticed(log: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "CURRENT_EVERY_S", 0.3)
    for _ in range(3):
        log.append({})
    with closing(log.reader().read(log.start, everything, 0.1)) as items:
        for _ in range(4):
            next(items)
        log.kafka.drop_topics(log.checkpoints)
        log.kafka.make_topic(log.checkpoints)

        def follow() -> None:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                next(items)

        assert code_of(follow) in ("CDC-KAFKA-201", "CDC-KAFKA-203")


def test_a_truncated_data_topic_is_refused_where_it_is_needed(log: Written) -> None:
    made = [log.append({A: rows(b"1"), B: rows(b"2")}) for _ in range(4)]
    topic = log.topics[A]
    log.kafka.drop_topics(topic.name)
    time.sleep(0.5)
    assert read_code(log, made[1].mark) == "CDC-KAFKA-201"
    log.kafka.make_topic(topic.name)
    assert read_code(log, made[1].mark) == "CDC-KAFKA-202"
    forged = topic._replace(id=topic_id(log.kafka, topic.name))
    log.story(forged)  # as an operator's repair would, so that only the offsets tell
    assert read_code(log, made[1].mark, count=2, within_s=5) in ("CDC-KAFKA-202", "CDC-KAFKA-203")
    assert [c for c, _ in log.available(made[1].mark, lambda table: table == B)] == made[2:]


# ---------------------------------------------------------------------------------------------------------------- reading
def test_many_tables_and_partitions_under_tight_bounds(log: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is paused, what the next checkpoint needs comes."""
    monkeypatch.setattr(reader, "BUFFER_BYTES", 64 << 10)
    monkeypatch.setattr(reader, "STORY_BYTES", 4 << 10)
    monkeypatch.setattr(reader, "QUEUED_KBYTES", 32)
    tables, rng = [TableId("public", f"t{i}") for i in range(12)], random.Random(3)
    with closing(Schemas(log.settings, log.pipeline)) as registry:
        for i, table in enumerate(tables):
            log.make(table, 1 + i % 3)
            log.story(log.topics[table])
        sent, made, number = [], [], 0
        for _ in range(80):
            batch: Batch = {}
            for table in rng.sample(tables, rng.randrange(4)):
                count = rng.choice([1, 3, 400])
                batch[table] = numbered(registry, log.pipeline, table, range(number, number + count))
                number += count
            sent.append(batch)
            made.append(log.append(batch))
    one = log.reader()
    found = log.available(reader=one, count=len(made), within_s=60)
    assert [c for c, _ in found] == made
    for (_, batch), was in zip(found, sent, strict=True):
        assert batch.keys() == was.keys()
        for table, records in batch.items():
            assert (records.keys, records.values) == (was[table].keys, was[table].values)
    assert one.orphans == 0


def test_a_table_that_appears_is_read_at_once(log: Written) -> None:
    log.append({A: rows(b"1")})
    with closing(log.reader().read(log.start, everything, 2.0)) as items:
        assert next(items) is not None
        assert next(items) is None
        for n in range(4):
            table = TableId("public", f"new{n}")
            made = log.append({table: rows(b"%d" % n), A: rows(b"x")})
            begun = time.monotonic()
            while (item := next(items)) is None:
                continue
            assert time.monotonic() - begun < 1.5
            assert (item[0], payloads(item[1])) == (made, {table: [b"%d" % n], A: [b"x"]})


def test_a_reader_may_change_its_mind_about_tables(log: Written) -> None:
    wanted: set[TableId] = {A}
    made = [log.append({A: rows(b"a%d" % n), B: rows(b"b%d" % n)}) for n in range(6)]
    log.orphans(B, b"orphan")
    found = []
    one = log.reader()
    with closing(one.read(log.start, lambda table: table in wanted, 0.05)) as items:
        for now in ({A}, {A, B}, {B}, {A}, set(), {A, B}):
            wanted.clear()
            wanted.update(now)
            item = next(items)
            assert item is not None
            assert item[1].keys() == now
            found.append(item)
    assert [c for c, _ in found] == made
    assert payloads(found[5][1]) == {A: [b"a5"], B: [b"b5"]}


def test_foreign_records_without_a_value_are_passed_over(log: Written) -> None:
    log.append({A: rows(b"1")})
    with log.transaction(log.new_producer("other")) as transaction:
        transaction.put(A, Records([b"k"], [None]))  # type: ignore[list-item]
    made = log.append({A: rows(b"2")})
    one = log.reader()
    assert payloads(log.available(reader=one)[1][1]) == {A: [b"2"]}
    assert (one.orphans, log.chain.last) == (1, made)


def test_several_readers_beside_a_writer(log: Written) -> None:
    number, failures = 120, list[BaseException]()

    def follow(seed: int) -> None:
        try:
            rng, mark = random.Random(seed), log.start
            while mark.number < number - 1:
                with closing(log.reader().read(mark, everything, 0.05)) as items:
                    for item in items:
                        if item is not None:
                            checkpoint, batch = item
                            assert checkpoint.number == mark.number + 1
                            assert {t: len(r) for t, r in batch.items()} == checkpoint.rows
                            mark = checkpoint.mark
                        if mark.number == number - 1 or rng.random() < 0.03:
                            break
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=follow, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for n in range(number):
        log.append({A: rows(*(b"%d" % i for i in range(n % 4))), B: rows(b"x" * n)})
    for thread in threads:
        thread.join(60)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)


def test_a_reader_outlives_a_broker_that_is_killed(private_kafka: Callable[..., Kafka]) -> None:
    kafka = private_kafka()
    log = Written(kafka).begin()
    made = [log.append({A: rows(b"%d" % n)}) for n in range(20)]
    found = []
    with closing(log.reader().read(log.start, everything, 0.1)) as items:
        found += [next(items) for _ in range(10)]
        kafka.kill()
        found += [item for _ in range(15) if (item := next(items))]
        kafka.restart()
        log.producer = log.new_producer()
        made += [log.append({A: rows(b"%d" % n)}) for n in range(20, 40)]
        deadline = time.monotonic() + 30
        while len(found) < 40 and time.monotonic() < deadline:
            if (item := next(items)) is not None:
                found.append(item)
    assert [item[0] for item in found if item] == made
    assert [payloads(item[1])[A] for item in found if item] == [[b"%d" % n] for n in range(40)]


def test_a_broker_that_stays_away_is_unavailable(
    private_kafka: Callable[..., Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "CURRENT_EVERY_S", 0.3)
    monkeypatch.setattr(partition, "TIMEOUT_S", 1.0)
    kafka = private_kafka()
    log = Written(kafka).begin()
    log.append({A: rows(b"1")})
    with closing(log.reader().read(log.start, everything, 0.1)) as items:
        assert next(items)
        kafka.kill()
        deadline = time.monotonic() + 20

        def follow() -> None:
            while time.monotonic() < deadline:
                next(items)

        with pytest.raises(Unavailable):
            follow()


def test_a_change_is_read_within_milliseconds(log: Written) -> None:
    log.append({A: rows(b"0")})
    delays = []
    with closing(log.reader().read(log.start, everything, 1.0)) as items:
        assert next(items)
        assert next(items) is None
        for n in range(60):
            made = log.append({A: rows(b"%d" % n)})
            begun = time.monotonic()
            item = next(items)
            while item is None:
                item = next(items)
            delays.append(time.monotonic() - begun)
            assert item[0] == made
    assert sorted(delays)[30] < 0.02


# ------------------------------------------------------------------------------------------------------------- the survey
def test_a_survey_sees_the_end(log: Written) -> None:
    made = [
        log.append({A: rows(*[b"x" * 100] * 5), B: rows(b"%d" % n)}, begun=(Begun(A, n, False),)) for n in range(150)
    ]
    with KafkaSurveyor(log.settings, log.pipeline) as look:
        assert look.log_id == log.chain.log_id
        assert look.last() == made[-1]
        survey = look.survey()
        assert (survey.last, survey.tables) == (made[-1], log.chain.tables)
        assert survey.events[A] >= 750
        assert look.written_ms(7) == made[7].written_ms
        assert look.written_ms(150) is None
        assert [look.mark_before(n) for n in (0, 1, 150)] == [log.start, made[0].mark, made[149].mark]
        assert code_of(lambda: look.mark_before(152)) == "CDC-LOG-107"
        assert look.mark_before_events(7, everything) == made[147].mark
        assert look.mark_before_events(7, lambda table: table == B) == made[142].mark
        assert look.mark_before_events(10**6, everything) == log.start
        assert look.backlog_bytes(149) == 0
        assert 0.5 < look.backlog_bytes(49) / (100 * (5 * 122 + 24)) < 2
        assert 0.5 < look.backlog_bytes(-1) / (150 * (5 * 122 + 24)) < 2


def test_a_survey_begins_where_retention_has_left_something(log: Written) -> None:
    made = [log.append({A: rows(b"1"), B: rows(b"2")}) for _ in range(20)]
    delete_records(log.kafka, log.topics[A].name, made[11].spans[A][0].end)
    with KafkaSurveyor(log.settings, log.pipeline) as look:
        marks = [look.mark_before(0), look.mark_before(12), look.mark_before_events(10**6, everything)]
        assert marks == [made[11].mark] * 3
        assert look.mark_before_events(10**6, lambda table: table == B) == log.start
        assert look.mark_before(15) == made[14].mark
        assert [c for c, _ in log.available(marks[0])] == made[12:]


def test_a_survey_is_not_misled_by_checkpoints_without_records(log: Written) -> None:
    made = [log.append({A: rows(b"1")} if n % 3 == 1 else {}) for n in range(20)]
    delete_records(log.kafka, log.topics[A].name, made[10].spans[A][0].end)
    with KafkaSurveyor(log.settings, log.pipeline) as look:
        assert [look.mark_before(n) for n in (0, 10, 12)] == [made[10].mark, made[10].mark, made[11].mark]
    delete_records(log.kafka, log.topics[A].name, -1)  # the control record behind the last one, too
    with KafkaSurveyor(log.settings, log.pipeline) as look:
        assert look.mark_before(0) == made[19].mark


# ------------------------------------------------------------------------------------------- schemas, signals and hints
def test_schemas_are_kept(log: Written) -> None:
    with closing(Schemas(log.settings, log.pipeline)) as one, closing(Schemas(log.settings, log.pipeline)) as other:
        assert other.subjects() == {}
        assert code_of(lambda: other.schema(5)) == "CDC-LOG-402"
        first, second = {"type": "int"}, {"type": "record", "name": 'é"', "fields": []}
        ids = [one.register("s", schema) for schema in (first, second, first)]
        assert ids[0] == ids[2] != ids[1]
        assert one.register("t", second) == ids[1]
        assert other.schema(ids[1]) == second
        assert other.subjects() == {"s": ids[:2], "t": [ids[1]]}
        assert other.register("s", second) == ids[1]
        assert other.topics() == ["s"]
        assert other.subjects() == one.subjects()


def test_signals_are_numbered_from_one(log: Written) -> None:
    with closing(Signals(log.settings, log.pipeline)) as one, closing(Signals(log.settings, log.pipeline)) as other:
        assert one.after(0) == []
        assert [other.add("reload", detail) for detail in ({"tables": ["é"]}, None, [1])] == [1, 2, 3]
        deadline = time.monotonic() + 5
        while len(one.after(0)) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [(s.number, s.kind, s.details) for s in one.after(1)] == [(2, "reload", None), (3, "reload", [1])]
        assert one.after(3) == []
        assert [s.number for s in other.after(0)] == [1, 2, 3]
        begun = time.monotonic()
        for _ in range(1000):
            one.after(3)
        assert time.monotonic() - begun < 1


def test_hints_stand_in_consumer_groups(log: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdc.log.kafka.hints.EVERY_S", 0.2)
    with closing(Hints(log.settings, log.pipeline)) as one, closing(Hints(log.settings, log.pipeline)) as other:
        one.expect(["slow", "never"], log.start)
        assert other.marks() == {"slow": log.start, "never": log.start}
        for n in range(5):
            one.put("slow", Mark(n, "id"), 2 * n + 2)
        deadline = time.monotonic() + 5
        while other.marks()["slow"] != Mark(4, "id") and time.monotonic() < deadline:
            time.sleep(0.05)
        one.expect(["slow"], log.start)  # it has reported
        assert other.marks() == {"slow": Mark(4, "id"), "never": log.start}
        one.put("slow", Mark(9, "id"), 20)
        one.put("fast", Mark(10, "id"), 22)
        one.close()
        assert other.marks()["fast"] == Mark(10, "id")
        one.remove("slow")
        one.remove("slow")
        with closing(Hints(log.settings, log.pipeline)) as third:
            assert third.marks() == {"fast": Mark(10, "id"), "never": log.start}
        with closing(Hints(log.settings, log.pipeline[:-1])) as foreign:
            assert foreign.marks() == {}
