"""`recipe check`: lint and smoke runs of what changed, here and in continuous integration alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.catalog.discover import Entry, catalog_or_none, catalog_root, list_entries
from runner.catalog.find import find_entry, named_variant
from runner.catalog.selection import Candidate, Selection, affected, candidates_of, shard, spread
from runner.cli.options import catalog, catalog_option, complete_ids, trust_option
from runner.errors import Problem, UsageError

if TYPE_CHECKING:
    from runner.engine.smoke_many import Smoked

FAILED, INVALID, BUG_OF_OURS, GATE_MISSED = 1, 2, 3, 4


@dataclass
class Report:
    """What a check found.

    Attributes:
        selection: what was looked at.
        broken: problems that must be mended.
        hints: how many more the rules would like to see.
        runs: smoke runs that are done.
    """

    selection: Selection
    broken: list[Problem] = field(default_factory=list)
    hints: int = 0
    runs: list[Smoked] = field(default_factory=list)

    @property
    def failed(self) -> list[Smoked]:
        """Returns the runs that did not pass."""
        return [run for run in self.runs if not run.passed]

    @property
    def exit_code(self) -> int:
        """Returns the code of the worst thing found: a bug of ours, an invalid recipe, a failed run, a missed gate."""
        codes = {run.code for run in self.failed} | ({INVALID} if self.broken else set())
        if not codes:
            return 0
        return next(
            (code for code in (BUG_OF_OURS, INVALID) if code in codes), GATE_MISSED if codes == {GATE_MISSED} else FAILED
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain data."""
        return {
            "ok": self.exit_code == 0,
            "why": list(self.selection.why),
            "linted": [folder.name for folder in self.selection.folders],
            "problems": [str(problem) for problem in self.broken],
            "hints": self.hints,
            "runs": [
                {
                    "id": run.id,
                    "ok": run.passed,
                    "code": run.code,
                    "seconds": round(run.seconds, 1),
                    "cause": run.cause or None,
                    "log": str(run.log) if run.log else None,
                }
                for run in self.runs
            ],
        }


