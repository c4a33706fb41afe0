"""Messages through a whole pipeline: kept with the rows of their transaction over kills, shown by `cdc tail`, ignored by sinks."""

from __future__ import annotations

import base64
import json
from typing import Any

from tests.e2e.pipeline import until
from tests.e2e.scene import Make, Scene

ROUNDS, ROWS, BYTES = 40, 25, 100_000  # 100 MB: more runs than kills
KILLS = 4


def test_killed_inside_a_transaction_of_rows_and_messages(make: Make) -> None:
    """Capture dies at four batches of one transaction; after it, each row and each message is in the log once, in the order in which
    they were written, and the target is equal."""
    scene = make()
    scene.configure(source={**scene.config["source"], "messages": ["outbox", "app.*"]})
    scene.live()
    scene.terminate("capture")
    scene.source.execute(
        f"""DO $$ BEGIN FOR r IN 1..{ROUNDS} LOOP
              PERFORM pg_logical_emit_message(true, 'outbox', r::text);
              INSERT INTO t SELECT r * 1000 + i, repeat('x', {BYTES}) FROM generate_series(1, {ROWS}) i;
              PERFORM pg_logical_emit_message(true, 'other', r::text);
            END LOOP; END $$"""
    )
    for kill in range(KILLS):
        process = scene.pipeline.start("capture", "capture.appended:2")  # the first is empty
        process.wait(30)
        assert "failpoint capture.appended" in scene.pipeline.tail("capture")
        assert len(tail(scene, 1000, "message")) in range(kill + 1, ROUNDS)
    scene.live()
    written = [event for event in tail(scene, ROUNDS * (ROWS + 1) + 1000) if event["op"] == "m" or not early(event)]
    order = [int(content(event)) if event["op"] == "m" else event["key"]["id"] for event in written]
    expected = [n for r in range(1, ROUNDS + 1) for n in (r, *range(r * 1000 + 1, r * 1000 + ROWS + 1))]
    assert order == expected
    numbers = [event["sequence"] for event in written]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    text = scene.pipeline.cdc("tail", str(scene.pipeline.file), "message", "-n", "1").stdout
    assert f' m message [prefix="outbox"] {ROUNDS}' in text


def test_a_sink_goes_on_over_messages_alone(scene: Scene) -> None:
    """Checkpoints with nothing but messages move a sink's bookmark, and its table list does not grow."""
    scene.configure(source={**scene.config["source"], "messages": ["*"]})
    scene.live()
    for number in range(3):
        scene.source.execute(f"SELECT pg_logical_emit_message(true, 'app', '{number}')")
        until(
            lambda number=number: [content(e) for e in tail(scene, 9, "message")][number:], 10, "a message in the log"
        )  # type: ignore[misc]
    scene.arrives()
    status = json.loads(scene.pipeline.cdc("status", str(scene.pipeline.file), "--json").stdout)["result"]
    assert sorted(table["table"] for table in status["tables"]) == ["public.t", "public.u"]


def tail(scene: Scene, count: int, *tables: str) -> list[dict[str, Any]]:
    done = scene.pipeline.cdc("tail", str(scene.pipeline.file), *tables, "-n", str(count), "--json")
    return [json.loads(line) for line in done.stdout.splitlines()]


def content(event: dict[str, Any]) -> str:
    return base64.b64decode(event["after"]["content"]).decode()


def early(event: dict[str, Any]) -> bool:
    """Not of the large transaction."""
    return event["table"] != "public.t" or not 1000 < event["key"]["id"] < 1_000_000
