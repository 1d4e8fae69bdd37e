"""`recipe search`: try the options of a recipe, and keep the best model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from runner.cli.flags import flag
from runner.cli.options import (
    GIGABYTES,
    catalog_option,
    config_option,
    json_option,
    no_cache_option,
    recipe_argument,
    request_options,
)


@click.command()
@recipe_argument
@config_option
@request_options
@flag(
    "output_dir", "--output-dir", "--output_path", "-o", type=click.Path(path_type=Path), metavar="FOLDER",
    help="Where the model goes; models/ID-VARIANT by default.",
)  # fmt: skip
@click.option("--goal", "goals", multiple=True, metavar="'FIGURE BAR'", help="Must be met: 'perplexity <= 1.03x'. Repeatable.")
@click.option("--minimize", "minimise", multiple=True, metavar="FIGURE", help="Make it small; the first decides. Repeatable.")
@click.option("--maximize", "maximise", multiple=True, metavar="FIGURE", help="Make it great. Repeatable.")
@click.option("--space", multiple=True, metavar="PATH=V1,V2", help="Values to try: passes.build.block_size=16,32. Repeatable.")
@click.option("--samples", type=click.IntRange(min=1), help="Points to try; 16, or all of a smaller space, by default.")
@click.option("--sampler", type=click.Choice(["tpe", "random", "sequential"]), help="How the next point is chosen.")
@click.option("--order", type=click.Choice(["joint", "pass-by-pass"]), help="Vary all at once, or one pass after the other.")
@click.option("--max-time", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Begin no point after this.")
@click.option("--seed", type=click.IntRange(min=0), help="The same seed tries the same points; 0 by default.")
@click.option("--rounds", type=click.IntRange(min=0), help="Turns of a benchmark a point; 0 times nothing.")
@click.option("--models", type=click.IntRange(min=1), help="Models to keep, the best first; 1 by default.")
@click.option("--stop-when-met", is_flag=True, help="Stop at the first point that meets all goals.")
@click.option("--fresh", is_flag=True, help="Forget what an earlier search of this found.")
@click.option("--dry-run", is_flag=True, help="Show the space, its size and the first points, and do nothing.")
@no_cache_option
@click.option("--max-memory", type=GIGABYTES, metavar="GB", help="Stop a point above this.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS", help="Stop a point after this.")
@click.option("--force", is_flag=True, help="Run even where memory or disk will not suffice by the estimate.")
@json_option
@catalog_option
def search(
    word: str | None,
    configs: Sequence[Path],
    goals: Sequence[str],
    minimise: Sequence[str],
    maximise: Sequence[str],
    space: Sequence[str],
    rounds: int | None,
    max_memory: float | None,
    timeout: float | None,
    fresh: bool,
    dry_run: bool,
    force: bool,
    as_json: bool,
    samples: int | None,
    sampler: str | None,
    order: str | None,
    max_time: float | None,
    seed: int | None,
    models: int | None,
    stop_when_met: bool,
    **chosen: Any,
) -> None:
    """Try values of a recipe's options and keep the best model.

    What is tried: the values that the configuration or --space lists for options; where neither lists any, a built-in space
    for the recipe's passes. What --set says stays. An interrupted search goes on with the same command. Ends with exit code 4
    where no point meets all goals; the nearest one is kept.
    """
    from runner.cli.carry_out import limits_of
    from runner.cli.request import make_request
    from runner.cli.search_run import Asked, carry_out_search
    from runner.search.builtin_spaces import builtin_space

    request = make_request(word, configs, space=space, only_plan=dry_run, **chosen)
    builtin = not request.loaded.axes  # a list of one value says something, too: that it stays
    if builtin:
        texts = builtin_space(request.loaded)
        if texts:
            request = make_request(word, configs, space=[*space, *texts], only_plan=dry_run, **chosen)
    strategy = {
        "max_samples": samples,
        "sampler": sampler,
        "execution_order": order,
        "max_time": max_time,
        "seed": seed,
        "output_model_num": models,
        "stop_when_goals_met": stop_when_met or None,
    }
    asked = Asked(
        goals, minimise, maximise, {key: value for key, value in strategy.items() if value is not None}, rounds, builtin,
        fresh, dry_run, force, as_json, limits_of(max_memory, timeout),
    )  # fmt: skip
    carry_out_search(request, asked)
