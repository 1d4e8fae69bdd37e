"""From the folder of a finished model to the run that it came from, so that it can be measured as it lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runner.catalog.find import find, is_there
from runner.compose.folder import CONFIG, recipe_beside
from runner.compose.request import make_request
from runner.engine.plan import Plan
from runner.engine.publish import RECEIPT, finished_model, read_receipt
from runner.engine.request import Request
from runner.errors import InvalidRecipe, UsageError
from runner.recipe.folder import info_file

_DECIDED = {  # what the folder has decided: argument of `make_request` -> what is typed for it
    "variant": "--variant",
    "target": "--target",
    "overrides": "--set",
    "output_dir": "--output-dir",
    "no_cache": "--no-cache",
}


def finished_request(word: str | None, catalog: Path | None, chosen: Mapping[str, Any]) -> Request | None:
    """Returns the request that leads to the finished model in a folder; None where the word names no such folder.

    Args:
        word: what was typed; None for the current folder.
        catalog: folder of recipes; $RECIPE_CATALOG or the nearest recipes/ when None.
        chosen: further arguments of `make_request`.

    Raises:
        UsageError: the model there cannot be measured; says why, and what can be typed instead.
        InvalidRecipe: the configuration of its recipe has problems.
    """
    folder = Path(word or ".").expanduser()
    if not is_there(folder) or not folder.is_dir() or info_file(folder) or (folder / CONFIG).is_file():
        return None
    receipt = read_receipt(folder)
    if finished_model(folder) is None:
        if not (folder / RECEIPT).exists():
            return None
        raise UsageError("bad-receipt", f"{folder / RECEIPT} is no receipt of a run", "make the model again with 'recipe run'")
    if receipt is None:
        raise UsageError(
            "no-receipt",
            f"{folder} holds a model without a {RECEIPT}: nothing says which model it came from, to be measured against",
            "'recipe bench RECIPE' makes a recipe's model and measures it; 'recipe try' runs this one",
        )
    if missing := [name for name in receipt.get("files", ()) if not (folder / name).is_file()]:
        raise UsageError(
            "model-incomplete", f"{folder} lacks files that its receipt names: {', '.join(missing)}", _again(receipt, folder)
        )
    if given := [flag for name, flag in _DECIDED.items() if chosen.get(name)]:
        cause = f"{folder} is a finished model, in which {', '.join(given)} can change nothing"
        raise UsageError("bad-usage", cause, "leave it out, or name the recipe in place of the folder")
    if chosen.get("smoke") and not receipt.get("smoke"):
        raise UsageError("bad-usage", f"{folder} was not made by a smoke run", "leave out --smoke")
    kept = {name: value for name, value in chosen.items() if name not in (*_DECIDED, "smoke")}
    recipe, variant = _recipe_of(folder, receipt, catalog)
    return make_request(
        recipe, catalog=catalog, variant=variant, smoke=bool(receipt.get("smoke")), output_dir=folder.absolute(), **kept
    )


def check_same_source(plan: Plan) -> None:
    """Makes sure that the model in a plan's output folder was made from the source that the plan starts from.

    Raises:
        UsageError: it was made from another one.
    """
    told = (read_receipt(plan.output) or {}).get("model") or {}
    if told.get("digest") != plan.source.digest:
        raise UsageError(
            "another-source",
            f"{plan.output} was made from another model ({told.get('from')}) than {plan.request.name} starts from"
            f" ({plan.source.told})",
            f"give its folder: --model-path FOLDER; or measure the recipe's own model: recipe bench {typed_for(plan.request)}",
        )


def typed_for(request: Request) -> str:
    """Returns what is typed to name the recipe of a request."""
    return request.name if request.info else str(request.loaded.files[0])


def is_made_by(plan: Plan) -> bool:
    """Says whether the model in the output folder is what the plan would make: same options, same versions."""
    return bool((read_receipt(plan.output) or {}).get("fingerprint") == plan.steps[-1].fingerprint)


def _recipe_of(folder: Path, receipt: Mapping[str, Any], catalog: Path | None) -> tuple[str, str | None]:
    """Returns the word for the recipe of a model and the variant: the one beside it, or that which the receipt names."""
    beside = recipe_beside(folder)
    if (beside / CONFIG).is_file():
        return str(beside / CONFIG), None
    name, variant = receipt.get("recipe"), receipt.get("variant")
    for word in _places(folder, name) if name else ():
        try:
            found = find(word, catalog)
        except (InvalidRecipe, UsageError):
            continue
        if found.info is not None and found.info.name == name:
            return word, variant
    if name:
        cause = f"{folder} was made by the recipe {name}, which is neither beside it nor in the catalogue"
        remedy = f"name its catalogue (--catalog DIR), or its configuration: {_by_config(receipt, folder)}"
    else:
        cause = f"{folder} was made by a configuration that belongs to no recipe, and {beside.name} is not beside it"
        remedy = f"name the configuration: {_by_config(receipt, folder)}"
    raise UsageError("no-recipe", cause, remedy)


def _places(folder: Path, name: str) -> Iterator[str]:
    """Yields where a recipe may be: the recipe folder around a models/ folder, and the catalogue."""
    yield from map(str, folder.resolve().parents[:2])
    yield name


def _by_config(receipt: Mapping[str, Any], folder: Path) -> str:
    configs = " ".join(f"--config {name}" for name in receipt.get("config") or ("FILE",))
    return f"recipe bench {configs} --output-dir {folder}"


def _again(receipt: Mapping[str, Any], folder: Path) -> str:
    name, variant = receipt.get("recipe"), receipt.get("variant")
    what = f"{name}/{variant}" if name and variant else name or " ".join(f"--config {one}" for one in receipt.get("config", ()))
    return f"make it again: recipe run {what}{' --smoke' if receipt.get('smoke') else ''} --output-dir {folder}"
