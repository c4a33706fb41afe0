"""`cdc version`: our version, and those of the interpreter and the libraries that matter in a report."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from cdc.errors import EXIT_OK
from cdc.presentation import answer, say

_LIBRARIES = ("psycopg2-binary", "psycopg", "fastavro", "pydantic")


def run(*, as_json: bool) -> int:
    versions = {"penstock": _version("penstock"), "python": platform.python_version()}
    versions |= {name: _version(name) for name in _LIBRARIES}
    if as_json:
        print(answer("version", versions))
    else:
        say("\n".join(f"{name} {number}" for name, number in versions.items()), sys.stdout)
    return EXIT_OK


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"
