"""`recipe run`: execute a recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


@click.command()
@recipe_argument
@config_option
@request_options
@output_dir_option
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@no_cache_option
@click.option("--locked", is_flag=True, help="Only with the source model that recipe.lock.json names.")
@click.option("--max-memory", type=click.FloatRange(min=0, min_open=True), metavar="GB", help="Stop the worker above this.")
@click.option("--force", is_flag=True, help="Run even where memory or disk will not suffice by the estimate.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Stop the worker after this.")
@json_option
@catalog_option
def run(
    word: str | None,
    configs: Sequence[Path],
    dry_run: bool,
    locked: bool,
    max_memory: float | None,
    force: bool,
    timeout: float | None,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Make the optimised model that a recipe describes.

    Without an argument the recipe of the current folder is run. A variant can be named as ID/VARIANT.
    """
    from runner.cli.request import make_request
    from runner.cli.run_progress import Progress, show_outcome, show_plan
    from runner.engine.locked import check_source, locked_request
    from runner.engine.run import execute, plan_run
    from runner.engine.supervise import Limits

    request = make_request(word, configs, **chosen)
    lock = None
    if locked:
        request, lock = locked_request(request)
    limits = Limits(int(max_memory * 1e9) if max_memory else None, timeout)
    with Progress(request.name) as progress:
        plan = plan_run(request, progress.say, fetch=not dry_run, force=force, max_memory=limits.memory)
        if lock is not None:
            check_source(plan, lock)
        if not dry_run:
            progress.begin(plan)
            outcome = execute(plan, progress.listen, limits)
    if dry_run:
        show_plan(plan, limits.memory, as_json)
    elif as_json:
        click.echo(json.dumps({"output": str(plan.output), "seconds": outcome.seconds, "receipt": outcome.receipt}, indent=2))
    else:
        show_outcome(outcome)
