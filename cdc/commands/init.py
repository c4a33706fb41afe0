"""`cdc init SOURCE_URL`: a commented pipeline file from a live database.

The invariant: it only reads the database, never overwrites a file, and writes no password into one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from cdc.config import Config
from cdc.errors import EXIT_OK, CdcError
from cdc.postgres import facts
from cdc.postgres.session import Session
from cdc.presentation import say
from cdc.secrets import SECRET_PARAMETERS
from cdc.table import TableId

_PASSWORD = re.compile(r"(?<=://)([^/?@:]*):(?!\$\{)([^/?]+)@")
_SIZES = """
SELECT c.oid, greatest(sum(l.reltuples), 0)::bigint, coalesce(sum(pg_catalog.pg_table_size(l.oid)), 0)::bigint
FROM pg_catalog.pg_class c
CROSS JOIN LATERAL (SELECT c.oid UNION SELECT relid FROM pg_catalog.pg_partition_tree(c.oid)) AS p (oid)
JOIN pg_catalog.pg_class l ON l.oid = p.oid AND l.relkind <> 'p'
WHERE c.oid = ANY ($1::oid[]) GROUP BY c.oid
"""


class Sized(NamedTuple):
    """A table as the file shows it. `remark` says what stands against capturing it, if anything does."""

    id: TableId
    rows: int  # the planner's estimate
    size_bytes: int
    key: tuple[str, ...]
    remark: str


def run(*, source_url: str, sinks: Sequence[str], output: Path, environ: Mapping[str, str] = os.environ) -> int:
    """Raises CDC-CFG-110 when `output` exists, ConfigErrors for a bad URL, and what the connection raises."""
    if output.exists():
        raise CdcError("CDC-CFG-110", str(output), where=str(output))
    given = dict(zip(_sink_names(sinks), sinks, strict=True))
    config = Config.from_data({"pipeline": "new", "source": source_url, "sinks": given}, "command line", environ)
    pipeline = _slug(config.source.url.database)
    session = Session(config.source.url.reveal(), f"cdc init {pipeline}")
    try:
        tables = _tables(session)
        version = session.server_version
    finally:
        session.close()
    variables: list[str] = []
    text = "\n".join(
        [
            f"# The pipeline {pipeline}, from PostgreSQL {version // 10000}. Next: cdc check {_shown(str(output))}",
            f"pipeline: {_quoted(pipeline)}",
            *_source(pipeline, _without_password(source_url, "CDC_SOURCE_PASSWORD", variables)),
            *_selection(tables),
            *_sinks(
                {
                    name: _without_password(url, f"CDC_{_slug(name).upper()}_PASSWORD", variables)
                    for name, url in given.items()
                }
            ),
            "",
        ]
    )
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise CdcError("CDC-CFG-110", str(output), where=str(output)) from None
    except OSError as error:
        raise CdcError("CDC-CFG-111", error.strerror or str(error), where=str(output)) from error
    _report(output, tables, variables)
    return EXIT_OK


def _tables(session: Session) -> list[Sized]:
    session.settings({"default_transaction_read_only": "on"})
    found = facts.candidates(session, ())
    oids = "{" + ",".join(str(table.oid) for table in found) + "}"
    rows = session.run(_SIZES, [oids], doing="reading table sizes")
    sizes = {int(oid or 0): (int(estimate or 0), int(size or 0)) for oid, estimate, size in rows}
    return sorted(
        Sized(table.id, *sizes.get(int(table.oid), (0, 0)), table.key(insert_only=False), _remark(table))
        for table in found
    )


def _remark(table: facts.Table) -> str:
    if table.persistence == "u":
        return "unlogged: its changes are in no log, so it cannot be captured"
    if not table.identified:
        return "no key to tell its rows apart: ALTER TABLE … REPLICA IDENTITY FULL, or insert_only, or exclude it"
    if table.row_security:
        return "row level security hides rows from this user"
    return ""


def _source(pipeline: str, url: str) -> list[str]:
    return [
        "",
        "source:",
        f"  url: {_quoted(url)}",
        "  # The replication slot and the publication that will be made; name a publication that exists to use it as it is.",
        f"  # slot: cdc_{pipeline}",
        f"  # publication: cdc_{pipeline}",
    ]


def _selection(tables: Sequence[Sized]) -> list[str]:
    schemas = sorted({table.id.schema for table in tables})
    patterns = [str(TableId(schema, "x"))[:-1].replace("${", "$${") + "*" for schema in schemas]
    lines = ["", "# Every table of these schemas, later ones too. A ! in front leaves tables out.", "tables:"]
    lines += [f"  - {_quoted(pattern)}" for pattern in patterns] or ['  - "*.*"']
    lines += ['  # - "!public.audit_*"', ""]
    total = sum(table.size_bytes for table in tables)
    lines += [f"# {len(tables)} tables, {_size(total)}; rows as the planner estimates them:"]
    names = [_shown(str(table.id)) for table in tables]
    width = max(map(len, names), default=0)
    for name, table in zip(names, tables, strict=True):
        key = _shown(", ".join(table.key)) or "none"
        lines.append(f"#   {name:<{width}}  ~{table.rows:>11,} rows {_size(table.size_bytes):>9}  key: {key}")
        if table.remark:
            lines.append(f"#   {'':<{width}}  ! {table.remark}")
    unkeyed = [table for table in tables if not table.key]
    example = _quoted(str(unkeyed[0].id)) if unkeyed else "public.events"
    lines += ["# rules:", f"#   {example}: {{insert_only: true}}   # rows that are never changed nor deleted"]
    return lines


def _sinks(urls: Mapping[str, str]) -> list[str]:
    lines = ["", "# Any number of targets; the name marks the sink's place in its target, so keep it."]
    if not urls:
        return [
            *lines,
            "sinks: {}",
            "#  warehouse:",
            '#    url: "postgresql://etl:${CDC_WAREHOUSE_PASSWORD}@host/database"',
        ]
    lines.append("sinks:")
    for name, url in urls.items():
        lines += [f"  {_quoted(name)}:", f"    url: {_quoted(url)}"]
    return [*lines, '    # tables: ["public.*"]', '    # rename: {"public[.](.*)": "shop.\\\\1"}']


def _report(output: Path, tables: Sequence[Sized], variables: Sequence[str]) -> None:
    say(f"{output}: {len(tables)} tables, {_size(sum(table.size_bytes for table in tables))}")
    for table in tables:
        if table.remark:
            say(f"! {_shown(str(table.id))}: {table.remark}")
    for variable in variables:
        say(f"→ export {variable}=…   (the password is not in the file)")
    say(f"→ cdc check {output}")


def _without_password(url: str, variable: str, variables: list[str]) -> str:
    """The URL as given, with a variable in place of a password that stands in it."""
    head, mark, query = _PASSWORD.sub(rf"\1:${{{variable}}}@", url, count=1).partition("?")
    options = query.split("&")
    for index, option in enumerate(options):
        name, _, value = option.partition("=")
        if unquote(name).lower() in SECRET_PARAMETERS - {"passfile"} and value and not value.startswith("${"):
            options[index] = f"{name}=${{{variable}}}"
    written = head + mark + "&".join(options)
    if written != url:
        variables.append(variable)
    return written


def _sink_names(urls: Sequence[str]) -> list[str]:
    if len(urls) == 1:
        return ["target"]
    return [f"target{number}" for number in range(1, len(urls) + 1)]


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9_]", "_", text.lower())[:40] or "pipeline"


def _size(size_bytes: int) -> str:
    size, unit = float(size_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


def _shown(text: str) -> str:
    """On one line, whatever a name holds: a line break in a comment would end it."""
    return "".join(
        character if character.isprintable() else f"\\U{ord(character):08x}" for character in text.replace("\\", "\\\\")
    )


def _quoted(text: str) -> str:
    """A YAML scalar in double quotes."""
    escaped = _shown(text).replace('"', '\\"')
    assert "\n" not in escaped
    return f'"{escaped}"'
