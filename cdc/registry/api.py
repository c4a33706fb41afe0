"""The schema registry's API over HTTP, as Confluent's clients speak it, out of the schemas that stand in the log; and of Apicurio's
the two requests by which its converter reads.

The invariant: it only reads. Schemas are registered by the capture, in the log; whoever would write here is refused in the API's own
form. A schema is served in the text under which it was hashed and stored, with all its properties.

It reads by a log of its own, one request at a time in threads of its own: neither the loop beside it nor the other endpoints wait for
it, and no connection or consumer is ever shared with the loop.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from cdc.avro import canonical
from cdc.errors import CdcError
from cdc.journal import journal
from cdc.log import Log
from cdc.secrets import redact
from cdc.supervise import as_bug

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

Json = Any
Query = Mapping[str, str]

PREFIX = "/registry"
CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"
BODY_BYTES_MAX = 8 << 20
ID_MAX = VERSION_MAX = 2**31 - 1
# Where Apicurio's converter for Kafka Connect asks for the schema of an id, which is all that it asks when it reads.
APICURIO = ["apis", "registry", "v2", "ids", "contentIds"]
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH")
READ_ONLY = "this registry is read-only: the pipeline's capture registers its schemas"

_log = journal("cdc.registry")


class Refusal(Exception):
    """An error in the API's own form. `code` begins with the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def status(self) -> int:
        return int(str(self.code)[:3])

    @property
    def body(self) -> str:
        return json.dumps({"error_code": self.code, "message": str(self)})


class RegistryApi:
    """Answers requests below `PREFIX`. `open_log` opens a log for this alone, at the first request, and again after an error."""

    def __init__(self, open_log: Callable[[], Log]) -> None:
        self._open = open_log
        self._opened: Log | None = None
        self._lock = threading.Lock()

    def routes(self) -> list[Route]:
        """For a Starlette application."""
        from anyio import CapacityLimiter, to_thread
        from starlette.responses import Response
        from starlette.routing import Route

        # One thread, so that requests that wait for the log leave the server's other threads to the other endpoints.
        alone = CapacityLimiter(1)

        async def endpoint(request: Request) -> Response:
            body = await _body(request)
            path = request.scope["raw_path"].decode("ascii", "replace").removeprefix(PREFIX)
            status, text = await to_thread.run_sync(
                self.answer, request.method, path, request.query_params, body, limiter=alone
            )
            return Response(text, status, media_type=CONTENT_TYPE)

        return [Route(path, endpoint, methods=METHODS) for path in (PREFIX, PREFIX + "/{rest:path}")]

    def answer(self, method: str, path: str, query: Query, body: bytes | None) -> tuple[int, str]:
        """Status and text. `path` is still percent-encoded; `body` None: larger than any schema. Never raises."""
        parts = [unquote(part) for part in path.split("/") if part]
        try:
            with self._lock:
                return 200, self._answered(method, parts, query, body)
        except Refusal as refusal:
            return refusal.status, refusal.body
        except CdcError as error:
            _log.warning("cannot read schemas", error=error)
            failed = Refusal(50001, redact(f"{error.code} {error.detail}"))
        except Exception as error:  # noqa: BLE001 - a bug here must not end the service beside it
            failed = Refusal(50001, redact(str(as_bug(error))))
        self.close()
        return failed.status, failed.body

    def close(self) -> None:
        """Close the log. May be called twice; the next request would open it again."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    def _answered(self, method: str, parts: Sequence[str], query: Query, body: bytes | None) -> str:
        if self._opened is None:
            self._opened = self._open()
        if method in ("GET", "HEAD"):
            return _read(self._opened, parts, query)
        return _asked(self._opened, method, parts, body)


async def _body(request: Request) -> bytes | None:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES_MAX:
            return None
    return bytes(body)


# ------------------------------------------------------------------------------------------------------------------- reads
def _read(log: Log, parts: Sequence[str], query: Query) -> str:
    match parts:
        case []:
            return "{}"
        case ["schemas", "types"]:
            return json.dumps(["AVRO"])
        case ["schemas", "ids", number]:
            return json.dumps({"schema": _by_id(log, number)})
        case ["schemas", "ids", number, "schema"]:
            return _by_id(log, number)
        case ["schemas", "ids", number, "subjects"]:
            return json.dumps(_paged([use["subject"] for use in _uses(log, number, query)], query))
        case ["schemas", "ids", number, "versions"]:
            return json.dumps(_paged(_uses(log, number, query), query))
        case ["subjects"]:
            prefix = query.get("subjectPrefix", "")
            return json.dumps(_paged(sorted(s for s in log.subjects() if s.startswith(prefix)), query))
        case ["subjects", subject, "versions"]:
            return json.dumps(_paged(list(range(1, len(_ids(log, subject)) + 1)), query))
        case ["subjects", subject, "versions", version]:
            return json.dumps(_version(log, subject, version))
        case ["subjects", subject, "versions", version, "schema"]:
            return str(_version(log, subject, version)["schema"])
        case ["subjects", subject, "versions", version, "referencedby"]:
            _version(log, subject, version)
            return "[]"
        case ["config", *subject] if len(subject) <= 1:
            _ids(log, *subject)
            return json.dumps({"compatibilityLevel": "NONE"})
        case ["mode", *subject] if len(subject) <= 1:
            _ids(log, *subject)
            return json.dumps({"mode": "READONLY"})
        case ["contexts"]:
            return json.dumps(["."])
        case [*base, number] if base == APICURIO:
            return _by_id(log, number)
        case [*base, number, "references"] if base == APICURIO:
            _by_id(log, number)
            return "[]"
    raise _not_found()


def _not_found() -> Refusal:
    return Refusal(404, "HTTP 404 Not Found")


def _by_id(log: Log, number: str) -> str:
    """The text of a schema."""
    if not (number.isascii() and number.isdigit()):  # others are not paths of the API
        raise _not_found()
    unknown = Refusal(40403, f"Schema {number} not found")
    if int(number[:11]) > ID_MAX:
        raise unknown
    try:
        return canonical(log.schema(int(number)))
    except CdcError as error:
        if error.code != "CDC-LOG-402":
            raise
        raise unknown from None


def _uses(log: Log, number: str, query: Query) -> list[Json]:
    """The versions of subjects that are this schema."""
    _by_id(log, number)
    wanted = query.get("subject")
    return [
        {"subject": subject, "version": version}
        for subject, ids in sorted(log.subjects().items())
        for version, schema_id in enumerate(ids, 1)
        if schema_id == int(number) and wanted in (None, "", subject)
    ]


def _ids(log: Log, subject: str | None = None) -> Sequence[int]:
    """The ids of a subject's versions; none of no subject."""
    if subject is None:
        return ()
    found = log.subjects().get(subject)
    if not found:
        raise Refusal(40401, f"Subject '{subject}' not found.")
    return found


