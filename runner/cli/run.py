"""`recipe run`: execute a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from runner.cli.options import (
    GIGABYTES,
    catalog_option,
    config_option,
    json_option,
    no_artifacts_option,
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
@no_artifacts_option
@click.option("--locked", is_flag=True, help="Only with the source model that recipe.lock.json names.")
@click.option("--max-memory", type=GIGABYTES, metavar="GB", help="Stop the worker above this.")
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

    Without an argument the recipe of the current folder is run. A variant can be named as ID/VARIANT. A configuration with a
    search_strategy and options with several values is searched, see 'recipe search'.
    """
    from runner.cli.carry_out import Way, carry_out, limits_of
    from runner.cli.request import make_request

    request, lock = make_request(word, configs, only_plan=dry_run, **chosen), None
    if locked:
        from runner.engine.locked import locked_request

        request, lock = locked_request(request)
    limits = limits_of(max_memory, timeout)
    if request.loaded.varies:
        from runner.cli.search_run import Asked, carry_out_search

        carry_out_search(request, Asked(dry_run=dry_run, force=force, as_json=as_json, limits=limits))
        return
    carry_out(request, Way(dry_run, force, as_json, limits, lock))
