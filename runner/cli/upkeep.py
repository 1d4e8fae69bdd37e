"""`recipe render` and `recipe schema`: what is written from templates and declarations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from runner.catalog.discover import Entry, catalog_or_none, catalog_root, list_entries
from runner.catalog.find import find_entry
from runner.cli.options import catalog, catalog_option, complete_ids
from runner.errors import InvalidRecipe

if TYPE_CHECKING:
    from runner.templating.recipe import Rendering

SCHEMA_FOLDER = Path("docs/schema")
FAILED = 2

recipes_argument = click.argument("words", metavar="[RECIPE]...", nargs=-1, shell_complete=complete_ids)


def chosen_entries(words: Sequence[str]) -> list[Entry]:
    """Returns the recipes of the words, or the whole catalogue without any.

    Raises:
        InvalidRecipe: an info.yml among them cannot be read.
        UsageError: a word names nothing.
    """
    if words:
        return [find_entry(word, catalog()) for word in words]
    listing = list_entries(catalog_root(catalog()))
    if listing.problems:
        raise InvalidRecipe(*listing.problems)
    return list(listing.entries)


@click.command()
@recipes_argument
@click.option("--check", is_flag=True, help="Write nothing; exit 2 and show the difference where a file is not as rendered.")
@catalog_option
def render(words: tuple[str, ...], check: bool) -> None:
    """Render configs, READMEs and requirements from the templates.

    RECIPE is an id or folder; all recipes, and the pages about the whole catalogue, without it.
    """
    different = 0
    for rendering in _renderings(words):
        difference = rendering.difference()
        if difference is None:
            continue
        different += 1
        if check:
            click.echo(difference, nl=False)
        else:
            rendering.write()
            click.echo(f"wrote {rendering.path}")
    if check and different:
        click.echo(f"{different} file(s) differ from their rendering; 'recipe render' writes them", err=True)
        raise click.exceptions.Exit(FAILED)
    if not different:
        click.echo("everything is as rendered")


def _renderings(words: Sequence[str]) -> Iterator[Rendering]:
    from runner.templating.clone import clone_of
    from runner.templating.pages import render_pages
    from runner.templating.recipe import render_recipe

    for entry in chosen_entries(words):
        yield from render_recipe(entry.folder, entry.family, entry.info, clone_of(entry.folder))
    root = catalog_or_none(catalog())
    if root is not None:
        yield from render_pages(root, list_entries(root).entries, clone_of(root))


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default=SCHEMA_FOLDER, show_default=True, help="Folder to write to.")
@click.option("--check", is_flag=True, help="Write nothing; exit 2 where a schema on disk is not today's.")
def schema(output: Path, check: bool) -> None:
    """Write the JSON Schemas of olive_config.json and info.yml."""
    from runner.passes.table import MODULES, get
    from runner.recipe.schema import config_schema, info_schema

    schemas = {
        "info.schema.json": info_schema(),
        "olive_config.schema.json": config_schema({name: get(name).options for name in MODULES}),
    }
    different = []
    for name, content in schemas.items():
        path = output / name
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        different.append(str(path))
        if not check:
            output.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            click.echo(f"wrote {path}")
    if check and different:
        click.echo(f"not today's schema: {', '.join(different)}; 'recipe schema' writes them", err=True)
        raise click.exceptions.Exit(FAILED)
    if not different:
        click.echo("the schemas are as they should be")
