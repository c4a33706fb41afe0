"""Where a Postgres stream stands: the JSON of `Position.stream`, and snapshots as Postgres writes them.

The invariant (rule R2): a position is a complete transaction plus, inside the next one, the number of its raw events. No row's
LSN is ever a position: those are neither monotonic nor unique.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

Json = Any

_XIDS = 1 << 32


def lsn_text(lsn: int) -> str:
    """As Postgres writes it: `0/16B3748`."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"


def lsn_int(text: str) -> int:
    """The inverse of `lsn_text`."""
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


class Open(NamedTuple):
    """Inside a transaction: where its commit record starts, and how many of its raw events are behind us: rows, TRUNCATEs and
    transactional messages, whether they are captured or not."""

    commit_lsn: int
    ordinal: int


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """`lsn` is the end of the last complete transaction, or the start point. `commit_lsn`, `xid` and `commit_us` name that
    transaction, so that it can be found again and compared (rule R5); None before the first one. `unseen` holds delivered xids
    that no snapshot of ours has seen visible yet (protocol C2)."""

    system_id: str
    timeline: int
    slot: str
    lsn: int
    commit_lsn: int | None = None
    xid: int | None = None
    commit_us: int | None = None
    open: Open | None = None
    unseen: tuple[int, ...] = ()

    @property
    def confirmable(self) -> int:
        """What the slot may forget: everything before the last complete transaction, which is sent again to be compared."""
        return self.lsn if self.commit_lsn is None else self.commit_lsn

    def pruned(self, snapshot: Snapshot) -> StreamPosition:
        """Without the transactions that `snapshot` sees."""
        if not self.unseen:
            return self
        return replace(self, unseen=tuple(xid for xid in self.unseen if not snapshot.sees(xid)))

    def to_json(self) -> Json:
        return {
            "system_id": self.system_id,
            "timeline": self.timeline,
            "slot": self.slot,
            "lsn": lsn_text(self.lsn),
            "commit_lsn": None if self.commit_lsn is None else lsn_text(self.commit_lsn),
            "xid": self.xid,
            "commit_us": self.commit_us,
            "open": self.open and {"commit_lsn": lsn_text(self.open.commit_lsn), "ordinal": self.open.ordinal},
            "unseen": list(self.unseen),
        }

    @classmethod
    def from_json(cls, data: Json) -> StreamPosition:
        commit, inside = data["commit_lsn"], data["open"]
        return cls(
            data["system_id"],
            data["timeline"],
            data["slot"],
            lsn_int(data["lsn"]),
            None if commit is None else lsn_int(commit),
            data["xid"],
            data["commit_us"],
            inside and Open(lsn_int(inside["commit_lsn"]), inside["ordinal"]),
            tuple(data["unseen"]),
        )

    def __str__(self) -> str:
        inside = (
            f" + {self.open.ordinal} events of the transaction at {lsn_text(self.open.commit_lsn)}" if self.open else ""
        )
        return f"{self.slot} {lsn_text(self.lsn)}{inside}"


class Snapshot(NamedTuple):
    """`pg_current_snapshot()`. A transaction is seen when it had ended, which is not the same as "not listed as running": one that
    waits for a synchronous standby can be above `xmax` and in no list (protocol D2)."""

    xmin: int
    xmax: int
    running: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        xmin, xmax, running = text.split(":")
        return cls(int(xmin), int(xmax), frozenset(map(int, running.split(","))) if running else frozenset())

    def sees(self, xid: int) -> bool:
        """Had this 64-bit xid ended when the snapshot was taken? `pg_visible_in_snapshot` answers the same."""
        return xid < self.xmin or (xid < self.xmax and xid not in self.running)


def widen(xid: int, near: int) -> int:
    """The 64-bit xid nearest to `near` with these lower 32 bits; the stream sends only those."""
    return near + (xid - near + _XIDS // 2) % _XIDS - _XIDS // 2
