"""Schemas and their ids, for those who read the log: `api` serves the log's own schemas over HTTP, `external` registers them in a
registry that somebody else runs.

The invariant: whoever gives an id, the schema stands in the log under it before a record with that id does (protocol A8), so the log
explains itself without any registry.
"""

from __future__ import annotations

from typing import Any, Protocol

Json = Any


class Registrar(Protocol):
    """Gives schemas their ids in place of the log, which stores what it gives. A log that was given one closes it, too."""

    def register(self, subject: str, schema: Json) -> int:
        """The schema's id, the same each time. Raises CDC-REG-… errors, Unavailable among them."""

    def close(self) -> None: ...
