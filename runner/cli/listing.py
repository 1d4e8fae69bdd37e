"""`recipe ls`, `recipe show` and `recipe passes`: what there is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from runner.catalog.discover import Entry, Found, catalog_root, find, list_entries
from runner.catalog.query import Query, target_name
from runner.cli.options import catalog, catalog_option, json_option, recipe_argument, set_option, target_option, variant_option
from runner.cli.tables import print_json, print_table
from runner.errors import UsageError, did_you_mean
from runner.recipe.document import Node

if TYPE_CHECKING:
    from runner.passes.declaration import Pass
    from runner.targets.target import Target


@click.command()
@click.argument("words", nargs=-1)
@click.option("--task", help="Hugging Face task, e.g. text-generation.")
@target_option
@click.option("--precision", help="fp32, fp16, int8, int4 …")
@click.option("--license", "--licence", "licence", help="Licence of the model, or a part of its name.")
@click.option("--family", help="Folder that holds the recipes of a family.")
@json_option
@catalog_option
def ls(
    words: tuple[str, ...],
    task: str | None,
    target: Target | None,
    precision: str | None,
    licence: str | None,
    family: str | None,
    as_json: bool,
) -> None:
    """List the recipes of the catalogue.

    WORDS narrow the list: each must stand in the name, family, summary, keywords or model id.
    """
    listing = list_entries(catalog_root(catalog()))
    entries = Query(words, task, target, precision, licence, family).select(listing.entries)
    if as_json:
        print_json([entry_facts(entry) for entry in entries])
    elif entries:
        print_table(
            ("recipe", "task", "parameters", "licence", "variants"), [_row(entry) for entry in entries], ("parameters",)
        )
    else:
        click.echo("no recipe matches" if listing.entries else "the catalogue is empty", err=True)
        for hint in _unmatched(listing.entries, task=task, precision=precision, licence=licence, family=family):
            click.echo(f"    {hint}", err=True)
    for problem in listing.problems:
        click.echo(f"not listed: {problem}", err=True)


def _unmatched(entries: Sequence[Entry], **asked: str | None) -> Iterator[str]:
    """Yields what there is of a facet, where the catalogue has nothing of what was asked for."""
    facets = {
        "task": {entry.info.model.task for entry in entries},
        "precision": {variant.precision for entry in entries for variant in entry.info.recipes if variant.precision},
        "licence": {entry.info.model.licence for entry in entries},
        "family": {entry.family for entry in entries},
    }
    for name, value in asked.items():
        if value is not None and facets[name] and not any(value.lower() in there.lower() for there in facets[name]):
            yield f"no recipe has the {name} '{value}': {did_you_mean(value, facets[name])}"


def entry_facts(entry: Entry) -> dict[str, Any]:
    """Returns what `ls --json` says of a recipe."""
    info = entry.info
    return {
        "id": info.name,
        "family": entry.family,
        "title": info.title,
        "folder": str(entry.folder),
        "arch": info.arch,
        "model": info.model.id,
        "task": info.model.task,
        "parameters": info.model.parameters,
        "licence": info.model.licence,
        "gated": info.model.gated,
        "keywords": info.keywords,
        "variants": [
            {"name": one.name, "file": one.file, "target": target_name(one), "precision": one.precision} for one in info.recipes
        ],
    }


def _row(entry: Entry) -> tuple[str, ...]:
    model = entry.info.model
    variants = ", ".join(variant.name for variant in entry.info.recipes)
    return entry.info.name, model.task, short_count(model.parameters), model.licence, variants


def short_count(number: int) -> str:
    """Returns 134515008 as '135M'."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


@click.command()
@recipe_argument
@variant_option
@set_option
@click.option("--all", "with_defaults", is_flag=True, help="Values that nobody set, too.")
@json_option
@catalog_option
def show(word: str | None, variant: str | None, overrides: tuple[str, ...], with_defaults: bool, as_json: bool) -> None:
    """Show a recipe, its resolved config and where each value comes from.

    RECIPE is an id, id/variant, a recipe folder or a config file; the current folder without it.
    """
    from runner.passes.table import options_of
    from runner.recipe.load import load_config

    found = find(word, catalog(), variant)
    loaded = load_config([found.config], options_of, overrides)
    resolved = loaded.resolved()
    if as_json:
        print_json(
            {
                "id": found.id,
                "variant": found.variant.name if found.variant else None,
                "folder": str(found.folder),
                "config_file": str(found.config),
                "info": found.info.model_dump() if found.info else None,
                "config": resolved.plain(),
                "origins": {dotted(path): node.origin.text for path, node in resolved.leaves()},
                "notes": loaded.notes,
            }
        )
        return
    _print_facts(found)
    print_table(("value", "is", "from"), list(_origin_rows(resolved, found, with_defaults)))
    for note in loaded.notes:
        click.echo(f"note: {note}")


