"""What a DBA sees of a running pipeline, and what bounds it: status, health and metrics of the log that the server keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.request import urlopen

from tests.e2e.pipeline import until
from tests.e2e.scene import Scene
from tests.servers import Database, Server

LIMITS = {
    "lock_timeout_s": 0.5,
    "statement_timeout_s": 20,
    "transaction_s_max": 10,
    "read_bytes_per_s": "10MB",
    "until_loss_hours_min": 4,
}


def test_how_long_the_log_is_kept_is_seen_everywhere(
    private_postgres: Callable[..., Server], tmp_path: Path, target: Database
) -> None:
    """The bounds are taken from the file; a slot that nobody reads, and that ends in an hour, is said in time. A table that loads
    and is locked is named with whom it is locked by."""
    server = private_postgres(18, {"idle_replication_slot_timeout": "3600s", "max_slot_wal_keep_size": "1GB"})
    with server.database("kept") as source, closing(Scene(tmp_path, source, target)) as scene:
        scene.configure(source={**scene.config["source"], **LIMITS})
        scene.live()
        seen = scene.pipeline.status()["result"]
        assert seen["problems"] == []
        assert seen["source"]["limit_bytes"] == 1 << 30
        assert seen["source"]["until_loss_min_s"] == 4 * 3600
        assert seen["source"]["idle_left_s"] is None
        shown = scene.pipeline.cdc("status", str(scene.pipeline.file)).stdout
        assert "of 1.1 GB" in " ".join(shown.split())

        def metrics() -> str | None:
            lines = [
                json.loads(line) for line in scene.pipeline.tail("capture", 50_000).splitlines() if line[:1] == "{"
            ]
            address = [line["address"] for line in lines if line["event"] == "listening"][-1]
            with urlopen(f"{address}/metrics", timeout=5) as answer:
                text = str(answer.read().decode())
            return text if "cdc_source_limit_bytes 1.073741824e+09" in text else None

        assert "cdc_source_until_loss_seconds" in until(
            metrics, 20, "the limit in the metrics", alive=scene.pipeline.alive
        )
        with closing(source.connect()) as connection, connection.cursor() as cursor:
            scene.pipeline.reload("public.t")
            scene.terminate("capture")
            cursor.execute("LOCK TABLE t")
            scene.problem("up what it keeps", "1.0 hours", "4 are demanded")
            scene.start("capture")
            scene.problem("locked by", f"pid {connection.info.backend_pid} ")
            connection.rollback()
        scene.arrives()
