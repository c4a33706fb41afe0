"""The question before a verb changes something."""

from __future__ import annotations

import sys

from cdc.errors import CdcError
from cdc.presentation import for_stream, say


def confirmed(question: str, yes: bool) -> bool:
    """True with `--yes`, or when the user says so on the terminal. Raises CDC-RUN-302 when there is nobody to ask."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise CdcError("CDC-RUN-302", question)
    sys.stderr.write(for_stream(f"{question} [y/N] ", sys.stderr))
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() in ("y", "yes"):
        return True
    say("nothing was done")
    return False
