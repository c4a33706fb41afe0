"""The shape of the code: small modules and functions, and imports in one direction."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    path.relative_to(ROOT) for folder in ("cdc", "sinks", "schemas") for path in (ROOT / folder).rglob("*.py")
)
MODULE_LINES, FUNCTION_LINES = 400, 60

# What sinks may know of cdc: the contract, and the plumbing of every process.
CONTRACT = {
    "avro", "catalogue", "errors", "failpoints", "journal", "log", "metrics", "position",
    "records", "secrets", "selection", "source", "table",
}  # fmt: skip
COMPOSITION = {"commands", "cli", "__main__", "demo"}


def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Dotted names of what a module imports, lazily or not."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_sizes(path: Path) -> None:
    if path.parts[:2] != ("cdc", "catalogue"):
        assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= MODULE_LINES
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno:
            assert node.end_lineno - node.lineno < FUNCTION_LINES, f"{node.name} is too long"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_says_what_it_does(path: Path) -> None:
    if (ROOT / path).read_text(encoding="utf-8").strip():
        assert ast.get_docstring(tree(path))


@pytest.mark.parametrize("path", [path for path in MODULES if path.parts[0] == "sinks"], ids=str)
def test_sinks_import_the_contract_only(path: Path) -> None:
    known = {name.split(".")[1] for name in imports(path) if name.startswith("cdc.")}
    assert known <= CONTRACT


@pytest.mark.parametrize("path", [path for path in MODULES if path.parts[0] == "cdc"], ids=str)
def test_only_the_composition_knows_sinks(path: Path) -> None:
    if Path(path.parts[1]).stem not in COMPOSITION:
        assert not [name for name in imports(path) if name.partition(".")[0] == "sinks"]
        assert not [name for name in imports(path) if name.startswith(("cdc.commands", "cdc.cli"))]


@pytest.mark.parametrize("path", [path for path in MODULES if path.parts[:2] != ("cdc", "commands")], ids=str)
def test_only_commands_print(path: Path) -> None:
    prints = [
        node.lineno
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert prints == []


def test_one_engine_does_not_know_another() -> None:
    engines = ("postgres",)
    for path in MODULES:
        inside = next((engine for engine in engines if path.parts[1:2] == (engine,)), None)
        if path.parts[0] == "cdc" and not inside and Path(path.parts[1]).stem not in COMPOSITION:
            reached = {name.split(".")[1] for name in imports(path) if name.startswith("cdc.")}
            assert not reached & set(engines), f"{path} knows an engine"


def test_the_architecture_names_every_module_at_the_top() -> None:
    page = ROOT / "docs/ARCHITECTURE.md"
    if not page.exists():
        pytest.skip("there is no docs/ARCHITECTURE.md yet")
    text = page.read_text(encoding="utf-8")
    tops = {path.parts[1].removesuffix(".py") for path in MODULES if len(path.parts) > 1} - {"__init__", "__main__"}
    assert sorted(name for name in tops if name not in text) == []
