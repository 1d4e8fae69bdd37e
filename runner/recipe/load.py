"""From files and overrides to a checked `RunConfig`, with all problems of a file reported at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from runner.errors import InvalidRecipe, Place, Problem, did_you_mean
from runner.recipe.choices import Axis, Point, at_point, axes_of, is_several
from runner.recipe.config import PassConfig, RunConfig
from runner.recipe.document import DEFAULT, Node, read_document
from runner.recipe.migrate import EXECUTION_PROVIDERS, migrate
from runner.recipe.olive_passes import elsewhere
from runner.recipe.options import OptionsOf, PassOptions
from runner.recipe.override import apply_override

T = TypeVar("T", bound=BaseModel)
DocumentPath = tuple[str | int, ...]


@dataclass(frozen=True)
class LoadedConfig:
    """A checked configuration and where it came from.

    Attributes:
        config: the typed configuration; each pass holds its own option model.
        tree: the document after migration, overlays and overrides: every node has its origin.
        files: the files that were read, the base first.
        notes: what was accepted but does nothing.
        varied: the document before one value was taken of each axis; None where nothing was looked for.
        axes: what a search varies.
    """

    config: RunConfig
    tree: Node
    files: tuple[Path, ...]
    notes: tuple[str, ...]
    varied: Node | None = None
    axes: tuple[Axis, ...] = ()

    @property
    def varies(self) -> bool:
        """Returns whether there is anything to search."""
        return any(axis.range is not None or len(axis.nodes) > 1 for axis in self.axes)

    @property
    def folder(self) -> Path:
        """Returns the folder of the base file, against which scripts and data files are looked up."""
        return self.files[0].resolve().parent

    def resolved(self) -> Node:
        """Returns the whole configuration, defaults filled in, as a tree of origins."""
        return _with_defaults(self.config, self.tree)


def load_config(
    files: Sequence[Path],
    options_of: OptionsOf,
    overrides: Sequence[str] = (),
    adjust: Callable[[Node], Node] | None = None,
    space: Sequence[str] | None = None,
) -> LoadedConfig:
    """Reads `files`, the later ones laid over the first section by section, and checks the result.

    Args:
        files: a base file and fragments; a section (`systems`, `passes` …) of a fragment replaces that of the base.
        options_of: gives the option model of a pass by its name in any case, and the list of all names.
        overrides: `dotted.path=value` texts of `--set`, applied last.
        adjust: changes made by flags, as a function on the tree.
        space: `dotted.path=values` texts of `--space`, what a search is to vary; None where nobody searches, so that several
            values need a `search_strategy`.

    Raises:
        InvalidRecipe: with every problem that was found.
        UsageError: an override is not of the form path=value or names a place that cannot exist.
    """
    migrated = [migrate(_mapping(read_document(path))) for path in files]
    root = migrated[0][0]
    for fragment, _ in migrated[1:]:
        root = root.with_members(**fragment.members)
    notes = [note for _, told in migrated for note in told]
    if adjust is not None:
        root = adjust(root)
    for text in overrides:
        root = apply_override(root, text)
    for text in space or ():
        root = apply_override(root, text, "--space")
    strategy = root.members.get("search_strategy")
    searched = space is not None or (strategy is not None and strategy.value not in (None, False))
    return _check(root, tuple(files), options_of, notes, searched=searched)


def _mapping(root: Node) -> Node:
    if not isinstance(root.value, dict):
        raise InvalidRecipe(Problem("bad-value", "the document must be a mapping", root.origin.place))
    return root


def _check(
    root: Node, files: tuple[Path, ...], options_of: OptionsOf, notes: list[str], *, searched: bool = False
) -> LoadedConfig:
    problems: list[Problem] = []
    place = Place(str(files[0]))
    varied, axes = root, tuple[Axis, ...]()
    if searched:
        axes = axes_of(root, options_of, problems, place)
        root = _first_point(root, axes, options_of, problems, notes, place)
    config = check(RunConfig, root, problems, place)
    steps: dict[str, PassConfig] = {}
    passes = root.members.get("passes")
    if passes is not None:
        checked = {}
        for name, node in passes.members.items():
            step, node = _check_pass(name, node, options_of, problems, notes, place)
            checked[name] = node
            if step is not None:
                steps[name] = step
        root = root.with_members(passes=Node(checked, passes.origin))
    problems += [*_unnamed_model(root, place), *_dangling(root)]
    if problems or config is None:
        raise InvalidRecipe(*in_reading_order(problems, files))
    return LoadedConfig(config.model_copy(update={"passes": steps}), root, files, tuple(notes), varied, axes)


def load_point(loaded: LoadedConfig, point: Point, options_of: OptionsOf) -> LoadedConfig:
    """Returns one point of a configuration that a search varies: nothing in it varies any more.

    Args:
        loaded: the configuration.
        point: value by name of the axis; what it does not name takes its first value.
        options_of: see `load_config`.

    Raises:
        InvalidRecipe: the values do not go together.
    """
    root = at_point(loaded.varied or loaded.tree, loaded.axes, point)
    return _check(root.with_members(search_strategy=None), loaded.files, options_of, [])


def in_reading_order(problems: Sequence[Problem], files: Sequence[Path]) -> list[Problem]:
    """Returns the problems without repetition, by file and line; those without a place come last."""
    order = {str(path): number for number, path in enumerate(files)}

    def key(problem: Problem) -> tuple[int, int]:
        place = problem.place
        return (order.get(place.file, len(order)), place.line or 0) if place else (len(order) + 1, 0)

    return sorted(dict.fromkeys(problems), key=key)


def _first_point(
    root: Node, axes: Sequence[Axis], options_of: OptionsOf, problems: list[Problem], notes: list[str], place: Place
) -> Node:
    """Returns the document with one pass a step and one value an option, where a search tries several; all are checked."""
    for axis in axes:
        for value in _further(axis):
            _check_value(at_point(root, axes, _leading_to(axes, axis, value)), axis, options_of, problems, place)
        what = f"values of '{axis.name}'" if axis.option else f"passes of '{axis.name}'"
        if axis.range is None and len(axis.nodes) < 2:
            continue
        told = str(axis.range) if axis.range else str(len(axis.nodes))
        notes.append(f"{axis.node.origin}: {told} {what}: 'recipe search' tries them, anything else takes the first")
    return at_point(root, axes, {})


def _further(axis: Axis) -> Sequence[Any]:
    """The values whose check can tell something new; of a range, its bounds tell."""
    if axis.range is not None:
        return (axis.range.high,) if not axis.range.whole else (int(axis.range.high),)
    return (axis.values or ())[1:]


def _leading_to(axes: Sequence[Axis], axis: Axis, value: Any) -> dict[str, Any]:
    return {axis.name: value} | ({axis.step: axis.alternative} if axis.alternative is not None else {})


def _check_value(point: Node, axis: Axis, options_of: OptionsOf, problems: list[Problem], place: Place) -> None:
    """Checks a value by itself: what does not go together with other options is met, and told, by the search."""
    node = point.members["passes"].members.get(axis.step)
    if node is None:
        return
    kind = node.members.get("type")
    known = options_of(str(kind.value))[0] if kind is not None else None
    if known is None or not axis.option:
        _check_pass(axis.step, node, options_of, problems, [], place)
        return
    pass_name, options_type = known
    written = node.members.get("options") or Node({}, node.origin)
    options = current_options(written, options_type, [], problems, place, f"{pass_name} ")
    try:
        options_type.model_validate(options.plain())
    except ValidationError as error:
        problems += [
            _problem(options_type, options, path, detail, place, f"{pass_name} ")
            for path, detail in _told_once(options, error.errors())
            if path
        ]


def _check_pass(
    name: str, node: Node, options_of: OptionsOf, problems: list[Problem], notes: list[str], place: Place
) -> tuple[PassConfig | None, Node]:
    if isinstance(node.value, list):
        problems.append(
            Problem(
                "needs-search",
                f"'{name}' lists several passes{_by(node)}",
                _where(node, place),
                "name one pass; several are for 'recipe search', or for a configuration with a search_strategy",
            )
        )
        return None, node
    step = check(PassConfig, node, [], place)
    if step is None:
        return None, node  # the structure is reported by the check of the whole document
    known, passes = options_of(step.type)
    if known is None:
        problems.append(
            Problem(
                "unknown-pass",
                f"'{name}': there is no pass '{step.type}'{_by(node.members['type'])}",
                _where(node.members["type"], place),
                elsewhere(step.type) or did_you_mean(step.type, passes),
            )
        )
        return None, node
    pass_name, options_type = known
    written = node.members.get("options") or Node({}, node.origin)
    options_node = current_options(written, options_type, notes, problems, place, f"{pass_name} ")
    node = node.with_members(type=Node(pass_name, node.members["type"].origin), options=options_node)
    options = check(options_type, options_node, problems, place, f"{pass_name} ")
    if options is None:
        return None, node
    components, node = _check_components(pass_name, node, options_type, problems, notes, place)
    return step.model_copy(update={"type": pass_name, "options": options, "components": components}), node


def _check_components(
    pass_name: str, node: Node, options_type: type[PassOptions], problems: list[Problem], notes: list[str], place: Place
) -> tuple[dict[str, dict[str, Any] | Literal[False]], Node]:
    """Returns what differs for single components, and the step with their options spelt as the pass does today."""
    given = node.members.get("components")
    if given is None or not isinstance(given.value, dict):
        return PassConfig(type=pass_name, components=given.plain() if given else {}).components, node
    shared = node.members["options"]
    found: dict[str, dict[str, Any] | Literal[False]] = {}
    spelt: dict[str, Node] = {}
    for name, child in given.members.items():
        spelt[name] = child
        if not isinstance(child.value, dict):
            found[name] = False
            continue
        own = spelt[name] = current_options(child, options_type, notes, problems, place, f"{pass_name} ")
        checked = check(options_type, shared.with_members(**own.members), problems, place, f"{pass_name} ")
        if checked is not None:
            whole = checked.model_dump(mode="json")
            found[name] = {key: whole[key] for key in own.members}
    return found, node.with_members(components=Node(spelt, given.origin))


def current_options(
    node: Node, options_type: type[PassOptions], notes: list[str], problems: list[Problem], place: Place, subject: str
) -> Node:
    """Returns options as the pass spells them today, without those that no longer act.

    An older name and today's may both be given where they say the same.

    Args:
        node: the options as they were written.
        options_type: the pass's options.
        notes: takes what is left out.
        problems: takes two names of one option that say different things.
        place: the file, for what has no line.
        subject: the pass's name and a space.
    """
    members: dict[str, Node] = {}
    given_as: dict[str, str] = {}
    for key, child in node.members.items():
        if key in options_type.retired:
            notes.append(f"{child.origin}: '{key}' does nothing here: {options_type.retired[key]}")
            continue
        name = options_type.renamed.get(key, key)
        other = members.get(name)
        if other is not None and not _same(other, child):
            older, newer = (f"'{one}'{_by(held)}" for one, held in ((given_as[name], other), (key, child)))
            problems.append(
                Problem(
                    "option-twice",
                    f"{subject}{newer} and {older} are two names of one option, and their values differ",
                    _where(child, place) or _where(other, place),
                    f"keep one of them; '{name}' is today's name",
                )
            )
        members[name] = child
        given_as[name] = key
    return Node(members, node.origin)


def _same(one: Node, other: Node) -> bool:
    return json.dumps(one.plain(), sort_keys=True) == json.dumps(other.plain(), sort_keys=True)


# What pydantic says of a list where one value is expected.
_SINGLE_VALUE = ("literal_error", "string_type", "int_type", "float_type", "bool_type")


def check(model: type[T], node: Node, problems: list[Problem], place: Place, subject: str = "") -> T | None:
    """Returns `node` as a `model`, or None after adding what is wrong with it to `problems`."""
    try:
        return model.model_validate(node.plain())
    except ValidationError as error:
        problems += [_problem(model, node, path, detail, place, subject) for path, detail in _told_once(node, error.errors())]
        return None


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


def _where(node: Node, place: Place) -> Place | None:
    """The node's place; None where the command line set it, and the file where nobody did."""
    return place if node.origin is DEFAULT else node.origin.place


