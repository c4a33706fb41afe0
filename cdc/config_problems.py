"""What pydantic found wrong, in plain words, at its place in the file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cdc.config_file import Document, YamlPath
from cdc.config_values import Mistakes
from cdc.suggest import did_you_mean

_WORDS = {
    "string_type": "must be text; put it in quotes",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "dict_type": "must be a mapping (name: value)",
    "model_type": "must be a mapping (key: value)",
    "tuple_type": "must be a list (in square brackets, or one - per line)",
    "path_type": "must be a path",
    "literal_error": "must be {expected}",
    "greater_than": "must be more than {gt}",
    "string_too_long": "has more than {max_length} characters",
}


def add_problems(document: Document, error: ValidationError, model: type[BaseModel]) -> None:
    """Put each error of `model` into the document's problems, with its place."""
    for details in error.errors(include_url=False, include_input=False):
        path = details["loc"]
        of_key = bool(path) and path[-1] == "[key]"
        path = path[:-1] if of_key else path
        if not of_key and any(path[:length] in document.spoiled for length in range(len(path) + 1)):
            continue
        if path not in document.values and path[:-1] in document.values and details["type"] == "value_error":
            path = path[:-1]  # a URL or a path that stands for the whole section
        for below, message in _messages(details, path, model):
            is_key = of_key or details["type"] == "extra_forbidden" or bool(below)
            document.problems.append((document.place((*path, *below), of_key=is_key), message))


def _messages(details: ErrorDetails, path: YamlPath, model: type[BaseModel]) -> Iterator[tuple[YamlPath, str]]:
    kind, context = details["type"], details.get("ctx", {})
    name = _dotted(path) or "the file"
    if kind == "extra_forbidden":
        known = _model_at(model, path[:-1]).model_fields
        near = did_you_mean(str(path[-1]), known) or f"; the keys here are {', '.join(known)}"
        yield (), f'unknown key "{path[-1]}"{near}'
    elif kind == "missing":
        inside = f' in "{_dotted(path[:-1])}"' if path[:-1] else ""
        yield (), f'the key "{path[-1]}" is missing{inside}'
    elif kind == "value_error":
        error = context["error"]
        if isinstance(error, Mistakes):
            yield from error.mistakes
        else:
            yield (), f"{name}: {error}"
    else:
        words = _WORDS.get(kind)
        yield (), f"{name}: {words.format(**context) if words else details['msg']}"


def _dotted(path: YamlPath) -> str:
    return ".".join(step for step in path if isinstance(step, str))


def _model_at(model: type[BaseModel], path: YamlPath) -> type[BaseModel]:
    """The model of the mapping at `path`. A step that is no field is a name that the user gave: a sink's, a table's."""
    for step in path:
        field = model.model_fields.get(str(step))
        model = (field and next(_models(field.annotation), None)) or model
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