def _print_facts(found: Found) -> None:
    info = found.info
    if info is None:
        click.echo(f"{found.config}\n")
        return
    model = info.model
    context = f", {model.context_length} tokens of context" if model.context_length else ""
    click.echo(f"{click.style(info.name, bold=True)}  {info.title or ''}".rstrip())
    if info.summary:
        click.echo(info.summary.strip())
    click.echo(f"\nmodel     {model.id} ({model.task}, {short_count(model.parameters)} parameters{context}, {model.licence})")
    click.echo(f"folder    {found.folder}")
    for variant in info.recipes:
        mark = "*" if variant == found.variant else " "
        gates = ", ".join(f"{metric} {bar}" for metric, bar in variant.gates.items())
        click.echo(
            f"variant {mark} {variant.name}: {target_name(variant)} {variant.precision or ''} {variant.file}  {gates}".rstrip()
        )
    click.echo()


def _origin_rows(resolved: Node, found: Found, with_defaults: bool) -> Iterator[tuple[str, str, str]]:
    for path, node in resolved.leaves():
        if node.origin.text != "default" or with_defaults:
            origin = node.origin.text.removeprefix(f"{found.folder}/")
            yield dotted(path), _shown(node), origin


def dotted(path: tuple[str | int, ...]) -> str:
    """Returns a path as `--set` takes it; the level `options` of a step is left out there."""
    parts = [str(part) for part in path]
    if len(parts) > 3 and parts[0] == "passes" and parts[2] == "options":
        del parts[2]
    return ".".join(parts)


def _shown(node: Node) -> str:
    return json.dumps(node.plain(), ensure_ascii=False)


@click.group()
def passes() -> None:
    """List the passes and show their options."""


@passes.command("ls")
@json_option
def passes_ls(as_json: bool) -> None:
    """List the passes."""
    from runner.passes.table import MODULES, get

    declared = [get(name) for name in sorted(MODULES)]
    if as_json:
        print_json([_pass_facts(one) for one in declared])
        return
    print_table(
        ("pass", "takes", "gives", "targets", "what it does"),
        [(one.name, "/".join(one.takes), one.gives or "the same", " ".join(one.targets), one.summary) for one in declared],
    )


def _pass_facts(declared: Pass) -> dict[str, Any]:
    return {
        "name": declared.name,
        "summary": declared.summary,
        "takes": declared.takes,
        "gives": declared.gives,
        "targets": declared.targets,
        "packages": declared.packages,
        "version": declared.version,
    }


@passes.command("show")
@click.argument("name")
@json_option
def passes_show(name: str, as_json: bool) -> None:
    """Show a pass and its options: type, default and meaning."""
    from runner.passes.table import get, options_of
    from runner.recipe.schema import case_rows, option_rows

    known, names = options_of(name)
    if known is None:
        raise UsageError("unknown-pass", f"there is no pass '{name}'", did_you_mean(name, names))
    declared = get(known[0])
    if as_json:
        options = declared.options
        more = {"options": options.model_json_schema(), "retired": dict(options.retired), "renamed": dict(options.renamed)}
        print_json({**_pass_facts(declared), **more})
        return
    click.echo(f"{click.style(declared.name, bold=True)}: {declared.summary}\n")
    click.echo(f"takes {', '.join(declared.takes)}; gives {declared.gives or 'the same'}; for {', '.join(declared.targets)}")
    click.echo(f"made with {', '.join(declared.packages) or 'nothing but itself'}\n")
    print_table(("option", "type", "default", "meaning"), [tuple(row) for row in option_rows(declared.options)])
    for case, meaning, rows in case_rows(declared.options):
        click.echo(f"\n{click.style(case, bold=True)}: {meaning}")
        if rows:
            print_table(("option", "type", "default", "meaning"), [tuple(row) for row in rows])
    for old, new in declared.options.renamed.items():
        click.echo(f"renamed: {old} is {new} today")
    for old, why in declared.options.retired.items():
        click.echo(f"retired: {old}: {why}")
