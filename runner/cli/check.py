"""`recipe render`, `recipe lint` and `recipe schema`: what keeps the catalogue in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from runner.catalog.discover import Entry, catalog_or_none, catalog_root, find_entry, list_entries
from runner.cli.options import catalog, catalog_option, complete_ids, json_option
from runner.cli.tables import print_json, print_table
from runner.errors import InvalidRecipe, Problem

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

    RECIPE is an id or folder; all recipes without it.
    """
    from runner.templating.recipe import clone_of, render_recipe

    different = 0
    for entry in chosen_entries(words):
        for rendering in render_recipe(entry.folder, entry.family, entry.info, clone_of(entry.folder)):
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


@click.command()
@recipes_argument
@click.option("--strict", is_flag=True, help="Fail on what should be, too.")
@click.option("--rules", is_flag=True, help="List the rules.")
@json_option
@catalog_option
def lint(words: tuple[str, ...], strict: bool, rules: bool, as_json: bool) -> None:
    """Check recipes against the rules of the catalogue.

    RECIPE is an id or folder; all recipes without it. Exits 2 when something must be mended.
    """
    from runner.catalog.lint import RULES
    from runner.catalog.lint import lint as lint_catalog

    if rules:
        facts = [
            {"id": rule.id, "severity": rule.severity, "what": rule.what, "why": rule.why, "fix": rule.fix} for rule in RULES
        ]
        if as_json:
            print_json(facts)
        else:
            print_table(("rule", "severity", "what"), [(rule.id, rule.severity, rule.what) for rule in RULES])
        return
    if words:
        checked = list(lint_catalog(catalog_or_none(catalog()), [entry.folder for entry in chosen_entries(words)]))
    else:
        checked = list(lint_catalog(catalog_root(catalog())))
    findings = [(folder, finding) for folder, found in checked for finding in found]
    if as_json:
        print_json(
            [
                {"folder": str(folder), "severity": finding.severity, **_problem_facts(finding.problem)}
                for folder, finding in findings
            ]
        )
    else:
        for _, finding in findings:
            click.echo(f"{finding.severity:6} {finding.problem}")
    failing = sum(finding.severity == "must" or strict for _, finding in findings)
    recipes = "1 recipe" if len(checked) == 1 else f"{len(checked)} recipes"
    click.echo(f"{recipes} checked, {failing} to mend, {len(findings) - failing} to consider", err=as_json)
    if failing:
        raise click.exceptions.Exit(FAILED)


def _problem_facts(problem: Problem) -> dict[str, Any]:
    return {
        "rule": problem.rule,
        "cause": problem.cause,
        "file": problem.place.file if problem.place else None,
        "line": problem.place.line if problem.place else None,
        "fix": problem.remedy,
    }


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
