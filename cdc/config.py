"""The pipeline file: what it may say, and `load`, which reads it. One file describes one pipeline.

    pipeline: shop
    source: postgresql://cdc:${CDC_PASSWORD}@db.internal/shop
    tables: ["public.*", "!public.audit_*"]
    sinks:
      warehouse: {url: "${WAREHOUSE_URL}", rename: {"public.(.*)": "shop.\\1"}}

The invariant: a `Config` that exists is valid. All mistakes in a file are reported at once, each with its place, and no message
shows a secret. The docstrings of the keys are the text of docs/reference/config.md.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from pydantic import Field, PrivateAttr, ValidationError, ValidationInfo, field_validator, model_validator

from cdc.config_file import Document, given, read
from cdc.config_problems import add_problems
from cdc.config_sections import (
    LoadConfig,
    LogConfig,
    RegistryConfig,
    Section,
    ServerConfig,
    SinkConfig,
    SourceConfig,
    TableRule,
)
from cdc.config_values import Mistakes, Name, TableName, Tables
from cdc.errors import CdcError
from cdc.secrets import Url, is_exposed, register
from cdc.selection import TableFilter
from cdc.source import Finding
from cdc.suggest import did_you_mean
from cdc.table import TableId

DEFAULT_FILE = Path("pipeline.yaml")
OWN_TOPICS = ("checkpoints", "schemas", "signals", "message")


class Config(Section):
    """One pipeline."""

    pipeline: Name
    """Its name, which prefixes everything that it makes: 1 to 40 of the characters a-z, 0-9, _ and -."""

    source: SourceConfig
    """The database to capture."""

    tables: Tables = TableFilter()
    """`schema.table` patterns with `*`; `!` in front excludes; a part in double quotes is literal. Default: all tables."""

    rules: dict[TableName, TableRule] = Field(default_factory=dict)
    """What differs for single tables, by `schema.table`."""

    log: LogConfig = Field(default_factory=LogConfig, validate_default=True)
    """The log between capture and sinks."""

    registry: RegistryConfig | None = None
    """The schema registry that readers of the topics use. Default: Penstock's own."""

    sinks: dict[Name, SinkConfig] = Field(default_factory=dict)
    """Any number of targets, by name. The name marks the sink's place in its target: keep it."""

    load: LoadConfig = LoadConfig()
    """How existing rows are read."""

    server: ServerConfig = ServerConfig()
    """The HTTP endpoints of a service."""

    _path: Path | None = PrivateAttr(None)
    _findings: tuple[Finding, ...] = PrivateAttr(())

    @property
    def path(self) -> Path | None:
        """The file that this came from; None for `cdc copy`, which has none."""
        return self._path

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Warnings about the file itself: secrets that every user of the machine can read."""
        return self._findings

    def sink(self, name: str) -> SinkConfig:
        """Raises CDC-CFG-108 when there is no sink of that name."""
        if name in self.sinks:
            return self.sinks[name]
        known = f"; there are {', '.join(self.sinks)}" if self.sinks else "; the file has no sinks"
        raise CdcError(
            "CDC-CFG-108",
            f'no sink "{name}"{did_you_mean(name, self.sinks) or known}',
            where=str(self.path) if self.path else None,
        )

    def evolution(self, sink: str, table: TableId) -> dict[str, str]:
        """What this sink does when this table changes, by kind of change: the table's rule goes before the sink's."""
        rule = self.rules.get(table)
        ours = rule.evolution.model_dump(exclude_unset=True) if rule else {}
        return {**self.sink(sink).evolution.model_dump(), **ours}

    @classmethod
    def for_copy(
        cls,
        source_url: str,
        target_url: str,
        name: str | None = None,
        tables: Iterable[str] = (),
        folder: Path = Path("penstock"),
        environ: Mapping[str, str] = os.environ,
    ) -> Self:
        """The pipeline of `cdc copy`: one sink, `target`, and a log below `folder` that keeps what the sink still needs.

        Without a `name` it is made of the two databases, so that the same command finds its log again.
        """
        data: dict[str, Any] = {"source": source_url, "tables": list(tables), "sinks": {"target": target_url}}
        if name is None:
            resolved = given(data, "command line", environ).data
            name = _copy_name(resolved["source"], resolved["sinks"]["target"])
        log = {"path": str(folder.absolute() / f"{name}.log"), "retention": "applied"}
        return cls.from_data({"pipeline": name, **data, "log": log}, "command line", environ)

    @classmethod
    def from_data(cls, data: Any, origin: str, environ: Mapping[str, str] = os.environ) -> Self:
        """What a file would say, from a command. `origin` stands for the file in errors; variables are resolved as in one."""
        return cls._checked(given(data, origin, environ), environ)

    @classmethod
    def _checked(cls, document: Document, environ: Mapping[str, str]) -> Self:
        register([environ.get("PGPASSWORD", "")])
        config = None
        try:
            config = cls.model_validate(document.data, context={"folder": document.folder})
        except ValidationError as error:
            add_problems(document, error, cls)
        document.raise_problems()
        assert config is not None
        config._findings = tuple(document.findings)
        return config

    @field_validator("source")
    @classmethod
    def _named_source(cls, source: SourceConfig, info: ValidationInfo) -> SourceConfig:
        default = f"cdc_{info.data.get('pipeline', '')}".replace("-", "_")
        return source.model_copy(update={"slot": source.slot or default, "publication": source.publication or default})

    @field_validator("log")
    @classmethod
    def _named_log(cls, log: LogConfig, info: ValidationInfo) -> LogConfig:
        if log.url or "path" in log.model_fields_set:
            return log
        folder = info.context["folder"] if info.context else Path()
        return log.model_copy(
            update={"path": Path(folder).absolute() / "penstock" / f"{info.data.get('pipeline', '')}.log"}
        )

    @model_validator(mode="after")
    def _no_conflicts(self) -> Self:
        mistakes: list[tuple[tuple[str, ...], str]] = [
            (("rules", str(table)), f"a rule for {table}, which `tables` does not take")
            for table in self.rules
            if not self.tables.matches(table)
        ]
        topics: dict[str, str] = {}
        for table, rule in self.rules.items():
            if rule.topic and (first := topics.setdefault(rule.topic, str(table))) != str(table):
                mistakes.append((("rules", str(table), "topic"), f"it is the topic of {first} already"))
            if rule.topic in {f"{self.pipeline}.{own}" for own in OWN_TOPICS}:
                mistakes.append((("rules", str(table), "topic"), "the pipeline has a topic of that name for itself"))
            if rule.topic and not self.log.url:
                mistakes.append((("rules", str(table), "topic"), "only a Kafka log has topics: give it a url"))
        earlier: list[tuple[str, SinkConfig]] = []
        for name, sink in self.sinks.items():
            if sink.url.location == self.source.url.location and not sink.rename.rules:
                mistakes.append((("sinks", name), "this sink would write the source's own tables: rename them"))
            for other_name, other in earlier:
                if sink.url.location == other.url.location and _overlap(sink, other):
                    mistakes.append(
                        (("sinks", name), f'the sinks "{other_name}" and "{name}" would write the same target tables')
                    )
            earlier.append((name, sink))
        if mistakes:
            raise Mistakes(mistakes)
        return self


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """The pipeline that the file describes. Raises ConfigErrors with all its mistakes (CDC-CFG-103), or CDC-CFG-101, -102."""
    document = read(path, environ)
    config = Config._checked(document, environ)
    config._path = path.absolute()
    urls = [config.source.url, *(sink.url for sink in config.sinks.values())]
    if is_exposed(path) and any(_is_literal(url.password, document.text) for url in urls):
        detail = "the file holds a password, and every user of this machine may read it"
        remedy = f"write ${{NAME}} or ${{file:path}} in its place, or: chmod o-rwx {path}"
        config._findings += (Finding("warning", "CDC-CFG-105", detail, str(path), remedy),)
    return config


def _is_literal(password: str, text: str) -> bool:
    return bool(password) and any(
        f":{spelling}@" in text for spelling in (password, quote(password), quote(password, safe=""))
    )


def _copy_name(source_url: str, target_url: str) -> str:
    """A name that is the same for the same two databases, whoever logs in."""
    try:
        source, target = Url(source_url), Url(target_url)
    except ValueError:
        return "copy"  # the URL itself is reported when the configuration is validated
    database = re.sub(r"[^a-z0-9_]", "_", source.database.lower())[:24] or "database"
    digest = hashlib.sha256(f"{source.location} {target.location}".encode()).hexdigest()
    return f"copy_{database}_{digest[:6]}"


def _overlap(one: SinkConfig, other: SinkConfig) -> bool:
    """Can it be seen without the tables that both write one? What cannot be seen here, each target's bookkeeping notices."""
    same_tables = one.tables == other.tables or not one.tables.patterns or not other.tables.patterns
    return one.rename == other.rename and same_tables
