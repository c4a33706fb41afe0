"""Where a configuration becomes things: the only place that knows which engine stands behind a URL's scheme, and the only one
that reveals a URL's credentials, to the driver.

Nothing here connects by itself: sources, logs and sinks connect when they are first used, and raise their own errors.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from cdc.config import Config
from cdc.config_sections import ServerConfig
from cdc.config_values import Address
from cdc.errors import CdcError
from cdc.health import until_loss_s
from cdc.load import Limits
from cdc.log import Survey
from cdc.secrets import Url
from cdc.table import TableId, TableSchema

if TYPE_CHECKING:
    from cdc.postgres.moment import Lsn
    from cdc.postgres.source import PostgresSource
    from sinks.postgres.rebuild import PostgresRebuild
    from sinks.postgres.sink import PostgresSink

Json = Any
CAPTURE = "capture"


def source(
    config: Config, register: Callable[[str, Json], int] | None = None, *, slot_name: str | None = None
) -> PostgresSource:
    """The source. `register` is `Log.register`; without it the source can be looked at, not captured. `slot_name` is the slot to
    look at, when it is not the first epoch's."""
    match config.source.url.scheme:
        case "postgresql" | "postgres":
            from cdc.postgres.chunks import ReadLimits
            from cdc.postgres.source import PostgresSource

            limits = {name: getattr(config.source, name) for name in ReadLimits._fields}
            return PostgresSource(
                config.source.url.reveal(),
                pipeline=config.pipeline,
                register=register or _no_log,
                tables=[pattern.text for pattern in config.tables.patterns],
                insert_only=[table for table, rule in config.rules.items() if rule.insert_only],
                slot_name=slot_name or config.source.slot,
                publication=config.source.publication,
                heartbeat_s=config.source.heartbeat_s,
                messages=config.source.messages,
                read_limits=ReadLimits(**limits),
            )
    raise _unknown(config.source.url)


def sink(config: Config, name: str, schemas: Callable[[int], Json] | None = None) -> PostgresSink:
    """The sink of this name. `schemas` is `Log.schema`; without it the target can be looked at, not written."""
    settings = config.sink(name)
    match settings.url.scheme:
        case "postgresql" | "postgres":
            from sinks.postgres.sink import PostgresSink
            from sinks.sink import Evolution

            def evolution(table: TableId) -> Evolution:
                return Evolution(**config.evolution(name, table))  # type: ignore[arg-type]

            return PostgresSink(
                name,
                settings.url.reveal(),
                pipeline=config.pipeline,
                schemas=schemas or _no_log,
                wants=settings.tables.matches,
                rename=settings.rename.target,
                evolution=evolution,
            )
    raise _unknown(settings.url)


def rebuild(
    config: Config, name: str, schemas: Callable[[int], Json], picked: Callable[[TableId], bool], into: str | None
) -> PostgresRebuild:
    """The target of a replay of this sink: those of its tables that are picked, left in the schema `into` or exchanged."""
    settings = config.sink(name)
    match settings.url.scheme:
        case "postgresql" | "postgres":
            from sinks.postgres.rebuild import PostgresRebuild

            return PostgresRebuild(
                name,
                settings.url.reveal(),
                pipeline=config.pipeline,
                schemas=schemas,
                wants=settings.tables.matches,
                rename=settings.rename.target,
                picked=picked,
                into=into,
            )
    raise _unknown(settings.url)


def place(config: Config, text: str) -> Lsn:
    """A place in the source's log, as the source writes it. Raises CDC-RPL-111."""
    match config.source.url.scheme:
        case "postgresql" | "postgres":
            from cdc.postgres import moment

            return moment.parse(text)
    raise _unknown(config.source.url)


def limits(config: Config) -> Limits:
    """Bounds of a load's chunks."""
    return Limits(chunk_rows=config.load.rows_max, chunk_bytes=config.load.bytes_max)


