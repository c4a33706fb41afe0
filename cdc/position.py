"""`Position`: everything that a capture needs after a crash, stored in each checkpoint (rules R2, R5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Json = Any


@dataclass(frozen=True, slots=True)
class Position:
    """Resume here and the next event follows.

    `epoch` counts cuts of the source's history (rule R5), `sequence` every record written so far, `stream` is the engine's own
    place and opaque to all others (for Postgres an LSN, an ordinal inside the transaction, and delivered transactions not yet
    seen visible), `load` the state of `cdc.load.Load`. Both are JSON values.
    """

    epoch: int
    sequence: int
    stream: Json
    load: Json

    def to_json(self) -> Json:
        return {"epoch": self.epoch, "sequence": self.sequence, "stream": self.stream, "load": self.load}

    @classmethod
    def from_json(cls, data: Json) -> Position:
        return cls(data["epoch"], data["sequence"], data["stream"], data["load"])
