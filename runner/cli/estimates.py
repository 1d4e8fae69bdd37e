"""What a run needs, as people and programs read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from runner.catalog.find import Found
from runner.cli.tables import print_table
from runner.engine.estimate import Needs, estimate_config
from runner.recipe.document import Node
from runner.recipe.quantities import short_size


def needs_of(found: Found, resolved: Node) -> Needs | None:
    """Returns what making a recipe from nothing needs; None where nothing is known of its model."""
    return estimate_config(resolved.plain(), found.info, found.variant.ep if found.variant else None)


def needs_facts(needs: Needs | None) -> dict[str, Any] | None:
    """Returns the figures for `--json`, in bytes."""
    if needs is None:
        return None
    return {
        "download_bytes": needs.download,
        "memory_bytes": needs.memory,
        "disk_bytes": needs.disk,
        "output_bytes": needs.output,
        "steps": [
            {
                "step": step.name,
                "pass": step.pass_name,
                "memory_bytes": step.memory,
                "check_bytes": step.check,
                "output_bytes": step.output,
            }
            for step in needs.steps
        ],
        "rough": needs.roughly,
    }


def needs_text(needs: Needs) -> str:
    """Returns the figures of a run in one line."""
    download = f"{short_size(needs.download)} to download, " if needs.download else ""
    return (
        f"about {download}{short_size(needs.memory)} of memory, {short_size(needs.disk)} of disk for the steps; "
        f"the model takes {short_size(needs.output)}"
    )


def print_needs(found: Found, resolved: Node) -> None:
    """Prints what making a recipe from nothing needs, step by step."""
    needs = needs_of(found, resolved)
    if needs is None:
        click.echo("needs     cannot be told: nothing is known of the model's weights\n")
        return
    click.echo(f"needs     {needs_text(needs)}")
    if needs.roughly:
        click.echo(f"          roughly: {needs.roughly}")
    click.echo()
    print_table(("step", "pass", "memory", "check", "leaves"), list(_rows(needs)), ("memory", "check", "leaves"))
    click.echo()


def _rows(needs: Needs) -> Iterator[tuple[str, ...]]:
    for step in needs.steps:
        check = short_size(step.check) if step.check else ""
        yield step.name, step.pass_name, short_size(step.memory), check, short_size(step.output)
