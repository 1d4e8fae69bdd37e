"""`recipe ls`: the recipes of the catalogue, and what narrows the list."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.catalog.discover import catalog_root, list_facts, quick_info, read_entry
from runner.catalog.facts import Facts, VariantFacts
from runner.catalog.licences import licence_named
from runner.catalog.query import (
    Condition,
    Measure,
    alone_excluding,
    at_most,
    by_deprecation,
    by_family,
    by_gating,
    by_licence,
    by_measured,
    by_precision,
    by_target,
    by_task,
    by_word,
    corrected,
    download_bytes,
    select,
)
from runner.cli.options import catalog, catalog_option, json_option, size_option, target_option
from runner.cli.tables import aligned, print_json, print_table
from runner.recipe.quantities import short_count, short_size

if TYPE_CHECKING:
    from runner.cli.options import Size
    from runner.recipe.info import Info
    from runner.targets.target import Target

_GAP = "  "
_TARGETS = ("cpu", "cuda", "dml")
_OF_FACETS: dict[str, Callable[[str, Sequence[Facts]], Condition]] = {
    "precision": by_precision,
    "task": by_task,
    "family": by_family,
    "licence": by_licence,
}
_OF_FACTS: dict[str, Callable[[bool], Condition]] = {
    "gated": by_gating,
    "measured": by_measured,
    "deprecated": by_deprecation,
}
_NAMES_SHOWN = 3  # of the recipes that one condition excludes


@click.command()
@click.argument("words", nargs=-1)
@target_option
@click.option("--precision", metavar="NAME", help="fp32, fp16, int8, int4 …; with a scheme where you like: int8-static-qdq.")
@click.option("--task", metavar="NAME", help="Hugging Face task, e.g. text-generation.")
@click.option("--family", metavar="NAME", help="Folder that holds the recipes of a family.")
@click.option(
    "--license", "--licence", "licence", metavar="NAME", help="permissive and the like, or a part of the licence's name."
)
@size_option("--max-memory", "Peak memory of making the variant, at most: 8GB, 7.5GiB.")
@size_option("--max-download", "Download of the source model, at most: 2GB.")
@click.option("--gated/--not-gated", default=None, help="Whether the hub asks to accept the licence.")
@click.option("--measured/--not-measured", default=None, help="Whether there are results.")
@click.option("--deprecated/--not-deprecated", default=None, help="Whether it is kept, but not recommended.")
@click.option("--variants", "--long", "as_variants", is_flag=True, help="A line for each variant, too.")
@json_option
@catalog_option
def ls(words: tuple[str, ...], as_variants: bool, as_json: bool, **asked: Any) -> None:
    """List the recipes of the catalogue.

    WORDS narrow the list: each must stand in the name, family, title, summary, keywords, task or model id, or be near to one
    that does.
    """
    root = catalog_root(catalog())
    listed, problems = list_facts(root)
    conditions, notes = _conditions(words, asked, listed)
    chosen = select(listed, conditions)
    for note in notes:
        click.echo(note, err=True)
    if as_json:
        measure = peak_memory()
        print_json([_everything(facts, root, measure) for facts in chosen])
    elif not listed:
        click.echo("the catalogue is empty", err=True)
    elif not chosen:
        _explain_nothing(listed, conditions)
    elif as_variants:
        _print_variants(chosen)
    elif sys.stdout.isatty():
        _print_families(chosen, shutil.get_terminal_size().columns)
    else:
        _print_plain(chosen)
    for problem in problems:
        click.echo(f"not listed: {problem}", err=True)


def _conditions(words: Sequence[str], asked: dict[str, Any], listed: Sequence[Facts]) -> tuple[list[Condition], list[str]]:
    """What was asked for as conditions, what needs an estimate last; and what was assumed of misspelt words."""
    meant = {word: corrected(word, listed) for word in words}
    conditions = [by_word(found or word) for word, found in meant.items()]
    target: Target | None = asked["target"]
    if target is not None:
        conditions.append(by_target(target.name, target.provider))
    conditions += [make(asked[name], listed) for name, make in _OF_FACETS.items() if asked[name] is not None]
    conditions += [make(asked[name]) for name, make in _OF_FACTS.items() if asked[name] is not None]
    download: Size | None = asked["max_download"]
    if download is not None:
        conditions.append(at_most(f"--max-download {download}", download.bytes, download_bytes))
    memory: Size | None = asked["max_memory"]
    if memory is not None:
        conditions.append(at_most(f"--max-memory {memory}", memory.bytes, peak_memory()))
    return conditions, [_assumed(word, found) for word, found in meant.items() if found != word]


def _assumed(word: str, found: str | None) -> str:
    if found is None:
        return f"nothing is called '{word}', nor anything near it"
    return f"nothing is called '{word}': this is what '{found}' finds"


def _explain_nothing(listed: Sequence[Facts], conditions: Sequence[Condition]) -> None:
    """Tells that nothing matches, and every condition that alone excludes what would."""
    click.echo(f"no recipe matches {' '.join(condition.text for condition in conditions)}", err=True)
    if len(conditions) == 1:
        return
    for condition, without in alone_excluding(listed, conditions):
        names = ", ".join(facts.name for facts in without[:_NAMES_SHOWN]) + (" …" if len(without) > _NAMES_SHOWN else "")
        click.echo(f"    without {condition.text}: {_counted(len(without), 'recipe')} ({names})", err=True)


def _print_families(chosen: Sequence[Facts], room: int) -> None:
    """Prints a block a family, with a line a recipe."""
    for number, (family, group) in enumerate(itertools.groupby(chosen, key=lambda facts: facts.family)):
        if number:
            click.echo()
        for line in family_lines(family, list(group), room):
            click.echo(line)
    _print_footer(chosen)


def family_lines(family: str, members: Sequence[Facts], room: int) -> Iterator[str]:
    """Yields the lines of a family for a terminal, styled: a heading, then a recipe each.

    Columns in which nothing stands are left out. Where the lines would not fit, a licence's category takes the place of a
    longer name; where that does not suffice, the number of parameters is left out, which names as long as that tell anyway.

    Args:
        family: its name.
        members: its recipes.
        room: width of the terminal in characters.
    """
    attempts = (
        [_cells(facts, facts.licence) for facts in members],
        [_cells(facts, _category(facts)) for facts in members],
        [_cells(replace(facts, parameters=None), _category(facts)) for facts in members],
    )
    for rows in attempts:
        lines = _columns((family, "params", *_TARGETS, "others", "licence"), rows)
        if max(map(len, lines)) <= room:
            break
    yield click.style(lines[0], bold=True)
    for facts, line in zip(members, lines[1:], strict=True):
        if facts.deprecated is not None:
            yield click.style(line, dim=True)
        else:
            yield click.style(facts.name, fg="cyan") + line[len(facts.name) :]


def _columns(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of the columns in which something stands."""
    filled = [at for at in range(len(headings)) if any(row[at] for row in rows)]
    shown = [headings[at] for at in filled]
    return list(aligned(shown, [[row[at] for at in filled] for row in rows], right=("params",)))


