"""The Postgres source on real servers, as the documented role: stream, positions, marks, chunks."""

from __future__ import annotations

import pytest

from tests.integration.pg_source import Capture, brief
from tests.servers import Database

pytestmark = pytest.mark.majors(16, 18)


def test_end_to_end(database: Database) -> None:
    """Start, load, mark, stream, confirm, resume: the whole of a capture's life in one go."""
    database.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 10) i")
    capture = Capture(database.grant_source(), tables=["public.*"]).start()
    rows = capture.rows(capture.chunk("public.t", rows_max=7))
    assert [event.after for event in rows] == [{"id": i, "v": f"v{i}"} for i in range(1, 8)]
    database.execute("INSERT INTO t VALUES (11, NULL); UPDATE t SET v = 'x' WHERE id = 1; DELETE FROM t WHERE id = 2")
    capture.until_mark()
    assert brief(capture.events) == [("c", "t", (11, None)), ("u", "t", (1, "x")), ("d", "t", (2, None))]
    capture.source.confirm(capture.cut)
    capture.reopen()
    database.execute("UPDATE t SET id = 20 WHERE id = 1")
    capture.until_mark()
    assert brief(capture.events[3:]) == [("d", "t", (1, None)), ("c", "t", (20, "x"))]
    assert capture.source.drop() == ["slot cdc_p", "publication cdc_p"]
