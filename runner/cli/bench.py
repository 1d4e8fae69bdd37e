"""`recipe bench`: measure a recipe's model against the model it came from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
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
SPEECH_HELP = (
    "Sound files with transcripts to judge by in place of the recipe's: a folder, or ORG/NAME:CONFIG:SPLIT of the hub."
)
PAIRS_HELP = "A csv or tsv of sentence1, sentence2 and score to judge embeddings by in place of the recipe's."
BATCH_HELP = "Inputs at once, by which the speed is measured: 1,8,32. The task's own choice by default."
LENGTH_HELP = "Tokens of a text, by which the speed is measured: 16,128,512."
TURN_SECONDS, SMOKE_TURN_SECONDS = 1.0, 0.05


class _Numbers(click.ParamType[tuple[int, ...]]):
    """Whole numbers from 1 on with commas between them."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Returns the numbers in the order of their size, each once."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isdecimal() and int(part) > 0 for part in parts):
            self.fail(f"'{value}' is not made of whole numbers from 1 on, such as 1,8,32", param, ctx)
        return tuple(sorted({int(part) for part in parts}))


class _Speech(click.ParamType[str]):
    """A folder, or the name of a data set."""

    name = "speech"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Returns the absolute path of a folder, or the name as it stands."""
        from runner.data.speech_dataset import names_dataset

        path = Path(value)
        if path.is_dir():
            return str(path.resolve())
        if path.exists() or not names_dataset(str(value)):
            self.fail(f"'{value}' is neither a folder nor the name of a data set, ORG/NAME:CONFIG:SPLIT", param, ctx)
        return str(value)


@dataclass(frozen=True)
class _Own:
    """What is judged by in place of the recipe's data, and the sizes by which the speed is measured."""

    images: Path | None
    speech: str | None
    pairs: Path | None
    batch: tuple[int, ...] = ()
    length: tuple[int, ...] = ()

    def data(self) -> dict[str, str]:
        """Returns the data by what info.yml calls it."""
        given = {"images": self.images, "pairs": self.pairs}
        files = {name: str(path.resolve()) for name, path in given.items() if path}
        return {**files, "speech": self.speech} if self.speech else files

    def typed(self) -> str:
        """Returns the options as they are typed; of paths the last name only."""
        numbers = {"batch": self.batch, "length": self.length}
        words = [f"--{name} {Path(told).name if Path(told).exists() else told}" for name, told in self.data().items()]
        words += [f"--{name} {','.join(map(str, values))}" for name, values in numbers.items() if values]
        return "".join(f" {word}" for word in words)


@click.command()
@recipe_argument
@config_option
@request_options
@output_dir_option
@no_cache_option
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Turns that each side gets.")
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER", help=IMAGES_HELP)
@click.option("--speech", type=_Speech(), metavar="FOLDER|DATASET", help=SPEECH_HELP)
@click.option("--pairs", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE", help=PAIRS_HELP)
@click.option("--batch", type=_Numbers(), default=(), metavar="NUMBERS", help=BATCH_HELP)
@click.option("--length", type=_Numbers(), default=(), metavar="NUMBERS", help=LENGTH_HELP)
@click.option("--save", is_flag=True, help="Write into the recipe's results/ too, from where its README takes its table.")
@json_option
@catalog_option
def bench(
    word: str | None,
    configs: Sequence[Path],
    rounds: int,
    images: Path | None,
    speech: str | None,
    pairs: Path | None,
    batch: tuple[int, ...],
    length: tuple[int, ...],
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
    own = _Own(images, speech, pairs, batch, length)
    _check(own, request.config.input_model.task, save)
    with Progress(request.name) as progress:
        plan = plan_run(request, progress.say)
        progress.begin(plan)
        outcome = execute(plan, progress.listen)
    results = _measure(outcome, rounds, own)
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


def _check(own: _Own, task: str | None, save: bool) -> None:
    """Refuses data and sizes that do not go with the model, before anything is made."""
    from runner.bench.scenarios import ZERO_SHOT
    from runner.errors import UsageError
    from runner.models.tasks import IMAGE_ONLY, TEXT_ONLY

    if save and own.data():
        raise UsageError("not-the-recipes-data", "--save is for figures on the recipe's own data", "leave out one of the two")
    pictures = (*IMAGE_ONLY, ZERO_SHOT)
    texts = tuple(one for one in TEXT_ONLY if not one.startswith("text-generation"))
    rules = (
        ("images", own.images, pictures, "no-picture-model", "is not judged by pictures"),
        ("speech", own.speech, ("automatic-speech-recognition",), "no-speech-model", "is not judged by speech"),
        (
            "pairs",
            own.pairs,
            ("feature-extraction", "sentence-similarity"),
            "no-embeddings",
            "is not judged by pairs of sentences",
        ),
        ("batch", own.batch, (*pictures, *texts), "no-batches", "is not measured by batches"),
        ("length", own.length, texts, "no-lengths", "is not measured by lengths of a text"),
    )
    for name, given, tasks, rule, cause in rules:
        if given and task is not None and task not in tasks:
            raise UsageError(rule, f"a model for {task} {cause}", f"leave out --{name}")
    if own.images and task == ZERO_SHOT and not any(one.is_dir() for one in own.images.iterdir()):
        raise UsageError(
            "no-labels",
            f"{own.images} has no folders in it to choose among",
            "name folders after what the pictures in them show",
        )


def _measure(outcome: Outcome, rounds: int, own: _Own) -> Results:
    from runner.bench.bench import Contest
    from runner.bench.bench import bench as measure
    from runner.bench.inputs_record import Sizes
    from runner.recipe.info import Evaluation

    plan, request = outcome.plan, outcome.plan.request
    info = request.info
    variant = info.variant(request.variant) if info else None
    log = plan.places.logs / f"{time.strftime('%Y%m%d-%H%M%S')}-bench-{request.name.replace('/', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    evaluation = info.evaluation if info else Evaluation()
    contest = Contest(
        output=outcome.model,
        source=outcome.source,
        recipe=info.name if info else request.name,
        variant=request.variant,
        model_id=request.config.input_model.model_path,
        evaluation=evaluation.model_copy(update=own.data()),
        gates=variant.gates if variant else {},
        folder=request.loaded.folder,
        target=plan.target,
        threads=plan.threads,
        rounds=1 if request.smoke else rounds,
        turn_seconds=SMOKE_TURN_SECONDS if request.smoke else TURN_SECONDS,
        smoke=request.smoke,
        source_digest=plan.source.digest,
        fingerprint=outcome.receipt["fingerprint"],
        command=f"recipe bench {request.name} --rounds {rounds}" + own.typed() + (" --smoke" if request.smoke else ""),
        sizes=Sizes(own.batch, own.length),
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
