"""The primary is killed under load and its standby promoted: the targets end equal to the new primary, row for row."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import psycopg2
import pytest

from tests.e2e import workload
from tests.e2e.pipeline import until
from tests.e2e.scene import Scene
from tests.servers import Database, Server, standby

PAIRS = [(table, table) for table in workload.TABLES]


@pytest.mark.parametrize("major", [16, 18])
def test_a_primary_that_dies_under_load(
    private_postgres: Callable[..., Server], tmp_path: Path, target: Database, major: int
) -> None:
    """18 goes on by itself: the standby keeps the slot, and has all that was sent. 16 stops, and does as it is told."""
    with ExitStack() as stack:
        primary = private_postgres(major)
        source = primary.make_database("failover")
        follower = standby.follow(primary)
        assert primary.process is not None
        assert follower.process is not None
        stack.callback(follower.process.close)
        scene = Scene(tmp_path, source, target, schema=workload.SCHEMA + workload.IDENTITY + workload.ROWS)
        stack.callback(scene.close)
        scene.pairs = PAIRS
        scene.use_source(standby.either(scene.source_url, primary, follower))
        scene.start()
        until(scene.equal, 60, "the load", alive=scene.pipeline.alive)
        if major >= 17:
            standby.synchronized(primary, follower, "cdc_bad", lambda: time.sleep(0.3))
        load = workload.Workload(source.url, major, writers=2)
        with suppress(psycopg2.OperationalError, psycopg2.InterfaceError), load.running():  # the writers' server dies
            time.sleep(3)
            primary.process.kill9()
        standby.promote(follower)
        scene.source = standby.at(source, follower)
        with workload.Workload(scene.source.url, major + 1, writers=2).running():
            if major < 17:
                stopped = scene.stops("capture", "CDC-PG-120", "timeline 2", timeout_s=60)
                scene.follow(stopped.remedy)
                scene.start("capture")
            time.sleep(3)
        until(scene.equal, 60, "equal tables after the failover", alive=scene.pipeline.alive)
        assert scene.source.slots() == (["cdc_bad"] if major >= 17 else ["e1_cdc_bad"])
