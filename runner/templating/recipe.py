"""What a recipe folder's rendered files must say: configs, README.md and requirements.txt, from info.yml and templates."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.errors import InvalidRecipe, Place, Problem, did_you_mean
from runner.recipe.info import INFO_NAMES, Info, PackageSource, Variant, read_info
from runner.templating.environment import names_read, pretty_json, render
from runner.templating.results import results_table

LOCK = "cpu.txt"
PIPELINE_SUFFIX = ".json.j2"
# What every recipe needs to make and measure a model, and what only some of them need.
PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "safetensors", "torch", "transformers")
PIPELINE_PACKAGES: Mapping[str, tuple[str, ...]] = {"genai": ("onnxruntime-genai",), "vision": ("pillow",)}
FORMAT_PACKAGES: Mapping[str, tuple[str, ...]] = {"gguf": ("accelerate", "gguf"), "hf": ()}


@dataclass(frozen=True)
class Clone:
    """The clone that holds the templates and locks.

    Attributes:
        root: its folder.
    """

    root: Path

    @property
    def templates(self) -> Path:
        """Returns the folder of templates."""
        return self.root / "templates"

    @property
    def pipelines(self) -> list[str]:
        """Returns the names that `pipeline` of info.yml may have."""
        return sorted(
            path.name.removesuffix(PIPELINE_SUFFIX) for path in (self.templates / "pipelines").glob(f"*{PIPELINE_SUFFIX}")
        )

    def pins(self, lock: str = LOCK) -> dict[str, str]:
        """Returns the versions that a lock in constraints/ names.

        Raises:
            InvalidRecipe: there is no such lock.
        """
        path = self.root / "constraints" / lock
        if not path.is_file():
            raise InvalidRecipe(Problem("missing-file", "there is no such lock", Place(str(path))))
        return read_pins(path.read_text(encoding="utf-8"))


def read_pins(text: str) -> dict[str, str]:
    """Returns name to version of every `name==version` line, names in PEP 503's normal form."""
    found = re.findall(r"^([A-Za-z0-9][\w.-]*)==(\S+)", text, re.MULTILINE)
    return {normal_name(name): version for name, version in found}


def normal_name(name: str) -> str:
    """Returns a package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def clone_of(folder: Path) -> Clone:
    """Returns the clone that a recipe folder lies in: the nearest folder above with templates; else that of this runner."""
    above = [parent for parent in folder.resolve().parents if (parent / "templates" / "recipe").is_dir()]
    return Clone(above[0] if above else Path(__file__).resolve().parents[2])


@dataclass(frozen=True)
class Rendering:
    """A file and the text that it must have."""

    path: Path
    text: str

    def difference(self) -> str | None:
        """Returns a unified diff from the file on disk to the rendering; None where they are equal."""
        try:
            on_disk = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            on_disk = ""
        if on_disk == self.text and self.path.exists():
            return None
        lines = difflib.unified_diff(
            on_disk.splitlines(keepends=True), self.text.splitlines(keepends=True), str(self.path), "as rendered"
        )
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines) or f"{self.path}: missing\n"

    def write(self) -> None:
        """Writes the file with unix line ends."""
        self.path.write_text(self.text, encoding="utf-8", newline="\n")


def misnamed(info: Info, clone: Clone) -> Iterator[tuple[tuple[str | int, ...], Problem]]:
    """Yields (path in info.yml, problem) of every pipeline that does not exist and every setting that its pipeline never reads.

    Raises:
        InvalidRecipe: a pipeline's template has an error.
    """
    for number, variant in enumerate(info.recipes):
        if variant.pipeline is None:
            continue
        here = ("recipes", number)
        if variant.pipeline not in clone.pipelines:
            cause = f"there is no pipeline '{variant.pipeline}'"
            problem = Problem("unknown-pipeline", cause, remedy=did_you_mean(variant.pipeline, clone.pipelines))
            yield (*here, "pipeline"), problem
            continue
        known = names_read(clone.templates, f"pipelines/{variant.pipeline}{PIPELINE_SUFFIX}", "settings")
        for path, names in _unread(variant.settings, known):
            cause = f"the pipeline {variant.pipeline} reads no setting '{'.'.join(path)}'"
            yield (*here, "settings", *path), Problem("unknown-setting", cause, remedy=did_you_mean(path[-1], names))


def _unread(settings: Mapping[str, Any], known: Mapping[str, set[str]]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yields (path, what is read in its place); options that a template hands on as they are belong to their pass."""
    for key, value in settings.items():
        if key not in known:
            yield (key,), sorted(known)
        elif known[key] and isinstance(value, dict):
            yield from (((key, name), sorted(known[key])) for name in value if name not in known[key])


