"""The protocols' properties hold for the real load machine, capture and apply loops under seeded faults; each rule is needed.

`make check` runs seeds for some seconds, other ones each time; a failure prints its seed:
`python -m tests.simulation --seed N --trace` shows it step by step.
"""

from __future__ import annotations

import os
import time

import pytest

from cdc.avro import decode_datum, decode_event, encode_datum
from tests.simulation.mutants import MUTANTS, killed_by
from tests.simulation.rows import KEYED, KEYLESS, SCHEMAS, TABLES, A, B, Row, decode, key_bytes, key_of, value_bytes
from tests.simulation.world import World

FULL = bool(os.environ.get("PENSTOCK_FULL"))
FIRST_S, MORE_S = (600.0, 1800.0) if FULL else (6.0, 12.0)
MUTANT_SEEDS = 4000


def run_seeds(first: int, seconds: float) -> int:
    """Worlds one after another; how many. What fails says which seed it was."""
    ends, seed = time.monotonic() + seconds, first
    while time.monotonic() < ends:
        try:
            World(seed).run()
        except Exception as error:
            error.add_note(f"python -m tests.simulation --seed {seed} --trace")
            raise
        seed += 1
    return seed - first


@pytest.mark.timeout(2 * MORE_S + 60)
@pytest.mark.parametrize(
    ("first", "seconds"), [(0, FIRST_S), (time.time_ns() // 1_000_000, MORE_S)], ids=["same", "new"]
)
def test_nothing_is_lost_doubled_or_torn(first: int, seconds: float) -> None:
    count = run_seeds(first, seconds)
    print(f"{count} seeds from {first}: {60 * count / seconds:.0f} per minute")
    assert count > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_each_rule_is_needed(name: str) -> None:
    assert killed_by(name, range(MUTANT_SEEDS)), f"{MUTANT_SEEDS} seeds pass without the rule"


def test_a_seed_is_repeatable() -> None:
    def ends() -> object:
        world = World(17)
        world.run()
        return world.target.content, [checkpoint.position for checkpoint, _ in world.storage.checkpoints]

    assert ends() == ends()


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("table", KEYED)
def test_bytes_of_keyed_rows_are_the_formats(table: object, version: int) -> None:
    assert table in (A, B)
    row = Row(-7, 12, None)
    for op, sent, moved in (("c", row, None), ("u", row._replace(big=None), None), ("c", row, 3), ("r", row, None)):
        value = value_bytes(table, version, op, 5, sent, None, moved)  # type: ignore[arg-type]
        schema = SCHEMAS[int.from_bytes(value[1:5], "big")]
        event = decode_event(schema, value)
        assert (event.op, event.table.id, event.unchanged) == (op, table, ("big",) if sent.big is None else ())
        assert event.after is not None
        assert event.after["id"] == 5
        assert event.after.get("big") == (None if sent.big is None else "big 12")
        assert encode_datum(schema, decode_datum(schema, value[5:])) == value[5:]
        assert decode(value)[:5] == (op, sent.big is None, moved, 5, sent)
    gone = decode_event(schema, value_bytes(table, version, "d", 5, None))  # type: ignore[arg-type]
    assert gone.before is not None
    assert gone.before["id"] == 5
    assert key_of(key_bytes(table, 5)) == 5  # type: ignore[arg-type]


def test_bytes_of_other_events_are_the_formats() -> None:
    value = value_bytes(KEYLESS, 1, "u", None, 3, 4)
    event = decode_event(SCHEMAS[int.from_bytes(value[1:5], "big")], value)
    assert (event.before, event.after) == ({"number": 4}, {"number": 3})
    for table in TABLES:
        value = value_bytes(table, 0, "t", None, None)
        assert decode_event(SCHEMAS[int.from_bytes(value[1:5], "big")], value).op == "t"
