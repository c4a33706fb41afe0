"""Transactional messages of applications (`pg_logical_emit_message(true, prefix, content)`) as `m` events, as Debezium writes them.

The invariant: which messages are captured is decided here alone, by their prefix, and changes no position (rule R2); what Penstock
itself writes into the source's log is never among them. Messages outside of transactions are not captured: they have no place in
the order of commits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import schemas
from cdc.avro import TableSchemas, frame, string, topic_of, zigzag
from cdc.postgres.envelope import Origin, Transaction
from cdc.postgres.pgoutput import Message
from cdc.postgres.relations import Register
from cdc.postgres.values import SOME
from cdc.records import Records
from cdc.table import MESSAGES

OURS = "penstock."  # how the prefixes of marks and heartbeats begin, whatever the pipeline
_OP = b"\x02m"
_NO_TABLE = string(b"") * 2  # schema and table of the source block


def schemas_of_messages() -> TableSchemas:
    """The key and value schema of messages."""
    value = schemas.load("message_value")
    fields = {field["name"]: field for field in value["fields"]}
    fields["source"]["type"] = schemas.load("source_postgresql")
    fields["transaction"]["type"] = ["null", schemas.load("transaction")]
    return TableSchemas(schemas.load("message_key"), value)


class Messages:
    """Those of `prefixes`, in each of which `*` stands for any run of characters."""

    def __init__(self, pipeline: str, register: Register, prefixes: Iterable[str]) -> None:
        self._pipeline, self._register = pipeline, register
        wanted = "|".join(".*".join(map(re.escape, prefix.split("*"))) for prefix in prefixes)
        self._wanted = re.compile(wanted, re.DOTALL) if wanted else None
        self._frames: tuple[bytes, bytes] | None = None  # of key and value

    def wants(self, prefix: str) -> bool:
        return self._wanted is not None and not prefix.startswith(OURS) and bool(self._wanted.fullmatch(prefix))

    def append(
        self, message: Message, sequence: int, transaction: Transaction, origin: Origin, records: Records
    ) -> None:
        """Append one `m`, number `sequence`. The schemas are registered with the first one."""
        key, value = self._frames = self._frames or self._registered()
        head, times, xid, _ = transaction
        prefix = SOME + string(message.prefix.encode())
        source = (head, string(b"%d" % sequence), times, _NO_TABLE, xid, zigzag(message.lsn), origin.source_end)
        records.keys.append(key + prefix)
        records.values.append(b"".join((value, _OP, origin.now_ms, *source, prefix, SOME, string(message.content))))

    def _registered(self) -> tuple[bytes, bytes]:
        made, topic = schemas_of_messages(), topic_of(self._pipeline, MESSAGES)
        return frame(self._register(f"{topic}-key", made.key)), frame(self._register(f"{topic}-value", made.value))
