"""YAML with positions: reads a pipeline file into plain data and remembers where each key and value stands.

The invariant: every problem of the file is found in one go, each with file:line:col. Variables are resolved in parsed values
only, never in the file's text, so that no value can change the file's structure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from cdc.errors import CdcError
from cdc.secrets import is_exposed, redact, register
from cdc.source import Finding

YamlPath = tuple[str | int, ...]
"""Keys and indexes from the top of the document."""

_VARIABLE = re.compile(r"\$(?P<escape>\$)?\{(?P<body>[^{}]*)\}")
_ENVIRONMENT = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?\Z", re.DOTALL)
_BARE_EXCLAMATION = re.compile(r"[\[,:-]\s*![\w*]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+]*://")


class Place(NamedTuple):
    """A place in the file, counted from 1."""

    line: int
    column: int


class Problem(NamedTuple):
    """One thing wrong with the configuration."""

    where: str
    message: str


class ConfigErrors(CdcError):
    """All that is wrong with a configuration, in the order of the file."""

    def __init__(self, name: str, problems: list[Problem]) -> None:
        self.problems = tuple(Problem(problem.where, redact(problem.message)) for problem in problems)
        super().__init__(
            "CDC-CFG-103", "\n".join(f"{where}: {message}" for where, message in self.problems), where=name
        )

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "problems": [problem._asdict() for problem in self.problems]}


@dataclass
class Document:
    """Parsed data, the places of its keys and values, and the problems and findings so far."""

    name: str
    folder: Path
    text: str = ""
    data: Any = None
    keys: dict[YamlPath, Place] = field(default_factory=dict)
    values: dict[YamlPath, Place] = field(default_factory=dict)
    problems: list[tuple[Place | None, str]] = field(default_factory=list)
    spoiled: set[YamlPath] = field(
        default_factory=set
    )  # values with a problem already: what else is wrong with them follows
    findings: list[Finding] = field(default_factory=list)

    def where(self, place: Place | None) -> str:
        return f"{self.name}:{place.line}:{place.column}" if place else self.name

    def place(self, path: YamlPath, *, of_key: bool = False) -> Place | None:
        """The place of a key or value, or of the nearest thing around it that the file holds."""
        while path:
            places = self.keys if of_key else self.values
            if path in places:
                return places[path]
            path, of_key = path[:-1], False
        return self.values.get(())

    def raise_problems(self) -> None:
        if self.problems:
            ordered = sorted(dict.fromkeys(self.problems), key=lambda problem: problem[0] or (0, 0))
            raise ConfigErrors(self.name, [Problem(self.where(place), message) for place, message in ordered])


def read(path: Path, environ: Mapping[str, str]) -> Document:
    """The file's data, variables resolved. What is wrong with single values is in `problems`.

    Raises CDC-CFG-101 when the file cannot be read and CDC-CFG-102 when it is not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise CdcError("CDC-CFG-101", error.strerror or str(error), where=str(path)) from error
    except UnicodeDecodeError as error:
        raise CdcError("CDC-CFG-101", "the file is not UTF-8 text", where=str(path)) from error
    document = Document(str(path), path.parent, text)
    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
    except MarkedYAMLError as error:
        # The library's own text quotes the line, which can hold a password.
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else None
        detail = ", ".join(filter(None, (error.context, error.problem)))
        raise CdcError("CDC-CFG-102", detail + _hint(detail, text), where=document.where(place)) from None
    except YAMLError as error:
        raise CdcError("CDC-CFG-102", type(error).__name__, where=str(path)) from None
    if root is None:
        document.problems.append((Place(1, 1), "the file is empty"))
        document.spoiled.add(())
    else:
        document.data = _Walk(document, yaml, Variables(document, environ)).value(root, ())
    return document


def _hint(detail: str, text: str) -> str:
    """What is probably meant where the library's words are far from it: YAML reads * as an alias and ! as a tag."""
    if "alias" in detail:
        return "; a value that begins with * or & stands in quotes"
    return "; a value that begins with ! stands in quotes" if _BARE_EXCLAMATION.search(text) else ""


