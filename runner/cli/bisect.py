"""`recipe bisect`: which step of a run breaks the numbers, and where inside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from runner.cli.options import catalog_option, config_option, json_option, recipe_argument, request_options
from runner.cli.tables import print_json, print_table
from runner.errors import GateMissed

if TYPE_CHECKING:
    from runner.engine.bisect import Bisection, StepVerdict, Trail
    from runner.engine.store import Store
    from runner.evaluation.divergence import Difference

_SHOWN_OUTPUTS = 4


@click.command()
@recipe_argument
@config_option
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    metavar="ERROR",
    help="Greatest relative error of an output; by default what the step's precision explains.",
)
@click.option("--cache-dir", help="The cache of an output folder whose configuration names cache_dir; the user's by default.")
@request_options
@json_option
@catalog_option
def bisect(
    word: str | None,
    configs: Sequence[Path],
    tolerance: float | None,
    cache_dir: str | None,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Name the first step of a finished run whose output leaves the tolerance, with the tensors that differ first.

    RECIPE is an id, a recipe folder, a config, or the folder that a run wrote (with its receipt.json). Nothing is made: the
    results of the steps are taken from the store. The relative error is the norm of the difference over the norm of the
    source's output; fp32 may have 0.001, fp16 0.03, int8 0.25 and int4 0.5. Exits 4 where a step is beyond.
    """
    from runner.engine import bisect as engine
    from runner.targets.target import session_threads

    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    trail, store = _trail(word, configs, cache_dir, chosen)
    say = (lambda _: None) if as_json else (lambda text: click.echo(f"  {text}", err=True))
    found = engine.bisect(trail, store, session_threads(chosen["threads"]), tolerance, say)
    if as_json:
        print_json(found.to_json())
    else:
        _show(found)
    if found.first:
        raise click.exceptions.Exit(GateMissed.exit_code)


def _trail(word: str | None, configs: Sequence[Path], cache_dir: str | None, chosen: dict[str, Any]) -> tuple[Trail, Store]:
    from runner.cli.request import make_request
    from runner.engine.bisect import trail_of_plan, trail_of_receipt
    from runner.engine.places import places
    from runner.engine.publish import read_receipt
    from runner.engine.run import plan_run
    from runner.engine.store import Store
    from runner.models.digest import DigestMemo

    receipt = None if configs else read_receipt(Path(word or ".").expanduser())
    if receipt is not None:
        where = places(cache_dir)
        store = Store(where, DigestMemo(where.digests))
        return trail_of_receipt(receipt, store, where), store
    request = make_request(word, configs, **chosen)
    plan = plan_run(request, lambda _: None, fetch=False)
    store = Store(plan.places, DigestMemo(plan.places.digests))
    return trail_of_plan(plan, store, f"recipe run {word or ' '.join(f'--config {path}' for path in configs)}"), store


def _show(found: Bisection) -> None:
    print_table(
        ("step", "pass", "precision", "worst error", "allowed", "verdict"),
        [_step_row(one) for one in found.steps],
        right=("worst error", "allowed"),
    )
    if found.first is None:
        missing = [one.step for one in found.steps if one.state == "missing"]
        judged = "every step that could be compared is" if missing else "every step is"
        click.echo(f"\n{judged} within its tolerance")
        return
    first = next(one for one in found.steps if one.step == found.first)
    unknown = [one.step for one in found.steps[: found.steps.index(first)] if one.state == "missing"]
    if unknown:
        click.echo(f"\nnothing is known of {', '.join(unknown)}: the fault may lie there")
    click.echo(f"\n{click.style(first.step, bold=True)} ({first.pass_name}) is the first step beyond its tolerance")
    if first.outputs:
        click.echo("\noutputs that differ most from the source's:")
        print_table(_COLUMNS[:-2], [_row(one)[:-2] for one in first.outputs[:_SHOWN_OUTPUTS]], right=_NUMBERS)
    if found.tensors:
        click.echo(f"\nfirst tensors inside that differ from those of '{found.before}':")
        print_table(_COLUMNS, [_row(one) for one in found.tensors], right=_NUMBERS)
    elif found.note:
        click.echo(f"\n{found.note}")


_COLUMNS = ("tensor", "error", "cosine", "largest", "shape", "operator", "compared with")
_NUMBERS = ("error", "cosine", "largest")


def _row(one: Difference) -> tuple[str, ...]:
    return (
        one.name,
        f"{one.relative_error:.3g}",
        f"{one.cosine:.4f}",
        f"{one.max_abs_diff:.3g}",
        "x".join(map(str, one.shape)) or "scalar",
        one.node or "",
        one.matched or "",
    )


def _step_row(one: StepVerdict) -> tuple[str, ...]:
    worst = f"{one.outputs[0].relative_error:.3g}" if one.outputs else "-"
    allowed = "-" if one.tolerance is None else f"{one.tolerance:g}"
    verdict = one.state if one.reason is None else f"{one.state}: {one.reason}"
    return one.step, one.pass_name, one.precision or "-", worst, allowed, verdict
