"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cdc import capture
from tests.integration.whole import Whole
from tests.servers import Database


@pytest.fixture
def whole(database: Database, target: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Whole]:
    """A pipeline of the documented roles in this process, from `database` to `target`."""
    monkeypatch.setattr(capture, "POLL_S", 0.1)
    made = Whole(database, target, tmp_path)
    yield made
    made.log.close()
