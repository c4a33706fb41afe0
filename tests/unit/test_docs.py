"""Pages that are made from the code are up to date."""

from __future__ import annotations

import pytest

from docs.generate import FOLDER, PAGES


@pytest.mark.parametrize("path", PAGES)
def test_page_is_what_the_code_makes(path: str) -> None:
    assert (FOLDER / path).read_text(encoding="utf-8") == PAGES[path](), "run `make docs`"
