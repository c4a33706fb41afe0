"""`cdc check --grants`: the statements that give the pipeline's users exactly what they need, for a DBA to read and run.

Changes nothing. Where the source lets us in already, its tables and their owners stand in the statements; where the role is only
to be made, placeholders do.
"""

from __future__ import annotations

import re

from cdc.config import Config
from cdc.config_sections import SinkConfig
from cdc.errors import CdcError
from cdc.postgres import glance
from cdc.postgres.grants import source_grants
from cdc.postgres.slot import Publications, publish_statement
from cdc.postgres.sql import ident
from cdc.selection import Pattern
from cdc.table import TableId
from sinks.postgres.grants import sink_grants

ROLE, PASSWORD, OWNER = "<role>", "<password>", "<owner>"


def grants(config: Config) -> list[str]:
    """Lines of SQL. What stands behind `--` is said, or is the other way to do it."""
    owners, reached = _owners(config)
    tables = sorted(owners)
    url = config.source.url
    lines = [
        _aside(f"{config.pipeline}: source {url.location}"),
        "-- In this database, as a superuser or as an administrator who may create roles with REPLICATION.",
    ]
    if not reached:
        lines.append(_aside(f"{url.user or ROLE} is not let in yet: replace {OWNER} by the role that owns the tables."))
    whole = _whole_schemas(config, tables)
    given = url.user or ROLE, PASSWORD, url.database, whole
    alone = source_grants(*given, tables=tables)
    both = source_grants(*given, sorted(set(owners.values())) or [OWNER], tables)
    lines += [f"{line};" for line in alone]
    lines.append("-- Either capture is a member of the tables' owners, and publishes them itself:")
    lines += [f"{line};" for line in both if line not in alone]
    lines.append("-- or, instead of that, you make the publication, and add to it each table that joins:")
    lines += [_aside(f"{line};") for line in _published(config, tables)]
    for name, settings in config.sinks.items():
        lines += ["", _aside(f"{config.pipeline}: sink {name}, {settings.url.location}"), "-- In this database."]
        lines += _sink(settings, tables)
    return lines


def _owners(config: Config) -> tuple[dict[TableId, str], bool]:
    """The tables and their owners, as far as they are known; and could the source be asked?"""
    try:
        found = glance.owners(config.source.url.reveal(), config.source.publication, config.tables)
        return found, True
    except CdcError as error:
        if error.code == "CDC-PG-117":
            raise
    named = (_one(pattern) for pattern in config.tables.patterns if not pattern.exclude)
    return {table: OWNER for table in named if table}, False


def _one(pattern: Pattern) -> TableId | None:
    """The table of a pattern that is of one table, without a star."""
    table = TableId.parse(pattern.text.removeprefix("!"))
    literal = pattern.schema.pattern == re.escape(table.schema) and pattern.name.pattern == re.escape(table.name)
    return table if literal else None


def _whole_schemas(config: Config, tables: list[TableId]) -> list[str]:
    """The schemas in which tables that come later are captured, too: those of patterns that are not of one table."""
    patterns = [pattern for pattern in config.tables.patterns if not pattern.exclude]
    wide = [pattern for pattern in patterns if not _one(pattern)]
    if patterns and not wide:
        return []
    found = {table.schema for table in tables if not wide or any(pattern.matches(table) for pattern in wide)}
    for pattern in wide:
        schema = TableId.parse(pattern.text).schema
        if pattern.schema.pattern == re.escape(schema):
            found.add(schema)
    return sorted(found) or ["public"]


def _published(config: Config, tables: list[TableId]) -> list[str]:
    """The statements that make the publications. A table without usable identity may only be in that of inserts."""
    names = Publications.named(config.source.publication)
    inserts = [table for table in tables if table in config.rules and config.rules[table].insert_only]
    rest = [table for table in tables if table not in inserts] or [TableId("<schema>", "<table>")]
    made = [publish_statement(names.all, rest, inserts=False, exists=False)]
    return made + ([publish_statement(names.inserts, inserts, inserts=True, exists=False)] if inserts else [])


def _sink(settings: SinkConfig, tables: list[TableId]) -> list[str]:
    """The schema `public` is always there; others the sink makes itself, unless they are there already."""
    taken = [table for table in tables if settings.tables.matches(table)]
    schemas = {target.schema for target in settings.rename.targets(taken).values()}
    url = settings.url
    given = url.user or ROLE, PASSWORD, url.database
    there = ["public"] if "public" in schemas or not schemas else []
    lines = [f"{line};" for line in sink_grants(*given, there)]
    for schema in sorted(schemas - {"public"}):
        extra = [line for line in sink_grants(*given, [schema]) if line not in sink_grants(*given, [])]
        lines.append(_aside(f"Only if there is a schema {ident(schema)} already; otherwise the sink makes it:"))
        lines += [_aside(f"{line};") for line in extra]
    return lines


def _aside(text: str) -> str:
    """A comment, whatever names stand in it: each of its lines is one."""
    return "-- " + re.sub(r"([\r\n])", r"\1-- ", text)
