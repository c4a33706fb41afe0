"""python -m tests.simulation --seeds 5000 [--first 0] [--seed N --trace] [--without MUTANT] [--mutants]"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from contextlib import nullcontext

from tests.simulation.mutants import MUTANTS, killed_by, without
from tests.simulation.world import Violation, World


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--without", choices=sorted(MUTANTS), help="switch one rule off")
    parser.add_argument("--mutants", action="store_true", help="switch each rule off in turn: all must be noticed")
    options = parser.parse_args()
    if options.mutants:
        return mutants(range(options.first, options.first + options.seeds), options.steps)
    with without(options.without) if options.without else nullcontext():
        return run(options)


def mutants(seeds: range, steps: int) -> int:
    survivors = 0
    for name in MUTANTS:
        started = time.perf_counter()
        found = killed_by(name, seeds, steps)
        survivors += found is None
        took = time.perf_counter() - started
        print(f"{name:34} {took:6.1f} s  {f'seed {found[0]}: {found[1]}' if found else 'SURVIVES'}"[:200], flush=True)
    return survivors


def run(options: argparse.Namespace) -> int:
    seeds = range(options.first, options.first + options.seeds) if options.seed is None else [options.seed]
    started, failed = time.perf_counter(), []
    sizes: Counter[str] = Counter()
    for seed in seeds:
        world = World(seed, options.steps, options.trace)
        try:
            world.run()
        except Exception as error:
            failed.append(seed)
            if len(failed) < 8:
                print(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            if options.seed is not None or (not isinstance(error, (Violation,)) and len(failed) < 8):
                traceback.print_exc()
        sizes["checkpoints"] += len(world.storage.checkpoints)
        sizes["commits"] += len(world.db.history.commits)
        sizes["epochs"] += len(world.histories)
    took = time.perf_counter() - started
    print(
        f"{len(seeds)} seeds, {len(failed)} failed, {took:.1f} s, {60 * len(seeds) / took:.0f} per minute; {dict(sizes)}"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