def _refuse_misnamed(folder: Path, info: Info, clone: Clone) -> None:
    found = list(misnamed(info, clone))
    if found:
        tree = read_info(next(folder / name for name in INFO_NAMES if (folder / name).is_file()))[1]
        raise InvalidRecipe(*(replace(problem, place=tree.deepest(path).origin.place) for path, problem in found))


def render_recipe(folder: Path, family: str, info: Info, clone: Clone) -> list[Rendering]:
    """Returns the rendered files of a recipe folder; none for a recipe without a pipeline, which is kept by hand.

    Outside of the clone these are only the configs: README.md and requirements.txt speak of the place in the clone.

    Args:
        folder: the recipe's folder.
        family: its path below the catalogue's root.
        info: what info.yml says.
        clone: where templates and locks are.

    Raises:
        InvalidRecipe: a template does not give what it should, info.yml names a pipeline or a setting that is not there, or
            a results file cannot be read.
    """
    with_pipeline = [variant for variant in info.recipes if variant.pipeline]
    if not with_pipeline:
        return []
    _refuse_misnamed(folder, info, clone)
    renderings = [Rendering(folder / variant.file, render_config(info, variant, clone)) for variant in with_pipeline]
    if not folder.resolve().is_relative_to(clone.root.resolve()):
        return renderings
    context = {
        "info": info,
        "family": family,
        "results": results_table(folder, [variant.name for variant in info.recipes]),
        "has_script": (folder / "user_script.py").is_file(),
        "to_clone": _way_up(folder, clone.root),
        "lock": LOCK,
        "pins": clone.pins(),
        "packages": packages_of(info),
    }
    for name in ("README.md", "requirements.txt"):
        renderings.append(Rendering(folder / name, render(clone.templates, f"recipe/{name}.j2", context)))
    return renderings


def render_config(info: Info, variant: Variant, clone: Clone) -> str:
    """Returns the config file of a variant.

    Raises:
        InvalidRecipe: the pipeline's template does not give JSON.
    """
    name = f"pipelines/{variant.pipeline}{PIPELINE_SUFFIX}"
    text = render(clone.templates, name, {"info": info, "variant": variant, "settings": variant.settings})
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        line = text.splitlines()[error.lineno - 1].strip() if text else ""
        raise InvalidRecipe(
            Problem(
                "bad-rendering",
                f"variant {variant.name} of {info.name} does not render to JSON: {error.msg} at '{line}'",
                Place(str(clone.templates / name)),
            )
        ) from None
    return pretty_json(config) + "\n"


def packages_of(info: Info) -> list[str]:
    """Returns the packages that a recipe's requirements.txt pins."""
    wanted = set(PACKAGES)
    for variant in info.recipes:
        wanted.update(PIPELINE_PACKAGES.get(variant.pipeline or "", ()))
    for source in info.model.sources:
        if isinstance(source, PackageSource):
            wanted.update(FORMAT_PACKAGES[source.format])
    return sorted(wanted)


def _way_up(folder: Path, root: Path) -> str:
    """The clone as pip must be told inside the folder: `../../..`."""
    return Path(os.path.relpath(root.resolve(), folder.resolve())).as_posix()
