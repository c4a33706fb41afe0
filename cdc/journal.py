"""The log lines of our processes: structlog through the standard library, to stderr; console on a terminal, JSON lines elsewhere.

The invariant: a line is redacted twice, each value before it is rendered and the whole line after, so that no secret gets out,
neither in a driver's message nor in a traceback (rule R10). Log per batch, never per row, and never row values.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from cdc.errors import CdcError
from cdc.secrets import redact

Format = Literal["console", "json"]


def journal(name: str) -> structlog.stdlib.BoundLogger:
    """A logger: `log.info("caught up", table=str(table), lag_bytes=n)`; static message in lower case, the rest as fields.

    `error=` takes a CdcError and becomes the fields code, detail, where and remedy.
    """
    return structlog.stdlib.get_logger(name)


def bind(**fields: str) -> None:
    """Fields of every line that this process writes from here on: pipeline, role."""
    structlog.contextvars.bind_contextvars(**fields)


def unbind() -> None:
    """Take all bound fields away."""
    structlog.contextvars.clear_contextvars()


def configure(format: Format | None = None, *, debug: bool = False, stream: TextIO | None = None) -> None:
    """Send all log lines of this process, drivers' included, to `stream` (stderr). Replaces what was configured before."""
    stream = sys.stderr if stream is None else stream
    on_terminal = stream.isatty()
    as_json = format == "json" or (format is None and not on_terminal)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        _coded_error,
        structlog.processors.format_exc_info,
        _redact_values,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    renderer: Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False, default=str)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=on_terminal, timestamp_key="ts")
    )
    formatter = _RedactingFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if debug else logging.INFO)


class _RedactingFormatter(structlog.stdlib.ProcessorFormatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _coded_error(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    error = event.get("error")
    if isinstance(error, CdcError):
        del event["error"]
        for name in ("code", "detail", "where", "remedy"):
            if value := getattr(error, name):
                event[name] = value
    return event


def _redact_values(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if not key.startswith("_"):
            event[key] = _redacted(value)
    return event


def _redacted(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping | MutableMapping):
        return {str(key): _redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted(item) for item in value]
    return redact(str(value))
