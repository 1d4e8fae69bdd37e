"""From files and overrides to a checked `RunConfig`, with all problems of a file reported at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from runner.errors import InvalidRecipe, Place, Problem
from runner.recipe.choices import Axis, Point, at_point, axes_of
from runner.recipe.config import PassConfig, RunConfig
from runner.recipe.document import DEFAULT, Node, read_document
from runner.recipe.migrate import migrate
from runner.recipe.options import OptionsOf
from runner.recipe.override import apply_override
from runner.recipe.references import dangling, unnamed_model
from runner.recipe.steps import check_step
from runner.recipe.validate import check, in_reading_order
from runner.recipe.variations import first_point


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
        root = first_point(root, axes, options_of, problems, notes, place)
    config = check(RunConfig, root, problems, place)
    steps: dict[str, PassConfig] = {}
    passes = root.members.get("passes")
    if passes is not None:
        checked = {}
        for name, node in passes.members.items():
            step, node = check_step(name, node, options_of, problems, notes, place)
            checked[name] = node
            if step is not None:
                steps[name] = step
        root = root.with_members(passes=Node(checked, passes.origin))
    problems += [*unnamed_model(root, place), *dangling(root)]
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
