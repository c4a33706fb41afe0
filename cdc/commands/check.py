"""`cdc check`: everything that stands against running the pipeline, each finding with its remedy. Reads only.

Exit code 0 when nothing does, 4 when some finding is an error.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from cdc.commands import wiring
from cdc.config import Config, load
from cdc.errors import EXIT_FINDINGS, EXIT_OK, CdcError
from cdc.log.folder import Folder
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
    """All of them: the file's, the source's, the log's, each target's. Errors first."""
    found = [*config.findings, *_asked("source", lambda: _source(config)), *_asked("log", lambda: _log(config))]
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


def _sink(config: Config, name: str, schemas: Sequence[TableSchema]) -> list[Finding]:
    with closing(wiring.sink(config, name)) as sink:
        return sink.check(schemas)


def _log(config: Config) -> list[Finding]:
    path = wiring.log_path(config)
    if Folder(path).exists():
        with closing(wiring.open_log(config)) as log:
            log.last_checkpoint()
    above = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        raise CdcError("CDC-LOG-305", f"{above} is not writable for this user", where=str(path))
    free = shutil.disk_usage(above).free
    if free < config.log.free_bytes_min:
        detail = f"{free} bytes are free, {config.log.free_bytes_min} must stay so"
        raise CdcError("CDC-LOG-301", detail, where=str(path))
    return []
