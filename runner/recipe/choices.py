"""What a search varies in a configuration: options with several values or a range, and steps that list several passes.

An option may hold a list of values, where it takes one; `{"choices": [...]}`, whatever it takes; a range
`{"min": 0.01, "max": 0.5}` with `step` or `log`; or `SEARCHABLE_VALUES`, Olive's word for all of its legal values. A step
may be a list of passes, of which one is taken; `null` among them leaves the step out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from runner.errors import Place, Problem
from runner.recipe.document import Node, node_of
from runner.recipe.options import OptionsOf

Point = Mapping[str, Any]

LEGAL_VALUES = ("SEARCHABLE_VALUES", "DEFAULT_SEARCHABLE", "DEFAULT_SEARCHABLE_VALUES")
LEFT_OUT = "left out"
_RANGE_KEYS = {"min", "max", "step", "log"}
_MOST_IN_RANGE = 1000


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, both included.

    Attributes:
        low, high: the bounds.
        step: distance of neighbours; None of whole numbers is 1, of others that all between are meant.
        log: the order of magnitude is what counts.
        whole: whole numbers only.
    """

    low: float
    high: float
    step: float | None
    log: bool
    whole: bool

    def numbers(self) -> tuple[float, ...] | None:
        """Returns all of them in order; None where they cannot be counted."""
        step = self.step or (1 if self.whole else None)
        if step is None or (self.high - self.low) / step > _MOST_IN_RANGE:
            return None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        told = (self.low + at * step for at in range(count))
        return tuple(int(one) if self.whole else round(one, 12) for one in told)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}" + (f" by {self.step:g}" if self.step else "") + (" (log)" if self.log else "")


@dataclass(frozen=True)
class Axis:
    """One thing that a search varies.

    Attributes:
        name: step and option, such as ``build.block_size``; the step alone where its pass is chosen. Where the option is of one
            pass among several, the pass stands between.
        step: name of the step.
        alternative: the pass that it belongs to, by its label, where the step lists several.
        option: path of the option; empty where the pass is chosen.
        nodes: the values, each as it was written; none of a range, and where what is written was refused.
        range: the numbers, in place of values.
        node: what was written for the whole axis.
    """

    name: str
    step: str
    alternative: str | None
    option: tuple[str, ...]
    nodes: tuple[Node, ...]
    range: Range | None
    node: Node

    @property
    def values(self) -> tuple[Any, ...] | None:
        """Returns the values in order, as plain data; None of a range whose numbers cannot be counted."""
        if self.range is not None:
            return self.range.numbers()
        if not self.option:
            return labels(self.nodes)
        return tuple(node.plain() for node in self.nodes)

    @property
    def first(self) -> Any:
        """Returns the value that everything but a search takes."""
        values = self.values
        return values[0] if values else self.range.low if self.range else None


def labels(passes: Sequence[Node]) -> tuple[str, ...]:
    """Returns what the passes of a step are called: their type, numbered where two are of one type."""
    told: list[str] = []
    for node in passes:
        given = node.members.get("type")
        name = LEFT_OUT if node.value is None else str(given.value) if given is not None else "?"
        seen = sum(1 for one in told if one == name or one.startswith(f"{name}#"))
        told.append(name if not seen else f"{name}#{seen + 1}")
    return tuple(told)


def axes_of(root: Node, options_of: OptionsOf, problems: list[Problem], place: Place) -> tuple[Axis, ...]:
    """Returns what varies, in the order of the document; a step's choice of a pass stands before the options.

    Args:
        root: the migrated document.
        options_of: see `load_config`.
        problems: takes what is wrong with ranges and lists.
        place: the file, for what has no line.
    """
    found: list[Axis] = []
    passes = root.members.get("passes")
    for name, node in (passes.members if passes else {}).items():
        if not isinstance(node.value, list):
            found += _Step(name, None, options_of, problems, place).axes(node)
            continue
        if not node.items:
            problems.append(Problem("no-choices", f"'{name}' is an empty list of passes", node.origin.place or place))
            continue
        found.append(Axis(name, name, None, (), tuple(node.items), None, node))
        for label, alternative in zip(labels(node.items), node.items, strict=True):
            found += _Step(name, label, options_of, problems, place).axes(alternative)
    return tuple(found)


def at_point(root: Node, axes: Sequence[Axis], point: Point) -> Node:
    """Returns the document with one pass a step and one value an option: the point's, or else the first."""
    steps: dict[str, Node] = {}
    for name, node in root.members["passes"].members.items() if "passes" in root.members else ():
        alternative = None
        if isinstance(node.value, list) and node.items:
            names = labels(node.items)
            alternative = point.get(name, names[0])
            node = node.items[names.index(alternative)]
            if node.value is None:
                continue
        for axis in axes:
            if axis.step == name and axis.option and axis.alternative == alternative:
                value = _node_at(axis, point.get(axis.name, axis.first)) if axis.nodes or axis.range else None
                node = _with_value(node, ("options", *axis.option), value)
        steps[name] = node
    return root.with_members(passes=Node(steps, root.members["passes"].origin)) if "passes" in root.members else root


def _node_at(axis: Axis, value: Any) -> Node:
    return next((node for node in axis.nodes if node.plain() == value and type(node.plain()) is type(value)), None) or node_of(
        value, axis.node.origin
    )


def _with_value(node: Node, path: Sequence[str], value: Node | None) -> Node:
    """Sets an option, which stands as it was written, or takes it out where it was refused."""
    key = path[0]
    inner = value if len(path) == 1 else _with_value(node.members[key], path[1:], value)
    return node.with_members(**{key: inner})


