"""A schema registry for tests: Apicurio on a free loopback port, which speaks the Confluent API.

    with SchemaRegistry() as registry:
        SchemaRegistryClient({"url": registry.url})

It keeps its schemas in memory: `stop`, `kill` and `restart` lose them all, and the ids begin anew.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Sequence
from urllib.error import URLError

from tests.servers.java import SMALL, JavaServer, jars


class SchemaRegistry(JavaServer):
    """One registry. `url` is its Confluent API, `native_url` Apicurio's own, over the same schemas."""

    name = "registry"

    def __init__(self, *, heap_max_mb: int = 384, jvm: Sequence[str] = SMALL) -> None:
        self._jars = jars("registry")
        super().__init__(heap_max_mb, jvm)

    @property
    def url(self) -> str:
        """The base of the Confluent API."""
        return f"http://127.0.0.1:{self.port}/apis/ccompat/v7"

    @property
    def native_url(self) -> str:
        """The base of Apicurio's own API, which its converter for Connect wants."""
        return f"http://127.0.0.1:{self.port}/apis/registry/v2"

    def arguments(self) -> list[str]:
        (runner,) = self._jars.glob("*-runner.jar")
        settings = {
            "quarkus.http.host": "127.0.0.1",
            "quarkus.http.port": str(self.port),
            "quarkus.log.level": "WARN",
            "quarkus.banner.enabled": "false",
        }
        return [*(f"-D{name}={value}" for name, value in settings.items()), "-jar", str(runner)]

    def is_ready(self, timeout_s: float) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/subjects", timeout=min(timeout_s, 20.0)) as answer:
                return bool(answer.status == 200)
        except (URLError, TimeoutError, ConnectionError):
            return False
