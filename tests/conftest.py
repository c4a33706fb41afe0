"""Fixtures that every test may use; see tests/servers for what stands behind those with a server.

A test with a server gets the marker `server`. `@pytest.mark.majors(16, 18)` runs a test on each of these versions of Postgres.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import hypothesis
import pytest

from tests import servers
from tests.servers import Database, Server

if TYPE_CHECKING:  # Only a test that asks for a broker imports its client.
    from tests.servers.connect import Connect
    from tests.servers.kafka import Kafka
    from tests.servers.registry import SchemaRegistry

T = TypeVar("T")

NEEDS_SERVER = {"postgres", "private_postgres", "kafka", "private_kafka", "registry", "private_registry", "connect"}

# Random in CI too, which hypothesis would not be by itself; a failure prints what repeats it. No deadline: the machine is shared.
hypothesis.settings.register_profile("penstock", deadline=None, derandomize=False, database=None, print_blob=True)
hypothesis.settings.register_profile("full", hypothesis.settings.get_profile("penstock"), max_examples=2000)
hypothesis.settings.load_profile("full" if os.environ.get("PENSTOCK_FULL") else "penstock")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("majors")
    if marker and "postgres" in metafunc.fixturenames:
        metafunc.parametrize(
            "postgres", marker.args or servers.MAJORS, indirect=True, ids=lambda major: f"pg{major}", scope="session"
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if NEEDS_SERVER & set(getattr(item, "fixturenames", ())):
            item.add_marker("server")


def pytest_sessionfinish() -> None:
    servers.stop_all()


def provided(start: Callable[[], T], *, required: bool = True) -> T:
    """What `start` gives; where it cannot, the test is skipped with the reason, and fails in CI, where all that is `required` must be
    there."""
    try:
        return start()
    except servers.Missing as missing:
        if required and os.environ.get("CI"):
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Server:
    """The session's Postgres, version 16 or what the marker `majors` says."""
    major = getattr(request, "param", servers.DEFAULT)
    # Debian's own, with its extensions, is not among what `make test` installs.
    return provided(lambda: servers.server(major), required=major != 15)


@pytest.fixture
def make_database(postgres: Server, request: pytest.FixtureRequest) -> Iterator[Callable[[], Database]]:
    """Makes as many fresh databases on `postgres` as a test wants; all of them are dropped after it."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(postgres.database(request.node.name))


@pytest.fixture
def database(make_database: Callable[[], Database]) -> Database:
    """A fresh database: the source."""
    return make_database()


@pytest.fixture
def target(make_database: Callable[[], Database]) -> Database:
    """A second fresh database: the target."""
    return make_database()


@pytest.fixture
def cdc_role(database: Database) -> str:
    """The URL by which capture reads `database`: the documented role with exactly the documented grants."""
    return database.grant_source()


@pytest.fixture
def sink_role(target: Database) -> str:
    """The URL by which a sink writes to `target`: the documented role with exactly the documented grants."""
    return target.grant_sink()


@pytest.fixture
def private_postgres() -> Iterator[Callable[..., Server]]:
    """Starts servers that the test has for itself, to crash, restart and configure: `private_postgres(18, {"wal_level": "replica"})`.

    Their `process` has `kill9`, `start`, `stop`, `restart` and `settings`."""
    with ExitStack() as stack:

        def start(major: int = servers.DEFAULT, settings: Mapping[str, str] | None = None) -> Server:
            server = provided(lambda: servers.private(major, settings))
            assert server.process is not None
            stack.callback(server.process.close)
            return server

        yield start


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    """The session's broker, for clients without login and TLS. A test makes topics of its own on it, and drops them."""
    with ExitStack() as stack:
        yield provided(lambda: stack.enter_context(_kafka()))


@pytest.fixture
def private_kafka() -> Iterator[Callable[..., Kafka]]:
    """Starts brokers that the test has for itself, to kill, suspend and configure: `private_kafka(sasl=True, properties={…})`."""
    with ExitStack() as stack:
        yield lambda **options: provided(lambda: stack.enter_context(_kafka(**options)))


@pytest.fixture(scope="session")
def registry() -> Iterator[SchemaRegistry]:
    """The session's schema registry. A test uses subjects of its own."""
    with ExitStack() as stack:
        yield provided(lambda: stack.enter_context(_registry()))


@pytest.fixture
def private_registry() -> Iterator[Callable[..., SchemaRegistry]]:
    """Starts schema registries that the test has for itself, to stop and freeze; a stopped one has lost its schemas."""
    with ExitStack() as stack:
        yield lambda: provided(lambda: stack.enter_context(_registry()))


@pytest.fixture(scope="session")
def connect(kafka: Kafka) -> Iterator[Connect]:
    """The session's Connect worker on the shared broker, with Debezium. A test deletes the connectors that it puts there."""
    with ExitStack() as stack:
        yield provided(lambda: stack.enter_context(_connect(kafka)))


def _kafka(**options: Any) -> Kafka:
    from tests.servers.kafka import Kafka

    return Kafka(**options)


def _registry() -> SchemaRegistry:
    from tests.servers.registry import SchemaRegistry

    return SchemaRegistry()


def _connect(kafka: Kafka) -> Connect:
    from tests.servers.connect import Connect

    return Connect(kafka)
