"""What verbs that run something have in common: plan, execute with a live bar, and show what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from runner.cli.run_outcome import show_outcome
from runner.cli.run_progress import Progress
from runner.engine.ahead import of_request
from runner.engine.limits import Limits
from runner.engine.plan import Plan
from runner.engine.request import Request
from runner.engine.run import Outcome, execute, plan_run

if TYPE_CHECKING:
    from runner.models.lock import Lock


@dataclass(frozen=True)
class Way:
    """How a request is carried out.

    Attributes:
        dry_run: say what would be done, and do nothing.
        force: run even where memory or disk will not suffice by the estimate.
        as_json: print JSON, and nothing else.
        limits: what the worker may use.
        lock: the source model must be the one that it names.
        quiet: no lines of how far it is.
    """

    dry_run: bool = False
    force: bool = False
    as_json: bool = False
    limits: Limits = field(default_factory=Limits)
    lock: Lock | None = None
    quiet: bool = False


def carry_out(request: Request, way: Way, about: Mapping[str, Any] | None = None) -> Outcome | None:
    """Runs a request, or plans it only, and shows what came of it; returns the outcome, None of a dry run.

    Args:
        request: the run.
        way: how it is carried out.
        about: told as well where JSON is asked for.

    Raises:
        RecipeError: whatever stands in the way, see `plan_run` and `execute`.
    """
    plan, outcome = run_watched(request, way)
    if outcome is None:
        from runner.cli.run_plan import show_plan  # brings the estimates, which a run that has nothing to make does without

        show_plan(plan, way.limits.memory, way.as_json)
    elif way.as_json:
        told = {"output": str(plan.output), "seconds": outcome.seconds, "receipt": outcome.receipt, **(about or {})}
        click.echo(json.dumps(told, indent=2))
    else:
        show_outcome(outcome)
    return outcome


def run_watched(request: Request, way: Way) -> tuple[Plan, Outcome | None]:
    """Runs a request, or plans it only, with a live bar; returns the plan and the outcome, None of a dry run.

    Raises:
        RecipeError: whatever stands in the way, see `plan_run` and `execute`.
    """
    with Progress(request.name, quiet=way.quiet or way.as_json) as progress:
        if way.dry_run:
            plan = plan_run(request, progress.say, fetch=False)
            _check_source(plan, way.lock)
            return plan, None
        with of_request(request) as ahead:
            plan = plan_run(request, progress.say, force=way.force, max_memory=way.limits.memory, ahead=ahead)
            _check_source(plan, way.lock)
            progress.begin(plan)
            outcome = execute(plan, progress.listen, way.limits, ahead)
    return plan, outcome


def _check_source(plan: Plan, lock: Lock | None) -> None:
    if lock is not None:
        from runner.engine.locked import check_source

        check_source(plan, lock)


def limits_of(max_memory: float | None, timeout: float | None = None) -> Limits:
    """Returns the limits of a worker, from gigabytes and seconds."""
    return Limits(int(max_memory * 1e9) if max_memory else None, timeout)