def _category(facts: Facts) -> str:
    return min(facts.licence, licence_named(facts.licence).category, key=len)


def _cells(facts: Facts, licence: str) -> tuple[str, ...]:
    name = facts.name + (" (deprecated)" if facts.deprecated is not None else "")
    count = "" if facts.parameters is None else short_count(facts.parameters)
    precisions = _precisions(facts)
    others = ", ".join(target.removesuffix("ExecutionProvider") for target in precisions if target not in _TARGETS)
    of_targets = [precisions.get(target, "") for target in _TARGETS]
    return name, count, *of_targets, others, licence + ("*" if facts.gated else "")


def _precisions(facts: Facts) -> dict[str, str]:
    """Target to the precisions that there are for it, in the order of info.yml."""
    found: dict[str, dict[str, None]] = {target: {} for target in _TARGETS}
    for variant in facts.variants:
        found.setdefault(variant.target, {})[variant.precision or "?"] = None
    return {target: " ".join(precisions) for target, precisions in found.items() if precisions}


def _print_footer(chosen: Sequence[Facts]) -> None:
    count = sum(len(facts.variants) for facts in chosen)
    click.secho(f"\n{_counted(len(chosen), 'recipe')}, {_counted(count, 'variant')}; --variants lists each", dim=True)
    if any(facts.gated for facts in chosen):
        click.secho("* gated: accept the licence on the hub first", dim=True)


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'s' if number != 1 else ''}"


