"""Rule R7 for random values, with a real server as the oracle: one row gives the same bytes by COPY, by the binary stream and by the
text stream, and what they mean is the value that the server holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cdc.postgres.session import Session
from tests.integration.test_pg_wire import NAME, TYPES, Captured, as_op, chunk, events, same_text, slot
from tests.servers import Database

pytestmark = [pytest.mark.majors(16, 18), pytest.mark.timeout(300)]

I32, I64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["", "NULL", "null", '"', "\\", "{}", "a,b", " ", "(", "'", "[1:2]={}", "\u00a0", "\x0b", "\t", ";"]
)
NUMBERS = st.floats() | st.sampled_from([1e15, 1e16, 1e-4, 1e-5, 123456789012345.5, 2.0**53])
BITS = st.text("01", max_size=40)


def number(value: float) -> str:
    return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(repr(value), repr(value))


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@st.composite
def arrays(draw: st.DrawFn, element: st.SearchStrategy[str]) -> str:
    """An array of up to three dimensions, with NULLs, and sometimes bounds of its own."""
    sizes = draw(st.lists(st.integers(1, 3), max_size=3))
    if not sizes:
        return "{}"

    def part(rest: list[int]) -> str:
        if not rest:
            return draw(st.just("NULL") | element.map(quoted))
        return "{" + ",".join(part(rest[1:]) for _ in range(rest[0])) + "}"

    lowers = draw(st.none() | st.tuples(*(st.integers(-3, 3) for _ in sizes)))
    said = (
        "" if lowers is None else "".join(f"[{n}:{n + size - 1}]" for n, size in zip(lowers, sizes, strict=True)) + "="
    )
    return said + part(sizes)


@st.composite
def ranges(draw: st.DrawFn, bound: st.SearchStrategy[str]) -> str:
    """A range that is empty, or has one bound or none: of two, the lower one would have to be known."""
    text, left, right = draw(bound), draw(st.sampled_from("[(")), draw(st.sampled_from("])"))
    return draw(
        st.sampled_from(
            ["empty", "(,)", f"{left}{quoted(text)},)", f"(,{quoted(text)}{right}", f"[{quoted(text)},{quoted(text)}]"]
        )
    )


def networks(least: int = 0) -> st.SearchStrategy[str]:
    words = st.lists(st.sampled_from([0, 0, 0, 1, 0xFFFF, 0xABC]), min_size=8, max_size=8)
    six = words.map(lambda eight: ":".join(f"{word:x}" for word in eight))
    four = st.ip_addresses(v=4).map(str)
    return st.tuples(six, st.integers(least, 128)).map("%s/%s".__mod__) | st.tuples(four, st.integers(least, 32)).map(
        "%s/%s".__mod__
    )


INTERVALS = st.builds(
    lambda months, days, hours, minutes, us: f"{months} mons {days} days {hours} hours {minutes} mins {us} us",
    st.integers(-(2**31) + 1, 2**31 - 1), I32, st.integers(-(10**8), 10**8), st.integers(-99, 99), st.integers(-(10**12), 10**12),
)  # fmt: skip
PAIRS = st.lists(
    st.tuples(NUMBERS.map(number), NUMBERS.map(number)).map("(%s,%s)".__mod__), min_size=1, max_size=4
).map(",".join)
DIGITS = st.decimals(allow_nan=False, allow_infinity=False, places=3).map(lambda value: f"{value:f}")
COLUMNS: dict[str, st.SearchStrategy[str]] = {
    "oid": st.integers(0, 2**32 - 1).map(str),
    "timetz": st.builds(
        lambda time, sign, h, m, s: f"{time}{sign}{h:02}:{m:02}:{s:02}",
        st.times().map(str), st.sampled_from("+-"), st.integers(0, 15), st.integers(0, 59), st.integers(0, 59),
    ),
    "interval": INTERVALS,
    "money": I64.map(lambda cents: f"{'-' if cents < 0 else ''}{abs(cents) // 100}.{abs(cents) % 100:02}"),
    "bit(1)": st.sampled_from("01"),
    "bit(13)": st.text("01", min_size=13, max_size=13),
    "varbit": BITS,
    "tsvector": st.lists(st.tuples(WORDS.filter(bool), st.integers(1, 16_383), st.sampled_from("ABCD")), max_size=4).map(
        lambda words: " ".join(f"'{w.replace(chr(92), chr(92) * 2).replace(chr(39), chr(39) * 2)}':{n}{c}" for w, n, c in words)
    ),
    "point": st.tuples(NUMBERS.map(number), NUMBERS.map(number)).map("(%s,%s)".__mod__),
    "polygon": PAIRS.map("({})".format),
    "path": PAIRS.map("[{}]".format),
    "int4[]": arrays(I32.map(str)),
    "text[]": arrays(WORDS),
    "float8[]": arrays(NUMBERS.map(number)),
    "numeric[]": arrays(DIGITS),
    "interval[]": arrays(INTERVALS),
    "varbit[]": arrays(BITS),
    "inet[]": arrays(networks()),
    "inet": networks(),
    "numrange": ranges(DIGITS),
    "textrange": ranges(WORDS),
    "floatrange": ranges(NUMBERS.map(number)),
    "int8range": ranges(st.integers(-(2**63), 2**63 - 2).map(str)),
    "numrange[]": arrays(ranges(DIGITS)),
    "nummultirange": ranges(DIGITS).map("{{{}}}".format),
    "pg_lsn": st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)).map("%X/%X".__mod__),
}  # fmt: skip


@pytest.fixture
def session(database: Database) -> Iterator[Session]:
    with closing(Session(database.admin_url, "wire test")) as session:
        session.run("SET search_path = public")
        session.run(TYPES)
        listed = ", ".join(f"c{i} {name}" for i, name in enumerate(COLUMNS))
        session.run(f"CREATE TABLE {NAME} (id int PRIMARY KEY, {listed})")
        session.run(f"CREATE PUBLICATION p FOR TABLE {NAME}")
        session.run(f"SELECT pg_create_logical_replication_slot('{slot(session)}', 'pgoutput')")
        yield session


ROWS = st.lists(st.tuples(*(values | st.none() for values in COLUMNS.values())), min_size=6, max_size=6)


@settings(
    max_examples=6, deadline=None, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(rows=ROWS)
def test_random_values_give_the_same_bytes(session: Session, rows: list[tuple[str | None, ...]]) -> None:
    session.run(f"DELETE FROM {NAME}")
    session.run(f"SELECT pg_replication_slot_advance('{slot(session)}', pg_current_wal_lsn())")
    marks = ", ".join(f"${i + 1}" for i in range(len(COLUMNS) + 1))
    for number_, row in enumerate(rows):
        session.run(f"INSERT INTO {NAME} VALUES ({marks})", [str(number_), *row])
    binary, texts = Captured(session, binary=True), Captured(session, binary=False)
    assert binary.schema is not None
    read = chunk(session, binary.schema)
    wanted = [event.after for event in events(binary.schema, read.values, read.keys)]
    for captured in (texts, binary):
        given = [event.after for event in events(binary.schema, captured.values["I"], captured.keys["I"])]
        for one, other in zip(given, wanted, strict=True):
            assert one is not None
            assert other is not None
            assert {name: (one[name], other[name]) for name in one if repr(one[name]) != repr(other[name])} == {}
    expected = [as_op(value, b"c") for value in read.values]
    assert texts.values["I"] == expected
    assert binary.values["I"] == expected
    assert binary.keys["I"] == texts.keys["I"] == read.keys
    same_text(session, binary.schema)