@dataclass(frozen=True)
class _Step:
    """Looks for what varies in the options of one pass."""

    name: str
    alternative: str | None
    options_of: OptionsOf
    problems: list[Problem]
    place: Place

    def axes(self, node: Node) -> list[Axis]:
        options, kind = node.members.get("options"), node.members.get("type")
        known = self.options_of(str(kind.value))[0] if kind is not None else None
        if options is None or known is None:
            return []
        return list(self._inside(options, known[1], ()))

    def _inside(self, options: Node, model: Any, path: tuple[str, ...]) -> Iterator[Axis]:
        """Yields the axes among the members of a mapping; `model` is its type, or Any where it is free."""
        for key, child in options.members.items():
            annotation: Any = Any
            if isinstance(model, type) and issubclass(model, BaseModel):
                field = model.model_fields.get(getattr(model, "renamed", {}).get(key, key))
                if field is None:
                    continue  # reported by the check of the options, or retired
                annotation = field.annotation
            axis = self._axis(child, annotation, (*path, key))
            if axis is not None:
                yield axis
            elif child.members:
                yield from self._inside(child, _mapping_type(annotation), (*path, key))

    def _axis(self, node: Node, annotation: Any, option: tuple[str, ...]) -> Axis | None:
        name = ".".join(part for part in (self.name, self.alternative, *option) if part)
        if is_range(node.plain()) and _number_types(annotation):
            return Axis(name, self.name, self.alternative, option, (), self._range(name, node, annotation), node)
        nodes = self._nodes(name, node, annotation)
        return None if nodes is None else Axis(name, self.name, self.alternative, option, nodes, None, node)

    def _nodes(self, name: str, node: Node, annotation: Any) -> tuple[Node, ...] | None:
        """The values; none where what is written was refused, and None where it is one value."""
        if node.value in LEGAL_VALUES if isinstance(node.value, str) else False:
            legal = legal_values(annotation)
            if not legal:
                remedy = "list the values, or give a range"
                self._refuse("no-legal-values", f"'{name}' has no list of legal values", node, remedy)
            return tuple(Node(value, node.origin) for value in legal)
        listed = node.members["choices"] if set(node.members) == {"choices"} else node if not takes_many(annotation) else None
        if listed is None or not isinstance(listed.value, list):
            return None
        if not listed.items:
            self._refuse("no-choices", f"'{name}' is an empty list of values", node, "list what a search should try")
        return tuple({json.dumps(one.plain()): one for one in listed.items}.values())

    def _range(self, name: str, node: Node, annotation: Any) -> Range | None:
        given = node.plain()
        low, high, step, log = given["min"], given["max"], given.get("step"), given.get("log", False)
        numbers = [low, high] + ([] if step is None else [step])
        if not all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in numbers) or not isinstance(log, bool):
            cause = "min, max and step are numbers, and log is true or false"
        elif low > high:
            cause = f"min {low:g} is above max {high:g}"
        elif step is not None and step <= 0:
            cause = f"step is {step:g}, and must be above 0"
        elif log and (step is not None or low <= 0):
            cause = "log goes with a min above 0, and without step"
        elif float not in _number_types(annotation) and not all(float(one).is_integer() for one in numbers):
            cause = "the option takes whole numbers"
        else:
            return Range(low, high, step, log, whole=float not in _number_types(annotation))
        self._refuse("bad-range", f"'{name}': {cause}", node, 'for example {"min": 0.01, "max": 0.5, "log": true}')
        return None

    def _refuse(self, rule: str, cause: str, node: Node, remedy: str) -> None:
        by = f" (set by {node.origin})" if node.origin.place is None else ""
        self.problems.append(Problem(rule, f"{cause}{by}", node.origin.place, remedy))


def is_range(value: Any) -> bool:
    """Says whether a plain value is written as a range."""
    return isinstance(value, dict) and {"min", "max"} <= set(value) <= _RANGE_KEYS


def is_several(value: Any) -> bool:
    """Says whether a plain value, written where one is expected, is for a search."""
    return (
        isinstance(value, list)
        or is_range(value)
        or (isinstance(value, dict) and set(value) == {"choices"})
        or (isinstance(value, str) and value in LEGAL_VALUES)
    )


def takes_many(annotation: Any) -> bool:
    """Says whether a type holds several values itself, so that a list is one value of it."""
    if annotation is Any or get_origin(annotation) in (list, tuple, set, dict):
        return True
    return any(takes_many(argument) for argument in get_args(annotation) if get_origin(annotation) is not Literal)


def legal_values(annotation: Any) -> tuple[Any, ...]:
    """Returns the values of an enumeration: of a Literal, of bool, or of a union of these; empty of any other type."""
    if annotation is bool:
        return (True, False)
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    found: list[Any] = []
    for argument in get_args(annotation):
        inner = legal_values(argument)
        if not inner and argument is not type(None):
            return ()
        found += inner
    return tuple(dict.fromkeys(found))


def _number_types(annotation: Any) -> set[type]:
    if annotation is Any:
        return {int, float}
    if get_origin(annotation) is Literal:
        return set()
    if annotation in (int, float):
        return {annotation}
    return {kind for argument in get_args(annotation) for kind in _number_types(argument)}


def _mapping_type(annotation: Any) -> Any:
    """Returns the model that a mapping of this type is checked by; Any where its members are free."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    models = [_mapping_type(argument) for argument in get_args(annotation) if get_origin(annotation) not in (list, dict)]
    return next((model for model in models if model is not Any), Any)