def _version(log: Log, subject: str, version: str) -> dict[str, Json]:
    """One version: a number from 1, or the last one as `latest` or -1."""
    is_last = version in ("latest", "-1")
    if not is_last and not (version.isascii() and version.isdigit() and 1 <= int(version[:11]) <= VERSION_MAX):
        allowed = 'Allowed values are between [1, 2^31-1] and the string "latest"'
        raise Refusal(42202, f"The specified version '{version}' is not a valid version id. {allowed}")
    ids = _ids(log, subject)
    number = len(ids) if is_last else int(version)
    if number > len(ids):
        raise Refusal(40402, f"Version {version} not found.")
    return _registered(log, subject, number, ids[number - 1])


def _registered(log: Log, subject: str, version: int, schema_id: int) -> dict[str, Json]:
    return {"subject": subject, "version": version, "id": schema_id, "schema": canonical(log.schema(schema_id))}


def _paged(items: list[Json], query: Query) -> list[Json]:
    """What `offset` and `limit` leave; a limit below zero is none. Nothing is ever deleted here."""
    if query.get("deletedOnly", query.get("deleted_only", "")).lower() == "true":
        return []
    try:
        offset, limit = int(query.get("offset", 0)), int(query.get("limit", -1))
    except ValueError:
        raise _not_found() from None
    items = items[max(0, offset) :]
    return items if limit < 0 else items[:limit]


# ---------------------------------------------------------------------------------------------------------- other requests
def _asked(log: Log, method: str, parts: Sequence[str], body: bytes | None) -> str:
    """A look-up, or what would write. To register a schema that is registered writes nothing, so producers of others may do it."""
    match method, parts:
        case "POST", ["subjects", subject]:
            return json.dumps(_looked_up(log, subject, body))
        case "POST", ["subjects", subject, "versions"]:
            try:
                return json.dumps({"id": _looked_up(log, subject, body)["id"]})
            except Refusal as refusal:
                if refusal.code not in (40401, 40403):
                    raise
    if parts and parts[0] in ("subjects", "config", "mode"):
        raise Refusal(42205, f"Operation not permitted: {READ_ONLY}")
    raise Refusal(405, f"HTTP 405 Method Not Allowed: {READ_ONLY}")


def _looked_up(log: Log, subject: str, body: bytes | None) -> dict[str, Json]:
    """The newest version of the subject that is this schema, however it is written down."""
    if body is None:
        raise Refusal(413, f"the request is larger than {BODY_BYTES_MAX} bytes")
    try:
        asked = json.loads(body)
        text = canonical(json.loads(asked["schema"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Refusal(42201, "Invalid schema: the body is not a JSON object with a schema, as text") from None
    ids = _ids(log, subject)
    if asked.get("schemaType", "AVRO") in ("AVRO", None, ""):
        for version in range(len(ids), 0, -1):
            found = _registered(log, subject, version, ids[version - 1])
            if found["schema"] == text:
                return found
    raise Refusal(40403, "Schema not found")
