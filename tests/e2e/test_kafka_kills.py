"""Kill -9 of capture, sink and broker at random moments, brokers that freeze, and every failpoint, over Kafka: nothing lost, doubled
or torn, and the log itself whole for a reader that is not ours.

`make test` hits each failpoint at least once and kills for KILL_S seconds; `make test-full` counts as for the embedded log, and adds
a freeze that outlives a transaction. The seed is printed; PENSTOCK_SEED repeats it.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.kafka_proof import prove
from tests.e2e.killing import Killing, seeded
from tests.servers import Database
from tests.verification import FULL, record

if TYPE_CHECKING:
    from tests.servers.kafka import Kafka

KILL_S = 25.0
LOAD = {"writers": 3, "pause_s": 0.01, "bulk_rows": 1_000}  # every record is decoded at the end, slowly
FREEZES_S = (0.5, 2.0, 5.0)  # the tests' brokers are given up after 2 s
OUTLIVED_S = 33.0  # a transaction's longest time, and the broker's look at it

ODDS = {"kill": 3, "restart": 1, "freeze": 3, "outlived freeze": 0, "nothing": 8}
ONCE = [kind for kind in ODDS if ODDS[kind] or FULL]


class Broker:
    """What happens to a broker between two kills of processes."""

    def __init__(self, kafka: Kafka, killing: Killing) -> None:
        self.kafka, self.killing, self.done = kafka, killing, Counter[str]()

    def disturb(self, rng: random.Random) -> bool:
        """One thing; true until each has come once, which they do before any comes again."""
        missing = [name for name in ONCE if not self.done[name]]
        kind = missing[0] if missing else rng.choices(list(ODDS), list(ODDS.values()))[0]
        self.done[kind] += 1
        if kind == "kill":
            self.kafka.kill()
            self.meanwhile(rng, rng.choice((0.0, 1.0, 3.0)))
            self.kafka.start()
        elif kind == "restart":
            self.kafka.stop()
            self.meanwhile(rng, 0.0)
            self.kafka.start()
        elif kind != "nothing":
            self.kafka.suspend()
            self.meanwhile(rng, OUTLIVED_S if kind == "outlived freeze" else rng.choice(FREEZES_S))
            self.kafka.resume()
        return len(missing) > 1

    def meanwhile(self, rng: random.Random, seconds: float) -> None:
        """Processes are killed and started beside a broker that is away, too."""
        time.sleep(seconds / 2)
        if rng.random() < 0.5:
            self.killing.kill()
        time.sleep(seconds / 2)


@pytest.mark.slow
@pytest.mark.timeout(7200 if FULL else 600)
def test_nothing_is_lost_doubled_or_torn_through_kills_of_processes_and_brokers(
    database: Database, target: Database, private_kafka: Callable[..., Kafka], tmp_path: Path
) -> None:
    kafka = private_kafka()
    log = {"url": f"kafka://{kafka.bootstrap}"}
    with closing(Killing(database, target, tmp_path, seeded(), log, **LOAD)) as killing:
        broker = Broker(kafka, killing)
        figures = killing.run(KILL_S, broker.disturb)
        print(f"broker {dict(broker.done)}")
        proof = prove(kafka, "kills")
    assert all(broker.done[kind] for kind in ONCE)
    assert proof.orphans == 0, proof
    record(
        "Kills, Postgres to Postgres over Kafka",
        {
            **figures,
            "kill -9 of the broker": broker.done["kill"],
            "restarts of the broker": broker.done["restart"],
            "freezes of the broker": broker.done["freeze"] + broker.done["outlived freeze"],
            "checkpoints read by a foreign consumer": proof.checkpoints,
            "records in their ranges, none twice, none missing": proof.records,
            "orphans": proof.orphans,
        },
    )
