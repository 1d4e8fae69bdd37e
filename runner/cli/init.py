"""`recipe init`: asks what is wanted, step by step, and does it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.flags import (
    flag,
    flags,
    log_level_flag,
    max_memory_flag,
    model_flag,
    offline_flag,
    smoke_flag,
    task_flag,
    threads_flag,
    trust_flag,
)
from runner.cli.init_questions import TRADES, Interview
from runner.cli.options import catalog_option
from runner.cli.wizard import Answers, Wizard
from runner.errors import RecipeError, UsageError

if TYPE_CHECKING:
    from runner.compose.optimise import Decided

_ACTIONS = ("run", "write", "command")


@click.command()
@flags(
    model_flag,
    task_flag,
    flag("target", "--target", metavar="NAME", help="cpu, cuda (gpu) or directml (dml)."),
    flag("precision", "--precision", metavar="NAME", help="int4, int8, fp16, fp32, bf16 on CUDA; or decide."),
    flag("trade", "--trade", type=click.Choice(list(TRADES)), help="What matters most."),
    flag("data", "--data", metavar="FILE", help="Text to calibrate on, where the pipeline does; the catalogue's by default."),
    flag("train", "--train", metavar="FILE", help="Rows to train a language model on first: json, jsonl, csv, parquet."),
    flag("template", "--template", metavar="TEXT", help="How a row of them reads as text, with {column} in it."),
    flag(
        "output",
        "--output",
        "--output_path",
        "-o",
        type=click.Path(path_type=Path),
        metavar="FOLDER",
        help="Where the model goes. The recipe goes to FOLDER-recipe.",
    ),
    flag("action", "--action", type=click.Choice(_ACTIONS), help="Run it, write the recipe, or print the command."),
    flag("yes", "--yes", "-y", is_flag=True, help="Ask nothing: what is not said is decided, and run."),
    max_memory_flag,
    threads_flag,
    trust_flag,
    offline_flag,
    smoke_flag,
    log_level_flag,
    catalog_option,
)
def init(
    model: str | None,
    output: Path | None,
    action: str | None,
    yes: bool,
    max_memory: float | None,
    log_level: int,
    task: str | None,
    target: str | None,
    precision: str | None,
    trade: str | None,
    data: str | None,
    train: str | None,
    template: str | None,
    **how: Any,
) -> None:
    """Ask what is wanted, step by step, and make the model.

    Every question can be gone back to, and nothing is written before the last one. Flags answer questions beforehand; with
    --yes nothing is asked. It ends as 'recipe optimize' does.
    """
    told = {
        "model": model, "task": task, "target": target, "precision": precision, "trade": trade, "data": data,
        "train": train, "template": template,
        "output": str(output) if output else None,
    }  # fmt: skip
    given = {key: value for key, value in told.items() if value is not None}
    asks = sys.stdin.isatty() and sys.stdout.isatty() and not yes
    if not asks:
        _refuse_open(given, yes or action is not None)
    interview = Interview(max_memory, how, _tell)
    wizard = Wizard(interview.questions, given, _tell)
    if not asks:
        wizard.complete()
    decided = interview.go(wizard, action) if asks else interview.do(wizard.answers, action or "run")
    if decided is not None:
        _carry_out(decided, max_memory, log_level)


def _refuse_open(given: Answers, settled: bool) -> None:
    missing = [f"--{key}" for key in ("model",) if key not in given]
    if not settled:
        open_ = [f"--{key}" for key in ("target", "precision", "trade", "output") if key not in given]
        raise UsageError(
            "no-terminal",
            "init asks questions, and this is no terminal",
            f"missing: {', '.join([*missing, *open_])}; add --yes, which runs and decides what is not said",
        )
    if missing:
        raise UsageError("no-model", "no model was named", f"add {missing[0]}")


def _tell(error: RecipeError) -> None:
    from runner.cli import tell

    tell(error)


def _carry_out(decided: Decided, max_memory: float | None, log_level: int) -> None:
    from runner.cli.carry_out import Way, carry_out, limits_of

    outcome = carry_out(decided.request, Way(limits=limits_of(max_memory)))
    click.echo(f"recipe   {decided.composed.folder}")
    if outcome is not None and outcome.log is not None and log_level == 0:
        click.echo(outcome.log.read_text(encoding="utf-8", errors="replace"), err=True)
