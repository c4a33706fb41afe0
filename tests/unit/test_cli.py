"""The command line: verbs and options, what an error looks like, exit codes, and how little `--help` imports."""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cdc import cli, presentation, secrets
from cdc.catalogue import CATALOGUE
from cdc.commands.confirm import confirmed
from cdc.errors import CdcError, Unavailable

VERBS = (
    "demo",
    "init",
    "check",
    "copy",
    "run",
    "capture",
    "sink",
    "registry",
    "status",
    "tail",
    "reload",
    "replay",
    "drop",
    "explain",
    "version",
)
HEAVY = (
    "psycopg",
    "psycopg2",
    "fastavro",
    "pydantic",
    "ruamel",
    "structlog",
    "starlette",
    "uvicorn",
    "prometheus_client",
)


def cdc(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cdc", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environ},
        check=False,
    )


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Runs a command line in this process; the verbs' modules are replaced by one that records its arguments, or raises."""
    recorded: dict[str, Any] = {}
    errors: list[BaseException] = []

    def run(**arguments: Any) -> int:
        recorded.update(arguments)
        if errors:
            raise errors[0]
        return 0

    monkeypatch.setattr(cli, "import_module", lambda name: recorded.update(verb=name) or types.SimpleNamespace(run=run))

    def line(*words: str, raises: BaseException | None = None) -> Any:
        recorded.clear()
        errors[:] = [raises] if raises else []
        result = CliRunner().invoke(cli.app, words)
        return types.SimpleNamespace(
            code=result.exit_code,
            out=result.stdout,
            err=result.stderr,
            verb=recorded.pop("verb", None),
            arguments=dict(recorded),
        )

    yield line
    logging.getLogger().handlers.clear()


def test_help_lists_every_verb_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['cdc', '--help']\nfrom cdc.cli import main\n"
        "try: main()\nexcept SystemExit: pass\nprint(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    for verb in VERBS:
        assert f"\n  {verb}" in done.stdout
    imported = {module.partition(".")[0] for module in done.stderr.split()}
    assert "cdc" in imported
    assert not imported & set(HEAVY)


def test_every_verb_has_a_module_whose_run_takes_what_the_command_line_gives(call: Callable[..., Any]) -> None:
    needed = {
        "init": ["postgresql://h/d"],
        "copy": ["A", "B"],
        "sink": ["warehouse"],
        "reload": ["--all"],
        "replay": ["warehouse"],
        "explain": ["X"],
    }
    lines = {verb: needed.get(verb, []) for verb in VERBS}
    for verb, words in lines.items():
        result = call(verb, *words)
        assert (result.code, result.verb) == (0, f"cdc.commands.{verb}"), result.err
        module = importlib.import_module(result.verb)
        accepted = module.run.__code__.co_varnames[
            : module.run.__code__.co_argcount + module.run.__code__.co_kwonlyargcount
        ]
        assert set(result.arguments) <= set(accepted), verb


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run"], {"file": Path("pipeline.yaml")}),
        (["run", "a.yaml", "--bind", "0.0.0.0:1"], {"file": Path("a.yaml"), "bind": "0.0.0.0:1"}),
        (["check", "-c", "a.yaml", "--grants"], {"file": Path("a.yaml"), "grants": True, "as_json": False}),
        (["sink", "warehouse", "a.yaml"], {"name": "warehouse", "file": Path("a.yaml")}),
        (["tail", "a.yaml", "public.x", "-n", "3", "-f"], {"file": Path("a.yaml"), "tables": ["public.x"], "count": 3, "follow": True}),
        (["tail", "public.x"], {"file": Path("pipeline.yaml"), "tables": ["public.x"]}),
        (["tail", "-c", "b.conf", "public.x"], {"file": Path("b.conf"), "tables": ["public.x"]}),
        (["reload", "public.x", "public.y", "--yes"], {"tables": ["public.x", "public.y"], "yes": True, "dry_run": False}),
        (["reload", "--new-epoch"], {"tables": [], "new_epoch": True}),
        (["drop", "--sink", "a", "--sink", "b", "--dry-run"], {"sinks": ["a", "b"], "source": False, "dry_run": True}),
        (["copy", "A", "B", "-t", "x.*", "--follow"], {"tables": ["x.*"], "follow": True, "folder": Path("penstock")}),
        (["init", "A", "--sink", "B", "-o", "x.yaml"], {"sinks": ["B"], "output": Path("x.yaml")}),
    ],
)  # fmt: skip
def test_arguments(call: Callable[..., Any], words: list[str], expected: dict[str, Any]) -> None:
    result = call(*words)
    assert result.code == 0, result.err
    assert expected.items() <= result.arguments.items()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["chek"], "Did you mean 'check'?"),
        (["reload"], "name tables, or say --all"),
        (["reload", "public.x", "--all"], "name tables, or say --all"),
        (["run", "--no-such"], "--no-such"),
        (["sink"], "NAME"),
    ],
)
def test_usage_errors_end_with_2(call: Callable[..., Any], words: list[str], part: str) -> None:
    result = call(*words)
    assert result.code == 2
    assert part in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [(CdcError("CDC-CFG-103", "x"), 2), (CdcError("CDC-RUN-101", "x"), 1), (Unavailable("CDC-CFG-103", "x"), 3)],
)
def test_an_error_ends_with_the_code_of_its_entry(call: Callable[..., Any], error: CdcError, code: int) -> None:
    result = call("run", raises=error)
    assert result.code == code
    assert result.err.startswith(f"✗ {error.code} {CATALOGUE[error.code].title}\n")
    assert "Traceback" not in result.err