@click.command()
@click.argument("words", metavar="[RECIPE]...", nargs=-1, shell_complete=complete_ids)
@click.option("--all", "everything", is_flag=True, help="Every variant of the catalogue.")
@click.option(
    "--changed", "base", metavar="[BASE]", is_flag=False, flag_value="", help="What changed since BASE; origin/main or main."
)
@click.option("--spread", "as_spread", is_flag=True, help="Few variants that cover every architecture and every pipeline.")
@click.option("--shard", metavar="I/N", help="Only the I-th of N parts of it.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at once; they share the cores.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=900.0, show_default=True, help="Seconds a run.")
@trust_option
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write a report.")
@click.option("--list", "only_list", is_flag=True, help="Say what would be checked, and do nothing.")
@catalog_option
def check(
    words: tuple[str, ...],
    everything: bool,
    base: str | None,
    as_spread: bool,
    shard: str | None,
    jobs: int,
    timeout: float,
    trust: bool,
    json_file: Path | None,
    only_list: bool,
) -> None:
    """Lint and smoke-run recipes: what changed against the main branch, when nothing is named.

    RECIPE is an id, id/variant or folder. A smoke run sends a tiny twin of the model through the whole pipeline; nothing is
    written to models/. Exit codes: 0 all is well, 1 a run failed, 2 a recipe is invalid, 3 a bug of ours, 4 a gate missed.
    """
    selection, unreadable = _select(words, everything, base, as_spread)
    if shard:
        selection = _part(selection, shard)
    report = Report(selection, unreadable)
    for why in selection.why:
        click.echo(f"checking {why}")
    if only_list:
        for candidate in selection.candidates:
            click.echo(candidate.id)
        return
    if not selection.folders and not selection.documents and not unreadable:
        click.echo("nothing that recipes depend on has changed; name recipes, or use --spread or --all")
        return
    _lint(report)
    _smoke(report, jobs, timeout, trust)
    if json_file:
        json_file.write_text(json.dumps(report.to_json(), indent=2) + "\n", encoding="utf-8")
    _summarise(report)
    if report.exit_code:
        raise click.exceptions.Exit(report.exit_code)


def _select(words: Sequence[str], everything: bool, base: str | None, as_spread: bool) -> tuple[Selection, list[Problem]]:
    """What is to be checked, and the problems of every info.yml that cannot be read."""
    if sum((bool(words), everything, base is not None, as_spread)) > 1:
        raise UsageError("bad-usage", "recipes, --all, --changed and --spread do not go together", "give one of them")
    if words:
        return _named(words), []
    root = catalog_root(catalog())
    listing = list_entries(root)
    entries, unreadable = listing.entries, list(listing.problems)
    if not everything and not as_spread:
        from runner.catalog.changes import changes_since
        from runner.templating.clone import clone_of

        changes = changes_since(root, base or None)
        selection = affected(changes.files, entries, clone_of(root / "recipe"))
        click.echo(f"compared with {changes.base} ({changes.commit[:10]}): {len(changes.files)} files changed")
        return selection, unreadable
    candidates = candidates_of(entries)
    chosen = spread(candidates) if as_spread else candidates
    why = f"{len(chosen)} of {len(candidates)} variants" + (", every architecture and pipeline among them" if as_spread else "")
    folders = tuple(entry.folder for entry in entries)
    return Selection(folders, tuple(chosen), (why,), documents=everything), unreadable


def _named(words: Sequence[str]) -> Selection:
    chosen: dict[str, Candidate] = {}
    folders: dict[Path, None] = {}
    for word in words:
        entry = find_entry(word, catalog())
        folders[entry.folder] = None
        for candidate in _variants_named(word, entry):
            chosen[candidate.id] = candidate
    return Selection(tuple(folders), tuple(chosen.values()), ())


def _variants_named(word: str, entry: Entry) -> list[Candidate]:
    """The one variant of `id/variant` or of a config file, or all of the recipe."""
    everything, named = candidates_of([entry]), named_variant(word, catalog())
    return [one for one in everything if named is None or one.variant.name == named.name]


def _part(selection: Selection, text: str) -> Selection:
    candidates = shard(selection.candidates, text)
    homes = {one.entry.folder for one in candidates}
    folders = tuple(folder for folder in selection.folders if folder in homes)
    return replace(
        selection,
        folders=folders,
        candidates=tuple(candidates),
        why=(*selection.why, f"part {text}: {len(candidates)} variants"),
    )


def _lint(report: Report) -> None:
    from runner.catalog.lint import lint, lint_clone
    from runner.catalog.lint.subject import Catalogue
    from runner.cli import cli

    catalogue = Catalogue.at(catalog_or_none(catalog()), cli)
    checked = list(lint(catalogue, report.selection.folders)) if report.selection.folders else []
    if report.selection.documents:
        checked.append((catalogue.clone.root, lint_clone(catalogue)))
    for folder, findings in checked:
        broken = [finding.problem for finding in findings if finding.severity == "must"]
        report.broken += broken
        report.hints += len(findings) - len(broken)
        if broken:
            click.echo(f"{click.style('broken', fg='red'):6}  {folder.name}: {len(broken)} to mend")
    for problem in report.broken:
        click.echo(f"        {str(problem).replace(chr(10), chr(10) + '        ')}")


def _smoke(report: Report, jobs: int, seconds: float, trust: bool) -> None:
    from runner.engine.smoke_many import smoke_many

    there = {one.id: one.config.resolve() for one in report.selection.candidates if one.config.is_file()}
    width = max(map(len, there), default=0)
    for run in smoke_many(there, jobs, seconds, trust):
        report.runs.append(run)
        state = click.style("ok    ", fg="green") if run.passed else click.style("failed", fg="red")
        click.echo(f"{state}  {run.id:{width}}  {run.seconds:6.1f} s" + (f"  {run.cause}" if run.cause else ""))
        if run.log:
            click.echo(f"        log: {run.log}")


def _summarise(report: Report) -> None:
    linted, ran = len(report.selection.folders), len(report.runs)
    hints = f", {report.hints} to consider" if report.hints else ""
    click.echo(
        f"{linted} recipe{'s' if linted != 1 else ''} linted: {len(report.broken)} to mend{hints}; "
        f"{ran} smoke run{'s' if ran != 1 else ''}: {len(report.failed)} failed"
    )
    if report.failed:
        click.echo(f"again: recipe check {' '.join(run.id for run in report.failed)}")
