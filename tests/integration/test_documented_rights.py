"""The rights in docs/how-to/kafka.md are enough for capture and sink, and those that it says are needed are."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from cdc.errors import CdcError
from cdc.log import Begun, Draft, Mark
from cdc.log.kafka.client import KafkaSettings
from cdc.log.kafka.inventory import remove_topics
from cdc.log.kafka.log import KafkaLog
from cdc.log.kafka.topics import check_cluster
from cdc.log.kafka.writer import Identity
from cdc.position import Position
from cdc.records import Records
from cdc.table import TableId
from tests.servers.kafka import Kafka

PAGE = Path(__file__).parents[2] / "docs/how-to/kafka.md"
PIPELINE, CAPTURE, SINK = "shop", "cdc", "etl"
TABLE = TableId("public", "orders")
RESOURCES = {
    "--topic": ResourceType.TOPIC,
    "--group": ResourceType.GROUP,
    "--transactional-id": ResourceType.TRANSACTIONAL_ID,
    "--cluster": ResourceType.BROKER,
}
OPERATIONS = {
    "Create": AclOperation.CREATE,
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Delete": AclOperation.DELETE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
}


def documented() -> list[AclBinding]:
    """What the page's commands grant."""
    found = []
    for line in re.findall(r"^acl (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        words = shlex.split(line)
        ((option, kind),) = [(option, kind) for option, kind in RESOURCES.items() if option in words]
        name = "kafka-cluster" if option == "--cluster" else words[words.index(option) + 1]
        pattern = ResourcePatternType.PREFIXED if "prefixed" in words else ResourcePatternType.LITERAL
        user = words[words.index("--allow-principal") + 1]
        found += [
            AclBinding(kind, name, pattern, user, "*", OPERATIONS[operation], AclPermissionType.ALLOW)
            for before, operation in pairwise(words)
            if before == "--operation"
        ]
    return found


def is_deleting(right: AclBinding) -> bool:
    return bool(right.operation == AclOperation.DELETE)


def without(right: AclBinding, kind: ResourceType, operation: AclOperation) -> bool:
    return bool(right.restype != kind or right.operation != operation)


class Users:
    """A broker with the two users of the page, and what they may do."""

    def __init__(self, kafka: Kafka) -> None:
        self.kafka = kafka
        self._passwords = {name: kafka.user(name) for name in (CAPTURE, SINK)}

    def may(self, rights: list[AclBinding]) -> None:
        """These rights and no others."""
        admin = self.kafka.admin()
        everything = AclBindingFilter(
            ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
        )
        for done in admin.delete_acls([everything]).values():
            done.result(30)
        for granted in admin.create_acls(rights).values():
            granted.result(30)

    def settings(self, user: str, retention: str = "forever") -> KafkaSettings:
        options = self.kafka.client(user, self._passwords[user])
        bootstrap = options.pop("bootstrap.servers")
        return KafkaSettings(bootstrap, options, retention=retention, transaction_timeout_s=6.0)


@pytest.fixture
def users(private_kafka: Callable[..., Kafka]) -> Users:
    return Users(private_kafka(sasl=True))


def capture(settings: KafkaSettings) -> int:
    """What a capture does with a log, once; a schema's id."""
    check_cluster(settings)
    with KafkaLog(settings, PIPELINE, create=True, identity=Identity()) as log:
        last = log.open_writer().last
        log.expect(["warehouse"])
        sequence = last.position.sequence if last else 0
        schema_id = log.register("shop.public.orders-value", {"type": "record", "name": "r", "fields": []})
        log.append({}, Draft(Position(0, sequence, {}, {}), cut=True))
        row = Records([b"\0\0\0\0\1k"], [b"\0\0\0\0\2\2c\0\0"])
        begun = () if last else (Begun(TABLE, 1, keyless=False),)
        log.append({TABLE: row}, Draft(Position(0, sequence + 1, {}, {}), cut=True, begun=begun))
        log.signals(0)
        log.retain()
        log.status()
        return schema_id


def sink(settings: KafkaSettings, schema_id: int, after: Mark | None = None) -> Mark:
    """What a sink does with a log, once; how far it came."""
    with KafkaLog(settings, PIPELINE, create=False) as log:
        log.schema(schema_id)
        with closing(log.read(after or Mark(-1, log.id), lambda _: True, 0.2)) as reading:
            found = [item[0] for item in iter(lambda: next(reading), None)]
            assert sum(sum(checkpoint.rows.values()) for checkpoint in found) > 0
            log.report("warehouse", found[-1].mark)
        log.signal("reread", {})
        log.status()
        return found[-1].mark


def test_the_documented_rights_are_enough(users: Users) -> None:
    rights = documented()
    assert {right.principal for right in rights} == {f"User:{CAPTURE}", f"User:{SINK}"}
    users.may([right for right in rights if not is_deleting(right)])
    schema_id = capture(users.settings(CAPTURE))
    applied = sink(users.settings(SINK), schema_id)
    with KafkaLog(users.settings(CAPTURE), PIPELINE, create=False) as log:
        assert [signal.kind for signal in log.signals(0)] == ["reread"]
    with pytest.raises(CdcError) as refused:
        remove_topics(users.settings(CAPTURE), PIPELINE)
    assert refused.value.code == "CDC-KAFKA-103"

    users.may(rights)
    capture(users.settings(CAPTURE, "applied"))
    sink(users.settings(SINK), schema_id, applied)
    capture(users.settings(CAPTURE, "applied"))
    with pytest.raises(CdcError) as gone:
        sink(users.settings(SINK), schema_id)
    assert gone.value.code == "CDC-LOG-108"  # what the sink had applied was deleted
    with KafkaLog(users.settings(CAPTURE), PIPELINE, create=False) as log:
        log.forget("warehouse")
    assert len(remove_topics(users.settings(CAPTURE), PIPELINE)) == 4


def test_what_is_missing_is_refused_by_name_or_said(users: Users) -> None:
    rights = [right for right in documented() if not is_deleting(right)]
    for kind, operation in (
        (ResourceType.TOPIC, AclOperation.CREATE),
        (ResourceType.TOPIC, AclOperation.WRITE),
        (ResourceType.TRANSACTIONAL_ID, AclOperation.WRITE),
        (ResourceType.TOPIC, AclOperation.READ),
        (ResourceType.GROUP, AclOperation.READ),
    ):
        users.may([right for right in rights if without(right, kind, operation)])
        with pytest.raises(CdcError) as refused:
            capture(users.settings(CAPTURE))
        assert refused.value.code == "CDC-KAFKA-103", (kind, operation)

    users.may([right for right in rights if right.operation != AclOperation.DESCRIBE_CONFIGS])
    assert [finding.code for finding in check_cluster(users.settings(CAPTURE))] == ["CDC-KAFKA-103"]
    capture(users.settings(CAPTURE))
