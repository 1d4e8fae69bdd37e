"""A document held against a typed model: every problem at its place, in words of ours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from runner.errors import Place, Problem, did_you_mean
from runner.recipe.choices import is_several
from runner.recipe.document import Node

T = TypeVar("T", bound=BaseModel)
DocumentPath = tuple[str | int, ...]

# What pydantic says of a list where one value is expected.
_SINGLE_VALUE = ("literal_error", "string_type", "int_type", "float_type", "bool_type")
# What pydantic says in words of its own.
_PLAIN = {
    "model_attributes_type": "it must be a mapping",
    "model_type": "it must be a mapping",
    "too_short": "it must not be empty",
}


def check(model: type[T], node: Node, problems: list[Problem], place: Place, subject: str = "") -> T | None:
    """Returns `node` as a `model`, or None after adding what is wrong with it to `problems`.

    Args:
        model: the typed model.
        node: the part of the document that is to be one.
        problems: takes what is wrong.
        place: the document, for what has no line.
        subject: stands ahead of the names of members: a pass's name and a space.
    """
    try:
        return model.model_validate(node.plain())
    except ValidationError as error:
        problems += [_problem(model, node, path, detail, place, subject) for path, detail in _told_once(node, error.errors())]
        return None


def check_members(model: type[BaseModel], node: Node, problems: list[Problem], place: Place, subject: str = "") -> None:
    """Adds what is wrong with single members of `node` to `problems`, not what the whole says of itself; see `check`."""
    try:
        model.model_validate(node.plain())
    except ValidationError as error:
        problems += [
            _problem(model, node, path, detail, place, subject) for path, detail in _told_once(node, error.errors()) if path
        ]


def in_reading_order(problems: Sequence[Problem], files: Sequence[Path]) -> list[Problem]:
    """Returns the problems without repetition, by file and line; those without a place come last."""
    order = {str(path): number for number, path in enumerate(files)}

    def key(problem: Problem) -> tuple[int, int]:
        place = problem.place
        return (order.get(place.file, len(order)), place.line or 0) if place else (len(order) + 1, 0)

    return sorted(dict.fromkeys(problems), key=key)


def _told_once(node: Node, details: Sequence[ErrorDetails]) -> list[tuple[DocumentPath, ErrorDetails]]:
    """Returns (path in the document, error), leaving out the cases of a union that the value was not written for.

    Where members of a value are at fault, it was written for the case that has them; otherwise one case is told, and a
    plain value before a mapping.
    """
    located = [(_written_path(node, detail), detail) for detail in details]
    located.sort(key=lambda one: one[1]["type"] in ("model_type", "dict_type"))
    told: list[tuple[DocumentPath, ErrorDetails]] = []
    cases: set[DocumentPath] = set()
    for path, detail in located:
        if detail["loc"] and path[-1:] != detail["loc"][-1:]:  # the last part of the location is the name of a case
            inside = any(len(other) > len(path) and other[: len(path)] == path for other, _ in located)
            if inside or path in cases:
                continue
            cases.add(path)
        told.append((path, detail))
    return told


def _problem(
    model: type[BaseModel], node: Node, path: DocumentPath, detail: ErrorDetails, place: Place, subject: str
) -> Problem:
    found = node.deepest(path)
    where, by_override = found.origin.place_within(place), found.origin.blame
    name = _dotted(path)
    if detail["type"] == "extra_forbidden":
        owners = _models_in(_annotation_at(model, path[:-1]))
        if case := [owner for owner in owners if owner.__name__ in detail["loc"]]:  # of a union told apart by a name
            owners, subject = case, f"{subject}{case[0].__name__} "
        known = {name for owner in owners for name in owner.model_fields}
        rule, cause = (
            ("unknown-option", f"{subject}has no '{path[-1]}'") if subject else ("unknown-key", f"unknown key '{name}'")
        )
        return Problem(rule, f"{cause}{by_override}", where, did_you_mean(str(path[-1]), known))
    if detail["type"] == "missing":
        return Problem("missing-key", f"{subject}'{name}' is missing", where)
    if subject and detail["type"] in _SINGLE_VALUE and is_several(detail["input"]):
        written = "a list of values" if isinstance(detail["input"], list) else "several values"
        return Problem(
            "needs-search",
            f"{subject}'{name}' has {written}{by_override}",
            where,
            "give one value; several are for 'recipe search', or for a configuration with a search_strategy",
        )
    if detail["type"] == "unknown_name":
        near = did_you_mean(detail["ctx"]["given"], detail["ctx"]["known"])
        return Problem("bad-value", f"{subject}'{name}': {detail['msg']}{by_override}", where, near)
    written = "" if isinstance(detail["input"], (dict, list)) else f", not {json.dumps(detail['input'], default=str)}"
    message = _PLAIN.get(detail["type"]) or detail["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    remedy = None
    if detail["type"] == "literal_error" and isinstance(detail["input"], str):
        allowed = _literals(model, path)
        remedy = did_you_mean(detail["input"], allowed) if allowed else None
    about = f"{subject}'{name}'" if name else subject.strip() or "the document"
    return Problem("bad-value", f"{about}: {message}{written}{by_override}", where, remedy)


def _written_path(node: Node, detail: ErrorDetails) -> DocumentPath:
    """Takes the names of union cases out of pydantic's location: what is left is the path in the document."""
    location = detail["loc"]
    path: list[str | int] = []
    for at, part in enumerate(location):
        absent = detail["type"] == "missing" and at == len(location) - 1
        if isinstance(part, str) and part not in node.members and not absent:
            continue
        path.append(part)
        node = node.deepest((part,))
    return tuple(path)


def _dotted(path: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _annotation_at(model: type[BaseModel], path: Sequence[str | int]) -> Any:
    """Returns the type that stands at `path` inside `model`, as far as types can tell."""
    here: Any = model
    for part in path:
        fields = (owner.model_fields.get(str(part)) for owner in _models_in(here))
        field = next(filter(None, fields), None)
        here = field.annotation if field is not None else _element_of(here)
    return here


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a value of this type may be: one, or those of a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (list, dict):
        return []
    return [found for argument in get_args(annotation) for found in _models_in(argument)]


def _element_of(annotation: Any) -> Any:
    """The type of a list's items or a mapping's values, also where the list or mapping is one case of a union."""
    if get_origin(annotation) in (list, dict):
        return get_args(annotation)[-1]
    return next(filter(None, (_element_of(argument) for argument in get_args(annotation))), None)


def _literals(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    def walk(annotation: Any) -> list[str]:
        return [
            text for argument in get_args(annotation) for text in ([argument] if isinstance(argument, str) else walk(argument))
        ]

    return walk(_annotation_at(model, path))
