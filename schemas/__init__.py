"""The Avro schemas that Penstock promises to strangers; `load(name)` and nothing else. README.md has their rules."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from typing import Any


@lru_cache
def _text(name: str) -> str:
    return files(__name__).joinpath(f"{name}.avsc").read_text(encoding="utf-8")


def load(name: str) -> dict[str, Any]:
    """A fresh copy of schemas/<name>.avsc. Raises FileNotFoundError for an unknown name."""
    schema: dict[str, Any] = json.loads(_text(name))
    return schema