def _print_plain(chosen: Sequence[Facts]) -> None:
    """Prints a line a recipe for other programs."""
    rows = [
        (
            facts.family,
            facts.name,
            facts.task,
            "" if facts.parameters is None else short_count(facts.parameters),
            facts.licence,
            " · ".join(f"{target} {precisions}" for target, precisions in _precisions(facts).items()),
        )
        for facts in chosen
    ]
    print_table(("family", "recipe", "task", "parameters", "licence", "precisions"), rows, ("parameters",))


def _print_variants(chosen: Sequence[Facts]) -> None:
    """Prints a line a variant: below its recipe's on a terminal, with its whole name into a pipe."""
    measure = peak_memory()
    columns = ("variant", "memory", "measured", "config")
    rows = [
        (variant.name, _told_size(measure(facts, variant)), "yes" if variant.measured else "", variant.file)
        for facts in chosen
        for variant in facts.variants
    ]
    if not sys.stdout.isatty():
        owners = [facts for facts in chosen for _ in facts.variants]
        whole = [(f"{facts.name}/{row[0]}", _download(facts), *row[1:]) for facts, row in zip(owners, rows, strict=True)]
        print_table((columns[0], "download", *columns[1:]), whole, ("download", "memory"))
        return
    lines = iter(aligned(columns, rows, right=("memory",)))
    click.secho(f"  {next(lines)}", bold=True)
    for facts in chosen:
        click.echo(_title(facts))
        for line in itertools.islice(lines, len(facts.variants)):
            click.echo(f"  {line}")
    click.secho("\nmemory: most that making the variant takes, estimated", dim=True)


def _title(facts: Facts) -> str:
    name = click.style(facts.name, dim=True) if facts.deprecated is not None else click.style(facts.name, fg="cyan")
    deprecated = " (deprecated)" if facts.deprecated is not None else ""
    count = "" if facts.parameters is None else short_count(facts.parameters)
    download = f"{_download(facts)} to download" if facts.download_mb is not None else ""
    licence = facts.licence + (", gated" if facts.gated else "")
    return f"{name}{deprecated}  " + _GAP.join(filter(None, (count, download, licence)))


def _download(facts: Facts) -> str:
    return "" if facts.download_mb is None else short_size(facts.download_mb * 1e6)


def _told_size(size: float | None) -> str:
    return "?" if size is None else short_size(size)


def peak_memory() -> Measure:
    """Returns what estimates the peak memory of making a variant, in bytes; it gives None where that cannot be told."""
    from runner.engine.estimate import variant_memory

    @lru_cache
    def info_of(file: Path) -> Info:
        return quick_info(file)

    def measure(facts: Facts, variant: VariantFacts) -> float | None:
        info = info_of(facts.file)
        chosen = info.variant(variant.name)
        return variant_memory(facts.folder, info, chosen) if chosen else None

    return measure


def _everything(facts: Facts, root: Path, measure: Measure) -> dict[str, Any]:
    """What `ls --json` says of a recipe: all of its info.yml, and what is told of it elsewhere."""
    entry = read_entry(root, facts.file)
    info, model = entry.info, entry.info.model
    listed = {variant.name: variant for variant in facts.variants}
    return {
        "id": info.name,
        "aliases": info.aliases,
        "family": facts.family,
        "title": info.title,
        "summary": (info.summary or "").strip() or None,
        "keywords": info.keywords,
        "folder": str(facts.folder),
        "arch": info.arch,
        "model": model.id,
        "task": model.task,
        "parameters": model.parameters,
        "context_length": model.context_length,
        "licence": model.licence,
        "licence_category": licence_named(model.licence).category,
        "gated": model.gated,
        "download_mb": model.download_mb,
        "provenance": model.provenance.model_dump(exclude_none=True),
        "sources": [source.model_dump(exclude_none=True) for source in model.sources],
        "lifecycle": info.lifecycle.model_dump(exclude_none=True),
        "maintainers": info.maintainers,
        "origin": info.origin.model_dump() if info.origin else None,
        "variants": [
            {
                "name": variant.name,
                "file": variant.file,
                "target": listed[variant.name].target,
                "device": variant.device,
                "provider": variant.ep,
                "precision": variant.precision,
                "pipeline": variant.pipeline,
                "gates": variant.gates,
                "measured": listed[variant.name].measured,
                "peak_memory_bytes": measure(facts, listed[variant.name]),
            }
            for variant in info.recipes
            if variant.name in listed
        ],
    }
