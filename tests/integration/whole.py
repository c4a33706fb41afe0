"""A whole pipeline in the process of the test: Postgres, the embedded log, Postgres. For what arrives, not for what is killed.

whole.sql("CREATE TABLE a (id int PRIMARY KEY)")
whole.run()                          # all that is committed is read, streamed and applied
whole.equal("public.a")
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from cdc import capture as capturing
from cdc.avro import ChangeEvent, decode_event, schema_id
from cdc.log import Checkpoint, Mark
from cdc.log.embedded import EmbeddedLog
from cdc.postgres.position import StreamPosition, lsn_int
from cdc.postgres.source import PostgresSource
from cdc.postgres.sql import qualified
from cdc.records import Batch
from cdc.selection import TableFilter
from cdc.source import Finding
from cdc.table import TableId
from sinks.apply import apply
from sinks.postgres.sink import PostgresSink
from tests.servers import Database, execute


class Whole:
    """`run` starts capture and sink anew each time, as after a restart. Roles are the documented ones, for `schemas`."""

    def __init__(self, source: Database, target: Database, folder: Path) -> None:
        self.source, self.target = source, target
        self.log = EmbeddedLog(folder / "log")
        self.tables: Sequence[str] = ()
        self.options: dict[str, Any] = {}
        self._urls: tuple[str, str] | None = None

    def sql(self, text: str) -> None:
        """As the owner of the source's tables."""
        self.source.execute(text)

    def grant(self, *schemas: str) -> None:
        """The roles, once: for these schemas, which exist."""
        self._urls = self.source.grant_source(schemas), self.target.grant_sink()

    def make(self) -> PostgresSource:
        if self._urls is None:
            self.grant("public")
        assert self._urls is not None
        options = {"heartbeat_s": 0.5, "tables": self.tables, **self.options}
        return PostgresSource(self._urls[0], pipeline="p", register=self.log.register, **options)

    def findings(self) -> list[Finding]:
        with closing(self.make()) as source:
            return source.check()

    def run(self) -> None:
        """Until the target has all that is committed now, and no load is under way."""
        self.capture()
        self.apply()

    def capture(self) -> None:
        ((end,),) = execute(
            self.source.admin_url, "SELECT pg_logical_emit_message(true, 'end', '')::text FROM pg_current_xact_id()"
        )
        with closing(self.make()) as source:
            wanted = set(source.tables())
            done: list[Checkpoint] = []
            loaded = {table for table, state in self.log.open_writer().tables.items() if state.loaded is not None}

            def observe(checkpoint: Checkpoint, _batch: Batch) -> None:
                done[:] = [checkpoint]
                loaded.difference_update(begun.table for begun in checkpoint.begun)
                loaded.update(checkpoint.finished)

            def stop() -> bool:
                if not done or not done[0].cut or not wanted <= loaded:
                    return False
                return StreamPosition.from_json(done[0].position.stream).lsn >= lsn_int(end)

            capturing.capture(source, self.log, stop, observe=observe)

    def sink(self) -> PostgresSink:
        assert self._urls is not None
        selected = TableFilter.parse(self.tables)
        return PostgresSink("s", self._urls[1], pipeline="p", schemas=self.log.schema, wants=selected.matches)

    def apply(self) -> None:
        last = self.log.last_checkpoint()
        assert last is not None
        with closing(self.sink()) as sink:
            reached = [sink.resume(self.log.id).mark]

            def observe(checkpoint: Checkpoint, _rows: int) -> None:
                reached[:] = [checkpoint.mark]

            if reached[0] != last.mark:
                apply(sink, self.log, lambda: reached[0] == last.mark, observe=observe)

    # ------------------------------------------------------------------------------------------------------- looking at it
    def states(self) -> dict[str, str]:
        with closing(self.sink()) as sink:
            tables: Any = sink.status()["tables"]
        return {table["table"]: table["state"] for table in tables}

    def columns(self, table: str) -> list[tuple[str, str]]:
        """Names and types at the target."""
        return execute(
            self.target.admin_url,
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = to_regclass(%s)"
            " AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            [table],
        )

    def rows(self, url: str, table: TableId) -> Counter[str]:
        text = f"SELECT t::text FROM ONLY {qualified(table)} AS t"
        partitioned = execute(url, "SELECT relkind = 'p' FROM pg_class WHERE oid = to_regclass(%s)", [str(table)])
        if partitioned == [(True,)]:
            text = text.replace("ONLY ", "")
        return Counter(value for (value,) in execute(url, text))

    def equal(self, *tables: str | TableId) -> None:
        """Every row of these tables, as the servers print it."""
        for name in tables:
            table = name if isinstance(name, TableId) else TableId.parse(name)
            here, there = self.rows(self.source.admin_url, table), self.rows(self.target.admin_url, table)
            missing, extra = list((here - there).elements())[:3], list((there - here).elements())[:3]
            assert here == there, f"{table}: missing {missing}, too many {extra}"

    def events(self) -> list[ChangeEvent]:
        """Everything in the log, in order."""
        last, found = self.log.last_checkpoint(), list[ChangeEvent]()
        assert last is not None
        with closing(self.log.read(Mark(-1, self.log.id), lambda _table: True, 0.1)) as items:
            for item in items:
                if item is None:
                    break
                for records in item[1].values():
                    for key, value in zip(records.keys, records.values, strict=True):
                        key_schema = None if key is None else self.log.schema(schema_id(key))
                        found.append(decode_event(self.log.schema(schema_id(value)), value, key_schema, key))
        return sorted(found, key=lambda event: int(event.source["sequence"]))