def given(data: Any, name: str, environ: Mapping[str, str]) -> Document:
    """A document that comes from a command: `name` stands for the file, and nothing has a place."""
    document = Document(name, Path())
    variables = Variables(document, environ)

    def resolved(value: Any, path: YamlPath) -> Any:
        if isinstance(value, dict):
            return {key: resolved(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [resolved(item, (*path, index)) for index, item in enumerate(value)]
        count = len(document.problems)
        text = variables.resolve(value) if isinstance(value, str) else value
        if len(document.problems) > count:
            document.spoiled.add(path)
        return text

    document.data = resolved(data, ())
    return document


class _Walk:
    """Turns YAML's nodes into plain data."""

    def __init__(self, document: Document, yaml: YAML, variables: Variables) -> None:
        self.document, self.yaml, self.variables = document, yaml, variables
        self.open: list[Node] = []

    def value(self, node: Node, path: YamlPath) -> Any:
        place = self.document.values[path] = _place(node)
        if isinstance(node, MappingNode | SequenceNode) and node in self.open:
            return self.spoil(path, place, "a value cannot contain itself")
        if not str(node.tag).startswith("tag:yaml.org,2002:"):
            return self.spoil(
                path, place, f'a value that begins with ! stands in quotes: "{str(node.tag).rstrip(",")}"'
            )
        if isinstance(node, ScalarNode):
            return self.scalar(node, path)
        self.open.append(node)
        try:
            if isinstance(node, MappingNode):
                return self.mapping(node, path)
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        finally:
            self.open.pop()

    def spoil(self, path: YamlPath, place: Place, message: str) -> None:
        self.document.problems.append((place, message))
        self.document.spoiled.add(path)

    def mapping(self, node: MappingNode, path: YamlPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = _place(key_node)
            if not isinstance(key_node, ScalarNode):
                self.document.problems.append((place, "a key must be text"))
                continue
            key = str(key_node.value)
            if key in data:
                first = self.document.keys[*path, key]
                self.document.problems.append(
                    (place, f'the key "{key}" stands here again (first in line {first.line})')
                )
                continue
            self.document.keys[*path, key] = place
            data[key] = self.value(value_node, (*path, key))
        return data

    def scalar(self, node: ScalarNode, path: YamlPath) -> Any:
        try:
            value = self.yaml.constructor.construct_object(node)
        except (YAMLError, ValueError, ArithmeticError):
            value = str(node.value)
        if not isinstance(value, str):
            return value if value is None or isinstance(value, bool | int | float) else str(node.value)
        place = _place(node)
        # Inside a scalar on one line a variable's column is known; elsewhere the scalar's own place has to do.
        plain = node.start_mark.line == node.end_mark.line and "\\" not in value
        opening = 1 if node.style in ("'", '"') else 0
        count = len(self.document.problems)
        value = self.variables.resolve(
            value, lambda at: Place(place.line, place.column + opening + at) if plain else place
        )
        if len(self.document.problems) > count:
            self.document.spoiled.add(path)
        return value


def _place(node: Node) -> Place:
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


class Variables:
    """Resolves `${NAME}`, `${NAME:-default}` and `${file:path}`; `$${` stands for `${`.

    Inside the credentials of a URL and in the value of one of its options a variable is inserted percent-encoded: it holds the
    password itself, whatever characters that has. The content of a file is a secret, and loses the line break at its end.
    """

    def __init__(self, document: Document, environ: Mapping[str, str]) -> None:
        self.document, self.environ = document, environ

    def resolve(self, text: str, place: Any = lambda _at: None) -> str:
        """`text` with its variables resolved. `place` gives the place of an offset in it, for the document's problems."""
        parts, end = [], 0
        shape = _VARIABLE.sub(lambda found: "x" * len(found[0]), text)
        for found in _VARIABLE.finditer(text):
            parts.append(text[end : found.start()])
            end = found.end()
            if found["escape"]:
                parts.append(found[0][1:])
                continue
            value = self.lookup(found["body"], place(found.start()))
            parts.append(quote(value, safe="") if _is_encoded(shape, found.start()) else value)
        rest = text[end:]
        if "${" in rest and "$${" not in rest:
            self.document.problems.append((place(end + rest.index("${")), "${ is not closed by }"))
        return "".join([*parts, rest])

    def lookup(self, body: str, place: Place | None) -> str:
        if body.startswith("file:"):
            return self.content(body.removeprefix("file:"), place)
        found = _ENVIRONMENT.match(body)
        if found is None:
            self.document.problems.append(
                (place, f"${{{body}}} is not ${{NAME}}, ${{NAME:-default}} or ${{file:path}}")
            )
            return ""
        value = self.environ.get(found["name"])
        if found["default"] is not None:
            return value or str(found["default"])
        if value is None:
            self.document.problems.append((place, f"the environment variable {found['name']} is not set"))
            return ""
        return value

    def content(self, name: str, place: Place | None) -> str:
        path = self.document.folder / name
        try:
            value = path.read_text(encoding="utf-8").removesuffix("\n").removesuffix("\r")
            exposed = is_exposed(path)
        except OSError as error:
            self.document.problems.append((place, f"the file {path} cannot be read: {error.strerror}"))
            return ""
        except UnicodeDecodeError:
            self.document.problems.append((place, f"the file {path} is not UTF-8 text"))
            return ""
        register([value])
        if exposed:
            detail = f"every user of this machine may read the secret in {path}"
            where = self.document.where(place)
            self.document.findings.append(Finding("warning", "CDC-CFG-104", detail, where, f"chmod o-rwx {path}"))
        return value


def _is_encoded(shape: str, at: int) -> bool:
    """Does offset `at` of a URL (its variables blanked out) lie in its credentials or in the value of an option?"""
    scheme = _SCHEME.match(shape)
    if scheme is None:
        return False
    query = shape.find("?", scheme.end())
    path = shape.find("/", scheme.end())
    ends = [end for end in (query, path, len(shape)) if end >= 0]
    credentials_end = shape.rfind("@", scheme.end(), min(ends))
    option = max(shape.rfind("&", 0, at), query)
    return at < credentials_end or (0 <= query < at and "=" in shape[option:at])
