"""The values of a pipeline file: names, URLs, sizes, addresses, paths, table patterns, rename rules, as pydantic types.

Each validator raises ValueError in words for the user, or `Mistakes` for several at once; none quotes a value that may be secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    GetPydanticSchema,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
)
from pydantic_core import CoreSchema, core_schema

from cdc.secrets import Url, register
from cdc.selection import Pattern, Rename, TableFilter
from cdc.suggest import did_you_mean
from cdc.table import TableId

_NAME = re.compile(r"[a-z0-9_-]{1,40}\Z")
_SLOT = re.compile(r"[a-z0-9_]{1,63}\Z")
_SCHEMES = ("postgresql", "postgres")
_LATER = ("mysql", "mariadb", "mongodb", "mongodb+srv")
_BROKER = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[\w.-]+):\d{1,5}\Z", re.ASCII)
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}\Z")
_SECRET_OPTION = re.compile(r"password|secret|jaas|\.pem|credential|token|basic\.auth\.user\.info", re.IGNORECASE)
_SIZE = re.compile(r"(\d+)\s*([KMGT]?i?B)\Z", re.IGNORECASE)
_UNITS = {"b": 1} | {
    f"{prefix}{unit}": base**power
    for power, prefix in enumerate("kmgt", start=1)
    for unit, base in (("b", 1000), ("ib", 1024))
}


class Mistakes(ValueError):
    """Several mistakes in one value: each with its path from there, and a message."""

    def __init__(self, mistakes: list[tuple[tuple[str, ...], str]]) -> None:
        super().__init__("; ".join(message for _, message in mistakes))
        self.mistakes = mistakes


class Address(NamedTuple):
    """Where a server listens; port 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Form:
    """How a value is written, for docs/reference/config.md."""

    text: str


def _name(text: str) -> str:
    if not _NAME.match(text):
        raise ValueError("a name is 1 to 40 of the characters a-z, 0-9, _ and -")
    return text


def _slot(text: str) -> str:
    if not _SLOT.match(text):
        raise ValueError("a slot's name is 1 to 63 of the characters a-z, 0-9 and _")
    return text


def _publication(text: str) -> str:
    if not 0 < len(text.encode()) < 64 or "\0" in text:
        raise ValueError("a publication's name is 1 to 63 bytes")
    return text


def check_scheme(text: str) -> None:
    """Raises ValueError when this version has nothing behind the URL's scheme."""
    scheme, separator, _ = text.partition("://")
    scheme = scheme.lower()
    if separator and scheme == "kafka":
        raise ValueError("kafka:// can be the log, not a database")
    if separator and scheme in _LATER:
        raise ValueError(f"{scheme}:// is not in this version")
    if separator and scheme not in _SCHEMES:
        near = did_you_mean(scheme, _SCHEMES) or "; this version has postgresql://"
        raise ValueError(f'unknown URL scheme "{scheme}"{near}')


def _url(value: Any) -> Url:
    if not isinstance(value, str):
        raise ValueError("must be a URL such as postgresql://user@host:5432/database")
    check_scheme(value)
    return Url(value)


def _brokers(value: Any) -> str:
    """`host:port,host:port` out of a `kafka://` URL. Credentials are options of the client, not of the address."""
    if not isinstance(value, str):
        raise ValueError("must be a URL such as kafka://broker1:9092,broker2:9092")
    scheme, separator, rest = value.partition("://")
    if not separator or scheme.lower() != "kafka":
        raise ValueError("must be a URL such as kafka://broker1:9092,broker2:9092")
    if "@" in rest:
        raise ValueError(
            "credentials do not belong in this URL: use `options`, such as sasl.username and sasl.password"
        )
    brokers = rest.removesuffix("/")
    if not all(_BROKER.match(broker) for broker in brokers.split(",")):
        raise ValueError("the brokers are host:port, with commas between them")
    return brokers


def _topic(text: str) -> str:
    if not _TOPIC.match(text) or text in (".", ".."):
        raise ValueError("a topic's name is 1 to 249 of the characters a-z, A-Z, 0-9, ., _ and -")
    return text


