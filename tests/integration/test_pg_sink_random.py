"""Seeded random histories with a unique column and unchanged columns, in random batches, against the same rows in memory."""

from __future__ import annotations

import random
from typing import Any

import pytest

from sinks.postgres.sink import PostgresSink
from tests.events import Event, Feed, Table
from tests.servers import Database, execute

Row = dict[str, Any]


class Source:
    """Rows by key; every change keeps `email` unique, as the source's own constraint would."""

    def __init__(self, table: Table, rng: random.Random) -> None:
        self.table, self.rng, self.rows, self.made = table, rng, dict[int, Row](), 0

    def change(self) -> list[Event]:
        key = self.rng.randrange(8)
        row = self.rows.get(key)
        if row is None:
            return self._insert(key)
        match self.rng.randrange(6):
            case 0:
                del self.rows[key]
                return self.table.d(id=key)
            case 1 | 2:
                return self._move(key, row)
            case 3:
                return self._swap(key, row)
        return self._update(key, {"email": self._email()} if self.rng.random() < 0.5 else {})

    def _email(self) -> str | None:
        taken = {row["email"] for row in self.rows.values()}
        return self.rng.choice(
            [email for email in ("a", "b", "c", "d", "e", "f", None) if email is None or email not in taken]
        )

    def _insert(self, key: int) -> list[Event]:
        self.made += 1
        self.rows[key] = row = {"id": key, "email": self._email(), "big": f"big {self.made}", "n": self.made}
        return self.table.c(**row)

    def _sent(self, row: Row, changed: Row) -> tuple[list[str], Row]:
        """What an update sends: columns that did not change may be left out."""
        unchanged = [name for name in ("big", "email") if name not in changed and self.rng.random() < 0.7]
        return unchanged, {name: value for name, value in row.items() if name not in unchanged}

    def _update(self, key: int, changed: Row) -> list[Event]:
        self.made += 1
        changed |= {"n": self.made} | ({"big": f"big {self.made}"} if self.rng.random() < 0.3 else {})
        self.rows[key] = self.rows[key] | changed
        unchanged, sent = self._sent(self.rows[key], changed)
        return self.table.u(unchanged, **sent)

    def _move(self, key: int, row: Row) -> list[Event]:
        free = [other for other in range(8) if other not in self.rows]
        if not free:
            return self._update(key, {})
        del self.rows[key]
        new = self.rng.choice(free)
        self.rows[new] = row | {"id": new}
        unchanged, sent = self._sent(self.rows[new], {"id": new})
        return self.table.move({"id": key}, unchanged, **sent)

    def _swap(self, key: int, row: Row) -> list[Event]:
        others = [other for other in self.rows if other != key]
        if not others:
            return []
        other = self.rng.choice(others)
        mine, theirs = row["email"], self.rows[other]["email"]
        return [
            *self._update(key, {"email": None}),
            *self._update(other, {"email": mine}),
            *self._update(key, {"email": theirs}),
        ]


@pytest.mark.parametrize("referenced", [False, True], ids=["alone", "referenced"])
def test_any_history_in_any_batches(target: Database, referenced: bool) -> None:
    feed = Feed()
    feed.resume(PostgresSink("w", target.grant_sink(adopts=True), pipeline="p", schemas=feed.schemas.__getitem__))
    for seed in range(8):
        rng = random.Random(seed)
        name = f"t{seed}"
        target.execute(f"CREATE TABLE public.{name} (id bigint PRIMARY KEY, email text UNIQUE, big text, n bigint)")
        if referenced:  # forbids to replace a row by delete and insert, so exchanges go event by event
            target.execute(f"CREATE TABLE public.kin_{name} (id bigint REFERENCES public.{name} ON DELETE CASCADE)")
        table = feed.table(f"public.{name}", "id int64 key", "email text", "big text", "n int64")
        source = Source(table, rng)
        feed.apply(begun=[table], finished=[table])
        for step in range(40):
            events = [event for _ in range(rng.choice((1, 3, 10))) for event in source.change()]
            assert feed.apply(events) == [], (seed, step)
            if rng.random() < 0.3 or step == 39:
                found = execute(target.admin_url, f"SELECT id, email, big, n FROM public.{name} ORDER BY 1")
                assert found == [tuple(source.rows[key].values()) for key in sorted(source.rows)], (seed, step)
    feed.sink.close()
