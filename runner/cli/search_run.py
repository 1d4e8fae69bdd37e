"""Carries out a search for the verbs that search, and shows what comes of it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from runner.cli.run_progress import live_bars
from runner.cli.tables import print_table
from runner.compose.folder import recipe_beside
from runner.engine.events import Event
from runner.engine.limits import Limits
from runner.engine.publish import check_writable
from runner.engine.request import Request, require_device
from runner.engine.run import execute, plan_run
from runner.errors import GateMissed, Interrupted, Problem, UsageError
from runner.recipe.config import SearchStrategy
from runner.report.figures import figure
from runner.search.aims import aims_of
from runner.search.measure import way_of
from runner.search.pareto import compared_figures
from runner.search.search import Found, Search, check_space, run_search
from runner.search.space import text_of, told
from runner.search.study import Study, Trial, locked
from runner.search.summary import notes_of, rows_of
from runner.search.task_figures import check_task_has, task_of

_FIRST_POINTS = 5
_ONE_POINT = "one point: every option has one value"


@dataclass(frozen=True)
class Asked:
    """What was asked of a search.

    Attributes:
        goals, minimise, maximise: see `runner.search.aims.aims_of`.
        strategy: members of the search strategy that win over the configuration's.
        rounds: turns of a benchmark a point; decided when None.
        builtin: the space is a built-in one.
        fresh, dry_run, force, as_json: see the options of the verb.
        limits: what a point's worker may use.
    """

    goals: Sequence[str] = ()
    minimise: Sequence[str] = ()
    maximise: Sequence[str] = ()
    strategy: Mapping[str, Any] = field(default_factory=dict)
    rounds: int | None = None
    builtin: bool = False
    fresh: bool = False
    dry_run: bool = False
    force: bool = False
    as_json: bool = False
    limits: Limits = field(default_factory=Limits)


def carry_out_search(request: Request, asked: Asked) -> None:
    """Searches, or shows the space only, and shows what came of it.

    Raises:
        GateMissed: no point meets all goals; the nearest is kept.
        RecipeError: whatever stands in the way.
    """
    with _Progress(request.name) as progress:
        search = _search(request, asked, progress)
        check_space(search)
        if asked.dry_run:
            progress.stop()
            _show_space(search, asked)
            return
        _check_outputs(search)
        with locked(search.folder):
            known = 0 if asked.fresh else len(Study.open(search.folder, search.key, fresh=False).trials)
            progress.begin(search, asked, known)
            found = _tried(search, asked, progress)
            outputs = _keep(search, found, progress)
    files = _written(search, found, outputs)
    if asked.as_json:
        click.echo((search.folder / "search.json").read_text(encoding="utf-8"))
    else:
        _show(search, found, outputs, files)
    best = found.ranked[0]
    missed = search.aims.missed(best.figures)
    if missed:
        cause = f"{request.name}: none of {len(found.ranked)} points meets all goals; point {best.number + 1} is the nearest"
        reached = ", ".join(
            f"{name} is {best.figures[name].value:.10g}" for name in search.aims.metrics if name in best.figures
        )
        remedy = f"it misses {', '.join(missed)}: {reached}; widen the space, or lower the goal"
        raise GateMissed(Problem("goal-missed", cause, remedy=remedy))


def _search(request: Request, asked: Asked, progress: _Progress) -> Search:
    info = request.info.variant(request.variant) if request.info else None
    task = task_of(request)
    aims = aims_of(request.config, info.gates if info else {}, asked.goals, asked.minimise, asked.maximise, task)
    if task is not None:
        check_task_has(aims, request, task)
    if request.smoke:
        aims = replace(aims, goals=())
    given = request.config.search_strategy
    strategy = given if isinstance(given, SearchStrategy) else SearchStrategy()
    strategy = SearchStrategy.model_validate({**strategy.model_dump(), **asked.strategy})
    way = way_of(aims, request, asked.rounds, asked.limits, asked.force)
    if way.benched and not asked.dry_run:
        require_device(request)
    plan = plan_run(request, progress.say, fetch=not asked.dry_run, force=asked.force, max_memory=asked.limits.memory)
    if task is None and plan.source.handle is not None and plan.source.handle.task is not None:
        check_task_has(aims, request, plan.source.handle.task)
    folder = plan.output.with_name(f"{plan.output.name}-search")
    search = Search(request, strategy, aims, way, plan, folder)
    if strategy.sampler == "sequential" and search.space.size() is None:
        endless = next(axis.name for axis in request.loaded.axes if axis.values is None)
        raise UsageError(
            "range-without-step", f"'{endless}' has no step: its points cannot be tried in order", "give it a step"
        )
    return search


def _check_outputs(search: Search) -> None:
    """Makes sure, before the first point, that everything that comes of the search can be written."""
    for output in (*_outputs(search), recipe_beside(search.plan.output), search.folder):
        check_writable(output)


def _outputs(search: Search) -> list[Path]:
    """Returns the folders of the models to keep, the best one's first."""
    first = search.plan.output
    return [first, *(first.with_name(f"{first.name}-{at}") for at in range(2, search.strategy.output_model_num + 1))]


def _tried(search: Search, asked: Asked, progress: _Progress) -> Found:
    try:
        return run_search(search, asked.fresh, progress.listen, progress.tell)
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(f"the points tried are in {search.folder}, and the same command goes on") from None


