"""`recipe new`: a folder for a model that nobody listed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from runner.catalog.discover import catalog_root
from runner.cli.options import catalog, catalog_option, offline_option
from runner.cli.tables import print_table

if TYPE_CHECKING:
    from runner.catalog.scaffold import Draft, Wish
    from runner.targets.target import Target

INVALID = 2


def _targets(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[Target, ...]:
    from runner.targets.target import target_named

    return tuple(dict.fromkeys(target_named(part) for value in values for part in value.split(",") if part))


def _split(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part for value in values for part in value.lower().split(",") if part))


@click.command()
@click.option("--model", required=True, metavar="ORG/NAME", help="Hugging Face id, or a local folder with a config.json.")
@click.option("--target", "targets", multiple=True, callback=_targets, help="cpu, cuda (gpu), directml (dml). Repeatable.")
@click.option("--precision", "precisions", multiple=True, callback=_split, help="int4, int8, int8-static, fp16 … Repeatable.")
@click.option("--family", help="Folder that holds the recipe's; by name and architecture by default.")
@click.option("--name", help="The recipe's id; the model's name in small letters by default.")
@click.option("--task", help="Hugging Face task; what the architecture is for by default.")
@click.option("--template", "pipeline", metavar="PIPELINE", help="A template of templates/pipelines for the variant.")
@click.option("--licence", "--license", "licence", help="The model's licence, where it is not known here.")
@click.option(
    "--parameters", type=click.IntRange(min=1), metavar="N", help="Its number of weights, where it is not known here."
)
@click.option("--context-length", type=click.IntRange(min=1), metavar="N", help="Tokens that it reads at once.")
@click.option("--download-mb", type=click.FloatRange(min=0, min_open=True), metavar="MB", help="Size of its weights.")
@click.option("--gated/--open", default=None, help="Whether the hub asks to accept terms before it gives the weights.")
@click.option("--force", is_flag=True, help="Write into a folder that is there already.")
@offline_option
@catalog_option
def new(
    licence: str | None,
    parameters: int | None,
    context_length: int | None,
    download_mb: float | None,
    gated: bool | None,
    **chosen: Any,
) -> None:
    """Scaffold a recipe: a folder that lints and smokes at once.

    Variants are every --target with every --precision, where a pipeline serves both. What is not said is decided from the
    model's architecture, and told.
    """
    from runner.catalog.overviews import write_overviews
    from runner.catalog.scaffold import Wish, draft
    from runner.templating.clone import clone_of

    root = catalog_root(catalog())
    facts = {
        "licence": licence,
        "parameters": parameters,
        "context_length": context_length,
        "download_mb": download_mb,
        "gated": gated,
    }
    wish = Wish(facts=facts, **chosen)
    clone = clone_of(root / "recipe")

    def attempt(wish: Wish) -> Draft:
        return draft(wish, root, clone, lambda text: click.echo(text, err=True))

    made = _asking(wish, attempt)
    made.write()
    write_overviews(root)
    _tell(made)
    _lint(made)


def _asking(wish: Wish, attempt: Any) -> Draft:
    """Returns the draft; on a terminal, facts that are not known are asked for."""
    from runner.catalog.scaffold import UnknownFacts

    try:
        made: Draft = attempt(wish)
    except UnknownFacts as error:
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise
        made = attempt(replace(wish, facts={**wish.facts, **_asked(error.names)}))
    return made


def _asked(names: tuple[str, ...]) -> Mapping[str, Any]:
    click.echo("not known here; the model card says it:", err=True)
    kinds: Mapping[str, Any] = dict.fromkeys(("parameters", "context_length"), click.IntRange(min=1))
    return {name: click.prompt(name, type=kinds.get(name, str), err=True) for name in names}


def _tell(made: Draft) -> None:
    click.echo(f"{made.name} in {made.folder}\n")
    print_table(("", "decided", "why"), [(one.what, one.choice, one.why) for one in made.decisions])
    for note in made.notes:
        click.echo(f"note: {note}")


def _lint(made: Draft) -> None:
    """Holds the folder against the rules of the catalogue, and says what comes next."""
    from runner.catalog.lint import lint
    from runner.catalog.lint.subject import Catalogue
    from runner.cli import cli

    catalogue = Catalogue.at(catalog_root(catalog()), cli)
    findings = [finding for _, found in lint(catalogue, [made.folder]) for finding in found]
    broken = [finding.problem for finding in findings if finding.severity == "must"]
    for problem in broken:
        click.echo(f"must   {problem}")
    for command, what in (
        (f"recipe check {made.name}", "lint, and a smoke run of every variant"),
        (f"recipe run {made.name}", "the real model"),
        (f"recipe bench {made.name} --save", "against the original; sets what its gates should say"),
        (f"recipe render {made.name}", "after every change of info.yml"),
    ):
        click.echo(f"{'next:' if command.startswith('recipe check') else '     '} {command:{24 + len(made.name)}} {what}")
    if broken:
        raise click.exceptions.Exit(INVALID)
