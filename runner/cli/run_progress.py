"""What a person sees of a run: a live line per step, then what came of it. Quiet when nobody watches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from runner.cli.estimates import needs_facts, needs_text
from runner.engine.estimate import Needs, estimate
from runner.engine.events import Event
from runner.engine.explain import explain
from runner.engine.fit import check_fit
from runner.engine.plan import Plan
from runner.engine.run import Outcome
from runner.errors import DoesNotFit, Problem
from runner.evaluation.structure import summary
from runner.recipe.quantities import short_size

_LINES = 20  # of what a step counts, where there is no terminal
_SPEED_OVER = 600  # seconds of the past by which the time left is told


class _TimeLeft(TimeRemainingColumn):
    """The time left of what is counted evenly, as optimiser steps are; nothing beside other bars."""

    def render(self, task: Task) -> Text:
        """Returns `0:01:40 left`, or nothing."""
        if not task.fields.get("even") or task.time_remaining is None:
            return Text("")
        return super().render(task).append(" left")


def live_bars(console: Console, per_second: float = 10) -> Bars:
    """Returns the bars that every verb shows, with `doing` beside them; silent unless the console is a terminal.

    A task whose field `even` is true has the time that is left as well.
    """
    return Bars(
        SpinnerColumn(),
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        _TimeLeft(),
        TextColumn("[dim]{task.fields[doing]}"),
        console=console,
        speed_estimate_period=_SPEED_OVER,
        transient=True,
        refresh_per_second=per_second,
        disable=not console.is_terminal,
    )


class Progress:
    """A bar over the steps with the current action beside it, on standard error, and one below it of what a step counts.

    Where standard error is no terminal only what is counted is told, in about twenty lines a step.

    Args:
        title: what the bar is called.
        quiet: no such lines.
    """

    def __init__(self, title: str, quiet: bool = False) -> None:
        self._console = Console(stderr=True)
        self._bars = live_bars(self._console)
        self._task = self._bars.add_task(title, total=None, doing="")
        self._quiet = quiet
        self._counting: TaskID | None = None
        self._told: tuple[str, int] | None = None

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Shows what is being done now."""
        self._bars.update(self._task, doing=text)

    def begin(self, plan: Plan) -> None:
        """Shows the plan's steps as the bar's length, and its notes."""
        for note in plan.notes:
            self._console.print(f"[yellow]note[/] {note}", highlight=False, soft_wrap=True)
        done = sum(step.state != "to do" for step in plan.steps)
        self._bars.update(self._task, total=len(plan.steps) + (plan.evaluation is not None), completed=done)

    def listen(self, event: Event) -> None:
        """Follows the worker."""
        if "total" in event.data:
            self._count(event)
        elif event.kind in ("step-started", "evaluation-started"):
            self.say(f"{event.step} {event.text}".strip())
        elif event.kind == "said":
            self.say(f"{event.step}: {event.text}")
        elif event.kind in ("step-finished", "evaluation-finished"):
            self._end_counting()
            self._bars.advance(self._task)
            if self._console.is_terminal and event.step:
                self._console.print(
                    f"[green]✓[/] {event.step:<16} {event.text:<28} {event.data['seconds']:7.1f} s", highlight=False
                )

    def _count(self, event: Event) -> None:
        """Moves the bar of what a step counts, or prints a line of it."""
        done, total, news = (event.data[key] for key in ("done", "total", "news"))
        if not self._console.is_terminal:
            if news and not self._quiet and self._is_milestone(event.step, done, total):
                click.echo(f"{event.step}: {event.text}", err=True)
            return
        if self._counting is not None and self._bars.tasks[-1].total != total:
            self._end_counting()
        if self._counting is None:  # what was done before says nothing of the speed
            self._counting = self._bars.add_task(f"  {event.step}", total=total, completed=done, doing=news, even=True)
            self.say("")
        self._bars.update(self._counting, completed=done, **({"doing": news} if news else {}))

    def _end_counting(self) -> None:
        if self._counting is not None:
            self._bars.remove_task(self._counting)
            self._counting = None

    def _is_milestone(self, step: str, done: int, total: int) -> bool:
        """Says whether to print a line: where a step begins to count, where it ends, and some twenty times between."""
        at = step, _LINES * done // max(total, 1)
        last, self._told = self._told, at
        return at != last or bool(done == total)


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


