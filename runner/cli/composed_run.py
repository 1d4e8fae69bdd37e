"""How the verbs that compose a recipe end: decisions told, the run carried out, and where everything lies."""

from __future__ import annotations

import json
from typing import Any

import click

from runner.cli.carry_out import Way, carry_out
from runner.cli.tables import print_table
from runner.compose.folder import Composed
from runner.engine.request import Request
from runner.engine.run import Outcome

_QUIET = 2  # from this log level on only the result is told


def say_at(log_level: int, text: str) -> None:
    """Tells what is being done, unless the log level asks for less."""
    if not is_quiet(log_level):
        click.echo(text, err=True)


def is_quiet(log_level: int) -> bool:
    """Says whether only the result is to be told."""
    return log_level > _QUIET


def show_decisions(composed: Composed) -> None:
    """Prints what was decided, and why."""
    print_table(("", "decided", "why"), [(one.what, one.choice, one.why) for one in composed.decisions])
    for note in composed.notes:
        click.echo(f"note: {note}")


def run_composed(composed: Composed, request: Request, way: Way, log_level: int) -> Outcome | None:
    """Shows what was decided, runs it, and says where the recipe is; returns the outcome, None of a dry run."""
    if way.dry_run and way.as_json:
        click.echo(json.dumps(_plainly(composed), indent=2))
        return None
    if not way.as_json and log_level < _QUIET:
        show_decisions(composed)
    outcome = carry_out(request, way, _told_beside(composed))
    if not way.as_json:
        click.echo(f"recipe   {composed.folder}")
    if outcome is not None and outcome.log is not None and log_level == 0:
        click.echo(outcome.log.read_text(encoding="utf-8", errors="replace"), err=True)
    return outcome


def _told_beside(composed: Composed) -> dict[str, Any]:
    plain = _plainly(composed)
    return {"recipe": plain["folder"], "decisions": plain["decisions"], "notes": plain["notes"]}


def _plainly(composed: Composed) -> dict[str, Any]:
    return {
        "folder": str(composed.folder),
        "config": dict(composed.config),
        "decisions": [{"what": one.what, "choice": one.choice, "why": one.why} for one in composed.decisions],
        "notes": list(composed.notes),
    }