def address(config: Config, role: str, bind: str | None) -> Address:
    """Where a service listens: `bind` if given, else `server.bind` for the capture, and for each sink, in the file's order, the
    next port, so that all services of a pipeline fit on one machine as they are."""
    return listen(bind) if bind else shifted(config.server.bind, config, role)


def listen(bind: str) -> Address:
    """`host:port` of an option. Raises CDC-CFG-103."""
    from pydantic import ValidationError

    try:
        return ServerConfig.model_validate({"bind": bind}).bind
    except ValidationError as error:
        raise CdcError("CDC-CFG-103", 'must be "host:port", such as "127.0.0.1:8484"', where="--bind") from error


def shifted(base: Address, config: Config, role: str) -> Address:
    """The address of a role when the capture's is `base`. Port 0 is any free one, for all."""
    place = 0 if role == CAPTURE else 1 + list(config.sinks).index(role)
    return base._replace(port=base.port + place if base.port else 0)


class Look(NamedTuple):
    """The source as status sees it. `head` and `done` are places in its log that compare: its end, and how far the log of ours
    goes. `waits` says which transactions keep tables from being loaded, `locks` who keeps tables locked."""

    status: dict[str, Json]
    tables: list[TableId]
    estimates: dict[TableId, int]
    head: int | None
    done: int | None
    waits: list[str]
    locks: list[str]


def look(config: Config, survey: Survey, *, closely: bool = True) -> Look:
    """Look at the source beside a capture, on a connection of its own; `closely` includes tables and their estimates.
    Raises what keeps from connecting."""
    match config.source.url.scheme:
        case "postgresql" | "postgres":
            from cdc.postgres import glance

            url, stream = config.source.url.reveal(), survey.last and survey.last.position.stream
            with closing(source(config, slot_name=stream["slot"] if stream else None)) as looking:
                status = dict(looking.status())
            tables = glance.tables(url, config.tables) if closely else []
            head, done = glance.places(status, stream)
            status["lag_bytes"] = None if head is None or done is None else max(0, head - done)
            status["until_loss_s"] = until_loss_s(status)
            status["until_loss_min_s"] = config.source.until_loss_hours_min * 3600
            estimates = glance.row_estimates(url, {*tables, *survey.tables}) if closely else {}
            waits = glance.waits(url, waiting_for(survey)) if closely else []
            locks = glance.locks(url, tables) if closely else []
            return Look(status, tables, estimates, head, done, waits, locks)
    raise _unknown(config.source.url)


def schemas(config: Config) -> list[TableSchema]:
    """The selected tables of the source, as targets have to hold them. Raises what keeps from connecting."""
    match config.source.url.scheme:
        case "postgresql" | "postgres":
            from cdc.postgres import glance

            insert_only = [table for table, rule in config.rules.items() if rule.insert_only]
            return glance.schemas(config.source.url.reveal(), config.source.publication, config.tables, insert_only)
    raise _unknown(config.source.url)


def waiting_for(survey: Survey) -> dict[TableId, list[int]]:
    """The transactions that tables wait for whose load has begun and has not read anything yet (protocol D6)."""
    loading = survey.last.position.load.get("loading", ()) if survey.last else ()
    unread = [TableId(*table) for table, details in loading if not details["rows"] and not details["read"]]
    waits = {table: survey.tables[table].facts.get("waits", []) for table in unread if table in survey.tables}
    return {table: xids for table, xids in waits.items() if xids}


def grants(config: Config) -> list[str]:
    """The statements that give source and targets' users exactly what they need, for a DBA to read and run."""
    match config.source.url.scheme:
        case "postgresql" | "postgres":
            from cdc.commands import rights

            return rights.grants(config)
    raise _unknown(config.source.url)


def _no_log(*_: object) -> NoReturn:
    raise AssertionError("this one was made to be looked at")


def _unknown(url: Url) -> CdcError:
    """The configuration takes no other scheme, so this is a bug and not a mistake of the user."""
    return CdcError("CDC-RUN-101", f"no engine for {url.scheme}://")
