"""Options that several verbs share, each declared once."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from runner.errors import RecipeError, UsageError

F = TypeVar("F", bound=Callable[..., Any])


def _keep_catalog(context: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is not None:
        context.find_root().obj = value


def catalog() -> Path | None:
    """Returns the folder that `--catalog` named, whether it stood before or behind the verb."""
    chosen: Path | None = click.get_current_context().find_root().obj
    return chosen


def complete_ids(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Returns the ids of recipes that begin with what was typed, for the shell; behind an id and a slash its variants."""
    from runner.catalog.discover import catalog_root, info_files, read_facts

    typed, slash, _rest = incomplete.lower().rpartition("/")
    try:
        files = list(info_files(catalog_root(context.find_root().obj)))
        if slash:
            return [
                CompletionItem(f"{facts.name}/{variant.name}", help=facts.title)
                for facts in (read_facts(None, file) for file in files if file.parent.name.lower() == typed)
                for variant in facts.variants
                if f"{facts.name}/{variant.name}".startswith(incomplete.lower())
            ]
    except RecipeError:  # the verb itself tells what is wrong
        return []
    names = [file.parent.name for file in files if file.parent.name.lower().startswith(incomplete.lower())]
    return [CompletionItem(name) for name in (*names, *(f"{name}/" for name in names if len(names) == 1))]


@dataclass(frozen=True)
class Size:
    """A size as it was typed, and its bytes."""

    text: str
    bytes: float

    def __str__(self) -> str:
        return self.text


def _size(_: click.Context, parameter: click.Parameter, value: str | None) -> Size | None:
    if value is None:
        return None
    from runner.recipe.quantities import size_of

    try:
        return Size(value, size_of(value))
    except ValueError as error:
        raise UsageError("bad-size", f"{parameter.opts[0]}: {error}", "give a number and its unit") from None


class _Gigabytes(click.ParamType[float]):
    """Gigabytes as a plain number, or a size with its unit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Returns gigabytes."""
        if isinstance(value, float):
            return value
        from runner.recipe.quantities import size_of

        try:
            return size_of(f"{value}GB" if re.fullmatch(r"\s*[\d.]+\s*", str(value)) else str(value)) / 1e9
        except ValueError as error:
            self.fail(str(error), param, ctx)


GIGABYTES = _Gigabytes()


def _target(_: click.Context, __: click.Parameter, value: str | None) -> Any:
    from runner.targets.target import target_named

    return None if value is None else target_named(value)


def _target_or_auto(_: click.Context, __: click.Parameter, value: str | None) -> Any:
    from runner.targets.target import target_named

    return value if value in (None, "auto") else target_named(value, ("auto",))


catalog_option = click.option(
    "--catalog",
    type=click.Path(path_type=Path),
    callback=_keep_catalog,
    expose_value=False,
    help="Folder of recipes; $RECIPE_CATALOG or the nearest recipes/ by default.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
variant_option = click.option("--variant", metavar="NAME", help="Variant of the recipe; its first one by default.")
target_option = click.option(
    "--target", metavar="NAME", callback=_target, help="cpu, cuda (gpu) or directml (dml): the first variant made for it."
)
target_or_auto_option = click.option(
    "--target",
    metavar="NAME",
    callback=_target_or_auto,
    help="cpu, cuda (gpu) or directml (dml): the first variant made for it; auto: for the best of them that is here.",
)
config_option = click.option(
    "--config",
    "configs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Config file; further ones are laid over it section by section. Repeatable.",
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="PATH=VALUE", help="Override, e.g. passes.convert.precision=int8. Repeatable."
)
output_dir_option = click.option(
    "--output-dir", type=click.Path(path_type=Path), help="Where the model goes; models/ID-VARIANT by default."
)
offline_option = click.option("--offline", is_flag=True, help="No network; says before any work what is missing.")
trust_option = click.option("--trust", is_flag=True, help="Allow code that comes with the model or from outside the catalogue.")
smoke_option = click.option("--smoke", is_flag=True, help="Run with a tiny random-weight twin of the model and synthetic data.")
no_artifacts_option = click.option(
    "--no-artifacts", is_flag=True, help="Keep the finished model only, not what the steps before the last one leave."
)
no_cache_option = click.option("--no-cache", is_flag=True, help="Make every step again.")


def size_option(name: str, text: str) -> Callable[[F], F]:
    """Returns an option that takes a size in bytes, such as 8GB, 7.5GiB or 800MB; the command gets a `Size`, or None."""
    return click.option(name, metavar="SIZE", callback=_size, help=text)


def recipe_argument(function: F) -> F:
    """Adds the optional argument `word`: a name, name/variant, recipe folder or config file; the current folder without it."""
    return click.argument("word", metavar="[RECIPE]", required=False, shell_complete=complete_ids)(function)


def request_options(function: F) -> F:
    """Adds the options that decide what is run and what it may do; `runner.cli.request.make_request` takes them."""
    for option in (
        click.option("--threads", type=click.IntRange(min=1), help="Threads to compute with; one a core by default."),
        trust_option,
        offline_option,
        smoke_option,
        click.option("--model-path", metavar="FOLDER", help="The source model: a local folder in place of the recipe's."),
        set_option,
        target_or_auto_option,
        variant_option,
    ):
        function = option(function)
    return function
