"""Tables of every kind through the whole pipeline: read, streamed, and equal at the target; or refused by name, with the reason."""

from __future__ import annotations

import pytest

from tests.integration.whole import Whole

pytestmark = pytest.mark.timeout(120)


def test_an_empty_table_is_made_at_the_target(whole: Whole) -> None:
    whole.sql("CREATE TABLE empty (id int PRIMARY KEY, v text NOT NULL)")
    whole.sql("CREATE TABLE log (v text); ALTER TABLE log REPLICA IDENTITY FULL")
    whole.run()
    assert whole.columns("public.empty") == [("id", "integer"), ("v", "text")]
    assert whole.columns("public.log") == [("v", "text")]
    assert whole.states() == {"public.empty": "live", "public.log": "live"}
    whole.sql("INSERT INTO empty VALUES (1, 'a'); INSERT INTO log VALUES ('b')")
    whole.run()
    whole.equal("public.empty", "public.log")
