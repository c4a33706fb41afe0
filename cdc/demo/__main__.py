"""`python -m cdc.demo FOLDER` starts the servers of a folder that `cdc demo --keep` left, until Ctrl-C or SIGTERM."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from cdc.demo import stage
from cdc.errors import CdcError
from cdc.presentation import error_text, say
from cdc.supervise import Stop


def main(folder: Path) -> int:
    """Its exit code. Raises nothing: an error is shown with its remedy."""
    try:
        with Stop().on_signals() as stop, ExitStack() as stack:
            for server in stage.start_again(folder, stack):
                say(f"✓ PostgreSQL {server.major} on port {server.port}", sys.stdout)
            say("Ctrl-C stops them.", sys.stdout)
            while not stop.wait(60.0):
                pass
    except CdcError as error:
        say(error_text(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / stage.SERVERS_FILE).is_file():
        say("usage: python -m cdc.demo FOLDER, of a demo that was kept")
        sys.exit(2)
    sys.exit(main(Path(sys.argv[1]).absolute()))
