"""The sections of a pipeline file, as pydantic models. Their docstrings are the text of docs/reference/config.md.

The invariant: a key that is not known is an error, and nothing changes after loading.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cdc.config_values import (
    Address,
    Bind,
    Brokers,
    ClientOptions,
    Count,
    DatabaseUrl,
    FolderPath,
    Hours,
    MessagePrefixes,
    Mistakes,
    PublicationName,
    RenameRules,
    Seconds,
    Size,
    SlotName,
    Tables,
    TopicName,
    check_scheme,
)
from cdc.selection import Rename, TableFilter


class Section(BaseModel):
    """A mapping in the file: a key that is not known is an error, and nothing changes after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True)


class UrlSection(Section):
    """A mapping with a `url`; where nothing else is said, the URL alone stands for it."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value


class SourceConfig(UrlSection):
    """The database to capture: a URL, or a mapping."""

    url: DatabaseUrl
    """Where it is. Every libpq option can follow `?`, such as `sslmode=verify-full`."""

    slot: SlotName = ""
    """The replication slot. Default: `cdc_<pipeline>`."""

    publication: PublicationName = ""
    """The publication. One that exists is used as it is. Default: `cdc_<pipeline>`."""

    heartbeat_s: Seconds = 10
    """How often a quiet source gets a sign of life, so that its log can be forgotten."""

    lock_timeout_s: Seconds = 1
    """How long a read of existing rows waits for a table's lock. The others are read meanwhile, and it is tried again."""

    statement_timeout_s: Seconds | None = None
    """The longest statement that reads existing rows of a table with a key. Default: `transaction_s_max`."""

    transaction_s_max: Seconds = 60
    """The longest transaction that reads existing rows of a table with a key: what would take longer is read in smaller chunks."""

    read_bytes_per_s: Size | None = None
    """How fast existing rows are read from tables with a key, on average. Default: as fast as can be."""

    until_loss_hours_min: Hours = 4
    """Status and health are bad when the server, as it goes on now, gives up what it keeps for us in less than this."""

    messages: MessagePrefixes = ()
    """Prefixes of logical messages (`pg_logical_emit_message(true, prefix, …)`) to capture; `*` is any run of characters."""


class EvolutionConfig(Section):
    """What a sink does when a table changes at the source. `stop` stops the sink, with the statement that goes on."""

    added: Literal["add", "stop"] = "add"
    """A new column is added at the target."""

    dropped: Literal["keep", "drop", "stop"] = "keep"
    """A column that is dropped, or renamed, stays at the target; `drop` takes it away where the sink has made the table."""

    retyped: Literal["widen", "stop"] = "widen"
    """A column that has another type gets one that holds the old values and the new ones, at worst `text`."""

    rekeyed: Literal["follow", "stop"] = "follow"
    """A table that has another key gets that key as it is loaded anew, where the sink has made the table."""


class TableRule(Section):
    """What differs for one table."""

    insert_only: bool = False
    """Capture inserts alone: for a table without key or replica identity whose rows are never changed."""

    topic: TopicName = ""
    """Its Kafka topic. Default: `<pipeline>.<schema>.<table>`."""

    evolution: EvolutionConfig = EvolutionConfig()
    """What sinks do when it changes at the source. What is given here goes before what is given for a sink."""


class LogConfig(Section):
    """The log between capture and sinks: a folder, `kafka://host:port,host:port`, or a mapping."""

    path: FolderPath = Path()
    """The embedded log's folder, relative to the pipeline file. Default: `./penstock/<pipeline>.log/`."""

    url: Brokers = ""
    """Kafka instead of a folder: `kafka://broker1:9092,broker2:9092`."""

    retention: Literal["forever", "applied"] = "forever"
    """`forever` keeps the whole history, from which targets can be rebuilt and added; `applied` keeps what a sink still needs."""

    segment_bytes: Size = 256 << 20
    """Embedded: the size at which a new segment file begins. Retention deletes whole segments."""

    free_bytes_min: Size = 256 << 20
    """Embedded: capture stops before less than this is free on the disk."""

    replication: Count | None = None
    """Kafka: copies of each topic. Default: three, or as many as there are brokers."""

    partitions: Count = 1
    """Kafka: partitions of each keyed table's topic, fixed when the topic is created. A table without key has one."""

    record_bytes_max: Size = 16 << 20
    """Kafka: the largest record; topics and clients are set accordingly. The brokers' request limit (100 MB) is the end of it."""

    options: ClientOptions = Field(default_factory=dict)
    """Kafka: options of librdkafka, such as `security.protocol`, `sasl.mechanism`, `ssl.ca.location`."""

    @property
    def where(self) -> str:
        """The log as messages name it."""
        return f"kafka://{self.url}" if self.url else str(self.path)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value.partition("://")[0].lower() == "kafka":
                return {"url": value}
            if "://" in value:
                check_scheme(value)
                raise ValueError("must be a folder, or kafka://host:port")
            return {"path": value}
        return value

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        embedded, kafka = (
            {"path", "segment_bytes", "free_bytes_min"},
            {"replication", "partitions", "record_bytes_max", "options"},
        )
        wrong = self.model_fields_set & (embedded if self.url else kafka)
        if wrong:
            kind = "a Kafka log has no such option" if self.url else "only a Kafka log has this option: give it a url"
            raise Mistakes([((name,), kind) for name in sorted(wrong)])
        return self


class RegistryConfig(UrlSection):
    """An external schema registry with the Confluent API: a URL, or a mapping. Default: Penstock's own, see `cdc registry`."""

    url: str
    """Where it is, such as `https://registry:8081`."""

    options: ClientOptions = Field(default_factory=dict)
    """Options of the registry's client, such as `basic.auth.user.info`, `ssl.ca.location`."""

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        scheme, separator, rest = url.partition("://")
        if scheme.lower() not in ("http", "https") or not separator or not rest:
            raise ValueError("must be a URL such as https://registry:8081")
        if "@" in rest.partition("/")[0]:
            raise ValueError("credentials do not belong in this URL: use `options`, such as basic.auth.user.info")
        return url


class SinkConfig(UrlSection):
    """A target database: a URL, or a mapping."""

    url: DatabaseUrl
    """Where it is. Every libpq option can follow `?`."""

    tables: Tables = TableFilter()
    """Which of the captured tables it takes; patterns as in `tables` above. Default: all."""

    rename: RenameRules = Rename()
    """Regular expression → replacement. The first expression that matches a table's whole `schema.table` names its target."""

    evolution: EvolutionConfig = EvolutionConfig()
    """What it does when a table changes at the source."""


class LoadConfig(Section):
    """How existing rows are read."""

    rows_max: Count = 50_000
    """Rows in a chunk, at most."""

    bytes_max: Size = 16 << 20
    """Bytes in a chunk, at most."""


class ServerConfig(Section):
    """The HTTP endpoints of a service: /healthz, /readyz and /metrics."""

    bind: Bind = Address("127.0.0.1", 8484)
    """Where the capture listens, `host:port`. The sinks, in the file's order, take the ports after it; port 0 is any free one."""
