"""`recipe lint`: what the rules of the catalogue find."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.catalog.discover import catalog_or_none, catalog_root, info_files
from runner.catalog.find import find_entry
from runner.cli.options import catalog, catalog_option, complete_ids, json_option
from runner.cli.tables import print_json, print_table
from runner.errors import Problem
from runner.recipe.folder import info_file

if TYPE_CHECKING:
    from runner.catalog.lint.online import Comparison
    from runner.catalog.lint.rule import Finding
    from runner.catalog.lint.subject import Catalogue

FAILED = 2


@click.command()
@click.argument("words", metavar="[RECIPE]...", nargs=-1, shell_complete=complete_ids)
@click.option("--hints", is_flag=True, help="List every hint; without it one line a rule counts them.")
@click.option("--strict", is_flag=True, help="Fail on hints, too, and list them.")
@click.option("--online", is_flag=True, help="Compare the facts of the models with the hub as well.")
@click.option("--rules", is_flag=True, help="List the rules.")
@json_option
@catalog_option
def lint(words: tuple[str, ...], hints: bool, strict: bool, online: bool, rules: bool, as_json: bool) -> None:
    """Check recipes against the rules of the catalogue.

    RECIPE is an id or folder, or a folder of recipes, such as a checkout of olive-recipes; without it everything is checked,
    documentation included. Exits 2 when something must be mended.
    """
    if rules:
        _print_rules(as_json)
        return
    findings: list[Finding] = []
    folders: list[Path] = []
    comparisons: list[Comparison] = []
    for catalogue, chosen in _chosen(words):
        found, looked_at = _check(catalogue, chosen)
        findings += found
        folders += looked_at
        if online:
            comparisons.append(_compare(catalogue, looked_at))
            findings += comparisons[-1].findings
    failing = sum(finding.severity == "must" or strict for finding in findings)
    if as_json:
        print_json([_facts(finding) for finding in findings])
    else:
        _print(findings, in_full=hints or strict)
    _print_comparison(comparisons)
    recipes = "1 recipe" if len(folders) == 1 else f"{len(folders)} recipes"
    click.echo(f"{recipes} checked, {failing} to mend, {len(findings) - failing} to consider", err=as_json)
    if failing:
        raise click.exceptions.Exit(FAILED)


def _chosen(words: Sequence[str]) -> Iterator[tuple[Catalogue, list[Path] | None]]:
    """Yields catalogues, each with the folders in it that are asked for; None for all that there is, documentation included.

    A word that names a folder without info.yml, but with recipes below, is a catalogue of its own.
    """
    from runner.catalog.lint.subject import Catalogue
    from runner.cli import cli

    if not words:
        yield Catalogue.at(catalog_root(catalog()), cli), None
        return
    folders = []
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir() and info_file(path) is None and next(info_files(path), None):
            below = Catalogue.at(path, cli)
            yield below, [file.parent for file in below.files]
        else:
            folders.append(_folder(word))
    if folders:
        yield Catalogue.at(catalog_or_none(catalog()), cli), folders


def _folder(word: str) -> Path:
    """The folder of a recipe, whose info.yml need not be valid: the rules tell what is wrong with it."""
    path = Path(word).expanduser()
    if path.is_dir() and info_file(path) is not None:
        return path.resolve()
    root = catalog_or_none(catalog())
    named = (file.parent for file in info_files(root) if file.parent.name == word) if root else iter(())
    return next(named, None) or find_entry(word, catalog()).folder


def _check(catalogue: Catalogue, folders: Sequence[Path] | None) -> tuple[list[Finding], list[Path]]:
    from runner.catalog.lint import lint as lint_catalogue
    from runner.catalog.lint import lint_clone

    checked = list(lint_catalogue(catalogue, folders))
    findings = [finding for _, found in checked for finding in found]
    if folders is None and catalogue.is_the_clones:
        findings += lint_clone(catalogue)
    return list(dict.fromkeys(findings)), [folder for folder, _ in checked]  # a template's error is every recipe's


def _compare(catalogue: Catalogue, folders: Sequence[Path]) -> Comparison:
    from runner.catalog.lint import subject_of
    from runner.catalog.lint.online import HuggingFace, compare_with_hub
    from runner.errors import InvalidRecipe

    subjects = []
    for folder in folders:
        file = info_file(folder)
        try:
            subjects += [subject_of(catalogue, file)] if file else []
        except InvalidRecipe:
            continue  # told by the rules
    return compare_with_hub(subjects, HuggingFace())


def _print_rules(as_json: bool) -> None:
    from runner.catalog.lint import RULES

    if as_json:
        print_json(
            [
                {
                    "id": rule.id,
                    "severity": rule.severity,
                    "elsewhere": rule.elsewhere,
                    "what": rule.what,
                    "why": rule.why,
                    "fix": rule.fix,
                }
                for rule in RULES
            ]
        )
    else:
        rows = [(rule.id, rule.severity or "", rule.elsewhere or "", rule.what) for rule in RULES]
        print_table(("rule", "here", "elsewhere", "what"), rows)


def _print(findings: Sequence[Finding], in_full: bool) -> None:
    """Prints what must be mended, and the hints: each of them, or a line a rule."""
    hints: dict[str, list[Finding]] = {}
    for finding in findings:
        if finding.severity == "must" or in_full:
            click.echo(f"{finding.severity:6} {_seen_from_here(finding.problem)}")
        else:
            hints.setdefault(finding.problem.rule, []).append(finding)
    for rule, found in hints.items():
        problem = _seen_from_here(found[0].problem)
        click.echo(f"{'should':6} {rule}: {len(found)} x, such as {problem.place}: {problem.cause}")
    if hints:
        click.echo("       --hints lists each of these with what mends it")


def _seen_from_here(problem: Problem) -> Problem:
    """Returns the problem with its file's path below the current folder, where it lies there."""
    here = f"{Path.cwd()}{os.sep}"
    return replace(problem, place=problem.place and replace(problem.place, file=problem.place.file.removeprefix(here)))


def _print_comparison(comparisons: Sequence[Comparison]) -> None:
    unreached = {model: why for one in comparisons for model, why in one.unreached.items()}
    reached = sum(one.reached for one in comparisons)
    if comparisons and not reached and unreached:
        why = next(iter(unreached.values()))
        click.echo(f"the hub cannot be reached ({why}); no fact was compared with it", err=True)
    elif comparisons:
        click.echo(f"{reached} models compared with the hub, {len(unreached)} could not be reached", err=True)
        for model, why in unreached.items():
            click.echo(f"    {model}: {why}", err=True)


def _facts(finding: Finding) -> dict[str, Any]:
    told = finding.problem.to_json()
    fix = told.pop("remedy")
    return {"severity": finding.severity, **told, "fix": fix}
