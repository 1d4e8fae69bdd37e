"""What rules look at: a recipe folder, and the catalogue and clone around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import click

from runner.catalog.discover import Entry, family_of, info_files, read_entry
from runner.catalog.lint.markdown import Page, read_page
from runner.errors import InvalidRecipe, Place, RecipeError
from runner.passes.table import options_of
from runner.recipe.document import Node
from runner.recipe.info import Info, Variant
from runner.recipe.load import LoadedConfig, load_config
from runner.targets.target import TARGETS, Target
from runner.templating.clone import Clone, clone_of
from runner.templating.recipe import Rendering, render_recipe

_MADE_BY_RUNS = {"models", "__pycache__", "node_modules"}


@dataclass(frozen=True)
class Catalogue:
    """Everything around a recipe that rules compare it with.

    Attributes:
        root: folder of the catalogue; None for a folder that lies in none.
        files: the info.yml of every recipe of it.
        commands: the command line that documentation speaks of.
    """

    root: Path | None
    files: Sequence[Path]
    commands: click.Group

    @classmethod
    def at(cls, root: Path | None, commands: click.Group) -> Catalogue:
        """Returns the catalogue of a folder, as it lies on disk; without a folder an empty one."""
        return cls(root, list(info_files(root)) if root else [], commands)

    @cached_property
    def entries(self) -> Sequence[Entry]:
        """Returns every recipe whose info.yml can be read."""
        read = []
        for file in self.files:
            try:
                read.append(read_entry(self.root, file))
            except InvalidRecipe:
                continue  # told by the recipe's own check
        return read

    def others(self, folder: Path) -> Iterator[Entry]:
        """Yields every recipe but the one in `folder`."""
        here = folder.resolve()
        yield from (entry for entry in self.entries if entry.folder.resolve() != here)

    @cached_property
    def clone(self) -> Clone:
        """Returns the clone that the catalogue lies in."""
        return clone_of(self.root / "any" if self.root else Path("any"))

    @property
    def is_the_clones(self) -> bool:
        """Returns whether this is the catalogue of the clone that it lies in, with whose pages it belongs together."""
        return self.root is not None and self.root.resolve() == self.clone.root.resolve() / "recipes"

    @cached_property
    def pages(self) -> Sequence[Page]:
        """Returns the documentation of the clone itself: its top folder, docs/ and the overview of recipes."""
        root = self.clone.root
        found = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("recipes/*.md"), *root.glob(".github/**/*.md")]
        return [read_page(path) for path in sorted(found)]


@dataclass(frozen=True)
class Subject:
    """A recipe folder under inspection.

    Attributes:
        file: its info.yml.
        info: what info.yml says.
        tree: the same with places.
        catalogue: what lies around it.
        foreign: the folder is laid out as olive-recipes' are, and was not written for this catalogue.
        entries: for each variant of a foreign one, the number of its entry in the file, which may hold what is no variant.
    """

    file: Path
    info: Info
    tree: Node
    catalogue: Catalogue
    foreign: bool = False
    entries: Sequence[int] = ()

    @property
    def folder(self) -> Path:
        """Returns the folder."""
        return self.file.parent

    @property
    def family(self) -> str:
        """Returns the folder's path below the catalogue's root."""
        return family_of(self.catalogue.root, self.file)

    @cached_property
    def clone(self) -> Clone:
        """Returns the clone that the folder lies in."""
        return clone_of(self.folder)

    def place(self, *path: str | int) -> Place:
        """Returns the line of info.yml where a value stands; ("recipes", 1, …) leads to the second variant's."""
        if self.entries and len(path) > 1 and isinstance(path[1], int):
            path = (path[0], self.entries[path[1]], *path[2:])
        return self.tree.deepest(path).origin.place or Place(str(self.file))

    def variants(self) -> Iterator[tuple[Variant, Place]]:
        """Yields every variant and its line."""
        for number, variant in enumerate(self.info.recipes):
            yield variant, self.place("recipes", number, "name")

    @cached_property
    def configs(self) -> Mapping[str, LoadedConfig | RecipeError]:
        """Returns every variant's config by its file, or the error that loading it gave; none for a file that is not there."""
        loaded: dict[str, LoadedConfig | RecipeError] = {}
        for variant in self.info.recipes:
            path = self.folder / variant.file
            if path.is_file():
                try:
                    loaded[variant.file] = load_config([path], options_of)
                except RecipeError as error:
                    loaded[variant.file] = error
        return loaded

    def loaded(self) -> Iterator[tuple[Variant, LoadedConfig]]:
        """Yields every variant whose config is valid, and the config."""
        for variant in self.info.recipes:
            config = self.configs.get(variant.file)
            if isinstance(config, LoadedConfig):
                yield variant, config

    @cached_property
    def renderings(self) -> Sequence[Rendering]:
        """Returns what the rendered files must say.

        Raises:
            InvalidRecipe: a template cannot be rendered.
        """
        return render_recipe(self.folder, self.family, self.info, self.clone)

    @cached_property
    def files(self) -> Sequence[Path]:
        """Returns every file of the folder that no run has made."""
        return [path for path in sorted(self.folder.rglob("*")) if path.is_file() and not self._made_by_a_run(path)]

    def _made_by_a_run(self, path: Path) -> bool:
        return not _MADE_BY_RUNS.isdisjoint(path.relative_to(self.folder).parts)

    @cached_property
    def pages(self) -> Sequence[Page]:
        """Returns the folder's Markdown files."""
        return [read_page(path) for path in self.files if path.suffix == ".md"]


def target_of_variant(variant: Variant) -> Target | None:
    """Returns the target whose provider the variant names; None where it is none of ours."""
    return next((target for target in TARGETS.values() if target.provider == variant.ep), None)
