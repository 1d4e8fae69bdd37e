"""The rendered files of a recipe folder: configs, README.md, requirements and sample data, from info.yml and templates."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner.errors import InvalidRecipe, Problem
from runner.passes.table import get as get_pass
from runner.passes.table import options_of
from runner.recipe.document import read_document
from runner.recipe.folder import INFO_NAMES
from runner.recipe.info import Info, PackageSource, Variant, read_info
from runner.targets.target import TARGETS, Target
from runner.templating.clone import Clone
from runner.templating.environment import render
from runner.templating.pipeline import misnamed, placed_at, render_config
from runner.templating.results import results_table
from runner.templating.sample_data import sample_files

# What reads, feeds and judges a model, beside what its passes name.
_PACKAGES = ("numpy", "onnx", "onnxruntime", "safetensors", "torch", "transformers")
_FORMAT_PACKAGES: Mapping[str, tuple[str, ...]] = {"gguf": ("accelerate", "gguf"), "hf": (), "ct2": (), "dinov2-onnx": ()}
_EVALUATION_PACKAGES: Mapping[str, tuple[str, ...]] = {
    "images": ("pillow",),
    "speech": ("jiwer", "soundfile", "soxr"),
    "prompts": ("pillow",),
}
_OF_THE_CPU = TARGETS["cpu"].wheels


@dataclass(frozen=True)
class Rendering:
    """A file and the content that it must have."""

    path: Path
    content: bytes

    def difference(self) -> str | None:
        """Returns a unified diff from the file on disk to the rendering; None where they are equal."""
        try:
            on_disk = self.path.read_bytes()
        except FileNotFoundError:
            return f"{self.path}: missing\n"
        if on_disk == self.content:
            return None
        try:
            old, new = on_disk.decode(), self.content.decode()
        except UnicodeDecodeError:
            return f"{self.path}: not the same {len(self.content)} bytes\n"
        lines = difflib.unified_diff(
            old.splitlines(keepends=True), new.splitlines(keepends=True), str(self.path), "as rendered"
        )
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)

    def write(self) -> None:
        """Writes the file, and the folder that it lies in."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(self.content)


def render_recipe(folder: Path, family: str, info: Info, clone: Clone) -> list[Rendering]:
    """Returns the rendered files of a recipe folder; none for a recipe without a pipeline, which is kept by hand.

    Outside of the clone these are only the configs and sample data: README.md and requirements speak of the place in the clone.

    Args:
        folder: the recipe's folder.
        family: its path below the catalogue's root.
        info: what info.yml says.
        clone: where templates and locks are.

    Raises:
        InvalidRecipe: a template does not give what it should; info.yml names a pipeline, a setting or a set of sample data
            that is not there; or a results file cannot be read.
    """
    rendered = [variant for variant in info.recipes if variant.pipeline]
    if not rendered:
        return []
    _refuse_misnamed(folder, info, clone)
    configs = {variant.file: render_config(info, variant, clone) for variant in rendered}
    renderings = [Rendering(folder / name, text.encode()) for name, text in configs.items()]
    renderings += [Rendering(folder / "sample_data" / name, content) for name, content in sample_files(info.samples, clone)]
    if folder.resolve().is_relative_to(clone.root.resolve()):
        renderings += _in_the_clone(folder, family, info, clone, configs)
    return renderings


def _refuse_misnamed(folder: Path, info: Info, clone: Clone) -> None:
    found = list(misnamed_of(info, clone))
    if found:
        tree = read_info(next(folder / name for name in INFO_NAMES if (folder / name).is_file()))[1]
        placed = (placed_at(problem, tree.deepest(("recipes", number, *path)).origin.place) for number, path, problem in found)
        raise InvalidRecipe(*placed)


