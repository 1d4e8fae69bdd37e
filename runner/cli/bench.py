"""`recipe bench`: measure a recipe's model against the model it came from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import (
    catalog,
    catalog_option,
    config_option,
    json_option,
    no_cache_option,
    output_dir_option,
    recipe_argument,
    request_options,
)

if TYPE_CHECKING:
    from runner.compose.contest import Judged
    from runner.engine.plan import Plan

RESULTS_FILE, REPORT_FILE = "results.json", "report.html"
IMAGES_HELP = "Pictures to judge by in place of the recipe's; folders in it are named after what their pictures show."
SPEECH_HELP = (
    "Sound files with transcripts to judge by in place of the recipe's: a folder, or ORG/NAME:CONFIG:SPLIT of the hub."
)
PAIRS_HELP = "A csv or tsv of sentence1, sentence2 and score to judge embeddings by in place of the recipe's."
BATCH_HELP = "Inputs at once, by which the speed is measured: 1,8,32. The task's own choice by default."
LENGTH_HELP = "Tokens of a text or prompt, by which the speed is measured: 16,128,512."
BASELINE_HELP = (
    "How PyTorch runs the original: fp32, fp16 or bf16, with -compiled behind it for torch.compile. Ratios are taken of the"
    " first; further ones stand beside it. fp32 on the CPU and half precision on a GPU by default. Repeatable."
)


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


class _Form(click.ParamType[Any]):
    """How PyTorch runs the original."""

    name = "form"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Returns a `TorchForm`."""
        from runner.evaluation.torch_form import TorchForm

        return TorchForm.parse(str(value))


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
@click.option("--baseline", "baselines", type=_Form(), multiple=True, metavar="FORM", help=BASELINE_HELP)
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
    baselines: tuple[Any, ...],
    save: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Measure a recipe's optimised model against PyTorch, in one sitting, in turns.

    The model is made first where it is not there yet. In place of a recipe the folder of a finished model can be named: it is
    measured as it lies, against the model that its receipt names. Writes results.json and report.html beside the model. Ends
    with exit code 4 when a gate of the recipe is missed.
    """
    from runner.cli.request import make_request
    from runner.cli.run_progress import Progress
    from runner.compose.contest import Judged, check_gates, measure
    from runner.compose.finished import finished_request
    from runner.engine.request import require_device
    from runner.engine.run import as_it_lies, execute, plan_run
    from runner.report.page import write_page
    from runner.report.table import print_results

    finished = None if configs else finished_request(word, catalog(), chosen)
    request = finished or make_request(word, configs, **chosen)
    judged = Judged(images, speech, pairs, batch, length, tuple(dict.fromkeys(baselines)))
    _check(judged, request.config.input_model.task, save)
    require_device(request)
    with Progress(request.name) as progress:
        plan = plan_run(request, progress.say, force=finished is not None)
        if finished:
            _check_finished(plan, save)
        progress.begin(plan)
        outcome = (as_it_lies if finished else execute)(plan, progress.listen)
    with _Bar(request.name) as bar:
        results = measure(outcome, rounds, judged, bar.show)
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
    check_gates(request.name, results)


def _check_finished(plan: Plan, save: bool) -> None:
    """Refuses a finished model whose source is not the recipe's, and tells where it is not what the recipe makes today."""
    from runner.compose.finished import check_same_source, is_made_by, typed_for
    from runner.errors import UsageError

    check_same_source(plan)
    if is_made_by(plan):
        return
    cause = f"{plan.output} was made with other options or versions than {plan.request.name} has now"
    if save:
        remedy = f"leave it out, or measure what the recipe makes: recipe bench {typed_for(plan.request)} --save"
        raise UsageError("not-the-recipes-model", f"--save is for what the recipe makes, and {cause}", remedy)
    click.echo(f"note: {cause}; it is measured as it lies", err=True)


def _check(judged: Judged, task: str | None, save: bool) -> None:
    """Refuses data and sizes that do not go with the model, before anything is made."""
    from runner.bench.scenarios import ZERO_SHOT
    from runner.errors import UsageError
    from runner.models.tasks import IMAGE_ONLY, TEXT_ONLY

    if save and judged.data():
        raise UsageError("not-the-recipes-data", "--save is for figures on the recipe's own data", "leave out one of the two")
    pictures = (*IMAGE_ONLY, ZERO_SHOT)
    rules = (
        ("images", judged.images, pictures, "no-picture-model", "is not judged by pictures"),
        ("speech", judged.speech, ("automatic-speech-recognition",), "no-speech-model", "is not judged by speech"),
        (
            "pairs",
            judged.pairs,
            ("feature-extraction", "sentence-similarity"),
            "no-embeddings",
            "is not judged by pairs of sentences",
        ),
        ("batch", judged.batch, (*pictures, *TEXT_ONLY), "no-batches", "is not measured by batches"),
        ("length", judged.length, TEXT_ONLY, "no-lengths", "is not measured by lengths of a text"),
    )
    for name, given, tasks, rule, cause in rules:
        if given and task is not None and task not in tasks:
            raise UsageError(rule, f"a model for {task} {cause}", f"leave out --{name}")
    if judged.images and task == ZERO_SHOT and not any(one.is_dir() for one in judged.images.iterdir()):
        raise UsageError(
            "no-labels",
            f"{judged.images} has no folders in it to choose among",
            "name folders after what the pictures in them show",
        )


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
