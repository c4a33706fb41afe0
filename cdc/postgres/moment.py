"""A place in a Postgres server's log as the target of a replay: everything before it, and nothing of a transaction that goes on there.

The invariant: what counts is where events were written, and the order in which their transactions were committed: of the first
transaction in the log with an event at or behind the place, and of all after it, nothing is before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from cdc.errors import CdcError
from cdc.log import Checkpoint
from cdc.postgres.position import lsn_int

Json = Any


class Lsn(NamedTuple):
    """See `sinks.horizon.Moment`."""

    lsn: int
    text: str

    def beyond(self, checkpoint: Checkpoint) -> bool:
        """May some event of this checkpoint be later?"""
        return lsn_int(checkpoint.position.stream["lsn"]) > self.lsn

    def later(self, source: Mapping[str, Json]) -> bool:
        """Was the event written at this place or behind it?"""
        return int(source["lsn"]) >= self.lsn


def parse(text: str) -> Lsn:
    """`0/16B3748`. Raises CDC-RPL-111."""
    try:
        return Lsn(lsn_int(text), f"position:{text}")
    except ValueError:
        raise CdcError("CDC-RPL-111", f"position:{text} is not an LSN") from None
