"""`recipe passes`: what a recipe can be made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import json_option
from runner.cli.tables import print_json, print_table
from runner.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from runner.passes.declaration import Pass


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
