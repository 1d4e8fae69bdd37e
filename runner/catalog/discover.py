"""The catalogue is what lies on disk: every folder below its root that holds an info.yml is a recipe."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from runner.catalog.facts import Facts, facts_of
from runner.errors import InvalidRecipe, Problem, UsageError
from runner.recipe.folder import INFO_NAMES
from runner.recipe.quantities import number_order

if TYPE_CHECKING:
    from runner.recipe.info import Info

ENVIRONMENT = "RECIPE_CATALOG"
OWN_CATALOG = Path(__file__).resolve().parents[2] / "recipes"
CONFIG_SUFFIXES = (".json", ".jsonc", ".yml", ".yaml")
_NOT_RECIPES = {"__pycache__", "node_modules", "results", "sample_data"}
_DEEPEST = 6


@dataclass(frozen=True)
class Entry:
    """A recipe folder of the catalogue.

    Attributes:
        folder: the folder.
        file: its info.yml.
        family: the folder's path between the catalogue's root and itself, such as ``smollm``.
        info: what info.yml says.
    """

    folder: Path
    file: Path
    family: str
    info: Info


@dataclass(frozen=True)
class Listing:
    """What a walk over the catalogue found: the readable recipes by id, and what is wrong with the others."""

    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...]


def catalog_root(asked: Path | None = None) -> Path:
    """Returns the catalogue's folder.

    That is the one asked for, else the one in $RECIPE_CATALOG, else the nearest `recipes` folder with recipes in it at
    or above the current folder, else the one beside the runner (a clone installed in place).

    Raises:
        UsageError: the folder that was asked for does not exist, or there is none at all.
    """
    for chosen, source in ((asked, "--catalog"), (os.environ.get(ENVIRONMENT), ENVIRONMENT)):
        if chosen:
            root = Path(chosen).expanduser()
            if not root.is_dir():
                raise UsageError(
                    "no-catalog", f"{source}: there is no folder '{root}'", "name a folder that holds recipe folders"
                )
            return root.resolve()
    here = Path.cwd()
    for candidate in (*(above / "recipes" for above in (here, *here.parents)), OWN_CATALOG):
        if next(info_files(candidate), None):
            return candidate.resolve()
    raise UsageError(
        "no-catalog", "no recipes folder at or above the current folder", f"use --catalog DIR or set {ENVIRONMENT}"
    )


def info_files(root: Path) -> Iterator[Path]:
    """Yields every info.yml or info.yaml below `root`, in the order of folder names. A recipe holds no further recipes."""
    yield from _info_files(str(root), _DEEPEST)


def _info_files(folder: str, depth: int) -> Iterator[Path]:
    try:
        with os.scandir(folder) as listed:
            items = list(listed)
    except (FileNotFoundError, NotADirectoryError):
        return
    names = {item.name for item in items}
    named = next((name for name in INFO_NAMES if name in names), None)
    if named:
        yield Path(folder, named)
    elif depth:
        for item in sorted(items, key=lambda item: item.name):
            if not item.name.startswith(".") and item.name not in _NOT_RECIPES and item.is_dir():
                yield from _info_files(item.path, depth - 1)


def list_entries(root: Path) -> Listing:
    """Reads every info.yml of the catalogue.

    A file that cannot be read does not hide the others: its problems are returned beside them.
    """
    entries: list[Entry] = []
    problems: list[Problem] = []
    for file in info_files(root):
        try:
            entries.append(read_entry(root, file))
        except InvalidRecipe as error:
            problems += error.problems
    return Listing(tuple(sorted(entries, key=lambda entry: entry.info.name)), tuple(problems))


def list_facts(root: Path) -> tuple[list[Facts], list[Problem]]:
    """Returns the facts of every recipe of the catalogue, by family and name, and the problems of the files without."""
    found: list[Facts] = []
    problems: list[Problem] = []
    for file in info_files(root):
        try:
            found.append(read_facts(root, file))
        except InvalidRecipe as error:
            problems += error.problems
    return sorted(found, key=lambda facts: (facts.family, number_order(facts.name))), problems


def read_facts(root: Path | None, file: Path) -> Facts:
    """Returns what a listing says of a recipe, without validating its info.yml where the facts are plainly there.

    Raises:
        InvalidRecipe: a fact is not there, and the file is not valid; every problem has its line.
    """
    family = family_of(root, file)
    try:
        return facts_of(file, family, _plain(file))
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return facts_of(file, family, quick_info(file, root).model_dump())


def read_entry(root: Path | None, file: Path) -> Entry:
    """Returns the recipe of an info.yml.

    Raises:
        InvalidRecipe: the file is not valid; every problem has its line.
    """
    return Entry(file.parent, file, family_of(root, file), quick_info(file, root))


def family_of(root: Path | None, file: Path) -> str:
    """Returns the path between the catalogue's root, or the nearest `recipes` above, and the recipe; empty without either."""
    holder = file.resolve().parent.parent
    roots = [root.resolve()] if root else []
    above = next((one for one in (*roots, *_recipes_above(holder)) if holder.is_relative_to(one)), holder)
    return "" if above == holder else holder.relative_to(above).as_posix()


def _recipes_above(folder: Path) -> list[Path]:
    return [one for one in (folder, *folder.parents) if one.name == "recipes"]


def quick_info(file: Path, root: Path | None = None) -> Info:
    """Reads a valid info.yml without keeping track of lines; whatever is not plainly valid is read again with them.

    One laid out as olive-recipes' are, which have no facts of the model, gives what `runner.recipe.info_foreign` makes of it.

    Raises:
        InvalidRecipe: the file is not valid; every problem has its line.
    """
    from pydantic import ValidationError

    from runner.recipe.info import Info, read_info
    from runner.recipe.info_foreign import foreign_info, is_foreign

    try:
        plain = _plain(file)
        if isinstance(plain, dict) and plain and is_foreign(map(str, plain)):
            return foreign_info(file, plain, root)
        info = Info.model_validate(plain)
    except (OSError, ValueError, yaml.YAMLError, ValidationError):
        return read_info(file)[0]
    names = [variant.name for variant in info.recipes]
    return info if len(set(names)) == len(names) else read_info(file)[0]


def _plain(file: Path) -> Any:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(file.read_bytes(), loader)  # noqa: S506 - both are safe loaders


def catalog_or_none(catalog: Path | None) -> Path | None:
    """Returns the catalogue; None where none is asked for and none is there, since a path needs none.

    Raises:
        UsageError: the folder that was asked for does not exist.
    """
    try:
        return catalog_root(catalog)
    except UsageError:
        if catalog or os.environ.get(ENVIRONMENT):
            raise
        return None
