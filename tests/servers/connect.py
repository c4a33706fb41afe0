"""Kafka Connect for tests: one standalone worker with Debezium's Postgres source, its JDBC sink and Apicurio's Avro converter.

    with Connect(kafka) as connect:
        connect.put("sink", {"connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector", …, **avro(registry)})
        connect.check("sink")                    # raises with the stack of what failed since
        connect.delete("sink")

It is the foreign reader and writer that our topics are held against. The worker keeps offsets in a file, and connectors in memory:
after `restart` they have to be put again, and go on where they were.
"""

from __future__ import annotations

import json
import time
import urllib.request
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote

from tests.servers.java import SMALL, JavaServer, jars
from tests.servers.kafka import Kafka
from tests.servers.registry import SchemaRegistry

PLUGINS = ("debezium-postgres", "debezium-jdbc", "apicurio-converter")
CONVERTER = "io.apicurio.registry.utils.converter.AvroConverter"


class ConnectorFailed(Exception):
    """The worker refuses a connector, or one of its tasks has failed; the message is the worker's, with the stack."""


def avro(registry: SchemaRegistry | str) -> dict[str, str]:
    """A connector's settings for Avro in Confluent's wire format: a zero byte, four bytes of schema id, the datum. The registry may be
    any that answers Apicurio's converter, by its URL."""
    url = registry if isinstance(registry, str) else registry.native_url
    return {
        f"{side}.converter{name}": value
        for side in ("key", "value")
        for name, value in {
            "": CONVERTER,
            ".apicurio.registry.url": url,
            ".apicurio.registry.auto-register": "true",
            ".apicurio.registry.find-latest": "true",
            ".apicurio.registry.as-confluent": "true",
            ".apicurio.registry.headers.enabled": "false",
            ".apicurio.registry.use-id": "contentId",
        }.items()
    }


class Connect(JavaServer):
    """One worker on `kafka`, which must be open to clients without login and TLS."""

    name = "connect"

    def __init__(
        self,
        kafka: Kafka,
        *,
        properties: Mapping[str, str] | None = None,
        heap_max_mb: int = 768,
        jvm: Sequence[str] = SMALL,
    ) -> None:
        self._jars = jars("kafka")
        plugins = {name: list(jars(name).iterdir()) for name in PLUGINS}
        super().__init__(heap_max_mb, jvm)
        self._kafka, self.properties = kafka, dict(properties or {})
        self._configuration = self.folder / "worker.properties"
        # A folder for each plugin, since Connect isolates these from one another.
        for name, files in plugins.items():
            folder = self.folder / "plugins" / name
            folder.mkdir(parents=True)
            for file in files:
                (folder / file.name).symlink_to(file)
        # The worker finds classes by their jars' lists alone, in 3 s instead of 30; this converter's jar has no list.
        with zipfile.ZipFile(self.folder / "plugins" / "apicurio-converter" / "list.jar", "w") as jar:
            jar.writestr("META-INF/services/org.apache.kafka.connect.storage.Converter", CONVERTER)

    @property
    def url(self) -> str:
        """The base of the worker's REST API."""
        return f"http://127.0.0.1:{self.port}"

    def plugins(self) -> list[str]:
        """The classes of the connectors that the worker has."""
        return [plugin["class"] for plugin in self._ask("GET", "/connector-plugins")]

    def put(self, name: str, config: Mapping[str, str], timeout_s: float = 60.0) -> None:
        """Create or replace a connector and wait until it and its tasks run. Raises ConnectorFailed."""
        self._ask("PUT", f"/connectors/{quote(name, safe='')}/config", {**config, "name": name})
        deadline = time.monotonic() + timeout_s
        while not self._runs(name):
            if time.monotonic() > deadline:
                raise ConnectorFailed(f"{name} does not run within {timeout_s:.0f} s: {self.status(name)}")
            time.sleep(0.1)

    def status(self, name: str) -> dict[str, Any]:
        """What the worker says of a connector and its tasks. Raises ConnectorFailed where there is none."""
        found: dict[str, Any] = self._ask("GET", f"/connectors/{quote(name, safe='')}/status")
        return found

    def check(self, name: str) -> None:
        """Raise ConnectorFailed, with the stack, if the connector or one of its tasks has failed."""
        self._runs(name)

    def delete(self, name: str) -> None:
        """Stop and forget a connector; its offsets stay."""
        self._ask("DELETE", f"/connectors/{quote(name, safe='')}")

    def prepare(self) -> None:
        found = {
            "bootstrap.servers": self._kafka.bootstrap,
            "listeners": self.url,
            "key.converter": "org.apache.kafka.connect.json.JsonConverter",
            "value.converter": "org.apache.kafka.connect.json.JsonConverter",
            "offset.storage.file.filename": str(self.folder / "offsets"),
            "offset.flush.interval.ms": "1000",
            "plugin.path": str(self.folder / "plugins"),
            "plugin.discovery": "service_load",
            **self.properties,
        }
        self._configuration.write_text("".join(f"{name}={value}\n" for name, value in found.items()))

    def arguments(self) -> list[str]:
        logging = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"]
        main = "org.apache.kafka.connect.cli.ConnectStandalone"
        return [*logging, "-cp", f"{self._jars}/*", main, str(self._configuration)]

    def is_ready(self, timeout_s: float) -> bool:
        try:
            self._ask("GET", "/connectors", timeout_s=min(timeout_s, 20.0))
        except (ConnectorFailed, URLError, TimeoutError, ConnectionError):
            return False
        return True

    def _runs(self, name: str) -> bool:
        try:
            status = self.status(name)
        except ConnectorFailed as error:
            if isinstance(error.__cause__, HTTPError) and error.__cause__.code == 404:
                return False
            raise
        parts = [status["connector"], *status["tasks"]]
        for part in parts:
            if part["state"] == "FAILED":
                raise ConnectorFailed(f"{name}: {part.get('trace', '')[:4000]}")
        return bool(status["tasks"]) and all(part["state"] == "RUNNING" for part in parts)

    def _ask(self, method: str, path: str, body: object = None, timeout_s: float = 60.0) -> Any:
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                text = answer.read()
        except HTTPError as error:
            raise ConnectorFailed(f"{method} {path}: {error.code} {error.read().decode(errors='replace')}") from error
        return json.loads(text) if text else None
