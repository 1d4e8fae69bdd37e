"""The recipe of the best point: a folder beside the model that runs as it is, with nothing left to vary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.catalog.copies import copied_info, files_of
from runner.catalog.discover import Entry
from runner.catalog.names import is_name
from runner.catalog.scaffold import Decision
from runner.compose.folder import CONFIG, Composed, recipe_beside
from runner.engine.request import Request
from runner.recipe.document import Node
from runner.recipe.folder import info_file
from runner.recipe.load import LoadedConfig
from runner.recipe.migrate import PASS_LEVEL
from runner.recipe.yaml_text import with_value, without
from runner.search.pareto import compared_figures
from runner.search.search import Search
from runner.search.space import text_of
from runner.search.study import Trial

_RENDERED = ("info.yml", "info.yaml", "README.md", CONFIG)
_MOST_BYTES = 50_000_000  # of a file that is copied; greater ones are named where they lie


def write_winner(search: Search, trial: Trial, output: Path, command: str) -> Composed:
    """Writes the recipe of a point beside its model.

    Args:
        search: what was searched.
        trial: the point.
        output: folder of the model.
        command: the command, as README.md tells it.

    Raises:
        UsageError: a file that lies there was changed by hand.
        StoreError: the folder cannot be written.
    """
    request = search.at(trial.point, output)
    folder = recipe_beside(output)
    info, files = (None, _named_files(request.loaded)) if request.info is None else _of_recipe(request, folder)
    decisions = [Decision(name, text_of(value), "best point of the search") for name, value in trial.point.items()]
    figures = [(name, trial.figures[name]) for name in compared_figures([trial], search.aims)]
    notes = [f"{name}: {one.value:.6g} {one.unit}".strip() for name, one in figures]
    composed = Composed(
        folder,
        plain_config(request, output),
        search.plan.target,
        f"{request.name}: the best of {search.folder.name}",
        command,
        decisions,
        [*notes, *(f"misses the goal {one}" for one in search.aims.missed(trial.figures))],
        info,
        request.loaded.folder.parent.name if info else None,
        files=files,
    )
    composed.write()
    return composed


def plain_config(request: Request, output: Path) -> dict[str, Any]:
    """Returns the configuration as olive_config.json has it: options beside the pass, and a local model by its whole path."""
    config: dict[str, Any] = request.loaded.tree.plain()
    config["passes"] = {name: _flat(step) for name, step in config["passes"].items()}
    model, folder = config["input_model"], request.loaded.folder
    named = model.get("model_path")
    if isinstance(named, str) and (folder / named).exists():
        model["model_path"] = str((folder / named).resolve())
    config["output_dir"] = str(output)
    return config


def _flat(step: Mapping[str, Any]) -> dict[str, Any]:
    beside = {key: value for key, value in step.items() if key in PASS_LEVEL and key != "type"}
    return {"type": step["type"], **step.get("options", {}), **beside}


def _of_recipe(request: Request, folder: Path) -> tuple[str, dict[str, bytes]]:
    """Returns info.yml with the one variant, and the recipe's data."""
    loaded, info = request.loaded, request.info
    file = info_file(loaded.folder)
    if info is None or file is None:
        raise ValueError("the request is not of a recipe")
    own = folder.name.removesuffix("-recipe").lower()
    name = own if is_name(own) and own != info.name else f"{info.name}-searched"
    text, _ = copied_info(Entry(loaded.folder, file, loaded.folder.parent.name, info), name, None)
    at = next((number for number, one in enumerate(info.recipes) if one.name == request.variant), 0)
    for number in reversed(range(len(info.recipes))):
        if number != at:
            text = without(text, ("recipes", number))
    for key in ("settings", "pipeline"):
        text = without(text, ("recipes", 0, key))
    text = with_value(text, ("recipes", 0, "file"), CONFIG)
    rendered = {variant.file for variant in info.recipes}
    files = {
        name: path.read_bytes()
        for name, path in files_of(loaded.folder)
        if name not in rendered and path.name not in _RENDERED and not name.startswith("requirements")
    }
    return text, files


def _named_files(loaded: LoadedConfig) -> dict[str, bytes]:
    """Returns the files below the configuration's folder that it names: scripts and data."""
    return {
        path.relative_to(loaded.folder).as_posix(): path.read_bytes()
        for path in _below(loaded.folder, loaded.tree)
        if path.stat().st_size <= _MOST_BYTES
    }


def _below(folder: Path, tree: Node) -> Iterator[Path]:
    for path, leaf in tree.leaves():
        if not isinstance(leaf.value, str) or not leaf.value or path == ("input_model", "model_path"):
            continue
        named = folder / leaf.value
        try:
            inside = named.resolve().is_relative_to(folder) and named.resolve() != folder
            if inside and named.is_file():
                yield named
            elif inside and named.is_dir() and path[0] in ("data_configs", "passes", "evaluators"):
                yield from (file for file in sorted(named.rglob("*")) if file.is_file())
        except (OSError, ValueError):
            continue
