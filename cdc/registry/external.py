"""A schema registry that somebody else runs (Confluent's, Apicurio's ccompat, Karapace), through confluent-kafka's client.

The invariant: it never gives an id that is not the registry's own for exactly this schema in this subject, and a schema is never left
out: where the subject's compatibility forbids it, that subject is opened, or the capture stops (protocol A8).

The client's errors become ours by class, HTTP status and error code. One attempt per call: trying again is the supervisor's.
"""

from __future__ import annotations

import json
import logging
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from cdc.avro import canonical
from cdc.errors import CdcError, Unavailable
from cdc.journal import journal
from cdc.registry import Json
from cdc.secrets import Url, redact, register
from cdc.suggest import did_you_mean

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import SchemaRegistryClient

T = TypeVar("T")

TIMEOUT_S = 10.0
MESSAGE_CHARS_MAX = 300
ID_MAX = 2**31 - 1

_TEXTS = frozenset(
    {
        "ssl.ca.location",
        "ssl.key.location",
        "ssl.key.password",
        "ssl.certificate.location",
        "basic.auth.user.info",
        "proxy",
        "bearer.auth.credentials.source",
        "bearer.auth.token",
        "bearer.auth.logical.cluster",
        "bearer.auth.identity.pool.id",
        "bearer.auth.client.id",
        "bearer.auth.client.secret",
        "bearer.auth.scope",
        "bearer.auth.issuer.endpoint.url",
        "bearer.auth.endpoint.url",
        "bearer.auth.endpoint.query",
    }
)
_NUMBERS = frozenset({"timeout"})
_SECRETS = frozenset(
    {"ssl.key.password", "basic.auth.user.info", "bearer.auth.token", "bearer.auth.client.secret", "proxy"}
)
_LOGIN, _BUSY = frozenset({401, 403, 407}), frozenset({408, 425, 429})
_HANGS_UP = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)

_log = journal("cdc.registry")
for _name in ("httpx", "httpx2"):
    logging.getLogger(_name).setLevel(logging.WARNING)  # they log every request


class ExternalRegistry:
    """`options` are those of confluent-kafka's client, as text: `basic.auth.user.info`, `ssl.*`, `bearer.auth.*`, `proxy`, `timeout` in
    seconds. `url` may be several, with commas: the next one is asked where one is away.

    Connects at the first call. Raises CDC-REG-103 for what the client does not take. Not for several threads.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self._where, self._settings = _settings(url, options or {})
        self._ids: dict[tuple[str, str], int] = {}
        self._opened = ExitStack()
        self._client: SchemaRegistryClient | None = None

    def __enter__(self) -> ExternalRegistry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def register(self, subject: str, schema: Json) -> int:
        """The registry's id of this schema, registered in the subject if it was not. Where it is incompatible with what is there, the
        subject's compatibility is set to NONE first. Raises CDC-REG-201 where that is not allowed, CDC-REG-202 where the schema
        is refused, CDC-REG-101 to -106 where the registry cannot be used."""
        text = canonical(schema)
        known = self._ids.get((subject, text))
        if known is not None:
            return known
        try:
            given = self._posted(subject, text)
        except _Incompatible:
            self._open_to_all(subject)
            given = self._posted(subject, text)
        if type(given) is not int or not 0 <= given <= ID_MAX:
            raise CdcError("CDC-REG-105", "it answered with something that is not a schema's id", where=self._where)
        self._ids[subject, text] = given
        return given

    def schema(self, schema_id: int) -> Json:
        """A registered schema. Raises CDC-REG-203 for an id that the registry does not know."""
        found = self._called(lambda client: client.get_schema(schema_id), f"schema {schema_id}")
        try:
            return json.loads(found.schema_str or "")
        except ValueError as error:
            raise CdcError("CDC-REG-105", f"schema {schema_id} is not an Avro schema", where=self._where) from error

    def check(self) -> None:
        """Raises why the registry cannot be used, as far as a look can tell."""
        self._called(lambda client: client.get_subjects(limit=1), "the list of subjects")

    def close(self) -> None:
        """Close connections. May be called twice."""
        self._opened.close()
        self._client = None

    def _posted(self, subject: str, text: str) -> Any:
        def post(client: SchemaRegistryClient) -> Any:
            from confluent_kafka.schema_registry import Schema

            return client.register_schema(subject, Schema(text, "AVRO"))

        return self._called(post, subject)

    def _open_to_all(self, subject: str) -> None:
        try:
            self._called(lambda client: client.set_compatibility(subject, "NONE"), subject)
        except Unavailable:
            raise
        except CdcError as error:
            url = str(self._where).partition(",")[0]
            remedy = (
                f"let the pipeline's user do it, or do it yourself: curl -X PUT -H 'Content-Type: application/json' "
                f"-d '{{\"compatibility\": \"NONE\"}}' '{url}/config/{subject}'; then start again"
            )
            detail = f"the compatibility of the subject cannot be set to NONE: {error.detail}"
            raise CdcError("CDC-REG-201", detail, where=self._at(subject), remedy=remedy) from error
        _log.warning("an incompatible schema: the subject's compatibility is NONE from here on", subject=subject)

    def _at(self, what: str) -> str:
        return f"{self._where} {what}"

    def _called(self, call: Callable[[SchemaRegistryClient], T], what: str) -> T:
        """One call, its errors translated."""
        try:
            if self._client is None:
                self._client = self._made()
            return call(self._client)
        except CdcError:
            raise
        except Exception as error:
            raise _coded(error, self._at(what)) from error

    def _made(self) -> SchemaRegistryClient:
        try:
            from confluent_kafka.schema_registry import SchemaRegistryClient
        except ImportError as error:
            raise CdcError("CDC-REG-104", f"Python has no module {error.name}", where=self._where) from error
        try:
            made: SchemaRegistryClient = self._opened.enter_context(SchemaRegistryClient(self._settings))
            return made
        except (ValueError, TypeError, OSError) as error:
            raise CdcError("CDC-REG-103", redact(str(error)), where=self._where) from error


class _Incompatible(CdcError):
    """The registry answered 409."""


def _settings(url: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """How messages name the registry, and the client's configuration. Secrets are hidden from here on."""
    register(str(value) for name, value in options.items() if name in _SECRETS)
    register([str(options.get("basic.auth.user.info", "")).partition(":")[2]])
    try:
        places = [Url(part.strip().rstrip("/")) for part in url.split(",")]
        if any(place.scheme not in ("http", "https") for place in places):
            raise ValueError("not a URL such as https://registry:8081")
    except ValueError as error:
        raise CdcError("CDC-REG-103", str(error), where="registry.url") from error
    where = ",".join(map(str, places))
    for name in options:
        if name not in _TEXTS | _NUMBERS:
            near = did_you_mean(name, sorted(_TEXTS | _NUMBERS))
            raise CdcError("CDC-REG-103", f"{name} is not an option that can be chosen{near}", where=where)
    settings: dict[str, Any] = {name: str(value) for name, value in options.items()}
    if settings.get("ssl.ca.location", "").lower() == "false":  # the client's way to say that it verifies nothing
        settings["ssl.ca.location"] = False
    try:
        settings["timeout"] = float(settings.get("timeout", TIMEOUT_S))
    except ValueError as error:
        raise CdcError("CDC-REG-103", "timeout is a number of seconds", where=where) from error
    return where, settings | {"url": ",".join(place.reveal() for place in places), "max.retries": 0}


