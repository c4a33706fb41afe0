"""How an error, a finding and an answer look, on a terminal and as JSON. One shape everywhere; nothing here knows a command.

The invariant: every text that leaves through here has been redacted (rule R10).
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from cdc.errors import CdcError, entry
from cdc.secrets import redact
from cdc.source import Finding

_ASCII = str.maketrans(
    {"✗": "x", "✓": "+", "→": "->", "…": "...", "×": "x", "●": "*", "–": "-", "—": "-", "“": '"', "”": '"'}
)


_TAKES_FILE = re.compile(r"\bcdc (reload|drop|tail|status|check|run|capture)\b(?! \S+\.ya?ml\b| FILE\b)")
_file: Path | None = None


def speak_of(file: Path) -> None:
    """The pipeline file that this process works on: commands in remedies name it, so that they can be run as they stand."""
    global _file  # noqa: PLW0603 - one process, one pipeline file
    _file = file


def runnable(remedy: str) -> str:
    """`remedy` with the pipeline file in its commands, where it is not the one that they take by themselves."""
    if _file is None or str(_file) == "pipeline.yaml":
        return remedy
    named = shlex.quote(str(_file))
    return _TAKES_FILE.sub(lambda found: f"{found[0]} {named}", remedy)


def for_stream(text: str, stream: TextIO) -> str:
    """`text` in the characters that the stream can write."""
    encoding = getattr(stream, "encoding", None) or "ascii"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return text.translate(_ASCII).encode("ascii", "replace").decode("ascii")
    return text


def say(text: str, stream: TextIO | None = None) -> None:
    """Write a line for people, to stderr unless said otherwise."""
    stream = sys.stderr if stream is None else stream
    stream.write(for_stream(redact(text), stream) + "\n")
    stream.flush()


def error_text(error: CdcError) -> str:
    """The error with its place and remedy:

    ✗ CDC-PG-104 title
        detail
        place
        → remedy
    """
    return _block("✗", error.code, error.detail, error.where, error.remedy)


def finding_text(finding: Finding) -> str:
    """A finding in the shape of an error; a warning has a ! in front."""
    mark = "✗" if finding.severity == "error" else "!"
    return _block(mark, finding.code, finding.detail, finding.where, finding.remedy)


def _block(mark: str, code: str, detail: str, where: str | None, remedy: str) -> str:
    lines = [f"{mark} {code} {entry(code).title}"]
    lines += [f"    {line}" for line in detail.splitlines()]
    if where and not detail.startswith(where):
        lines.append(f"    {where}")
    first, *rest = runnable(remedy).splitlines() or [""]
    if first:
        lines += [f"    → {first}", *(f"      {line}" for line in rest)]
    return redact("\n".join(lines))


def answer(command: str, result: Any = None, error: CdcError | None = None, *, ok: bool | None = None) -> str:
    """The one JSON object of a `--json` answer: {command, ok, result, error}; a stable contract."""
    body: Mapping[str, Any] = {
        "command": command,
        "ok": error is None if ok is None else ok,
        "result": _hidden(result),
        "error": _hidden({**error.to_json(), "remedy": runnable(error.remedy)}) if error is not None else None,
    }
    return json.dumps(body, ensure_ascii=False, default=str)


def _hidden(value: Any) -> Any:
    """The JSON value with every text in it redacted, before escapes could hide a secret from view."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(str(key)): _hidden(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_hidden(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else redact(str(value))
