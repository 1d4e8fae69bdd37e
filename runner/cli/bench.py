"""`recipe bench`: measure a recipe's model against the model it came from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import (
    catalog_option,
    config_option,
    json_option,
    no_cache_option,
    output_dir_option,
    recipe_argument,
    request_options,
)

if TYPE_CHECKING:
    from runner.bench.results import Results
    from runner.engine.run import Outcome

RESULTS_FILE, REPORT_FILE = "results.json", "report.html"
IMAGES_HELP = "Pictures to judge by in place of the recipe's; folders in it are named after what their pictures show."
TURN_SECONDS, SMOKE_TURN_SECONDS = 1.0, 0.05


@click.command()
@recipe_argument
@config_option
@request_options
@output_dir_option
@no_cache_option
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Turns that each side gets.")
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER", help=IMAGES_HELP)
@click.option("--save", is_flag=True, help="Write into the recipe's results/ too, from where its README takes its table.")
@json_option
@catalog_option
def bench(
    word: str | None,
    configs: Sequence[Path],
    rounds: int,
    images: Path | None,
    save: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Measure a recipe's optimised model against PyTorch, in one sitting, in turns.

    The model is made first where it is not there yet. Writes results.json and report.html beside it. Ends with exit
    code 4 when a gate of the recipe is missed.
    """
    from runner.cli.request import make_request
    from runner.cli.run_progress import Progress
    from runner.engine.run import execute, plan_run
    from runner.errors import GateMissed, Problem
    from runner.report.page import write_page
    from runner.report.table import print_results

    request = make_request(word, configs, **chosen)
    if images:
        _check_images(images, request.config.input_model.task, save)
    with Progress(request.name) as progress:
        plan = plan_run(request, progress.say)
        progress.begin(plan)
        outcome = execute(plan, progress.listen)
    results = _measure(outcome, rounds, images)
    written = [plan.output / RESULTS_FILE]
    if save and request.info and not request.smoke:
        written.append(request.loaded.folder / "results" / results.file_name)
    for path in written:
        results.write(path)
    write_page(plan.output / REPORT_FILE, results, outcome.receipt)
    if as_json:
        click.echo(results.model_dump_json(indent=2))
    else:
        print_results(results)
        for path in (*written, plan.output / REPORT_FILE):
            click.echo(f"{'report' if path.name == REPORT_FILE else 'results':<8} {path}")
    missed = [verdict for verdict in results.gates if not verdict.met]
    if missed:
        raise GateMissed(*(Problem("gate-missed", f"{request.name}: {verdict}") for verdict in missed))


def _check_images(images: Path, task: str | None, save: bool) -> None:
    """Refuses pictures that could not judge the model, before anything is made."""
    from runner.bench.scenarios import ZERO_SHOT
    from runner.errors import UsageError
    from runner.models.tasks import IMAGE_ONLY

    if save:
        raise UsageError("not-the-recipes-data", "--save is for figures on the recipe's own data", "leave out one of the two")
    if task is not None and task not in (*IMAGE_ONLY, ZERO_SHOT):
        raise UsageError("no-picture-model", f"a model for {task} is not judged by pictures", "leave out --images")
    if task == ZERO_SHOT and not any(one.is_dir() for one in images.iterdir()):
        raise UsageError(
            "no-labels", f"{images} has no folders in it to choose among", "name folders after what the pictures in them show"
        )


def _measure(outcome: Outcome, rounds: int, images: Path | None) -> Results:
    from runner.bench.bench import Contest
    from runner.bench.bench import bench as measure
    from runner.recipe.info import Evaluation

    plan, request = outcome.plan, outcome.plan.request
    info = request.info
    variant = info.variant(request.variant) if info else None
    log = plan.places.logs / f"{time.strftime('%Y%m%d-%H%M%S')}-bench-{request.name.replace('/', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    evaluation = info.evaluation if info else Evaluation()
    own_images = {"images": str(images.resolve())} if images else {}
    contest = Contest(
        output=outcome.model,
        source=outcome.source,
        recipe=info.name if info else request.name,
        variant=request.variant,
        model_id=request.config.input_model.model_path,
        evaluation=evaluation.model_copy(update=own_images),
        gates=variant.gates if variant else {},
        folder=request.loaded.folder,
        target=plan.target,
        threads=plan.threads,
        rounds=1 if request.smoke else rounds,
        turn_seconds=SMOKE_TURN_SECONDS if request.smoke else TURN_SECONDS,
        smoke=request.smoke,
        source_digest=plan.source.digest,
        fingerprint=outcome.receipt["fingerprint"],
        command=f"recipe bench {request.name} --rounds {rounds}"
        + (f" --images {images.resolve().name}" if images else "")
        + (" --smoke" if request.smoke else ""),
        log=log,
    )
    with _Bar(request.name) as progress:
        return measure(contest, progress.show)


class _Bar:
    """A bar over the actions of a benchmark, on standard error; silent unless that is a terminal."""

    def __init__(self, title: str) -> None:
        from rich.console import Console

        from runner.cli.run_progress import live_bars

        self._bars = live_bars(Console(stderr=True), per_second=1)  # drawing must not disturb what is measured
        self._task = self._bars.add_task(f"bench {title}", total=None, doing="")

    def __enter__(self) -> _Bar:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, text: str, done: int, total: int) -> None:
        """Shows the action that begins."""
        self._bars.update(self._task, completed=done, total=total, doing=text)