def misnamed_of(info: Info, clone: Clone) -> Iterator[tuple[int, tuple[str, ...], Problem]]:
    """Yields (number of the variant, path below it, problem) of pipelines and settings that name nothing.

    Raises:
        InvalidRecipe: a pipeline's template has an error.
    """
    for number, variant in enumerate(info.recipes):
        if variant.pipeline is not None:
            yield from ((number, path, problem) for path, problem in misnamed(info, variant, clone))


def _in_the_clone(folder: Path, family: str, info: Info, clone: Clone, configs: Mapping[str, str]) -> Iterator[Rendering]:
    way_up = Path(os.path.relpath(clone.root.resolve(), folder.resolve())).as_posix()
    targets = targets_of(info)
    for target in targets:
        context = {
            "info": info,
            "target": target,
            "to_clone": way_up,
            "pins": clone.pins(target),
            "packages": packages_of(info, target, configs),
        }
        text = render(clone.templates, "recipe/requirements.txt.j2", context)
        yield Rendering(folder / requirements_file(target), text.encode())
    context = {
        "info": info,
        "family": family,
        "results": results_table(folder, {variant.name: _config_of(variant, folder, configs) for variant in info.recipes}),
        "has_script": (folder / "user_script.py").is_file(),
        "to_clone": way_up,
        "requirements": {target.provider: requirements_file(target) for target in targets},
    }
    yield Rendering(folder / "README.md", render(clone.templates, "recipe/README.md.j2", context).encode())


def _config_of(variant: Variant, folder: Path, configs: Mapping[str, str]) -> dict[str, Any] | None:
    """Returns a variant's config as it is rendered, or as it lies there where it is kept by hand; None where there is none."""
    if variant.file in configs:
        rendered: dict[str, Any] = json.loads(configs[variant.file])
        return rendered
    path = folder / variant.file
    written: dict[str, Any] | None = read_document(path).plain() if path.is_file() else None
    return written


def targets_of(info: Info) -> list[Target]:
    """Returns the targets that a recipe's variants are for, CPU first."""
    providers = {variant.ep for variant in info.recipes}
    return [target for target in TARGETS.values() if target.provider in providers]


def requirements_file(target: Target) -> str:
    """Returns the name of a target's requirements file in a recipe folder."""
    return "requirements.txt" if target.name == "cpu" else f"requirements.{target.name}.txt"


def packages_of(info: Info, target: Target, configs: Mapping[str, str]) -> list[str]:
    """Returns the packages that a requirements file pins: what the passes of a target's variants and their data need.

    Args:
        info: what info.yml says.
        target: whose variants count.
        configs: file name to text of the recipe's configs.
    """
    wanted: set[str] = set()
    for variant in info.recipes:
        if variant.ep == target.provider and variant.file in configs:
            wanted.update(packages_of_config(json.loads(configs[variant.file])))
    for source in info.model.sources:
        if isinstance(source, PackageSource):
            wanted.update(_FORMAT_PACKAGES[source.format])
    for key, packages in _EVALUATION_PACKAGES.items():
        if getattr(info.evaluation, key, None):
            wanted.update(packages)
    return with_wheels_of(target, wanted)


def with_wheels_of(target: Target, packages: Iterable[str]) -> list[str]:
    """Returns the packages and those that every recipe needs, with a target's runtimes in place of the CPU's; in order."""
    wheels = dict(zip(_OF_THE_CPU, target.wheels, strict=True))
    return sorted(wheels.get(name, name) for name in {*_PACKAGES, *packages})


def packages_of_config(config: Mapping[str, Any]) -> Iterator[str]:
    """Yields the packages that a configuration's model, data and passes need beside those of every recipe."""
    if config["input_model"]["type"] == "DiffusersModel":
        yield "diffusers"
    if any(data.get("type") == "HuggingfaceContainer" for data in config.get("data_configs", ())):
        yield "datasets"
    for step in config["passes"].values():
        known, _ = options_of(step["type"])
        if known is not None:
            yield from get_pass(known[0]).packages
