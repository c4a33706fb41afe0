"""`cdc check`: everything that stands against running the pipeline, each finding with its remedy. Reads only.

Exit code 0 when nothing does, 4 when some finding is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from cdc.commands import logs, wiring
from cdc.config import Config, load
from cdc.errors import EXIT_FINDINGS, EXIT_OK, CdcError
from cdc.presentation import answer, finding_text, say
from cdc.source import Finding
from cdc.table import TableSchema


def run(*, as_json: bool, file: Path, grants: bool) -> int:
    """Raises what is wrong with the file itself; all else is a finding."""
    config = load(file)
    if grants:
        print("\n".join(wiring.grants(config)))
        return EXIT_OK
    found = findings(config)
    failed = any(finding.severity == "error" for finding in found)
    if as_json:
        print(answer("check", {"findings": [finding._asdict() for finding in found]}, ok=not failed))
        return EXIT_FINDINGS if failed else EXIT_OK
    for finding in found:
        say(finding_text(finding), sys.stdout)
    errors = sum(finding.severity == "error" for finding in found)
    mark, counts = "✗" if failed else "✓", {"error": errors, "warning": len(found) - errors}
    counted = ", ".join(f"{count} {what}{'' if count == 1 else 's'}" for what, count in counts.items())
    say(f"{mark} {config.pipeline}: {counted}", sys.stdout)
    return EXIT_FINDINGS if failed else EXIT_OK


def findings(config: Config) -> list[Finding]:
    """All of them: the file's, the source's, the log's, the registry's, each target's. Errors first."""
    found = [*config.findings, *_asked("source", lambda: _source(config)), *_asked("log", lambda: logs.check(config))]
    if config.registry:
        found += _asked("registry", lambda: _registry(config))
    try:
        schemas = wiring.schemas(config)
    except CdcError:  # the source's own findings say why; the targets are looked at without its tables
        schemas = []
    for name in config.sinks:
        found += _asked(f"sink {name}", partial(_sink, config, name, schemas))
    return sorted(found, key=lambda finding: finding.severity != "error")


def _asked(part: str, ask: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of one part, which may be that it cannot be reached. Each says which part it is about."""
    try:
        found = list(ask())
    except CdcError as error:
        found = [Finding("error", error.code, error.detail, error.where or "", error.remedy)]
    vague = ("", part, "target")
    return [item._replace(where=part if item.where in vague else f"{part}: {item.where}") for item in found]


def _source(config: Config) -> list[Finding]:
    with closing(wiring.source(config)) as source:
        return source.check()


def _registry(config: Config) -> list[Finding]:
    if registry := logs.registry(config):
        with closing(registry):
            registry.check()
    return []


def _sink(config: Config, name: str, schemas: Sequence[TableSchema]) -> list[Finding]:
    with closing(wiring.sink(config, name)) as sink:
        return sink.check(schemas)
