"""The HTTP endpoints of one service, in a thread beside its loop: /healthz, /readyz, /metrics, and what else it is given. They read,
and change nothing.

Health is computed by the caller from state, lag and what the source keeps; that this thread answers proves nothing, and is never
taken for health. Texts go out redacted (rule R10). Loopback unless configured otherwise.
"""

from __future__ import annotations

import errno
import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from cdc.errors import CdcError
from cdc.journal import journal
from cdc.secrets import redact

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from starlette.applications import Starlette
    from starlette.routing import BaseRoute

_log = journal("cdc.service")
START_S = 10.0


class Health(NamedTuple):
    """`problems` is empty when all is well; `ready`: both ends are connected. `details` is shown as it is."""

    state: str
    ready: bool
    problems: tuple[str, ...] = ()
    details: dict[str, Any] = {}  # noqa: RUF012 - never changed


class Service:
    """`with Service("127.0.0.1", 8484, registry, health) as service:` listens from then on at `service.address`; port 0 takes a
    free one. `routes` come beside its own. Raises CDC-RUN-201 when the address is taken."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        health: Callable[[], Health],
        routes: Sequence[BaseRoute] = (),
    ) -> None:
        import uvicorn

        self._socket = _listen(host, port)
        bound = self._socket.getsockname()
        self.address = f"[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"{bound[0]}:{bound[1]}"
        settings = uvicorn.Config(
            application(registry, health, routes),
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            loop="asyncio",
            http="h11",
            ws="none",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="http", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + START_S
        while not self._server.started and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        _log.info("listening", address=f"http://{self.address}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(START_S)
        self._socket.close()


def application(
    registry: CollectorRegistry, health: Callable[[], Health], routes: Sequence[BaseRoute] = ()
) -> Starlette:
    """The three endpoints, and `routes`."""
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    def answer(good: bool, now: Health) -> Response:
        body = {"ok": good, "state": now.state, "ready": now.ready, "problems": now.problems, **now.details}
        text = redact(json.dumps(body, default=str))
        return Response(text, 200 if good else 503, {"Cache-Control": "no-store"}, "application/json")

    def healthz(_request: Request) -> Response:
        now = health()
        return answer(not now.problems, now)

    def readyz(_request: Request) -> Response:
        now = health()
        return answer(now.ready, now)

    def metrics(_request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics), *routes],
    )


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises CDC-RUN-201 when the address is taken, CDC-RUN-202 when it is not ours to take."""
    where = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise CdcError("CDC-RUN-202", f"{host} is not a host name or address", where=where) from error
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(64)
    except OSError as error:
        with suppress(OSError):
            listening.close()
        code = "CDC-RUN-201" if error.errno == errno.EADDRINUSE else "CDC-RUN-202"
        raise CdcError(code, f"{where}: {error.strerror}", where=where) from error
    return listening
