"""The rules of the catalogue, in one table: `recipe lint`, its `--rules` and docs/lint-rules.md come from it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from runner.catalog.lint import (
    commands,
    configs,
    facts,
    foreign,
    links,
    names,
    online,
    records,
    rendered,
    samples,
    scripts,
)
from runner.catalog.lint.rule import Finding, Rule
from runner.catalog.lint.subject import Catalogue, Subject
from runner.errors import InvalidRecipe
from runner.recipe.document import read_document
from runner.recipe.folder import info_file
from runner.recipe.info import read_info
from runner.recipe.info_foreign import foreign_info, is_foreign, listed

# What is wrong with info.yml itself is told under the rules of its loader: unknown-key, missing-key, bad-value …
RULES: tuple[Rule, ...] = (
    *names.RULES,
    *facts.RULES,
    *configs.RULES,
    *rendered.RULES,
    *commands.RULES,
    *links.RULES,
    *samples.RULES,
    *scripts.RULES,
    *records.RULES,
    online.RULE,
    *foreign.RULES,
)


def lint(catalogue: Catalogue, folders: Sequence[Path] | None = None) -> Iterator[tuple[Path, list[Finding]]]:
    """Yields every recipe folder of the catalogue (or only the given ones, wherever they lie) and what is wrong with it."""
    wanted = None if folders is None else {folder.resolve() for folder in folders}
    for file in catalogue.files:
        if wanted is None or file.parent.resolve() in wanted:
            yield file.parent, lint_folder(catalogue, file)
    inside = {file.parent.resolve() for file in catalogue.files}
    for folder in folders or ():
        alone = info_file(folder)
        if alone is not None and folder.resolve() not in inside:
            yield folder, lint_folder(replace(catalogue, files=[alone]), alone)


def lint_folder(catalogue: Catalogue, file: Path) -> list[Finding]:
    """Returns what is wrong with the recipe of an info.yml; where that cannot be read, only why."""
    try:
        subject = subject_of(catalogue, file)
    except InvalidRecipe as error:
        return [Finding("must", problem) for problem in error.problems]
    return [
        Finding.of(rule, severity, fault)
        for rule in RULES
        if rule.of_recipe and (severity := rule.elsewhere if subject.foreign else rule.severity)
        for fault in rule.of_recipe(subject)
    ]


def lint_clone(catalogue: Catalogue) -> list[Finding]:
    """Returns what is wrong around the recipes: in the documentation, and in overviews that are made of them."""
    return [
        Finding.of(rule, rule.severity, fault)
        for rule in RULES
        if rule.of_clone and rule.severity
        for fault in rule.of_clone(catalogue)
    ]


def subject_of(catalogue: Catalogue, file: Path) -> Subject:
    """Returns what the rules look at for an info.yml, ours or laid out as olive-recipes' are.

    Raises:
        InvalidRecipe: it cannot be read.
    """
    tree = read_document(file)
    if not tree.members or not is_foreign(tree.members):
        return Subject(file, *read_info(file), catalogue)
    written = tree.plain()
    entries = [number for number, _ in listed(written)]
    return Subject(file, foreign_info(file, written, catalogue.root), tree, catalogue, foreign=True, entries=entries)
