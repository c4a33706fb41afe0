"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.scene import Make, Scene
from tests.servers import Database


@pytest.fixture
def make(tmp_path: Path, database: Database, target: Database) -> Iterator[Make]:
    made: list[Scene] = []

    def making(**options: object) -> Scene:
        made.append(Scene(tmp_path, database, target, **options))
        return made[-1]

    yield making
    for scene in made:
        scene.close()


@pytest.fixture
def scene(make: Make) -> Scene:
    return make()
