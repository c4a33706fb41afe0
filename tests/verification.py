"""docs/verification.md: what the full counts of `make test-full` found, with seeds and machine. Written by the tests themselves."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

FULL = bool(os.environ.get("PENSTOCK_FULL"))
PAGE = Path(__file__).parents[1] / "docs" / "verification.md"
HEAD = """# Verification

What `make test-full` counted, newest first. Each entry repeats with its seed; timing does not.
"""


def record(title: str, figures: Mapping[str, object]) -> None:
    """Add an entry; only in a full run."""
    if not FULL:
        return
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, {platform.machine()}, Python {platform.python_version()}"
    lines = [f"\n## {title}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC\n", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in {**figures, "commit": commit, "machine": machine}.items()]
    before = PAGE.read_text(encoding="utf-8").removeprefix(HEAD) if PAGE.exists() else ""
    PAGE.write_text(HEAD + "\n".join(lines) + "\n" + before, encoding="utf-8")
