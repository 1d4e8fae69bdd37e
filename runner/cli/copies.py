"""`recipe copy` and `recipe diff`: a recipe made from another, and what has become of it."""

from __future__ import annotations

from pathlib import Path

import click

from runner.catalog.discover import Entry, catalog_or_none
from runner.catalog.find import find_entry, named_variant
from runner.cli.options import catalog, catalog_option, complete_ids, json_option
from runner.cli.tables import print_json
from runner.errors import UsageError

_STYLES = {"+": "green", "-": "red", "@": "cyan"}


@click.command()
@click.argument("word", metavar="RECIPE", shell_complete=complete_ids)
@click.argument("name")
@click.option("--model", metavar="ORG/NAME", help="Another model in place of the recipe's.")
@click.option("--into", type=click.Path(path_type=Path, file_okay=False), metavar="DIR", help="Beside the original by default.")
@catalog_option
def copy(word: str, name: str, model: str | None, into: Path | None) -> None:
    """Copy RECIPE, without its results, to a new recipe NAME that remembers where it is from."""
    from runner.catalog.copies import copy_recipe
    from runner.catalog.overviews import write_overviews

    origin = find_entry(word, catalog())
    if (variant := named_variant(word, catalog())) is not None:
        cause = f"'{word}' is the variant {variant.name}, and a recipe is copied whole"
        raise UsageError(
            "a-variant", cause, f"recipe copy {origin.info.name} {name}; then take the other variants out of info.yml"
        )
    inside = catalog_or_none(catalog())
    made = copy_recipe(origin, name, inside, into, model)
    if inside:
        write_overviews(inside)
    click.echo(f"{name} in {made.folder}, a copy of {origin.info.name}")
    for note in made.notes:
        click.echo(f"note: {note}")
    known = name if inside and made.folder.resolve().is_relative_to(inside) else str(made.folder)
    click.echo(f"next: edit info.yml, then recipe render {known}, recipe diff {known}, recipe check {known}")


@click.command()
@click.argument("word", metavar="RECIPE", shell_complete=complete_ids)
@click.argument("other", metavar="[OTHER]", required=False, shell_complete=complete_ids)
@json_option
@catalog_option
def diff(word: str, other: str | None, as_json: bool) -> None:
    """Show what RECIPE changed against the recipe that it was copied from, or against OTHER."""
    from runner.catalog.differences import differences, origin_changed

    entry = find_entry(word, catalog())
    old = find_entry(other, catalog()) if other else _origin_of(entry)
    moved = other is None and origin_changed(entry, old)
    found = list(differences(old, entry))
    if as_json:
        print_json(
            {
                "recipe": entry.info.name,
                "against": old.info.name,
                "origin_changed": moved,
                "files": {one.file: list(one.lines) for one in found},
            }
        )
        return
    click.echo(f"{old.info.name} -> {entry.info.name}" + ("" if found else ": no difference"))
    if moved:
        click.echo(f"note: {old.info.name} has changed since it was copied; some of what follows is its own change")
    for one in found:
        click.echo(click.style(f"\n{one.file}", bold=True))
        for line in one.lines:
            click.echo("  " + click.style(line, fg=_STYLES.get(line[:1])))


def _origin_of(entry: Entry) -> Entry:
    name = entry.info.name
    if entry.info.origin is None:
        cause = f"{name} was not copied from another recipe, so there is nothing to compare it with"
        raise UsageError("no-origin", cause, f"name one: recipe diff {name} OTHER")
    try:
        return find_entry(entry.info.origin.recipe, catalog())
    except UsageError:
        cause = f"{name} was copied from '{entry.info.origin.recipe}', which is not in this catalogue"
        raise UsageError("unknown-origin", cause, f"name another: recipe diff {name} OTHER; or use --catalog") from None
