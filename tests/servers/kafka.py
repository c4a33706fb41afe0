"""A Kafka broker for tests: KRaft, one node that is broker and controller, on free loopback ports. And a cluster of three of them.

    with Kafka() as kafka:                       # or Kafka(sasl=True, tls=True, properties={"message.max.bytes": "2000000"})
        Producer(kafka.client())                 # librdkafka's settings to reach it, as the administrator
    kafka.kill(); kafka.restart()                # same port, same data
    kafka.suspend(); kafka.resume()              # connections open, nobody answers

    with KafkaCluster() as cluster:
        cluster.leader("topic").kill()           # the node that leads its partition 0

Topics are never created by themselves. Internal topics have few partitions, so that a start stays short.
"""

from __future__ import annotations

import secrets
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)

from tests.servers.java import SMALL, JavaServer, StartFailed, free_ports, jars

ADMIN = "admin"
MECHANISM = "SCRAM-SHA-256"

PROPERTIES: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    # A transaction that nobody ends is aborted within a second of its timeout, instead of ten.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    # A killed broker may not come back before the controller has given up its predecessor: 9 s otherwise.
    "broker.session.timeout.ms": "2000",
    "broker.heartbeat.interval.ms": "250",
    # The cleaner allocates this at the start: 128 MB of the heap otherwise.
    "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
}


INTERNAL = ("offsets.topic", "share.coordinator.state.topic", "transaction.state.log")


class Kafka(JavaServer):
    """One broker. `bootstrap` is its address from the first start on; `client()` what a client needs to reach it.

    `sasl`: clients log in with SCRAM-SHA-256, and may do only what `user` grants them; `admin` may do everything.
    `tls`: clients connect by TLS; `authority` is the PEM file of the certificate that the broker shows, for 127.0.0.1 and localhost.
    `properties` are the broker's, over our own."""

    name = "kafka"
    port_count = 3

    def __init__(
        self,
        *,
        sasl: bool = False,
        tls: bool = False,
        properties: Mapping[str, str] | None = None,
        heap_max_mb: int = 768,
        jvm: Sequence[str] = SMALL,
    ) -> None:
        self._jars = jars("kafka")
        super().__init__(heap_max_mb, [f"-Xms{min(256, heap_max_mb)}m", *jvm])
        self.sasl, self.tls, self.properties = sasl, tls, dict(properties or {})
        self.password = secrets.token_urlsafe(12)
        self.cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        self.authority = self.folder / "authority.pem"
        self._configuration = self.folder / "server.properties"
        self._keystore_password = secrets.token_urlsafe(12)

    @property
    def bootstrap(self) -> str:
        """host:port for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def protocol(self) -> str:
        """The clients' security.protocol."""
        return ("SASL_" if self.sasl else "") + ("SSL" if self.tls else "PLAINTEXT")

    def client(self, user: str = ADMIN, password: str | None = None) -> dict[str, Any]:
        """librdkafka's settings for this user, by default the administrator: address, protocol, login, certificate."""
        settings: dict[str, Any] = {"bootstrap.servers": self.bootstrap, "security.protocol": self.protocol}
        if self.sasl:
            secret = self.password if password is None and user == ADMIN else password
            settings |= {"sasl.mechanism": MECHANISM, "sasl.username": user, "sasl.password": secret or ""}
        if self.tls:
            settings["ssl.ca.location"] = str(self.authority)
        return settings

    def admin(self) -> AdminClient:
        """An administrator's client. Keep it until its futures are done: they fail when it is collected."""
        return AdminClient({**self.client(), "log_level": 0})

    def make_topic(self, name: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
        """Create a topic; it is there when this returns."""
        admin = self.admin()
        admin.create_topics([NewTopic(name, partitions, 1, config=dict(config or {}))])[name].result(30)

    def drop_topics(self, prefix: str) -> None:
        """Delete all topics whose name begins so."""
        admin = self.admin()
        found = [name for name in admin.list_topics(timeout=10).topics if name.startswith(prefix)]
        for dropped in admin.delete_topics(found).values() if found else ():
            dropped.result(30)

    def user(self, name: str, acls: Sequence[AclBinding] = ()) -> str:
        """Make a user with these rights and no others; the password. Only with `sasl`; see `allow`."""
        password = secrets.token_urlsafe(12)
        admin = self.admin()
        credential = UserScramCredentialUpsertion(
            name, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096), password.encode()
        )
        for done in admin.alter_user_scram_credentials([credential]).values():
            done.result(30)
        if acls:
            for granted in admin.create_acls(list(acls)).values():
                granted.result(30)
        return password

    def prepare(self) -> None:
        data = self.folder / "data"
        if self.tls and not self.authority.exists():
            self._make_certificate()
        self._configuration.write_text("".join(f"{name}={value}\n" for name, value in self._properties(data).items()))
        if data.exists():  # Only the ports changed.
            return
        login = ["--add-scram", f"{MECHANISM}=[name={ADMIN},password={self.password}]"] if self.sasl else []
        self.run_tool(
            "java", *SMALL, "-cp", f"{self._jars}/*", "kafka.tools.StorageTool", "format",
            f"--cluster-id={self.cluster_id}", "--config", str(self._configuration), *login,
        )  # fmt: skip

    def arguments(self) -> list[str]:
        logging = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true"]
        return [*logging, "-cp", f"{self._jars}/*", "kafka.Kafka", str(self._configuration)]

    def is_ready(self, timeout_s: float) -> bool:
        """Whether a transactional producer can begin: a broker that has just started answers it with a retriable error."""
        settings = {"transactional.id": "tests.servers", "log_level": 0, "reconnect.backoff.max.ms": 200}
        try:
            Producer({**self.client(), **settings}).init_transactions(min(timeout_s, 10.0))
        except KafkaException as error:
            if not error.args[0].retriable():
                raise
            return False
        return True

    def _properties(self, data: Path) -> dict[str, str]:
        client, inner, controller = self.ports
        found = {
            **PROPERTIES,
            "log.dirs": str(data),
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "listeners": f"CLIENT://127.0.0.1:{client},INNER://127.0.0.1:{inner},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"CLIENT://127.0.0.1:{client},INNER://127.0.0.1:{inner}",
            "listener.security.protocol.map": f"CLIENT:{self.protocol},INNER:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "INNER",
            "controller.listener.names": "CONTROLLER",
        }
        if self.sasl:
            found |= {
                "sasl.enabled.mechanisms": MECHANISM,
                "listener.name.client.scram-sha-256.sasl.jaas.config": (
                    "org.apache.kafka.common.security.scram.ScramLoginModule required;"
                ),
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                # The broker itself comes without a name, by the inner listeners.
                "super.users": f"User:{ADMIN};User:ANONYMOUS",
            }
        if self.tls:
            found |= {
                "ssl.keystore.location": str(self.folder / "broker.p12"),
                "ssl.keystore.type": "PKCS12",
                "ssl.keystore.password": self._keystore_password,
            }
        return {**found, **self.properties}

    def _make_certificate(self) -> None:
        store = ["-keystore", str(self.folder / "broker.p12"), "-storetype", "PKCS12", "-alias", "broker"]
        secret = ["-storepass", self._keystore_password]
        self.run_tool(
            "keytool", "-genkeypair", *store, *secret, "-keyalg", "EC", "-groupname", "secp256r1", "-validity", "30",
            "-dname", "CN=penstock tests", "-ext", "SAN=IP:127.0.0.1,DNS:localhost",
        )  # fmt: skip
        self.run_tool("keytool", "-exportcert", "-rfc", *store, *secret, "-file", str(self.authority))