def _keep(search: Search, found: Found, progress: _Progress) -> list[Path]:
    """Puts the best models into their folders; they come from the store."""
    outputs = []
    for trial, output in zip(found.ranked, _outputs(search), strict=False):
        progress.say(f"writing {output.name}")
        request = replace(search.at(trial.point, output), no_cache=False)
        execute(plan_run(request, progress.say, force=True), progress.listen, search.way.limits)
        outputs.append(output)
    return outputs


def _written(search: Search, found: Found, outputs: Sequence[Path]) -> list[tuple[str, Path]]:
    from runner.search.chart import draw
    from runner.search.page import write_page
    from runner.search.winner import write_winner

    charts = draw(search, found, search.folder)
    page = write_page(search, found, charts[0] if charts else None)
    command = shlex.join(["recipe", *sys.argv[1:]])
    recipe = write_winner(search, found.ranked[0], outputs[0], command).folder
    named = [("model", output) for output in outputs]
    return [*named, ("recipe", recipe), ("report", page), *(("chart", chart) for chart in charts)]


def _show(search: Search, found: Found, outputs: Sequence[Path], files: Sequence[tuple[str, Path]]) -> None:
    columns = compared_figures(found.study.trials, search.aims)
    rows = [
        (str(row.number), *row.figures, row.state, row.point + (f": {row.reason}" if row.reason else ""))
        for row in rows_of(search, found)
    ]
    print_table(("point", *columns, "", "values"), rows, right=("point", *columns))
    for note in notes_of(search, found):
        click.echo(f"note: {note}")
    click.echo(f"done: {found.stopped}")
    for what, path in files:
        click.echo(f"{what:<8} {path}")


def _show_space(search: Search, asked: Asked) -> None:
    size = search.space.size()
    first: list[dict[str, Any]] = []
    if size is not None:
        first = list(islice(search.space.points(), _FIRST_POINTS))
    aims = [str(one) for one in (*search.aims.objectives, *search.aims.goals)]
    axes = {axis.name: list(axis.values) if axis.values is not None else str(axis.range) for axis in search.request.loaded.axes}
    if asked.as_json:
        facts = {
            "recipe": search.request.name,
            "builtin": asked.builtin,
            "space": axes,
            "size": size,
            "samples": search.samples,
        }
        click.echo(json.dumps({**facts, "aims": aims, "first": first, "output": str(search.plan.output)}, indent=2))
        return
    click.echo(f"{search.request.name}: {', '.join(aims)}")
    if asked.builtin:
        click.echo("the configuration has one value an option: a built-in space for its passes is searched")
    rows = [(name, ", ".join(map(text_of, values)) if isinstance(values, list) else values) for name, values in axes.items()]
    print_table(("option", "values"), rows)
    strategy = search.strategy
    told_size = "points without number" if size is None else f"{size} points"
    if size == 1:
        click.echo(_ONE_POINT)
    else:
        click.echo(
            f"{told_size}; {search.samples} are tried, {strategy.execution_order}, {strategy.sampler}, seed {strategy.seed}"
        )
    for point in first:
        click.echo(f"  {told(point, search.request.loaded.axes)}")
    click.echo(f"into {search.plan.output}")


class _Progress:
    """A bar over the points, and a line for each that is over; on standard error."""

    def __init__(self, title: str) -> None:
        self._console = Console(stderr=True, soft_wrap=True)
        self._bars = live_bars(self._console, per_second=1)  # drawing must not disturb what is measured
        self._task = self._bars.add_task(f"search {title}", total=None, doing="")

    def __enter__(self) -> _Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def stop(self) -> None:
        """Takes the bar away."""
        self._bars.stop()

    def say(self, text: str) -> None:
        """Shows what is being done now."""
        self._bars.update(self._task, doing=text)

    def begin(self, search: Search, asked: Asked, known: int) -> None:
        """Says what is going to be searched, and how much of it was found before."""
        size = search.space.size()
        self._bars.update(self._task, total=search.samples, completed=known)
        if known:
            self._print(f"an earlier search goes on: {known} points are known; --fresh begins anew")
        of = "" if size is None else f" of {size}"
        aims = ", ".join(str(one) for one in (*search.aims.objectives, *search.aims.goals))
        self._print(f"{_ONE_POINT}: {aims}" if size == 1 else f"searching {search.samples}{of} points: {aims}")
        if asked.builtin:
            self._print("the configuration has one value an option: a built-in space for its passes is searched")
            for axis in search.request.loaded.axes:
                self._print(f"  {axis.name}: {', '.join(map(text_of, axis.values or ()))}")

    def listen(self, event: Event) -> None:
        """Follows the run of a point."""
        if event.kind in ("step-started", "evaluation-started", "said"):
            self.say(f"{event.step} {event.text}".strip())

    def tell(self, trial: Trial, search: Search) -> None:
        """Says what came of a point."""
        self._bars.advance(self._task)
        where = told(trial.point, search.request.loaded.axes)
        if not trial.done:
            self._print(f"point {trial.number + 1} failed: {where}: {trial.reason}")
            return
        names = compared_figures([trial], search.aims)
        figures = ", ".join(f"{name} {figure(trial.figures[name].value, trial.figures[name].unit)}" for name in names)
        self._print(f"point {trial.number + 1}: {figures}: {where} ({trial.seconds:.1f} s)")

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)
