"""What is deployed is right as far as a parser can tell: compose, image, units, and the documented roles in the scripts."""

from __future__ import annotations

import json
import re
import shlex
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

from cdc import cli, config
from cdc.commands import logs, wiring
from cdc.postgres.grants import source_grants
from sinks.postgres.grants import sink_grants

ROOT = Path(__file__).parents[2]
COMPOSE = YAML(typ="safe").load(ROOT / "docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SINKS = ("warehouse", "reporting")
OURS = ("capture", *SINKS, "registry")
KAFKA = SERVICES["kafka"]["environment"]
PIPELINE = ROOT / "deploy/compose/pipeline.yaml"


def environment(service: str, **chosen: str) -> dict[str, str]:
    """The service's variables, with compose's `${NAME:-default}` as chosen, or at its default."""
    return {
        name: re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: chosen.get(found[1], found[2]), value)
        for name, value in SERVICES[service]["environment"].items()
    }


def parsed(service: str) -> tuple[str, dict[str, Any]]:
    """The verb of a service of ours and what `cdc` makes of its arguments."""
    verb, *arguments = SERVICES[service]["command"]
    command = typer.main.get_command(cli.app)
    with command.make_context("cdc", [verb, *arguments], resilient_parsing=True) as context:
        _, found, rest = command.resolve_command(context, [verb, *arguments])  # type: ignore[attr-defined]
        return verb, found.make_context(verb, rest, parent=context).params


def listeners(variable: str) -> dict[str, str]:
    """Listener → address, of a broker's setting."""
    return dict(part.split("://") for part in KAFKA[variable].split(","))