def _by(node: Node) -> str:
    return f" (set by {node.origin})" if node.origin.place is None and node.origin is not DEFAULT else ""


# What pydantic says in words of its own.
_PLAIN = {
    "model_attributes_type": "it must be a mapping",
    "model_type": "it must be a mapping",
    "too_short": "it must not be empty",
}


def _problem(
    model: type[BaseModel], node: Node, path: DocumentPath, detail: ErrorDetails, place: Place, subject: str
) -> Problem:
    found = node.deepest(path)
    where, by_override = _where(found, place), _by(found)
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


def _unnamed_model(root: Node, place: Place) -> list[Problem]:
    """A model to be read from a path or the hub, without the path."""
    model = root.members.get("input_model", root)
    kind, path = model.members.get("type"), model.members.get("model_path")
    if (
        kind is None
        or kind.value not in ("HfModel", "ONNXModel", "DiffusersModel")
        or (path is not None and path.value not in (None, ""))
    ):
        return []
    where = path or model
    cause = f"'input_model.model_path' is missing{_by(where)}"
    return [Problem("missing-key", cause, _where(where, place), "name a hub id, folder or file, here or with --model-path")]


def _dangling(root: Node) -> list[Problem]:
    """References to systems, evaluators, data configs and providers that do not exist."""
    problems = []

    def named(node: Node | None, what: str, known: Sequence[str]) -> None:
        if node is not None and isinstance(node.value, str) and node.value not in known:
            problems.append(
                Problem(
                    "unknown-name", f"there is no {what} '{node.value}'", node.origin.place, did_you_mean(node.value, known)
                )
            )

    systems = list(root.members.get("systems", root).members) if "systems" in root.members else []
    evaluators = list(root.members["evaluators"].members) if "evaluators" in root.members else []
    data = [
        str(item.members["name"].value)
        for item in (root.members["data_configs"].items if "data_configs" in root.members else [])
        if "name" in item.members
    ]
    for key in ("host", "target"):
        named(root.members.get(key), "system", systems)
    named(root.members.get("evaluator"), "evaluator", evaluators)
    for path, leaf in root.leaves():
        if path and str(path[-1]).endswith("data_config") and isinstance(leaf.value, str):
            named(leaf, "data config", data)
        if len(path) > 1 and path[-2] == "execution_providers":
            named(leaf, "execution provider", EXECUTION_PROVIDERS)
    return problems


def _with_defaults(value: Any, node: Node | None) -> Node:
    origin = node.origin if node is not None else DEFAULT
    if isinstance(value, BaseModel):
        members = {}
        for key in type(value).model_fields:
            child = node.members.get(key) if node is not None else None
            members[key] = _with_defaults(getattr(value, key), child)
        for key, extra in (value.model_extra or {}).items():
            members[key] = _with_defaults(extra, node.members.get(key) if node is not None else None)
        return Node(members, origin)
    if isinstance(value, dict):
        return Node({key: _with_defaults(item, node.members.get(key) if node else None) for key, item in value.items()}, origin)
    if isinstance(value, (list, tuple)):
        held = node.items if node is not None else []
        return Node([_with_defaults(item, held[at] if at < len(held) else None) for at, item in enumerate(value)], origin)
    return Node(value, origin)
