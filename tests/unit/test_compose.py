"""What is deployed is right as far as a parser can tell: compose, image, units, and the documented roles in the scripts."""

from __future__ import annotations

import json
import re
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

from cdc import cli, config
from cdc.postgres.grants import source_grants
from sinks.postgres.grants import sink_grants

ROOT = Path(__file__).parents[2]
COMPOSE = YAML(typ="safe").load(ROOT / "docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("capture", "sink")
PIPELINE = ROOT / "deploy/compose/pipeline.yaml"


def environment(service: str) -> dict[str, str]:
    """The service's variables, with compose's `${NAME:-default}` at its default."""
    return {
        name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for name, value in SERVICES[service]["environment"].items()
    }


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


def test_compose_has_two_databases_and_one_service_per_role() -> None:
    assert set(SERVICES) == {"source", "target", "capture", "sink"}
    assert SERVICES["capture"]["command"] == ["capture"]
    assert SERVICES["sink"]["command"] == ["sink", "warehouse"]
    assert "wal_level=logical" in SERVICES["source"]["command"]


@pytest.mark.parametrize("service", OURS)
def test_the_command_is_one_that_cdc_understands(service: str) -> None:
    verb, *arguments = SERVICES[service]["command"]
    command = typer.main.get_command(cli.app)
    with command.make_context("cdc", [verb, *arguments], resilient_parsing=True) as context:
        _, parsed, rest = command.resolve_command(context, [verb, *arguments])
        parsed.make_context(verb, rest, parent=context)


@pytest.mark.parametrize("service", OURS)
def test_the_pipeline_file_is_valid_with_the_services_environment(service: str) -> None:
    loaded = config.load(PIPELINE, environment(service))
    assert "warehouse" in loaded.sinks
    assert loaded.source.url.hosts == "source:5432"
    assert loaded.source.url.password == "try-cdc"
    assert loaded.sinks["warehouse"].url.hosts == "target:5432"
    assert (loaded.server.bind.host, loaded.server.bind.port) == ("0.0.0.0", 8484)
    (volume,) = [mount.split(":")[1] for mount in SERVICES[service]["volumes"] if mount.startswith("log:")]
    assert loaded.log.path.is_relative_to(volume)


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
    for mount in SERVICES[service]["volumes"]:
        name = mount.split(":")[0]
        assert (ROOT / name).is_file() if name.startswith("./") else name in COMPOSE["volumes"]


def test_published_ports_differ() -> None:
    ports = [port.split(":")[1] for service in SERVICES.values() for port in service["ports"]]
    assert len(ports) == len(set(ports))
    assert all(port.endswith(":8484") for service in OURS for port in SERVICES[service]["ports"])


@pytest.mark.parametrize("service", OURS)
def test_a_service_waits_for_its_database_and_holds_no_privileges(service: str) -> None:
    ours = SERVICES[service]
    database = {"capture": "source", "sink": "target"}[service]
    assert ours["depends_on"][database] == {"condition": "service_healthy"}
    assert "healthcheck" in SERVICES[database]
    assert ours["cap_drop"] == ["ALL"]
    assert ours["read_only"] is True
    assert "user" not in ours  # the image's, which is not root


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


@pytest.mark.parametrize(("unit", "verb"), [("cdc-capture@", "cdc capture"), ("cdc-sink@", 'cdc sink "$${1#*:}"')])
def test_units_run_one_role_as_somebody_without_privileges(unit: str, verb: str) -> None:
    parser = RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ROOT / f"deploy/systemd/{unit}.service")
    service = parser["Service"]
    assert verb in service["ExecStart"]
    assert service["User"] == "penstock"
    assert service["NoNewPrivileges"] == "yes"
    # What needs an operator (1) or another configuration (2) is not started again and again.
    assert service["RestartPreventExitStatus"] == "1 2"
