"""`python -m benchmarks`: every cell on real servers, as ratios to the machine's own limits and to Debezium, in under 12 minutes.

    python -m benchmarks [--only CELL]… [--rows N] [--full] [--json]

The cells over Kafka need Java 17 and Maven; without them they are skipped, and say so.
Exit code 1 when a goal is missed. `--json` prints one line for each figure. `--full` adds transactions and loads of a million rows.
Single parts: `python -m benchmarks.codec`, `benchmarks.embedded_log`, `benchmarks.kafka_log`,
`benchmarks.sink_merge`, `benchmarks.stages`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import kafka, pipeline, scale
from benchmarks.rig import Rig, Sides
from cdc.demo.binaries import server_user
from cdc.demo.postgres import base_folder
from tests.servers import Missing

CELLS = {**pipeline.CELLS, **scale.CELLS, **kafka.CELLS}
BUSY = 0.7


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", choices=CELLS, metavar="CELL", help=", ".join(CELLS))
    parser.add_argument("--rows", type=int, default=300_000, help="rows of a backlog or load, per round")
    parser.add_argument("--full", action="store_true", help="a million rows where size is the question")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each figure")
    args = parser.parse_args()
    missed, busy = 0, os.getloadavg()[0]
    if busy > BUSY:
        # Ours is two processes at a time, most limits are one: on a busy machine the ratios are those of the scheduler.
        print(f"this machine has other work (load average {busy:.1f}): the ratios are of no use", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=base_folder(server_user())) as folder, Rig(Path(folder)) as rig:
        for name in args.only or CELLS:
            began = time.monotonic()
            try:
                figures = CELLS[name](rig, args)
            except Missing as missing:
                print(
                    json.dumps({"cell": name, "skipped": str(missing)}) if args.json else f"{name}  skipped: {missing}"
                )
                continue
            missed += sum(figure.held is False for figure in figures)
            if not args.json:
                print(f"{name}  ({time.monotonic() - began:.0f} s)")
                if any(isinstance(figure, Sides) for figure in figures):
                    print(Sides.heading())
            for figure in figures:
                print(json.dumps(figure.to_json()) if args.json else figure, flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
