"""What stands in `<pipeline>.checkpoints`: the log's own story, one partition, nothing ever deleted.

    log          its UUID and format: the first record of all
    topic        a data topic was created: its name, its id in the cluster, its pinned number of partitions
    state        what is known of a table (TableState)
    intent       a start position is about to be made at the source (C7)
    checkpoint   the end of a batch, in the same Kafka transaction as its records

A **base** is a place from which the story can be read without what came before: at a cut, a list of all `topic` and `state` records,
closed by the cut itself. Every checkpoint names the base before it in a header, so that a reader or a new writer that knows one
checkpoint reads on from a bounded distance behind it.

Keys are the kind of a record, values JSON. Pure: no client here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from cdc.log import Checkpoint, Intent, Json, TableState
from cdc.log.checkpoint import decode, encode, table_id, table_text
from cdc.table import TableId

FORMAT = 1
LOG, TOPIC, STATE, INTENT, CHECKPOINT = b"log", b"topic", b"state", b"intent", b"checkpoint"
BASE = "base"  # the header of a checkpoint: an offset, in digits


class Birth(NamedTuple):
    """The first record: whose log this is. `cluster` is Kafka's id of the cluster that it was made in, `topics` the ids of those of
    its topics that hold no table."""

    id: str
    pipeline: str
    cluster: str
    format: int = FORMAT
    topics: Mapping[str, str] = {}


class Topic(NamedTuple):
    """A data topic. `id` is Kafka's, which a topic that was deleted and made again does not have; `partitions` is pinned: those
    that others add are not used (A5)."""

    table: TableId
    name: str
    id: str
    partitions: int


class State(NamedTuple):
    """What is known of a table, in a base."""

    table: TableId
    state: TableState


class Intended(NamedTuple):
    """An intent, and the number of the checkpoint after which it was written."""

    after: int
    intent: Intent


Record = Birth | Topic | State | Intended | Checkpoint


def to_record(record: Record) -> tuple[bytes, bytes]:
    """Key and value. `from_record` is the inverse."""
    match record:
        case Checkpoint():
            return CHECKPOINT, encode(record).encode()
        case Birth():
            return LOG, _json(record._asdict())
        case Topic(table, name, id_, partitions):
            return TOPIC, _json({"table": table_text(table), "name": name, "id": id_, "partitions": partitions})
        case State(table, state):
            return STATE, _json({"table": table_text(table), **state._asdict()})
        case Intended(after, intent):
            return INTENT, _json({"after": after, **intent._asdict()})


def from_record(key: bytes | None, value: bytes | None) -> Record:
    """Raises ValueError on anything that `to_record` did not make."""
    try:
        if key == CHECKPOINT:
            return decode((value or b"").decode())
        data = json.loads(value or b"")
        match key:
            case b"log":
                return Birth(data["id"], data["pipeline"], data["cluster"], data["format"], data["topics"])
            case b"topic":
                return Topic(table_id(data["table"]), data["name"], data["id"], data["partitions"])
            case b"state":
                table = table_id(data.pop("table"))
                return State(table, TableState(**data))
            case b"intent":
                return Intended(data["after"], Intent(data["epoch"], data["details"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a record of ours: {error!r}") from error
    raise ValueError(f"an unknown kind of record: {key!r}")


def _json(data: Json) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()
