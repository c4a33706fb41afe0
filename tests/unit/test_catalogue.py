"""Every code that the program can raise has an entry, every entry is raised somewhere, and each says something."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cdc.catalogue import CATALOGUE
from cdc.errors import EXIT_CONFIG, EXIT_FAILED, EXIT_FINDINGS, EXIT_UNAVAILABLE, Entry

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"CDC-[A-Z]+-\d{3}")
SOURCES = [
    path for folder in ("cdc", "sinks") for path in (ROOT / folder).rglob("*.py") if path.parent.name != "catalogue"
]


def used() -> dict[str, set[str]]:
    """Code → files that name it."""
    places: dict[str, set[str]] = {}
    for path in SOURCES:
        for code in CODE.findall(path.read_text(encoding="utf-8")):
            places.setdefault(code, set()).add(str(path.relative_to(ROOT)))
    return places


def test_every_code_that_is_used_has_an_entry() -> None:
    assert {code: files for code, files in used().items() if code not in CATALOGUE} == {}


def test_every_entry_is_used() -> None:
    assert sorted(set(CATALOGUE) - set(used())) == []


def test_areas_do_not_overwrite_each_other() -> None:
    files = (ROOT / "cdc/catalogue").glob("*.py")
    defined = [
        code for path in files for code in re.findall(r'^    "(CDC-[A-Z]+-\d{3})": ', path.read_text(), re.MULTILINE)
    ]
    assert sorted(defined) == sorted(CATALOGUE)


@pytest.mark.parametrize("code", CATALOGUE)
def test_an_entry_explains_itself(code: str) -> None:
    entry: Entry = CATALOGUE[code]
    assert CODE.fullmatch(code)
    assert entry.title
    assert entry.title[-1] != "."
    assert len(entry.title) <= 90
    assert len(entry.explanation) > 20
    assert entry.remedy
    assert entry.exit_code in (EXIT_FAILED, EXIT_CONFIG, EXIT_UNAVAILABLE, EXIT_FINDINGS)
