"""Kafka as it is run: three brokers, three copies of everything, two of which must take a write. Brokers are killed under a pipeline
and a workload, and nothing is lost, doubled or torn.

One broker less is one that leads: capture and sinks go on when there is a new leader. Two less are too few to write: the capture
waits, with its code, and goes on by itself. `make test-full` adds the coordinator of the transactions, and a leader that was frozen
and comes back, and does not know what was written without it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import provided
from tests.e2e.kafka_proof import prove
from tests.e2e.killing import Killing, seeded, settled, states
from tests.e2e.pipeline import until
from tests.e2e.workload import TABLES, differences
from tests.servers import Database, execute
from tests.verification import FULL

if TYPE_CHECKING:
    from tests.servers.kafka import KafkaCluster

AWAY = "CDC-KAFKA-101"
CHECKPOINTS, PRODUCER = "kills.checkpoints", "cdc.kills"
LOAD = {"writers": 2, "pause_s": 0.03, "bulk_rows": 300}
PATIENCE_S = 90.0


@pytest.fixture
def cluster() -> Iterator[KafkaCluster]:
    from tests.servers.kafka import KafkaCluster

    with provided(KafkaCluster) as kafka:
        yield kafka


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_leaders_that_die(database: Database, target: Database, cluster: KafkaCluster, tmp_path: Path) -> None:
    log = {"url": f"kafka://{cluster.bootstrap}", "replication": 3, "partitions": 3}
    with closing(Killing(database, target, tmp_path, seeded(), log, **LOAD)) as killing:
        pipeline = killing.pipeline
        with killing.workload.running(), killing.bank:
            pipeline.start_all()
            until(lambda: states(pipeline) == ["live"] * len(TABLES), PATIENCE_S, "live", alive=pipeline.alive)

            first = cluster.leader(CHECKPOINTS)
            with goes_on(killing):
                first.kill()
            second = cluster.leader(CHECKPOINTS)
            assert second is not first
            second.kill()
            until(lambda: AWAY in said(killing), PATIENCE_S, "the capture waits", alive=pipeline.alive)
            with goes_on(killing):
                cluster.start()

            if FULL:
                with goes_on(killing):
                    cluster.coordinator(PRODUCER).kill()
                cluster.start()
                a_leader_comes_back(cluster, killing)
            killing.workload.stop()
            settled(pipeline, database, target, killing.pairs)
        assert not (found := differences(database.admin_url, target.admin_url, killing.pairs)), found
        assert not killing.bank.torn, killing.bank.torn[:5]
    assert prove(cluster, "kills").orphans == 0


def a_leader_comes_back(cluster: KafkaCluster, killing: Killing) -> None:
    """One that was frozen takes itself for the leader still, for a moment, and a capture begins in it."""
    frozen = cluster.leader(CHECKPOINTS)
    frozen.suspend()
    until(lambda: cluster.leader(CHECKPOINTS) is not frozen, PATIENCE_S, "another leader")
    killing.pipeline.kill("capture")
    with goes_on(killing):
        killing.pipeline.start("capture")
    killing.pipeline.kill("capture")
    frozen.resume()
    with goes_on(killing):
        killing.pipeline.start("capture")


def said(killing: Killing) -> str:
    return killing.pipeline.tail("capture", 100_000)


@contextmanager
def goes_on(killing: Killing) -> Iterator[None]:
    """What is written at the source after what happens here arrives at the target, and none of the processes has ended."""
    yield
    key = -random.randrange(2, 1 << 40)
    killing.source.execute(f"INSERT INTO registry VALUES ({key}, 0, 'a mark')")
    until(
        lambda: execute(killing.target.admin_url, f"SELECT 1 FROM public.registry WHERE k = {key}"),
        PATIENCE_S,
        "a new row at the target",
        alive=killing.pipeline.alive,
    )
