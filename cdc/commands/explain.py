"""`cdc explain CODE`: the catalogue's entry."""

from __future__ import annotations

import re

from cdc.catalogue import CATALOGUE
from cdc.errors import EXIT_OK, CdcError
from cdc.presentation import answer, say
from cdc.suggest import did_you_mean

_MEANING = {1: "failed, needs an operator", 2: "configuration", 3: "a dependency is away", 4: "findings"}


def run(*, code: str, as_json: bool) -> int:
    """Accepts `CDC-PG-104`, `cdc-pg-104` and `pg104`. Raises CDC-CFG-109 for a code that does not exist."""
    wanted = _spelt(code)
    found = CATALOGUE.get(wanted)
    if found is None:
        raise CdcError("CDC-CFG-109", f'no code "{code}"{did_you_mean(wanted, CATALOGUE)}')
    if as_json:
        print(answer("explain", {"code": wanted, **{name: getattr(found, name) for name in found.__slots__}}))
    else:
        import sys

        meaning = f"exit code {found.exit_code} ({_MEANING[found.exit_code]})"
        say(f"{wanted}  {found.title}\n\n{found.explanation}\n\n→ {found.remedy}\n\n{meaning}", sys.stdout)
    return EXIT_OK


def _spelt(code: str) -> str:
    found = re.fullmatch(r"(?:CDC-?)?([A-Z]+)-?(\d{3})", code.strip().upper())
    return f"CDC-{found[1]}-{found[2]}" if found else code.strip().upper()
