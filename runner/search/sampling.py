"""Which point is tried next. Optuna proposes; nothing is tried twice.

With `tpe` the first points spread over every axis evenly (a Latin hypercube), and a model that misses a goal by little counts
as little worse: small models just off a goal lead to those that reach it. The sampler is made anew for every point from the
seed and the points so far, so that a search that was interrupted goes on exactly as it would have.
"""

from __future__ import annotations

import json
import math
import random
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from runner.errors import UsageError
from runner.recipe.choices import Axis
from runner.recipe.config import SearchStrategy
from runner.search.aims import Aims
from runner.search.space import Space, key_of
from runner.search.study import Trial

if TYPE_CHECKING:
    import optuna

_PROPOSALS = 4
# For budgets of a dozen points: optuna's own ten first points at random would leave little to choose.
_SPREAD = 6  # points behind the first one before the estimator has a say
_CANDIDATES = 64
_GOOD_SHARE = 0.15
_MISSED = 5.0  # parts of a cost for each part of a goal that is missed
_FAILED = 3.0  # shortfall of a point that failed, and the most that one is taken for


def next_point(
    space: Space, trials: Sequence[Trial], tried: set[str], strategy: SearchStrategy, aims: Aims
) -> dict[str, Any] | None:
    """Returns the next complete point of a space; None where all were tried. The first is that of all first values.

    Args:
        space: what may vary.
        trials: the points of the search so far; those outside the space tell nothing.
        tried: keys of all points that must not be tried.
        strategy: sampler and seed.
        aims: what makes a point a good one.

    Raises:
        UsageError: `sequential` on a range whose numbers cannot be counted.
    """
    first = space.complete({})
    if key_of(first) not in tried:
        return first
    if strategy.sampler == "sequential":
        return _in_order(space, tried)
    size = space.size()
    inside = [trial for trial in trials if space.holds(trial.point)]
    if size is not None and len(inside) >= size:
        return None
    seed = (strategy.seed * 100_003 + len(trials)) % 2**32
    listed = space.listed()
    if strategy.sampler == "tpe":
        for at in range(max(0, len(inside) - 1), _SPREAD):
            point = _spread(space, strategy.seed, at)
            if key_of(point) not in tried:
                return point
    for attempt in range(_PROPOSALS):
        study = _study(space, inside, strategy, aims, (seed + attempt * 7919) % 2**32)
        point = _proposed(study, space)
        if key_of(point) not in tried:
            return point
    left = [point for point in listed or () if key_of(point) not in tried]
    best = min((trial for trial in inside if trial.done), key=lambda trial: _costs(trial, aims), default=None)
    return _nearest(left, best, seed)


