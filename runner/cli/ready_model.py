"""A model that is ready to be used: the one that lies in a folder, or a recipe's, which is made first where it is not there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from runner.engine.request import Request
from runner.models.handle import ModelHandle
from runner.targets.target import Target


@dataclass(frozen=True)
class Ready:
    """A model that can be loaded.

    Attributes:
        model: the model.
        target: what it is run on.
        threads: threads of its sessions.
    """

    model: ModelHandle
    target: Target
    threads: int


def finished_in(folder: Path, chosen: dict[str, Any], otherwise: str) -> Ready | None:
    """Returns the finished model that lies in a folder; None where there is none.

    Args:
        folder: the folder.
        chosen: `target` and `threads` as they were asked for; None for the model's own, and for one a core.
        otherwise: what can be done where its target cannot be used here.

    Raises:
        TargetUnavailable: the target cannot be used here.
        RunFailed: there is no receipt, and genai_config.json is damaged.
    """
    from runner.catalog.find import is_there
    from runner.engine.publish import finished_model
    from runner.targets.target import best_target, require, session_threads, target_named

    found = finished_model(folder) if is_there(folder) else None
    if found is None:
        return None
    handle, provider = found
    target = chosen["target"] or target_named(provider)
    if target == "auto":
        genai = handle.kind == "genai"
        target, reason = best_target({target_named(provider).name, "cpu"}, "the model", genai=lambda _: genai)
        click.echo(f"--target auto: {reason}", err=True)
    require(target, genai=handle.kind == "genai", otherwise=otherwise)
    return Ready(handle, target, session_threads(chosen["threads"]))


def made_of(request: Request) -> Ready:
    """Returns the model of a recipe; says so on standard error where it is made first.

    Raises:
        TargetUnavailable: its target cannot be used here; nothing was made.
        RecipeError: whatever else stands in the way, see `plan_run` and `execute`.
    """
    from runner.cli.run_progress import Progress
    from runner.engine.request import require_device
    from runner.engine.run import execute, plan_run

    require_device(request)
    started = time.perf_counter()
    with Progress(request.name) as progress:
        plan = plan_run(request, progress.say)
        if not plan.complete:
            click.echo(f"making {request.name} first", err=True)
        progress.begin(plan)
        outcome = execute(plan, progress.listen)
    if outcome.log is not None:
        click.echo(f"made in {time.perf_counter() - started:.0f} s: {plan.output}", err=True)
    return Ready(outcome.model, plan.target, plan.threads)
