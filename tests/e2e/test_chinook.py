"""`cdc copy --follow` of a database that others wrote, while its rows change; then equal."""

from __future__ import annotations

import lzma
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest

from tests.e2e.pipeline import until
from tests.e2e.workload import differences
from tests.servers import Database, execute

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures" / "chinook"
CHANGES_S = 8.0


def load(database: Database) -> list[str]:
    """The fixture as the owner's tables; their names."""
    text = lzma.decompress((FIXTURES / "Chinook_PostgreSql.sql.xz").read_bytes()).decode()
    database.execute(re.sub(r"(?m)^(?:(?:DROP|CREATE) DATABASE|\\c).*$", "", text))
    return [name for (name,) in database.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]


def change(cursor: object, rng: random.Random) -> None:
    """What a shop does: invoices come, prices change, customers move and leave, playlists are made anew."""
    run = cursor.execute  # type: ignore[attr-defined]
    match rng.randrange(6):
        case 0:
            number = rng.randrange(10_000, 10**9)
            run(
                "INSERT INTO invoice (invoice_id, customer_id, invoice_date, total) SELECT %s, customer_id, now(), 1.98 "
                "FROM customer ORDER BY random() LIMIT 1",
                (number,),
            )
            run(
                "INSERT INTO invoice_line (invoice_line_id, invoice_id, track_id, unit_price, quantity) SELECT %s, invoice_id, %s, "
                "0.99, 2 FROM invoice WHERE invoice_id = %s",
                (number, rng.randrange(1, 3504), number),
            )
        case 1:
            run("UPDATE track SET unit_price = unit_price + 0.01 WHERE album_id = %s", (rng.randrange(1, 348),))
        case 2:
            run(
                "UPDATE customer SET city = %s, phone = NULL WHERE customer_id = %s",
                ("Zürich 'Ω'", rng.randrange(1, 60)),
            )
        case 3:
            run(
                "DELETE FROM playlist_track WHERE playlist_id = %s AND track_id %% 7 = %s",
                (rng.randrange(1, 19), rng.randrange(7)),
            )
        case 4:
            run(
                "INSERT INTO playlist_track SELECT %s, track_id FROM track WHERE track_id %% 50 = %s ON CONFLICT DO NOTHING",
                (rng.randrange(1, 19), rng.randrange(50)),
            )
        case _:
            run("DELETE FROM invoice_line WHERE invoice_line_id = %s", (rng.randrange(1, 2241),))


@contextmanager
def following(source: str, target: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    # The URLs are in the environment: a password has no place in a process list.
    process = subprocess.Popen(
        [sys.executable, "-m", "cdc", "copy", "${SRC}", "${DST}", "--follow", "--folder", str(folder)],
        env={**os.environ, "SRC": source, "DST": target}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the fixtures of other projects are not beside this checkout")
def test_chinook_is_copied_and_followed_while_its_rows_change(
    database: Database, target: Database, tmp_path: Path
) -> None:
    tables = load(database)
    assert len(tables) == 11
    source, sink, rng = database.grant_source(), target.grant_sink(), random.Random(5)

    def arrived() -> bool:
        there = execute(target.admin_url, "SELECT to_regclass('public.artist') IS NOT NULL")[0][0]
        return bool(there and execute(target.admin_url, "SELECT 1 FROM artist WHERE artist_id = -1"))

    with following(source, sink, tmp_path) as process:
        ends = time.monotonic() + CHANGES_S
        connection = psycopg2.connect(database.url)
        changes = 0
        while time.monotonic() < ends:
            with connection, connection.cursor() as cursor:
                for _ in range(rng.choice((1, 2, 5))):
                    change(cursor, rng)
                    changes += 1
            time.sleep(0.005)
        with connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO artist VALUES (-1, 'the last one')")
        connection.close()
        until(
            arrived,
            60,
            "the last change",
            alive=lambda: None if process.poll() is None else pytest.fail(str(process.stdout)),
        )
        pairs = [(f'public."{name}"', f'public."{name}"') for name in tables]
        until(lambda: not differences(database.admin_url, target.admin_url, pairs), 30, "all tables loaded")
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert changes > 200
    assert differences(database.admin_url, target.admin_url, pairs) == []
    assert not any(word in output for word in (source, sink)), "a URL with its password in the output"
