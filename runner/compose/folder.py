"""The recipe folder beside an output: what was run, ready to be run again, changed, or offered to the catalogue."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner.catalog.copies import files_of
from runner.catalog.discover import Entry
from runner.catalog.scaffold import Decision
from runner.errors import StoreError, UsageError
from runner.models.digest import sha256_of_file
from runner.recipe.document import Origin, node_of
from runner.recipe.migrate import PASS_LEVEL
from runner.recipe.override import apply_override
from runner.targets.target import Target
from runner.templating.clone import clone_of
from runner.templating.environment import pretty_json, render
from runner.templating.recipe import packages_of_config, requirements_file, with_wheels_of

CONFIG = "olive_config.json"
_WRITTEN = ".written.json"  # digests of the files as they were written, so that what people changed is told apart


@dataclass(frozen=True)
class Composed:
    """A recipe that a command made.

    Attributes:
        folder: where it goes.
        config: olive_config.json, as JSON data.
        target: what the model is made for.
        title: headline of README.md.
        command: the command that made it, as it can be typed again.
        decisions: what was decided, and why.
        notes: what people should know, and what is left to them.
        info: info.yml as text; None where the catalogue has no place for such a model.
        family: folder of the catalogue that it would belong to; None without `info`.
        run_options: what `recipe run` needs beside the folder.
        files: further files: path below the folder to content.
    """

    folder: Path
    config: Mapping[str, Any]
    target: Target
    title: str
    command: str
    decisions: Sequence[Decision] = ()
    notes: Sequence[str] = ()
    info: str | None = None
    family: str | None = None
    run_options: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def config_file(self) -> Path:
        """Returns the path of its olive_config.json."""
        return self.folder / CONFIG

    def write(self) -> None:
        """Writes the folder: the configuration, requirements, README.md, and info.yml with what belongs to it.

        Raises:
            UsageError: a file that lies there was changed by hand, or was not written by a command.
            StoreError: the folder cannot be written.
        """
        files = {**self.files, **self._texts()}
        try:
            _refuse_changed(self.folder, files)
            for name, content in files.items():
                path = self.folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            digests = {name: sha256_of_file(self.folder / name) for name in files}
            (self.folder / _WRITTEN).write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise StoreError(
                "cannot-write", f"{self.folder}: {error.strerror or error}", "choose another --output_path"
            ) from None

    def _texts(self) -> dict[str, bytes]:
        clone = clone_of(self.folder)
        requirements = requirements_file(self.target)
        packages = with_wheels_of(self.target, packages_of_config(self.config))
        context = {"composed": self, "requirements": requirements, "pins": clone.pins(self.target), "packages": packages}
        texts = {
            CONFIG: pretty_json(self.config) + "\n",
            "README.md": render(clone.templates, "composed/README.md.j2", context),
            requirements: render(clone.templates, "composed/requirements.txt.j2", context),
        }
        if self.info is not None:
            texts["info.yml"] = self.info
        return {name: text.encode() for name, text in texts.items()}


def recipe_beside(output: Path) -> Path:
    """Returns the folder for the recipe of a model that goes to `output`: `OUTPUT-recipe`."""
    whole = output.expanduser().resolve()
    return whole.with_name(f"{whole.name}-recipe")


def _refuse_changed(folder: Path, files: Mapping[str, bytes]) -> None:
    """A file is written over only where it is as a command wrote it, or would stay the same."""
    written = _written(folder)
    for name, content in files.items():
        path = folder / name
        if not path.exists() or (
            path.is_file() and (sha256_of_file(path) == written.get(name) or path.read_bytes() == content)
        ):
            continue
        raise UsageError(
            "recipe-changed",
            f"{path} was changed by hand" if name in written else f"{path} is there and no command wrote it",
            f"run it as it is with 'recipe run {folder}', move it away, or choose another --output_path",
        )


def _written(folder: Path) -> Mapping[str, str]:
    try:
        told = json.loads((folder / _WRITTEN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def files_of_recipe(entry: Entry) -> dict[str, bytes]:
    """Returns the data and scripts of a catalogued recipe: path below its folder to content; nothing that is rendered."""
    rendered = {*(variant.file for variant in entry.info.recipes), "info.yml", "info.yaml", "README.md"}
    return {
        name: path.read_bytes()
        for name, path in files_of(entry.folder)
        if name not in rendered and not name.startswith("requirements")
    }


def overridden(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Returns the configuration with overrides laid over it, options beside the type of their pass.

    A path without a section is an option of the only pass.

    Raises:
        UsageError: an override is not of the form path=value, or names a place that cannot exist.
    """
    only = next(iter(config["passes"])) if len(config["passes"]) == 1 else None
    apart = {name: _apart(step) for name, step in config["passes"].items()}
    root = node_of({**config, "passes": apart}, Origin("the command"))
    for text in overrides:
        path, equals, _ = text.partition("=")
        bare = equals and "." not in path and path.strip() not in config
        root = apply_override(root, f"passes.{only}.{text.strip()}" if bare and only else text)
    changed: dict[str, Any] = root.plain()
    changed["passes"] = {
        name: {**{key: value for key, value in step.items() if key != "options"}, **(step.get("options") or {})}
        for name, step in changed["passes"].items()
    }
    return changed


def _apart(step: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a step with its options in a mapping of their own, where overrides look for them."""
    options = {key: value for key, value in step.items() if key not in PASS_LEVEL}
    return {**{key: value for key, value in step.items() if key in PASS_LEVEL}, "options": options}
