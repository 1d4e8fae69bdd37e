"""What a person sees of a run while it goes on: a live line per step. Quiet when nobody watches."""

from __future__ import annotations

from types import TracebackType

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
from rich.text import Text

from runner.engine.events import Event
from runner.engine.plan import Plan

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