def _spread(space: Space, seed: int, at: int) -> dict[str, Any]:
    """Returns one of the first points, `at` counting them: over all of them, an axis takes each value, or part, as often."""
    taken = {}
    for axis in (axis for axis in space.axes if axis.name in space.varied):
        chance = random.Random(f"{seed} {axis.name}")  # noqa: S311  # nothing secret
        values = axis.values if axis.range is None else axis.range.numbers()
        if values:
            rounds = -(-_SPREAD // len(values))
            order = [one for _ in range(rounds) for one in chance.sample(values, len(values))][:_SPREAD]
            chance.shuffle(order)
            taken[axis.name] = order[at]
        else:
            parts = chance.sample(range(_SPREAD), _SPREAD)
            taken[axis.name] = _within(axis, (parts[at] + chance.random()) / _SPREAD)
    return space.complete(taken)


def _within(axis: Axis, share: float) -> float:
    """Returns the number that lies a share of the way through a range."""
    kind = _distribution(axis)
    number = kind.low * (kind.high / kind.low) ** share if kind.log else kind.low + share * (kind.high - kind.low)
    if kind.step:
        number = kind.low + round((number - kind.low) / kind.step) * kind.step
    return float(number) if isinstance(kind.low, float) else round(number)


def _nearest(left: Sequence[dict[str, Any]], best: Trial | None, seed: int) -> dict[str, Any] | None:
    """Returns a point that differs in as little as can be from the best one, where the sampler insists on what was tried."""
    if not left:
        return None
    like = best.point if best else left[seed % len(left)]
    scored = [(sum(like.get(name) != value for name, value in point.items()), point) for point in left]
    least = min(score for score, _ in scored)
    close = [point for score, point in scored if score == least]
    return close[seed % len(close)]


def _in_order(space: Space, tried: set[str]) -> dict[str, Any] | None:
    try:
        return next((point for point in space.points() if key_of(point) not in tried), None)
    except ValueError as error:
        raise UsageError(
            "range-without-step", f"'{error}' has no step: its points cannot be tried in order", "give it a step, or use tpe"
        ) from None


def _study(space: Space, trials: Sequence[Trial], strategy: SearchStrategy, aims: Aims, seed: int) -> optuna.Study:
    """Returns a study in memory that knows the trials."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # options of the sampler that optuna calls experimental
        sampler: optuna.samplers.BaseSampler = optuna.samplers.RandomSampler(seed=seed)
        if strategy.sampler == "tpe":
            grouped = strategy.group and strategy.multivariate
            sampler = optuna.samplers.TPESampler(
                seed=seed,
                n_startup_trials=1,
                n_ei_candidates=_CANDIDATES,
                gamma=lambda count: math.ceil(_GOOD_SHARE * count),
                multivariate=strategy.multivariate,
                group=grouped,
            )
        study = optuna.create_study(directions=["minimize"] * len(aims.objectives), sampler=sampler)
    for trial in trials:
        study.add_trial(_known(space, trial, trials, aims))
    return study


def _known(space: Space, trial: Trial, trials: Sequence[Trial], aims: Aims) -> optuna.trial.FrozenTrial:
    """A trial as optuna keeps it: one that failed is behind the worst, and so is a figure that was not measured."""
    import optuna

    axes = list(space.acting(trial.point))
    all_costs = [_costs(one, aims) for one in trials if one.done] or [(1.0,) * len(aims.objectives)]
    worst = [max((cost for cost in costs if math.isfinite(cost)), default=1.0) for costs in zip(*all_costs, strict=True)]
    costs = _costs(trial, aims) if trial.done else (math.inf,) * len(worst)
    return optuna.trial.create_trial(
        params={axis.name: _as_param(axis, trial.point[axis.name]) for axis in axes},
        distributions={axis.name: _distribution(axis) for axis in axes},
        values=[cost if math.isfinite(cost) else _behind(least, _FAILED) for cost, least in zip(costs, worst, strict=True)],
    )


def _costs(trial: Trial, aims: Aims) -> tuple[float, ...]:
    """Returns what a model costs, more where it misses goals; infinite where that was not measured."""
    short = min(aims.shortfall(trial.figures), _FAILED)
    return tuple(_behind(cost, short) for cost in aims.costs(trial.figures))


def _behind(cost: float, short: float) -> float:
    return cost + _MISSED * short * abs(cost)


def _proposed(study: optuna.Study, space: Space) -> dict[str, Any]:
    trial = study.ask()
    taken = {name: value for name, value in space.complete({}).items() if name not in space.varied}
    for axis in space.axes:
        if axis.name not in space.varied or (axis.alternative is not None and taken.get(axis.step) != axis.alternative):
            continue
        kind = _distribution(axis)
        if axis.range is None:
            taken[axis.name] = json.loads(trial.suggest_categorical(axis.name, [json.dumps(one) for one in axis.values or ()]))
        elif axis.range.whole:
            taken[axis.name] = trial.suggest_int(axis.name, kind.low, kind.high, step=kind.step, log=kind.log)
        else:
            taken[axis.name] = trial.suggest_float(axis.name, kind.low, kind.high, step=kind.step, log=kind.log)
    return space.complete(taken)


def _as_param(axis: Axis, value: Any) -> Any:
    return value if axis.range is not None else json.dumps(value)


def _distribution(axis: Axis) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.range is None:
        return CategoricalDistribution([json.dumps(one) for one in axis.values or ()])
    numbers, within = axis.range.numbers(), axis.range
    high = numbers[-1] if numbers and within.step else within.high
    if within.whole:
        return IntDistribution(int(within.low), int(high), log=within.log, step=int(within.step or 1))
    return FloatDistribution(within.low, high, log=within.log, step=within.step)
