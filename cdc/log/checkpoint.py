"""Checkpoints as JSON, and the chain that they form. Pure: every implementation of the log writes the same checkpoints.

`Chain` is what a writer knows of the log's end. It keeps one invariant: `make` gives the only checkpoint that may follow.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from operator import itemgetter

from cdc.log import Begun, Checkpoint, Draft, Json, Mark, Span, Spans, TableState
from cdc.position import Position
from cdc.records import Batch
from cdc.table import TableId

LISTED_EVERY = 256  # checkpoints between two that list all ends and generations (A2)
_op_of = itemgetter(6)  # magic, 4-byte schema id, the length of `op` (1), and `op` itself: see cdc.avro


@lru_cache(maxsize=65536)
def table_id(text: str) -> TableId:
    """The inverse of `str(table)`, cached: the same names come with every checkpoint."""
    return TableId.parse(text)


@lru_cache(maxsize=65536)
def table_text(table: TableId) -> str:
    """`str(table)`, cached."""
    return str(table)


_UNBEGUN = TableState(0, False, None)


def random_id() -> str:
    """64 random bits in hex: enough that no two checkpoints or writers of one log share an id."""
    return os.urandom(8).hex()


def to_json(checkpoint: Checkpoint) -> Json:
    """JSON values only; tables are text. `from_json` is the inverse."""
    listed = checkpoint.ends is not None and checkpoint.generations is not None
    return {
        "log": checkpoint.log_id,
        "number": checkpoint.number,
        "id": checkpoint.id,
        "previous": list(checkpoint.previous),
        "writer": checkpoint.writer,
        "position": checkpoint.position.to_json(),
        "cut": checkpoint.cut,
        "spans": {
            table_text(table): [[s.begin, s.end, s.count] for s in spans] for table, spans in checkpoint.spans.items()
        },
        "counts": {table_text(table): dict(ops) for table, ops in checkpoint.counts.items()},
        "commit_ms": None if checkpoint.commit_ms is None else list(checkpoint.commit_ms),
        "begun": [[table_text(b.table), b.generation, b.keyless, b.schema_id] for b in checkpoint.begun],
        "finished": [table_text(table) for table in checkpoint.finished],
        "written_ms": checkpoint.written_ms,
        "facts": {table_text(table): facts for table, facts in checkpoint.facts.items()},
        **(_listed_json(checkpoint) if listed else {}),
    }


def _listed_json(checkpoint: Checkpoint) -> Json:
    ends, generations = checkpoint.ends or {}, checkpoint.generations or {}
    return {
        "ends": {table_text(table): list(numbers) for table, numbers in ends.items()},
        "generations": {table_text(table): number for table, number in generations.items()},
    }


def from_json(data: Json) -> Checkpoint:
    """Raises KeyError, TypeError or ValueError on anything that `to_json` did not make."""
    return Checkpoint(
        data["log"],
        data["number"],
        data["id"],
        Mark(*data["previous"]),
        data["writer"],
        Position.from_json(data["position"]),
        data["cut"],
        {table_id(text): tuple(Span(*span) for span in spans) for text, spans in data["spans"].items()},
        {table_id(text): ops for text, ops in data["counts"].items()},
        None if data["commit_ms"] is None else (data["commit_ms"][0], data["commit_ms"][1]),
        tuple(Begun(table_id(text), *rest) for text, *rest in data["begun"]),
        tuple(table_id(text) for text in data["finished"]),
        data["written_ms"],
        {table_id(text): facts for text, facts in data["facts"].items()},
        {table_id(text): tuple(ends) for text, ends in data["ends"].items()} if "ends" in data else None,
        {table_id(text): n for text, n in data["generations"].items()} if "generations" in data else None,
    )


def encode(checkpoint: Checkpoint) -> str:
    return json.dumps(to_json(checkpoint), separators=(",", ":"))


def decode(text: str) -> Checkpoint:
    """Raises ValueError on anything that `encode` did not make."""
    try:
        return from_json(json.loads(text))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"not a checkpoint: {error!r}") from error


@dataclass(slots=True)
class Chain:
    """The log's end: its last checkpoint and last cut, every partition's end, the state of every table that has begun.

    Ends are where records physically are, abandoned ones included; the tables' states follow the path (B4), so that a load which
    an abandoned checkpoint began has not begun. The dicts of states are replaced, never changed. `dense`: offsets are numbers of
    records; where they are not (Kafka's control records take some), a range may begin later than the one before it ended.
    """

    log_id: str
    last: Checkpoint | None = None
    cut: Checkpoint | None = None
    ends: dict[TableId, tuple[int, ...]] = field(default_factory=dict)
    tables: Mapping[TableId, TableState] = field(default_factory=dict)
    cut_tables: Mapping[TableId, TableState] = field(default_factory=dict)
    dense: bool = True

    @property
    def mark(self) -> Mark:
        return self.last.mark if self.last else Mark(-1, self.log_id)

    @property
    def cut_mark(self) -> Mark:
        return self.cut.mark if self.cut else Mark(-1, self.log_id)

    def make(
        self, writer: str, batch: Batch, draft: Draft, listed: bool, spans: Mapping[TableId, Spans] | None = None
    ) -> Checkpoint:
        """The checkpoint that ends `batch`. `listed` asks for ends and generations, which other cases have anyway. `spans` says
        where the records are, if that is not simply behind the others.

        `draft.continues` may name the last checkpoint or the last cut, nothing else (B4).
        """
        number, previous = self.mark.number + 1, draft.continues or self.mark
        assert previous in (self.mark, self.cut_mark), f"{previous} is neither the last checkpoint nor the last cut"
        placed, counts = dict(spans or {}), {}
        for table, records in batch.items():
            count = len(records.values)
            assert len(records.keys) == count, f"{table}: {len(records.keys)} keys, {count} values"
            if count:
                if spans is None:
                    (begin,) = self.ends.get(table, (0,))
                    placed[table] = (Span(begin, begin + count, count),)
                assert sum(span.count for span in placed[table]) == count, f"{table}: {placed[table]}, not {count}"
                counts[table] = {chr(op): n for op, n in sorted(Counter(map(_op_of, records.values)).items())}
        checkpoint = Checkpoint(
            self.log_id,
            number,
            random_id(),
            previous,
            writer,
            draft.position,
            draft.cut,
            placed,
            counts,
            draft.commit_ms,
            draft.begun,
            draft.finished,
            time.time_ns() // 1_000_000,
            draft.facts,
        )
        if not (listed or number % LISTED_EVERY == 0):
            return checkpoint
        states = self.path(checkpoint) | self.changes(checkpoint)
        return replace(
            checkpoint,
            ends=self.ends | {table: tuple(span.end for span in spans) for table, spans in placed.items()},
            generations={table: state.generation for table, state in states.items()},
        )

    def abandons(self, checkpoint: Checkpoint) -> bool:
        """Whether this next checkpoint continues the last cut past later checkpoints (B4)."""
        return checkpoint.previous != self.mark

    def path(self, checkpoint: Checkpoint) -> dict[TableId, TableState]:
        """The tables' states that this next checkpoint continues."""
        return dict(self.cut_tables if self.abandons(checkpoint) else self.tables)

    def changes(self, checkpoint: Checkpoint) -> dict[TableId, TableState]:
        """What this next checkpoint says anew of tables that have begun."""
        changed: dict[TableId, TableState] = {}
        before = self.cut_tables if self.abandons(checkpoint) else self.tables
        for table, generation, keyless, _schema_id in checkpoint.begun:
            was = before.get(table, _UNBEGUN)
            changed[table] = was._replace(generation=generation, keyless=keyless, begun=checkpoint.number)
        for table in checkpoint.finished:
            if (state := changed.get(table) or before.get(table)) is not None:
                changed[table] = state._replace(loaded=state.begun)
        for table, facts in checkpoint.facts.items():
            if (state := changed.get(table) or before.get(table)) is not None:
                changed[table] = state._replace(facts=facts)
        return changed

    def follow(self, checkpoint: Checkpoint) -> None:
        """Take in the next checkpoint. Raises ValueError when it does not follow (a number or a range is missing)."""
        if checkpoint.number != self.mark.number + 1:
            raise ValueError(f"checkpoint {checkpoint.number} follows {self.mark.number}")
        self.count(checkpoint)
        if (changed := self.changes(checkpoint)) or self.abandons(checkpoint):
            self.tables = self.path(checkpoint) | changed
        self.last = checkpoint
        if checkpoint.cut:
            self.cut, self.cut_tables = checkpoint, self.tables

    def count(self, checkpoint: Checkpoint) -> None:
        """Take in the ends of a checkpoint. Raises ValueError when its ranges do not begin where those before it end."""
        for table, spans in checkpoint.spans.items():
            ends = self.ends.get(table, (0,) * len(spans))
            if len(ends) != len(spans) or not all(map(self._continues, ends, spans)):
                raise ValueError(f"checkpoint {checkpoint.number}: {table} is at {ends}, not {spans}")
            self.ends[table] = tuple(span.end for span in spans)
        if checkpoint.ends is not None and checkpoint.ends != self.ends:
            raise ValueError(f"checkpoint {checkpoint.number} lists other ends than the ranges before it")

    def _continues(self, end: int, span: Span) -> bool:
        follows = span.begin == end if self.dense else span.begin >= end
        return follows and span.end - span.begin == span.count