def dockerfile() -> list[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    return [
        (line.split()[0], line.split(maxsplit=1)[1].strip())
        for line in text.splitlines()
        if line and not line.startswith("#")
    ]


def final_stage() -> dict[str, str]:
    """The last value of each instruction, in the last stage."""
    instructions = dockerfile()
    begin = max(index for index, (name, _) in enumerate(instructions) if name == "FROM")
    return dict(instructions[begin:])


def test_compose_has_kafka_a_registry_two_databases_and_one_service_per_role() -> None:
    assert set(SERVICES) == {"source", "target", "kafka", "apicurio", *OURS}
    assert [name for name in SERVICES if "profiles" in SERVICES[name]] == ["apicurio"]
    assert parsed("capture")[0] == "capture"
    assert parsed("registry")[0] == "registry"
    assert {(parsed(sink)[0], parsed(sink)[1]["name"]) for sink in SINKS} == {("sink", sink) for sink in SINKS}
    assert "wal_level=logical" in SERVICES["source"]["command"]


@pytest.mark.parametrize("service", OURS)
def test_the_pipeline_file_is_valid_with_the_services_environment(service: str) -> None:
    loaded = config.load(PIPELINE, environment(service))
    assert set(loaded.sinks) == set(SINKS)
    assert loaded.source.url.hosts == "source:5432"
    assert loaded.source.url.password == "try-cdc"
    assert {sink.url.hosts for sink in loaded.sinks.values()} == {"target:5432"}
    assert loaded.log.url == listeners("KAFKA_ADVERTISED_LISTENERS")["SERVICES"]
    assert loaded.registry is None
    logs.settings(loaded)  # takes all options


@pytest.mark.parametrize("service", OURS)
def test_the_log_may_be_the_embedded_one(service: str) -> None:
    (said,) = re.findall(r"LOG=(\S+) docker compose", (ROOT / "docker-compose.yml").read_text())
    loaded = config.load(PIPELINE, environment(service, LOG=said))
    (volume,) = [mount.split(":")[1] for mount in SERVICES[service]["volumes"] if mount.startswith("log:")]
    assert not loaded.log.url
    assert loaded.log.path.is_relative_to(volume)


def test_the_registry_may_be_an_external_one(tmp_path: Path) -> None:
    changed = tmp_path / "pipeline.yaml"
    changed.write_text(PIPELINE.read_text().replace("# registry:", "registry:"))
    loaded = config.load(changed, environment("capture"))
    assert loaded.registry is not None
    assert loaded.registry.url == "http://apicurio:8080/apis/ccompat/v7"
    with logs.registry(loaded) as registry:  # type: ignore[union-attr]
        assert registry
    assert SERVICES["apicurio"]["environment"]["KAFKA_BOOTSTRAP_SERVERS"] == loaded.log.url
    assert SERVICES["apicurio"]["ports"][0].endswith(":8080")
    pom = (ROOT / "tests/servers/poms/registry.xml").read_text()
    assert f">{SERVICES['apicurio']['image'].rpartition(':')[2]}<" in pom  # the version that the tests run on


def test_kafka_is_one_broker_that_services_and_the_host_reach() -> None:
    assert KAFKA["KAFKA_PROCESS_ROLES"] == "broker,controller"
    bound, advertised = listeners("KAFKA_LISTENERS"), listeners("KAFKA_ADVERTISED_LISTENERS")
    assert advertised.keys() == bound.keys() - {"CONTROLLER"}
    assert advertised["SERVICES"].endswith(bound["SERVICES"])
    (published,) = SERVICES["kafka"]["ports"]
    assert published == f"{advertised['HOST']}{bound['HOST']}"
    protocols = dict(pair.split(":") for pair in KAFKA["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(","))
    assert protocols.keys() == bound.keys()
    assert KAFKA["KAFKA_CONTROLLER_QUORUM_VOTERS"] == f"{KAFKA['KAFKA_NODE_ID']}@kafka{bound['CONTROLLER']}"
    assert KAFKA["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    assert SERVICES["kafka"]["volumes"] == [f"kafka:{KAFKA['KAFKA_LOG_DIRS']}"]
    assert all(KAFKA[name] == 1 for name in KAFKA if name.endswith(("REPLICATION_FACTOR", "MIN_ISR")))
    pom = (ROOT / "tests/servers/poms/kafka.xml").read_text()
    assert f"<kafka>{SERVICES['kafka']['image'].rpartition(':')[2]}</kafka>" in pom  # the version that the tests run on


@pytest.mark.parametrize("service", OURS)
def test_the_pipeline_file_is_mounted_where_the_service_looks(service: str) -> None:
    mounts = {mount.split(":")[0]: mount.split(":")[1] for mount in SERVICES[service]["volumes"]}
    assert mounts["./deploy/compose/pipeline.yaml"] == f"{final_stage()['WORKDIR']}/{config.DEFAULT_FILE}"
    assert f"{mounts['log']}" == final_stage()["VOLUME"]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_published_on_loopback_only_and_its_files_exist(service: str) -> None:
    published = SERVICES[service]["ports"]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    for mount in SERVICES[service].get("volumes", ()):
        name = mount.split(":")[0]
        assert (ROOT / name).is_file() if name.startswith("./") else name in COMPOSE["volumes"]


def test_published_ports_differ() -> None:
    ports = [port.split(":")[1] for service in SERVICES.values() for port in service["ports"]]
    assert len(ports) == len(set(ports))


@pytest.mark.parametrize("service", OURS)
def test_a_service_listens_where_it_is_published_and_where_its_health_is_asked(service: str) -> None:
    address = wiring.listen(parsed(service)[1]["bind"])
    assert address.host == "0.0.0.0"
    assert all(port.endswith(f":{address.port}") for port in SERVICES[service]["ports"])
    assert f"127.0.0.1:{address.port}/healthz" in final_stage()["HEALTHCHECK"]


@pytest.mark.parametrize("service", [name for name in SERVICES if name not in OURS])
def test_others_servers_have_a_health_check_and_a_version(service: str) -> None:
    test = SERVICES[service]["healthcheck"]["test"]
    assert test[0] in ("CMD", "CMD-SHELL")
    assert len(test) > 1
    assert re.search(r":\d", SERVICES[service]["image"])


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_waits_only_for_what_is_there_and_can_become_so(service: str) -> None:
    for name, wait in SERVICES[service].get("depends_on", {}).items():
        assert "profiles" not in SERVICES[name]
        assert wait["condition"] in ("service_healthy", "service_started")
        assert wait["condition"] == "service_started" or "healthcheck" in SERVICES[name]


@pytest.mark.parametrize("service", OURS)
def test_a_service_waits_for_its_servers_and_holds_no_privileges(service: str) -> None:
    ours = SERVICES[service]
    for server in ("kafka", *{"capture": ["source"], "registry": []}.get(service, ["target"])):
        assert ours["depends_on"][server] == {"condition": "service_healthy"}
    assert ours["cap_drop"] == ["ALL"]
    assert ours["security_opt"] == ["no-new-privileges:true"]
    assert ours["read_only"] is True
    assert "user" not in ours  # the image's, which is not root


def test_the_commands_in_the_comments_name_services() -> None:
    for line in re.findall(r"^#   (.*docker compose .*)$", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE):
        words = [word for word in shlex.split(line) if word[:1] != "-" and "=" not in word][2:]
        named = {"up": words[words.index("up") + 1 :] if "up" in words else [], "exec": words[1:2]}.get(words[0], [])
        assert set(named) <= SERVICES.keys(), line


def test_the_image_runs_cdc_as_somebody_without_privileges() -> None:
    image = final_stage()
    assert json.loads(image["ENTRYPOINT"]) == ["cdc"]
    user, _, group = image["USER"].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert "/healthz" in image["HEALTHCHECK"]
    assert f":{image['EXPOSE']}/" in image["HEALTHCHECK"]
    assert [value for name, value in dockerfile() if name == "FROM"] == [
        "python:3.11-slim AS build",
        "python:3.11-slim",
    ]


def test_the_image_is_built_from_files_that_the_context_has() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        part for name, value in dockerfile() if name == "COPY" and "--from" not in value for part in value.split()[:-1]
    }
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)


def test_the_scripts_make_the_documented_roles_with_exactly_the_documented_grants() -> None:
    source = (ROOT / "deploy/compose/source.sql").read_text().replace(":'cdc_password'", "'?'")
    for statement in source_grants("cdc", "?", "shop", ["public"], ["app"]):
        assert f"{statement};" in source
    assert source.count("GRANT ") == sum(
        statement.count("GRANT ") for statement in source_grants("cdc", "?", "shop", ["public"], ["app"])
    )
    target = (ROOT / "deploy/compose/target.sql").read_text().replace(":'etl_password'", "'?'")
    statements = [line[:-1] for line in target.splitlines() if line.endswith(";")]
    assert statements == sink_grants("etl", "?", "warehouse", [])


@pytest.mark.parametrize(
    ("unit", "verb"),
    [
        ("cdc-capture@", "cdc capture"),
        ("cdc-sink@", 'cdc sink "$${1#*:}"'),
        ("cdc-registry@", "cdc registry"),
    ],
)
def test_units_run_one_role_as_somebody_without_privileges(unit: str, verb: str) -> None:
    parser = RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ROOT / f"deploy/systemd/{unit}.service")
    service = parser["Service"]
    assert verb in service["ExecStart"]
    assert verb.split()[1] in typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert service["EnvironmentFile"].startswith("-/etc/penstock/%i")
    assert service["User"] == "penstock"
    assert service["NoNewPrivileges"] == "yes"
    # What needs an operator (1) or another configuration (2) is not started again and again.
    assert service["RestartPreventExitStatus"] == "1 2"


def test_units_differ_in_what_they_run_alone() -> None:
    own = {"ExecStart", "EnvironmentFile", "WorkingDirectory"}
    found = []
    for unit in sorted((ROOT / "deploy/systemd").glob("*.service")):
        parser = RawConfigParser(strict=True)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read(unit)
        found.append({name: value for name, value in parser["Service"].items() if name not in own})
    assert len(found) == 3
    assert all(settings == found[0] for settings in found)


def test_the_image_has_what_an_external_registry_needs() -> None:
    assert "[registry]" in final_stage()["RUN"]
