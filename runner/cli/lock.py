"""`recipe lock`: which revision and files a recipe's source model has."""

from __future__ import annotations

from collections.abc import Sequence

import click

from runner.catalog.discover import Entry, catalog_root, list_entries
from runner.catalog.find import find_entry
from runner.cli import tell
from runner.cli.options import catalog, catalog_option, complete_ids, offline_option
from runner.errors import RecipeError, UsageError

FAILED = 1


@click.command()
@click.argument("words", metavar="[RECIPE]...", nargs=-1, shell_complete=complete_ids)
@click.option("--all", "everything", is_flag=True, help="Every recipe of the catalogue.")
@offline_option
@catalog_option
def lock(words: tuple[str, ...], everything: bool, offline: bool) -> None:
    """Record revision and digests of the source model, as recipe.lock.json in the recipe's folder.

    What is on this machine already is taken first, else it is fetched. `recipe run RECIPE --locked` then refuses any other.
    """
    from runner.engine.places import places
    from runner.models.digest import DigestMemo
    from runner.models.lock import NAME, make_lock
    from runner.models.source import Access

    failed = 0
    where = places()
    with DigestMemo(where.digests) as memo:
        access = Access(where.models, memo, offline, say=lambda text: click.echo(text, err=True))
        for entry in _chosen(words, everything):
            try:
                made = make_lock(entry.info.name, entry.info.model.id, entry.info.model.sources, access)
            except RecipeError as error:
                failed += 1
                tell(error)
                continue
            path = entry.folder / NAME
            path.write_text(made.to_json(), encoding="utf-8", newline="\n")
            size = sum(file.bytes for file in made.files) / 1e6
            click.echo(f"wrote {path}: {len(made.files)} files, {size:,.1f} MB")
    if failed:
        click.echo(f"{failed} not locked", err=True)
        raise click.exceptions.Exit(FAILED)


def _chosen(words: Sequence[str], everything: bool) -> list[Entry]:
    if bool(words) == everything:
        raise UsageError("bad-usage", "name recipes, or give --all", "recipe lock RECIPE")
    if words:
        return [find_entry(word, catalog()) for word in words]
    return list(list_entries(catalog_root(catalog())).entries)