def show_outcome(outcome: Outcome) -> None:
    """Prints what came of a run: steps with time, size and distance from the source; metrics; where things lie."""
    plan = outcome.plan
    console = Console()
    console.print(
        f"[bold]{plan.request.name}[/] on {plan.target.name}, from {outcome.receipt['model']['from']}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("step", header_style="dim")
    table.add_column("pass", header_style="dim")
    for column in ("seconds", "MB", "cosine", "max diff", "top-1"):
        table.add_column(column, header_style="dim", justify="right")
    states = {step.name: step.state if step.state != "to do" else "cached" for step in plan.steps}  # by another run meanwhile
    for told in outcome.receipt["steps"]:
        name = told["step"]
        seconds = f"{told['seconds']:.1f}" if name in outcome.made and "seconds" in told else states.get(name, "")
        size = f"{told['bytes'] / 1e6:.1f}" if "bytes" in told else ""
        table.add_row(told["step"], told["pass"], seconds, size, *_parity(told.get("parity")))
        if name in outcome.made:
            for name, part in told.get("components", {}).items():
                table.add_row(f"  {name}", f"  {_COMPONENT[part['state']]}", *_component_figures(part))
    console.print(table)
    for told in outcome.receipt["steps"]:
        if why := (told.get("parity") or {}).get("reason"):
            text = f"{told['step']}: not compared with the source: {why}"
            console.print(f"[yellow]note[/] {text}", highlight=False, soft_wrap=True)
        if picture := (told.get("parity") or {}).get("picture"):
            height, width = picture["pixels"]
            drawn = f"a picture of {width} x {height} pixels after {picture['steps']} steps"
            console.print(
                f"{told['step']}: {picture['psnr_db']:.1f} dB PSNR to the source, {drawn}", highlight=False, soft_wrap=True
            )
    if written := (outcome.receipt["steps"][-1].get("parity") or {}).get("generated"):
        console.print(f"generation: {written} tokens written by onnxruntime-genai", highlight=False, soft_wrap=True)
    if structure := outcome.receipt.get("structure"):
        console.print(f"structure: {summary(structure, plan.target.name)}", highlight=False, soft_wrap=True)
        for note in structure["notes"]:
            console.print(f"[yellow]note[/] {note}", highlight=False, soft_wrap=True)
    for metric in outcome.receipt["metrics"]:
        note = f"  [dim]({metric['note']})[/]" if metric["note"] else ""
        console.print(f"{metric['name']}: {metric['value']:.4g} {metric['unit']}{note}", highlight=False, soft_wrap=True)
    for note in outcome.receipt["notes"]:
        if note in plan.notes:
            continue  # told when the run began
        console.print(f"[yellow]note[/] {note}", highlight=False, soft_wrap=True)
    state = "ready" if outcome.log else "written from the store" if outcome.written else "up to date"
    console.print(
        f"model    {plan.output}  ({_size(outcome.receipt)}, {state}, {outcome.seconds:.1f} s)", highlight=False, soft_wrap=True
    )
    console.print(f"receipt  {plan.output / 'receipt.json'}", highlight=False, soft_wrap=True)
    if outcome.log is not None:
        console.print(f"log      {outcome.log}", highlight=False, soft_wrap=True)


# What is said of a component, see `runner.engine.parts.Told`.
_COMPONENT = {"made": "", "stored": "from the store", "left": "left as it is"}


def _component_figures(part: dict[str, Any]) -> tuple[str, str]:
    return f"{part['seconds']:.1f}" if part["state"] == "made" else "", f"{part['bytes'] / 1e6:.1f}"


def _size(receipt: dict[str, Any]) -> str:
    return f"{sum(known['size'] for known in receipt['files'].values()) / 1e6:.1f} MB"


def _parity(parity: dict[str, Any] | None) -> tuple[str, str, str]:
    """The worst output decides: lowest cosine, largest difference, lowest agreement."""
    outputs = list((parity or {}).get("outputs", {}).values())
    if not outputs:
        return "", "", ""
    agreement = [one["top1_agreement"] for one in outputs if one.get("top1_agreement") is not None]
    return (
        f"{min(one['cosine'] for one in outputs):.5f}",
        f"{max(one['max_abs_diff'] for one in outputs):.2g}",
        f"{min(agreement):.0%}" if agreement else "",
    )