class KafkaCluster:
    """Nodes that are broker and controller each, for clients without login and TLS; `with KafkaCluster() as cluster: …`.

    What Kafka keeps for itself has as many copies as there are nodes, three at most, and needs two of them, as where it is real."""

    def __init__(self, nodes: int = 3, *, properties: Mapping[str, str] | None = None, heap_max_mb: int = 256) -> None:
        self.nodes: list[Kafka] = []
        with ExitStack() as failing:
            for _ in range(nodes):
                self.nodes.append(Kafka(heap_max_mb=heap_max_mb))
                failing.callback(self.nodes[-1].close)
            self._prepare(properties or {})
            failing.pop_all()

    def _prepare(self, properties: Mapping[str, str]) -> None:
        ports = free_ports(len(self.nodes) * Kafka.port_count)
        for node in self.nodes:
            node.ports, ports = ports[: Kafka.port_count], ports[Kafka.port_count :]
        voters = ",".join(f"{number}@127.0.0.1:{node.ports[-1]}" for number, node in enumerate(self.nodes, 1))
        copies = {f"{name}.replication.factor": str(min(3, len(self.nodes))) for name in INTERNAL}
        in_sync = {f"{name}.min.isr": str(min(2, len(self.nodes))) for name in INTERNAL if name != "offsets.topic"}
        for number, node in enumerate(self.nodes, 1):
            node.cluster_id = self.nodes[0].cluster_id
            own = {"node.id": str(number), "controller.quorum.voters": voters}
            node.properties = {**copies, **in_sync, **own, **properties}
            node.prepare()

    @property
    def bootstrap(self) -> str:
        """host:port of every node, with commas."""
        return ",".join(node.bootstrap for node in self.nodes)

    def client(self) -> dict[str, Any]:
        """librdkafka's settings to reach it."""
        return {**self.nodes[0].client(), "bootstrap.servers": self.bootstrap}

    def admin(self) -> AdminClient:
        """See `Kafka.admin`."""
        return AdminClient({**self.client(), "log_level": 0})

    def start(self, timeout_s: float = 90.0) -> None:
        """Start those nodes that do not run; they serve when this returns. Raises StartFailed, of a port that is taken, too."""
        deadline = time.monotonic() + timeout_s
        missing = [node for node in self.nodes if node.pid is None]
        for node in missing:  # None of them serves before most of them are there.
            node.launch()
        for node in missing:
            if not node.serves(deadline):
                raise StartFailed(f"{node.bootstrap} ended by itself:\n{node.log_tail()}")

    def leader(self, topic: str, partition: int = 0) -> Kafka:
        """The node that leads this partition now."""
        found = self.admin().list_topics(topic, timeout=30).topics[topic].partitions[partition]
        assert found.leader > 0, f"{topic}[{partition}] has no leader: {found.error}"
        return self.nodes[found.leader - 1]

    def coordinator(self, transactional_id: str) -> Kafka:
        """The node that keeps this producer's transactions now."""
        topic, code = "__transaction_state", 0
        for character in transactional_id:  # Java's hash of a string
            code = (31 * code + ord(character)) & 0xFFFFFFFF
        count = len(self.admin().list_topics(topic, timeout=30).topics[topic].partitions)
        return self.leader(topic, (code & 0x7FFFFFFF) % count)

    def close(self) -> None:
        """End all nodes at once and remove their folders."""
        for node in self.nodes:
            node.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def allow(
    user: str, kind: ResourceType, name: str, *operations: AclOperation, prefix: bool = False
) -> list[AclBinding]:
    """Rights of `user` on the resource of this name, or on all whose name begins so."""
    pattern = ResourcePatternType.PREFIXED if prefix else ResourcePatternType.LITERAL
    return [
        AclBinding(kind, name, pattern, f"User:{user}", "*", operation, AclPermissionType.ALLOW)
        for operation in operations
    ]
