"""Where a Postgres stream stands: the JSON of `Position.stream`, and snapshots as Postgres writes them.

The invariant (rule R2): a position is a complete transaction plus, inside the next one, the number of its raw events. No row's
LSN is ever a position: those are neither monotonic nor unique.
"""

from __future__ import annotations

from collections.abc import Iterable
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


class Reach(NamedTuple):
    """Rows that were read ahead of the stream: they stem from before `lsn`, and the mark behind them comes before it, too."""

    lsn: int
    mark: str


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """`lsn` is the end of the last complete transaction, or the start point. `commit_lsn`, `xid` and `commit_us` name that
    transaction, so that it can be found again and compared (rule R5); None before the first one. `unseen` holds delivered xids
    that no snapshot of ours has seen visible yet (protocol C2). `reach` is there while the mark behind chunks has not come back."""

    system_id: str
    timeline: int
    slot: str
    lsn: int
    commit_lsn: int | None = None
    xid: int | None = None
    commit_us: int | None = None
    open: Open | None = None
    unseen: tuple[int, ...] = ()
    reach: Reach | None = None

    @property
    def farthest(self) -> int:
        """A history that ends before this LSN lacks something that the log has: an open transaction's commit record among it."""
        return max(self.lsn, self.open.commit_lsn + 1 if self.open else 0, self.reach.lsn if self.reach else 0)

    @property
    def confirmable(self) -> int:
        """What the slot may forget: everything before the last complete transaction, which is sent again to be compared."""
        return self.lsn if self.commit_lsn is None else self.commit_lsn

    def after(self, lsn: int, commit_lsn: int, xid: int, commit_us: int, marks: Iterable[str]) -> StreamPosition:
        """Behind the transaction that ends at `lsn` and held these marks."""
        reach = None if self.reach and self.reach.mark in marks else self.reach
        return replace(self, lsn=lsn, commit_lsn=commit_lsn, xid=xid, commit_us=commit_us, open=None, reach=reach)

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
            "reach": self.reach and {"lsn": lsn_text(self.reach.lsn), "mark": self.reach.mark},
        }

    @classmethod
    def from_json(cls, data: Json) -> StreamPosition:
        commit, inside, reach = data["commit_lsn"], data["open"], data["reach"]
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
            reach and Reach(lsn_int(reach["lsn"]), reach["mark"]),
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
