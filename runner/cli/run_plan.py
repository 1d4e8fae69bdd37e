"""What a dry run tells: steps, what they need, and whether this machine has it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table

from runner.cli.estimates import needs_facts, needs_text
from runner.engine.estimate import Needs, estimate
from runner.engine.explain import explain
from runner.engine.fit import check_fit
from runner.engine.plan import Plan
from runner.errors import DoesNotFit, Problem
from runner.recipe.quantities import short_size


def show_plan(plan: Plan, max_memory: int | None, as_json: bool) -> None:
    """Prints what a run would do, what it needs, and whether this machine has it.

    Args:
        plan: the run.
        max_memory: bytes that the worker would be allowed; all of the machine's when None.
        as_json: for programs.
    """
    needs = estimate(plan)
    told, refused = _fit(plan, needs, max_memory)
    if as_json:
        _print_plan_json(plan, needs, refused)
        return
    console = Console()
    console.print(f"[bold]{plan.request.name}[/] on {plan.target.name}, {plan.threads} threads", highlight=False)
    console.print(f"from {plan.source.told}", highlight=False, soft_wrap=True)
    console.print(_steps_table(plan, needs))
    if needs is not None:
        console.print(f"needs {needs_text(needs)}", highlight=False, soft_wrap=True)
    console.print(f"into {plan.output}", highlight=False, soft_wrap=True)
    for problem in refused:
        console.print(f"[red]does not fit[/] {problem}", highlight=False, soft_wrap=True)
    for note in (*told, *plan.notes):
        console.print(f"[yellow]note[/] {note}", highlight=False, soft_wrap=True)


def _fit(plan: Plan, needs: Needs | None, max_memory: int | None) -> tuple[Sequence[str], Sequence[Problem]]:
    """Returns what people should know of a run, and why it would be refused."""
    if needs is None:
        unknown = "what the run needs cannot be told: nothing is known of the model's weights"
        return ((), ()) if plan.request.smoke else ((unknown,), ())
    try:
        return check_fit(plan, needs, max_memory), ()
    except DoesNotFit as error:
        return (), error.problems


def _print_plan_json(plan: Plan, needs: Needs | None, refused: Sequence[Problem]) -> None:
    told = {
        "recipe": plan.request.name,
        "target": plan.target.name,
        "source": plan.source.told,
        "steps": [
            {
                "step": step.name,
                "pass": step.pass_name,
                "state": step.state,
                "cached": step.cached,
                "fingerprint": step.fingerprint,
                **({"components": {part.name: part.state for part in one.components}} if one.components else {}),
            }
            for step, one in zip(plan.steps, explain(plan), strict=True)
        ],
        "needs": needs_facts(needs),
        "does_not_fit": [problem.cause for problem in refused],
        "evaluate": plan.evaluates,
        "output": str(plan.output),
        "threads": plan.threads,
        "notes": list(plan.notes),
    }
    click.echo(json.dumps(told, indent=2))


def _steps_table(plan: Plan, needs: Needs | None) -> Table:
    table = Table(box=None, pad_edge=False)
    told = explain(plan)
    for column in ("step", "pass", "state"):
        table.add_column(column, header_style="dim")
    for column in ("memory", "check", "leaves") if needs else ():
        table.add_column(column, header_style="dim", justify="right")
    for at, step in enumerate(plan.steps):
        needed = needs.steps[at] if needs else None
        sizes = () if needed is None or step.state != "to do" else (needed.memory, needed.check, needed.output)
        figures = tuple(short_size(size) if size else "" for size in sizes)
        table.add_row(step.name, step.pass_name, step.state, *figures)
        for part in told[at].components:
            table.add_row(f"  {part.name}", "", part.state)
    if plan.evaluates:
        table.add_row("evaluation", str(plan.request.config.evaluator), "cached" if plan.evaluated else "to do")
    return table
