"""`recipe show`: a recipe's facts, and its resolved config with the origin of each value."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from runner.catalog.find import Found, find
from runner.catalog.licences import licence_named
from runner.cli.options import catalog, catalog_option, json_option, recipe_argument, set_option, variant_option
from runner.cli.tables import print_json, print_table
from runner.recipe.document import Node
from runner.recipe.quantities import short_count, short_size
from runner.targets.target import target_name

if TYPE_CHECKING:
    from runner.recipe.info import Info, Provenance

_STATUS = {
    "draft": "draft: not reviewed yet",
    "tested": "tested: every variant passes its smoke run; 'measured' says on what figures were taken",
    "deprecated": "deprecated",
}


@click.command()
@recipe_argument
@variant_option
@set_option
@click.option("--all", "with_defaults", is_flag=True, help="Values that nobody set, too.")
@json_option
@catalog_option
def show(word: str | None, variant: str | None, overrides: tuple[str, ...], with_defaults: bool, as_json: bool) -> None:
    """Show a recipe, its resolved config and where each value comes from.

    RECIPE is a name, name/variant, a recipe folder or a config file; the current folder without it. Names are ids, aliases
    and the model's Hugging Face id.
    """
    from runner.cli.estimates import needs_facts, needs_of, print_needs
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
                "needs": needs_facts(needs_of(found, resolved)),
                "config": resolved.plain(),
                "origins": {dotted(path): node.origin.text for path, node in resolved.leaves()},
                "notes": loaded.notes,
            }
        )
        return
    if found.info:
        _print_facts(found, found.info)
        _print_variants(found, found.info)
    else:
        click.echo(f"{found.config}\n")
    print_needs(found, resolved)
    print_table(("value", "is", "from"), list(_origin_rows(resolved, found, with_defaults)))
    for note in loaded.notes:
        click.echo(f"note: {note}")


def _print_facts(found: Found, info: Info) -> None:
    """Prints what is true of the model, each fact with its provenance, and of the recipe."""
    model = info.model
    from_where = model.provenance
    click.echo(f"{click.style(info.name, bold=True)}  {info.title or ''}".rstrip())
    if info.lifecycle.status == "deprecated":
        click.secho(f"deprecated: {(info.lifecycle.reason or '').strip()}", fg="yellow")
    if info.summary:
        click.echo(info.summary.strip())
    click.echo()
    _print_fact("model", f"{model.id} ({model.task or 'no task told'})")
    if model.parameters is not None:
        _print_fact("parameters", short_count(model.parameters), from_where.parameters)
    if model.context_length:
        _print_fact("context", f"{model.context_length:,} tokens", from_where.context_length)
    licence = licence_named(model.licence)
    _print_fact("licence", f"{model.licence} ({licence.category})", from_where.licence)
    _print_fact("", licence.why)
    if model.gated or from_where.gated:
        gating = "gated: accept the licence on the hub first" if model.gated else "not gated"
        _print_fact("access", gating, from_where.gated)
    if model.download_mb is not None:
        _print_fact("download", short_size(model.download_mb * 1e6), from_where.download_mb)
    _print_fact("status", _STATUS[info.lifecycle.status])
    for name, told in (("aliases", info.aliases), ("keywords", info.keywords), ("maintainers", info.maintainers)):
        if told:
            _print_fact(name, ", ".join(told))
    if info.origin:
        _print_fact("copied from", info.origin.recipe)
    measured = [variant.name for variant in info.recipes if any((found.folder / "results").glob(f"*.{variant.name}.json"))]
    _print_fact("measured", ", ".join(measured) or "not yet")
    _print_fact("folder", str(found.folder))
    _print_fact("config", found.config.name)


def _print_fact(name: str, text: str, provenance: Provenance | None = None) -> None:
    click.echo(f"{name:<13}{text}{click.style(_mark(provenance), dim=True)}")


def _mark(provenance: Provenance | None) -> str:
    """Where a fact comes from, and whether somebody compared it with its source."""
    if provenance is None:
        return ""
    checked = f"checked {provenance.checked}" if provenance.checked else "not checked"
    return f"  [{provenance.source}, {checked}]"


def _print_variants(found: Found, info: Info) -> None:
    from runner.engine.estimate import variant_memory

    rows = []
    for variant in info.recipes:
        chosen = "*" if variant == found.variant else " "
        memory = variant_memory(found.folder, info, variant)
        gates = ", ".join(f"{metric} {bar}" for metric, bar in variant.gates.items())
        rows.append(
            (
                f"{chosen} {variant.name}",
                target_name(variant.ep),
                variant.precision or "",
                "?" if memory is None else short_size(memory),
                gates,
            )
        )
    click.echo()
    print_table(("  variant", "target", "precision", "memory", "must reach"), rows, ("memory",))
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
