"""Kill -9 at random moments and at every failpoint, under a concurrent workload with loads running: nothing lost, doubled or torn.

`make test` hits each failpoint at least once and kills for KILL_S seconds; `make test-full` (PENSTOCK_FULL=1) counts: 200 kills, each
failpoint at least 5 times. The seed is printed; PENSTOCK_SEED repeats it.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.killing import Killing, seeded
from tests.servers import Database
from tests.verification import FULL, record

KILL_S = 60.0


@pytest.mark.slow
@pytest.mark.timeout(7200 if FULL else 420)
def test_nothing_is_lost_doubled_or_torn_through_kills(database: Database, target: Database, tmp_path: Path) -> None:
    with closing(Killing(database, target, tmp_path, seeded())) as killing:
        figures = killing.run(KILL_S)
    record("Kills, Postgres to Postgres over the embedded log", figures)