def _coded(error: Exception, where: str) -> CdcError:
    """What the client raised, as one of ours."""
    from confluent_kafka.schema_registry.error import OAuthTokenError, SchemaRegistryError

    if isinstance(error, SchemaRegistryError):
        return _refused(error, where)
    chain = list(_chain(error))
    if any(isinstance(cause, ssl.SSLError) and not isinstance(cause, _HANGS_UP) for cause in chain):
        reason = next(cause for cause in chain if isinstance(cause, ssl.SSLError)).reason
        return CdcError("CDC-REG-106", reason or "no secure connection", where=where)
    # By the class's name: the client comes with one of two HTTP libraries, whose classes are called alike.
    if any(base.__name__ == "TransportError" for cause in chain for base in type(cause).__mro__):
        return Unavailable("CDC-REG-101", redact(f"{type(error).__name__}: {error}"), where=where)
    if isinstance(error, OAuthTokenError):
        return CdcError("CDC-REG-102", "no token could be had", where=where)
    if isinstance(error, ValueError | TypeError | LookupError | AttributeError):  # no JSON, or JSON of another form
        return CdcError("CDC-REG-105", "the answer is not a schema registry's", where=where)
    raise error


def _refused(error: Any, where: str) -> CdcError:
    """By HTTP status, and the API's own code where there is one."""
    status, code = int(error.http_status_code), error.error_code
    message = redact(str(error.error_message))[:MESSAGE_CHARS_MAX]
    detail = f"HTTP {status}, code {code}: {message}"
    if status >= 500 or status in _BUSY:
        return Unavailable("CDC-REG-101", detail, where=where)
    if status in _LOGIN:
        return CdcError("CDC-REG-102", f"HTTP {status}", where=where)
    if status == 409:
        return _Incompatible("CDC-REG-201", detail, where=where)
    if status == 404 and str(code).startswith("404") and code != 404:
        return CdcError("CDC-REG-203", detail, where=where)
    if status in (400, 413, 422):
        return CdcError("CDC-REG-202", detail, where=where)
    return CdcError("CDC-REG-105", f"HTTP {status}", where=where)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__
