"""The nearest known word to one that is not known: for keys, verbs, tables and codes."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` was probably meant to be; None when none is near."""
    folded = {candidate.casefold(): candidate for candidate in known}
    found = get_close_matches(word.casefold(), folded, n=1, cutoff=0.6)
    return folded[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean "tables"?`, or nothing: to be put at the end of a message."""
    candidate = nearest(word, known)
    return f'; did you mean "{candidate}"?' if candidate else ""
