"""Makes one point of a search and measures it: an ordinary run, its evaluator, and a benchmark where one is needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from runner.bench.bench import Contest, bench
from runner.bench.scenarios import FIGURES
from runner.engine.events import Event
from runner.engine.limits import Limits
from runner.engine.plan import Plan
from runner.engine.request import Request
from runner.engine.run import Outcome, execute, plan_run
from runner.errors import (
    DoesNotFit,
    GateMissed,
    Interrupted,
    InvalidRecipe,
    NotForTarget,
    PackageMissing,
    RecipeError,
    RunFailed,
)
from runner.evaluation.evaluate import SOURCE_PREFIX
from runner.recipe.info import Evaluation
from runner.search.aims import DECODE_LATENCY, FREE, Aims, Figure

# What is a matter of the point alone; anything else would meet every other point, too.
OF_THE_POINT = (DoesNotFit, GateMissed, InvalidRecipe, NotForTarget, PackageMissing, RunFailed)
_UNTIMED = ("perplexity", "wer", "accuracy", "spearman", "pearson", "cosine", "cosine_min", "agreement", "psnr", "size", "load")
_SMOKE_TURN_SECONDS = 0.05


@dataclass(frozen=True)
class Way:
    """How every point is measured.

    Attributes:
        rounds: turns that each side of a benchmark gets; 0 where nothing is timed.
        benched: whether there is a benchmark at all.
        limits: what the worker may use.
        force: run even where memory or disk will not suffice by the estimate.
    """

    rounds: int
    benched: bool
    limits: Limits
    force: bool = False


def way_of(aims: Aims, request: Request, rounds: int | None, limits: Limits, force: bool = False) -> Way:
    """Returns how points are measured so that all figures of the aims are there, and nothing needless is timed.

    Args:
        aims: what is needed.
        request: the run.
        rounds: turns of a benchmark that were asked for; decided when None.
        limits, force: see `Way`.
    """
    benched = [name for name in aims.metrics if (name in FIGURES and name not in FREE) or name == DECODE_LATENCY]
    # Without a benchmark there is no size of the original to be a multiple of.
    of_source = any(goal.metric in FREE and goal.gate is not None and goal.gate.relative for goal in aims.goals)
    timed = any(name not in _UNTIMED for name in benched)
    if rounds is None:
        rounds = (1 if request.smoke else 2) if timed else 0
    return Way(rounds, bool(benched) or of_source or rounds > 0, limits, force)


@dataclass
class StepFailed(Exception):
    """A point failed: why, and by which step, where it was a step."""

    error: RecipeError
    step: str | None


def measured(
    request: Request, way: Way, failed: Mapping[str, Any], listen: Callable[[Event], None]
) -> tuple[Plan, dict[str, Figure]]:
    """Makes the model of a request and returns its plan and figures.

    Args:
        request: one point, with a folder of its own to go into.
        way: how it is measured.
        failed: fingerprints of steps that failed before.
        listen: told what happens.

    Raises:
        StepFailed: the point cannot be made or measured.
        RecipeError: what would meet every other point, too.
    """
    running: list[str] = []

    def follow(event: Event) -> None:
        if event.kind == "step-started":
            running.append(event.step)
        elif event.kind == "step-finished" and running:
            running.clear()
        listen(event)

    plan: Plan | None = None
    try:
        plan = plan_run(request, lambda text: listen(Event("said", text=text)), force=way.force, max_memory=way.limits.memory)
        for step in plan.steps:
            if step.fingerprint in failed:
                raise StepFailed(RunFailed("step-failed-before", f"step '{step.name}' failed before"), step.fingerprint)
        outcome = execute(plan, follow, way.limits)
        figures = _of_receipt(outcome.receipt)
        if way.benched:
            figures |= _of_bench(outcome, way, listen)
    except OF_THE_POINT as error:
        at = next((step.fingerprint for step in plan.steps if step.name == running[-1]), None) if plan and running else None
        raise StepFailed(error, at) from None
    return plan, figures


def _of_receipt(receipt: Mapping[str, Any]) -> dict[str, Figure]:
    found = {"size": Figure(float(sum(known["size"] for known in receipt["files"].values())), "bytes", False)}
    outputs = ((receipt["steps"][-1].get("parity") or {}).get("outputs") or {}).values()
    cosines = [one["cosine"] for one in outputs if one.get("cosine") is not None]
    if cosines:
        found["parity"] = Figure(min(cosines), "", True)
    metrics = {metric["name"]: metric for metric in receipt["metrics"]}
    for name, metric in metrics.items():
        if not name.startswith(SOURCE_PREFIX):
            source = metrics.get(f"{SOURCE_PREFIX}{name}")
            baseline = source["value"] if source else None
            found[name] = Figure(metric["value"], metric["unit"], metric["higher_is_better"], baseline)
    return found


def _of_bench(outcome: Outcome, way: Way, listen: Callable[[Event], None]) -> dict[str, Figure]:
    plan, request = outcome.plan, outcome.plan.request
    log = plan.places.logs / f"{time.strftime('%Y%m%d-%H%M%S')}-search-{request.name.replace('/', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    contest = Contest(
        output=outcome.model,
        source=outcome.source,
        recipe=request.name,
        variant=request.variant,
        model_id=request.config.input_model.model_path,
        evaluation=request.info.evaluation if request.info else Evaluation(),
        gates={},
        folder=request.loaded.folder,
        target=plan.target,
        threads=plan.threads,
        rounds=way.rounds,
        turn_seconds=_SMOKE_TURN_SECONDS if request.smoke else 0.5,
        smoke=request.smoke,
        by_size=False,
        log=log,
    )
    try:
        results = bench(contest, lambda text, done, total: listen(Event("said", "bench", text)))
    except RecipeError as error:
        if isinstance(error, Interrupted) or error.problems[0].cause.startswith("baseline"):
            raise  # the original model cannot be measured: nor can it beside any other point
        raise StepFailed(error, None) from None
    found = {}
    for row in results.rows:
        baseline = row.baseline.value if row.baseline else None
        ratio = row.ratio.value if row.ratio else None
        found[row.name] = Figure(row.optimised.value, row.unit, row.higher_is_better, baseline, ratio)
    decode = found.get("decode")
    if decode is not None:
        theirs = 1e3 / decode.baseline if decode.baseline else None
        ratio = 1 / decode.ratio if decode.ratio else None
        found[DECODE_LATENCY] = Figure(1e3 / decode.value, "ms/token", False, theirs, ratio)
    return found
