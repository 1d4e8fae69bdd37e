"""`recipe run`: execute a recipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from runner.cli.options import catalogue_option, json_option, run_options
from runner.errors import UsageError


@click.command()
@click.argument("recipe", required=False, metavar="[ID|PATH]")
@click.option(
    "--config",
    "configs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A configuration file. Given again: a fragment whose sections replace those of the first.",
)
@run_options
@click.option("--output-dir", type=click.Path(path_type=Path), help="Where the model goes.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--no-cache", is_flag=True, help="Make every step again.")
@click.option("--max-memory", type=float, metavar="GB", help="Stop the worker when it holds more than this.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Stop the worker after this time.")
@json_option
@catalogue_option
def run(
    recipe: str | None,
    configs: Sequence[Path],
    output_dir: Path | None,
    dry_run: bool,
    no_cache: bool,
    max_memory: float | None,
    timeout: float | None,
    as_json: bool,
    catalog: Path | None,
    **chosen: Any,
) -> None:
    """Make the optimised model that a recipe describes.

    Without an argument the recipe of the current folder is run. A variant can be named as ID/VARIANT.
    """
    from runner.cli.request import make_request
    from runner.cli.run_progress import Progress, show_outcome, show_plan
    from runner.engine.run import execute, plan_run
    from runner.engine.supervise import Limits

    if recipe and configs:
        raise UsageError("bad-usage", "a recipe and --config do not go together", "give one of them")
    request = make_request(recipe, configs, catalog, output_dir=output_dir, no_cache=no_cache, **chosen)
    with Progress(request.name) as progress:
        plan = plan_run(request, progress.say, fetch=not dry_run)
        if not dry_run:
            progress.begin(plan)
            limits = Limits(int(max_memory * 1e9) if max_memory else None, timeout)
            outcome = execute(plan, progress.listen, limits)
    if dry_run:
        show_plan(plan, as_json)
    elif as_json:
        click.echo(json.dumps({"output": str(plan.output), "seconds": outcome.seconds, "receipt": outcome.receipt}, indent=2))
    else:
        show_outcome(outcome)