def test_an_error_as_json_is_the_one_object_on_stdout(call: Callable[..., Any]) -> None:
    result = call("status", "--json", raises=CdcError("CDC-CFG-108", "no sink", where="a.yaml"))
    answer = json.loads(result.out)
    assert (answer["command"], answer["ok"], answer["result"]) == ("status", False, None)
    assert (answer["error"]["code"], answer["error"]["where"]) == ("CDC-CFG-108", "a.yaml")
    assert result.err == ""


def test_a_bug_is_one_line_without_its_words_and_has_a_traceback_with_debug(call: Callable[..., Any]) -> None:
    quiet = call("run", raises=ValueError("row-value-canary"))
    assert quiet.code == 1
    assert "CDC-RUN-101" in quiet.err
    assert "canary" not in quiet.err
    assert "Traceback" not in quiet.err
    loud = call("run", "--debug", raises=ValueError("x"))
    assert "Traceback" in loud.err


def test_an_interrupt_ends_with_130(call: Callable[..., Any]) -> None:
    result = call("run", raises=KeyboardInterrupt())
    assert (result.code, result.out) == (130, "")


def test_a_reader_that_has_enough_is_no_error() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m cdc explain cfg103 | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "141")


def test_a_configuration_error_end_to_end(tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text("pipeline: shop\nsource: postgresql://u:s3cr3t-canary@h:x/d\ntabels: []\n")
    done = cdc("run", str(tmp_path / "shop.yaml"), PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert done.stderr.startswith("x CDC-CFG-103 the configuration has errors\n")
    assert "shop.yaml:2:9: " in done.stderr
    assert 'shop.yaml:3:1: unknown key "tabels"; did you mean "tables"?' in done.stderr
    assert "-> mend the places" in done.stderr
    assert "canary" not in done.stderr + done.stdout
    answer = json.loads(cdc("status", str(tmp_path / "shop.yaml"), "--json").stdout)
    assert [problem["where"].split("yaml")[-1] for problem in answer["error"]["problems"]] == [":2:9", ":3:1"]


def test_explain() -> None:
    done = cdc("explain", "cfg-103")
    assert done.returncode == 0
    assert CATALOGUE["CDC-CFG-103"].explanation in done.stdout
    assert json.loads(cdc("explain", "CDC-CFG-103", "--json").stdout)["result"]["exit_code"] == 2
    unknown = cdc("explain", "CDC-CFG-1033")
    assert unknown.returncode == 2
    assert "did you mean" in unknown.stderr


def test_version() -> None:
    assert json.loads(cdc("version", "--json").stdout)["result"]["penstock"]
    assert cdc("version").stdout.startswith("penstock ")


def test_a_confirmation_is_never_assumed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert confirmed("Drop it?", yes=True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(CdcError) as caught:
        confirmed("Drop it?", yes=False)
    assert caught.value.code == "CDC-RUN-302"


@pytest.fixture(autouse=True)
def _own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_registered", set())
    monkeypatch.setattr(secrets, "_pattern", None)


def test_commands_in_remedies_name_the_pipeline_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presentation, "_file", None)
    remedy = "Run `cdc reload public.t`, then cdc drop shop.yaml. cdc sink main"
    assert presentation.runnable(remedy) == remedy
    presentation.speak_of(Path("pipeline.yaml"))
    assert presentation.runnable(remedy) == remedy
    presentation.speak_of(Path("/etc/my shop.yaml"))
    assert presentation.runnable(remedy) == (
        "Run `cdc reload '/etc/my shop.yaml' public.t`, then cdc drop shop.yaml. cdc sink main"
    )