def _options(options: dict[str, Any]) -> dict[str, str]:
    """librdkafka takes text. Values whose names say that they are secret are hidden from here on."""
    found = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in options.items()}
    register(value for name, value in found.items() if _SECRET_OPTION.search(name))
    return found


def _size(value: Any) -> Any:
    found = _SIZE.match(value) if isinstance(value, str) else None
    return int(found[1]) * _UNITS[found[2].lower()] if found else value


def _address(value: Any) -> Address:
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError('must be "host:port", such as "127.0.0.1:8484"')
    return Address(host.removeprefix("[").removesuffix("]"), int(port))


def _pattern(value: Any) -> Pattern:
    if not isinstance(value, str):
        raise ValueError("must be text: a table pattern such as public.*")
    return Pattern.parse(value)


def _message_prefix(text: str) -> str:
    if not text:
        raise ValueError("must be a prefix, in which * stands for any run of characters")
    if text.startswith("penstock."):
        raise ValueError("prefixes that begin with penstock. are Penstock's own, and are never captured")
    return text


def _rename(rules: dict[str, str]) -> Rename:
    mistakes: list[tuple[tuple[str, ...], str]] = []
    for expression, replacement in rules.items():
        try:
            Rename.parse({expression: replacement})
        except ValueError as error:
            mistakes.append(((expression,), str(error)))
    if mistakes:
        raise Mistakes(mistakes)
    return Rename.parse(rules)


def _within(path: Path, info: ValidationInfo) -> Path:
    folder = info.context["folder"] if info.context else Path()
    return Path(folder).absolute() / path.expanduser()


def _made_of(parts: Any, make: Callable[[Any], Any]) -> GetPydanticSchema:
    """A type of our own that is made of a type that pydantic knows, so that errors carry the place inside it."""

    def schema(_type: Any, handler: Callable[[Any], CoreSchema]) -> CoreSchema:
        return core_schema.no_info_after_validator_function(make, handler(parts))

    return GetPydanticSchema(schema)


Name = Annotated[str, AfterValidator(_name), Form("name")]
SlotName = Annotated[str, AfterValidator(_slot), Form("name")]
PublicationName = Annotated[str, AfterValidator(_publication), Form("name")]
DatabaseUrl = Annotated[Url, PlainValidator(_url), PlainSerializer(str), Form("URL")]
Brokers = Annotated[str, PlainValidator(_brokers), PlainSerializer(lambda brokers: f"kafka://{brokers}"), Form("URL")]
TopicName = Annotated[str, AfterValidator(_topic), Form("name")]
ClientOptions = Annotated[
    dict[str, str], _made_of(dict[str, str | int | float | bool], _options), Form("option → value")
]
Count = Annotated[int, Field(gt=0), Form("number")]
Size = Annotated[int, BeforeValidator(_size), Field(gt=0), Form("bytes, or text such as 256MB")]
Seconds = Annotated[float, Field(gt=0), Form("seconds")]
Hours = Annotated[float, Field(gt=0), Form("hours")]
MessagePrefixes = Annotated[tuple[Annotated[str, AfterValidator(_message_prefix)], ...], Form("list of prefixes")]
Bind = Annotated[Address, PlainValidator(_address), PlainSerializer(str), Form("host:port")]
FolderPath = Annotated[Path, AfterValidator(_within), PlainSerializer(str), Form("path")]
Tables = Annotated[
    TableFilter,
    _made_of(tuple[Annotated[Pattern, PlainValidator(_pattern)], ...], TableFilter),
    PlainSerializer(lambda tables: [pattern.text for pattern in tables.patterns]),
    Form("list of patterns"),
]
RenameRules = Annotated[
    Rename,
    _made_of(dict[str, str], _rename),
    PlainSerializer(lambda rename: dict(rename.rules)),
    Form("expression → replacement"),
]
TableName = Annotated[TableId, _made_of(str, TableId.parse), PlainSerializer(str)]
